//! The curves as one SVG without script or outside asset, light and dark by the reader's wish.

use super::{Course, Report, WINDOW, Window};
use crate::evidence::estimate::Interval;
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;

const STYLE: &str = "svg{background:#fff;color:#1c1c1c;font:13px system-ui,sans-serif}text{fill:currentColor}\
    .soft{opacity:.65}.grid{stroke:currentColor;opacity:.12}.seed{fill:none;stroke:#1f6fb2;opacity:.16}\
    .band{fill:#1f6fb2;opacity:.14}.line{fill:none;stroke:#1f6fb2;stroke-width:2.5}.dot{fill:#1f6fb2}\
    .bar{stroke:#1f6fb2;stroke-width:1.5}.target{stroke:#b4451f;stroke-width:1.5;stroke-dasharray:6 4}.told{fill:#b4451f}\
    @media(prefers-color-scheme:dark){svg{background:#14171a;color:#e6e6e6}.line,.seed,.bar{stroke:#6fb3e8}\
    .band,.dot{fill:#6fb3e8}.target{stroke:#f0906a}.told{fill:#f0906a}}";

/// A panel: where it lies, and what its ends are worth.
struct Panel {
    top: f64,
    height: f64,
    low: f64,
    high: f64,
    requests: f64,
}

impl Panel {
    fn x(&self, requests: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * requests / self.requests
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value.clamp(self.low, self.high) - self.low) / (self.high - self.low);
        self.top + self.height * (1.0 - share)
    }

    fn line(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let points: Vec<String> = points.map(|(x, y)| format!("{:.1},{:.1}", self.x(x), self.y(y))).collect();
        points.join(" ")
    }

    /// Lines across at each step, their values, and the panel's title.
    fn frame(&self, svg: &mut String, title: &str, step: f64) {
        let _ = write!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"600\">{title}</text>", self.top - 10.0);
        let steps = ((self.high - self.low) / step).round() as u32;
        for place in 0..=steps {
            let value = self.low + step * f64::from(place);
            let y = self.y(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                value * 100.0
            );
        }
    }

    fn requests_axis(&self, svg: &mut String) {
        let y = self.top + self.height + 18.0;
        let step = if self.requests > 1_000.0 { 200 } else { 100 };
        for requests in (0..=self.requests as u32).step_by(step) {
            let x = self.x(f64::from(requests));
            let _ =
                write!(svg, "<text class=\"soft\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{requests}</text>");
        }
        let _ = write!(
            svg,
            "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">requests served</text>",
            WIDTH - RIGHT,
            y + 18.0
        );
    }
}

/// The drawing.
pub fn svg(report: &Report<'_>) -> String {
    let arguments = report.arguments;
    let requests = arguments.requests as f64;
    let highest = report.windows.iter().map(|window| window.local.high).fold(0.2, f64::max);
    let top = (highest * 10.0).ceil() / 10.0;
    let lowest = report.windows.iter().map(|window| window.kept.low).fold(arguments.target, f64::min);
    let share = Panel { top: 92.0, height: 220.0, low: 0.0, high: top, requests };
    let quality =
        Panel { top: 384.0, height: 150.0, low: ((lowest - 0.02) * 20.0).floor() / 20.0, high: 1.0, requests };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 600\" width=\"{WIDTH}\" height=\"600\" \
         role=\"img\"><title>Learning while serving</title><style>{STYLE}</style>"
    );
    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"30\" font-size=\"17\" font-weight=\"600\">Learning while serving, from nothing</text>\
         <text class=\"soft\" x=\"{LEFT}\" y=\"52\">{} seeds; real answers of sluice-nano, graded against the right ones; the \
         large model is simulated</text>",
        report.courses.len()
    );
    share.frame(&mut svg, "Served locally (mean, 10 to 90 % of the seeds, each seed)", 0.1);
    draw_shares(&mut svg, &share, report);
    let title = "Quality of what was shown, as a share of the large model's (mean, 95 % interval)";
    quality.frame(&mut svg, title, 0.05);
    draw_quality(&mut svg, &quality, report);
    quality.requests_axis(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

fn middle(window: &Window) -> f64 {
    window.until as f64 - WINDOW as f64 / 2.0
}

fn draw_shares(svg: &mut String, panel: &Panel, report: &Report<'_>) {
    let windows = &report.windows;
    let end = |of: fn(&Interval) -> f64| windows.iter().map(move |window| (middle(window), of(&window.local)));
    let band = panel.line(end(|local| local.high).chain(end(|local| local.low).rev()));
    let _ = write!(svg, "<polygon class=\"band\" points=\"{band}\"/>");
    for course in report.courses {
        let _ = write!(svg, "<polyline class=\"seed\" points=\"{}\"/>", panel.line(shares(course).into_iter()));
    }
    let _ = write!(svg, "<polyline class=\"line\" points=\"{}\"/>", panel.line(end(|local| local.value)));
}

/// Share served locally in each window of one seed.
fn shares(course: &Course) -> Vec<(f64, f64)> {
    let whole = course.served.chunks(WINDOW).enumerate().filter(|(_, rows)| rows.len() == WINDOW);
    whole
        .map(|(place, rows)| {
            let local = rows.iter().filter(|row| row.local).count();
            ((place as f64 + 0.5) * WINDOW as f64, local as f64 / WINDOW as f64)
        })
        .collect()
}

fn draw_quality(svg: &mut String, panel: &Panel, report: &Report<'_>) {
    let target = report.arguments.target;
    let y = panel.y(target);
    let _ = write!(
        svg,
        "<line class=\"target\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <text class=\"told\" x=\"{:.1}\" y=\"{:.1}\">promised: {:.0} %</text>",
        WIDTH - RIGHT,
        LEFT + 8.0,
        y - 6.0,
        target * 100.0
    );
    for window in &report.windows {
        let (x, kept) = (panel.x(middle(window)), &window.kept);
        let _ = write!(
            svg,
            "<line class=\"bar\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <circle class=\"dot\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3.5\"/>",
            panel.y(kept.low),
            panel.y(kept.high),
            panel.y(kept.value)
        );
    }
}
