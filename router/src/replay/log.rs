//! Recorded requests, one JSON object a line, and the checks that make them rows that can't be wrong. The ledger's entries
//! are brought into the same shape, so that an exported log replays as the ledger does.

use super::ReplayError;
use crate::domain::{
    Candidate, Cost, CostBasis, Decision, ExcludedBy, Labels, Limits, Message, ModelId, NanoUsd, Placement, Predicted,
    Request, RequestId, Residency, Role, Route, Score, TenantId,
};
use crate::evidence::outcome::{MOST_PROBLEMS, Outcome, RowProblem};
use crate::ledger::Story;
use crate::policy::is_decided_anew;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
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

/// What was chosen: a model, and for a local one whether a declined draft goes on to a large one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Action {
    /// The model.
    pub model: ModelId,
    /// Always false for remote ones.
    pub escalates: bool,
    /// Whether a judge looks at the draft before anything of it is shown.
    pub judged: bool,
}

/// A recorded request, checked.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Its id as it was written.
    pub id: String,
    /// When it came.
    pub at_ms: i64,
    /// Rows of one conversation share it.
    pub cluster: u64,
    /// What can be decided again; `None` at level `none`.
    pub request: Option<Request>,
    /// Whether the messages are its own, not stand-ins of their size.
    pub has_text: bool,
    /// The choice; `None` if the cache answered.
    pub action: Option<Action>,
    /// Whether the model chosen is local.
    pub local: bool,
    /// Whether a large model answered in the end.
    pub went_remote: bool,
    /// The logger's probability of each choice that it could make, the one made included.
    pub propensities: BTreeMap<Action, f64>,
    /// Models considered, without what constraints made of them.
    pub candidates: Vec<Candidate>,
    /// Version of the scorer.
    pub scorer: String,
    /// Cost in USD.
    pub cost_usd: f64,
    /// Latency in milliseconds.
    pub latency_ms: f64,
    /// Quality and the probability of its being graded.
    pub quality: Option<(f64, f64)>,
    /// Whether the small model sufficed, where outcomes tell.
    pub suffices: Option<bool>,
    /// How long before it the conversation was last served remotely, in ms, as it was logged.
    pub since_remote_ms: Option<i64>,
}

impl Logged {
    /// Whether a conversation that stays remote for `time_to_live` after it went there would be remote at this row.
    pub fn is_sticky(&self, time_to_live: Option<Duration>) -> bool {
        let since = self.since_remote_ms.and_then(|since| u64::try_from(since).ok());
        time_to_live.zip(since).is_some_and(|(time_to_live, since)| Duration::from_millis(since) <= time_to_live)
    }
}

/// Rows and what is odd about them without being wrong.
#[derive(Debug, Default)]
pub struct Log {
    /// The rows, by time.
    pub rows: Vec<Logged>,
    /// What to know.
    pub warnings: Vec<String>,
}

impl Log {
    /// Reads lines; `file` is how they are named in problems.
    ///
    /// # Errors
    /// Bad rows by file, line and field, or no rows.
    pub fn parse(file: &str, text: &str) -> Result<Self, ReplayError> {
        let torn = (!text.ends_with('\n')).then(|| text.lines().count());
        let mut lines = Vec::new();
        let mut problems = Vec::new();
        for (place, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match serde_json::from_str::<LogLine>(line) {
                Ok(row) => lines.push((place + 1, row)),
                Err(error) => {
                    let cut = if torn == Some(place + 1) { "the file ends within this row: " } else { "" };
                    let mend = if cut.is_empty() {
                        "write JSON; NaN and infinity have no word in it"
                    } else {
                        "remove the row"
                    };
                    problems.push(problem(file, place + 1, "row", format!("{cut}{error}; {mend}")));
                }
            }
        }
        Self::check(file, lines, problems)
    }

    /// Takes entries of the ledger.
    ///
    /// # Errors
    /// As [`Log::parse`]; a line is then an entry's place.
    pub fn from_stories(file: &str, stories: &[Story]) -> Result<Self, ReplayError> {
        let lines = stories.iter().filter_map(line_of).enumerate().map(|(place, line)| (place + 1, line));
        Self::check(file, lines.collect(), Vec::new())
    }

    fn check(file: &str, lines: Vec<(usize, LogLine)>, mut problems: Vec<RowProblem>) -> Result<Self, ReplayError> {
        let mut log = Self::default();
        let mut seen = HashSet::new();
        let (mut latest, mut back) = (i64::MIN, 0);
        for (place, line) in lines {
            if !seen.insert(line.id.clone()) {
                let what = format!("{:?} is there twice; ids are unique: remove one", line.id);
                problems.push(problem(file, place, "id", what));
            }
            back += usize::from(line.at_ms < latest);
            latest = latest.max(line.at_ms);
            match line.check() {
                Ok(row) => log.rows.push(row),
                Err((field, what)) => problems.push(problem(file, place, field, what)),
            }
        }
        if !problems.is_empty() {
            problems.sort_by_key(|problem| problem.line);
            problems.truncate(MOST_PROBLEMS);
            return Err(ReplayError::Rows(problems));
        }
        if log.rows.is_empty() {
            return Err(ReplayError::Empty(file.to_owned()));
        }
        if back > 0 {
            let what = "are older than a row before them; they were put in order, and nothing estimated depends on it";
            log.warnings.push(format!("{back} rows {what}"));
        }
        log.rows.sort_by_key(|row| row.at_ms);
        log.find_remote_conversations();
        Ok(log)
    }

    /// Notes for each row how long before it its conversation was last served remotely.
    fn find_remote_conversations(&mut self) {
        let mut last: HashMap<u64, i64> = HashMap::new();
        for row in &mut self.rows {
            row.since_remote_ms = last.get(&row.cluster).map(|at_ms| row.at_ms - at_ms);
            if row.went_remote {
                last.insert(row.cluster, row.at_ms);
            }
        }
    }

    /// Takes qualities from outcomes of the same ids: the small model's where it was chosen, else the large one's. Returns
    /// how many rows found one.
    pub fn join(&mut self, outcomes: &[Outcome]) -> usize {
        let by_id: HashMap<&str, &Outcome> = outcomes.iter().map(|row| (row.id.as_str(), row)).collect();
        let mut joined = 0;
        for row in &mut self.rows {
            let Some(outcome) = by_id.get(row.id.as_str()) else { continue };
            let quality = if row.local { outcome.small_quality } else { outcome.large_quality };
            row.quality = Some((quality, outcome.sampling_probability));
            row.suffices = Some(outcome.small_suffices());
            joined += 1;
        }
        joined
    }
}

fn problem(file: &str, line: usize, field: &'static str, problem: String) -> RowProblem {
    RowProblem { file: file.to_owned(), line, field, problem }
}

/// The line of an entry; `None` where nothing was decided or nothing complete came of it, and of shadow runs: nobody asked
/// for those.
pub fn line_of(story: &Story) -> Option<LogLine> {
    let entry = &story.entry;
    if entry.shadow_of.is_some() {
        return None;
    }
    let decision = entry.decision.as_ref()?;
    let recording = entry.recording.as_ref();
    let first = recording.map(|recording| &recording.first);
    let cached = decision.route == Route::Cache;
    let model = first.map_or(&decision.model, |first| &first.model);
    let route = if cached { Route::Cache } else { first.map_or(decision.route, |first| first.route) };
    let open = |route: Route| decision.candidates.iter().filter(move |c| c.route == route && c.excluded_by.is_none());
    let other = match route {
        Route::Local | Route::Cascade => open(Route::Remote).next(),
        _ => open(Route::Local).reduce(|best, next| if next.score > best.score { next } else { best }),
    };
    let rest = 1.0 - decision.propensity;
    let alternatives = other.filter(|_| rest > 1e-9).map(|other| (other.model.to_string(), rest));
    let candidate = |candidate: &Candidate| LogCandidate {
        model: candidate.model.to_string(),
        route: candidate.route.as_str().to_owned(),
        score: candidate.score.map(Score::get),
        cost_nano_usd: candidate.expected_cost.amount.nanos(),
        excluded_by: candidate.excluded_by.as_ref().map(ToString::to_string),
        first_byte_ms: candidate.predicted.map(|predicted| predicted.first_byte.as_secs_f64() * 1e3),
        total_ms: candidate.predicted.map(|predicted| predicted.total.as_secs_f64() * 1e3),
    };
    // Several may judge: what was measured counts before a judge, a judge before a user.
    let quality = story.feedback.iter().min_by_key(|feedback| match feedback.source {
        crate::ledger::FeedbackSource::Metric => 0,
        crate::ledger::FeedbackSource::Judge => 1,
        crate::ledger::FeedbackSource::User => 2,
    });
    let message = |message: &Message| LogMessage { role: message.role.as_str().to_owned(), text: message.content() };
    Some(LogLine {
        id: entry.id.to_string(),
        at_ms: entry.received_at.as_millisecond(),
        tenant: entry.tenant.to_string(),
        conversation: entry.conversation_id.clone(),
        labels: entry.labels.clone(),
        policy: decision.policy.name.clone(),
        policy_hash: decision.policy.hash.clone(),
        scorer: decision.scorer_version.clone(),
        level: recording.map_or("none", |recording| recording.level.as_str()).to_owned(),
        model: model.to_string(),
        route: route.as_str().to_owned(),
        escalates: first.is_some_and(|first| first.escalates),
        propensity: Some(decision.propensity),
        alternatives: alternatives.into_iter().collect(),
        candidates: decision.candidates.iter().map(candidate).collect(),
        placement: recording.map(|recording| recording.placement.as_str().to_owned()).unwrap_or_default(),
        placement_floor: recording.map(|recording| recording.placement_floor.as_str().to_owned()).unwrap_or_default(),
        regions: recording.and_then(|r| Some(r.residency.regions()?.iter().cloned().collect())),
        prompt_bytes: recording.map_or(0, |recording| recording.prompt_bytes),
        turns: recording.map_or(0, |recording| recording.turns),
        max_tokens: recording.and_then(|recording| recording.max_tokens),
        messages: recording.map(|recording| recording.messages.iter().map(message).collect()).unwrap_or_default(),
        cost_nano_usd: entry.cost.amount.nanos(),
        latency_ms: entry.latency.as_secs_f64() * 1e3,
        status: entry.status.as_str().to_owned(),
        ended_remote: ended_remote(decision),
        quality: quality.map(|feedback| feedback.value),
        sampling_probability: None,
    })
}

/// Whether the model of the decision that held at the end is a remote one.
fn ended_remote(decision: &Decision) -> bool {
    let model = decision.candidates.iter().find(|candidate| candidate.model == decision.model);
    decision.route != Route::Cache && model.is_some_and(|model| model.route == Route::Remote)
}

fn milliseconds(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default()
}

type Wrong = (&'static str, String);

impl LogLine {
    fn check(self) -> Result<Logged, Wrong> {
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

#[cfg(test)]
mod tests;
