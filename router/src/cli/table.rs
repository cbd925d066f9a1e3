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
        assert_eq!(clip("a  long\nline", 6), "a lon…");
    }
}
