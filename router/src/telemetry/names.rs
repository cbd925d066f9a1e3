//! Every metric, attribute and span name in one table: OpenTelemetry's GenAI conventions are at Development status and
//! will move. What is the project's own goes under `sluice.`.

/// A metric: its name, its unit in UCUM (empty where it counts things), what it tells.
pub struct Metric {
    /// Its OpenTelemetry name; Prometheus shows it with `_` for `.`, the unit and, for counters, `_total` behind.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it tells.
    pub what: &'static str,
}

/// Time of a remote model's whole answer.
pub const CLIENT_DURATION: Metric =
    Metric { name: "gen_ai.client.operation.duration", unit: "s", what: "Time of a remote model's whole answer" };
/// Tokens of an attempt, by type.
pub const CLIENT_TOKENS: Metric =
    Metric { name: "gen_ai.client.token.usage", unit: "{token}", what: "Tokens of an attempt, by type" };
/// Time to a remote model's first chunk.
pub const CLIENT_FIRST_CHUNK: Metric = Metric {
    name: "gen_ai.client.operation.time_to_first_chunk",
    unit: "s",
    what: "Time to a remote model's first chunk",
};
/// Mean time of a remote model per chunk after the first.
pub const CLIENT_PER_CHUNK: Metric = Metric {
    name: "gen_ai.client.operation.time_per_output_chunk",
    unit: "s",
    what: "Mean time of a remote model per chunk after the first",
};
/// Time of a local model's whole answer.
pub const SERVER_DURATION: Metric =
    Metric { name: "gen_ai.server.request.duration", unit: "s", what: "Time of a local model's whole answer" };
/// Time to a local model's first token.
pub const SERVER_FIRST_TOKEN: Metric =
    Metric { name: "gen_ai.server.time_to_first_token", unit: "s", what: "Time to a local model's first token" };
/// Mean time of a local model per token after the first.
pub const SERVER_PER_TOKEN: Metric = Metric {
    name: "gen_ai.server.time_per_output_token",
    unit: "s",
    what: "Time of a local model per token after the first",
};
/// Requests by tenant, route, policy, reason and status.
pub const REQUESTS: Metric =
    Metric { name: "sluice.requests", unit: "", what: "Requests by tenant, route, policy, reason and status" };
/// Time of a whole request.
pub const REQUEST_DURATION: Metric =
    Metric { name: "sluice.request.duration", unit: "s", what: "Time of a whole request" };
/// Money spent, in nano-USD: integers add up exactly.
pub const COST: Metric =
    Metric { name: "sluice.cost.nano_usd", unit: "", what: "Money spent, in nano-USD: integers add up exactly" };
/// What the first large model would have cost, in nano-USD: an estimate.
pub const BASELINE: Metric = Metric {
    name: "sluice.baseline.nano_usd",
    unit: "",
    what: "What the first large model would have cost, in nano-USD: an estimate",
};
/// Baseline minus cost, in nano-USD: an estimate; may fall.
pub const SAVED: Metric =
    Metric { name: "sluice.saved.nano_usd", unit: "", what: "Baseline minus cost, in nano-USD: an estimate; may fall" };
/// Processor time of local models.
pub const CPU: Metric = Metric { name: "sluice.local.cpu", unit: "s", what: "Processor time of local models" };
/// Time from arrival to decision.
pub const DECISION_DURATION: Metric =
    Metric { name: "sluice.decision.duration", unit: "s", what: "Time from arrival to decision" };
/// Calibrated probability that a small model's answer is as good.
pub const SCORE: Metric =
    Metric { name: "sluice.score", unit: "", what: "Calibrated probability that a small model's answer is as good" };
/// Calls to backends by model and how they ended.
pub const ATTEMPTS: Metric =
    Metric { name: "sluice.attempts", unit: "", what: "Calls to backends by model and how they ended" };
/// Journal bytes that the store has not taken.
pub const LEDGER_BACKLOG: Metric =
    Metric { name: "sluice.ledger.backlog", unit: "By", what: "Journal bytes that the store has not taken" };
/// 1 while a local model can serve, else 0.
pub const LOCAL_UP: Metric =
    Metric { name: "sluice.local.up", unit: "", what: "1 while a local model can serve, else 0" };
/// Requests in a local model's queue.
pub const LOCAL_WAITING: Metric =
    Metric { name: "sluice.local.waiting", unit: "", what: "Requests in a local model's queue" };
/// Requests that a local model decodes.
pub const LOCAL_RUNNING: Metric =
    Metric { name: "sluice.local.running", unit: "", what: "Requests that a local model decodes" };
/// 1 while a remote model can be called, 0 while its breaker is open.
pub const REMOTE_UP: Metric = Metric {
    name: "sluice.remote.up",
    unit: "",
    what: "1 while a remote model can be called, 0 while its breaker is open",
};
/// 1 if the last reload of policies failed.
pub const POLICY_RELOAD_FAILED: Metric =
    Metric { name: "sluice.policy.reload_failed", unit: "", what: "1 if the last reload of policies failed" };
/// 1 if a policy has a usable threshold, else 0.
pub const POLICY_CERTIFIED: Metric =
    Metric { name: "sluice.policy.certified", unit: "", what: "1 if a policy has a usable threshold, else 0" };
/// Evaluation errors of a rule since its policy was loaded.
pub const RULE_ERRORS: Metric = Metric {
    name: "sluice.policy.rule_errors",
    unit: "",
    what: "Evaluation errors of a rule since its policy was loaded",
};
/// Share of a budget's limit that is spent or held.
pub const BUDGET_USED: Metric =
    Metric { name: "sluice.budget.used", unit: "", what: "Share of a budget's limit that is spent or held" };

/// Shadow runs by policy, side that was asked, and what became of them.
pub const SHADOW_RUNS: Metric = Metric {
    name: "sluice.shadow.runs",
    unit: "",
    what: "Shadow runs by policy, side that was asked, and what became of them",
};

/// Second opinions on drafts, by policy and what was said.
pub const SECOND_OPINIONS: Metric = Metric {
    name: "sluice.draft.second_opinions",
    unit: "",
    what: "Second opinions on drafts, by policy and what was said",
};

/// Requests that shadow runs graded since a policy's certificate is in force.
pub const LIVE_GRADED: Metric = Metric {
    name: "sluice.live.graded",
    unit: "",
    what: "Requests that shadow runs graded since a policy's certificate is in force",
};
/// Share of the large model's quality: promised, kept, and the ends of the interval that holds at all times.
pub const LIVE_QUALITY: Metric = Metric {
    name: "sluice.live.quality_share",
    unit: "",
    what: "Share of the large model's quality: promised, kept, and the ends of the interval that holds at all times",
};
/// Debiased calibration error of scores against the latest graded requests.
pub const LIVE_CALIBRATION: Metric = Metric {
    name: "sluice.live.calibration_error",
    unit: "",
    what: "Debiased calibration error of scores against the latest graded requests",
};
/// Stability index of the latest requests against those that a certificate was solved on.
pub const LIVE_DRIFT: Metric = Metric {
    name: "sluice.live.drift",
    unit: "",
    what: "Stability index of the latest requests against those that a certificate was solved on",
};
/// 1 while live checks say that a policy's promise is broken or its requests have changed.
pub const LIVE_BREACH: Metric = Metric {
    name: "sluice.live.breach",
    unit: "",
    what: "1 while live checks say that a policy's promise is broken or its requests have changed",
};

/// Outcomes that a policy's learning took in, by what they were used for.
pub const LEARN_OUTCOMES: Metric = Metric {
    name: "sluice.learn.outcomes",
    unit: "",
    what: "Outcomes that a policy's learning took in, by what they were used for",
};
/// Scorers that were fitted and tested while a policy served.
pub const LEARN_SCORERS: Metric = Metric {
    name: "sluice.learn.scorers",
    unit: "",
    what: "Scorers that were fitted and tested while a policy served",
};
/// Share of the evidence that the learnt certificate in force lets stay local; 0 without one.
pub const LEARN_LOCAL: Metric = Metric {
    name: "sluice.learn.local_share",
    unit: "",
    what: "Share of the evidence that the learnt certificate in force lets stay local; 0 without one",
};

/// All of them: a test sees that each one is exposed.
#[cfg(test)]
pub const ALL: [&Metric; 35] = [
    &CLIENT_DURATION,
    &CLIENT_TOKENS,
    &CLIENT_FIRST_CHUNK,
    &CLIENT_PER_CHUNK,
    &SERVER_DURATION,
    &SERVER_FIRST_TOKEN,
    &SERVER_PER_TOKEN,
    &REQUESTS,
    &REQUEST_DURATION,
    &COST,
    &BASELINE,
    &SAVED,
    &CPU,
    &DECISION_DURATION,
    &SCORE,
    &ATTEMPTS,
    &LEDGER_BACKLOG,
    &LOCAL_UP,
    &LOCAL_WAITING,
    &LOCAL_RUNNING,
    &REMOTE_UP,
    &POLICY_RELOAD_FAILED,
    &POLICY_CERTIFIED,
    &RULE_ERRORS,
    &BUDGET_USED,
    &SHADOW_RUNS,
    &SECOND_OPINIONS,
    &LIVE_GRADED,
    &LIVE_QUALITY,
    &LIVE_CALIBRATION,
    &LIVE_DRIFT,
    &LIVE_BREACH,
    &LEARN_OUTCOMES,
    &LEARN_SCORERS,
    &LEARN_LOCAL,
];

/// Attribute names of the GenAI conventions.
pub mod attribute {
    /// What was asked of the model; always `chat` here.
    pub const OPERATION: &str = "gen_ai.operation.name";
    /// Who runs the model.
    pub const PROVIDER: &str = "gen_ai.provider.name";
    /// The model asked for.
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    /// The model that says it answered.
    pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
    /// `input` or `output`.
    pub const TOKEN_TYPE: &str = "gen_ai.token.type";
    /// Why it failed.
    pub const ERROR: &str = "error.type";
}

/// The one operation.
pub const CHAT: &str = "chat";

/// Bucket bounds of durations, seconds: those of the GenAI conventions with three finer ones below.
pub const SECONDS: [f64; 17] =
    [0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Bucket bounds of decision times, seconds.
pub const DECISION_SECONDS: [f64; 10] =
    [0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01];
/// Bucket bounds of token counts.
pub const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// Bucket bounds of the time of one token, seconds.
pub const TOKEN_SECONDS: [f64; 13] =
    [0.000_1, 0.000_2, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64];
/// Bucket bounds of scores.
pub const TENTHS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
