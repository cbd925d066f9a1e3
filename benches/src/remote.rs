//! A remote call through the gateway against a direct one to the same simulated upstream, both streamed by the upstream and
//! read to the end.

use crate::house::{House, remote};
use crate::median;
use futures_util::future::{BoxFuture, try_join_all};
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const ROUNDS: usize = 7;
const CALLS: usize = 160;

static NEXT: AtomicU64 = AtomicU64::new(0);

fn prompt() -> String {
    format!("Question number {}, asked for the first time.", NEXT.fetch_add(1, Ordering::Relaxed))
}

type Call<'a> = Box<dyn Fn() -> BoxFuture<'a, anyhow::Result<()>> + 'a>;

fn through_the_gateway(client: &Client) -> Call<'_> {
    Box::new(|| {
        let mut client = client.clone();
        Box::pin(async move {
            let ask = Some(remote(&prompt(), 0.7));
            client.gateway.complete(v1::CompleteRequest { ask }).await?;
            Ok(())
        })
    })
}

fn direct<'a>(client: &'a reqwest::Client, url: &'a str) -> Call<'a> {
    Box::new(move || {
        Box::pin(async move {
            let body = serde_json::json!({
                "model": "gpt-4.1-mini", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.7,
                "max_completion_tokens": 16, "messages": [{"role": "user", "content": prompt()}],
            });
            let text = client.post(url).json(&body).send().await?.error_for_status()?.text().await?;
            anyhow::ensure!(text.contains("[DONE]"), "the upstream's stream has no end");
            Ok(())
        })
    })
}

async fn drive(call: &Call<'_>, in_flight: usize) -> anyhow::Result<(f64, f64)> {
    let clock = Instant::now();
    let callers = (0..in_flight).map(|_| async {
        let mut latencies = Vec::new();
        for _ in 0..CALLS / in_flight {
            let clock = Instant::now();
            call().await?;
            latencies.push(clock.elapsed().as_secs_f64() * 1e6);
        }
        anyhow::Ok(latencies)
    });
    let mut latencies: Vec<f64> = try_join_all(callers).await?.into_iter().flatten().collect();
    let rate = latencies.len() as f64 / clock.elapsed().as_secs_f64();
    Ok((median(&mut latencies), rate))
}

pub async fn run(house: &House) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
    let url = format!("{}/chat/completions", house.simulator.base_url());
    let (gateway, bare) = (through_the_gateway(&house.client), direct(&client, &url));
    drive(&gateway, 1).await?;
    drive(&bare, 1).await?;
    println!("## Remote call through the gateway against a direct call to the same upstream\n");
    println!(
        "| in flight | gateway, median µs | direct, median µs | added µs | gateway req/s | direct req/s | ratio |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for in_flight in [1, 16] {
        let mut columns: [Vec<f64>; 6] = Default::default();
        for _ in 0..ROUNDS {
            let (through, calls) = drive(&gateway, in_flight).await?;
            let (direct, bare_calls) = drive(&bare, in_flight).await?;
            let row = [through, direct, through - direct, calls, bare_calls, calls / bare_calls];
            for (column, value) in columns.iter_mut().zip(row) {
                column.push(value);
            }
        }
        let [through, direct, added, calls, bare_calls, ratio] = columns.map(|mut column| median(&mut column));
        println!(
            "| {in_flight} | {through:.0} | {direct:.0} | {added:.0} | {calls:.0} | {bare_calls:.0} | {ratio:.2} |"
        );
    }
    println!();
    Ok(())
}
