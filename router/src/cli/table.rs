//! Plain tables and money for terminals.

use std::io::{self, Write};

/// How a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Prints rows under a header, columns as wide as their widest cell, two spaces apart.
pub fn print(out: &mut dyn Write, header: &[(&str, Align)], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].0.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let names: Vec<String> = header.iter().map(|(name, _)| (*name).to_owned()).collect();
    let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    for row in [&names, &rules].into_iter().chain(rows) {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate().take(header.len()) {
            let gap = " ".repeat(widths[index].saturating_sub(cell.chars().count()));
            match header[index].1 {
                Align::Left => line.extend([cell.as_str(), &gap]),
                Align::Right => line.extend([gap.as_str(), cell]),
            }
            line.push_str("  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Nano-USD as `$0.000012300`, exactly.
pub fn money(nano_usd: i64) -> String {
    crate::domain::NanoUsd::new(nano_usd).to_string()
}

/// Bytes as a person reads them: `98.1 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (count as f64, 0);
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// A count as a person reads it: `134.5 M`.
pub fn count(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} G", count as f64 / 1e9),
    }
}

/// Cuts `text` to `width` characters on one line, with an ellipsis where something is missing.
pub fn clip(text: &str, width: usize) -> String {
    let flat: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= width {
        return flat;
    }
    let mut cut: String = flat.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut out = Vec::new();
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "234".to_owned()]];
        print(&mut out, &[("name", Align::Left), ("n", Align::Right)], &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "name    n\n----  ---\na       1\nbcd   234\n");
        assert_eq!((bytes(1023), bytes(1024), bytes(98 << 20)), ("1023 B".into(), "1.0 KiB".into(), "98.0 MiB".into()));
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!((count(999), count(134_515_008)), ("999".into(), "134.5 M".into()));
        assert_eq!(clip("a  long\nline", 6), "a lon…");
    }
}
