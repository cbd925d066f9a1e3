use super::*;
use crate::testing::hub::{Fault, HubServer};
use std::sync::Mutex;

const FILE: &str = "model.q8.gguf";

struct Scene {
    server: HubServer,
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
    commit: String,
}

impl Scene {
    /// A hub with one repository `acme/tiny` of a large and a small file.
    fn new() -> Self {
        let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = HubServer::start().unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let commit = server.commit("acme/tiny", &[(FILE, &bytes), ("README.md", b"hello\n")]);
        Self { server, folder: tempfile::tempdir().unwrap(), bytes, commit }
    }

    fn config(&self) -> HubConfig {
        let mut config = HubConfig::new(self.folder.path().to_owned());
        config.endpoint = self.server.url();
        config.backoff = Duration::from_millis(1);
        config
    }

    async fn pull_as(&self, config: HubConfig, text: &str) -> Result<Pulled, HubError> {
        Hub::new(config)?.pull(&text.parse()?, &|_| {}).await
    }

    async fn pull(&self, text: &str) -> Result<Pulled, HubError> {
        self.pull_as(self.config(), text).await
    }

    /// Pulls the large file with faults and expects it whole; returns the bytes that the hub handed out for it.
    async fn survives(&self, faults: impl IntoIterator<Item = Fault>) -> usize {
        self.server.fail(FILE, faults);
        let pulled = self.pull("hf:acme/tiny").await.unwrap();
        assert_eq!(std::fs::read(&pulled.path).unwrap(), self.bytes);
        self.server.served(FILE)
    }

    async fn fails(&self, faults: impl IntoIterator<Item = Fault>) -> HubError {
        self.server.fail(FILE, faults);
        let error = self.pull("hf:acme/tiny").await.unwrap_err();
        assert!(!self.folder.path().join("acme/tiny").join(&self.commit).join(FILE).exists(), "{error}");
        error
    }
}

#[tokio::test]
async fn a_model_comes_whole_and_is_found_again_without_the_network() {
    let scene = Scene::new();
    let told = Mutex::new(Vec::new());
    let hub = Hub::new(scene.config()).unwrap();
    let reference: HubReference = "hf:acme/tiny".parse().unwrap();
    assert_eq!(hub.cached(&reference), None);
    let pulled = hub.pull(&reference, &|progress| told.lock().unwrap().push(progress)).await.unwrap();
    assert_eq!(pulled.path, scene.folder.path().join("acme/tiny").join(&scene.commit).join(FILE));
    assert_eq!((pulled.license.as_deref(), &pulled.commit), (Some("apache-2.0"), &scene.commit));
    assert_eq!(std::fs::read(&pulled.path).unwrap(), scene.bytes);
    let told = told.into_inner().unwrap();
    assert!(told.windows(2).all(|pair| pair[0].done_bytes <= pair[1].done_bytes));
    assert_eq!(told.last().unwrap().done_bytes, told.last().unwrap().total_bytes);
    let asked = scene.server.seen().len();
    let offline = HubConfig { offline: true, endpoint: "http://127.0.0.1:1".to_owned(), ..scene.config() };
    assert_eq!(scene.pull_as(offline.clone(), "hf:acme/tiny").await.unwrap(), pulled);
    assert_eq!(scene.pull_as(offline.clone(), &format!("hf:acme/tiny@{}", scene.commit)).await.unwrap(), pulled);
    let error = scene.pull_as(offline, "hf:acme/tiny/README.md").await.unwrap_err();
    assert!(matches!(&error, HubError::Offline { what } if what == "hf:acme/tiny/README.md"), "{error}");
    // A commit never changes, so nobody is asked about one either.
    assert_eq!(scene.pull(&format!("hf:acme/tiny@{}", scene.commit)).await.unwrap(), pulled);
    assert_eq!(scene.server.seen().len(), asked);
}

#[tokio::test]
async fn small_files_are_checked_by_their_git_name() {
    let scene = Scene::new();
    let pulled = scene.pull("hf:acme/tiny/README.md").await.unwrap();
    assert_eq!(std::fs::read(&pulled.path).unwrap(), b"hello\n");
    scene.server.fail("config.json", [Fault::WrongByte]);
    scene.server.commit("acme/tiny", &[("config.json", b"{}")]);
    let error = scene.pull("hf:acme/tiny/config.json").await.unwrap_err();
    assert!(matches!(&error, HubError::WrongChecksum { .. }), "{error}");
}

#[tokio::test]
async fn a_cut_file_is_continued_and_no_byte_comes_twice() {
    let scene = Scene::new();
    let served = scene.survives([Fault::Cut(100_001), Fault::Cut(0), Fault::Cut(50_000)]).await;
    assert_eq!(served, scene.bytes.len());
    let asked: Vec<_> = scene.server.seen().into_iter().filter(|seen| seen.storage).map(|seen| seen.from).collect();
    assert_eq!(asked, [None, Some(100_001), Some(100_001), Some(150_001)]);
}

#[tokio::test]
async fn a_later_run_goes_on_where_an_earlier_one_gave_up() {
    let scene = Scene::new();
    let mut config = scene.config();
    config.attempts = 1;
    scene.server.fail(FILE, [Fault::Cut(123_456), Fault::Status(503, "")]);
    let error = scene.pull_as(config, "hf:acme/tiny").await.unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert_eq!(scene.survives([]).await, scene.bytes.len());
}

#[tokio::test]
async fn silence_is_a_cut() {
    let scene = Scene::new();
    let mut config = scene.config();
    config.idle_timeout = Duration::from_millis(200);
    scene.server.fail(FILE, [Fault::Stall(70_000)]);
    let pulled = scene.pull_as(config, "hf:acme/tiny").await.unwrap();
    assert_eq!(std::fs::read(pulled.path).unwrap(), scene.bytes);
    assert_eq!(scene.server.served(FILE), scene.bytes.len());
}

#[tokio::test]
async fn servers_that_know_no_ranges_or_refuse_them_send_the_whole_again() {
    let scene = Scene::new();
    assert_eq!(scene.survives([Fault::Cut(1_000), Fault::NoRange]).await, 1_000 + scene.bytes.len());
    let scene = Scene::new();
    assert_eq!(scene.survives([Fault::Cut(1_000), Fault::Unsatisfiable]).await, 1_000 + scene.bytes.len());
}

#[tokio::test]
async fn server_errors_are_tried_again_and_not_for_ever() {
    let scene = Scene::new();
    scene.server.fail("api", [Fault::Status(500, ""), Fault::Status(429, "")]);
    scene.server.fail(&format!("HEAD {FILE}"), [Fault::Status(502, "")]);
    scene.survives([Fault::Status(503, "")]).await;
    let scene = Scene::new();
    let error = scene.fails((0..9).map(|_| Fault::Status(503, ""))).await;
    assert!(matches!(&error, HubError::Unreachable { attempts: 5, .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_size_is_thrown_away() {
    for fault in [Fault::Longer, Fault::Shorter] {
        let scene = Scene::new();
        let error = scene.fails([fault]).await;
        assert!(matches!(&error, HubError::WrongSize { expected: 300_000, .. }), "{error}");
        scene.survives([]).await;
        let seen = scene.server.seen();
        assert!(seen.iter().all(|seen| seen.from.is_none()), "nothing of it is gone on from");
    }
}

#[tokio::test]
async fn a_wrong_checksum_is_thrown_away() {
    let scene = Scene::new();
    let error = scene.fails([Fault::WrongByte]).await;
    assert!(matches!(&error, HubError::WrongChecksum { .. }), "{error}");
    assert_eq!(scene.survives([]).await, 2 * scene.bytes.len());
}

#[tokio::test]
async fn a_spoilt_partial_file_costs_a_second_download_only() {
    let scene = Scene::new();
    let mut config = scene.config();
    config.attempts = 1;
    scene.server.fail(FILE, [Fault::Cut(10_000), Fault::Status(503, "")]);
    scene.pull_as(config, "hf:acme/tiny").await.unwrap_err();
    let partials = scene.folder.path().join("acme/tiny/partial");
    let partial = std::fs::read_dir(partials).unwrap().map(|entry| entry.unwrap().path());
    let partial = partial.into_iter().find(|path| path.extension().is_none()).unwrap();
    std::fs::write(&partial, vec![7; 20_000]).unwrap();
    scene.survives([]).await;
}

#[tokio::test]
async fn refusals_say_what_helps() {
    let scene = Scene::new();
    let check = async |fault, text: &str, says: &str| {
        scene.server.fail("api", fault);
        let error = scene.pull(text).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    check(Some(Fault::Status(401, "")), "hf:acme/tiny", "set a token").await;
    check(Some(Fault::Status(403, "GatedRepo")), "hf:acme/tiny", "accept its terms").await;
    check(Some(Fault::Status(403, "")), "hf:acme/tiny", "the token may not read it").await;
    check(Some(Fault::Status(418, "")), "hf:acme/tiny", "answers 418").await;
    check(None, "hf:acme/other", "no such model").await;
    check(None, "hf:acme/tiny@v9", "no such revision").await;
    check(None, "hf:acme/tiny/q4.gguf", "no such file; there are model.q8.gguf").await;
    scene.server.commit("acme/two", &[("a.gguf", b"1"), ("b.gguf", b"2")]);
    check(None, "hf:acme/two", "hf:acme/two/a.gguf").await;
    scene.server.commit("acme/none", &[("a.bin", b"1")]);
    check(None, "hf:acme/none", "neither safetensors nor GGUF").await;
    scene.server.commit("acme/evil", &[("../../evil.gguf", b"1")]);
    check(None, "hf:acme/evil", "leads out of the folder").await;
    scene.server.fail(&format!("HEAD {FILE}"), [Fault::NoChecksum]);
    check(None, "hf:acme/tiny", "no SHA-256 and no git object name").await;
    let error = scene.fails([Fault::Cut(1_000), Fault::WrongRange]).await;
    assert!(error.to_string().contains("instead of \"bytes 1000-"), "{error}");
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_nowhere_else() {
    let scene = Scene::new();
    scene.server.want("secret");
    let error = scene.pull("hf:acme/tiny").await.unwrap_err();
    assert!(matches!(error, HubError::Unauthorized { token_sent: false, .. }), "{error}");
    let with = |token: &str| HubConfig { token: Some(SecretString::from(token)), ..scene.config() };
    let error = scene.pull_as(with("other"), "hf:acme/tiny").await.unwrap_err();
    assert!(matches!(error, HubError::Unauthorized { token_sent: true, .. }), "{error}");
    scene.pull_as(with("secret"), "hf:acme/tiny").await.unwrap();
    let seen = scene.server.seen();
    assert!(seen.iter().any(|seen| seen.storage) && seen.iter().all(|seen| !seen.storage || seen.token.is_none()));
    assert!(!format!("{:?}", with("secret")).contains("secret\""));
    let error = scene.pull_as(with("line\nbreak"), "hf:acme/tiny").await.unwrap_err();
    assert!(matches!(error, HubError::Config { setting: "hub.token", .. }), "{error}");
}

#[tokio::test]
async fn redirects_end_and_lead_to_http_only() {
    let scene = Scene::new();
    let round = || Fault::Redirect(format!("{}/api/models/acme/tiny/revision/main", scene.server.url()));
    scene.server.fail("api", (0..9).map(|_| round()));
    let error = scene.pull("hf:acme/tiny").await.unwrap_err();
    assert!(error.to_string().contains("redirects more than"), "{error}");
    let scene = Scene::new();
    scene.server.fail("api", [Fault::Redirect("file:///etc/hostname".to_owned())]);
    let error = scene.pull("hf:acme/tiny").await.unwrap_err();
    assert!(error.to_string().contains("not safe"), "{error}");
}

#[tokio::test]
async fn pulls_of_one_file_share_one_download() {
    let scene = Scene::new();
    scene.server.fail(FILE, [Fault::Slow(Duration::from_millis(5))]);
    // Three hubs: as three processes would, they share nothing but the folder.
    let (one, two, three) =
        tokio::join!(scene.pull("hf:acme/tiny"), scene.pull("hf:acme/tiny"), scene.pull("hf:acme/tiny"));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(std::fs::read(three.unwrap().path).unwrap(), scene.bytes);
    assert_eq!(scene.server.served(FILE), scene.bytes.len());
}

#[tokio::test]
async fn a_model_of_safetensors_is_a_folder() {
    let scene = Scene::new();
    let files: [(&str, &[u8]); 7] = [
        ("config.json", b"{}"),
        ("model-1.safetensors", &scene.bytes[..5000]),
        ("model-2.safetensors", &scene.bytes[5000..9000]),
        ("tokenizer.json", b"{\"a\":1}"),
        ("onnx/model.onnx", b"large"),
        ("consolidated.safetensors", b"again"),
        ("1_Pooling/config.json", b"{\"pooling_mode_cls_token\":true}"),
    ];
    let commit = scene.server.commit("acme/tensors", &files);
    let pulled = scene.pull("hf:acme/tensors").await.unwrap();
    assert_eq!(pulled.path, scene.folder.path().join("acme/tensors").join(commit));
    let mut names: Vec<_> = std::fs::read_dir(&pulled.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(pulled.path.join("1_Pooling/config.json").is_file());
    assert_eq!(names, ["1_Pooling", "config.json", "model-1.safetensors", "model-2.safetensors", "tokenizer.json"]);
}

#[tokio::test]
async fn a_branch_means_what_is_here_until_the_new_commit_is() {
    let scene = Scene::new();
    let hub = Hub::new(scene.config()).unwrap();
    let reference: HubReference = "hf:acme/tiny".parse().unwrap();
    let old = scene.pull("hf:acme/tiny").await.unwrap();
    let new = scene.server.commit("acme/tiny", &[(FILE, &scene.bytes[1..])]);
    scene.server.fail(FILE, [Fault::WrongByte]);
    scene.pull("hf:acme/tiny").await.unwrap_err();
    assert_eq!(hub.cached(&reference), Some(old.clone()));
    assert_eq!(scene.pull("hf:acme/tiny").await.unwrap().commit, new);
    assert_eq!(hub.cached(&reference).unwrap().commit, new);
    assert!(old.path.exists(), "a worker may be reading it");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_told_as_such() {
    let scene = Scene::new();
    let digits = {
        use sha2::Digest as _;
        sha2::Sha256::digest(&scene.bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let partial = scene.folder.path().join("acme/tiny/partial").join(digits);
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = scene.fails([]).await;
    assert!(matches!(&error, HubError::DiskFull { .. }), "{error}");
}

#[test]
fn an_endpoint_must_be_an_address() {
    for endpoint in ["", "huggingface.co", "ftp://a", "file:///x"] {
        let config = HubConfig { endpoint: endpoint.to_owned(), ..HubConfig::new("x".into()) };
        assert!(matches!(Hub::new(config), Err(HubError::Config { .. })), "{endpoint}");
    }
}
