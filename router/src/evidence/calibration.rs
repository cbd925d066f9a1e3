//! Raw scores → probabilities, and how far probabilities can be trusted.
//!
//! Two maps are known, Platt's sigmoid for little data and isotonic regression for much, and the mean of the two, which has
//! the level of the steps and the order of the sigmoid; cross-validation chooses. All are
//! monotone, so they never change the order of two requests. Calibration error is measured in bins of equal mass and without
//! the bias that small bins bring, because a plain ECE of few rows looks bad however good the scores are.

use super::special::erf;

/// A raw score or a probability, with what happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// What was predicted.
    pub score: f64,
    /// Whether the small model sufficed.
    pub suffices: bool,
}

/// A monotone map from raw scores to probabilities.
#[derive(Debug, Clone, PartialEq)]
pub enum Calibration {
    /// `1 / (1 + exp(-(slope * raw + offset)))`, with `slope` at least 0.
    Platt {
        /// Steepness.
        slope: f64,
        /// Log-odds at a raw score of 0.
        offset: f64,
    },
    /// Straight lines between points `(raw, probability)` that rise in both; flat outside.
    Isotonic(Vec<(f64, f64)>),
}

/// Why no calibration can be fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CalibrationError {
    /// One of the two classes is missing.
    #[error("the small model suffices in {good} of {all} calibration outcomes; both kinds are needed")]
    OneClass {
        /// Outcomes where it suffices.
        good: usize,
        /// All outcomes.
        all: usize,
    },
    /// A raw score is not a number.
    #[error("a raw score is not a number")]
    NotANumber,
}

/// Parts of the cross-validation that chooses the map.
const FOLDS: usize = 5;

/// Share of the log loss that a map with more freedom must save.
const CLEARLY: f64 = 0.005;

impl Calibration {
    /// Fits a sigmoid, steps and their mean, and keeps the one with the smallest log loss in five-fold cross-validation; the
    /// sigmoid wins near ties. Rows are dealt to folds in turn.
    ///
    /// # Errors
    /// Only one class, or a score that is not a number.
    pub fn fit(rows: &[Scored]) -> Result<Self, CalibrationError> {
        check(rows)?;
        let maps: [fn(&[Scored]) -> Calibration; 3] = [platt, blended, isotonic];
        let mut losses = [0.0; 3];
        for fold in 0..FOLDS {
            let held = |place: usize| place % FOLDS == fold;
            let pick = |wanted: bool| -> Vec<Scored> {
                let kept = rows.iter().enumerate().filter(|(place, _)| held(*place) == wanted);
                kept.map(|(_, row)| *row).collect()
            };
            let (rest, test) = (pick(false), pick(true));
            for (loss, map) in losses.iter_mut().zip(maps) {
                *loss += map(&rest).log_loss(&test);
            }
        }
        // The sigmoid has two numbers to get wrong: another map must beat it clearly.
        losses[0] *= 1.0 - CLEARLY;
        let best = maps.iter().zip(losses).min_by(|a, b| a.1.total_cmp(&b.1));
        Ok(best.map_or_else(|| platt(rows), |(map, _)| map(rows)))
    }

    /// The probability for a raw score; within `[0, 1]` for any number, 0 for what is not a number.
    pub fn apply(&self, raw: f64) -> f64 {
        if raw.is_nan() {
            return 0.0;
        }
        match self {
            Calibration::Platt { slope, offset } => sigmoid(slope * raw + offset),
            Calibration::Isotonic(points) => interpolate(points, raw),
        }
    }

    /// The name used in files and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Calibration::Platt { .. } => "platt",
            Calibration::Isotonic(_) => "isotonic",
        }
    }

    /// Slope and offset of the sigmoid that fits best.
    ///
    /// # Errors
    /// As [`Calibration::fit`].
    pub fn sigmoid(rows: &[Scored]) -> Result<(f64, f64), CalibrationError> {
        check(rows)?;
        Ok(fitted_sigmoid(rows))
    }

    fn log_loss(&self, rows: &[Scored]) -> f64 {
        let loss = |row: &Scored| {
            let probability = self.apply(row.score).clamp(1e-6, 1.0 - 1e-6);
            if row.suffices { -probability.ln() } else { -(-probability).ln_1p() }
        };
        rows.iter().map(loss).sum()
    }
}

fn check(rows: &[Scored]) -> Result<(), CalibrationError> {
    let good = rows.iter().filter(|row| row.suffices).count();
    if good == 0 || good == rows.len() {
        return Err(CalibrationError::OneClass { good, all: rows.len() });
    }
    if rows.iter().any(|row| !row.score.is_finite()) {
        return Err(CalibrationError::NotANumber);
    }
    Ok(())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn interpolate(points: &[(f64, f64)], raw: f64) -> f64 {
    let after = points.partition_point(|(x, _)| *x <= raw);
    let at = |place: usize| points.get(place).copied();
    match (after.checked_sub(1).and_then(at), at(after)) {
        (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (raw - x0) / (x1 - x0),
        (Some((_, y)), None) | (None, Some((_, y))) => y,
        (None, None) => 0.0,
    }
}

/// Platt's sigmoid with his smoothed targets (Platt 1999; Lin, Lin and Weng 2007), by damped Newton steps.
fn platt(rows: &[Scored]) -> Calibration {
    let (slope, offset) = fitted_sigmoid(rows);
    Calibration::Platt { slope, offset }
}

/// Slope, at least 0, and offset.
fn fitted_sigmoid(rows: &[Scored]) -> (f64, f64) {
    let good = rows.iter().filter(|row| row.suffices).count() as f64;
    let bad = rows.len() as f64 - good;
    let (high, low) = ((good + 1.0) / (good + 2.0), 1.0 / (bad + 2.0));
    let target = |row: &Scored| if row.suffices { high } else { low };
    let loss = |slope: f64, offset: f64| -> f64 {
        let one = |row: &Scored| {
            let x = slope * row.score + offset;
            x.max(0.0) + (-x.abs()).exp().ln_1p() - target(row) * x
        };
        rows.iter().map(one).sum()
    };
    let (mut slope, mut offset) = (0.0, ((good + 1.0) / (bad + 1.0)).ln());
    let mut best = loss(slope, offset);
    for _ in 0..50 {
        let (mut g1, mut g2, mut h11, mut h12, mut h22) = (0.0, 0.0, 1e-9, 0.0, 1e-9);
        for row in rows {
            let probability = sigmoid(slope * row.score + offset);
            let (error, curve) = (probability - target(row), probability * (1.0 - probability));
            g1 += error * row.score;
            g2 += error;
            h11 += curve * row.score * row.score;
            h12 += curve * row.score;
            h22 += curve;
        }
        let determinant = h11 * h22 - h12 * h12;
        if determinant.abs() < 1e-12 || g1.abs() + g2.abs() < 1e-9 {
            break;
        }
        let step = ((h22 * g1 - h12 * g2) / determinant, (h11 * g2 - h12 * g1) / determinant);
        let tries = (0..20).map(|halving| 0.5_f64.powi(halving));
        let better = tries.map(|size| (slope - size * step.0, offset - size * step.1));
        match better.map(|(a, b)| (a, b, loss(a, b))).find(|(_, _, found)| *found < best) {
            Some((a, b, found)) => (slope, offset, best) = (a, b, found),
            None => break,
        }
    }
    if slope < 0.0 {
        // Scores that point the wrong way carry no news: everybody gets the base rate.
        (slope, offset) = (0.0, ((good + 1.0) / (bad + 1.0)).ln());
    }
    (slope, offset)
}

/// Pool adjacent violators; the map is flat over a block and straight from block to block. Values keep away from 0 and 1 as
/// far as the rows of a block allow to say.
fn isotonic(rows: &[Scored]) -> Calibration {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| a.score.total_cmp(&b.score));
    let mut blocks: Vec<Block> = Vec::new();
    for row in rows {
        let mut block =
            Block { rows: 1.0, good: f64::from(u8::from(row.suffices)), lowest: row.score, highest: row.score };
        // Equal scores are one point, whatever happened.
        while let Some(last) = blocks.pop_if(|last| last.highest == block.lowest || last.rate() >= block.rate()) {
            block.rows += last.rows;
            block.good += last.good;
            block.lowest = last.lowest;
        }
        blocks.push(block);
    }
    let mut rising: Vec<(f64, f64)> = Vec::new();
    for block in &blocks {
        // Smoothing may dent the order of neighbours; the running maximum mends it.
        let floor = rising.last().map_or(0.0, |last| last.1);
        let smoothed = ((block.good + 0.5) / (block.rows + 1.0)).max(floor);
        rising.push((block.lowest, smoothed));
        if block.highest > block.lowest {
            rising.push((block.highest, smoothed));
        }
    }
    Calibration::Isotonic(rising)
}

/// The mean of sigmoid and steps, as straight lines between enough points.
fn blended(rows: &[Scored]) -> Calibration {
    const POINTS: usize = 64;
    let (sigmoid, steps) = (platt(rows), isotonic(rows));
    let mut raws: Vec<f64> = rows.iter().map(|row| row.score).collect();
    raws.sort_by(f64::total_cmp);
    let mut at: Vec<f64> =
        (0..=POINTS).filter_map(|point| raws.get(point * (raws.len() - 1) / POINTS).copied()).collect();
    if let Calibration::Isotonic(points) = &steps {
        at.extend(points.iter().map(|(raw, _)| *raw));
    }
    at.sort_by(f64::total_cmp);
    at.dedup();
    let mean = |raw: f64| f64::midpoint(sigmoid.apply(raw), steps.apply(raw));
    Calibration::Isotonic(at.into_iter().map(|raw| (raw, mean(raw))).collect())
}

struct Block {
    rows: f64,
    good: f64,
    lowest: f64,
    highest: f64,
}

impl Block {
    fn rate(&self) -> f64 {
        self.good / self.rows
    }
}

/// Rows of a reliability table and the figures that sum it up.
#[derive(Debug, Clone, PartialEq)]
pub struct Reliability {
    /// Bins of equal mass, by rising score.
    pub bins: Vec<Bin>,
    /// Expected calibration error: mean over rows of the gap of their bin.
    pub ece: f64,
    /// The same without the part that chance alone would show; at least 0.
    pub ece_debiased: f64,
}

/// Rows with neighbouring scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Rows in the bin.
    pub rows: usize,
    /// Mean predicted probability.
    pub predicted: f64,
    /// Share in which the small model sufficed.
    pub observed: f64,
}

/// Bins of the reported calibration error.
pub const ECE_BINS: usize = 15;

/// Compares probabilities with what happened in `bins` bins of equal mass (their sizes differ by at most one row).
///
/// The debiased figure subtracts from each bin's gap how much larger than the true gap an observed one is on average when
/// its noise is normal (Kumar, Liang and Ma, "Verified uncertainty calibration", 2019), in closed form. It errs on the high
/// side: of the error that chance alone shows, about half remains.
pub fn reliability(rows: &[Scored], bins: usize) -> Reliability {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| a.score.total_cmp(&b.score));
    let all = rows.len();
    let edge = |bin: usize| bin * all / bins.max(1);
    let mut table = Vec::new();
    let (mut ece, mut debiased) = (0.0, 0.0);
    for bin in 0..bins {
        let Some(part) = rows.get(edge(bin)..edge(bin + 1)).filter(|part| !part.is_empty()) else {
            continue;
        };
        let count = part.len() as f64;
        let predicted = part.iter().map(|row| row.score).sum::<f64>() / count;
        let observed = part.iter().filter(|row| row.suffices).count() as f64 / count;
        let gap = (predicted - observed).abs();
        // The noise of the observed rate, with one row of each kind added so that no bin looks certain.
        let rate = (observed * count + 1.0) / (count + 2.0);
        let noise = (rate * (1.0 - rate) / count).sqrt();
        ece += gap * count / all as f64;
        debiased += (2.0 * gap - folded_normal_mean(gap, noise)) * count / all as f64;
        table.push(Bin { rows: part.len(), predicted, observed });
    }
    Reliability { bins: table, ece, ece_debiased: debiased.max(0.0) }
}

/// Mean of the absolute value of a normal variable.
fn folded_normal_mean(mean: f64, deviation: f64) -> f64 {
    let z = mean / deviation;
    deviation * (2.0 / std::f64::consts::PI).sqrt() * (-z * z / 2.0).exp() + mean * erf(z / std::f64::consts::SQRT_2)
}

/// Probability that a row where the small model suffices scores above one where it does not, ties half; `None` with one
/// class only.
pub fn auc(rows: &[Scored]) -> Option<f64> {
    Ranks::new(rows).auc(|_| 1.0)
}

/// Rows by rising score, equal scores together.
#[derive(Debug, Clone)]
pub struct Ranks(Vec<Vec<(usize, bool)>>);

impl Ranks {
    /// Sorts rows.
    pub fn new(rows: &[Scored]) -> Self {
        let mut order: Vec<(usize, &Scored)> = rows.iter().enumerate().collect();
        order.sort_by(|a, b| a.1.score.total_cmp(&b.1.score));
        let tied = order.chunk_by(|a, b| a.1.score == b.1.score);
        Self(tied.map(|tied| tied.iter().map(|(place, row)| (*place, row.suffices)).collect()).collect())
    }

    /// As [`auc`], each row counting as often as `counts` says, in the order the rows were given.
    pub fn auc(&self, counts: impl Fn(usize) -> f64) -> Option<f64> {
        let (mut below, mut wins, mut good) = (0.0, 0.0, 0.0);
        for tied in &self.0 {
            let (mut up, mut down) = (0.0, 0.0);
            for (place, suffices) in tied {
                *(if *suffices { &mut up } else { &mut down }) += counts(*place);
            }
            wins += up * (below + down / 2.0);
            below += down;
            good += up;
        }
        (good > 0.0 && below > 0.0).then(|| wins / (good * below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn scored(rows: &[(f64, u8)]) -> Vec<Scored> {
        let row = |(score, suffices): &(f64, u8)| Scored { score: *score, suffices: *suffices == 1 };
        rows.iter().map(row).collect()
    }

    /// Rows whose raw score `x` in (-3, 3) suffices with probability `truth(x)`.
    fn drawn(count: usize, seed: u64, truth: impl Fn(f64) -> f64) -> Vec<Scored> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut row = || {
            let score = random.random_range(-3.0..3.0);
            Scored { score, suffices: random.random_bool(truth(score)) }
        };
        (0..count).map(|_| row()).collect()
    }

    #[test]
    fn auc_counts_pairs() {
        type Case<'a> = (&'a [(f64, u8)], Option<f64>);
        let table: [Case<'_>; 6] = [
            (&[(0.1, 0), (0.2, 1)], Some(1.0)),
            (&[(0.2, 0), (0.1, 1)], Some(0.0)),
            (&[(0.1, 0), (0.1, 1)], Some(0.5)),
            (&[(0.1, 0), (0.4, 0), (0.35, 1), (0.8, 1)], Some(0.75)),
            (&[(0.1, 1)], None),
            (&[], None),
        ];
        for (rows, expected) in table {
            assert_eq!(auc(&scored(rows)), expected, "{rows:?}");
        }
    }

    #[test]
    fn platt_finds_the_sigmoid_it_was_drawn_from() {
        let rows = drawn(8000, 1, |x| sigmoid(1.5 * x - 0.5));
        let Calibration::Platt { slope, offset } = platt(&rows) else {
            panic!("expected a sigmoid");
        };
        assert!((slope - 1.5).abs() < 0.15 && (offset + 0.5).abs() < 0.15, "{slope} {offset}");
    }

    #[test]
    fn the_better_map_is_chosen() {
        let smooth = (0..10).map(|seed| Calibration::fit(&drawn(1000, seed, |x| sigmoid(2.0 * x))).unwrap());
        let sigmoids = smooth.filter(|map| map.name() == "platt").count();
        assert!(sigmoids >= 7, "{sigmoids} of 10");
        let stairs = |x: f64| {
            if x < -1.0 {
                0.3
            } else if x < 2.0 {
                0.35
            } else {
                0.98
            }
        };
        let steps = Calibration::fit(&drawn(6000, 3, stairs)).unwrap();
        assert_eq!(steps.name(), "isotonic");
        for (x, expected) in [(-2.0, 0.3), (0.0, 0.35), (2.5, 0.98)] {
            assert!((steps.apply(x) - expected).abs() < 0.06, "{x}: {}", steps.apply(x));
        }
    }

    #[test]
    fn maps_rise_and_stay_probabilities() {
        let rows = drawn(400, 4, sigmoid);
        let tied: Vec<Scored> = rows.iter().map(|row| Scored { score: row.score.round(), ..*row }).collect();
        for map in [platt(&rows), isotonic(&rows), blended(&rows), isotonic(&tied), platt(&tied), blended(&tied)] {
            let values: Vec<f64> = (-500..500).map(|step| map.apply(f64::from(step) / 100.0)).collect();
            assert!(values.windows(2).all(|pair| pair[0] <= pair[1]), "{map:?}");
            assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
            assert!(values.first() < values.last());
            assert_eq!(map.apply(f64::NAN), 0.0);
            assert!((0.0..=1.0).contains(&map.apply(f64::INFINITY)));
        }
    }

    #[test]
    fn isotonic_gives_each_tied_score_its_rate() {
        let mut rows = vec![(1.0, 1); 30];
        rows.extend([(1.0, 0); 10]);
        rows.extend([(0.0, 0); 30]);
        rows.extend([(0.0, 1); 10]);
        let map = isotonic(&scored(&rows));
        assert!((map.apply(0.0) - 0.25).abs() < 0.01, "{map:?}");
        assert!((map.apply(1.0) - 0.75).abs() < 0.01, "{map:?}");
    }

    #[test]
    fn a_scorer_that_points_the_wrong_way_is_not_turned_round() {
        let rows = drawn(500, 5, |x| sigmoid(-2.0 * x));
        let map = platt(&rows);
        assert!((map.apply(-2.0) - map.apply(2.0)).abs() < 1e-9, "{map:?}");
    }

    #[test]
    fn one_class_is_refused() {
        let error = Calibration::fit(&scored(&[(0.1, 1), (0.2, 1)])).unwrap_err();
        assert_eq!(error, CalibrationError::OneClass { good: 2, all: 2 });
        assert!(Calibration::fit(&[]).is_err());
        let broken = scored(&[(f64::NAN, 1), (0.2, 0)]);
        assert_eq!(Calibration::fit(&broken), Err(CalibrationError::NotANumber));
    }

    #[test]
    fn debiasing_takes_chance_away_and_leaves_real_gaps() {
        let mean = |shift: f64, measure: fn(&Reliability) -> f64| {
            let runs = (0..40).map(|seed| {
                let rows = drawn(600, seed, |x| (sigmoid(x) + shift).clamp(0.0, 1.0));
                let rows: Vec<Scored> = rows.iter().map(|row| Scored { score: sigmoid(row.score), ..*row }).collect();
                measure(&reliability(&rows, ECE_BINS))
            });
            runs.sum::<f64>() / 40.0
        };
        // Perfect scores: all error is chance, and most of what can be told to be is taken away.
        let (plain, debiased) = (mean(0.0, |r| r.ece), mean(0.0, |r| r.ece_debiased));
        assert!(plain > 0.04 && debiased < 0.65 * plain, "{plain} {debiased}");
        // Scores a tenth too low: both see it.
        assert!((mean(0.1, |r| r.ece_debiased) - 0.09).abs() < 0.02);
    }

    #[test]
    fn bins_have_equal_mass() {
        let table = reliability(&drawn(1000, 6, sigmoid), ECE_BINS);
        assert_eq!(table.bins.len(), ECE_BINS);
        assert_eq!(table.bins.iter().map(|bin| bin.rows).sum::<usize>(), 1000);
        assert!(table.bins.iter().all(|bin| (66..=67).contains(&bin.rows)));
        assert_eq!(reliability(&drawn(4, 6, sigmoid), ECE_BINS).bins.len(), 4);
        assert!(reliability(&[], ECE_BINS).bins.is_empty());
    }
}
