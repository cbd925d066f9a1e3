//! A draft under judgement: its text is kept back and its tokens are looked at, until the judge lets it out or turns it down.

use super::Admitted;
use super::run::Run;
use super::second::Said;
use crate::domain::{FinishReason, Message, ModelId, Reason, ReasonCode, Role, Route, Score, TokenLogprob};
use crate::judge::{Draft, FIRST_LOOK, JudgeFile, TokenFacts, Verdict};

/// Likeliest tokens that are asked for with each token of a draft, for its entropy.
pub const ALTERNATIVES: u32 = 5;

/// What is kept back.
pub struct Kept {
    threshold: f64,
    prompt: String,
    prompt_score: Option<f64>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    tokens: Vec<TokenFacts>,
    looked: bool,
}

impl Kept {
    /// Starts to keep back the answer of `model`, if it is the draft that the decision wants judged.
    pub fn of(run: &Run, model: &ModelId, route: Route) -> Option<Self> {
        let wanted = run.decision.route == Route::Cascade
            && run.decision.reason.code == ReasonCode::Draft
            && route == Route::Local
            && run.decision.model == *model
            && run.aside.is_none();
        let (_, certified) = run.admitted.policy.judged_at().filter(|_| wanted)?;
        // What was decided: live checks may have raised it.
        let threshold = run.decision.threshold.unwrap_or(certified);
        let candidate = run.decision.candidates.iter().find(|candidate| candidate.model == *model);
        let prompt_score = candidate.and_then(|candidate| candidate.score).map(Score::get);
        let asked = run.admitted.messages.iter().rev().find(|message| message.role == Role::User);
        Some(Self {
            threshold,
            prompt: asked.map(Message::content).unwrap_or_default(),
            prompt_score,
            text: String::new(),
            logprobs: Vec::new(),
            tokens: Vec::new(),
            looked: false,
        })
    }

    /// Keeps a piece back. Says why the draft is not worth finishing, if it is not.
    pub fn push(&mut self, admitted: &Admitted, text: &str, logprobs: Vec<TokenLogprob>) -> Option<String> {
        self.text.push_str(text);
        self.tokens.extend(logprobs.iter().map(facts));
        self.logprobs.extend(logprobs);
        if self.looked || self.tokens.len() < FIRST_LOOK {
            return None;
        }
        self.looked = true;
        let (file, _) = admitted.policy.judged_at()?;
        let draft = self.draft(admitted, false, None);
        let hopeless = file.judge.hopeless(&draft);
        hopeless.then(|| format!("hopeless after {FIRST_LOOK} tokens{}", strongest(file, &draft)))
    }

    /// Whether another small model, or another sample, could change the judgement of the finished draft.
    pub fn is_undecided(&self, admitted: &Admitted, finish: FinishReason) -> bool {
        let asks = admitted.policy.judged_at().filter(|_| admitted.policy.second.is_some());
        asks.is_some_and(|(file, _)| {
            file.judge.verdict(&self.draft(admitted, is_cut(finish), None), self.threshold) == Verdict::Undecided
        })
    }

    /// The judgement of the finished draft, of which somebody else may have `said` something: the reason to show it, or to
    /// turn it down.
    pub fn judge(&self, admitted: &Admitted, finish: FinishReason, said: Said) -> Result<Reason, String> {
        let Some((file, _)) = admitted.policy.judged_at() else {
            return Err("there is no judge any more".to_owned());
        };
        let draft = self.draft(admitted, is_cut(finish), said.agrees());
        let threshold = self.threshold;
        let score = match (said, &admitted.policy.second) {
            // Nobody was asked although somebody could be, or gave no answer: the least that it can be worth.
            (Said::Nothing, Some(_)) => file.judge.range(&draft).0,
            _ => file.judge.judge(&draft).get(),
        };
        let why = strongest(file, &draft);
        let heard = said.in_words();
        if score >= threshold {
            let detail = format!("the draft is judged {score:.3}, which reaches {threshold:.3}{heard}{why}");
            return Ok(Reason::new(ReasonCode::DraftAccepted, detail));
        }
        Err(format!("judged {score:.3}, below {threshold:.3}{heard}{why}"))
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What may be shown now.
    pub fn release(self) -> (String, Vec<TokenLogprob>) {
        (self.text, self.logprobs)
    }

    fn draft<'kept>(&'kept self, admitted: &'kept Admitted, cut: bool, agrees: Option<f64>) -> Draft<'kept> {
        Draft {
            prompt: &self.prompt,
            text: &self.text,
            tokens: &self.tokens,
            cut,
            prompt_score: self.prompt_score,
            // The engine keeps a form by itself: a finished draft has it.
            valid: admitted.request.limits.format.is_some().then_some(!cut),
            agrees,
        }
    }
}

fn is_cut(finish: FinishReason) -> bool {
    matches!(finish, FinishReason::Length | FinishReason::Context)
}

/// The two features that moved the judgement most.
fn strongest(file: &JudgeFile, draft: &Draft<'_>) -> String {
    let named: Vec<String> =
        file.judge.reasons(draft, 2).iter().map(|(name, pull)| format!("{name} {pull:+.2}")).collect();
    format!(" ({})", named.join(", "))
}

fn facts(token: &TokenLogprob) -> TokenFacts {
    let alternatives = || token.alternatives.iter().map(|alternative| f64::from(alternative.logprob));
    TokenFacts {
        logprob: f64::from(token.logprob),
        margin: token.margin.map(f64::from),
        entropy: (!token.alternatives.is_empty()).then(|| TokenFacts::entropy_of(alternatives())),
    }
}
