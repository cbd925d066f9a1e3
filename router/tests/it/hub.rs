//! `sluice serve` as a process of its own beside a hub that fails in every way it knows: what `sluice models` says of each, that a
//! gateway that was killed goes on where it was, serves without the network what is there, and keeps several models within
//! the budget.

use crate::support::serve;
use local_worker::testing::hub::{Fault, HubServer};
use local_worker::testing::{END, Script};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A model that answers `a` with a word.
fn gguf(word: &str) -> Vec<u8> {
    let letters: Vec<String> = word.chars().map(String::from).collect();
    let chain: Vec<&str> = ["a"].into_iter().chain(letters.iter().map(String::as_str)).chain([END]).collect();
    Script { chains: &[&chain], context: 512, ..Script::default() }.gguf()
}

/// A folder of policies whose models are these, with the places they are at.
fn write_policies(folder: &Path, models: &[(&str, &str)]) {
    let names: Vec<String> = models.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let policy = format!(
        "name = \"chat\"\ndescription = \"All local.\"\n[models]\nsmall = [{}]\n[objective]\ngoal = \"fixed-threshold\"\n\
         threshold = 0.0\n",
        names.join(", ")
    );
    let catalog: String = models
        .iter()
        .map(|(name, place)| {
            format!(
                "[[models]]\nid = \"{name}\"\nkind = \"file\"\n{place}\ncontext = 512\nmax_output = 64\n\
                 default_output = 8\n"
            )
        })
        .collect();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("chat.toml"), policy).unwrap();
    std::fs::write(folder.join("models.toml"), catalog).unwrap();
}

struct Gateway {
    child: Child,
    address: String,
}

impl Gateway {
    /// Starts one on `folder/data` and `folder/policies`; models are loaded when they are asked for.
    fn start(folder: &Path, hub: &HubServer, more: &[(&str, &str)]) -> Self {
        let (data, policies) = (folder.join("data"), folder.join("policies"));
        let (child, address) = serve(|command| {
            command
                .env("SLUICE_LISTEN", "127.0.0.1:0")
                .env("SLUICE_DATA_DIR", data)
                .env("SLUICE_POLICIES_DIR", policies)
                .env("SLUICE_DEFAULT_POLICY", "chat")
                .env("SLUICE_LOCAL__LOAD", "demand")
                .env("SLUICE_LOCAL__CACHE_BYTES", "1048576")
                .env("SLUICE_HUB__ENDPOINT", hub.url())
                .env("SLUICE_TELEMETRY__LOG_FILTER", "off")
                .envs(more.iter().copied())
        });
        Self { child, address }
    }

    /// Runs a verb as people do; what it printed, or what it complained of.
    fn run(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        let ended = command.args(words).args(["--address", &self.address]).env_clear().output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
    }

    /// State and memory of a model, as listed.
    fn state(&self, model: &str) -> (String, u64) {
        let listed: Value = serde_json::from_str(&self.run(&["models", "list", "--json"]).unwrap()).unwrap();
        let models = listed["models"].as_array().unwrap();
        let told = models.iter().find(|told| told["name"] == model).unwrap();
        (told["state"].as_str().unwrap().to_owned(), told["memory_bytes"].as_u64().unwrap())
    }

    /// What it answers to `a`: the line between what it says of the decision and of the end.
    fn answer(&self) -> Result<String, String> {
        self.run(&["ask", "a"]).map(|told| told.lines().nth(1).unwrap_or_default().to_owned())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[test]
fn a_pull_says_what_is_wrong_and_goes_on_where_it_was() {
    let (hub, folder) = (HubServer::start().unwrap(), tempfile::tempdir().unwrap());
    let file = gguf("bc");
    hub.commit("acme/tiny", &[("m.gguf", &file)]);
    hub.want("secret");
    write_policies(&folder.path().join("policies"), &[("m", "source = \"hf:acme/tiny\"")]);
    let token = folder.path().join("token");
    std::fs::write(&token, "secret\n").unwrap();
    let with_token = [("SLUICE_HUB__TOKEN_FILE", token.to_str().unwrap())];

    let bare = Gateway::start(folder.path(), &hub, &[]);
    let refused = bare.run(&["models", "pull", "m"]).unwrap_err();
    assert!(refused.contains("answers 401") && refused.contains("set a token"), "{refused}");
    assert_eq!(bare.state("m").0, "downloadable");
    assert!(bare.answer().unwrap_err().contains("sluice models pull m"));
    drop(bare);

    let gateway = Gateway::start(folder.path(), &hub, &with_token);
    let other_place = || Fault::Redirect("ftp://elsewhere/m.gguf".to_owned());
    for (fault, words) in [
        (Fault::Longer, "what came was thrown away"),
        (Fault::Shorter, "what came was thrown away"),
        (Fault::WrongByte, "the checksum is"),
        (other_place(), "not safe"),
        (Fault::Status(403, "GatedRepo"), "accept its terms"),
    ] {
        let what = format!("{fault:?}");
        hub.fail("m.gguf", [fault]);
        let refused = gateway.run(&["models", "pull", "m"]).unwrap_err();
        assert!(refused.contains("m.gguf") && refused.contains(words), "{what}: {refused}");
        assert_eq!(gateway.state("m").0, "downloadable", "{what}");
    }

    // Killed in the middle of a download; the next one goes on from what lies there.
    let before = hub.served("m.gguf");
    hub.fail("m.gguf", [Fault::Stall(file.len() / 2)]);
    let mut pull = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["models", "pull", "m", "--address", &gateway.address])
        .env_clear()
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while hub.served("m.gguf") < before + file.len() / 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let partials = folder.path().join("data/models/acme/tiny/partial");
    let kept = || std::fs::read_dir(&partials).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).max();
    while kept().unwrap_or(0) < (file.len() / 4) as u64 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(gateway.state("m").0, "downloading");
    drop(gateway);
    assert!(!pull.wait().unwrap().success(), "the gateway it watched is gone");
    let (kept, served) = (kept().unwrap() as usize, hub.served("m.gguf"));

    let gateway = Gateway::start(folder.path(), &hub, &with_token);
    hub.fail("m.gguf", [Fault::Slow(Duration::from_millis(20))]);
    let steps = gateway.run(&["models", "pull", "m", "--json"]).unwrap();
    let steps: Vec<Value> = steps.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let done: Vec<u64> = steps.iter().filter_map(|step| step["done_bytes"].as_u64()).collect();
    assert!(done.is_sorted() && steps.last().unwrap()["state"] == "available", "{steps:?}");
    assert_eq!(hub.served("m.gguf") - served, file.len() - kept, "only what was missing came");
    assert!(hub.seen().iter().all(|seen| !seen.storage || seen.token.is_none()), "the storage sees no token");
    assert_eq!(gateway.answer().unwrap(), "bc");
    drop(gateway);

    // Without the network: what is here serves, what is not says so.
    let asked = hub.seen().len();
    let places = [("m", "source = \"hf:acme/tiny\""), ("n", "source = \"hf:acme/other\"")];
    write_policies(&folder.path().join("policies"), &places);
    let offline = Gateway::start(folder.path(), &hub, &[("SLUICE_HUB__OFFLINE", "true")]);
    assert_eq!((offline.state("m").0.as_str(), offline.answer().unwrap().as_str()), ("available", "bc"));
    assert!(offline.run(&["models", "pull", "m"]).unwrap().contains("m is loaded"));
    let refused = offline.run(&["models", "pull", "n"]).unwrap_err();
    assert!(refused.contains("offline mode is on"), "{refused}");
    assert_eq!(hub.seen().len(), asked, "nothing was asked of the hub");
}

#[test]
fn several_models_share_the_budget_and_each_verb_tells() {
    let (hub, folder) = (HubServer::start().unwrap(), tempfile::tempdir().unwrap());
    let place = |name: &str| {
        let path = folder.path().join(format!("{name}.gguf"));
        std::fs::write(&path, gguf("bc")).unwrap();
        format!("path = \"{}\"", path.display())
    };
    let places = [place("x"), place("y"), place("z")];
    let models: Vec<(&str, &str)> = ["x", "y", "z"].into_iter().zip(places.iter().map(String::as_str)).collect();
    write_policies(&folder.path().join("policies"), &models);
    let size = {
        let gateway = Gateway::start(folder.path(), &hub, &[]);
        assert!(gateway.run(&["models", "load", "x"]).unwrap().starts_with("x is loaded: "));
        gateway.state("x").1
    };
    let budget = (2 * size + size / 2).to_string();
    let gateway = Gateway::start(folder.path(), &hub, &[("SLUICE_LOCAL__MEMORY_BYTES", &budget)]);
    for model in ["x", "y", "z"] {
        gateway.run(&["models", "load", model]).unwrap();
        assert_eq!(gateway.state(model), ("loaded".to_owned(), size));
    }
    // The one that was used least recently made room.
    assert_eq!(gateway.state("x"), ("available".to_owned(), 0));
    let listed = gateway.run(&["models", "list"]).unwrap();
    assert!(listed.lines().filter(|line| line.contains(" loaded ")).count() == 2, "{listed}");
    assert!(listed.lines().last().unwrap().starts_with("memory: ") && listed.contains(" of "), "{listed}");
    let told = gateway.run(&["models", "inspect", "y"]).unwrap();
    assert!(told.contains("llama") && told.contains("y.gguf"), "{told}");
    assert!(gateway.run(&["models", "unload", "y"]).unwrap().contains("y is unloaded"));
    assert!(gateway.run(&["models", "unload", "y"]).unwrap().contains("was not loaded"));
    assert_eq!(gateway.answer().unwrap(), "bc", "the first of the policy is loaded for a request");
    assert_eq!((gateway.state("x").0.as_str(), gateway.state("z").0.as_str()), ("loaded", "loaded"));
    drop(gateway);
    let small = Gateway::start(folder.path(), &hub, &[("SLUICE_LOCAL__MEMORY_BYTES", &(size / 2).to_string())]);
    let refused = small.run(&["models", "load", "x"]).unwrap_err();
    assert!(refused.contains("budget") || refused.contains("memory"), "{refused}");
}
