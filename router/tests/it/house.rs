//! The rules of the house: the order of modules and who may name what. A broken rule names file, line and rule.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Lines of code with their numbers, comments left out.
fn code_lines(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim().to_owned()))
        .filter(|(_, line)| !line.starts_with("//"))
        .collect()
}

#[test]
fn a_module_uses_only_modules_declared_above_it() {
    let source = root().join("router/src");
    let order: Vec<String> = code_lines(&source.join("lib.rs"))
        .iter()
        .filter_map(|(_, line)| line.strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_owned))
        .collect();
    assert!(!order.is_empty(), "lib.rs declares the modules");
    let mut broken = Vec::new();
    for path in rust_files(&source) {
        let relative = path.strip_prefix(&source).unwrap().to_string_lossy().into_owned();
        let module = relative.split('/').next().unwrap().trim_end_matches(".rs");
        let Some(position) = order.iter().position(|name| name == module) else { continue };
        for (number, line) in code_lines(&path) {
            for (used_position, used) in order.iter().enumerate() {
                let names = line.contains(&format!("crate::{used}::")) || line.contains(&format!("crate::{used};"));
                if names && used_position > position {
                    broken.push(format!("{relative}:{number}: `{module}` uses `{used}`, which is declared below it"));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A name that only the given places (path prefixes from the repository's root) may use.
struct Boundary {
    needle: &'static str,
    allowed: &'static [&'static str],
    why: &'static str,
}

const BOUNDARIES: &[Boundary] = &[
    Boundary { needle: "candle_", allowed: &["local-worker/", "benches/"], why: "tensors stay in the local worker" },
    Boundary {
        needle: "axum::",
        allowed: &["router/src/edge", "router/src/app", "router/src/simulate", "router/tests", "benches/"],
        why: "only the edge knows protocols",
    },
    Boundary {
        needle: "tonic::",
        allowed: &["proto/", "router/src/edge", "router/src/app", "router/tests", "router/src/cli", "benches/"],
        why: "only the edge knows protocols; clients go through proto/src/client.rs",
    },
    Boundary {
        needle: "reqwest::",
        allowed: &["router/src/backend/remote", "local-worker/src/model/hub", "router/tests", "benches/"],
        why: "only remote backends and the hub speak HTTP to the outside",
    },
    Boundary { needle: "sqlx::", allowed: &["router/src/ledger"], why: "SQL stays in the ledger" },
    Boundary {
        needle: "std::env::var",
        allowed: &[
            "router/src/settings",
            "router/src/main.rs",
            "router/tests",
            "local-worker/tests",
            "local-worker/examples",
            "proto/build.rs",
            "benches/",
        ],
        why: "the environment is read only in settings and main",
    },
    Boundary {
        needle: "unsafe {",
        allowed: &["local-worker/src/kernels", "local-worker/src/model/mapped.rs"],
        why: "unsafe code lives only beside its scalar twin",
    },
    Boundary {
        needle: "crate::edge",
        allowed: &["router/src/edge", "router/src/settings", "router/src/app", "router/src/cli"],
        why: "nothing below the edge knows protocols",
    },
];

#[test]
fn only_some_places_may_name_some_things() {
    let mut broken = Vec::new();
    for folder in ["proto", "local-worker", "router", "benches"] {
        for path in rust_files(&root().join(folder)) {
            let relative = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            if relative.ends_with("tests/it/house.rs") {
                continue;
            }
            for (number, line) in code_lines(&path) {
                for boundary in BOUNDARIES {
                    let allowed = boundary.allowed.iter().any(|place| relative.starts_with(place));
                    if line.contains(boundary.needle) && !allowed {
                        broken.push(format!("{relative}:{number}: names `{}`; {}", boundary.needle, boundary.why));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn crates_depend_only_in_the_planned_direction() {
    let manifest = |name: &str| fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    let dependencies = |text: &str| -> Vec<String> {
        let table = text.split("\n[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap_or("").to_owned();
        table.lines().filter_map(|line| line.split(['.', ' ', '=']).next().map(str::to_owned)).collect()
    };
    let of = |name: &str| dependencies(&manifest(name));
    for forbidden in ["router", "sluice-proto", "benches"] {
        assert!(!of("local-worker").iter().any(|name| name == forbidden), "local-worker must not know {forbidden}");
    }
    for forbidden in ["router", "local-worker", "benches"] {
        assert!(!of("proto").iter().any(|name| name == forbidden), "proto must not know {forbidden}");
    }
    for forbidden in ["candle-core", "benches"] {
        assert!(!of("router").iter().any(|name| name == forbidden), "router must not know {forbidden}");
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    for folder in ["proto/src", "local-worker/src", "router/src"] {
        for path in rust_files(&root().join(folder)) {
            if path.ends_with("tests.rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} opens without `//!`", path.display());
        }
    }
}
