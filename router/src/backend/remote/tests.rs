//! Against the simulated model, over real sockets.

use super::*;
use crate::backend::UsageProbe;
use crate::domain::{AttemptId, FinishReason, Limits, Message, Role};
use crate::simulate::{Ending, Fault, Prices, Simulator, SimulatorConfig, UsageForm};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "The capital of France is Paris.";
const KEY: &str = "sk-test-key";

struct World {
    simulator: Simulator,
    stop: CancellationToken,
}

impl World {
    async fn new() -> Self {
        let stop = CancellationToken::new();
        let config = SimulatorConfig {
            answers: [(QUESTION.to_owned(), ANSWER.to_owned())].into(),
            key: Some(SecretString::from(KEY)),
            ..SimulatorConfig::default()
        };
        Self { simulator: Simulator::start(config, &TaskTracker::new(), stop.clone()).await.unwrap(), stop }
    }

    fn config(&self, stream: bool) -> RemoteConfig {
        let mut config = RemoteConfig::new(ModelId::new("large"), "simulated-large", self.simulator.base_url());
        config.key = Some(SecretString::from(KEY));
        config.stream = stream;
        config
    }

    /// One attempt that meets `faults`.
    async fn attempt(&self, config: RemoteConfig, faults: Vec<Fault>) -> Outcome {
        self.simulator.script(faults);
        attempt(&RemoteBackend::new(config).unwrap(), call()).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn call() -> BackendCall {
    BackendCall {
        attempt: AttemptId::fresh(),
        tenant: crate::domain::TenantId::new("t"),
        messages: Arc::from([Message::text(Role::User, QUESTION)]),
        limits: Limits::default(),
        max_output_tokens: 64,
        deadline: None,
        end_user_id: String::new(),
        probe: UsageProbe::default(),
    }
}

#[derive(Debug)]
struct Outcome {
    text: String,
    end: Result<crate::domain::Finish, BackendError>,
    probe: UsageProbe,
    attempt: AttemptId,
}

impl Outcome {
    fn code(&self) -> &'static str {
        self.end.as_ref().err().map_or("ok", BackendError::code)
    }
}

async fn attempt(backend: &RemoteBackend, call: BackendCall) -> Outcome {
    let (probe, attempt) = (call.probe.clone(), call.attempt);
    let mut text = String::new();
    let end = match backend.generate(call).await {
        Err(error) => Err(error),
        Ok(mut stream) => loop {
            match stream.next().await.expect("a stream ends with an end or an error") {
                Ok(Chunk::Text { text: more, .. }) => {
                    assert!(!more.is_empty());
                    text.push_str(&more);
                }
                Ok(Chunk::End(finish)) => {
                    assert!(stream.next().await.is_none(), "nothing follows the end");
                    break Ok(finish);
                }
                Err(error) => {
                    assert!(stream.next().await.is_none(), "nothing follows an error");
                    break Err(error);
                }
            }
        },
    };
    Outcome { text, end, probe, attempt }
}

#[tokio::test]
async fn streams_and_bodies_give_the_same_answer_and_the_bill_agrees() {
    let world = World::new().await;
    for stream in [true, false] {
        let outcome = world.attempt(world.config(stream), vec![Fault::Reasoning(5)]).await;
        let finish = outcome.end.unwrap();
        assert_eq!(outcome.text, ANSWER);
        assert_eq!((finish.reason, finish.usage_reported), (FinishReason::Stop, true));
        assert_eq!(finish.response_model, "simulated-large");
        let reading = outcome.probe.reading();
        assert!(reading.sent && reading.reported && reading.settled);
        assert_eq!(reading.usage, finish.usage);
        assert_eq!(reading.text_bytes, ANSWER.len() as u64);
        let row = world.simulator.bill().pop().unwrap();
        let usage = finish.usage;
        assert_eq!((row.prompt_tokens, row.completion_tokens), (usage.input_tokens, usage.output_tokens));
        assert_eq!(usage.reasoning_tokens, 5);
        assert_eq!(row.cost, Prices::default().charge(usage.input_tokens, 0, usage.output_tokens));
        assert_eq!(row.attempt, outcome.attempt.to_string());
        let request = world.simulator.requests().pop().unwrap();
        assert_eq!(request.idempotency_key, outcome.attempt.to_string());
        assert_eq!(request.body["max_completion_tokens"], 64);
        assert_eq!(request.ending, Ending::Complete);
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let world = World::new().await;
    for stream in [true, false] {
        let backend = RemoteBackend::new(world.config(stream)).unwrap();
        let before = world.simulator.connections();
        for _ in 0..5 {
            assert_eq!(attempt(&backend, call()).await.text, ANSWER);
        }
        assert_eq!(world.simulator.connections() - before, 1, "streaming: {stream}");
    }
}

#[tokio::test]
async fn every_fault_of_a_stream_has_its_error() {
    let world = World::new().await;
    let check = async |faults: Vec<Fault>, expected: &str, billed: bool| {
        let outcome = world.attempt(world.config(true), faults.clone()).await;
        assert_eq!(outcome.code(), expected, "{faults:?}: {outcome:?}");
        if let Err(error) = &outcome.end {
            assert_eq!(error.may_have_been_billed(), billed, "{faults:?}");
            assert_eq!(outcome.probe.reading().sent, billed, "{faults:?}");
            let message = error.to_string();
            assert!(!message.contains(KEY) && !message.contains("France"), "{message}");
        }
        assert!(ANSWER.starts_with(&outcome.text), "{faults:?}");
    };
    check(vec![Fault::status(400)], "rejected", false).await;
    check(vec![Fault::status(401)], "unauthorized", false).await;
    check(vec![Fault::status(429)], "rate_limited", false).await;
    check(vec![Fault::status(500)], "unavailable", false).await;
    check(vec![Fault::status(503)], "unavailable", false).await;
    check(vec![Fault::status(302)], "protocol", true).await;
    check(vec![Fault::CutAfter(0)], "cut", true).await;
    check(vec![Fault::CutAfter(3)], "cut", true).await;
    check(vec![Fault::CutAfter(99)], "cut", true).await;
    check(vec![Fault::EndAfter(0)], "cut", true).await;
    check(vec![Fault::EndAfter(3)], "cut", true).await;
    check(vec![Fault::NoDone], "cut", true).await;
    check(vec![Fault::NoFinishReason], "cut", true).await;
    check(vec![Fault::ErrorAfter(0)], "cut", true).await;
    check(vec![Fault::ErrorAfter(2)], "cut", true).await;
    check(vec![Fault::GarbageAfter(2)], "protocol", true).await;
    check(vec![Fault::HalfJsonAfter(2)], "protocol", true).await;
    check(vec![Fault::NoNewline(100 << 20)], "protocol", true).await;
    check(vec![Fault::HtmlPage], "protocol", true).await;
    check(vec![Fault::ClaimsGzip], "protocol", true).await;
    check(vec![Fault::NotUtf8], "protocol", true).await;
    check(vec![Fault::FinishReason("exploded".to_owned())], "protocol", true).await;
    check(vec![Fault::FinishReason("content_filter".to_owned())], "ok", true).await;
    check(vec![Fault::Usage(UsageForm::WithChoices)], "ok", true).await;
    check(vec![Fault::Usage(UsageForm::EveryChunk)], "ok", true).await;
    check(vec![Fault::Usage(UsageForm::Missing)], "ok", true).await;
}

#[tokio::test]
async fn every_fault_of_a_body_has_its_error() {
    let world = World::new().await;
    let check = async |fault: Fault, expected: &str| {
        let outcome = world.attempt(world.config(false), vec![fault.clone()]).await;
        assert_eq!(outcome.code(), expected, "{fault:?}: {outcome:?}");
        assert!(outcome.text.is_empty() || expected == "ok", "{fault:?}");
    };
    check(Fault::status(503), "unavailable").await;
    check(Fault::CutAfter(0), "cut").await;
    check(Fault::HalfJsonAfter(0), "protocol").await;
    check(Fault::GarbageAfter(0), "protocol").await;
    check(Fault::HtmlPage, "protocol").await;
    check(Fault::NoNewline(100 << 20), "protocol").await;
    check(Fault::Usage(UsageForm::Missing), "ok").await;
}

#[tokio::test]
async fn usage_that_was_reported_survives_the_missing_end_marker() {
    let world = World::new().await;
    let outcome = world.attempt(world.config(true), vec![Fault::NoDone]).await;
    let usage = outcome.end.unwrap_err().usage().unwrap();
    assert_eq!(usage.output_tokens, world.simulator.bill()[0].completion_tokens);
    assert!(outcome.probe.reading().reported && !outcome.probe.reading().settled);
    let outcome = world.attempt(world.config(true), vec![Fault::Usage(UsageForm::Missing)]).await;
    let finish = outcome.end.unwrap();
    assert!(!finish.usage_reported && finish.usage.output_tokens > 0 && finish.usage.input_tokens > 0);
}

#[tokio::test]
async fn each_wait_has_its_own_end() {
    let world = World::new().await;
    let short = Duration::from_millis(40);
    let check = async |timeouts: Timeouts, deadline: Option<Duration>, fault: Fault, expected: BackendError| {
        let mut config = world.config(true);
        config.timeouts = timeouts;
        world.simulator.script([fault.clone()]);
        let backend = RemoteBackend::new(config).unwrap();
        let mut call = call();
        call.deadline = deadline.map(|wait| std::time::Instant::now() + wait);
        let outcome = attempt(&backend, call).await;
        assert_eq!(outcome.end.unwrap_err(), expected, "{fault:?}");
    };
    let all = Timeouts::default();
    let stage = |stage| BackendError::Timeout { stage, usage: None };
    let first_byte = Timeouts { first_byte: short, ..all };
    check(first_byte, None, Fault::Hang, stage(TimeoutStage::FirstByte)).await;
    check(first_byte, None, Fault::DelayFirstByte(Duration::from_secs(60)), stage(TimeoutStage::FirstByte)).await;
    let idle = Timeouts { idle: short, ..all };
    check(idle, None, Fault::HangAfter(2), stage(TimeoutStage::Idle)).await;
    let total = Timeouts { total: short, ..all };
    check(total, None, Fault::DelayTokens(Duration::from_millis(15)), stage(TimeoutStage::Total)).await;
    let passed = BackendError::DeadlineExceeded { sent: true, usage: None };
    check(all, Some(short), Fault::Hang, passed.clone()).await;
    check(all, Some(short), Fault::HangAfter(1), passed).await;
    let before = BackendError::DeadlineExceeded { sent: false, usage: None };
    let seen = world.simulator.requests().len();
    check(all, Some(Duration::ZERO), Fault::Hang, before).await;
    assert_eq!(world.simulator.requests().len(), seen, "nothing was sent");
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn hanging_up_reaches_the_upstream_at_once() {
    let world = World::new().await;
    world.simulator.always([Fault::HangAfter(2)]);
    let backend = RemoteBackend::new(world.config(true)).unwrap();
    let asked = call();
    let probe = asked.probe.clone();
    let mut stream = backend.generate(asked).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(world.simulator.requests()[0].ending, Ending::Running);
    drop(stream);
    world.simulator.always([Fault::Hang]);
    tokio::select! {
        _ = backend.generate(call()) => panic!("it never sends a status"),
        () = until(|| world.simulator.requests().len() == 2) => {}
    }
    until(|| world.simulator.requests().iter().all(|request| request.ending != Ending::Running)).await;
    assert!(world.simulator.requests().iter().all(|request| request.ending == Ending::HungUp));
    let reading = probe.reading();
    assert!(reading.sent && !reading.reported && reading.usage.output_tokens >= 1);
}

#[tokio::test]
async fn a_refused_connection_is_free_and_opens_the_breaker() {
    let world = World::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = world.config(true);
    config.base_url = format!("http://{}/v1/", listener.local_addr().unwrap());
    config.breaker = BreakerConfig { min_calls: 2, ..BreakerConfig::default() };
    drop(listener);
    let backend = RemoteBackend::new(config).unwrap();
    for _ in 0..2 {
        assert_eq!(backend.availability(), Availability::Ready);
        let outcome = attempt(&backend, call()).await;
        assert!(matches!(outcome.end, Err(BackendError::Unavailable { sent: false, .. })), "{outcome:?}");
    }
    assert!(matches!(backend.availability(), Availability::Unavailable { retry_after: Some(_), .. }));
    let outcome = attempt(&backend, call()).await;
    assert!(outcome.end.unwrap_err().to_string().contains("breaker"));
}

#[tokio::test]
async fn retry_after_and_caps_reach_the_caller() {
    let world = World::new().await;
    let slow = Fault::Status { status: 429, retry_after: Some("3".to_owned()), code: "slow".to_owned() };
    let outcome = world.attempt(world.config(true), vec![slow]).await;
    assert_eq!(outcome.end.unwrap_err().retry_after(), Some(Duration::from_secs(3)));
    let mut small = world.config(true);
    small.max_body_bytes = 500;
    assert_eq!(world.attempt(small, vec![]).await.code(), "protocol");
    let mut wrong = world.config(true);
    wrong.key = Some(SecretString::from("wrong"));
    assert_eq!(world.attempt(wrong, vec![]).await.code(), "unauthorized");
}

#[test]
fn a_configuration_is_checked() {
    let check = |url: &str, key: &str, expected: bool| {
        let mut config = RemoteConfig::new(ModelId::new("large"), "m", url);
        config.key = Some(SecretString::from(key));
        assert_eq!(RemoteBackend::new(config).is_ok(), expected, "{url} {key:?}");
    };
    check("http://127.0.0.1:1/v1", "k", true);
    check("http://[::1]:1/v1/", "k", true);
    check("ftp://x/v1", "k", false);
    check("x/v1", "k", false);
    check("", "k", false);
    check("http://127.0.0.1:1/v1", "k\n", false);
}
