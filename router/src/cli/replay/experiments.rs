//! The two sides of an experiment as a table.

use super::range;
use crate::cli::table::{self, Align};
use crate::replay::arms::{ArmFigures, Comparison};
use crate::replay::report::Range;
use std::io::Write;

/// Prints one experiment.
pub fn print(comparison: &Comparison, out: &mut dyn Write) -> anyhow::Result<()> {
    let Comparison { experiment, control, candidate, .. } = comparison;
    let names = candidate.policies.iter().cloned().collect::<Vec<_>>().join(", ");
    writeln!(out, "experiment of {experiment}, which tries {names}; sides as they were served")?;
    let header = [
        ("", Align::Left),
        ("control", Align::Right),
        ("candidate", Align::Right),
        ("candidate − control", Align::Right),
    ];
    let counted = |name: &str, of: fn(&ArmFigures) -> usize| {
        vec![name.to_owned(), of(control).to_string(), of(candidate).to_string(), String::new()]
    };
    let row = |name: &str, of: fn(&ArmFigures) -> Option<Range>, minus: Option<Range>, (digits, unit): (usize, f64)| {
        let cell = |found: Option<Range>| range(found, digits, unit);
        vec![name.to_owned(), cell(of(control)), cell(of(candidate)), cell(minus)]
    };
    let mut rows = vec![
        counted("requests", |side| side.requests),
        counted("conversations", |side| side.conversations),
        counted("graded", |side| side.graded),
        row("quality", |side| side.quality, comparison.quality_difference, (3, 1.0)),
        row("USD per 1,000", |side| side.usd_per_1000, comparison.usd_per_1000_difference, (4, 1.0)),
        row("decided local, %", |side| side.local_share, comparison.local_share_difference, (1, 100.0)),
        row("latency, mean ms", |side| side.latency_ms, comparison.latency_ms_difference, (0, 1.0)),
    ];
    let mut slowest = row("latency, p95 ms", |side| side.latency_p95_ms, None, (0, 1.0));
    slowest.truncate(3);
    slowest.push(String::new());
    rows.push(slowest);
    Ok(table::print(out, &header, &rows)?)
}
