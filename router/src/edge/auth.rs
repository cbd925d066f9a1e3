//! Who asks: keys from a file of SHA-256 hashes, each with tenant, roles, policies, placement and labels.
//!
//! Keys are random, so a plain hash is enough; the hash of what was offered is compared in constant time. Without a keys
//! file there is one tenant, `local`, with all roles, and settings allow loopback addresses only.

use crate::domain::{Labels, Placement, TenantId};
use crate::toml_file::{Problem, Problems, Section};
use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRole {
    /// Ask.
    Serve,
    /// See the own tenant's usage.
    UsageOwn,
    /// See all tenants' usage.
    UsageAll,
    /// Everything, all policies included.
    Admin,
}

/// The words of roles.
const ROLES: [(&str, KeyRole); 4] = [
    ("serve", KeyRole::Serve),
    ("usage-own", KeyRole::UsageOwn),
    ("usage-all", KeyRole::UsageAll),
    ("admin", KeyRole::Admin),
];

/// Who asks and what they may do.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    /// Name of the key, for logs; empty without keys.
    pub key_name: String,
    /// Whose money it is.
    pub tenant: TenantId,
    /// What the key may do.
    pub roles: Vec<KeyRole>,
    /// Policies the key may name; `None` means all.
    pub policies: Option<Vec<String>>,
    /// Policy where the request names none; `None` is the server's default.
    pub default_policy: Option<String>,
    /// What the key insists on.
    pub placement_floor: Placement,
    /// Labels that win over the request's own.
    pub labels: Labels,
}

impl Caller {
    fn local() -> Self {
        Self {
            key_name: String::new(),
            tenant: TenantId::new("local"),
            roles: vec![KeyRole::Serve, KeyRole::UsageAll, KeyRole::Admin],
            policies: None,
            default_policy: None,
            placement_floor: Placement::Auto,
            labels: Labels::new(),
        }
    }

    /// Whether the key has a role; `admin` has all.
    pub fn may(&self, role: KeyRole) -> bool {
        self.roles.contains(&role) || self.roles.contains(&KeyRole::Admin)
    }

    /// Whether the key may name a policy.
    pub fn may_use(&self, policy: &str) -> bool {
        self.policies.as_ref().is_none_or(|policies| policies.iter().any(|name| name == policy))
    }

    /// The tenant that the caller's view of usage is limited to; `None` is all. An error text if the key may see nothing,
    /// or asks for another tenant than its own.
    pub fn usage_scope(&self, asked: &str) -> Result<Option<TenantId>, String> {
        if self.may(KeyRole::UsageAll) {
            return Ok((!asked.is_empty()).then(|| TenantId::new(asked)));
        }
        if !self.may(KeyRole::UsageOwn) {
            return Err("the key has none of the roles usage-own, usage-all, admin".to_owned());
        }
        if asked.is_empty() || asked == self.tenant.as_str() {
            return Ok(Some(self.tenant.clone()));
        }
        Err("a key of role usage-own sees its own tenant only".to_owned())
    }
}

/// A keys file that can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeysError {
    /// It can't be read.
    #[error("keys_file {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It has problems.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
}

struct Key {
    sha256: [u8; 32],
    caller: Arc<Caller>,
}

/// The keys in force.
pub struct Keys {
    path: Option<PathBuf>,
    keys: ArcSwap<(String, Vec<Key>)>,
    local: Arc<Caller>,
}

impl Keys {
    /// Loads a keys file; `None` means no keys.
    ///
    /// # Errors
    /// The file can't be read or has problems: all of them.
    pub fn load(path: Option<PathBuf>) -> Result<Self, KeysError> {
        let keys = path.as_deref().map(read).transpose()?.unwrap_or_default();
        Ok(Self { path, keys: ArcSwap::from_pointee(keys), local: Arc::new(Caller::local()) })
    }

    /// Reads the file again; `Ok(true)` if it changed.
    ///
    /// # Errors
    /// As [`Keys::load`]; the old keys stay in force.
    pub fn reload(&self) -> Result<bool, KeysError> {
        let Some(path) = &self.path else { return Ok(false) };
        let keys = read(path)?;
        let changed = self.keys.load().0 != keys.0;
        if changed {
            self.keys.store(Arc::new(keys));
        }
        Ok(changed)
    }

    /// Whether keys are needed.
    pub fn are_needed(&self) -> bool {
        self.path.is_some()
    }

    /// Who offers `authorization`; `None` if nobody we know. Every key is compared, so time says nothing.
    pub fn caller(&self, authorization: Option<&str>) -> Option<Arc<Caller>> {
        if !self.are_needed() {
            return Some(Arc::clone(&self.local));
        }
        let offered = authorization.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
        let hash: [u8; 32] = Sha256::digest(offered.as_bytes()).into();
        let mut found = None;
        for key in &self.keys.load().1 {
            if bool::from(key.sha256.ct_eq(&hash)) {
                found = Some(Arc::clone(&key.caller));
            }
        }
        found
    }
}

fn read(path: &Path) -> Result<(String, Vec<Key>), KeysError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| KeysError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
    let keys = parse(&path.display().to_string(), &text).map_err(KeysError::Problems)?;
    Ok((text, keys))
}

fn parse(file: &str, text: &str) -> Result<Vec<Key>, Vec<Problem>> {
    let (table, mut problems) = Problems::parse(file, text);
    let mut root = Section::root(&table);
    let sections = root.sections("keys", &mut problems);
    let keys: Vec<Key> = sections.into_iter().filter_map(|section| read_key(section, &mut problems)).collect();
    root.finish(&mut problems);
    let found = problems.into_found();
    if found.is_empty() { Ok(keys) } else { Err(found) }
}

fn read_key(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Key> {
    let name = section.text("name", problems).map(|(name, _)| name);
    let tenant = section.text("tenant", problems).map(|(tenant, _)| tenant).filter(|tenant| !tenant.is_empty());
    let sha256 = section.text("sha256", problems).and_then(|(text, span)| {
        let parsed = hexadecimal(&text);
        if parsed.is_none() {
            let message = "is not the SHA-256 of a key in 64 hexadecimal digits";
            problems.add(span, &section.path("sha256"), message, "printf %s KEY | sha256sum");
        }
        parsed
    });
    for (key, there) in [("name", name.is_some()), ("tenant", tenant.is_some())] {
        if !there {
            section.missing(key, "every key needs one", problems);
        }
    }
    if sha256.is_none() && section.span_of("sha256") == section.span() {
        section.missing("sha256", "printf %s KEY | sha256sum", problems);
    }
    let mut roles = Vec::new();
    for (word, span) in section.texts("roles", problems).unwrap_or_default() {
        match ROLES.iter().find(|(known, _)| *known == word) {
            Some((_, role)) => roles.push(*role),
            None => {
                let known = ROLES.iter().map(|(known, _)| *known);
                let suggestion = crate::toml_file::suggest(&word, known);
                problems.add(span, &section.path("roles"), format!("`{word}` is no role"), suggestion);
            }
        }
    }
    let policies = section.texts("policies", problems).map(|names| names.into_iter().map(|(name, _)| name).collect());
    let policies = policies.filter(|names: &Vec<String>| !names.iter().any(|name| name == "*"));
    let default_policy = section.text("default_policy", problems).map(|(name, _)| name);
    let words = ["auto", "local-only", "prefer-local", "prefer-remote", "remote-only"];
    let placement_floor =
        section.word("placement_floor", &words, problems).and_then(Placement::parse).unwrap_or_default();
    let mut labels = Labels::new();
    if let Some(mut table) = section.section("labels", problems) {
        for (key, span, value) in table.take_all() {
            match value.get_ref().as_str() {
                Some(text) => drop(labels.insert(key, text.to_owned())),
                None => problems.add(span, &table.path(&key), "should be a text in quotes", ""),
            }
        }
    }
    section.finish(problems);
    let caller = Caller {
        key_name: name?,
        tenant: TenantId::new(tenant?),
        roles,
        policies,
        default_policy,
        placement_floor,
        labels,
    };
    Some(Key { sha256: sha256?, caller: Arc::new(caller) })
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(extra: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let sha: String = Sha256::digest(b"secret").iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("[[keys]]\nname = \"a\"\nsha256 = \"{sha}\"\ntenant = \"acme\"\n{extra}");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn only_the_right_key_is_let_in() {
        let (_folder, path) = file("roles = [\"serve\", \"usage-own\"]\npolicies = [\"frugal\"]\n");
        let keys = Keys::load(Some(path)).unwrap();
        for wrong in [None, Some(""), Some("secret"), Some("Bearer "), Some("Bearer Secret"), Some("Basic secret")] {
            assert!(keys.caller(wrong).is_none(), "{wrong:?}");
        }
        let caller = keys.caller(Some("Bearer secret")).unwrap();
        assert_eq!(caller.tenant.as_str(), "acme");
        assert!(caller.may(KeyRole::Serve) && !caller.may(KeyRole::Admin));
        assert!(caller.may_use("frugal") && !caller.may_use("balanced"));
        assert_eq!(caller.usage_scope("").unwrap().unwrap().as_str(), "acme");
        assert!(caller.usage_scope("other").is_err());
    }

    #[test]
    fn problems_name_line_and_key() {
        let (_folder, path) = file("roles = [\"serv\"]\nplacement_flor = \"auto\"\n");
        let Err(KeysError::Problems(problems)) = Keys::load(Some(path)) else { panic!("problems were expected") };
        let keys: Vec<(usize, &str)> = problems.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
        assert_eq!(keys, [(5, "keys[0].roles"), (6, "keys[0].placement_flor")]);
    }

    #[test]
    fn without_keys_there_is_one_local_tenant() {
        let keys = Keys::load(None).unwrap();
        assert!(keys.caller(None).unwrap().may(KeyRole::Admin));
    }

    #[test]
    fn a_changed_file_takes_effect_and_a_broken_one_does_not() {
        let (_folder, path) = file("");
        let keys = Keys::load(Some(path.clone())).unwrap();
        assert!(!keys.reload().unwrap());
        std::fs::write(&path, "[[keys]]\nname = 3\n").unwrap();
        assert!(keys.reload().is_err());
        assert!(keys.caller(Some("Bearer secret")).is_some());
        std::fs::write(&path, "").unwrap();
        assert!(keys.reload().unwrap());
        assert!(keys.caller(Some("Bearer secret")).is_none());
    }
}
