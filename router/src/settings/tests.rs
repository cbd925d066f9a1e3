//! Files and variables in, settings or named problems out.

use super::*;
use crate::domain::NanoUsd;
use secrecy::ExposeSecret as _;

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sluice.toml");
    std::fs::write(&path, text).unwrap();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Settings::from(Some(&path), variables, &|name| (name == "KEY").then(|| "secret".to_owned()))
}

#[test]
fn nothing_set_is_fine_and_variables_win() {
    let settings = load("", &[]).unwrap();
    assert!(settings.listen.ip().is_loopback());
    assert_eq!(settings.local_cache_format, CacheFormat::Half);
    let settings = load("[local]\ncache_format = \"f32\"", &[]).unwrap();
    assert_eq!(settings.local_cache_format, CacheFormat::Single);
    let settings = load("listen = \"127.0.0.1:1\"", &[("SLUICE_LISTEN", "127.0.0.1:2")]).unwrap();
    assert_eq!(settings.listen.port(), 2);
    let text = "[targets.openai]\nbase_url = \"https://a/v1/\"\napi_key_env = \"KEY\"\n";
    let settings = load(text, &[("SLUICE_TARGETS__OPENAI__MAX_RETRIES", "7")]).unwrap();
    let target = &settings.targets["openai"];
    assert_eq!((target.max_retries, target.base_url.as_str(), target.key.is_some()), (7, "https://a/v1", true));
}

#[test]
fn file_and_variables_complete_each_other() {
    let text = "[targets.openai]\napi_key_env = \"KEY\"\n[tls]\ncertificate = \"c.pem\"\n";
    let variables = [("SLUICE_TARGETS__OPENAI__BASE_URL", "https://a/v1"), ("SLUICE_TLS__KEY", "k.pem")];
    let settings = load(text, &variables).unwrap();
    assert_eq!(settings.targets["openai"].base_url, "https://a/v1");
    assert_eq!(settings.tls.unwrap().key, Path::new("k.pem"));
    let error = load(text, &[]).unwrap_err().to_string();
    assert!(error.contains("targets.openai.base_url: is missing") && error.contains("tls.key: is missing"), "{error}");
}

#[test]
fn keys_of_targets_are_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let text = format!("[targets.a]\nbase_url = \"https://a\"\napi_key_file = \"{}\"\n", file.display());
    std::fs::write(&file, " \n").unwrap();
    let error = load(&text, &[]).unwrap_err().to_string();
    assert!(error.contains("targets.a.api_key_file") && error.contains("is empty"), "{error}");
    std::fs::write(&file, "sk-secret\n").unwrap();
    let settings = load(&text, &[]).unwrap();
    assert_eq!(settings.targets["a"].key.as_ref().unwrap().expose_secret(), "sk-secret");
    assert!(!format!("{settings:?}").contains("sk-secret"));
}

#[test]
fn wrong_settings_name_key_and_mend() {
    let check = |text: &str, variables: &[(&str, &str)], words: &[&str]| {
        let error = load(text, variables).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "`{word}` in: {error}");
        }
    };
    check("lisen = \"x\"", &[], &["lisen", "sluice.toml", "line 1"]);
    check("", &[("SLUICE_LISEN", "x")], &["lisen", "SLUICE_LISEN"]);
    check("listen = \"x\"\ndurability = \"never\"", &[], &["listen", "durability"]);
    check("listen = \"0.0.0.0:80\"", &[], &["keys_file", "loopback"]);
    check(
        "[targets.a]\nbase_url = \"ftp://x\"\napi_key_env = \"NONE\"",
        &[],
        &["targets.a.base_url", "NONE is not set"],
    );
    check("[tenants.a]\ndaily = \"ten\"", &[], &["tenants.a.daily", "25 USD"]);
    check("[tenants.a]\nrecord = \"all\"", &[], &["tenants.a.record", "`all`", "features"]);
    check("[local]\nqueue = 0", &[], &["local.queue"]);
    check("[local]\nthreads = 0", &[], &["local.threads"]);
    check("[local]\ncache_bytes = 0", &[], &["local.cache_bytes"]);
    check("[local]\ncache_format = \"f8\"", &[], &["local.cache_format", "`f8`", "`f16`", "`f32`"]);
    check("reload_seconds = 0", &[], &["reload_seconds"]);
    check("[tls]\nkey = \"k.pem\"", &[], &["tls.certificate"]);
    check("", &[("SLUICE_LOCAL__QUEUE", "many")], &["local.queue", "SLUICE_LOCAL__QUEUE"]);
    check("[targets.a]\nbase_url = \"https://x\"\nidle_seconds = -1", &[], &["targets.a.idle_seconds"]);
    check("[targets.a]\nbase_url = \"https://x\"\nbase = 1", &[], &["sluice.toml", "line 3", "base"]);
}

#[test]
fn tenants_and_targets_keep_their_names() {
    let text = "[tenants.Acme]\ndaily = \"1 USD\"\n[tenants.\"team.Search\"]\nmonthly = \"2 USD\"\n\
                [targets.OpenAI]\nbase_url = \"https://a/v1\"\n";
    let settings = load(text, &[]).unwrap();
    let mut names: Vec<String> = settings.tenants.keys().map(ToString::to_string).collect();
    names.sort();
    assert_eq!(names, ["Acme", "team.Search"]);
    assert!(settings.targets.contains_key("OpenAI"));
    // Names of variables have no case: they mean what the file spelt.
    let variables = [("SLUICE_TENANTS__ACME__DAILY", "3 USD"), ("SLUICE_TARGETS__OPENAI__MAX_RETRIES", "7")];
    let settings = load(text, &variables).unwrap();
    assert_eq!(settings.tenants[&TenantId::new("Acme")].daily, Some(NanoUsd::new(3_000_000_000)));
    assert_eq!((settings.tenants.len(), settings.targets.len()), (2, 1));
    assert_eq!(settings.targets["OpenAI"].max_retries, 7);
}

#[test]
fn models_are_kept_in_the_data_folder_and_the_hubs_token_is_a_secret() {
    let settings = load("data_dir = \"d\"", &[]).unwrap();
    let config = settings.hub.config(&settings.data_dir);
    assert_eq!((config.cache.as_path(), config.offline, config.token.is_none()), (Path::new("d/models"), false, true));
    assert_eq!((settings.local_memory_bytes, settings.local_load), (None, LoadWhen::Start));
    let text = "[hub]\nendpoint = \"http://h\"\ntoken_env = \"KEY\"\noffline = true\ncache_dir = \"c\"\n\
                [local]\nmemory_bytes = 9\nload = \"demand\"\nwait_seconds = 1.5\n";
    let settings = load(text, &[]).unwrap();
    let config = settings.hub.config(&settings.data_dir);
    assert_eq!((config.cache.as_path(), config.endpoint.as_str(), config.offline), (Path::new("c"), "http://h", true));
    assert_eq!(config.token.as_ref().unwrap().expose_secret(), "secret");
    assert!(!format!("{settings:?}").contains("\"secret\""));
    assert_eq!((settings.local_memory_bytes, settings.local_load), (Some(9), LoadWhen::Demand));
    let text = "[hub]\nendpoint = \"h\"\ntoken_env = \"NO\"\n[local]\nmemory_bytes = 0\nload = \"never\"\n";
    let error = load(text, &[]).unwrap_err().to_string();
    for key in ["hub.endpoint", "hub.token_env", "local.memory_bytes", "local.load"] {
        assert!(error.contains(&format!("{key}: ")), "{key} in {error}");
    }
}
