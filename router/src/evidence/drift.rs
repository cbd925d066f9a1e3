//! Whether requests still look like those that something was fitted on: shapes of their text and the scores they get,
//! compared bin by bin with a reference.
//!
//! The figure is the population stability index `sum (p - q) ln(p / q)` over bins of equal mass in the reference, less what
//! chance alone shows at these sample sizes, `(bins - 1) (1 / n + 1 / m)` (the index is about a chi-square over the sample
//! size, Yurdakul and Naranjo, 2020). Above [`SHIFTED`] the usual reading is "a major shift". Drift says nothing about
//! quality: it says that what is known of quality speaks of other requests.

use serde::{Deserialize, Serialize};

/// Index from which on requests count as shifted.
pub const SHIFTED: f64 = 0.25;

/// Bins of a reference, at most.
const BINS: usize = 10;

/// What is compared, in the order of [`Look::values`].
pub const FEATURES: [&str; 6] = ["score", "bytes", "lines", "word_length", "digits", "symbols"];

/// How a request looks, without its words.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// The score that the small model was given, in `[0, 1]`, if any.
    pub score: Option<f64>,
    /// Bytes of all texts; of the first [`READ`] characters the lines, the mean length of a word, and the shares of digits
    /// and of characters that are neither letters, digits nor white space.
    shape: [f64; 5],
}

/// Characters of a request that are looked at: long ones must not cost more.
const READ: usize = 4_096;

impl Look {
    /// The look of texts that make up one request.
    pub fn of<'text>(score: Option<f64>, texts: impl IntoIterator<Item = &'text str>) -> Self {
        let (mut bytes, mut lines, mut words, mut letters) = (0_usize, 0_usize, 0_usize, 0_usize);
        let (mut digits, mut symbols, mut characters) = (0_usize, 0_usize, 0_usize);
        for text in texts {
            bytes += text.len();
            let mut within = false;
            lines += usize::from(!text.is_empty() && characters < READ);
            let read = text.trim_end_matches('\n').chars().take(READ.saturating_sub(characters));
            for character in read {
                characters += 1;
                lines += usize::from(character == '\n');
                let inside = !character.is_whitespace();
                words += usize::from(inside && !within);
                within = inside;
                letters += usize::from(inside);
                digits += usize::from(character.is_ascii_digit());
                symbols += usize::from(inside && !character.is_alphanumeric());
            }
        }
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        let shape =
            [bytes as f64, lines as f64, share(letters, words), share(digits, characters), share(symbols, characters)];
        Self { score, shape }
    }

    /// The values, in the order of [`FEATURES`]; a missing score is `None`.
    pub fn values(&self) -> [Option<f64>; FEATURES.len()] {
        let [bytes, lines, word_length, digits, symbols] = self.shape.map(Some);
        [self.score, bytes, lines, word_length, digits, symbols]
    }
}

/// A distribution in bins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bins {
    /// Upper ends of all bins but the last, rising; a value on an end lies below it.
    pub edges: Vec<f64>,
    /// Share of the reference in each bin.
    pub shares: Vec<f64>,
}

impl Bins {
    /// Bins of about equal mass; equal values are never torn apart, so there may be fewer. `None` without values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let last = *values.last()?;
        let mut edges: Vec<f64> =
            (1..BINS).filter_map(|bin| values.get((bin * n / BINS).max(1) - 1).copied()).collect();
        edges.dedup();
        edges.retain(|edge| *edge < last);
        let mut bins = Self { shares: vec![0.0; edges.len() + 1], edges };
        let places: Vec<usize> = values.iter().map(|value| bins.place(*value)).collect();
        for place in places {
            if let Some(share) = bins.shares.get_mut(place) {
                *share += 1.0 / n as f64;
            }
        }
        Some(bins)
    }

    fn place(&self, value: f64) -> usize {
        self.edges.partition_point(|edge| *edge < value)
    }

    /// Whether edges rise and shares are shares.
    pub fn is_sound(&self) -> bool {
        let rising = self.edges.is_sorted() && self.edges.iter().all(|edge| edge.is_finite());
        let sum: f64 = self.shares.iter().sum();
        rising
            && self.shares.len() == self.edges.len() + 1
            && (sum - 1.0).abs() < 1e-3
            && !self.shares.iter().any(|s| *s < 0.0)
    }

    /// The index of `values` against these bins of `n` reference values, less what chance shows; at least 0.
    pub fn shift(&self, n: u64, values: impl IntoIterator<Item = f64>) -> f64 {
        let mut counts = vec![0.0_f64; self.shares.len()];
        let mut all = 0.0;
        for value in values.into_iter().filter(|value| value.is_finite()) {
            if let Some(count) = counts.get_mut(self.place(value)) {
                *count += 1.0;
                all += 1.0;
            }
        }
        if all == 0.0 {
            return 0.0;
        }
        let (bins, n) = (counts.len() as f64, n.max(1) as f64);
        // Half a value more in each bin: an empty one is no infinity.
        let smooth = |count: f64, all: f64| (count + 0.5) / (all + bins / 2.0);
        let index: f64 = counts
            .iter()
            .zip(&self.shares)
            .map(|(count, share)| {
                let (now, then) = (smooth(*count, all), smooth(share * n, n));
                (now - then) * (now / then).ln()
            })
            .sum();
        (index - (bins - 1.0) * (1.0 / all + 1.0 / n)).max(0.0)
    }
}

/// How requests looked when something was fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Requests.
    pub n: u64,
    /// Bins of each of [`FEATURES`], in their order; `None` where no request had the value.
    #[serde(rename = "feature")]
    pub bins: Vec<FeatureBins>,
}

/// The bins of one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureBins {
    /// One of [`FEATURES`].
    pub name: String,
    /// Its upper ends.
    pub edges: Vec<f64>,
    /// Its shares.
    pub shares: Vec<f64>,
}

impl Reference {
    /// The reference of these looks; `None` without any.
    pub fn of(looks: &[Look]) -> Option<Self> {
        let feature = |(place, name): (usize, &&str)| {
            let values = looks.iter().filter_map(|look| look.values().get(place).copied().flatten());
            let Bins { edges, shares } = Bins::of(values.collect())?;
            Some(FeatureBins { name: (*name).to_owned(), edges, shares })
        };
        (!looks.is_empty())
            .then(|| Self { n: looks.len() as u64, bins: FEATURES.iter().enumerate().filter_map(feature).collect() })
    }

    /// Whether it can be compared with.
    pub fn is_sound(&self) -> bool {
        let sound = |bins: &FeatureBins| {
            FEATURES.contains(&bins.name.as_str())
                && Bins { edges: bins.edges.clone(), shares: bins.shares.clone() }.is_sound()
        };
        self.n > 0 && self.bins.iter().all(sound)
    }

    /// How far each feature of `looks` has shifted, by name.
    pub fn shifts(&self, looks: &[Look]) -> Vec<(&'static str, f64)> {
        let shift = |(place, name): (usize, &'static &'static str)| {
            let found = self.bins.iter().find(|bins| bins.name == *name)?;
            let bins = Bins { edges: found.edges.clone(), shares: found.shares.clone() };
            let values = looks.iter().filter_map(|look| look.values().get(place).copied().flatten());
            Some((*name, bins.shift(self.n, values)))
        };
        FEATURES.iter().enumerate().filter_map(shift).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn looks(random: &mut StdRng, count: usize, words: std::ops::Range<usize>, score: f64) -> Vec<Look> {
        let mut look = || {
            let count = random.random_range(words.clone());
            let text: Vec<String> = (0..count).map(|_| "x".repeat(random.random_range(1..9))).collect();
            Look::of(Some((score + random.random_range(-0.2..0.2)).clamp(0.0, 1.0)), [text.join(" ").as_str()])
        };
        (0..count).map(|_| look()).collect()
    }

    fn largest(reference: &Reference, looks: &[Look]) -> (&'static str, f64) {
        reference.shifts(looks).into_iter().fold(("", 0.0), |most, next| if next.1 > most.1 { next } else { most })
    }

    #[test]
    fn looks_count_what_they_say() {
        let look = Look::of(None, ["ab 1!\ncd", "e"]);
        let [score, bytes, lines, word_length, digits, symbols] = look.values();
        assert_eq!((score, bytes, lines), (None, Some(9.0), Some(3.0)));
        assert_eq!((word_length, digits, symbols), (Some(7.0 / 4.0), Some(1.0 / 9.0), Some(1.0 / 9.0)));
        assert_eq!(Look::of(None, []).values()[3], Some(0.0));
    }

    #[test]
    fn the_same_traffic_does_not_shift_and_other_traffic_does() {
        const RUNS: u64 = 60;
        let mut false_alarms = 0;
        for seed in 0..RUNS {
            let mut random = StdRng::seed_from_u64(seed);
            let reference = Reference::of(&looks(&mut random, 400, 5..40, 0.6)).unwrap();
            false_alarms += u32::from(largest(&reference, &looks(&mut random, 300, 5..40, 0.6)).1 > SHIFTED);
            let (name, shift) = largest(&reference, &looks(&mut random, 300, 60..90, 0.6));
            assert!(name == "bytes" && shift > SHIFTED, "{name} {shift}");
            let shifts = reference.shifts(&looks(&mut random, 300, 5..40, 0.35));
            let score = shifts.iter().find(|(name, _)| *name == "score").unwrap().1;
            assert!(score > SHIFTED, "{score}");
        }
        assert_eq!(false_alarms, 0, "of {RUNS}");
    }

    #[test]
    fn equal_values_stay_together() {
        let bins = Bins::of(vec![1.0; 50]).unwrap();
        assert!(bins.edges.is_empty() && bins.shares.len() == 1 && bins.is_sound());
        let bins = Bins::of([vec![1.0; 90], vec![2.0; 10]].concat()).unwrap();
        assert!(bins.edges == [1.0] && (bins.shares[0] - 0.9).abs() < 1e-9 && bins.is_sound());
        assert!(bins.shift(100, vec![2.0; 100]) > SHIFTED);
        assert!(bins.shift(100, [vec![1.0; 88], vec![2.0; 12]].concat()) < 0.01);
        assert_eq!(Bins::of(vec![f64::NAN]), None);
        assert!(Reference::of(&[]).is_none());
    }

    #[test]
    fn a_reference_reads_back() {
        let mut random = StdRng::seed_from_u64(7);
        let reference = Reference::of(&looks(&mut random, 100, 5..40, 0.6)).unwrap();
        let text = toml::to_string(&reference).unwrap();
        let back: Reference = toml::from_str(&text).unwrap();
        assert!(back == reference && back.is_sound());
        let unsound =
            Reference { n: 1, bins: vec![FeatureBins { name: "bytes".into(), edges: vec![], shares: vec![] }] };
        assert!(!unsound.is_sound());
    }
}
