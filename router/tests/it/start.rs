//! What keeps a gateway from starting, each with an error that names the thing and the mend.

use crate::support::{House, complete, remote, settings, simulator};
use router::app::App;
use router::settings::Settings;
use tokio_util::sync::CancellationToken;

async fn refused(change: impl FnOnce(&mut Settings, &std::path::Path), words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let simulator = simulator(&stop, &[]).await;
    let mut settings = settings(&folder, &simulator);
    change(&mut settings, folder.path());
    let error = match App::start(settings).await {
        Ok(_) => panic!("it started, but should have said {words:?}"),
        Err(error) => format!("{error:#}"),
    };
    for word in words {
        assert!(error.contains(word), "`{word}` in: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hindrance_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    refused(move |settings, _| settings.listen = address, &["can't listen on", "another process"]).await;
    // A folder below a regular file can't be made, not even by root.
    let below_a_file = |settings: &mut Settings, folder: &std::path::Path| {
        std::fs::write(folder.join("file"), "x").unwrap();
        settings.data_dir = folder.join("file/data");
    };
    refused(below_a_file, &["data_dir", "file/data"]).await;
    let corrupt = |settings: &mut Settings, _: &std::path::Path| {
        std::fs::create_dir_all(&settings.data_dir).unwrap();
        std::fs::write(settings.data_dir.join("ledger.sqlite"), "this is no database, whatever it says").unwrap();
    };
    refused(corrupt, &["ledger.sqlite", "backup"]).await;
    let bad_policy = |settings: &mut Settings, folder: &std::path::Path| {
        std::fs::write(folder.join("balanced.toml"), "name = \"balanced\"\nspeling = 1\n").unwrap();
        settings.policies_dir = Some(folder.to_owned());
    };
    refused(bad_policy, &["balanced.toml:2:1", "speling", "objective"]).await;
    refused(|settings, _| settings.default_policy = "none".to_owned(), &["default policy `none`", "balanced"]).await;
    refused(|settings, _| settings.keys_file = Some("absent.toml".into()), &["absent.toml"]).await;
    let corrupt_model = |settings: &mut Settings, folder: &std::path::Path| {
        std::fs::write(folder.join("broken.gguf"), "GGUF but not really").unwrap();
        let text = include_str!("../../../policies/models.toml").replacen(
            "kind = \"bundled\"",
            &format!("kind = \"file\"\npath = \"{}\"", folder.join("broken.gguf").display()),
            1,
        );
        std::fs::write(folder.join("models.toml"), text).unwrap();
        std::fs::write(folder.join("balanced.toml"), include_str!("../../../policies/balanced.toml")).unwrap();
        settings.policies_dir = Some(folder.to_owned());
    };
    refused(corrupt_model, &["sluice-nano", "broken.gguf"]).await;
    let corrupt_scorer = |settings: &mut Settings, folder: &std::path::Path| {
        std::fs::write(folder.join("x.scorer"), "no scorer").unwrap();
        settings.scorer_file = Some(folder.join("x.scorer"));
    };
    refused(corrupt_scorer, &["scorer"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_can_not_share_a_ledger() {
    let house = House::new().await;
    let mut second = settings(&house.folder, &house.simulator);
    second.data_dir = house.folder.path().join("data");
    let error = App::start(second).await.err().map(|error| format!("{error:#}")).unwrap();
    assert!(error.contains("in use by another process"), "{error}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_reloaded_and_a_broken_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("balanced.toml"), text).unwrap();
    let good = include_str!("../../../policies/balanced.toml");
    write(good);
    let policies = folder.path().to_owned();
    let mut house = House::with(|settings| settings.policies_dir = Some(policies)).await;
    let registry = house.app.services().registry.clone();
    let hash = |registry: &router::policy::Registry| registry.snapshot().policy(None).unwrap().reference.hash.clone();
    let first = hash(&registry);
    write("name = \"balanced\"\nbroken = 1\n");
    assert!(registry.reload().is_err());
    assert!(registry.failure().is_some());
    assert_eq!(hash(&registry), first, "the last good one stays");
    complete(&mut house.client, remote("Go on.")).await.unwrap();
    write(&good.replace("ttl = \"1h\"", "ttl = \"2h\""));
    assert!(registry.reload().unwrap());
    assert!(registry.failure().is_none());
    assert_ne!(hash(&registry), first);
    house.close().await;
}
