//! `GatewayService.Embed` and `sluice embed`: vectors of texts, made here, booked as any request is.

use crate::support::{House, guarded, sluice};
use local_worker::embed::{SentenceEncoder, similarity};
use sluice_proto::client::{Client, embed};
use sluice_proto::v1;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Code;
use tonic_types::StatusExt as _;

const TEXTS: [&str; 3] =
    ["How do I reset my password?", "I forgot my password, how can I change it?", "Best pizza in Rome"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("local-worker/tests/fixtures/encoders").join(name)
}

/// The shipped policies with encoders added to their catalog.
fn policies_with(encoders: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("policies");
    for entry in std::fs::read_dir(&shipped).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let catalog = std::fs::read_to_string(shipped.join("models.toml")).unwrap();
    std::fs::write(folder.path().join("models.toml"), format!("{catalog}\n{encoders}")).unwrap();
    folder
}

async fn vectors(client: &mut Client, request: v1::EmbedRequest) -> Result<v1::EmbedResponse, tonic::Status> {
    Ok(client.gateway.embed(request).await?.into_inner())
}

/// Code, field and words of a refusal.
async fn refused(client: &mut Client, request: v1::EmbedRequest, code: Code, field: &str, words: &str) {
    let status = vectors(client, request).await.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    let details = status.get_error_details();
    let found = details.bad_request().and_then(|bad| bad.field_violations.first()).map(|bad| bad.field.clone());
    assert_eq!(found.unwrap_or_default(), field, "{status:?}");
    assert!(status.message().contains(words), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_become_vectors_and_are_booked_as_free_and_local() {
    let mut house = House::new().await;
    let told = vectors(&mut house.client, embed(TEXTS)).await.unwrap();
    assert_eq!((told.model.as_str(), told.dimensions, told.vectors.len()), ("sluice-embed-v0", 256, 3));
    let rows: Vec<&[f32]> = told.vectors.iter().map(|vector| vector.values.as_slice()).collect();
    assert!(rows.iter().all(|row| row.len() == 256 && (similarity(row, row) - 1.0).abs() < 1e-4));
    let (alike, other) = (similarity(rows[0], rows[1]), similarity(rows[0], rows[2]));
    assert!(alike > other + 0.2, "{alike} and {other}");
    assert_eq!(told.tokens, told.vectors.iter().map(|vector| i64::from(vector.tokens)).sum::<i64>());

    let explained = house
        .client
        .gateway
        .explain(v1::ExplainRequest { subject: Some(v1::explain_request::Subject::EntryId(told.request_id.clone())) })
        .await
        .unwrap()
        .into_inner();
    let entry = explained.entry.unwrap();
    assert_eq!((entry.status.as_str(), entry.saved_nano_usd), ("ok", 0));
    assert_eq!((entry.usage.unwrap().input_tokens, entry.cost.unwrap().nano_usd), (told.tokens, 0));
    let decision = entry.decision.unwrap();
    assert_eq!((decision.route(), decision.model.as_str()), (v1::Route::Local, "sluice-embed-v0"));
    let attempts: Vec<(&str, i64)> = entry.attempts.iter().map(|at| (at.status.as_str(), at.hold_nano_usd)).collect();
    assert_eq!(attempts, [("ok", 0)]);

    let short = v1::EmbedRequest { dimensions: Some(64), ..embed(TEXTS) };
    let short = vectors(&mut house.client, short).await.unwrap();
    let values = &short.vectors[0].values;
    assert!(short.dimensions == 64 && values.len() == 64 && (similarity(values, values) - 1.0).abs() < 1e-4);
    // Far more than is done between two looks of the executor.
    let long = vectors(&mut house.client, embed(["password reset ".repeat(50_000)])).await.unwrap();
    assert!(long.vectors[0].tokens >= 100_000 && !long.vectors[0].cut, "all of it is read");
    let strange = vectors(&mut house.client, embed(["ꙮ"])).await.unwrap();
    assert!(strange.vectors[0].values.iter().all(|value| *value == 0.0), "near nothing");

    let client = &mut house.client;
    refused(client, v1::EmbedRequest::default(), Code::InvalidArgument, "texts", "one text").await;
    refused(client, embed(["a", ""]), Code::InvalidArgument, "texts[1]", "blank").await;
    refused(client, embed(vec!["a"; 1_025]), Code::InvalidArgument, "texts", "1024").await;
    refused(client, embed(["a".repeat(5 << 20)]), Code::InvalidArgument, "texts", "bytes").await;
    let of = |model: &str, dimensions| v1::EmbedRequest { model: model.to_owned(), dimensions, ..embed(["a"]) };
    refused(client, of("mini", None), Code::InvalidArgument, "model", "there are sluice-embed-v0").await;
    refused(client, of("", Some(257)), Code::InvalidArgument, "dimensions", "1 to 256").await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoder_of_the_catalog_reads_texts_and_comes_and_goes_with_it() {
    let encoders = format!(
        "[[encoders]]\nid = \"tiny\"\npath = \"{}\"\n[[encoders]]\nid = \"broken\"\npath = \"{}\"\n",
        fixture("bert").display(),
        fixture("nowhere").display()
    );
    let folder = policies_with(&encoders);
    let mut house = House::with(|settings| {
        settings.policies_dir = Some(folder.path().to_owned());
        settings.reload_interval = Duration::from_millis(20);
        settings.local_memory_bytes = Some(700 << 20);
    })
    .await;
    let client = &mut house.client;
    let before = client.models.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().memory_bytes;
    let of = |model: &str, texts: &[&str]| v1::EmbedRequest { model: model.to_owned(), ..embed(texts.iter().copied()) };
    let told = vectors(client, of("tiny", &["the cat", "a dog"])).await.unwrap();
    let expected = SentenceEncoder::from_directory(&fixture("bert")).unwrap();
    let made = expected.embed(&["the cat", "a dog"]).unwrap();
    for (told, made) in told.vectors.iter().zip(&made) {
        assert_eq!((told.values.as_slice(), told.tokens as usize), (made.vector.as_slice(), made.tokens));
    }
    assert_eq!((told.version.len(), told.dimensions as usize), (16, expected.dims()));
    let held = client.models.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().memory_bytes;
    assert_eq!((held - before) as u64, expected.bytes(), "its memory counts in the budget");

    let long = "cat ".repeat(expected.longest() + 1);
    refused(client, of("tiny", &["a cat", &long]), Code::InvalidArgument, "texts[1]", "truncate").await;
    let cut = v1::EmbedRequest { truncate: true, ..of("tiny", &[&long]) };
    assert!(vectors(client, cut).await.unwrap().vectors[0].cut);
    let fewer = v1::EmbedRequest { dimensions: Some(8), ..of("tiny", &["a"]) };
    refused(client, fewer, Code::InvalidArgument, "dimensions", "none can be left out").await;
    refused(client, of("broken", &["a"]), Code::FailedPrecondition, "", "gateway's log").await;
    let many = "the cat sat , ".repeat(6);
    let mut late = tonic::Request::new(of("tiny", &[many.as_str(); 1_000]));
    late.set_timeout(Duration::from_millis(2));
    let status = client.gateway.embed(late).await.unwrap_err();
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{status:?}");

    let catalog = std::fs::read_to_string(folder.path().join("models.toml")).unwrap();
    std::fs::write(
        folder.path().join("models.toml"),
        catalog.replace("[[encoders]]\nid = \"tiny\"", "[[encoders]]\nid = \"small\""),
    )
    .unwrap();
    loop {
        match vectors(client, of("tiny", &["a"])).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(status) => break assert!(status.message().contains("small"), "{status:?}"),
        }
    }
    vectors(client, of("", &["a"])).await.unwrap();
    let left = client.models.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().memory_bytes;
    assert_eq!(left, before, "what the catalog no longer has is let go");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_decide_who_may_have_vectors() {
    let (house, folder) = guarded().await;
    for (key, code) in [("serve", None), ("admin", None), ("own", Some(Code::PermissionDenied))] {
        let mut client = Client::connect(&house.app.url(), Some(key), None).await.unwrap();
        let told = vectors(&mut client, embed(["a word"])).await;
        assert_eq!(told.err().map(|status| status.code()), code, "{key}");
    }
    let stranger = vectors(&mut house.client.clone(), embed(["a word"])).await.unwrap_err();
    assert_eq!(stranger.code(), Code::Unauthenticated);
    drop(folder);
    house.app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn demands_of_the_key_hold_for_vectors_too() {
    let check = async |key: &str, encoders: &str, expected: Result<(), &str>| {
        let policies = policies_with(encoders);
        let keys = policies.path().join("keys");
        // The SHA-256 of `k`.
        let sha256 = "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a";
        let head = format!("[[keys]]\nname = \"k\"\nsha256 = \"{sha256}\"\ntenant = \"t\"\nroles = [\"serve\"]\n");
        std::fs::write(&keys, format!("{head}{key}\n")).unwrap();
        let house = House::with(|settings| {
            settings.policies_dir = Some(policies.path().to_owned());
            settings.keys_file = Some(keys);
        })
        .await;
        let mut client = Client::connect(&house.app.url(), Some("k"), None).await.unwrap();
        let told = vectors(&mut client, embed(["a word"])).await;
        match (told, expected) {
            (Ok(_), Ok(())) => {}
            (Err(status), Err(words)) => {
                assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
                assert!(status.message().contains(words), "{status:?}");
            }
            (told, _) => panic!("{key}: {told:?}"),
        }
        house.app.shutdown().await;
    };
    let here = "[[encoders]]\nid = \"sluice-embed-v0\"\nregion = \"eu\"\n";
    check("placement_floor = \"local-only\"", "", Ok(())).await;
    check("placement_floor = \"remote-only\"", "", Err("remote-only")).await;
    check("regions = [\"eu\"]", "", Err("no region")).await;
    check("regions = [\"eu\"]", here, Ok(())).await;
    check("regions = [\"us\"]", here, Err("only us")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verb_tells_how_near_texts_are() {
    let house = House::new().await;
    let address = house.app.url();
    let (plain, json, wrong) = tokio::task::spawn_blocking(move || {
        let with = |more: &[&str]| {
            let words = ["embed", "--address", address.as_str()].iter().chain(more).copied().collect::<Vec<_>>();
            sluice(&words)
        };
        (with(&TEXTS), with(&["--json", "--dimensions", "4", TEXTS[0]]), with(&[" "]))
    })
    .await
    .unwrap();
    let plain = plain.unwrap();
    assert!(plain.contains("1.000") && plain.contains("256 dimensions by sluice-embed-v0"), "{plain}");
    let line: serde_json::Value = serde_json::from_str(&json.unwrap()).unwrap();
    assert_eq!((line["text"].as_str(), line["vector"].as_array().unwrap().len()), (Some(TEXTS[0]), 4));
    assert!(wrong.unwrap_err().contains("texts[0]"));
    house.close().await;
}
