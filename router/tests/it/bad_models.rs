//! Models and requests that can't work: each is told by a typed error that names the file or the field, by `models inspect`, by
//! `serve` and by `ask`, and nothing panics.

use crate::support::{House, complete, local, settings, simulator};
use local_worker::testing::Script;
use router::app::App;
use router::models::LoadWhen;
use router::settings::Settings;
use sluice_proto::v1;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt as _;

const POLICY: &str = "name = \"chat\"\ndescription = \"All on m.\"\n[models]\nsmall = [\"m\"]\n\
                      [objective]\ngoal = \"fixed-threshold\"\nthreshold = 0.0\n";

fn sound() -> Vec<u8> {
    Script { chains: &[&["a", "b", local_worker::testing::END]], context: 64, ..Script::default() }.gguf()
}

/// The file with other bytes right behind a text.
fn with(behind: &str, skip: usize, new: &[u8]) -> Vec<u8> {
    change(sound(), behind, skip, new)
}

fn change(mut bytes: Vec<u8>, behind: &str, skip: usize, new: &[u8]) -> Vec<u8> {
    let at = bytes.windows(behind.len()).position(|part| part == behind.as_bytes()).unwrap() + behind.len() + skip;
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// What is wrong, the file's bytes (none: there is no file), and words of the message; whether `inspect` knows too.
fn bad_files() -> Vec<(&'static str, Option<Vec<u8>>, &'static str, bool)> {
    let template = Script { template: Some("{% for message in %}"), ..Script::default() }.gguf();
    // Fewer rows than the vocabulary has tokens.
    let rows = 200u64.to_le_bytes();
    let vocabulary = change(with("token_embd.weight", 12, &rows), "output.weight", 12, &rows);
    let mut magic = sound();
    magic[..4].copy_from_slice(b"PK\x03\x04");
    vec![
        ("missing file", None, "", true),
        ("truncated head", Some(sound()[..600].to_vec()), "cut off", true),
        ("truncated weights", Some(sound()[..200_000].to_vec()), "is it cut off?", false),
        ("wrong magic", Some(magic), "not a GGUF file", true),
        ("unsupported family", Some(with("general.architecture", 12, b"mamba")), "the architecture is mamba", true),
        (
            "tensor shape",
            Some(with("blk.0.ffn_up.weight", 4, &64u64.to_le_bytes())),
            "blk.0.ffn_up.weight has the shape",
            false,
        ),
        ("vocabulary", Some(vocabulary), "tokenizer.ggml.tokens has", true),
        (
            "huge counts",
            Some(with("tokenizer.ggml.tokens", 8, &u64::MAX.to_le_bytes())),
            "18446744073709551615 list entries",
            true,
        ),
        ("huge context", Some(with("llama.context_length", 4, &u32::MAX.to_le_bytes())), "llama.context_length", true),
        ("template", Some(template), "tokenizer.chat_template", true),
    ]
}

fn write_folder(folder: &Path, place: &Path) {
    let catalog = format!(
        "[[models]]\nid = \"m\"\nkind = \"file\"\npath = \"{}\"\ncontext = 64\nmax_output = 32\ndefault_output = 8\n\
         capabilities = [\"json-schema\", \"regex\", \"choice\"]\n",
        place.display()
    );
    std::fs::write(folder.join("models.toml"), catalog).unwrap();
    std::fs::write(folder.join("chat.toml"), POLICY).unwrap();
}

fn served_from(settings: &mut Settings, folder: &Path, load: LoadWhen) {
    settings.policies_dir = Some(folder.to_owned());
    settings.default_policy = "chat".to_owned();
    settings.local_load = load;
    settings.local_cache_bytes = 1 << 20;
    settings.reload_interval = Duration::from_millis(20);
}

fn inspect(path: &Path) -> String {
    let told = crate::support::sluice(&["models", "inspect", path.to_str().unwrap()]);
    told.unwrap_or_else(|error| error)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_are_told_by_name() {
    for (what, bytes, words, inspected) in bad_files() {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("m.gguf");
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        write_folder(folder.path(), &path);
        if inspected {
            let told = inspect(&path);
            assert!(told.contains("m.gguf") && told.contains(words), "{what}: inspect said {told}");
        }

        // `serve` that loads at the start does not start.
        let (data, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut settings = settings(&data, &simulator(&stop, &[]).await);
        served_from(&mut settings, folder.path(), LoadWhen::Start);
        let error = match App::start(settings).await {
            Ok(_) => panic!("{what}: it started"),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains("m.gguf") && error.contains(words), "{what}: serve said {error}");

        // One that loads on demand tells who asks, and goes on.
        let house = House::with(|settings| served_from(settings, folder.path(), LoadWhen::Demand)).await;
        let mut client = house.client.clone();
        let status = complete(&mut client, local("a")).await.unwrap_err();
        assert!([Code::Unavailable, Code::FailedPrecondition].contains(&status.code()), "{what}: {status:?}");
        assert!(status.message().contains("`m`") && status.message().contains(words), "{what}: ask said {status:?}");
        std::fs::write(&path, sound()).unwrap();
        client.models.load_model(v1::LoadModelRequest { name: "m".to_owned() }).await.unwrap();
        complete(&mut client, local("a")).await.unwrap();
        house.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_not_be_answered_are_told_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, sound()).unwrap();
    write_folder(folder.path(), &path);
    let mut house = House::with(|settings| served_from(settings, folder.path(), LoadWhen::Start)).await;
    let schema = |text: &str| {
        let kind = v1::response_format::Kind::JsonSchema(text.to_owned());
        let mut ask = local("a");
        ask.response_format = Some(v1::ResponseFormat { kind: Some(kind) });
        ask
    };
    let empty_range = r#"{"type": "integer", "minimum": 3, "maximum": 1}"#;
    for (what, ask, field) in [
        ("a prompt longer than the context", local(&"a".repeat(1_000)), "ask.messages"),
        ("a schema that nothing satisfies", schema(empty_range), "ask.response_format.json_schema"),
        ("a schema that is none", schema("{"), "ask.response_format.json_schema"),
        (
            "a schema of a kind that can't be kept",
            schema(r#"{"not": {"type": "null"}}"#),
            "ask.response_format.json_schema",
        ),
    ] {
        let status = complete(&mut house.client, ask).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        let details = status.get_error_details();
        let found = details.bad_request().map(|bad| bad.field_violations[0].field.clone());
        assert_eq!(found.as_deref(), Some(field), "{what}: {status:?}");
    }
    complete(&mut house.client, local("a")).await.unwrap();
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_fails_when_used_is_told_and_ends_in_time() {
    for template in [
        "{{ raise_exception('only system turns') }}",
        "{{ messages[7].content.nothing.at.all }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, Script { template: Some(template), ..Script::default() }.gguf()).unwrap();
        write_folder(folder.path(), &path);
        let mut house = House::with(|settings| served_from(settings, folder.path(), LoadWhen::Start)).await;
        let status = complete(&mut house.client, local("a")).await.unwrap_err();
        assert!(status.message().contains("chat template"), "{template}: {status:?}");
        assert_eq!(status.code(), Code::InvalidArgument, "{template}: {status:?}");
        house.close().await;
    }
}
