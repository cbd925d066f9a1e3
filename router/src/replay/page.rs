//! The report as one HTML page: no script, no outside asset, light and dark by the reader's wish.

mod chart;
mod experiments;

use super::report::{FrontierPoint, PolicyFigures, Range, Report};
use chart::{Chart, Scale};
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");
const CALIBRATION_CAPTION: &str = "<p class=\"soft\">Each dot is a tenth of the requests whose small model's answer was judged; a \
    dot on the line is a score that keeps its word. Bars: Wilson intervals.</p>";

/// The page.
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    let title = report.policies.iter().map(|figures| escape(&figures.policy)).collect::<Vec<_>>().join(" against ");
    let confidence = report.confidence * 100.0;
    let head = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
        <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
        <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">";
    let day = |ms: i64| {
        let time = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
        time.strftime("%F %H:%M").to_string()
    };
    let _ = write!(
        page,
        "{head}<title>Replay: {title}</title><style>{STYLE}</style></head><body><header><h1>Replay: {title}</h1>\
         <p class=\"soft\">{} recorded requests, {} to {} UTC. All intervals at {confidence:.0} %.</p></header><main>",
        report.rows,
        day(report.from_ms),
        day(report.to_ms)
    );
    page.push_str(&tiles(report));
    let _ = write!(
        page,
        "<section><h2>Quality and cost by threshold</h2>{}{}</section>\
         <section><h2>Are the scores true?</h2>{}{}</section>",
        frontier(report),
        frontier_caption(report),
        calibration(report),
        CALIBRATION_CAPTION
    );
    page.push_str(&figures(report));
    page.push_str(&experiments::sections(report));
    page.push_str(&changes(report));
    if !report.notes.is_empty() {
        page.push_str("<section class=\"whole\"><h2>To know</h2><ul>");
        for note in &report.notes {
            let _ = write!(page, "<li>{}</li>", escape(note));
        }
        page.push_str("</ul></section>");
    }
    page.push_str("</main></body></html>\n");
    page
}

/// Text as HTML shows it.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with as many digits as are worth reading.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.4}"),
        _ => format!("{value:.6}"),
    }
}

fn of(range: Option<Range>, scale: f64, unit: &str) -> (String, String) {
    match range {
        None => ("unknown".to_owned(), String::new()),
        Some(r) => (
            format!("{}{unit}", number(r.value * scale)),
            format!("{} to {}{unit}", number(r.low * scale), number(r.high * scale)),
        ),
    }
}

fn percent(range: Option<Range>) -> (String, String) {
    let of = |value: f64| format!("{:.1}", value * 100.0);
    range.map_or_else(
        || ("unknown".to_owned(), String::new()),
        |r| (format!("{} %", of(r.value)), format!("{} to {} %", of(r.low), of(r.high))),
    )
}

fn tiles(report: &Report) -> String {
    let Some(first) = report.policies.first() else { return String::new() };
    let tile = |name: &str, (value, interval): (String, String), before: String| {
        format!(
            "<div class=\"tile\"><dt>{name}</dt><dd>{value}</dd><dd class=\"soft\">{interval}</dd>\
             <dd class=\"soft\">as logged: {before}</dd></div>"
        )
    };
    let logged = &report.logged;
    let quality = first.quality.map(|quality| quality.doubly_robust.bounds);
    [
        "<dl class=\"tiles\">".to_owned(),
        tile("Quality", percent(quality), percent(logged.quality).0),
        tile("USD per 1,000 requests", of(first.usd_per_1000, 1.0, ""), of(logged.usd_per_1000, 1.0, "").0),
        tile("Decided local", percent(first.local_share), percent(logged.local_share).0),
        tile("Mean latency", of(first.latency_ms, 1.0, " ms"), of(logged.latency_ms, 1.0, " ms").0),
        "</dl>".to_owned(),
    ]
    .concat()
}

/// A point of the frontier as it is drawn: cost, quality in percent, and whether all its routes were tried.
type Drawn = (f64, Range, bool);

fn drawn(point: &FrontierPoint) -> Option<Drawn> {
    Some((point.usd_per_1000?.value, times(point.quality?), point.untried < 0.001))
}

/// Each policy's frontier by rising cost; one that repeats an earlier one is left out.
fn curves(report: &Report) -> Vec<(usize, Vec<Drawn>)> {
    let mut curves: Vec<(usize, Vec<Drawn>)> = Vec::new();
    for (place, figures) in report.policies.iter().enumerate() {
        let mut points: Vec<Drawn> = figures.frontier.iter().filter_map(drawn).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        if !points.is_empty() && curves.iter().all(|(_, earlier)| *earlier != points) {
            curves.push((place, points));
        }
    }
    curves
}

fn frontier(report: &Report) -> String {
    let chosen = |figures: &PolicyFigures| figures.usd_per_1000.zip(figures.quality.map(|q| q.doubly_robust.bounds));
    let logged = report.logged.usd_per_1000.zip(report.logged.quality);
    let curves = curves(report);
    if curves.is_empty() {
        return "<p>No graded request: no quality to draw. Give feedback, or <code>--outcomes</code>.</p>".to_owned();
    }
    let all = || curves.iter().flat_map(|(_, points)| points);
    let marks: Vec<(Range, Range)> =
        report.policies.iter().filter_map(chosen).chain(logged).map(|(x, y)| (x, times(y))).collect();
    let xs = all().map(|(x, ..)| *x).chain(marks.iter().flat_map(|(x, _)| [x.low, x.high]));
    let ys = all().flat_map(|(_, y, _)| [y.low, y.high]).chain(marks.iter().flat_map(|(_, y)| [y.low, y.high]));
    let mut chart = Chart::new(Scale::around(xs), Scale::around(ys), "USD per 1,000 requests", "quality, %");
    for (place, points) in &curves {
        let high = points.iter().map(|(x, y, _)| (*x, y.high));
        let low = points.iter().rev().map(|(x, y, _)| (*x, y.low));
        chart.area(&high.chain(low).collect::<Vec<_>>(), *place);
        for pair in points.windows(2) {
            let ends: Vec<(f64, f64)> = pair.iter().map(|(x, y, _)| (*x, y.value)).collect();
            match pair.iter().all(|(.., tried)| *tried) {
                true => chart.line(&ends, "line", *place),
                false => chart.line(&ends, "line half", *place),
            }
        }
        for (x, y, _) in points {
            chart.dot((*x, y.value), &format!("fill{place}"), 2.5);
        }
    }
    for (place, figures) in report.policies.iter().enumerate() {
        if let Some((x, y)) = chosen(figures) {
            let threshold = figures.threshold.map_or("all remote".to_owned(), |t| format!("threshold {t:.3}"));
            chart.cross((x, times(y)), place);
            chart.label((x.value, y.value * 100.0), &format!("{}: {threshold}", figures.policy), place);
        }
    }
    if let Some((x, y)) = logged {
        chart.dot((x.value, y.value * 100.0), "hollow", 5.0);
        chart.label((x.value, y.value * 100.0), "as logged", report.policies.len());
    }
    chart.svg("Quality against cost over thresholds, with intervals, and the chosen points")
}

fn times(range: Range) -> Range {
    Range { value: range.value * 100.0, low: range.low * 100.0, high: range.high * 100.0 }
}

fn frontier_caption(report: &Report) -> String {
    let untried = report.policies.iter().any(|figures| figures.frontier.iter().any(|point| point.untried > 0.0));
    let wide = if untried {
        " Dashed: half way between bounds, because the policy that served never tried some of those routes."
    } else {
        ""
    };
    format!(
        "<p class=\"soft\">Line: doubly robust estimate at each threshold; band: its interval; cross: the policy as it \
         stands.{wide}</p>"
    )
}

fn calibration(report: &Report) -> String {
    if report.calibration.is_empty() {
        return "<p>Too few judged local answers to tell (20 are needed).</p>".to_owned();
    }
    let whole = || Scale::around([0.0, 1.0]);
    let mut chart = Chart::new(whole(), whole(), "score: predicted share good enough", "observed share good enough");
    chart.diagonal();
    for bin in &report.calibration {
        let at = Range { value: bin.predicted, low: bin.predicted, high: bin.predicted };
        chart.cross((at, bin.observed), 0);
        chart.dot((bin.predicted, bin.observed.value), "fill0", 4.0);
    }
    chart.svg("Predicted against observed share of small answers that were good enough, with intervals")
}

fn figures(report: &Report) -> String {
    let mut table = String::from("<section class=\"whole\"><h2>Figures</h2><div class=\"scroll\"><table><tr><th></th>");
    for figures in &report.policies {
        let _ = write!(table, "<th>{} <code>{}</code></th>", escape(&figures.policy), escape(&figures.hash));
    }
    table.push_str("</tr>");
    let mut row = |name: &str, of: &dyn Fn(&PolicyFigures) -> (String, String)| {
        let _ = write!(table, "<tr><th>{name}</th>");
        for figures in &report.policies {
            let (value, interval) = of(figures);
            let _ = write!(table, "<td>{} <span class=\"soft\">{}</span></td>", escape(&value), escape(&interval));
        }
        table.push_str("</tr>");
    };
    row("Requests decided again", &|f| {
        let left: usize = f.left_out.values().sum();
        (f.requests.to_string(), format!("{left} left out, {} graded", f.graded))
    });
    row("Quality, doubly robust", &|f| percent(f.quality.map(|q| q.doubly_robust.bounds)));
    row("Quality, inverse propensity, self-normalised", &|f| percent(f.quality.map(|q| q.snips.bounds)));
    row("Quality, inverse propensity, clipped", &|f| {
        let clip = f.quality.map_or(String::new(), |q| format!(" (ratios to {:.0})", q.clip));
        let (value, interval) = percent(f.quality.map(|q| q.clipped.bounds));
        (value, interval + &clip)
    });
    row("Choices never tried", &|f| (format!("{:.1} %", f.untried * 100.0), "bounded by [0, 1]".to_owned()));
    row("Effective rows", &|f| (format!("{:.0}", f.effective), String::new()));
    row("USD per 1,000 requests", &|f| of(f.usd_per_1000, 1.0, ""));
    row("Decided local", &|f| percent(f.local_share));
    row("Latency, mean", &|f| of(f.latency_ms, 1.0, " ms"));
    row("Latency, 95th percentile", &|f| of(f.latency_p95_ms, 1.0, " ms"));
    row("Certificate", &|f| (f.certificate.clone(), String::new()));
    table.push_str("</table></div></section>");
    table
}

fn changes(report: &Report) -> String {
    let mut table = format!(
        "<section class=\"whole\"><h2>{} requests change route</h2><div class=\"scroll\"><table>\
         <tr><th>request</th><th>from</th><th>to</th><th>why</th></tr>",
        report.changed
    );
    for change in &report.changes {
        let cell = |text: &str| format!("<td>{}</td>", escape(text));
        let id = format!("<td><code>{}</code></td>", escape(&change.id));
        let _ = write!(table, "<tr>{id}{}{}{}</tr>", cell(&change.from), cell(&change.to), cell(&change.reason));
    }
    table.push_str("</table></div></section>");
    if report.changed > 0 { table } else { String::new() }
}
