use super::*;
use crate::replay::log::Log;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// A log of two requests a conversation: the candidate is local, cheap and right with probability `right`.
fn log(seed: u64, conversations: usize, right: [f64; 2]) -> Log {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut text = String::new();
    for number in 0..2 * conversations {
        let candidate = (number / 2) % 2 == 1;
        let quality = u8::from(rng.random::<f64>() < right[usize::from(candidate)]);
        let (arm, route, policy) = if candidate { ("candidate", "local", "new") } else { ("control", "remote", "old") };
        let (cost, latency) = if candidate { (0, 10.0 + (number % 7) as f64) } else { (1_000_000, 100.0) };
        text.push_str(&format!(
            "{{\"id\":\"{number}\",\"at_ms\":{number},\"tenant\":\"t\",\"conversation\":\"c{}\",\"level\":\"none\",\
             \"experiment\":\"old\",\"arm\":\"{arm}\",\"policy\":\"{policy}\",\"model\":\"m\",\"route\":\"{route}\",\
             \"propensity\":1,\"cost_nano_usd\":{cost},\"latency_ms\":{latency},\"quality\":{quality}}}\n",
            number / 2
        ));
    }
    Log::parse("log", &text).unwrap()
}

#[test]
fn sides_are_told_with_their_difference() {
    let found = compare(&log(3, 400, [0.9, 0.6]).rows, 0.95);
    let [found] = found.as_slice() else { panic!("one experiment: {found:?}") };
    assert_eq!((found.experiment.as_str(), found.control.requests, found.candidate.requests), ("old", 400, 400));
    assert_eq!((found.control.conversations, found.candidate.graded), (200, 400));
    assert_eq!(found.candidate.policies, BTreeSet::from(["new".to_owned()]));
    let quality = found.quality_difference.unwrap();
    assert!(quality.low < -0.3 && -0.3 < quality.high && quality.high < -0.2 && quality.low > -0.42, "{quality:?}");
    let usd = found.usd_per_1000_difference.unwrap();
    assert!((usd.value + 1.0).abs() < 1e-9 && usd.high < -0.99, "{usd:?}");
    assert!((found.latency_ms_difference.unwrap().value + 87.0).abs() < 1.0);
    assert_eq!(found.local_share_difference.unwrap().value, 1.0);
    assert!(found.candidate.latency_p95_ms.unwrap().value <= 16.0);
    assert!(compare(&[], 0.95).is_empty());
}

#[test]
fn intervals_of_differences_hold_the_truth_as_often_as_stated() {
    let draws = 300;
    let held = (0..draws).filter(|seed| {
        let found = compare(&log(1_000 + seed, 100, [0.8, 0.7]).rows, 0.9);
        let range = found[0].quality_difference.unwrap();
        (range.low..=range.high).contains(&-0.1)
    });
    let share = held.count() as f64 / draws as f64;
    assert!(share >= 0.9 - 3.0 * (0.9_f64 * 0.1 / draws as f64).sqrt(), "{share}");
}

#[test]
fn a_side_with_one_conversation_has_no_difference_and_bad_arms_are_named() {
    let found = compare(&log(1, 2, [1.0, 1.0]).rows, 0.95);
    assert_eq!((found[0].control.conversations, found[0].usd_per_1000_difference), (1, None));
    let line = "{\"id\":\"1\",\"at_ms\":1,\"tenant\":\"t\",\"level\":\"none\",\"model\":\"m\",\"route\":\"local\",\
                \"propensity\":1,\"cost_nano_usd\":0,\"latency_ms\":1,\"experiment\":\"e\",\"arm\":\"third\"}\n";
    let error = Log::parse("log", line).unwrap_err().to_string();
    assert!(error.contains("log:1: arm: `third` is neither control nor candidate"), "{error}");
}
