//! The sides of experiments on the page.

use super::{escape, of, percent};
use crate::replay::arms::{ArmFigures, Comparison};
use crate::replay::report::{Range, Report};
use std::fmt::Write as _;

/// A number and its interval, as they are shown.
type Shown = (String, String);

/// A section for each experiment; nothing without one.
pub fn sections(report: &Report) -> String {
    report.experiments.iter().map(section).collect()
}

fn section(comparison: &Comparison) -> String {
    let Comparison { experiment, control, candidate, .. } = comparison;
    let name = |side: &ArmFigures| side.policies.iter().map(|name| escape(name)).collect::<Vec<_>>().join(", ");
    let mut table = format!(
        "<section class=\"whole\"><h2>Experiment of {}</h2><div class=\"scroll\"><table><tr><th></th><th>control: {}</th>\
         <th>candidate: {}</th><th>candidate − control</th></tr>",
        escape(experiment),
        name(control),
        name(candidate)
    );
    let counts = |side: &ArmFigures| {
        (side.requests.to_string(), format!("in {} conversations, {} graded", side.conversations, side.graded))
    };
    row(&mut table, "Requests", [counts(control), counts(candidate), (String::new(), String::new())]);
    let mut figure = |name: &str, part: fn(&ArmFigures) -> Option<Range>, minus, shown: fn(Option<Range>) -> Shown| {
        row(&mut table, name, [shown(part(control)), shown(part(candidate)), shown(minus)]);
    };
    figure("Quality", |side| side.quality, comparison.quality_difference, percent);
    let usd = |found| of(found, 1.0, "");
    figure("USD per 1,000 requests", |side| side.usd_per_1000, comparison.usd_per_1000_difference, usd);
    figure("Decided local", |side| side.local_share, comparison.local_share_difference, percent);
    let milliseconds = |found| of(found, 1.0, " ms");
    figure("Latency, mean", |side| side.latency_ms, comparison.latency_ms_difference, milliseconds);
    let slowest = [milliseconds(control.latency_p95_ms), milliseconds(candidate.latency_p95_ms)];
    let [first, second] = slowest;
    row(&mut table, "Latency, 95th percentile", [first, second, (String::new(), String::new())]);
    table.push_str("</table></div><p class=\"soft\">As served; a difference whose interval holds 0 is not told apart.</p></section>");
    table
}

fn row(table: &mut String, name: &str, cells: [Shown; 3]) {
    let _ = write!(table, "<tr><th>{name}</th>");
    for (value, interval) in cells {
        let _ = write!(table, "<td>{} <span class=\"soft\">{}</span></td>", escape(&value), escape(&interval));
    }
    table.push_str("</tr>");
}
