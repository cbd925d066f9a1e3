//! A recorded request as a line of JSON, and the checks that make it a row that can't be wrong.

use super::{Action, Logged};
use crate::domain::{
    Arm, Candidate, Cost, CostBasis, ExcludedBy, Labels, Limits, Message, ModelId, NanoUsd, Placement, Predicted,
    Request, RequestId, Residency, Role, Route, Score, TenantId,
};
use crate::policy::is_decided_anew;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A line of a log. Money in nano-USD, times in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// Names the request; unique.
    pub id: String,
    /// When it came, since 1970-01-01 UTC.
    pub at_ms: i64,
    /// Whose it was.
    pub tenant: String,
    /// Its conversation; may be empty.
    #[serde(default)]
    pub conversation: String,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// The policy that ran an experiment on it; empty if none did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub experiment: String,
    /// Its side of the experiment: `control` or `candidate`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arm: String,
    /// The policy that decided, and its content hash.
    #[serde(default)]
    pub policy: String,
    /// See `policy`.
    #[serde(default)]
    pub policy_hash: String,
    /// Version of the scorer; empty where there was no score.
    #[serde(default)]
    pub scorer: String,
    /// `none`, `features` or `text`.
    pub level: String,
    /// The model decided for first.
    pub model: String,
    /// `local`, `remote`, `cascade` (a local draft that is judged) or `cache`.
    pub route: String,
    /// Whether a local draft that is declined goes to a large model.
    #[serde(default)]
    pub escalates: bool,
    /// Probability with which the policy chose `model`; above 0, at most 1.
    pub propensity: Option<f64>,
    /// Probabilities of the other models that it could have chosen; with `propensity` they sum to at most 1.
    #[serde(default)]
    pub alternatives: BTreeMap<String, f64>,
    /// All models considered.
    #[serde(default)]
    pub candidates: Vec<LogCandidate>,
    /// What the client asked for.
    #[serde(default)]
    pub placement: String,
    /// What its key insisted on.
    #[serde(default)]
    pub placement_floor: String,
    /// Regions that it might be served in; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
    /// Bytes of the messages.
    #[serde(default)]
    pub prompt_bytes: u64,
    /// Messages.
    #[serde(default)]
    pub turns: u32,
    /// The client's limit on the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// The messages; at level `text`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<LogMessage>,
    /// What it cost, all attempts.
    pub cost_nano_usd: i64,
    /// How long it took.
    pub latency_ms: f64,
    /// How it ended.
    #[serde(default)]
    pub status: String,
    /// Whether a large model answered in the end, after an escalation for one.
    #[serde(default)]
    pub ended_remote: bool,
    /// Quality of the answer, 0 to 1, if it was graded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<f64>,
    /// Probability with which it was graded; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_probability: Option<f64>,
}

/// A model that was considered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogCandidate {
    /// Which.
    pub model: String,
    /// `local` or `remote`.
    pub route: String,
    /// Its score, if it has one.
    pub score: Option<f64>,
    /// What it was expected to cost.
    pub cost_nano_usd: i64,
    /// Why it was out, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded_by: Option<String>,
    /// Predicted milliseconds to the first byte, if there was a prediction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// The same to the end of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
}

/// A message.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub text: String,
}
fn milliseconds(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default()
}

type Wrong = (&'static str, String);

impl LogLine {
    pub(super) fn check(self) -> Result<Logged, Wrong> {
        let propensity = self.propensity.ok_or_else(|| {
            let what = "is missing; write the probability with which the model was chosen, 1 if for certain";
            ("propensity", what.to_owned())
        })?;
        if !(propensity > 0.0 && propensity <= 1.0) {
            let what = format!("{propensity} is not above 0 and at most 1: what was chosen had some probability");
            return Err(("propensity", what));
        }
        let others: f64 = self.alternatives.values().sum();
        if self.alternatives.values().any(|p| p.is_nan() || *p <= 0.0) || propensity + others > 1.0 + 1e-6 {
            let what = format!("probabilities above 0 that sum with `propensity` to at most 1, not {others}");
            return Err(("alternatives", what));
        }
        if !(self.latency_ms.is_finite() && self.latency_ms >= 0.0) {
            return Err((
                "latency_ms",
                format!("{} is no time; the clock went back? write 0 or more", self.latency_ms),
            ));
        }
        if self.cost_nano_usd < 0 {
            return Err(("cost_nano_usd", format!("{} is below 0", self.cost_nano_usd)));
        }
        let probability = self.sampling_probability.unwrap_or(1.0);
        if !(probability > 0.0 && probability <= 1.0) {
            return Err(("sampling_probability", format!("{probability} is not above 0 and at most 1")));
        }
        if let Some(quality) = self.quality
            && !(0.0..=1.0).contains(&quality)
        {
            return Err(("quality", format!("{quality} is not within 0 and 1")));
        }
        let route = Route::parse(&self.route)
            .ok_or_else(|| ("route", format!("`{}` is none of local, remote, cascade, cache", self.route)))?;
        let candidates = self.candidates.iter().map(LogCandidate::check).collect::<Result<Vec<_>, _>>()?;
        let (request, has_text) = self.request()?;
        let local_model = |model: &str| {
            let known = candidates.iter().find(|candidate| candidate.model.as_str() == model);
            known.map_or(matches!(route, Route::Local | Route::Cascade) && model == self.model, |candidate| {
                candidate.route == Route::Local
            })
        };
        let action = |model: &str| {
            let local = local_model(model);
            let judged = local && route == Route::Cascade && model == self.model;
            Action { model: ModelId::new(model), escalates: self.escalates && local, judged }
        };
        let chosen = (route != Route::Cache).then(|| action(&self.model));
        let alternatives = self.alternatives.iter().map(|(model, p)| (action(model), *p));
        let propensities = alternatives.chain(chosen.clone().map(|chosen| (chosen, propensity))).collect();
        let cluster = if self.conversation.is_empty() { &self.id } else { &self.conversation };
        Ok(Logged {
            arm: self.arm()?,
            policy: self.policy,
            cluster: cluster_of(&self.tenant, cluster),
            at_ms: self.at_ms,
            request,
            has_text,
            went_remote: self.ended_remote || (route == Route::Remote && !local_model(&self.model)),
            local: local_model(&self.model),
            action: chosen,
            propensities,
            candidates,
            scorer: self.scorer,
            cost_usd: NanoUsd::new(self.cost_nano_usd).as_usd(),
            latency_ms: self.latency_ms,
            quality: self.quality.map(|quality| (quality, probability)),
            suffices: None,
            since_remote_ms: None,
            id: self.id,
        })
    }

    fn arm(&self) -> Result<Option<Arm>, Wrong> {
        let candidate = match (self.experiment.is_empty(), self.arm.as_str()) {
            (true, "") => return Ok(None),
            (false, "candidate") => true,
            (false, "control") => false,
            (true, _) => return Err(("experiment", "is missing beside `arm`".to_owned())),
            (false, other) => return Err(("arm", format!("`{other}` is neither control nor candidate"))),
        };
        Ok(Some(Arm { experiment: self.experiment.clone(), candidate }))
    }

    /// The request as far as it was recorded; stand-ins for its messages where they were not.
    fn request(&self) -> Result<(Option<Request>, bool), Wrong> {
        let level = match self.level.as_str() {
            "none" => return Ok((None, false)),
            "features" | "text" => self.level.as_str(),
            other => return Err(("level", format!("`{other}` is none of none, features, text"))),
        };
        let placement = |field: &'static str, word: &str| match word {
            "" => Ok(Placement::Auto),
            word => Placement::parse(word).ok_or_else(|| (field, format!("`{word}` is no placement"))),
        };
        if level == "text" && self.messages.is_empty() {
            return Err(("messages", "is empty, but the level is text; write them, or `features`".to_owned()));
        }
        let messages = match level {
            "text" => self.messages.iter().map(LogMessage::check).collect::<Result<Vec<_>, _>>()?,
            _ => stand_ins(self.prompt_bytes, self.turns),
        };
        let request = Request {
            id: RequestId::parse(&self.id).unwrap_or_else(RequestId::fresh),
            tenant: TenantId::new(self.tenant.as_str()),
            key_name: String::new(),
            messages,
            limits: Limits { max_tokens: self.max_tokens, ..Limits::default() },
            placement: placement("placement", &self.placement)?,
            placement_floor: placement("placement_floor", &self.placement_floor)?,
            residency: self
                .regions
                .clone()
                .map_or_else(Residency::anywhere, |regions| Residency::only("the request", regions)),
            policy: None,
            labels: self.labels.clone(),
            conversation_id: self.conversation.clone(),
            end_user_id: String::new(),
            deadline: None,
            stream: false,
        };
        Ok((Some(request), level == "text"))
    }
}

/// Messages of the right number and size, for rules that read only those.
fn stand_ins(bytes: u64, turns: u32) -> Vec<Message> {
    let size = usize::try_from(bytes).unwrap_or(0).min(16 << 20);
    let rest = (1..turns.clamp(1, 10_000)).map(|_| Message::text(Role::Assistant, ""));
    rest.chain([Message::text(Role::User, " ".repeat(size))]).collect()
}

fn cluster_of(tenant: &str, name: &str) -> u64 {
    let hash = blake3::hash(format!("{tenant}\0{name}").as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl LogCandidate {
    fn check(&self) -> Result<Candidate, Wrong> {
        let route = Route::parse(&self.route).filter(|route| matches!(route, Route::Local | Route::Remote));
        let route = route.ok_or_else(|| ("candidates", format!("`{}` is neither local nor remote", self.route)))?;
        let score = self.score.map(Score::new).transpose().map_err(|error| ("candidates", error.to_string()))?;
        // What constraints excluded is decided anew; what could not serve then could not now.
        let own = |why: &ExcludedBy| !is_decided_anew(why);
        Ok(Candidate {
            score,
            expected_cost: Cost { amount: NanoUsd::new(self.cost_nano_usd), basis: CostBasis::Estimated },
            predicted: self.first_byte_ms.zip(self.total_ms).map(|(first_byte, total)| Predicted {
                first_byte: milliseconds(first_byte),
                total: milliseconds(total),
            }),
            excluded_by: self.excluded_by.clone().map(ExcludedBy).filter(own),
            ..Candidate::new(ModelId::new(self.model.as_str()), route)
        })
    }
}

impl LogMessage {
    fn check(&self) -> Result<Message, Wrong> {
        let roles = [Role::System, Role::User, Role::Assistant, Role::Tool];
        let role = roles.into_iter().find(|role| role.as_str() == self.role);
        let role = role.ok_or_else(|| ("messages", format!("`{}` is no role", self.role)))?;
        Ok(Message::text(role, self.text.as_str()))
    }
}
