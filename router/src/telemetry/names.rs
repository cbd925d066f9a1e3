//! Every metric and attribute name in one table: OpenTelemetry's GenAI conventions are at Development status and will move.

/// Time of a remote model's whole answer, seconds (GenAI client metric).
pub const CLIENT_DURATION: &str = "gen_ai.client.operation.duration";
/// Tokens of an attempt, by type (GenAI client metric).
pub const CLIENT_TOKENS: &str = "gen_ai.client.token.usage";
/// Time to a remote model's first chunk, seconds (GenAI client metric).
pub const CLIENT_FIRST_CHUNK: &str = "gen_ai.client.operation.time_to_first_chunk";
/// Time of the local model's whole answer, seconds (GenAI server metric).
pub const SERVER_DURATION: &str = "gen_ai.server.request.duration";
/// Time to the local model's first token, seconds (GenAI server metric).
pub const SERVER_FIRST_TOKEN: &str = "gen_ai.server.time_to_first_token";
/// Time of a whole request, seconds.
pub const REQUEST_DURATION: &str = "sluice.request.duration";
/// Requests.
pub const REQUESTS: &str = "sluice.requests";
/// Money spent, nano-USD: integers add up exactly.
pub const COST: &str = "sluice.cost.nano_usd";
/// All-remote baseline minus cost, nano-USD; an estimate; may fall.
pub const SAVED: &str = "sluice.saved.nano_usd";
/// Processor time of local models, seconds.
pub const CPU: &str = "sluice.local.cpu";
/// Time from arrival to decision, seconds.
pub const DECISION_DURATION: &str = "sluice.decision.duration";
/// Scores of small models.
pub const SCORE: &str = "sluice.score";
/// Attempts by how they ended.
pub const ATTEMPTS: &str = "sluice.attempts";
/// Journal bytes that the store has not taken.
pub const LEDGER_BACKLOG: &str = "sluice.ledger.backlog";
/// 1 while a local model can serve, else 0.
pub const LOCAL_UP: &str = "sluice.local.up";
/// Requests in the local model's queue.
pub const LOCAL_WAITING: &str = "sluice.local.waiting";
/// Requests that the local model decodes.
pub const LOCAL_RUNNING: &str = "sluice.local.running";
/// 1 while a remote model can be called, 0 while its breaker is open.
pub const REMOTE_UP: &str = "sluice.remote.up";
/// 1 if the last reload of policies failed.
pub const POLICY_RELOAD_FAILED: &str = "sluice.policy.reload_failed";
/// 1 if a policy has a usable threshold, else 0.
pub const POLICY_CERTIFIED: &str = "sluice.policy.certified";
/// Rules that failed to evaluate.
pub const RULE_ERRORS: &str = "sluice.policy.rule_errors";
/// Share of a budget's limit that is spent or held.
pub const BUDGET_USED: &str = "sluice.budget.used";

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
/// Bucket bounds of scores.
pub const TENTHS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
