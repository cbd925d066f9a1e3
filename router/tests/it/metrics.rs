//! Metrics of a running gateway, scraped as Prometheus does.

use crate::support::{House, complete, remote};
use router::simulate::Fault;
use std::time::Duration;

/// The value of the one series that begins so.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_chunk_is_told_from_the_whole_answer() {
    let mut house = House::new().await;
    let pause = Duration::from_millis(10);
    house.simulator.always([Fault::DelayTokens(pause)]);
    complete(&mut house.client, remote("Name the planets, one by one.")).await.unwrap();
    let scraped = reqwest::get(format!("{}/metrics", house.app.url())).await.unwrap().text().await.unwrap();
    let operation = |what: &str| value(&scraped, &format!("gen_ai_client_operation_{what}"));
    let (first, whole) = (operation("time_to_first_chunk_seconds_sum"), operation("duration_seconds_sum"));
    let each = operation("time_per_output_chunk_seconds_sum");
    // The upstream pauses between its many chunks, so the whole takes longer than the first by more than one pause.
    assert!(first > 0.0 && whole - first >= pause.as_secs_f64(), "{first} {whole}");
    assert!(each > 0.0 && each <= whole - first, "{each}");
    assert_eq!(operation("duration_seconds_count"), 1.0);
    house.close().await;
}
