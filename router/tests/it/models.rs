//! `ModelService` and `sluice models` against a hub on loopback: models come, are loaded, swapped and unloaded while they answer.

use crate::support::{House, complete, guarded, local};
use local_worker::testing::hub::{Fault, HubServer};
use local_worker::testing::{END, Script};
use router::models::LoadWhen;
use router::settings::Settings;
use sluice_proto::client::Client;
use sluice_proto::v1;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::task::TaskTracker;
use tonic::Code;

const POLICY: &str = "name = \"chat\"\ndescription = \"All on m.\"\n[models]\nsmall = [\"m\"]\n\
                      [objective]\ngoal = \"fixed-threshold\"\nthreshold = 0.0\n";

/// A model that answers `a` with a word.
fn gguf(word: &[&str]) -> Vec<u8> {
    let chain: Vec<&str> = ["a"].into_iter().chain(word.iter().copied()).chain([END]).collect();
    Script { chains: &[&chain], context: 512, ..Script::default() }.gguf()
}

/// A catalog with one model `m`; readers see all of it or the one before.
fn write_catalog(folder: &Path, place: &str) {
    let text = format!(
        "[[models]]\nid = \"m\"\nkind = \"file\"\n{place}\ncontext = 512\nmax_output = 64\ndefault_output = 8\n"
    );
    std::fs::write(folder.join("models.toml.new"), text).unwrap();
    std::fs::rename(folder.join("models.toml.new"), folder.join("models.toml")).unwrap();
}

/// A gateway whose only model is `m`, loaded when asked for.
async fn house(folder: &Path, place: &str, change: impl FnOnce(&mut Settings)) -> House {
    std::fs::write(folder.join("chat.toml"), POLICY).unwrap();
    write_catalog(folder, place);
    House::with(|settings| {
        settings.policies_dir = Some(folder.to_owned());
        settings.default_policy = "chat".to_owned();
        settings.local_load = LoadWhen::Demand;
        settings.local_cache_bytes = 1 << 20;
        settings.reload_interval = Duration::from_millis(20);
        change(settings);
    })
    .await
}

async fn answer(client: &mut Client) -> Result<String, tonic::Status> {
    let told = complete(client, local("a")).await?;
    let text = |part: v1::Part| match part.kind {
        Some(v1::part::Kind::Text(text)) => text,
        _ => String::new(),
    };
    Ok(told.parts.into_iter().map(text).collect())
}

async fn only(client: &mut Client) -> v1::ModelStatus {
    let told = client.models.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner();
    assert_eq!(told.models.len(), 1, "{told:?}");
    told.models.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_pulled_loaded_asked_and_unloaded() {
    let (hub, folder) = (HubServer::start().unwrap(), tempfile::tempdir().unwrap());
    let file = gguf(&["b", "c"]);
    hub.commit("acme/tiny", &[("m.gguf", &file)]);
    hub.fail("m.gguf", [Fault::Cut(100_000), Fault::Slow(Duration::from_millis(3))]);
    let url = hub.url();
    let mut house = house(folder.path(), "source = \"hf:acme/tiny\"", |settings| settings.hub.endpoint = url).await;
    assert_eq!(only(&mut house.client).await.state(), v1::ModelState::Downloadable);
    let status = answer(&mut house.client).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("sluice models pull m"), "{status:?}");

    let request = || v1::PullModelRequest { name: "m".to_owned() };
    let mut steps = house.client.models.pull_model(request()).await.unwrap().into_inner();
    let (mut last, mut done) = (v1::PullProgress::default(), None);
    while let Some(step) = steps.message().await.unwrap() {
        if let Some(progress) = step.progress {
            assert!(progress.done_bytes >= last.done_bytes, "{progress:?} after {last:?}");
            last = progress;
        }
        done = step.status;
    }
    assert_eq!(done.unwrap().state(), v1::ModelState::Available);
    assert_eq!(hub.served("m.gguf"), file.len(), "no byte came twice");

    assert_eq!(answer(&mut house.client).await.unwrap(), "bc");
    let name = || "m".to_owned();
    let told = house.client.models.get_model(v1::GetModelRequest { name: name() }).await.unwrap().into_inner();
    let (status, details) = (told.status.unwrap(), told.details.unwrap());
    assert_eq!((status.state(), status.license.as_str()), (v1::ModelState::Loaded, "apache-2.0"));
    assert!(status.memory_bytes > 1 << 20 && details.weight_bytes > 0 && details.context == 512, "{details:?}");
    assert_eq!((details.architecture.as_str(), details.file_bytes), ("llama", file.len() as i64));
    assert_eq!(details.file_blake3.len(), 64);

    let unload = |client: &Client| {
        let mut models = client.models.clone();
        async move { models.unload_model(v1::UnloadModelRequest { name: "m".to_owned() }).await.unwrap().into_inner() }
    };
    assert!(unload(&house.client).await.was_loaded && !unload(&house.client).await.was_loaded);
    let loaded = house.client.models.load_model(v1::LoadModelRequest { name: name() }).await.unwrap().into_inner();
    assert_eq!(loaded.status.unwrap().state(), v1::ModelState::Loaded);
    let status = house.client.models.load_model(v1::LoadModelRequest { name: "x".to_owned() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    hub.fail("api", [Fault::Status(403, "GatedRepo")]);
    let mut steps = house.client.models.pull_model(request()).await.unwrap().into_inner();
    let refused = loop {
        match steps.message().await {
            Ok(step) => assert!(step.unwrap().status.is_none()),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("accept its terms"), "{refused:?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_source_in_the_catalog_swaps_without_dropping_a_request() {
    let folder = tempfile::tempdir().unwrap();
    let place = |word: &[&str]| {
        let path = folder.path().join(format!("{}.gguf", word.concat()));
        std::fs::write(&path, gguf(word)).unwrap();
        format!("path = \"{}\"", path.display())
    };
    let places = [place(&["b", "c"]), place(&["d", "e", "f"])];
    let house = house(folder.path(), &places[0], |settings| settings.local_load = LoadWhen::Start).await;
    let (stop, answers, tasks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), TaskTracker::new());
    for _ in 0..4 {
        let (mut client, stop, answers) = (house.client.clone(), Arc::clone(&stop), Arc::clone(&answers));
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // A request that comes without a cache entry each time: the prompt's end decides the answer.
                let number = answers.fetch_add(1, Ordering::Relaxed);
                let told = complete(&mut client, local(&format!("{number} a"))).await.expect("no request is dropped");
                let text = format!("{:?}", told.parts);
                assert!(text.contains("\"bc\"") || text.contains("\"def\""), "{text}");
            }
        });
    }
    for round in 1..5 {
        write_catalog(folder.path(), &places[round % 2]);
        let expected = if round % 2 == 0 { "bc" } else { "def" };
        let mut client = house.client.clone();
        loop {
            let told = complete(&mut client, local(&format!("{round} {} a", answers.load(Ordering::Relaxed)))).await;
            if format!("{:?}", told.unwrap().parts).contains(&format!("\"{expected}\"")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    tasks.close();
    tasks.wait().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_change_models_and_see_paths() {
    let (house, _folder) = guarded().await;
    let pem = None;
    for (key, allowed) in [("serve", false), ("own", false), ("all", false), ("admin", true)] {
        let mut client = Client::connect(&house.app.url(), Some(key), pem).await.unwrap();
        let listed = client.models.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner();
        assert_eq!(listed.models[0].state(), v1::ModelState::Loaded, "{key}");
        let name = || "sluice-nano".to_owned();
        let codes = [
            client.models.pull_model(v1::PullModelRequest { name: name() }).await.err(),
            client.models.load_model(v1::LoadModelRequest { name: name() }).await.err(),
            client.models.unload_model(v1::UnloadModelRequest { name: name() }).await.err(),
        ];
        for status in codes {
            assert_eq!(status.map(|status| status.code()), (!allowed).then_some(Code::PermissionDenied), "{key}");
        }
        if allowed {
            client.models.load_model(v1::LoadModelRequest { name: name() }).await.unwrap();
        }
    }
    let status = house.client.clone().models.list_models(v1::ListModelsRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    // The ledger is empty, so there is no bill to compare; this key may not read it anyhow.
    house.app.shutdown().await;
}

fn sluice(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).output().unwrap()
}

fn json(output: &Output) -> Vec<serde_json::Value> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verbs_work_with_and_without_a_gateway() {
    let (hub, folder) = (HubServer::start().unwrap(), tempfile::tempdir().unwrap());
    let file = gguf(&["b"]);
    hub.commit("acme/tiny", &[("m.gguf", &file)]);
    hub.want("secret");
    let (data, token) = (folder.path().join("data"), folder.path().join("token"));
    std::fs::write(&token, "secret\n").unwrap();
    let url = hub.url();
    let variables = [
        ("SLUICE_HUB__ENDPOINT", url.as_str()),
        ("SLUICE_HUB__TOKEN_FILE", token.to_str().unwrap()),
        ("SLUICE_DATA_DIR", data.to_str().unwrap()),
    ];
    let pulled = json(&sluice(&["models", "pull", "hf:acme/tiny", "--json"], &variables));
    let path = pulled[0]["path"].as_str().unwrap().to_owned();
    assert!(path.starts_with(data.join("models").to_str().unwrap()));
    assert_eq!((std::fs::read(&path).unwrap(), hub.served("m.gguf")), (file.clone(), file.len()));
    let told = json(&sluice(&["models", "inspect", &path, "--json"], &[]));
    assert_eq!(
        (told[0]["architecture"].as_str(), told[0]["file_bytes"].as_u64()),
        (Some("llama"), Some(file.len() as u64))
    );
    let refused = sluice(&["models", "pull", "hf:acme/other"], &variables);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("no such model"),
        "{refused:?}"
    );

    let place = format!("path = \"{path}\"");
    let policies = tempfile::tempdir().unwrap();
    let house = house(policies.path(), &place, |_| {}).await;
    let address = house.app.url();
    let of = |verb: &'static str| {
        let address = address.clone();
        tokio::task::spawn_blocking(move || sluice(&["models", verb, "m", "--json", "--address", &address], &[]))
    };
    assert_eq!(json(&of("pull").await.unwrap()).last().unwrap()["state"], "available");
    assert_eq!(json(&of("load").await.unwrap())[0]["state"], "loaded");
    assert_eq!(json(&of("inspect").await.unwrap())[0]["path"], path);
    assert_eq!(json(&of("unload").await.unwrap())[0]["was_loaded"], true);
    let listed =
        tokio::task::spawn_blocking(move || sluice(&["models", "list", "--address", &address], &[])).await.unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("m      available"), "{listed}");
    house.close().await;
}
