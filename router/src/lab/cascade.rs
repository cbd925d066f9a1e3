//! What it is worth to look at drafts before the large model is asked: requests are ordered by the prompt alone and by what
//! their drafts tell, and the orders are held against each other on rows that nothing was fitted on.
//!
//! Rows that their makers call `train` are dealt to folds by cluster: each fold is ordered by what was fitted on the others.
//! All other rows are set apart and ordered by what was fitted on all of `train`. Without rows of either kind all are dealt to
//! folds. APGR is that of `evidence::frontier`, on the share of large-model calls: drafts are counted apart.

mod rules;

pub use rules::{OF_ANSWERS, OF_DRAFTS, OF_SECONDS, PROMPT, Rule};

use crate::evidence::calibration::{Scored, auc};
use crate::evidence::frontier::{self, Frontier};
use crate::evidence::outcome::Outcome;
use crate::judge::TokenFacts;
use crate::score::Pair;
use crate::score::blend::Shared;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rules::{Fitted, Ordered, agreement};
use std::collections::BTreeMap;

/// Parts of the cross-validation.
const FOLDS: u64 = 5;

/// Draws of clusters for intervals.
const DRAWS: usize = 1000;

/// A request with its draft and what others said.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the draft was worth.
    pub outcome: Outcome,
    /// The draft.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<TokenFacts>,
    /// Whether it was cut off.
    pub cut: bool,
    /// Who else was asked, and how far they agree.
    pub others: Vec<(String, f64)>,
}

/// A statistic with its 95 % interval.
pub type WithInterval = (Option<f64>, Option<(f64, f64)>);

/// How well a rule orders a set of rows.
#[derive(Clone, Debug)]
pub struct RuleFigures {
    /// The rule.
    pub rule: Rule,
    /// Mean performance gap recovered.
    pub apgr: WithInterval,
    /// By how much that is more than by the prompt alone, paired.
    pub gain: WithInterval,
    /// How well it ranks drafts that suffice above others.
    pub auc: Option<f64>,
    /// Share of large-model calls that recovers half of the gap.
    pub cpt50: Option<f64>,
    /// The same for 80 %.
    pub cpt80: Option<f64>,
    /// Small models asked for each request.
    pub asked: usize,
    /// Share of the requests about which a second model has to be asked to send those 80 %: for the others the verdict is
    /// certain without it.
    pub undecided: Option<f64>,
}

/// A set of rows, ordered by all rules.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Rows.
    pub n: usize,
    /// In the order of the rules.
    pub rules: Vec<RuleFigures>,
}

/// Another small model whose agreement was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Other {
    /// Its name.
    pub name: String,
    /// Its own mean quality, where it is known.
    pub quality: Option<f64>,
    /// APGR of its agreement alone, on all rows.
    pub apgr: Option<f64>,
}

/// A pair of models on a source.
#[derive(Clone, Debug)]
pub struct PairFigures {
    /// The data set.
    pub source: String,
    /// The models.
    pub pair: Pair,
    /// Mean qualities of the two.
    pub qualities: (f64, f64),
    /// The second model, with the number of folds that chose it.
    pub second: Vec<(String, usize)>,
    /// All others.
    pub others: Vec<Other>,
    /// By cross-validation.
    pub folds: Measured,
    /// On rows set apart, where there are any.
    pub apart: Option<Measured>,
}

/// All figures.
#[derive(Clone, Debug)]
pub struct Cascade {
    /// By source and pair.
    pub pairs: Vec<PairFigures>,
    /// Means over the pairs, by cross-validation: APGR and the gain over the prompt.
    pub mean: Vec<(Rule, WithInterval, WithInterval)>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Measures rules on cases of any number of pairs.
///
/// # Errors
/// No pair whose rows can be learnt from, with what is wrong of each.
pub fn cascade(cases: &[Case], rules: &[Rule], seed: u64) -> Result<Cascade, String> {
    let bench = Bench { all: cases, rules, clusters: Clusters::of(cases), seed };
    let mut notes = Vec::new();
    let mut sets: Vec<PairSets> = Vec::new();
    for ((source, small, large), rows) in by_pair(cases) {
        match bench.pair(source, Pair::new(small, large), &rows) {
            Ok(measured) => sets.push(measured),
            Err(error) => notes.push(format!("{source}: {small}: left out: {error}")),
        }
    }
    if sets.is_empty() {
        return Err(notes.join("\n"));
    }
    let draws = Draws::new(&sets, bench.clusters.0.len(), rules.len(), seed);
    let mean = (0..rules.len()).map(|rule| (rules[rule], draws.mean(rule, false), draws.mean(rule, true))).collect();
    let figures = |(place, (mut figures, ..)): (usize, PairSets)| {
        draws.fill(place, &mut figures);
        figures
    };
    Ok(Cascade { pairs: sets.into_iter().enumerate().map(figures).collect(), mean, notes })
}

type PairRows<'rows> = BTreeMap<(&'rows str, &'rows str, &'rows str), Vec<&'rows Case>>;

fn by_pair(cases: &[Case]) -> PairRows<'_> {
    let mut pairs = PairRows::new();
    for case in cases {
        let Outcome { source, small, large, .. } = &case.outcome;
        pairs.entry((source, small, large)).or_default().push(case);
    }
    pairs
}

/// Places of clusters among all.
struct Clusters(BTreeMap<String, usize>);

impl Clusters {
    fn of(cases: &[Case]) -> Self {
        let mut places = BTreeMap::new();
        for case in cases {
            let next = places.len();
            places.entry(case.outcome.cluster.clone()).or_insert(next);
        }
        Self(places)
    }

    fn of_rows(&self, rows: &[&Case]) -> Vec<usize> {
        rows.iter().filter_map(|case| self.0.get(&case.outcome.cluster).copied()).collect()
    }
}

/// Rows in some orders, by rule.
struct Set {
    clusters: Vec<usize>,
    frontiers: Vec<Frontier>,
}

fn fold_of(case: &Case) -> u64 {
    let hash = blake3::hash(format!("cascade {}", case.outcome.cluster).as_bytes());
    hash.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)) % FOLDS
}

/// A pair's figures with the sets that they are of: by cross-validation, and set apart.
type PairSets = (PairFigures, Set, Option<Set>);

/// What all pairs are measured with.
struct Bench<'a> {
    all: &'a [Case],
    rules: &'a [Rule],
    clusters: Clusters,
    seed: u64,
}

impl Bench<'_> {
    fn pair(&self, source: &str, pair: Pair, rows: &[&Case]) -> Result<PairSets, String> {
        let Self { all, rules, clusters, seed } = self;
        let (train, mut apart): (Vec<&Case>, Vec<&Case>) =
            rows.iter().copied().partition(|case| case.outcome.split == "train");
        let train = if train.is_empty() { std::mem::take(&mut apart) } else { train };
        let mut seconds: BTreeMap<String, usize> = BTreeMap::new();
        let (mut tested, mut orders): (Vec<&Case>, Vec<Ordered>) = (Vec::new(), vec![Ordered::default(); rules.len()]);
        for fold in 0..FOLDS {
            let (test, fit): (Vec<&Case>, Vec<&Case>) = train.iter().copied().partition(|case| fold_of(case) == fold);
            let learnt = |case: &&Case| case.outcome.split == "train" || apart.is_empty();
            let others = all.iter().filter(|case| fold_of(case) != fold && learnt(case)).map(|case| &case.outcome);
            let fitted = Fitted::new(&pair, fit, test.clone(), &Shared::of(others), *seed)?;
            for (rule, orders) in rules.iter().zip(&mut orders) {
                let ordered = fitted.order(*rule)?;
                orders.order.extend(ordered.order);
                orders.ranges.extend(ordered.ranges);
            }
            tested.extend(test);
            fitted.second.into_iter().for_each(|second| *seconds.entry(second).or_default() += 1);
        }
        let (folds, set) = measured(&tested, rules, &orders, clusters);
        let set_apart = match apart.is_empty() {
            true => None,
            false => {
                let others = all.iter().map(|case| &case.outcome).filter(|outcome| outcome.split == "train");
                let fitted = Fitted::new(&pair, train.clone(), apart.clone(), &Shared::of(others), *seed)?;
                let orders = rules.iter().map(|rule| fitted.order(*rule)).collect::<Result<Vec<_>, _>>()?;
                Some(measured(&apart, rules, &orders, clusters))
            }
        };
        let mean = |of: fn(&Outcome) -> f64| rows.iter().map(|case| of(&case.outcome)).sum::<f64>() / rows.len() as f64;
        let figures = PairFigures {
            source: source.to_owned(),
            qualities: (mean(|outcome| outcome.small_quality), mean(|outcome| outcome.large_quality)),
            second: seconds.into_iter().collect(),
            others: others(source, rows, all),
            folds,
            apart: set_apart.as_ref().map(|(measured, _)| measured.clone()),
            pair,
        };
        Ok((figures, set, set_apart.map(|(_, set)| set)))
    }
}

fn others(source: &str, rows: &[&Case], all: &[Case]) -> Vec<Other> {
    let mut names: Vec<&str> = rows.iter().flat_map(|case| &case.others).map(|(by, _)| by.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let of = |name: &str| {
        let own = all.iter().filter(|case| case.outcome.source == source && case.outcome.small == name);
        let qualities: Vec<f64> = own.map(|case| case.outcome.small_quality).collect();
        let quality = (!qualities.is_empty()).then(|| qualities.iter().sum::<f64>() / qualities.len() as f64);
        Other { name: name.to_owned(), quality, apgr: agreement(rows, name) }
    };
    names.into_iter().map(of).collect()
}

fn measured(rows: &[&Case], rules: &[Rule], orders: &[Ordered], clusters: &Clusters) -> (Measured, Set) {
    let frontier = |ordered: &Ordered| {
        let row = |(case, score): (&&Case, &f64)| frontier::Scored {
            score: *score,
            small: case.outcome.small_quality,
            large: case.outcome.large_quality,
        };
        Frontier::new(&rows.iter().zip(&ordered.order).map(row).collect::<Vec<_>>())
    };
    let frontiers: Vec<Frontier> = orders.iter().map(frontier).collect();
    let others = rows.iter().map(|case| case.others.len()).max().unwrap_or(0);
    let figures = |((rule, ordered), frontier): ((&Rule, &Ordered), &Frontier)| {
        let scored = rows.iter().zip(&ordered.order);
        let scored: Vec<Scored> =
            scored.map(|(case, score)| Scored { score: *score, suffices: case.outcome.small_suffices() }).collect();
        let cpt80 = frontier.cpt(0.8);
        RuleFigures {
            rule: *rule,
            apgr: (frontier.apgr(|_| 1.0), None),
            gain: (None, None),
            auc: auc(&scored),
            cpt50: frontier.cpt(0.5),
            cpt80,
            asked: rule.asked(others),
            undecided: cpt80.and_then(|share| undecided(ordered, share)),
        }
    };
    let rules = rules.iter().zip(orders).zip(&frontiers).map(figures).collect();
    (Measured { n: rows.len(), rules }, Set { clusters: clusters.of_rows(rows), frontiers })
}

/// Share of the rows whose place may be on either side of the threshold that sends this share of them.
fn undecided(ordered: &Ordered, share: f64) -> Option<f64> {
    let mut sorted = ordered.order.clone();
    sorted.sort_by(f64::total_cmp);
    let threshold = sorted.get((share * sorted.len() as f64) as usize)?;
    let open = ordered.ranges.iter().filter(|(low, high)| low < threshold && high >= threshold).count();
    (!ordered.ranges.is_empty()).then(|| open as f64 / ordered.ranges.len() as f64)
}

/// APGR by rule of every set, as it is and under draws of clusters, the same ones for all: differences are paired.
struct Draws {
    /// By pair: by cross-validation, and set apart.
    once: Vec<[Vec<Option<f64>>; 2]>,
    drawn: Vec<Vec<[Vec<Option<f64>>; 2]>>,
}

impl Draws {
    fn new(sets: &[PairSets], clusters: usize, rules: usize, seed: u64) -> Self {
        let all = |counts: &[f64]| -> Vec<[Vec<Option<f64>>; 2]> {
            let of = |set: &Set| -> Vec<Option<f64>> {
                let count =
                    |row: usize| set.clusters.get(row).and_then(|place| counts.get(*place)).copied().unwrap_or(0.0);
                set.frontiers.iter().map(|frontier| frontier.apgr(count)).collect()
            };
            let both = |(_, folds, apart): &PairSets| [of(folds), apart.as_ref().map_or_else(|| vec![None; rules], of)];
            sets.iter().map(both).collect()
        };
        let mut random = StdRng::seed_from_u64(seed);
        let mut draw = || {
            let mut counts = vec![0.0; clusters];
            (0..clusters).for_each(|_| counts[random.random_range(0..clusters)] += 1.0);
            all(&counts)
        };
        Self { drawn: (0..DRAWS).map(|_| draw()).collect(), once: all(&vec![1.0; clusters]) }
    }

    /// The statistic with its interval.
    fn interval(&self, statistic: impl Fn(&[[Vec<Option<f64>>; 2]]) -> Option<f64>) -> WithInterval {
        let mut values: Vec<f64> = self.drawn.iter().filter_map(|draw| statistic(draw)).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get((share * values.len().saturating_sub(1) as f64).round() as usize).copied();
        (statistic(&self.once), at(0.025).zip(at(0.975)))
    }

    fn mean(&self, rule: usize, over_prompt: bool) -> WithInterval {
        self.interval(|pairs| {
            let value = |[folds, _]: &[Vec<Option<f64>>; 2]| difference(folds, rule, over_prompt);
            let values: Vec<f64> = pairs.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        })
    }

    fn fill(&self, pair: usize, figures: &mut PairFigures) {
        let sets = [Some(&mut figures.folds), figures.apart.as_mut()];
        for (set, measured) in sets.into_iter().enumerate() {
            for (rule, figures) in measured.into_iter().flat_map(|measured| measured.rules.iter_mut().enumerate()) {
                let of = |over: bool| self.interval(|pairs| difference(pairs.get(pair)?.get(set)?, rule, over));
                (figures.apgr, figures.gain) = (of(false), of(true));
            }
        }
    }
}

/// APGR of a rule, or by how much it is above that of the first one, which looks at the prompt alone.
fn difference(rules: &[Option<f64>], rule: usize, over_first: bool) -> Option<f64> {
    let value = rules.get(rule).copied().flatten()?;
    Some(if over_first { value - rules.first().copied().flatten()? } else { value })
}

#[cfg(test)]
mod tests;
