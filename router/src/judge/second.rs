//! A second opinion on a draft: another sample of the same model, or the answer of another small one. It costs as much as a
//! draft, so it is asked for only where its answer can change the verdict; the verdicts are those that asking always gives.

use super::{Draft, Judge};

/// Temperature of a second sample of the model that drafted, where the request does not ask for a higher one: at 0 it would
/// say the same again.
pub const SECOND_TEMPERATURE: f32 = 0.7;

/// What a draft is worth against a threshold, before anybody else was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It reaches the threshold whatever another would say; the least that it is judged.
    Shown(f64),
    /// It falls short whatever another would say; the most that it is judged.
    TurnedDown(f64),
    /// It depends on what another says.
    Undecided,
}

impl Judge {
    /// The verdict on a draft that somebody else may yet be asked about.
    pub fn verdict(&self, draft: &Draft<'_>, threshold: f64) -> Verdict {
        let (low, high) = self.range(draft);
        if low >= threshold {
            Verdict::Shown(low)
        } else if high < threshold {
            Verdict::TurnedDown(high)
        } else {
            Verdict::Undecided
        }
    }

    /// The least and the most that a draft is judged, whatever another says of it; equal for a judge that learnt from drafts
    /// about which nobody else was asked.
    pub fn range(&self, draft: &Draft<'_>) -> (f64, f64) {
        let if_agreed = |agrees: f64| self.judge(&Draft { agrees: Some(agrees), ..*draft }).get();
        let (without, with) = (if_agreed(0.0), if_agreed(1.0));
        (without.min(with), without.max(with))
    }
}
