//! One request through the whole path: routes, single flight, budgets, failures, shutdown.

use crate::support::{House, complete, local, remote};
use futures_util::future::join_all;
use router::budget::BudgetLimits;
use router::domain::{NanoUsd, TenantId};
use router::simulate::Fault;
use sluice_proto::v1;
use std::time::Duration;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn identical_greedy_requests_in_flight_share_one_call() {
    let house = House::new().await;
    house.simulator.always([Fault::DelayFirstByte(Duration::from_millis(300))]);
    let calls = (0..8).map(|_| {
        let mut client = house.client.clone();
        async move { complete(&mut client, remote("Say it once.")).await.unwrap() }
    });
    let answers = join_all(calls).await;
    assert_eq!(house.simulator.requests().len(), 1, "one call for all");
    let text = answers[0].parts.clone();
    assert!(answers.iter().all(|answer| answer.parts == text));
    let costs: Vec<i64> =
        answers.iter().map(|answer| answer.finished.as_ref().unwrap().cost.unwrap().nano_usd).collect();
    assert_eq!(costs.iter().filter(|cost| **cost > 0).count(), 1, "the first pays: {costs:?}");
    let saved = answers.iter().map(|answer| answer.finished.as_ref().unwrap().saved_nano_usd).sum::<i64>();
    assert_eq!(saved, 7 * costs.iter().sum::<i64>());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_caller_who_hangs_up_takes_nobody_with_it() {
    let house = House::new().await;
    house.simulator.always([Fault::DelayFirstByte(Duration::from_millis(400))]);
    let mut first = house.client.clone();
    let leader = tokio::time::timeout(Duration::from_millis(150), complete(&mut first, remote("Stay.")));
    let mut second = house.client.clone();
    let follower = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        complete(&mut second, remote("Stay.")).await
    };
    let (gone, stayed) = tokio::join!(leader, follower);
    assert!(gone.is_err(), "the first caller gave up");
    assert!(!stayed.unwrap().parts.is_empty());
    assert_eq!(house.simulator.requests().len(), 1);
    house.close().await;
}

fn form(mut ask: v1::Ask, kind: v1::response_format::Kind) -> v1::Ask {
    ask.response_format = Some(v1::ResponseFormat { kind: Some(kind) });
    ask
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_has_not_the_form_asked_for_is_an_error() {
    use v1::response_format::Kind;
    let mut house = House::new().await;
    let schema = Kind::JsonSchema("{\"type\": \"object\"}".to_owned());
    let status = complete(&mut house.client, form(remote("Write JSON."), schema.clone())).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "the simulated model writes no JSON: {status:?}");
    let asked = house.simulator.requests();
    assert_eq!(asked[0].body["response_format"]["json_schema"]["schema"]["type"], "object");
    let regex = Kind::Regex("a+".to_owned());
    let status = complete(&mut house.client, form(remote("Write a."), regex.clone())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("response_format.regex"), "{status:?}");
    let mut limited = form(local("hello, how are you?"), Kind::Regex("[ab]{9}".to_owned()));
    limited.limits = Some(v1::Limits { max_tokens: Some(2), ..v1::Limits::default() });
    let status = complete(&mut house.client, limited).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    let impossible = Kind::JsonSchema("{\"type\": \"integer\", \"minimum\": 5, \"maximum\": 4}".to_owned());
    let status = complete(&mut house.client, form(local("hello, how are you?"), impossible)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("response_format.json_schema"), "{status:?}");
    let answer = complete(&mut house.client, form(local("hello, how are you?"), regex)).await.unwrap();
    let Some(v1::part::Kind::Text(text)) = &answer.parts[0].kind else { panic!("{answer:?}") };
    assert!(!text.is_empty() && text.bytes().all(|byte| byte == b'a'), "{text}");
    assert_eq!(answer.finished.unwrap().max_tokens, 128);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn warm_requests_never_merge() {
    let house = House::new().await;
    house.simulator.always([Fault::DelayFirstByte(Duration::from_millis(200))]);
    let calls = (0..3).map(|_| {
        let mut client = house.client.clone();
        let mut ask = remote("Say it anew.");
        ask.limits = Some(v1::Limits { temperature: Some(0.7), ..v1::Limits::default() });
        async move { complete(&mut client, ask).await.unwrap() }
    });
    join_all(calls).await;
    assert_eq!(house.simulator.requests().len(), 3);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_never_exceed_a_budget() {
    let limit = NanoUsd::new(20_000_000);
    let house = House::with(|settings| {
        let limits = BudgetLimits { daily: Some(limit), monthly: None };
        settings.tenants.insert(TenantId::new("local"), limits);
        settings.default_policy = "quality".to_owned();
    })
    .await;
    let calls = (0..60).map(|index| {
        let mut client = house.client.clone();
        async move { complete(&mut client, remote(&format!("Question number {index}."))).await }
    });
    let outcomes = join_all(calls).await;
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    assert!(refused.clone().count() > 0, "sixty worst cases do not fit");
    assert!(refused.clone().all(|status| status.code() == Code::ResourceExhausted), "{outcomes:?}");
    assert!(house.simulator.total() <= limit);
    assert!(outcomes.iter().any(Result::is_ok));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_attempts_of_their_own() {
    let mut house = House::new().await;
    house.simulator.script([Fault::status(500)]);
    let answer = complete(&mut house.client, remote("Try again.")).await.unwrap();
    let subject = Some(v1::explain_request::Subject::EntryId(answer.request_id));
    let entry = house.client.gateway.explain(v1::ExplainRequest { subject }).await.unwrap().into_inner().entry.unwrap();
    let statuses: Vec<&str> = entry.attempts.iter().map(|attempt| attempt.status.as_str()).collect();
    assert_eq!(statuses, ["failed", "ok"]);
    let mut ids: Vec<String> = entry.attempts.iter().map(|attempt| attempt.id.clone()).collect();
    let mut seen: Vec<String> = house.simulator.requests().into_iter().map(|request| request.attempt).collect();
    ids.sort();
    seen.sort();
    assert_eq!(ids, seen);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_nonsense_is_an_error_and_never_an_answer() {
    let mut house = House::with(|settings| {
        for target in settings.targets.values_mut() {
            target.max_retries = 0;
            target.timeouts.idle = Duration::from_millis(500);
        }
    })
    .await;
    let faults = [
        (Fault::GarbageAfter(0), Code::Unavailable),
        (Fault::HalfJsonAfter(0), Code::Unavailable),
        (Fault::HtmlPage, Code::Unavailable),
        (Fault::NoNewline(100 << 20), Code::Unavailable),
    ];
    for (fault, code) in faults {
        house.simulator.script([fault.clone()]);
        let status = complete(&mut house.client, remote(&format!("{fault:?}"))).await.unwrap_err();
        assert_eq!(status.code(), code, "{fault:?}: {status:?}");
    }
    let listed = house.client.usage.list_entries(v1::ListEntriesRequest::default()).await.unwrap().into_inner();
    assert!(listed.entries.iter().all(|entry| entry.status == "failed" && entry.saved_nano_usd == 0));
    drop(house);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_its_end_is_cut_and_not_cached() {
    let mut house = House::with(|settings| {
        settings.targets.values_mut().for_each(|target| target.max_retries = 0);
    })
    .await;
    // Enough good calls that three bad ones don't open the breaker.
    for number in 0..12 {
        complete(&mut house.client, remote(&format!("Good call {number}."))).await.unwrap();
    }
    for fault in [Fault::CutAfter(3), Fault::NoDone, Fault::EndAfter(3)] {
        house.simulator.script([fault.clone()]);
        let ask = remote(&format!("A long answer, please, with many words: {fault:?}"));
        let status = complete(&mut house.client, ask.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{fault:?}");
        let again = complete(&mut house.client, ask).await.unwrap();
        assert_eq!(again.finished.unwrap().decision.unwrap().route(), v1::Route::Remote, "{fault:?} was cached");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_model_thread_is_survived() {
    let mut house = House::new().await;
    let ask = || local("Classify with the banking77 intents.\nI was charged twice.");
    complete(&mut house.client, ask()).await.unwrap();
    house.app.workers()[0].1.inject_panic();
    let mut seen_down = false;
    for _ in 0..400 {
        match complete(&mut house.client, ask()).await {
            Ok(_) if seen_down => break,
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                seen_down = true;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    complete(&mut house.client, ask()).await.unwrap();
    complete(&mut house.client, remote("Still here?")).await.unwrap();
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_finish_at_shutdown() {
    let house = House::new().await;
    house.simulator.always([Fault::DelayTokens(Duration::from_millis(20))]);
    let mut client = house.client.clone();
    let call = tokio::task::JoinSet::from_iter([async move { complete(&mut client, remote("Take your time.")).await }]);
    tokio::time::sleep(Duration::from_millis(150)).await;
    drop(house.client);
    house.app.shutdown().await;
    let outcome = call.join_all().await.remove(0);
    assert!(!outcome.unwrap().parts.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_local_queue_spills_where_it_may_and_refuses_where_not() {
    let house = House::with(|settings| {
        settings.local_queue = 1;
        settings.local_sequences = 1;
    })
    .await;
    let ask = |number: usize, placement: v1::Placement| {
        let filler = "the quick brown fox jumps over the lazy dog ".repeat(30);
        let mut ask = sluice_proto::client::ask(format!("sentiment? [positive, negative]\n{number} {filler}"));
        ask.placement = placement.into();
        let mut client = house.client.clone();
        async move { complete(&mut client, ask).await }
    };
    let spilled = join_all((0..40).map(|number| ask(number, v1::Placement::PreferLocal))).await;
    let decisions: Vec<v1::Decision> =
        spilled.into_iter().map(|answer| answer.unwrap().finished.unwrap().decision.unwrap()).collect();
    // Found full when it was decided, or in between: either way the large model answered.
    let full = |decision: &&v1::Decision| decision.route() == v1::Route::Remote;
    assert!(decisions.iter().filter(full).count() > 0, "{decisions:?}");
    assert!(decisions.iter().any(|decision| decision.route() != v1::Route::Remote), "{decisions:?}");
    let closed = join_all((0..40).map(|number| ask(number, v1::Placement::LocalOnly))).await;
    let refused: Vec<tonic::Status> = closed.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty());
    for status in refused {
        // Declining is the model's right; being full is what this is about.
        if status.code() != Code::FailedPrecondition {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(tonic_types::StatusExt::get_error_details(&status).retry_info().is_some());
        }
    }
    house.close().await;
}
