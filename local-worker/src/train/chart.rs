//! The loss curve of a run as SVG: losses by tokens seen, training and dev.

use std::fmt::Write as _;

/// Sizes of the picture and its margins, in pixels.
const WIDE: f64 = 860.0;
const HIGH: f64 = 440.0;
const LEFT: f64 = 56.0;
const BELOW: f64 = 40.0;
const ABOVE: f64 = 34.0;
const RIGHT: f64 = 16.0;
/// Points of a curve at most; more are averaged.
const POINTS: usize = 600;

/// A named curve: tokens and losses.
pub(super) struct Curve<'a> {
    pub name: &'a str,
    pub colour: &'a str,
    pub points: &'a [(f64, f64)],
}

/// Draws curves over one another; nothing but axes without points.
pub(super) fn draw(title: &str, curves: &[Curve<'_>]) -> String {
    let all = || curves.iter().flat_map(|curve| curve.points).filter(|point| point.1.is_finite());
    let most = all().map(|point| point.0).fold(1.0, f64::max);
    let top = all().map(|point| point.1).fold(0.0, f64::max).max(1e-3) * 1.02;
    let x = |tokens: f64| LEFT + tokens / most * (WIDE - LEFT - RIGHT);
    let y = |loss: f64| HIGH - BELOW - loss.clamp(0.0, top) / top * (HIGH - BELOW - ABOVE);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDE} {HIGH}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDE}\" height=\"{HIGH}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
        escape(title)
    );
    for step in ticks(top) {
        let at = y(step);
        // Writing to a string never fails.
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{step}</text>",
            WIDE - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for step in ticks(most / 1e6) {
        let at = x(step * 1e6);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{ABOVE}\" y2=\"{:.1}\" stroke=\"#eee\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step} M</text>",
            HIGH - BELOW,
            HIGH - BELOW + 16.0
        );
    }
    for (number, curve) in curves.iter().enumerate() {
        let points: Vec<String> =
            thinned(curve.points).iter().map(|(tokens, loss)| format!("{:.1},{:.1}", x(*tokens), y(*loss))).collect();
        let at = WIDE - 150.0;
        let line = ABOVE + 14.0 + number as f64 * 18.0;
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{0}\" stroke-width=\"1.5\" points=\"{1}\"/>\
             <text x=\"{at}\" y=\"{line}\" fill=\"{0}\">{2}</text>",
            curve.colour,
            points.join(" "),
            escape(curve.name)
        );
    }
    svg + "</svg>\n"
}

/// Round numbers from 0 to `most`, about six.
fn ticks(most: f64) -> Vec<f64> {
    let raw = most / 6.0;
    let unit = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * unit).find(|step| *step >= raw).unwrap_or(most);
    let count = (most / step).floor().min(20.0) as usize;
    // Rounded to what the step has digits for.
    (0..=count).map(|index| (index as f64 * step / unit).round() * unit).map(|at| (at * 1e9).round() / 1e9).collect()
}

fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|point| point.1.is_finite()).collect();
    let mean = |some: &[(f64, f64)]| {
        let count = some.len() as f64;
        (some.iter().map(|point| point.0).sum::<f64>() / count, some.iter().map(|point| point.1).sum::<f64>() / count)
    };
    finite.chunks(finite.len().div_ceil(POINTS).max(1)).map(mean).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_inside_the_picture_and_ticks_are_round() {
        let train: Vec<(f64, f64)> = (1..5000).map(|step| (step as f64 * 2048.0, 8.0 / (step as f64).sqrt())).collect();
        let dev = [(1e6, 2.0), (5e6, 1.0), (1e7, f64::NAN)];
        let curves = [
            Curve { name: "train", colour: "#26c", points: &train },
            Curve { name: "dev <n>", colour: "#c62", points: &dev },
        ];
        let svg = draw("a & b", &curves);
        assert!(svg.contains("a &amp; b") && svg.contains("dev &lt;n>") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<polyline").count(), 2);
        for pair in svg.split("points=\"").skip(1).flat_map(|rest| rest.split('"').next().unwrap().split(' ')) {
            let (x, y) = pair.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDE - RIGHT).contains(&x) && (ABOVE..=HIGH - BELOW).contains(&y), "{pair}");
        }
        assert_eq!(ticks(7.0), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(ticks(0.7), [0.0, 0.2, 0.4, 0.6]);
        assert!(draw("empty", &[]).contains("<svg"));
    }
}
