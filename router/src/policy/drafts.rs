//! What a policy says of drafts that are judged: by whom, who else is asked, and what wins for streams.

use crate::domain::ModelId;
use crate::judge::JudgeFile;

/// Whether drafts are judged before anything of them is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum JudgeState {
    /// No: there is no `NAME.judge.toml`, or the objective is a threshold by hand.
    Absent,
    /// Yes, by this judge.
    InForce(Box<JudgeFile>),
    /// There is one that does not match, or can't be read.
    Mismatched(String),
}

impl JudgeState {
    /// In words; `None` where there is no judge.
    pub fn describe(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::InForce(file) => Some(match file.certificate.threshold {
                Some(threshold) => {
                    format!("drafts of {} are shown if judged {threshold:.3} or better", file.judge.small)
                }
                None => "the evidence lets no draft be shown yet, so none is made".to_owned(),
            }),
            Self::Mismatched(why) => {
                Some(format!("its judge is not used: {why}; run `sluice train judge --solve` again"))
            }
        }
    }
}

/// What wins where an answer is streamed and drafts are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StreamWins {
    /// Nothing is shown before the draft is finished and judged.
    #[default]
    Safety,
    /// The prompt's score alone decides, and the first byte goes out at once.
    FirstByte,
}

/// Who else is asked about a draft that the judge can't decide on alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Second {
    /// The same model again, not greedily.
    Sample,
    /// Another small model.
    Model(ModelId),
}

impl Second {
    /// The word in policies and recorded drafts.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Sample => SAMPLE,
            Self::Model(model) => model.as_str(),
        }
    }
}

/// The word for another sample of the model that drafted.
pub const SAMPLE: &str = "sample";
