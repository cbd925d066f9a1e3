//! The figures of one policy and one pair of models, and what becomes of them when they give way.

use super::Promised;
use crate::evidence::calibration::{ECE_BINS, Scored, reliability};
use crate::evidence::drift::{Look, Reference, SHIFTED};
use crate::evidence::watch::{Alarm, Graded, KeptQuality, KeptShare};
use crate::policy::live::{BreachAction, Standing};
use crate::score::Pair;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Graded requests of the rolling calibration error.
const CALIBRATED: usize = 1_000;

/// Latest requests whose looks are compared with the reference, and how many of the first ones are the reference where the
/// certificate has none.
pub const PROBED: usize = 300;

/// Requests between two comparisons.
const EVERY: u64 = 50;

/// Rows of a bin in the rolling calibration error, at least: few graded requests make few bins.
const ROWS_A_BIN: usize = 20;

/// What gave way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreachOf {
    /// The share of quality that is kept.
    Quality,
    /// What requests look like.
    Drift,
}

impl BreachOf {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Quality, Self::Drift];

    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quality => "quality",
            Self::Drift => "drift",
        }
    }
}

/// Something gave way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Breach {
    of: BreachOf,
    /// The policy's action, as a word.
    action: String,
    why: String,
    at_ms: i64,
}

/// The figures as they stand.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveReport {
    /// The models.
    pub pair: Pair,
    /// Graded requests since the certificate is in force, or since it was tightened last.
    pub graded: u64,
    /// Share of the large model's quality that is promised, and the confidence.
    pub promised: (f64, f64),
    /// Share that was kept, with an interval that holds at all times together.
    pub kept: Option<KeptShare>,
    /// Debiased calibration error over the latest graded requests with a score, and how many those are.
    pub calibration: Option<(f64, usize)>,
    /// Stability index of each feature against the reference; empty before there are enough requests.
    pub shifts: Vec<(String, f64)>,
    /// What gave way, in words, oldest first.
    pub breaches: Vec<(BreachOf, String)>,
    /// How far the certificates stand.
    pub standing: Standing,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Watched {
    epoch: String,
    /// Alarms that were set for this promise, this one included.
    starts: u32,
    alarm: Alarm,
    kept: KeptQuality,
    scored: VecDeque<(f64, bool)>,
    raised: f64,
    breaches: Vec<Breach>,
    shifts: Vec<(String, f64)>,
    /// The first requests, where the certificate has no reference.
    own_reference: Option<Reference>,
    /// Looks of the latest requests. Not kept: a restart begins a new window.
    #[serde(skip)]
    looks: VecDeque<Look>,
    #[serde(skip)]
    seen: u64,
}

impl Watched {
    /// Figures that know nothing yet.
    pub fn new(promised: &Promised) -> Self {
        let alpha = 1.0 - promised.confidence;
        Self {
            epoch: promised.epoch.clone(),
            starts: 1,
            alarm: Alarm::new(promised.target, alpha, 1),
            kept: KeptQuality::new(alpha),
            scored: VecDeque::new(),
            raised: 0.0,
            breaches: Vec::new(),
            shifts: Vec::new(),
            own_reference: None,
            looks: VecDeque::new(),
            seen: 0,
        }
    }

    /// Figures for the next promise. Certificates that are learnt one after the other share one error probability.
    pub fn followed_by(&self, promised: &Promised) -> Self {
        let mut next = Self::new(promised);
        if promised.learnt {
            next.starts = self.starts + 1;
            next.alarm = Alarm::new(promised.target, 1.0 - promised.confidence, next.starts);
        }
        next
    }

    /// Whether the figures are about this promise.
    pub fn is_of(&self, promised: &Promised) -> bool {
        self.epoch == promised.epoch
    }

    /// Whether what was read back can be gone on with.
    pub fn is_sound(&self) -> bool {
        let references = self.own_reference.as_ref().is_none_or(Reference::is_sound);
        let actions = self.breaches.iter().all(|breach| BreachAction::parse(&breach.action).is_some());
        let scores = self.scored.iter().all(|(score, _)| (0.0..=1.0).contains(score));
        self.alarm.is_sound() && self.kept.is_sound() && references && actions && scores && self.raised >= 0.0
    }

    /// Takes in a look; the words of a breach, if this one made it.
    pub fn saw(&mut self, promised: &Promised, look: Look) -> Option<String> {
        self.looks.push_back(look);
        if self.looks.len() > PROBED {
            self.looks.pop_front();
        }
        self.seen += 1;
        if self.looks.len() < PROBED || !self.seen.is_multiple_of(EVERY) {
            return None;
        }
        let looks: Vec<Look> = self.looks.iter().copied().collect();
        let reference = match (&promised.reference, &self.own_reference) {
            (Some(reference), _) | (None, Some(reference)) => reference,
            (None, None) => {
                // What is compared later must share no request with it.
                self.own_reference = Reference::of(&looks);
                self.looks.clear();
                return None;
            }
        };
        let shifts = reference.shifts(&looks);
        self.shifts = shifts.iter().map(|(name, shift)| ((*name).to_owned(), *shift)).collect();
        let (name, most) = shifts.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most })?;
        if most < SHIFTED || self.has_breached(BreachOf::Drift) {
            return None;
        }
        let against = if promised.reference.is_some() { "those it was solved on" } else { "the first it saw" };
        let why = format!(
            "requests no longer look like {against}: {name} has shifted by {most:.2}, {SHIFTED} is much (stability index \
             over the last {PROBED})"
        );
        Some(self.breach(BreachOf::Drift, promised, why))
    }

    /// Takes in a graded request; the words of a breach, if this one made it.
    pub fn graded(&mut self, promised: &Promised, grades: &Graded, score: Option<f64>) -> Option<String> {
        if let Some(score) = score {
            self.scored.push_back((score, grades.small >= grades.large));
            if self.scored.len() > CALIBRATED {
                self.scored.pop_front();
            }
        }
        self.kept.observe(grades);
        let rang_before = self.alarm.rang();
        if !self.alarm.observe(grades) || rang_before {
            return None;
        }
        let kept = self.kept.share().map_or(0.0, |kept| kept.value);
        let why = format!(
            "{} graded requests refute the promise of {:.1} % of the large model's quality at {:.1} % confidence: {:.1} % \
             was kept",
            self.alarm.n(),
            promised.target * 100.0,
            promised.confidence * 100.0,
            kept * 100.0
        );
        Some(self.breach(BreachOf::Quality, promised, why))
    }

    fn has_breached(&self, of: BreachOf) -> bool {
        self.breaches.iter().any(|breach| breach.of == of)
    }

    fn breach(&mut self, of: BreachOf, promised: &Promised, why: String) -> String {
        let action = match of {
            BreachOf::Quality => promised.on_breach.quality,
            BreachOf::Drift => promised.on_breach.drift,
        };
        if action == BreachAction::Tighten {
            self.raised += promised.on_breach.step;
            // Other thresholds are another claim: it is tested anew, at its part of the error probability.
            self.starts += 1;
            let alpha = 1.0 - promised.confidence;
            self.alarm = Alarm::new(promised.target, alpha, self.starts);
            self.kept = KeptQuality::new(alpha);
        }
        let said = match action {
            BreachAction::Alarm => why.clone(),
            BreachAction::Tighten => format!("{why}; thresholds are now {:.3} higher", self.raised),
            BreachAction::AllRemote => format!("{why}; the certificate is withdrawn: everything goes remote"),
        };
        let at_ms = jiff::Timestamp::now().as_millisecond();
        self.breaches.push(Breach { of, action: action.as_str().to_owned(), why: said.clone(), at_ms });
        said
    }

    /// How far the certificates stand.
    pub fn standing(&self) -> Standing {
        let withdrawn = self.breaches.iter().find(|breach| breach.action == BreachAction::AllRemote.as_str());
        match withdrawn {
            Some(breach) => Standing::Withdrawn(breach.why.clone()),
            None if self.raised > 0.0 => Standing::Tightened(self.raised),
            None => Standing::Holds,
        }
    }

    /// The figures.
    pub fn report(&self, pair: Pair, promised: &Promised) -> LiveReport {
        let scored: Vec<Scored> =
            self.scored.iter().map(|(score, suffices)| Scored { score: *score, suffices: *suffices }).collect();
        let bins = (scored.len() / ROWS_A_BIN).clamp(1, ECE_BINS);
        let calibration = (!scored.is_empty()).then(|| (reliability(&scored, bins).ece_debiased, scored.len()));
        LiveReport {
            pair,
            graded: self.alarm.n(),
            promised: (promised.target, promised.confidence),
            kept: self.kept.share(),
            calibration,
            shifts: self.shifts.clone(),
            breaches: self.breaches.iter().map(|breach| (breach.of, breach.why.clone())).collect(),
            standing: self.standing(),
        }
    }
}
