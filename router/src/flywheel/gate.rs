//! The gate: whether a candidate that was tried beside the serving model may take its place, by what shadow runs came to. It may
//! be looked at as often as one likes (`evidence/paired.rs`).

use super::FlywheelError;
use crate::domain::{EntryStatus, ModelId};
use crate::evidence::paired::{lower, upper};
use crate::ledger::{Archive, EntryFilter, OutcomeFilter, Story};
use crate::policy::live::Promotion;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What is known at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Not enough.
    Open,
    /// The candidate may serve.
    Holds,
    /// It is worse, or too slow.
    Fails,
}

/// One look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Requests on which both were held against the same answer of the large model.
    pub graded: usize,
    /// Mean quality of the serving model and of the candidate on them, 0 to 1.
    pub quality: (f64, f64),
    /// Bounds of the candidate's mean quality less the serving one's, at the gate's confidence each.
    pub difference: (f64, f64),
    /// Median time of complete answers of both, in ms, where there are any.
    pub median_ms: (Option<f64>, Option<f64>),
    /// What follows.
    pub verdict: Verdict,
    /// Why, in words.
    pub why: String,
}

/// Whom to look at.
#[derive(Clone, Debug)]
pub struct Pairing<'a> {
    /// The policy.
    pub policy: &'a str,
    /// The serving model.
    pub serving: &'a ModelId,
    /// The candidate.
    pub candidate: &'a ModelId,
    /// Since when it is tried.
    pub since: Timestamp,
}

/// Looks at what the ledger has by now.
///
/// # Errors
/// The ledger can't be read.
pub async fn look(archive: &Archive, pairing: &Pairing<'_>, promotion: &Promotion) -> Result<Look, FlywheelError> {
    let of = |candidates| OutcomeFilter { policy: pairing.policy.to_owned(), candidates, ..OutcomeFilter::default() };
    let serving = archive.outcomes(&of(false)).await?;
    let serving = serving.into_iter().filter(|outcome| outcome.small == *pairing.serving);
    let serving: HashMap<_, _> =
        serving.map(|outcome| ((outcome.entry, outcome.large), outcome.small_quality)).collect();
    let tried = archive.outcomes(&of(true)).await?;
    let ours = tried.into_iter().filter(|outcome| outcome.small == *pairing.candidate && outcome.at >= pairing.since);
    let both = |outcome: crate::ledger::GradedOutcome| {
        Some((*serving.get(&(outcome.entry, outcome.large))?, outcome.small_quality))
    };
    let rows: Vec<(f64, f64)> = ours.filter_map(both).collect();
    let times = times(archive, pairing).await?;
    Ok(judge(&rows, times, promotion))
}

/// Times of complete answers of both, in ms.
async fn times(archive: &Archive, pairing: &Pairing<'_>) -> Result<(Vec<f64>, Vec<f64>), FlywheelError> {
    let filter = EntryFilter { from: Some(pairing.since), policy: pairing.policy.to_owned(), ..EntryFilter::default() };
    let (mut serving, mut candidate) = (Vec::new(), Vec::new());
    let take = |story: Story| {
        for attempt in &story.attempts {
            let Some(ended) = attempt.ended.as_ref().filter(|ended| ended.status == EntryStatus::Ok) else { continue };
            let ms = ended.latency.as_secs_f64() * 1e3;
            match &attempt.started.model {
                model if model == pairing.serving => serving.push(ms),
                model if model == pairing.candidate => candidate.push(ms),
                _ => {}
            }
        }
    };
    archive.each(filter, take).await?;
    Ok((serving, candidate))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Judges pairs of qualities, serving and candidate, in the order they were graded, and times of answers in ms.
pub fn judge(rows: &[(f64, f64)], (serving_ms, candidate_ms): (Vec<f64>, Vec<f64>), promotion: &Promotion) -> Look {
    let differences: Vec<f64> = rows.iter().map(|(serving, candidate)| candidate - serving).collect();
    let alpha = 1.0 - promotion.confidence;
    let difference = (lower(&differences, alpha), upper(&differences, alpha));
    // Folded from 0, as the sum of nothing is -0.
    let mean = |pick: fn(&(f64, f64)) -> f64| {
        rows.iter().map(pick).fold(0.0, |sum, quality| sum + quality) / rows.len().max(1) as f64
    };
    let (serving, candidate) = (mean(|row| row.0), mean(|row| row.1));
    let median_ms = (median(serving_ms), median(candidate_ms));
    let slower = median_ms.1.zip(median_ms.0).map(|(candidate, serving)| candidate / serving.max(1e-6));
    let missing = promotion.graded.saturating_sub(rows.len() as u64);
    let percent = promotion.confidence * 100.0;
    let (verdict, why) = if difference.1 < -promotion.margin {
        let why = format!("its mean quality is lower by {:.3} or more, at {percent:.1} % confidence", -difference.1);
        (Verdict::Fails, why)
    } else if missing > 0 {
        (Verdict::Open, format!("{missing} more graded shadow answers are needed"))
    } else if let Some(times) = slower.filter(|times| *times > promotion.max_slower) {
        (Verdict::Fails, format!("its answers take {times:.2} times as long, more than {}", promotion.max_slower))
    } else if slower.is_none() {
        (Verdict::Open, "no complete answers of both to compare the times of".to_owned())
    } else if difference.0 >= -promotion.margin {
        let why = format!(
            "its mean quality is not lower by more than {} (from {:+.3} on), at {percent:.1} % confidence",
            promotion.margin, difference.0
        );
        (Verdict::Holds, why)
    } else {
        let why = format!(
            "its mean quality might be lower by {:.3}, and {} is allowed: more graded answers are needed",
            -difference.0, promotion.margin
        );
        (Verdict::Open, why)
    };
    Look { graded: rows.len(), quality: (serving, candidate), difference, median_ms, verdict, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rows: &[(f64, f64)], times: (f64, f64), expected: Verdict, says: &str) {
        let promotion = Promotion { graded: 50, confidence: 0.9, margin: 0.05, max_slower: 2.0 };
        let look = judge(rows, (vec![times.0; 3], vec![times.1; 3]), &promotion);
        assert_eq!(look.verdict, expected, "{look:?}");
        assert!(look.why.contains(says), "{look:?}");
    }

    #[test]
    fn only_what_is_proven_and_quick_enough_passes() {
        let of = |count: usize, pair: fn(usize) -> (f64, f64)| (0..count).map(pair).collect::<Vec<_>>();
        check(&[], (1.0, 1.0), Verdict::Open, "50 more graded");
        check(&of(49, |_| (0.0, 1.0)), (1.0, 1.0), Verdict::Open, "1 more graded");
        check(&of(50, |_| (0.0, 1.0)), (1.0, 1.9), Verdict::Holds, "not lower by more than 0.05");
        check(&of(50, |_| (0.0, 1.0)), (1.0, 2.1), Verdict::Fails, "2.10 times as long");
        check(&of(200, |_| (1.0, 1.0)), (1.0, 1.0), Verdict::Holds, "");
        check(&of(60, |n| (f64::from(n % 2 == 0), f64::from(n % 2 == 1))), (1.0, 1.0), Verdict::Open, "might be lower");
        check(&of(30, |_| (1.0, 0.0)), (1.0, 1.0), Verdict::Fails, "is lower by");
        let untimed =
            judge(&of(60, |_| (0.0, 1.0)), (vec![1.0], Vec::new()), &Promotion { graded: 50, ..Promotion::default() });
        assert_eq!(untimed.verdict, Verdict::Open);
    }
}
