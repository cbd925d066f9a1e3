//! Rules that order requests whose drafts are known, each fitted on some rows and applied to others.

use super::Case;
use crate::evidence::calibration::{Calibration, Scored};
use crate::evidence::frontier::{self, Frontier};
use crate::judge::{Draft, Judge, Judged, TokenFacts, features, fit};
use crate::score::blend::{Blended, Shared, blend};
use crate::score::{Pair, PairScorer};
use local_worker::scorer::Turn;
use std::collections::BTreeSet;

/// A way to order requests: those that come first go to the large model first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it is called.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    looks_at: LooksAt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LooksAt {
    /// The prompt alone.
    Prompt,
    /// Whether the second model agrees, alone.
    Agreement,
    /// How sure the model was of its tokens, on average, alone.
    Certainty,
    /// Several things, weighed by a judge that is fitted on them.
    Judge { draft: bool, others: Others },
}

/// Whose agreement a judge hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Nobody,
    Second,
    All,
}

const fn rule(name: &'static str, what: &'static str, looks_at: LooksAt) -> Rule {
    Rule { name, what, looks_at }
}

/// The rule that everything is compared with.
pub const PROMPT: Rule = rule("prompt", "the prompt alone", LooksAt::Prompt);

/// For recorded answers, of which nobody knows how sure the model was.
pub const OF_ANSWERS: [Rule; 5] = [
    PROMPT,
    rule("agreement", "whether a second small model gives the same answer", LooksAt::Agreement),
    rule("both", "prompt and agreement", LooksAt::Judge { draft: false, others: Others::Second }),
    rule("draft", "prompt, agreement, and the draft's length", LooksAt::Judge { draft: true, others: Others::Second }),
    rule("several", "the same with all other small models", LooksAt::Judge { draft: true, others: Others::All }),
];

/// For recorded drafts with their token probabilities.
pub const OF_DRAFTS: [Rule; 3] = [
    PROMPT,
    rule("certainty", "mean log-probability of the draft's tokens", LooksAt::Certainty),
    rule("judge", "prompt and draft: the judge", LooksAt::Judge { draft: true, others: Others::Nobody }),
];

/// For recorded drafts about which somebody else was asked, besides.
pub const OF_SECONDS: [Rule; 2] = [
    rule("agreement", "whether the second opinion agrees", LooksAt::Agreement),
    rule("judge_second", "the judge, with a second opinion", LooksAt::Judge { draft: true, others: Others::Second }),
];

impl Rule {
    /// Small models that are asked for each request that the rule is to order, the one that drafts included; 0 where only
    /// what stays local is drafted.
    pub fn asked(self, others: usize) -> usize {
        match self.looks_at {
            LooksAt::Prompt => 0,
            LooksAt::Certainty | LooksAt::Judge { others: Others::Nobody, .. } => 1,
            LooksAt::Agreement | LooksAt::Judge { others: Others::Second, .. } => 2,
            LooksAt::Judge { others: Others::All, .. } => 1 + others,
        }
    }
}

/// The order that a rule gives to rows.
#[derive(Clone, Debug, Default)]
pub struct Ordered {
    /// By row; the higher, the longer it stays with the small model.
    pub order: Vec<f64>,
    /// By row the lowest and the highest place that another's answer could give it, where a judge hears a second one.
    pub ranges: Vec<(f64, f64)>,
}

/// Everything that is fitted on some rows, to order others.
pub struct Fitted<'rows> {
    fit: Vec<&'rows Case>,
    test: Vec<&'rows Case>,
    scorer: PairScorer,
    /// Calibrated scores of the rows fitted on, from parts that had not seen them.
    held_out: Vec<f64>,
    calibration: Calibration,
    /// The other model whose agreement says most on the rows fitted on.
    pub second: Option<String>,
}

impl<'rows> Fitted<'rows> {
    /// Fits the prompt's score and chooses the second model on `fit`.
    pub fn new(
        pair: &Pair,
        fit: Vec<&'rows Case>,
        test: Vec<&'rows Case>,
        shared: &Shared,
        seed: u64,
    ) -> Result<Self, String> {
        let rows: Vec<_> = fit.iter().map(|case| &case.outcome).collect();
        let Blended { scorer, held_out, .. } =
            blend(pair, &rows, shared, seed, "").map_err(|error| error.to_string())?;
        let scored = |(case, score): (&&Case, &f64)| Scored { score: *score, suffices: case.outcome.small_suffices() };
        let scored: Vec<Scored> = fit.iter().zip(&held_out).map(scored).collect();
        let calibration = Calibration::fit(&scored).map_err(|error| error.to_string())?;
        let held_out = held_out.iter().map(|raw| calibration.apply(*raw)).collect();
        let second = most_telling(&fit);
        Ok(Self { fit, test, scorer, held_out, calibration, second })
    }

    /// Orders the rows that nothing was fitted on.
    pub fn order(&self, rule: Rule) -> Result<Ordered, String> {
        let by = |order: &dyn Fn(&Case) -> f64| {
            let order = self.test.iter().map(|case| order(case)).collect();
            Ok(Ordered { order, ranges: Vec::new() })
        };
        match rule.looks_at {
            LooksAt::Prompt => by(&|case| self.raw(case)),
            LooksAt::Agreement => by(&|case| self.agrees(case, Others::Second).unwrap_or(0.0)),
            LooksAt::Certainty => by(&|case| mean_logprob(&case.tokens)),
            LooksAt::Judge { draft, others } => self.judged(draft, others),
        }
    }

    fn raw(&self, case: &Case) -> f64 {
        self.scorer.raw(&[Turn::user(&case.outcome.prompt)])
    }

    fn judged(&self, draft: bool, others: Others) -> Result<Ordered, String> {
        let row = |(case, score): (&&Case, &f64)| Judged {
            features: features(&self.draft(case, *score, draft, others)),
            prefix: None,
            suffices: case.outcome.small_suffices(),
            cluster: case.outcome.cluster.clone(),
        };
        let rows: Vec<Judged> = self.fit.iter().zip(&self.held_out).map(row).collect();
        let small = self.fit.first().map_or("", |case| &case.outcome.small);
        let (judge, _) = fit(small, &rows).map_err(|error| error.to_string())?;
        let score = |case: &Case| self.calibration.apply(self.raw(case));
        let order = self.test.iter().map(|case| judge.order(&self.draft(case, score(case), draft, others))).collect();
        let ranges = match others {
            Others::Second => {
                self.test.iter().map(|case| range(&judge, &self.draft(case, score(case), draft, others))).collect()
            }
            _ => Vec::new(),
        };
        Ok(Ordered { order, ranges })
    }

    /// What the judge may look at.
    fn draft<'case>(&self, case: &'case Case, score: f64, draft: bool, others: Others) -> Draft<'case> {
        Draft {
            prompt: &case.outcome.prompt,
            text: if draft { &case.text } else { "" },
            tokens: if draft { &case.tokens } else { &[] },
            cut: draft && case.cut,
            prompt_score: Some(score),
            valid: None,
            agrees: self.agrees(case, others),
        }
    }

    /// Share of the others that agree; `None` where nobody was asked.
    fn agrees(&self, case: &Case, others: Others) -> Option<f64> {
        let heard: Vec<f64> = match others {
            Others::Nobody => Vec::new(),
            Others::Second => {
                case.others.iter().filter(|(by, _)| Some(by) == self.second.as_ref()).map(|o| o.1).collect()
            }
            Others::All => case.others.iter().map(|other| other.1).collect(),
        };
        (!heard.is_empty()).then(|| heard.iter().sum::<f64>() / heard.len() as f64)
    }
}

/// The lowest and the highest that a draft is ordered, whatever a second model says.
fn range(judge: &Judge, draft: &Draft<'_>) -> (f64, f64) {
    let said = |agrees: f64| judge.order(&Draft { agrees: Some(agrees), ..*draft });
    let (differs, agrees) = (said(0.0), said(1.0));
    (differs.min(agrees), differs.max(agrees))
}

fn mean_logprob(tokens: &[TokenFacts]) -> f64 {
    tokens.iter().map(|token| token.logprob).sum::<f64>() / tokens.len().max(1) as f64
}

/// The other model whose agreement alone orders the rows best.
fn most_telling(rows: &[&Case]) -> Option<String> {
    let names: BTreeSet<&str> = rows.iter().flat_map(|case| &case.others).map(|(by, _)| by.as_str()).collect();
    let worth = |name: &str| agreement(rows, name).unwrap_or(0.5);
    let best = names.into_iter().map(|name| (worth(name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, name)| name.to_owned())
}

/// APGR of one other model's agreement alone, on rows about which it was asked.
pub fn agreement(rows: &[&Case], name: &str) -> Option<f64> {
    let row = |case: &&Case| {
        let (_, agrees) = case.others.iter().find(|(by, _)| by == name)?;
        let Case { outcome, .. } = case;
        Some(frontier::Scored { score: *agrees, small: outcome.small_quality, large: outcome.large_quality })
    };
    Frontier::new(&rows.iter().filter_map(row).collect::<Vec<_>>()).apgr(|_| 1.0)
}
