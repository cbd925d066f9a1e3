//! Time, memory and error as one SVG without script or outside asset, light and dark by the reader's wish. All axes are
//! logarithmic.

use super::Kind;
use super::approximation::{Errors, FEATURES};
use super::speed::{Row, Speed};
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const HEIGHT: f64 = 210.0;

const STYLE: &str = "svg{background:#fff;color:#1c1c1c;font:13px system-ui,sans-serif}text{fill:currentColor}\
    .soft{opacity:.65}.grid{stroke:currentColor;opacity:.12}.line{fill:none;stroke-width:2.2}\
    .c0{stroke:#6b7280}.c1{stroke:#1f6fb2}.c2{stroke:#b4451f}.c3{stroke:#3a8a4d}.c4{stroke:#8a4fa8}.c5{stroke:#b08a1e}\
    .told{stroke:#1f6fb2;stroke-dasharray:5 4;stroke-width:1.3}\
    @media(prefers-color-scheme:dark){svg{background:#14171a;color:#e6e6e6}.c0{stroke:#a3abb8}.c1{stroke:#6fb3e8}\
    .c2{stroke:#f0906a}.c3{stroke:#7cc98d}.c4{stroke:#c79be0}.c5{stroke:#e2c15e}.told{stroke:#6fb3e8}}";

struct Line {
    name: String,
    colour: usize,
    points: Vec<(f64, f64)>,
}

struct Panel<'a> {
    top: f64,
    title: &'a str,
    x_name: &'a str,
    unit: &'a str,
    lines: Vec<Line>,
}

/// Logarithms of the least and the largest value, a little apart.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    match low <= high {
        true => (low.ln(), high.ln().max(low.ln() + 0.1)),
        false => (0.0, 1.0),
    }
}

impl Panel<'_> {
    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.lines.iter().flat_map(|line| &line.points)
    }

    fn draw(&self, svg: &mut String, mark: Option<f64>) {
        let (left, right) = ends(self.points().map(|(x, _)| *x));
        let (low, high) = ends(self.points().map(|(_, y)| *y));
        let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * (value.ln() - left) / (right - left);
        let y = |value: f64| self.top + HEIGHT * (1.0 - (value.ln() - low) / (high - low));
        let _ =
            write!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"600\">{}</text>", self.top - 12.0, self.title);
        let end = WIDTH - RIGHT;
        for power in (low / std::f64::consts::LN_10).ceil() as i32..=(high / std::f64::consts::LN_10).floor() as i32 {
            let value = 10f64.powi(power);
            let at = y(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}{}</text>",
                LEFT - 8.0,
                at + 4.0,
                self.unit
            );
        }
        let mut ticks: Vec<f64> = self.points().map(|(x, _)| *x).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let bottom = self.top + HEIGHT;
        for tick in ticks {
            let at = x(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>\
                 <text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
                self.top,
                bottom + 17.0
            );
        }
        let (name, under) = (self.x_name, bottom + 33.0);
        let _ = write!(svg, "<text class=\"soft\" x=\"{end}\" y=\"{under:.1}\" text-anchor=\"end\">{name}</text>");
        if let Some(mark) = mark {
            let at = x(mark);
            let _ = write!(
                svg,
                "<line class=\"told\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">cross at {mark:.0} tokens</text>",
                self.top,
                at + 6.0,
                self.top + 14.0
            );
        }
        let mut labels: Vec<(f64, &Line)> = Vec::new();
        for line in &self.lines {
            let points: Vec<String> =
                line.points.iter().map(|(along, up)| format!("{:.1},{:.1}", x(*along), y(*up))).collect();
            let _ = write!(svg, "<polyline class=\"line c{}\" points=\"{}\"/>", line.colour, points.join(" "));
            labels.extend(line.points.last().map(|(_, last)| (y(*last), line)));
        }
        // Names beside the lines' ends, no nearer than a line of text.
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut free = f64::NEG_INFINITY;
        for (at, line) in labels {
            let at = at.max(free);
            free = at + 16.0;
            let _ = write!(
                svg,
                "<line class=\"line c{}\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                line.colour,
                end + 8.0,
                end + 22.0,
                end + 28.0,
                at + 4.0,
                line.name
            );
        }
    }
}

/// The drawing.
pub fn svg(speed: &Speed, errors: Option<&Errors>) -> String {
    let of_kinds = |value: &dyn Fn(&Row, usize) -> f64| -> Vec<Line> {
        let line = |(place, kind): (usize, Kind)| {
            let points = speed.rows.iter().map(|row| (row.tokens as f64, value(row, place)));
            let points = points.filter(|(_, value)| *value > 0.0).collect();
            Line { name: kind.name().to_owned(), colour: place, points }
        };
        Kind::ALL.into_iter().enumerate().map(line).filter(|line| !line.points.is_empty()).collect()
    };
    let milliseconds = |row: &Row, place: usize| row.times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let mib = |row: &Row, place: usize| row.bytes.get(place).map_or(0.0, |bytes| *bytes as f64 / f64::from(1 << 20));
    let panel = |place: usize| 96.0 + place as f64 * (HEIGHT + 88.0);
    let mut panels = vec![
        Panel {
            top: panel(0),
            title: "Time of a score",
            x_name: "tokens",
            unit: " ms",
            lines: of_kinds(&milliseconds),
        },
        Panel { top: panel(1), title: "Working buffers", x_name: "tokens", unit: " MiB", lines: of_kinds(&mib) },
    ];
    if let Some(errors) = errors {
        let line = |(place, line): (usize, &super::approximation::Line)| Line {
            name: line.name.clone(),
            colour: place,
            points: FEATURES.into_iter().map(|features| features as f64).zip(line.errors.iter().copied()).collect(),
        };
        let lines = errors.lines.iter().enumerate().map(line).collect();
        let title = "Relative error of attention's output";
        panels.push(Panel { top: panel(2), title, x_name: "random features", unit: "", lines });
    }
    let height = panel(panels.len()) - 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\"><title>Performer against softmax</title><style>{STYLE}</style>\
         <text x=\"{LEFT}\" y=\"30\" font-size=\"17\" font-weight=\"600\">Performer against softmax</text>\
         <text class=\"soft\" x=\"{LEFT}\" y=\"52\">one encoder, two kinds of attention, beside the static scorer</text>"
    );
    for (place, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, speed.crossing().filter(|_| place == 0));
    }
    svg.push_str("</svg>\n");
    svg
}
