//! Models that come, change and go under requests that are being answered.

use super::*;
use crate::backend::{AnswerStream, Availability, BackendCall, BackendError, UsageProbe};
use crate::domain::{AttemptId, Chunk, Limits, Message, Role, TenantId};
use futures_util::StreamExt as _;
use local_worker::model::hub::HubConfig;
use local_worker::testing::hub::{Fault, HubServer};
use local_worker::testing::{END, Script};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes of keys and values that each model may take here.
const KEYS: usize = 1 << 20;

/// A model that answers `a` with a word, and `z` with 1,000 letters or as many as may be.
fn gguf(word: &[&str]) -> Vec<u8> {
    let chain: Vec<&str> = ["a"].into_iter().chain(word.iter().copied()).chain([END]).collect();
    Script { chains: &[&chain, &["z", "y", "y"]], context: 4096, ..Script::default() }.gguf()
}

struct Scene {
    folder: tempfile::TempDir,
    models: Arc<Models>,
}

/// Bytes that one of our models counts with.
async fn one() -> u64 {
    let scene = Scene::new(LoadWhen::Demand, None);
    scene.apply(&["one"], &[("one", "b")]);
    scene.models.load(&ModelId::new("one")).await.unwrap();
    scene.models.memory().0
}

impl Scene {
    fn new(load_when: LoadWhen, memory_bytes: Option<u64>) -> Self {
        Self::at(load_when, memory_bytes, "http://127.0.0.1:1")
    }

    fn at(load_when: LoadWhen, memory_bytes: Option<u64>, endpoint: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let worker = WorkerConfig { cache_bytes: KEYS, ..WorkerConfig::default() };
        let config = ModelsConfig { memory_bytes, load_when, wait: Duration::from_secs(20), worker };
        let hub = HubConfig {
            endpoint: endpoint.to_owned(),
            backoff: Duration::from_millis(1),
            ..HubConfig::new(folder.path().join("cache"))
        };
        let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let models = Models::new(config, Hub::new(hub).unwrap(), TaskTracker::new(), CancellationToken::new());
        Self { folder, models }
    }

    /// Puts a catalog in force: names, and for each a file whose model answers with a word of single letters.
    fn apply(&self, names: &[&str], files: &[(&str, &str)]) -> Vec<ModelId> {
        let places: Vec<String> = files
            .iter()
            .zip(names)
            .map(|((_, word), name)| {
                let path = self.folder.path().join(format!("{name}-{word}.gguf"));
                let letters: Vec<&str> = word.split("").filter(|letter| !letter.is_empty()).collect();
                fs::write(&path, gguf(&letters)).unwrap();
                format!("path = \"{}\"", path.display())
            })
            .collect();
        self.apply_places(names, &places)
    }

    fn apply_places(&self, names: &[&str], places: &[String]) -> Vec<ModelId> {
        let entry = |(name, place): (&&str, &String)| {
            let sizes = "context = 4096\nmax_output = 4000\ndefault_output = 8";
            format!("[[models]]\nid = \"{name}\"\nkind = \"file\"\n{place}\n{sizes}\n")
        };
        let text: String = names.iter().zip(places).map(entry).collect();
        let catalog = Catalog::parse("models.toml", &text).unwrap();
        self.models.apply(&catalog, &names.iter().map(|name| ModelId::new(*name)).collect())
    }

    async fn ask_as(&self, call: BackendCall, model: &str) -> Result<String, BackendError> {
        let backend = self.models.backend(&ModelId::new(model)).unwrap();
        read(backend.generate(call).await?).await
    }

    async fn ask(&self, model: &str) -> Result<String, BackendError> {
        self.ask_as(call("a"), model).await
    }

    async fn load(&self, model: &str) -> Result<(), ModelsError> {
        self.models.load(&ModelId::new(model)).await
    }

    async fn unload(&self, model: &str) -> bool {
        self.models.unload(&ModelId::new(model)).await.unwrap()
    }

    fn state(&self, model: &str) -> ModelState {
        self.models.report(&ModelId::new(model)).unwrap().state
    }

    /// Waits until so many bytes are counted.
    async fn settles_at(&self, bytes: u64) {
        let mut memory = self.models.memory.subscribe();
        let settled = memory.wait_for(|used| *used == bytes);
        tokio::time::timeout(Duration::from_secs(20), settled).await.expect("the memory comes back").unwrap();
    }
}

fn call(prompt: &str) -> BackendCall {
    BackendCall {
        attempt: AttemptId::fresh(),
        tenant: TenantId::new("acme"),
        messages: Arc::from([Message::text(Role::User, prompt)]),
        limits: Limits::default(),
        max_output_tokens: 1000,
        deadline: None,
        end_user_id: String::new(),
        probe: UsageProbe::default(),
    }
}

async fn read(mut stream: AnswerStream) -> Result<String, BackendError> {
    let mut answer = String::new();
    while let Some(chunk) = stream.next().await {
        match chunk? {
            Chunk::Text { text, .. } => answer.push_str(&text),
            Chunk::End(_) => return Ok(answer),
        }
    }
    Err(BackendError::Panicked)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_dropped_while_models_are_swapped_unloaded_and_pushed_out() {
    let size = one().await;
    // Room for two of three.
    let scene = Arc::new(Scene::new(LoadWhen::Demand, Some(2 * size + size / 2)));
    let names = ["x", "y", "z"];
    let words = |round: usize| if round.is_multiple_of(2) { "bc" } else { "def" };
    let files = |round: usize| names.map(|name| (name, words(round)));
    scene.apply(&names, &files(0));
    let (stop, answers, tasks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), TaskTracker::new());
    for asker in 0..6 {
        let (scene, stop, answers) = (Arc::clone(&scene), Arc::clone(&stop), Arc::clone(&answers));
        tasks.spawn(async move {
            let mut overloaded = 0;
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match scene.ask(names[(asker + turn) % 3]).await {
                    // Of one version from start to end.
                    Ok(answer) => assert!(answer == "bc" || answer == "def", "{answer:?}"),
                    // All others are answering: told at once, and worth another try.
                    Err(BackendError::Overloaded { .. }) => overloaded += 1,
                    Err(error) => panic!("dropped: {error}"),
                }
                answers.fetch_add(1, Ordering::Relaxed);
            }
            overloaded
        });
    }
    for round in 1..13 {
        let before = answers.load(Ordering::Relaxed);
        let changed = scene.apply(&names, &files(round));
        for id in changed {
            match scene.models.load(&id).await {
                Ok(()) | Err(ModelsError::NoRoom { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        scene.unload(names[round % 3]).await;
        while answers.load(Ordering::Relaxed) < before + 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (used, budget) = scene.models.memory();
        assert!(used <= budget.unwrap(), "{used}");
    }
    stop.store(true, Ordering::Relaxed);
    tasks.close();
    tasks.wait().await;
    for name in names {
        scene.unload(name).await;
    }
    scene.settles_at(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_keeps_its_model_and_then_the_memory_comes_back() {
    let scene = Scene::new(LoadWhen::Demand, None);
    scene.apply(&["m"], &[("m", "bc")]);
    let backend = scene.models.backend(&ModelId::new("m")).unwrap();
    let long = backend.generate(call("z")).await.unwrap();
    assert_eq!(scene.models.report(&ModelId::new("m")).unwrap().running, 1);
    let size = scene.models.memory().0;
    assert!(size > KEYS as u64 && scene.unload("m").await && !scene.unload("m").await);
    assert_eq!(scene.state("m"), ModelState::Available);
    assert_eq!(scene.models.memory().0, size, "it is still answering");
    assert_eq!(read(long).await.unwrap(), "y".repeat(1000));
    scene.settles_at(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_without_room_for_both_waits_for_the_old_one() {
    let size = one().await;
    let scene = Arc::new(Scene::new(LoadWhen::Start, Some(size + size / 2)));
    scene.apply(&["m"], &[("m", "bc")]);
    scene.load("m").await.unwrap();
    let backend = scene.models.backend(&ModelId::new("m")).unwrap();
    let long = backend.generate(call("z")).await.unwrap();
    assert_eq!(scene.apply(&["m"], &[("m", "def")]), [ModelId::new("m")]);
    let (asked, loaded, told) = tokio::join!(
        async {
            while scene.state("m") != ModelState::Loading {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            scene.ask("m").await
        },
        scene.load("m"),
        read(long)
    );
    assert_eq!((asked.unwrap().as_str(), told.unwrap().len()), ("def", 1000));
    loaded.unwrap();
    scene.settles_at(size).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_fails_keeps_what_answers() {
    let scene = Scene::new(LoadWhen::Start, None);
    scene.apply(&["m"], &[("m", "bc")]);
    scene.load("m").await.unwrap();
    let broken = scene.folder.path().join("broken.gguf");
    fs::write(&broken, b"GGUF?").unwrap();
    scene.apply_places(&["m"], &[format!("path = \"{}\"", broken.display())]);
    let error = scene.load("m").await.unwrap_err();
    assert!(matches!(&error, ModelsError::Failed { why, .. } if why.contains("broken.gguf")), "{error}");
    assert_eq!(scene.ask("m").await.unwrap(), "bc");
    assert_eq!(scene.state("m"), ModelState::Loaded);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_unused_model_is_pushed_out_and_a_busy_one_never() {
    let size = one().await;
    let scene = Scene::new(LoadWhen::Demand, Some(2 * size + size / 2));
    scene.apply(&["x", "y", "z"], &[("x", "bc"), ("y", "bc"), ("z", "bc")]);
    for model in ["x", "y", "x", "z"] {
        assert_eq!(scene.ask(model).await.unwrap(), "bc");
    }
    assert_eq!(scene.state("y"), ModelState::Available);
    let busy = async |model: &str| {
        let backend = scene.models.backend(&ModelId::new(model)).unwrap();
        backend.generate(call("z")).await.unwrap()
    };
    let streams = (busy("x").await, busy("z").await);
    let error = scene.load("y").await.unwrap_err();
    assert!(matches!(&error, ModelsError::NoRoom { .. }), "{error}");
    let error = scene.ask("y").await.unwrap_err();
    assert!(matches!(&error, BackendError::Overloaded { retry_after: Some(_), .. }), "{error}");
    drop(streams);
    assert_eq!(scene.ask("y").await.unwrap(), "bc");
    let small = Scene::new(LoadWhen::Demand, Some(size / 2));
    small.apply(&["m"], &[("m", "b")]);
    let error = small.load("m").await.unwrap_err();
    assert!(matches!(&error, ModelsError::TooLarge { .. }), "{error}");
    small.settles_at(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_load_nothing_where_models_are_loaded_at_start() {
    let scene = Scene::new(LoadWhen::Start, None);
    scene.apply(&["m"], &[("m", "bc")]);
    let error = scene.ask("m").await.unwrap_err();
    assert!(error.to_string().contains("sluice models load m"), "{error}");
    let availability = scene.models.backend(&ModelId::new("m")).unwrap().availability();
    assert!(matches!(availability, Availability::Unavailable { retry_after: None, .. }));
    scene.load("m").await.unwrap();
    assert_eq!(scene.ask("m").await.unwrap(), "bc");
    // Gone from the catalog, gone from memory.
    scene.apply(&[], &[]);
    scene.settles_at(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_no_longer_than_settings_and_deadline_allow() {
    let mut scene = Scene::new(LoadWhen::Demand, None);
    Arc::get_mut(&mut scene.models).unwrap().config.wait = Duration::from_millis(30);
    scene.apply(&["m"], &[("m", "bc")]);
    let turn = scene.models.turn.lock().await;
    let error = scene.ask("m").await.unwrap_err();
    assert!(matches!(&error, BackendError::Unavailable { retry_after: Some(_), .. }), "{error}");
    let soon = BackendCall { deadline: Some(Instant::now() + Duration::from_millis(5)), ..call("a") };
    let error = scene.ask_as(soon, "m").await.unwrap_err();
    assert!(matches!(&error, BackendError::DeadlineExceeded { sent: false, .. }), "{error}");
    drop(turn);
    while scene.state("m") != ModelState::Loaded {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(scene.ask("m").await.unwrap(), "bc", "the load went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_loaded_is_left_alone_until_somebody_says_so() {
    let scene = Scene::new(LoadWhen::Demand, None);
    let path = scene.folder.path().join("m.gguf");
    fs::write(&path, b"GGUF?").unwrap();
    scene.apply_places(&["m", "gone"], &[format!("path = \"{}\"", path.display()), "path = \"no.gguf\"".to_owned()]);
    scene.ask("m").await.unwrap_err();
    assert!(matches!(scene.state("m"), ModelState::Failed(why) if why.contains("m.gguf")));
    fs::write(&path, gguf(&["b"])).unwrap();
    let error = scene.ask("m").await.unwrap_err();
    assert!(error.to_string().contains("m.gguf"), "{error}");
    scene.load("m").await.unwrap();
    assert_eq!(scene.ask("m").await.unwrap(), "b");
    assert!(matches!(scene.load("gone").await, Err(ModelsError::NotHere { .. })));
    assert!(matches!(scene.load("other").await, Err(ModelsError::Unknown(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_comes_from_the_hub_once_for_all_who_ask() {
    let server = HubServer::start().unwrap();
    let file = gguf(&["b"]);
    server.commit("acme/tiny", &[("m.gguf", &file)]);
    server.fail("m.gguf", [Fault::Slow(Duration::from_millis(2))]);
    let scene = Scene::at(LoadWhen::Demand, None, &server.url());
    scene.apply_places(&["m"], &["source = \"hf:acme/tiny\"".to_owned()]);
    let id = ModelId::new("m");
    assert_eq!(scene.state("m"), ModelState::Downloadable);
    let error = scene.ask("m").await.unwrap_err();
    assert!(error.to_string().contains("sluice models pull m"), "{error}");
    let mut first = scene.models.pull(&id).unwrap();
    let mut second = scene.models.pull(&id).unwrap();
    assert!(matches!(scene.state("m"), ModelState::Downloading(_)));
    assert!(scene.ask("m").await.unwrap_err().to_string().contains("being downloaded"));
    for download in [&mut first, &mut second] {
        let end = download.wait_for(|download| !matches!(download, Download::Running(_))).await.unwrap();
        assert!(matches!(&*end, Download::Done(path) if fs::read(path).unwrap() == file));
    }
    assert_eq!((server.served("m.gguf"), scene.state("m")), (file.len(), ModelState::Available));
    assert_eq!(scene.ask("m").await.unwrap(), "b");
    let report = scene.models.report(&id).unwrap();
    assert_eq!((report.license.as_deref(), report.info.is_some()), (Some("apache-2.0"), true));
    // A new commit: pulled, and swapped by the next load.
    server.commit("acme/tiny", &[("m.gguf", &gguf(&["c"]))]);
    scene.models.pull(&id).unwrap().wait_for(|end| matches!(end, Download::Done(_))).await.unwrap();
    assert_eq!(scene.ask("m").await.unwrap(), "b");
    scene.load("m").await.unwrap();
    assert_eq!(scene.ask("m").await.unwrap(), "c");
    server.fail("api", [Fault::Status(401, "")]);
    let mut refused = scene.models.pull(&id).unwrap();
    let end = refused.wait_for(|download| !matches!(download, Download::Running(_))).await.unwrap();
    assert!(matches!(&*end, Download::Failed { why, passing: false } if why.contains("401")), "{:?}", *end);
}
