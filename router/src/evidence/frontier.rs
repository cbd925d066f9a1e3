//! How well an order of requests trades calls to the large model for quality.
//!
//! Send the requests with the lowest scores to the large model first and watch the mean quality rise from the small model's
//! to the large one's. *Performance gap recovered* (PGR) is how much of that way is made; APGR is its mean over all shares
//! of large-model calls, 0.5 for a random order, and CPT(x) the least share at which x of the gap is recovered (Ong et al.,
//! "RouteLLM: learning to route LLMs with preference data", 2024, section 3.2). Requests with equal scores are sent in
//! random order, on average; the area is exact, not a sum over ten points.

/// A request with the quality of both answers and the score that orders it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The higher, the longer it stays with the small model.
    pub score: f64,
    /// Quality of the small model's answer.
    pub small: f64,
    /// Quality of the large model's answer.
    pub large: f64,
}

/// Requests in the order in which they go to the large model.
#[derive(Debug, Clone)]
pub struct Frontier {
    /// Places of rows with equal scores, lowest scores first, and how much each row gains by the large model.
    ties: Vec<Vec<(usize, f64)>>,
}

impl Frontier {
    /// Sorts rows; scores that are not numbers come first.
    pub fn new(rows: &[Scored]) -> Self {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let score = |place: usize| rows.get(place).map_or(f64::NAN, |row| row.score);
        let key = |place: usize| if score(place).is_nan() { f64::NEG_INFINITY } else { score(place) };
        order.sort_by(|a, b| key(*a).total_cmp(&key(*b)));
        let gain = |place: &usize| rows.get(*place).map_or(0.0, |row| row.large - row.small);
        let tied = order.chunk_by(|a, b| key(*a) == key(*b));
        Self { ties: tied.map(|places| places.iter().map(|place| (*place, gain(place))).collect()).collect() }
    }

    /// Mean share of the gap that is recovered, each row counting as often as `counts` says, in the order the rows were
    /// given. `None` where both models are equally good.
    pub fn apgr(&self, counts: impl Fn(usize) -> f64) -> Option<f64> {
        let (mut area, mut gained, mut sent) = (0.0, 0.0, 0.0);
        for tie in &self.ties {
            let (mut gain, mut rows) = (0.0, 0.0);
            for (place, worth) in tie {
                let count = counts(*place);
                gain += count * worth;
                rows += count;
            }
            area += rows * (gained + gain / 2.0);
            gained += gain;
            sent += rows;
        }
        (sent > 0.0 && gained.abs() > 1e-12).then(|| area / (gained * sent))
    }

    /// The least share of large-model calls that recovers this share of the gap; `None` where both models are equally good.
    pub fn cpt(&self, recovered: f64) -> Option<f64> {
        let total: f64 = self.ties.iter().flatten().map(|(_, gain)| gain).sum();
        let rows = self.ties.iter().map(Vec::len).sum::<usize>() as f64;
        if rows == 0.0 || total.abs() <= 1e-12 {
            return None;
        }
        let (mut made, mut sent) = (0.0, 0.0);
        for tie in &self.ties {
            let gain = tie.iter().map(|(_, gain)| gain).sum::<f64>() / total;
            let size = tie.len() as f64;
            if made + gain >= recovered && gain > 0.0 {
                return Some((sent + size * ((recovered - made) / gain).max(0.0)) / rows);
            }
            made += gain;
            sent += size;
        }
        Some(1.0)
    }
}

/// Whether the two models differ in quality at 95 %, by the normal interval of the mean difference.
pub fn differ(rows: &[Scored]) -> bool {
    let n = rows.len() as f64;
    let gap = |row: &Scored| row.large - row.small;
    let mean = rows.iter().map(gap).sum::<f64>() / n.max(1.0);
    let variance = rows.iter().map(|row| (gap(row) - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    rows.len() > 1 && mean.abs() > 1.96 * (variance / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(f64, f64, f64)]) -> Vec<Scored> {
        rows.iter().map(|(score, small, large)| Scored { score: *score, small: *small, large: *large }).collect()
    }

    #[test]
    fn areas_and_shares_are_those_of_the_curve() {
        // Two of four gain; the order finds both first, or last, or can't tell.
        let made = |scores: [f64; 4]| {
            Frontier::new(&rows(&[
                (scores[0], 0.0, 1.0),
                (scores[1], 0.0, 1.0),
                (scores[2], 1.0, 1.0),
                (scores[3], 0.0, 0.0),
            ]))
        };
        let once = |_: usize| 1.0;
        let (best, worst, blind) = (made([0.1, 0.2, 0.3, 0.4]), made([0.4, 0.3, 0.2, 0.1]), made([0.5; 4]));
        assert_eq!(best.apgr(once), Some(0.75));
        assert_eq!(worst.apgr(once), Some(0.25));
        assert_eq!(blind.apgr(once), Some(0.5));
        assert_eq!((best.cpt(0.5), worst.cpt(0.5), blind.cpt(0.8)), (Some(0.25), Some(0.75), Some(0.8)));
        // A row drawn twice is two rows.
        let twice = best.apgr(|place| if place == 2 { 2.0 } else { 1.0 });
        assert_eq!(twice, Some(0.8));
    }

    #[test]
    fn a_gap_of_nothing_has_no_share() {
        let none = Frontier::new(&rows(&[(0.1, 1.0, 1.0), (0.9, 0.0, 0.0)]));
        assert_eq!((none.apgr(|_| 1.0), none.cpt(0.5)), (None, None));
        assert_eq!(Frontier::new(&[]).apgr(|_| 1.0), None);
        assert_eq!(Frontier::new(&[]).cpt(0.5), None);
    }

    /// Where the small model is the better one, the same holds with the roles swapped.
    #[test]
    fn a_small_model_that_is_better_has_a_frontier_too() {
        let better = Frontier::new(&rows(&[(0.1, 1.0, 1.0), (0.9, 1.0, 0.0)]));
        assert_eq!(better.apgr(|_| 1.0), Some(0.25));
        assert_eq!(better.cpt(0.5), Some(0.75));
    }

    #[test]
    fn models_differ_where_chance_does_not_explain_it() {
        let many = rows(&[(0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0)].repeat(20));
        assert!(differ(&many));
        let even = rows(&[(0.0, 0.0, 1.0), (0.0, 1.0, 0.0)].repeat(20));
        assert!(!differ(&even) && !differ(&many[..1]) && !differ(&[]));
    }
}
