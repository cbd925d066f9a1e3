use super::*;
use crate::evidence::certificate::Certificate;
use tempfile::TempDir;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn registry(folder: &Path) -> Result<Registry, RegistryError> {
    Registry::load(Some(folder.to_owned()), "balanced", Arc::new(Scorers::default()))
}

#[test]
fn the_binary_carries_every_shipped_file() {
    let shipped = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../policies")).unwrap();
    let shipped = shipped.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut shipped: Vec<String> = shipped.filter(|name| name.ends_with(".toml")).collect();
    shipped.sort();
    let carried: Vec<String> = read_files(None).unwrap().texts.into_keys().collect();
    assert_eq!(carried, shipped);
}

#[test]
fn a_bad_reload_keeps_the_last_good_policies_and_says_why() {
    let (_, balanced) = EMBEDDED[1];
    let folder = folder(&[("balanced.toml", balanced)]);
    let registry = registry(folder.path()).unwrap();
    let held = registry.snapshot();
    assert!(!registry.reload().unwrap(), "nothing changed");

    std::fs::write(folder.path().join("balanced.toml"), balanced.replace("min-cost", "min-cots")).unwrap();
    let error = registry.reload().unwrap_err().to_string();
    assert!(error.contains("balanced.toml") && error.contains("did you mean `min-cost`?"), "{error}");
    assert_eq!(registry.failure().map(|failure| failure.to_string()), Some(error));
    assert!(Arc::ptr_eq(&registry.snapshot(), &held), "the last good snapshot is in force");

    let mended = balanced.replace("25 USD", "26 USD");
    std::fs::write(folder.path().join("balanced.toml"), &mended).unwrap();
    assert!(registry.reload().unwrap());
    assert!(registry.failure().is_none());
    assert_eq!(registry.snapshot().policy(None).unwrap().reference.hash, Policy::hash(&mended));
    assert_eq!(held.policy(None).unwrap().reference.hash, Policy::hash(balanced), "who holds the old one keeps it");
}

#[test]
fn the_hash_is_of_the_policy_alone() {
    let (_, balanced) = EMBEDDED[1];
    let folder = folder(&[("balanced.toml", balanced)]);
    let registry = registry(folder.path()).unwrap();
    let before = registry.snapshot().policy(None).unwrap();
    assert_eq!(before.certificate(), &super::super::CertificateState::Missing);
    std::fs::write(folder.path().join("balanced.solved.toml"), "garbage").unwrap();
    assert!(registry.reload().unwrap());
    let after = registry.snapshot().policy(None).unwrap();
    assert_eq!(after.reference, before.reference);
    assert!(matches!(after.certificate(), super::super::CertificateState::Mismatched(_)), "{:?}", after.certificate());
    assert_eq!(after.threshold(), None);
}

#[test]
fn two_files_of_one_name_are_a_problem() {
    let (_, balanced) = EMBEDDED[1];
    let folder = folder(&[("balanced.toml", balanced), ("copy.toml", balanced)]);
    let error = registry(folder.path()).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("copy.toml:1:1") && error.contains("`balanced`"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_config_map_swap_is_seen() {
    let (_, balanced) = EMBEDDED[1];
    let root = TempDir::new().unwrap();
    let write = |version: &str, text: &str| {
        std::fs::create_dir(root.path().join(version)).unwrap();
        std::fs::write(root.path().join(version).join("balanced.toml"), text).unwrap();
    };
    // As the kubelet does it: the file links through `..data`, which is swapped by a rename.
    let swap = |version: &str| {
        std::os::unix::fs::symlink(version, root.path().join("..next")).unwrap();
        std::fs::rename(root.path().join("..next"), root.path().join("..data")).unwrap();
    };
    let next = balanced.replace("25 USD", "26 USD");
    write("..v1", balanced);
    swap("..v1");
    std::os::unix::fs::symlink("..data/balanced.toml", root.path().join("balanced.toml")).unwrap();
    let registry = registry(root.path()).unwrap();
    write("..v2", &next);
    assert!(!registry.reload().unwrap());
    swap("..v2");
    assert!(registry.reload().unwrap());
    assert_eq!(registry.snapshot().policy(None).unwrap().reference.hash, Policy::hash(&next));
}

/// The certificate of the policy inside the binary.
fn shipped() -> Certificate {
    Certificate::parse(include_str!("../../../../policies/balanced.solved.toml")).unwrap()
}

#[test]
fn what_was_learnt_is_put_in_force_beside_the_files_and_survives_a_reload() {
    let (_, balanced) = EMBEDDED[1];
    let learning =
        format!("{balanced}\n[shadow]\nshare = 0.5\ndaily = \"1 USD\"\ncompare = \"exact\"\n[learn]\nfirst = 60\n");
    let folder = folder(&[("balanced.toml", &learning)]);
    let registry = registry(folder.path()).unwrap();
    let scorer = Arc::new(PairScorer::bundled().unwrap().unwrap());
    let certificate = |hash: &str| Certificate {
        policy_hash: hash.to_owned(),
        scorer_version: scorer.version().to_owned(),
        ..shipped()
    };
    let learnt = |certificate: Option<Certificate>| Some(Learnt { scorer: Arc::clone(&scorer), certificate });
    let held = registry.snapshot();
    registry.adopt("balanced", learnt(Some(certificate(&Policy::hash(&learning))))).unwrap();
    assert!(held.policy(None).unwrap().learnt().is_none(), "a request keeps its snapshot");
    let now = registry.snapshot();
    let policy = now.policy(None).unwrap();
    assert!(policy.learnt().is_some() && policy.threshold() == shipped().threshold);
    assert!(now.policies().any(|policy| policy.learnt().is_some()));
    let filed = now.unlearnt(&policy);
    assert!(filed.learnt().is_none() && filed.threshold().is_none(), "as its files have it");

    // Another policy text: what was learnt scores on, and proves nothing of it.
    std::fs::write(folder.path().join("balanced.toml"), learning.replace("25 USD", "26 USD")).unwrap();
    assert!(registry.reload().unwrap());
    let policy = registry.snapshot().policy(None).unwrap();
    assert!(policy.learnt().is_some() && policy.threshold().is_none());
    // One that learns no more.
    std::fs::write(folder.path().join("balanced.toml"), balanced).unwrap();
    assert!(registry.reload().unwrap());
    assert!(registry.snapshot().policy(None).unwrap().learnt().is_none());
    registry.adopt("balanced", None).unwrap();
    assert!(registry.snapshot().policy(None).unwrap().learnt().is_none());
}

#[test]
fn a_policy_with_a_scorer_of_its_own_has_a_certificate_for_that_or_none() {
    let (_, balanced) = EMBEDDED[1];
    let text = format!("scorer = \"own.scorer\"\n{balanced}");
    let given = PairScorer::bundled().unwrap().unwrap();
    let own = given.clone().with_hard(-7.0);
    assert_ne!(own.version(), given.version());
    let solved = |scorer: &PairScorer| {
        let (policy_hash, scorer_version) = (Policy::hash(&text), scorer.version().to_owned());
        Certificate { policy_hash, scorer_version, ..shipped() }.to_toml().unwrap()
    };
    let folder = folder(&[("balanced.toml", &text), ("balanced.solved.toml", &solved(&own))]);
    let file = folder.path().join("own.scorer");
    let load = || Registry::load(Some(folder.path().to_owned()), "balanced", Arc::new(Scorers::new([given.clone()])));
    let refused = || load().err().map(|error| error.to_string()).unwrap_or_default();
    let small = crate::domain::ModelId::new("sluice-nano");

    let missing = refused();
    assert!(missing.contains("balanced.toml:1:10") && missing.contains("own.scorer: is not beside"), "{missing}");
    std::fs::write(&file, b"SLPAIR\0\x01 cut").unwrap();
    assert!(refused().contains("damaged or cut short"), "{}", refused());
    own.clone().about(crate::score::Pair::any_large("another")).write(&file).unwrap();
    assert!(refused().contains("own.scorer: is a scorer for another / *, which are not"), "{}", refused());
    own.write(&file).unwrap();

    let registry = load().unwrap();
    let policy = registry.snapshot().policy(None).unwrap();
    assert_eq!(policy.threshold(), shipped().threshold, "{:?}", policy.certificate());
    let scorers = Scorers::new([given.clone()]);
    assert_eq!(policy.scorer(&small, &scorers, registry.snapshot().catalog()).unwrap().version(), own.version());
    assert!(!registry.reload().unwrap(), "nothing changed");

    // A certificate for the scorer that the process was given says nothing here.
    std::fs::write(folder.path().join("balanced.solved.toml"), solved(&given)).unwrap();
    assert!(registry.reload().unwrap());
    let policy = registry.snapshot().policy(None).unwrap();
    assert!(policy.threshold().is_none() && matches!(policy.certificate(), CertificateState::Mismatched(_)));
    // Nor does one for a scorer that was in the file before.
    std::fs::write(folder.path().join("balanced.solved.toml"), solved(&own)).unwrap();
    own.clone().with_hard(-8.0).write(&file).unwrap();
    assert!(registry.reload().unwrap());
    assert!(registry.snapshot().policy(None).unwrap().threshold().is_none());
    own.write(&file).unwrap();
    assert!(registry.reload().unwrap());
    assert_eq!(registry.snapshot().policy(None).unwrap().threshold(), shipped().threshold);
    std::fs::remove_file(&file).unwrap();
    assert!(registry.reload().is_err(), "a file that is gone changes nothing");
    assert_eq!(registry.snapshot().policy(None).unwrap().threshold(), shipped().threshold);
}
