use super::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[test]
fn tokens_are_short_and_lose_nothing() {
    let check = |text: &str, expected: &[&str]| assert_eq!(tokens(text), expected);
    check("", &[]);
    check("Paris", &["Pari", "s"]);
    check("ab cd  ef", &["ab", " cd", " ", " ef"]);
    check("häßlich", &["häßl", "ich"]);
}

#[test]
fn a_charge_is_rounded_up_once() {
    let prices = Prices::default();
    assert_eq!(prices.charge(0, 0, 0).nanos(), 0);
    // 400,000 + 1,600,000 pico-USD = 2,000 nano-USD for each pair of tokens.
    assert_eq!(prices.charge(10, 0, 10).nanos(), 20_000);
    assert_eq!(prices.charge(10, 10, 0).nanos(), 1_000);
}

/// Posts `body` over a plain socket and returns everything that comes back until the server closes.
async fn post(simulator: &Simulator, body: &Value, key: &str) -> String {
    let body = body.to_string();
    let mut socket = TcpStream::connect(simulator.address()).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         x-request-id: attempt-1\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _broken_off = socket.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn simulator(answers: &[(&str, &str)]) -> (Simulator, CancellationToken) {
    let stop = CancellationToken::new();
    let config = SimulatorConfig {
        answers: answers.iter().map(|(prompt, answer)| ((*prompt).to_owned(), (*answer).to_owned())).collect(),
        key: Some(SecretString::from("secret")),
        ..SimulatorConfig::default()
    };
    (Simulator::start(config, &TaskTracker::new(), stop.clone()).await.unwrap(), stop)
}

#[tokio::test]
async fn answers_are_labelled_counted_and_billed() {
    let (simulator, _stop) = simulator(&[("Capital of France?", "Paris.")]).await;
    let ask =
        json!({ "model": "simulated-large", "messages": [{ "role": "user", "content": " Capital of France? " }] });
    let unary = post(&simulator, &ask, "secret").await;
    assert!(unary.contains("x-sluice-simulated: true") && unary.contains("Paris."), "{unary}");
    let mut streamed = ask.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let stream = post(&simulator, &streamed, "secret").await;
    assert!(stream.contains("\"content\":\"Pari\"") && stream.contains("data: [DONE]"), "{stream}");
    let bill = simulator.bill();
    assert_eq!(bill.len(), 2);
    // " Capital of France? " is 6 tokens of at most four characters, 3 frame the message and 3 begin the answer.
    let expected = BillRow {
        attempt: "attempt-1".to_owned(),
        prompt_tokens: 12,
        cached_tokens: 0,
        completion_tokens: 2,
        cost: Prices::default().charge(12, 0, 2),
    };
    assert_eq!(bill, [expected.clone(), expected.clone()]);
    assert_eq!(simulator.total(), expected.cost + expected.cost);
    assert!(simulator.requests().iter().all(|request| request.ending == Ending::Complete));
    let page = simulator.shared.books.to_json();
    assert_eq!(page["total_nano_usd"], json!(simulator.total().nanos()));
}

#[tokio::test]
async fn limits_stops_and_long_prompts_count() {
    let (simulator, _stop) = simulator(&[("q", "one two three")]).await;
    let ask = |extra: Value| {
        let mut ask = json!({ "model": "m", "messages": [{ "role": "user", "content": "q" }] });
        ask.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
        ask
    };
    let limited = post(&simulator, &ask(json!({ "max_tokens": 2 })), "secret").await;
    assert!(limited.contains("\"one two\"") && limited.contains("\"length\""), "{limited}");
    let stopped = post(&simulator, &ask(json!({ "stop": [" three", "zzz"] })), "secret").await;
    assert!(stopped.contains("\"one two\"") && stopped.contains("\"finish_reason\":\"stop\""), "{stopped}");
    let long = json!({ "model": "m", "messages": [{ "role": "user", "content": "word ".repeat(2_000) }] });
    post(&simulator, &long, "secret").await;
    post(&simulator, &long, "secret").await;
    let cached: Vec<u64> = simulator.bill().iter().map(|row| row.cached_tokens).collect();
    assert_eq!(cached, [0, 0, 0, 3_968]);
}

#[tokio::test]
async fn refusals_are_free_and_cuts_are_not() {
    let (simulator, _stop) = simulator(&[("q", "one two three")]).await;
    let ask = json!({ "model": "m", "stream": true, "messages": [{ "role": "user", "content": "q" }] });
    assert!(post(&simulator, &ask, "wrong").await.starts_with("HTTP/1.1 401"));
    simulator.script([Fault::Status { status: 429, retry_after: Some("7".to_owned()), code: "slow".to_owned() }]);
    let refused = post(&simulator, &ask, "secret").await;
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after: 7"), "{refused}");
    assert!(simulator.bill().is_empty());
    simulator.script([Fault::CutAfter(2)]);
    let cut = post(&simulator, &ask, "secret").await;
    assert!(!cut.contains("[DONE]") && !cut.contains("\r\n0\r\n"), "{cut}");
    assert_eq!(simulator.bill()[0].completion_tokens, 2);
    assert_eq!(simulator.requests().last().unwrap().ending, Ending::Broken);
}

#[tokio::test]
async fn a_hang_up_is_noticed_and_stops_the_meter() {
    let (simulator, _stop) = simulator(&[]).await;
    simulator.script([Fault::HangAfter(1)]);
    let body = json!({ "model": "m", "stream": true, "messages": [{ "role": "user", "content": "q" }] }).to_string();
    let mut socket = TcpStream::connect(simulator.address()).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("[sim") {
        let mut buffer = [0; 4096];
        let count = socket.read(&mut buffer).await.unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    drop(socket);
    while simulator.requests()[0].ending == Ending::Running {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(simulator.requests()[0].ending, Ending::HungUp);
    assert_eq!(simulator.bill()[0].completion_tokens, 1);
}
