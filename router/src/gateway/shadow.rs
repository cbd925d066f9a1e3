//! Shadow runs: beside a sampled share of the requests that a score decides, the other side is asked the same, and the two
//! answers are compared. Nobody sees the second answer; what stays is an outcome and, where money was spent, a ledger entry
//! of its own that says beside which entry it ran.
//!
//! While a policy tries a candidate (`NAME.candidate.toml`), that small model answers beside the serving one in each shadow run,
//! and both are held against the same answer of the large model. What that comes to is kept apart: it decides whether the
//! candidate takes the other's place, so it is no evidence for what is promised of either.
//!
//! A request that must stay local, one whose tenant keeps no record, and one that a rule, a placement or a failure decided
//! has no shadow: the first two must not, the others say nothing about the score.

use super::Admitted;
use super::attempt::{AttemptEnd, attempt};
use super::run::Run;
use crate::backend::BackendError;
use crate::domain::{
    EntryStatus, Limits, Message, ModelId, Part, Placement, Reason, ReasonCode, RecordLevel, RequestId, Role, Route,
    Score,
};
use crate::evidence::drift::Look;
use crate::evidence::grading::{Comparison, Grader, judged, sampled};
use crate::evidence::outcome::OutcomeSource;
use crate::evidence::watch::Graded;
use crate::learn::GradedRequest;
use crate::ledger::{GradedOutcome, ShadowOf};
use crate::policy::live::{Compare, Shadow};
use crate::score::Pair;
use crate::score::own::Observed;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::Instrument as _;

/// Shadow runs that may be under way at once; a request that finds no place has none.
pub const AT_ONCE: usize = 4;

/// Longest time of each call of a shadow run.
const WITHIN: Duration = Duration::from_secs(120);

/// Most tokens of a judge's reply.
const JUDGE_TOKENS: u32 = 512;

/// Largest relative difference of equal numbers.
const TOLERANCE: f64 = 1e-6;

/// A shadow run that will be made.
struct Plan {
    shadow: Shadow,
    /// The side that is asked now.
    asked: ModelId,
    small: ModelId,
    large: ModelId,
    /// Whether the small model's answer was shown.
    local: bool,
    score: Option<(f64, String)>,
    /// The answer that was shown.
    shown: String,
    question: String,
    served: RequestId,
    /// Who else is tried, if that is in nobody's way.
    candidate: Option<ModelId>,
}

/// What two answers are worth.
struct Grades {
    small: f64,
    large: f64,
    by: OutcomeSource,
}

/// How a shadow run ended, as metrics count it.
enum Ended {
    Graded,
    /// The judge gave no verdict.
    Undecided,
    /// The budget of shadow runs, or the tenant's, has no room.
    Budget,
    Failed,
}

impl Ended {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Graded => "graded",
            Self::Undecided => "undecided",
            Self::Budget => "budget",
            Self::Failed => "failed",
        }
    }
}

/// Starts a shadow run beside a request that was served, if it is among the sampled ones and nothing forbids it.
pub(super) fn beside(run: &Run) {
    let Some(plan) = Plan::of(run) else { return };
    let gateway = Arc::clone(&run.gateway);
    let (name, asked) =
        (run.admitted.policy.reference.name.clone(), if plan.local { Route::Remote } else { Route::Local });
    let idle = gateway.backends.get(&plan.asked).is_some_and(|backend| backend.is_idle());
    let permit = Arc::clone(&gateway.shadows).try_acquire_owned().ok().filter(|_| idle);
    let Some(permit) = permit else { return gateway.metrics.shadow_run(&name, asked, "busy") };
    let learns = run.admitted.policy.learn.is_some()
        && run.recording.as_ref().is_some_and(|kept| kept.level == RecordLevel::Text);
    let (second, heard) = second_run(run, &plan);
    let stopping = gateway.stopping.clone();
    let tracker = gateway.tracker.clone();
    let span = tracing::info_span!("shadow", of = %plan.served, model = %plan.asked);
    tracker.spawn(
        async move {
            let _permit = permit;
            // A shutdown hangs up on it: what it used is booked like any call that was hung up on.
            let heard = async move {
                let mut heard = heard;
                stopping.run_until_cancelled(async { while heard.recv().await.is_some() {} }).await;
            };
            let (ended, ()) = tokio::join!(second.compare(plan), heard);
            if learns && !matches!(ended, Ended::Graded) {
                gateway.learning.lost(&name);
            }
            gateway.metrics.shadow_run(&name, asked, ended.as_str());
        }
        .instrument(span),
    );
}

impl Plan {
    fn of(run: &Run) -> Option<Self> {
        let admitted = &run.admitted;
        let shadow = admitted.policy.shadow.as_ref()?;
        let request = &admitted.request;
        let level = run.gateway.records.get(&request.tenant).copied().unwrap_or_default();
        if level == RecordLevel::None || !is_by_score(run) {
            return None;
        }
        if !run.judge_is_permitted(&shadow.compare) || !sampled(&request.id.to_string(), shadow.share) {
            return None;
        }
        let served = run.decision.model.clone();
        let local = run.route_of(&served) == Route::Local;
        let candidates = || run.decision.candidates.iter().filter(|candidate| candidate.excluded_by.is_none());
        let score = |model: &ModelId| candidates().find(|c| c.model == *model).and_then(|c| c.score);
        let (small, large) = if local {
            (served.clone(), candidates().find(|candidate| candidate.route == Route::Remote)?.model.clone())
        } else {
            let smalls = candidates().filter(|candidate| candidate.route == Route::Local);
            let best = smalls.reduce(|best, next| if next.score > best.score { next } else { best })?;
            (best.model.clone(), served.clone())
        };
        let asked = admitted.messages.iter().rev().find(|message| message.role == Role::User);
        let version = &run.decision.scorer_version;
        let idle = |model: &&ModelId| run.gateway.backends.get(model).is_some_and(|backend| backend.is_idle());
        let region = |model: &ModelId| admitted.snapshot.catalog().get(model).and_then(|found| found.region.clone());
        let permitted = |model: &&ModelId| admitted.constraints.residency.permits(region(model).as_deref());
        let candidate = admitted.policy.candidate.as_ref().filter(idle).filter(permitted).cloned();
        Some(Self {
            candidate,
            shadow: shadow.clone(),
            asked: if local { large.clone() } else { small.clone() },
            score: score(&small).map(|score: Score| (score.get(), version.clone())),
            small,
            large,
            local,
            shown: run.answer.clone(),
            question: asked.map(Message::content).unwrap_or_default(),
            served: request.id,
        })
    }
}

/// Tells live checks how a request looked that a score decided.
pub(super) fn note_look(run: &Run) {
    let Admitted { policy, messages, .. } = &run.admitted;
    if !is_by_score(run) {
        return;
    }
    let small = run.decision.candidates.iter().filter(|candidate| candidate.route == Route::Local);
    let small = small.reduce(|best, next| if next.score > best.score { next } else { best });
    let (Some(small), Some(large)) = (small, policy.large.first()) else { return };
    let texts = messages.iter().flat_map(|message| message.parts.iter()).map(|Part::Text(text)| text.as_str());
    let look = Look::of(small.score.map(Score::get), texts);
    run.gateway.live.saw(policy, &Pair::new(small.model.as_str(), large.as_str()), look);
}

/// Whether the route came of a score, or of the draft that was judged, and could have been another.
fn is_by_score(run: &Run) -> bool {
    let free = run.admitted.constraints.placement == Placement::Auto && run.admitted.constraints.model.is_none();
    let by_score = matches!(
        run.decision.reason.code,
        ReasonCode::ScoreAboveThreshold
            | ReasonCode::ScoreBelowThreshold
            | ReasonCode::NoCertificate
            | ReasonCode::Breach
            | ReasonCode::NoScore
            | ReasonCode::Explored
            | ReasonCode::DraftAccepted
            | ReasonCode::DraftRejected
            | ReasonCode::Declined
    );
    free && by_score && run.shadow.is_none()
}

/// The run that asks the other side, and what must be drained while it does.
fn second_run(run: &Run, plan: &Plan) -> (Run, mpsc::Receiver<Result<super::ReplyEvent, super::GatewayError>>) {
    let (events, heard) = mpsc::channel(super::EVENT_QUEUE);
    let first = &run.admitted;
    let mut request = first.request.clone();
    request.id = RequestId::fresh();
    request.stream = false;
    request.limits.logprobs = None;
    let admitted = Admitted {
        request,
        messages: Arc::clone(&first.messages),
        snapshot: Arc::clone(&first.snapshot),
        policy: Arc::clone(&first.policy),
        arm: first.arm.clone(),
        constraints: first.constraints.clone(),
        received: Instant::now(),
        received_at: jiff::Timestamp::now(),
        cache_key: None,
        _permit: None,
    };
    let mut decision = run.decision.clone();
    decision.route = if plan.local { Route::Remote } else { Route::Local };
    decision.model = plan.asked.clone();
    decision.escalate_to = None;
    decision.fallbacks = Vec::new();
    decision.reason = Reason::new(ReasonCode::Shadow, format!("compared with the answer of entry {}", plan.served));
    decision.propensity = plan.shadow.share;
    let mut second = Run::new(Arc::clone(&run.gateway), admitted, decision, events);
    second.recording = None;
    second.shadow = Some(ShadowOf { entry: plan.served, policy: first.policy.reference.name.clone() });
    (second, heard)
}

impl Run {
    /// Whether the request may be shown to whoever compares: residency binds a judge as it binds a model that serves.
    fn judge_is_permitted(&self, compare: &Compare) -> bool {
        let Compare::Judge(judge) = compare else { return true };
        let judge = self.admitted.snapshot.catalog().get(judge);
        judge.is_some_and(|judge| self.admitted.constraints.residency.permits(judge.region.as_deref()))
    }

    /// Asks the other side, compares, and books; the run's events end with it.
    async fn compare(mut self, plan: Plan) -> Ended {
        let asked = (Arc::clone(&self.admitted.messages), self.admitted.request.clone());
        let (grades, ended) = self.graded(&plan).await;
        let tried = match (&grades, &plan.candidate) {
            (Some(_), Some(candidate)) => {
                // A judge was asked something else.
                (self.admitted.messages, self.admitted.request) = asked;
                self.tried(&plan, candidate).await.map(|grades| (candidate, grades))
            }
            _ => None,
        };
        let status = match (&ended, &grades) {
            (Ended::Graded | Ended::Undecided, _) => EntryStatus::Ok,
            (Ended::Budget, _) => EntryStatus::Refused,
            (Ended::Failed, _) => EntryStatus::Failed,
        };
        if self.totals.attempts > 0 {
            self.gateway.record(&self, status, None, None);
        }
        if let Some(grades) = grades {
            self.keep(&plan, &grades);
        }
        if let Some((candidate, grades)) = tried {
            self.keep_outcome(GradedOutcome {
                score: None,
                local: false,
                candidate: true,
                ..self.outcome(&plan, candidate, &grades)
            });
        }
        ended
    }

    /// What the candidate's answer is worth; `None` where nobody can say. An answer that failed is worth nothing, so that a
    /// candidate gains nothing by failing where it would be wrong.
    async fn tried(&mut self, plan: &Plan, candidate: &ModelId) -> Option<Grades> {
        let large = std::mem::take(&mut self.by_large);
        match self.ask(candidate).await {
            Ok(Some(answer)) => self.held_against(plan, &answer, &large).await.0,
            // A shutdown hangs up on anybody.
            Err(_) if self.gateway.stopping.is_cancelled() => None,
            Ok(None) | Err(Ended::Failed) => Some(Grades { small: 0.0, large: 1.0, by: OutcomeSource::Metric }),
            Err(_) => None,
        }
    }

    async fn graded(&mut self, plan: &Plan) -> (Option<Grades>, Ended) {
        self.by_large.clone_from(&plan.shown);
        let other = match self.ask(&plan.asked).await {
            Ok(Some(other)) => other,
            // Whoever declines is not as good: the other answer is what the caller would get.
            Ok(None) => return (Some(Grades { small: 0.0, large: 1.0, by: OutcomeSource::Metric }), Ended::Graded),
            Err(ended) => return (None, ended),
        };
        let (small, large) = if plan.local { (&plan.shown, &other) } else { (&other, &plan.shown) };
        self.by_large.clone_from(large);
        self.held_against(plan, small, large).await
    }

    /// A small model's answer held against a large one's.
    async fn held_against(&mut self, plan: &Plan, small: &str, large: &str) -> (Option<Grades>, Ended) {
        let grader = match &plan.shadow.compare {
            Compare::Exact => Grader::Exact,
            Compare::Numeric => Grader::Numeric { tolerance: TOLERANCE },
            Compare::Json => Grader::Json,
            Compare::Judge(judge) => return self.judged(judge, &plan.question, small, large).await,
        };
        match grader.grade(small, large) {
            Ok(grade) => (Some(Grades { small: grade, large: 1.0, by: OutcomeSource::Metric }), Ended::Graded),
            Err(_) => (None, Ended::Undecided),
        }
    }

    /// Two answers before the judge, in both orders; equal ones are a tie without asking.
    async fn judged(&mut self, judge: &ModelId, question: &str, small: &str, large: &str) -> (Option<Grades>, Ended) {
        if Grader::Exact.grade(small, large) == Ok(1.0) {
            return (Some(Grades { small: 0.5, large: 0.5, by: OutcomeSource::Judge }), Ended::Graded);
        }
        let mut replies = Vec::new();
        for prompt in (Comparison { question, small, large }).prompts() {
            let messages = vec![Message::text(Role::User, prompt)];
            self.admitted.messages = messages.clone().into();
            self.admitted.request.messages = messages;
            self.admitted.request.limits =
                Limits { temperature: Some(0.0), max_tokens: Some(JUDGE_TOKENS), ..Limits::default() };
            match self.ask(judge).await {
                Ok(reply) => replies.extend(reply),
                Err(ended) => return (None, ended),
            }
        }
        let verdict = match replies.as_slice() {
            [first, second] => judged([first, second]),
            _ => None,
        };
        match verdict {
            Some((small, large)) => (Some(Grades { small, large, by: OutcomeSource::Judge }), Ended::Graded),
            None => (None, Ended::Undecided),
        }
    }

    /// One call; `None` if the model declined.
    async fn ask(&mut self, model: &ModelId) -> Result<Option<String>, Ended> {
        self.answer.clear();
        self.shown = false;
        self.admitted.request.deadline = Some(Instant::now() + WITHIN);
        match attempt(self, model, 1).await {
            AttemptEnd::Complete(_) => Ok(Some(std::mem::take(&mut self.answer))),
            AttemptEnd::Declined => Ok(None),
            // A small model that can't hold the prompt is not as good either.
            AttemptEnd::Failed(BackendError::PromptTooLong(_)) if self.route_of(model) == Route::Local => Ok(None),
            AttemptEnd::BudgetExhausted(_) => Err(Ended::Budget),
            _ => Err(Ended::Failed),
        }
    }

    fn outcome(&self, plan: &Plan, small: &ModelId, grades: &Grades) -> GradedOutcome {
        GradedOutcome {
            entry: plan.served,
            tenant: self.admitted.request.tenant.clone(),
            at: jiff::Timestamp::now(),
            policy: (self.admitted.policy.reference.name.clone(), self.admitted.policy.reference.hash.clone()),
            small: small.clone(),
            large: plan.large.clone(),
            small_quality: grades.small,
            large_quality: grades.large,
            graded_by: grades.by,
            sampling_probability: plan.shadow.share,
            score: plan.score.clone(),
            local: plan.local,
            candidate: false,
        }
    }

    fn keep_outcome(&self, outcome: GradedOutcome) {
        if let Err(error) = self.gateway.ledger.outcome(&outcome) {
            tracing::error!(%error, entry = %outcome.entry, "an outcome could not be journalled");
        }
    }

    fn keep(&self, plan: &Plan, grades: &Grades) {
        self.keep_outcome(self.outcome(plan, &plan.small, grades));
        let request = GradedRequest {
            pair: Pair::new(plan.small.as_str(), plan.large.as_str()),
            grades: Graded { small: grades.small, large: grades.large, local: plan.local },
            score: plan.score.as_ref().map(|(score, _)| *score),
        };
        let observed = Observed {
            tenant: self.admitted.request.tenant.as_str(),
            pair: &request.pair,
            prompt: &plan.question,
            small_quality: grades.small,
            large_quality: grades.large,
        };
        self.gateway.learn_at_once((&self.admitted.snapshot, &self.admitted.policy), &plan.small, &observed);
        self.gateway.live.graded(&self.admitted.policy, &request);
    }
}
