//! What a policy wants while it serves: comparisons on the side, and what happens when its promise looks broken.

use crate::domain::{ModelId, NanoUsd};
use std::time::Duration;

/// How the two answers of a shadow run are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The large model's answer counts as right: same words.
    Exact,
    /// The same, by the last number in it.
    Numeric,
    /// The same, as a JSON value.
    Json,
    /// This remote model judges, asked in both orders.
    Judge(ModelId),
}

/// Shadow runs: a sampled share of requests is answered by both sides, and only one of the answers is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadow {
    /// Share of the requests that a score decides, above 0 and at most 1.
    pub share: f64,
    /// Most that shadow runs of this policy may cost on a day (UTC), judging included.
    pub daily: NanoUsd,
    /// How answers are compared.
    pub compare: Compare,
}

/// Learning from the outcomes of shadow runs while the policy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learn {
    /// Outcomes before a scorer is fitted for the first time.
    pub first: u64,
    /// How often it is looked at what came in.
    pub every: Duration,
}

/// Fewest outcomes that a scorer is fitted on: half of them are evidence.
pub const FEWEST_OUTCOMES: u64 = 40;

impl Default for Learn {
    fn default() -> Self {
        Self { first: 100, every: Duration::from_secs(10) }
    }
}

/// What a small model that is tried beside the one that serves has to show before it takes its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promotion {
    /// Fewest requests on which both were compared with the large model.
    pub graded: u64,
    /// Confidence of what is said of its quality.
    pub confidence: f64,
    /// By how much its mean quality may be below that of the serving one, 0 to 1.
    pub margin: f64,
    /// Most time of its answers, in multiples of the serving one's (medians).
    pub max_slower: f64,
}

impl Default for Promotion {
    fn default() -> Self {
        Self { graded: 100, confidence: 0.95, margin: 0.02, max_slower: 1.5 }
    }
}

/// What is done when a check of live traffic fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreachAction {
    /// Metric, log and page say so; decisions stay.
    #[default]
    Alarm,
    /// Thresholds rise by a step; the check starts anew.
    Tighten,
    /// The certificate counts as withdrawn.
    AllRemote,
}

impl BreachAction {
    /// The words in policy files, in the order of the variants.
    pub const WORDS: [&str; 3] = ["alarm", "tighten", "all-remote"];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alarm => Self::WORDS[0],
            Self::Tighten => Self::WORDS[1],
            Self::AllRemote => Self::WORDS[2],
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Alarm, Self::Tighten, Self::AllRemote].into_iter().find(|action| action.as_str() == word)
    }
}

/// What a policy does when its promise looks broken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OnBreach {
    /// When graded requests refute the promised quality.
    pub quality: BreachAction,
    /// When requests no longer look like those that the certificate was solved on.
    pub drift: BreachAction,
    /// How far `tighten` raises thresholds, above 0 and at most 1.
    pub step: f64,
}

/// Step of `tighten` where none is given.
pub const TIGHTEN_STEP: f64 = 0.05;

impl Default for OnBreach {
    fn default() -> Self {
        Self { quality: BreachAction::Alarm, drift: BreachAction::Alarm, step: TIGHTEN_STEP }
    }
}

/// How far a policy's certificates may be relied on right now.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Standing {
    /// As they are.
    #[default]
    Holds,
    /// With thresholds this much higher.
    Tightened(f64),
    /// Not at all, and why, in words.
    Withdrawn(String),
}

impl Standing {
    /// A threshold as it stands; one above 1 is none.
    pub fn applied(&self, threshold: Option<f64>) -> Option<f64> {
        match self {
            Self::Holds => threshold,
            Self::Tightened(by) => threshold.map(|threshold| threshold + by).filter(|threshold| *threshold <= 1.0),
            Self::Withdrawn(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::domain::{Candidate, Constraints, Placement, ReasonCode, Residency, Route, Score};
    use crate::policy::{Facts, Policy};

    const POLICY: &str = "name = \"p\"\n[models]\nsmall = [\"sluice-nano\"]\nlarge = [\"openai/gpt-4.1-mini\"]\n\
                          [objective]\ngoal = \"fixed-threshold\"\nthreshold = 0.9\n[exploration]\nshare = 0.5\n";

    fn parse(more: &str) -> Result<Policy, String> {
        let catalog = Catalog::parse("models.toml", include_str!("../../../policies/models.toml")).unwrap();
        let text = format!("{POLICY}{more}");
        let words = |problems: Vec<crate::toml_file::Problem>| {
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        Policy::parse("p.toml", &text, &catalog).map_err(words)
    }

    #[test]
    fn sections_are_read_and_their_problems_told() {
        let policy = parse("").unwrap();
        assert_eq!((&policy.shadow, policy.on_breach), (&None, OnBreach::default()));
        let text = "[shadow]\nshare = 0.1\ndaily = \"2 USD\"\ncompare = \"judge\"\njudge = \"openai/gpt-4.1-nano\"\n\
                    [on_breach]\nquality = \"tighten\"\ndrift = \"all-remote\"\nstep = 0.2";
        let policy = parse(text).unwrap();
        let judge = ModelId::new("openai/gpt-4.1-nano");
        let compare = Compare::Judge(judge.clone());
        assert_eq!(policy.shadow, Some(Shadow { share: 0.1, daily: NanoUsd::new(2_000_000_000), compare }));
        let wanted = OnBreach { quality: BreachAction::Tighten, drift: BreachAction::AllRemote, step: 0.2 };
        assert_eq!(policy.on_breach, wanted);
        assert!(policy.models().any(|model| *model == judge), "the judge is called too");
        let table = [
            ("[shadow]\nshare = 0.1", "shadow.compare"),
            ("[shadow]\ncompare = \"exact\"", "shadow.share"),
            ("[shadow]\nshare = 2\ncompare = \"exact\"", "shadow.share"),
            ("[shadow]\nshare = 0.1\ncompare = \"judge\"\ndaily = \"1 USD\"", "shadow.judge"),
            ("[shadow]\nshare = 0.1\ncompare = \"judge\"\njudge = \"openai/gpt-4.1-nano\"", "shadow.daily"),
            ("[shadow]\nshare = 0.1\ncompare = \"exact\"\njudge = \"openai/gpt-4.1-nano\"", "compare = \"judge\""),
            ("[shadow]\nshare = 0.1\ncompare = \"judge\"\njudge = \"sluice-nano\"\ndaily = \"1 USD\"", "is local"),
            ("[on_breach]\nquality = \"panic\"", "on_breach.quality"),
            ("[on_breach]\nstep = 0.1", "nothing tightens"),
            ("[on_breach]\nqualty = \"alarm\"", "quality"),
        ];
        for (text, expected) in table {
            let problems = parse(text).unwrap_err();
            assert!(problems.contains(expected), "{text}: {problems}");
        }
        let learning = POLICY
            .replace(
                "goal = \"fixed-threshold\"\nthreshold = 0.9",
                "goal = \"min-cost\"\nquality_target = 0.9\nconfidence = 0.9",
            )
            .replace("[exploration]\nshare = 0.5\n", "");
        let shadow = "[shadow]\nshare = 0.2\ncompare = \"exact\"\ndaily = \"1 USD\"\n";
        let parse_learning = |more: &str| {
            let text = format!("{learning}{more}");
            let catalog = Catalog::parse("models.toml", include_str!("../../../policies/models.toml")).unwrap();
            let words =
                |problems: Vec<crate::toml_file::Problem>| problems.iter().map(ToString::to_string).collect::<String>();
            Policy::parse("p.toml", &text, &catalog).map(|policy| policy.learn).map_err(words)
        };
        assert_eq!(parse_learning(&format!("{shadow}[learn]")), Ok(Some(Learn::default())));
        assert_eq!(parse_learning("[learn]\nenabled = false"), Ok(None));
        let wanted = Learn { first: 60, every: Duration::from_secs(2) };
        assert_eq!(parse_learning(&format!("{shadow}[learn]\nfirst = 60\nevery = \"2s\"")), Ok(Some(wanted)));
        let free = shadow.replace("daily = \"1 USD\"\n", "");
        let table = [
            ("[learn]".to_owned(), "nothing to learn from"),
            (format!("{free}[learn]"), "set shadow.daily"),
            (format!("{shadow}[learn]\nfirst = 10"), "use 40 or more"),
            (format!("{shadow}[learn]\nevery = \"soon\""), "no duration"),
            (format!("{shadow}[exploration]\nshare = 0.1\n[learn]"), "no certificate stands for"),
        ];
        for (text, expected) in table {
            let problems = parse_learning(&text).unwrap_err();
            assert!(problems.contains(expected), "{text}: {problems}");
        }
        assert!(parse("[learn]").unwrap_err().contains("no quality target"));
        let placed = POLICY.replace("[models]", "placement = \"prefer-local\"\n[models]");
        let catalog = Catalog::parse("models.toml", include_str!("../../../policies/models.toml")).unwrap();
        let text = format!("{placed}[shadow]\nshare = 0.1\ncompare = \"exact\"");
        assert!(Policy::parse("p.toml", &text, &catalog).is_err(), "a score decides nothing there");
    }

    #[test]
    fn a_gate_needs_shadow_runs_and_a_candidate_a_local_model_that_does_not_serve() {
        let shadow = "[shadow]\nshare = 0.2\ncompare = \"exact\"\n";
        let mut policy = parse(&format!("{shadow}[flywheel]\nmargin = 0.1\n")).unwrap();
        assert_eq!(policy.promotion, Some(Promotion { margin: 0.1, ..Promotion::default() }));
        assert!(parse("[flywheel]").unwrap_err().contains("add [shadow]"));
        assert!(parse(&format!("{shadow}[flywheel]\nconfidence = 1")).unwrap_err().contains("flywheel.confidence"));
        let catalog = include_str!("../../../policies/models.toml");
        let more =
            "[[models]]\nid = \"n2\"\nkind = \"file\"\npath = \"x\"\ncontext = 8\nmax_output = 8\ndefault_output = 8\n";
        let catalog = Catalog::parse("models.toml", &format!("{catalog}{more}")).unwrap();
        policy.try_candidate("p.candidate.toml", "model = \"n2\"", &catalog).unwrap();
        assert!(policy.models().any(|model| model.as_str() == "n2"), "it is loaded");
        policy.try_candidate("p.candidate.toml", "model = \"sluice-nano\"", &catalog).unwrap();
        assert_eq!(policy.candidate, None, "it serves");
        let table = [
            ("model = \"n3\"", "is not in the catalog"),
            ("model = \"openai/gpt-4.1-mini\"", "is remote"),
            ("modle = \"n2\"", "name the local model"),
        ];
        for (text, expected) in table {
            let problems = policy.try_candidate("p.candidate.toml", text, &catalog).unwrap_err();
            let problems: String = problems.iter().map(ToString::to_string).collect();
            assert!(problems.contains(expected) && problems.contains("p.candidate.toml"), "{text}: {problems}");
        }
        let mut plain = parse("").unwrap();
        let problems = plain.try_candidate("p.candidate.toml", "model = \"n2\"", &catalog).unwrap_err();
        assert!(problems[0].to_string().contains("makes no shadow runs"));
    }

    #[test]
    fn decisions_follow_how_certificates_stand() {
        let policy = parse("").unwrap();
        let candidate = |model: &str, route: Route, score: Option<f64>| Candidate {
            score: score.and_then(|score| Score::new(score).ok()),
            ..Candidate::new(ModelId::new(model), route)
        };
        let constraints = Constraints {
            placement: Placement::Auto,
            placement_by: "default".to_owned(),
            rule: None,
            model: None,
            residency: Residency::default(),
            cache_read: false,
            cache_write: false,
        };
        let decide = |score: f64, draw: f64, standing: &Standing| {
            let candidates = vec![
                candidate("sluice-nano", Route::Local, Some(score)),
                candidate("openai/gpt-4.1-mini", Route::Remote, None),
            ];
            let facts = Facts { candidates, draw, standing: standing.clone(), ..Facts::default() };
            let decision = policy.decide(&facts, &constraints).unwrap();
            (decision.route, decision.reason.code, decision.threshold, decision.propensity)
        };
        let above = ReasonCode::ScoreAboveThreshold;
        assert_eq!(decide(0.92, 0.9, &Standing::Holds), (Route::Local, above, Some(0.9), 1.0));
        let (route, code, threshold, _) = decide(0.92, 0.9, &Standing::Tightened(0.05));
        assert_eq!((route, code), (Route::Remote, ReasonCode::ScoreBelowThreshold));
        assert!((threshold.unwrap() - 0.95).abs() < 1e-12);
        assert_eq!(decide(0.96, 0.9, &Standing::Tightened(0.05)).0, Route::Local);
        let past = decide(1.0, 0.9, &Standing::Tightened(0.2));
        assert_eq!((past.0, past.1), (Route::Remote, ReasonCode::Breach));
        // Nothing is explored under a certificate that was withdrawn.
        let withdrawn = Standing::Withdrawn("broken".to_owned());
        assert_eq!(decide(1.0, 0.1, &withdrawn), (Route::Remote, ReasonCode::Breach, None, 1.0));
        assert_eq!(decide(0.1, 0.1, &Standing::Holds).1, ReasonCode::Explored);
    }
}
