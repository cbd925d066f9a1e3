//! Who asks: keys from a file of SHA-256 hashes, each with tenant, roles, policies, placement and labels.
//!
//! Keys are random, so a plain hash is enough; the hash of what was offered is compared in constant time. Without a keys
//! file there is one tenant, `local`, with all roles, and settings allow loopback addresses only.

mod file;

use crate::domain::{Labels, Placement, Residency, TenantId};
use crate::toml_file::Problem;
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
    /// Where the key lets requests be served.
    pub residency: Residency,
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
            residency: Residency::anywhere(),
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
        let offered = authorization.and_then(bearer).unwrap_or_default();
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

/// The key in `Bearer KEY`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, key) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key)
}

fn read(path: &Path) -> Result<(String, Vec<Key>), KeysError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| KeysError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
    let keys = file::parse(&path.display().to_string(), &text).map_err(KeysError::Problems)?;
    Ok((text, keys))
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
        assert!(keys.caller(Some("bearer secret")).is_some(), "the scheme's case does not matter");
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
        let (_folder, path) = file("roles = []\n");
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
