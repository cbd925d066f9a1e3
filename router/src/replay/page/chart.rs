//! A chart by hand: axes with round ticks, lines, bands, points with bars. Colours come from the page's style by class.

use super::{Range, escape};
use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 52.0;

/// One axis: round ends and ticks.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// The smallest scale of five or so round steps that holds all values.
    pub fn around(values: impl IntoIterator<Item = f64>) -> Self {
        let finite = values.into_iter().filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        let span = if high > low { high - low } else { high.abs().max(1e-9) * 0.1 };
        let rough = span / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(rough);
        let end = |value: f64| if value.abs() < step * 1e-9 { 0.0 } else { value };
        let low = end((low / step + 1e-9).floor() * step);
        Self { low, high: end((high / step - 1e-9).ceil() * step).max(low + step), step }
    }

    fn ticks(&self) -> Vec<f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|tick| self.low + tick as f64 * self.step).collect()
    }

    fn word(&self, value: f64) -> String {
        let digits = (-self.step.log10().floor()).clamp(0.0, 9.0) as usize;
        let value = if value.abs() < self.step * 1e-6 { 0.0 } else { value };
        format!("{value:.digits$}")
    }

    fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// A chart under way.
pub struct Chart {
    x: Scale,
    y: Scale,
    x_name: &'static str,
    y_name: &'static str,
    body: String,
    labels: Vec<(f64, f64, f64)>,
}

impl Chart {
    /// An empty chart; names carry the units.
    pub fn new(x: Scale, y: Scale, x_name: &'static str, y_name: &'static str) -> Self {
        Self { x, y, x_name, y_name, body: String::new(), labels: Vec::new() }
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let right = LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT);
        (right, HEIGHT - BOTTOM - self.y.share(y) * (HEIGHT - TOP - BOTTOM))
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let word = |(place, point): (usize, &(f64, f64))| {
            let (x, y) = self.at(*point);
            format!("{}{x:.1} {y:.1}", if place == 0 { 'M' } else { 'L' })
        };
        points.iter().enumerate().map(word).collect()
    }

    /// A line of a class through points, in the colour of a place.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str, place: usize) {
        let path = self.path(points);
        let _ = write!(self.body, "<path class=\"{class} c{place}\" d=\"{path}\"/>");
    }

    /// A band with these corners.
    pub fn area(&mut self, corners: &[(f64, f64)], place: usize) {
        let path = self.path(corners);
        let _ = write!(self.body, "<path class=\"band fill{place}\" d=\"{path}Z\"/>");
    }

    /// The line of equality.
    pub fn diagonal(&mut self) {
        let (low, high) = (self.x.low.max(self.y.low), self.x.high.min(self.y.high));
        let path = self.path(&[(low, low), (high, high)]);
        let _ = write!(self.body, "<path class=\"equal\" d=\"{path}\"/>");
    }

    /// A point.
    pub fn dot(&mut self, point: (f64, f64), class: &str, radius: f64) {
        let (x, y) = self.at(point);
        let _ = write!(self.body, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>");
    }

    /// A point's intervals both ways.
    pub fn cross(&mut self, (x, y): (Range, Range), place: usize) {
        let across = self.path(&[(x.low, y.value), (x.high, y.value)]);
        let upright = self.path(&[(x.value, y.low), (x.value, y.high)]);
        let _ = write!(self.body, "<path class=\"bar c{place}\" d=\"{across}{upright}\"/>");
        self.dot((x.value, y.value), &format!("fill{place} chosen"), 5.0);
    }

    /// Words beside a point, on the side with more room and clear of earlier ones.
    pub fn label(&mut self, point: (f64, f64), text: &str, place: usize) {
        let (x, y) = self.at(point);
        let width = text.chars().count() as f64 * 7.2;
        let (anchor, left, from) = match x + width + 14.0 > WIDTH - RIGHT {
            true => ("end", x - 10.0, x - 10.0 - width),
            false => ("start", x + 10.0, x + 10.0),
        };
        let free =
            |at: &f64| self.labels.iter().all(|(l, r, t)| (t - at).abs() > 15.0 || *r < from || *l > from + width);
        let rows = [22.0, 38.0, -12.0, -28.0, 54.0, 70.0].into_iter().map(|away| y + away);
        let mut inside = rows.filter(|at| *at > TOP + 12.0 && *at < HEIGHT - BOTTOM - 4.0);
        let top = inside.find(free).unwrap_or(y + 22.0);
        self.labels.push((from, from + width, top));
        let _ = write!(
            self.body,
            "<text class=\"label t{place}\" x=\"{left:.1}\" y=\"{top:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        );
    }

    /// The whole, with its axes; `title` is for those who can't see it.
    pub fn svg(&self, title: &str) -> String {
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\"><title>{}</title>",
            escape(title),
            escape(title)
        );
        for tick in self.x.ticks() {
            let (x, _) = self.at((tick, self.y.low));
            let (bottom, word) = (HEIGHT - BOTTOM, self.x.word(tick));
            let _ = write!(
                svg,
                "<path class=\"rule\" d=\"M{x:.1} {TOP}V{bottom}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{word}</text>",
                bottom + 18.0
            );
        }
        for tick in self.y.ticks() {
            let (_, y) = self.at((self.x.low, tick));
            let (right, word) = (WIDTH - RIGHT, self.y.word(tick));
            let _ = write!(
                svg,
                "<path class=\"rule\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{word}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        let (middle, centre) = (LEFT + (WIDTH - LEFT - RIGHT) / 2.0, TOP + (HEIGHT - TOP - BOTTOM) / 2.0);
        let _ = write!(
            svg,
            "{}<text class=\"name\" x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text class=\"name\" transform=\"translate(16 {centre:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text></svg>",
            self.body,
            HEIGHT - 10.0,
            escape(self.x_name),
            escape(self.y_name)
        );
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_round_and_hold_their_values() {
        let words = |values: &[f64]| {
            let scale = Scale::around(values.iter().copied());
            scale.ticks().iter().map(|tick| scale.word(*tick)).collect::<Vec<_>>()
        };
        assert_eq!(words(&[0.0, 1.0]), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(words(&[61.0, 97.5]), ["60", "70", "80", "90", "100"]);
        assert_eq!(words(&[0.0012, 0.0013]).first().map(String::as_str), Some("0.00120"));
        assert!(words(&[]).len() > 1 && words(&[5.0, 5.0, f64::NAN]).len() > 1);
    }
}
