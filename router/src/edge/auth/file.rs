//! The keys file: `[[keys]]` tables, checked whole. A file with a problem gives no key at all, so that a mistake can't
//! quietly leave somebody with more, or less, than was meant.

use super::{Caller, Key, KeyRole};
use crate::domain::{Labels, Placement, Residency, TenantId};
use crate::toml_file::{Problem, Problems, Section};
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::sync::Arc;

/// The words of roles.
const ROLES: [(&str, KeyRole); 4] = [
    ("serve", KeyRole::Serve),
    ("usage-own", KeyRole::UsageOwn),
    ("usage-all", KeyRole::UsageAll),
    ("admin", KeyRole::Admin),
];

/// Reads all keys, or all problems.
pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Key>, Vec<Problem>> {
    let (table, mut problems) = Problems::parse(file, text);
    let mut root = Section::root(&table);
    let sections = root.sections("keys", &mut problems);
    let mut seen = Seen::default();
    let read = |section| read_key(section, &mut seen, &mut problems);
    let keys: Vec<Key> = sections.into_iter().filter_map(read).collect();
    root.finish(&mut problems);
    let found = problems.into_found();
    if found.is_empty() { Ok(keys) } else { Err(found) }
}

/// What earlier keys of the file took: names and hashes tell keys apart.
#[derive(Default)]
struct Seen {
    names: HashSet<String>,
    hashes: HashSet<[u8; 32]>,
}

fn read_key(mut section: Section<'_, '_>, seen: &mut Seen, problems: &mut Problems<'_>) -> Option<Key> {
    let name = section.text("name", problems);
    if let Some((name, span)) = &name
        && !seen.names.insert(name.clone())
    {
        problems.add(span.clone(), &section.path("name"), format!("`{name}` names an earlier key too"), "");
    }
    let tenant = section.text("tenant", problems).map(|(tenant, _)| tenant).filter(|tenant| !tenant.is_empty());
    for (key, there) in [("name", name.is_some()), ("tenant", tenant.is_some())] {
        if !there {
            section.missing(key, "every key needs one", problems);
        }
    }
    let sha256 = read_hash(&mut section, seen, problems);
    let roles = read_roles(&mut section, problems);
    let policies = read_policies(&mut section, problems);
    let default_policy = section.text("default_policy", problems);
    if let (Some((name, span)), Some(policies)) = (&default_policy, &policies)
        && !policies.contains(name)
    {
        let message = format!("`{name}` is not among the key's `policies`");
        problems.add(span.clone(), &section.path("default_policy"), message, "add it there");
    }
    let words = ["auto", "local-only", "prefer-local", "prefer-remote", "remote-only"];
    let placement_floor =
        section.word("placement_floor", &words, problems).and_then(Placement::parse).unwrap_or_default();
    let residency = match section.texts("regions", problems) {
        Some(regions) => {
            if regions.is_empty() {
                let (span, key) = (section.span_of("regions"), section.path("regions"));
                problems.add(span, &key, "names no region", "leave the key out to allow all");
            }
            Residency::only("keys.regions", regions.into_iter().map(|(region, _)| region))
        }
        None => Residency::anywhere(),
    };
    let labels = read_labels(&mut section, problems);
    section.finish(problems);
    let caller = Caller {
        key_name: name?.0,
        tenant: TenantId::new(tenant?),
        roles,
        policies,
        default_policy: default_policy.map(|(name, _)| name),
        placement_floor,
        residency,
        labels,
    };
    Some(Key { sha256: sha256?, caller: Arc::new(caller) })
}

fn read_hash(section: &mut Section<'_, '_>, seen: &mut Seen, problems: &mut Problems<'_>) -> Option<[u8; 32]> {
    let how = "printf %s KEY | sha256sum";
    let present = section.span_of("sha256") != section.span();
    let Some((text, span)) = section.text("sha256", problems) else {
        if !present {
            section.missing("sha256", how, problems);
        }
        return None;
    };
    let hash = hexadecimal(&text);
    let wrong = match hash {
        None => Some("is not the SHA-256 of a key in 64 hexadecimal digits"),
        // It would let in whoever offers no key.
        Some(hash) if hash == <[u8; 32]>::from(Sha256::digest(b"")) => Some("is the SHA-256 of nothing"),
        // Else the last one would win, with whatever it allows.
        Some(hash) if !seen.hashes.insert(hash) => Some("is the hash of an earlier key too"),
        Some(_) => None,
    };
    if let Some(wrong) = wrong {
        problems.add(span, &section.path("sha256"), wrong, how);
        return None;
    }
    hash
}

fn read_roles(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<KeyRole> {
    let mut roles = Vec::new();
    let Some(words) = section.texts("roles", problems) else {
        section.missing("roles", "serve, usage-own, usage-all or admin", problems);
        return roles;
    };
    for (word, span) in words {
        match ROLES.iter().find(|(known, _)| *known == word) {
            Some((_, role)) => roles.push(*role),
            None => {
                let suggestion = crate::toml_file::suggest(&word, ROLES.iter().map(|(known, _)| *known));
                problems.add(span, &section.path("roles"), format!("`{word}` is no role"), suggestion);
            }
        }
    }
    roles
}

/// The policies a key may name; `None` means all.
fn read_policies(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Vec<String>> {
    let names = section.texts("policies", problems)?;
    let names: Vec<String> = names.into_iter().map(|(name, _)| name).collect();
    (!names.iter().any(|name| name == "*")).then_some(names)
}

fn read_labels(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Labels {
    let mut labels = Labels::new();
    if let Some(mut table) = section.section("labels", problems) {
        for (key, span, value) in table.take_all() {
            match value.get_ref().as_str() {
                Some(text) => drop(labels.insert(key, text.to_owned())),
                None => problems.add(span, &table.path(&key), "should be a text in quotes", ""),
            }
        }
    }
    labels
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    // All digits: the number parser below would take a sign, too.
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
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

    #[test]
    fn keys_that_could_surprise_are_refused() {
        let hash = |key: &str| -> String { Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect() };
        let key = |name: &str, sha256: &str, extra: &str| {
            format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\ntenant = \"t\"\nroles = [\"serve\"]\n{extra}")
        };
        let check = |text: &str, expected: &[(usize, &str)]| {
            let problems = parse("keys.toml", text).err().unwrap_or_default();
            let found: Vec<(usize, &str)> = problems.iter().map(|found| (found.line, found.key.as_str())).collect();
            assert_eq!(found, expected, "{text}");
        };
        let good = || key("a", &hash("a"), "");
        check(&good(), &[]);
        check(&key("a", &hash("a").to_ascii_uppercase(), ""), &[]);
        check(&format!("{}{}", good(), key("b", &hash("a"), "")), &[(8, "keys[1].sha256")]);
        check(&format!("{}{}", good(), key("a", &hash("b"), "")), &[(7, "keys[1].name")]);
        check(&key("a", &hash(""), ""), &[(3, "keys[0].sha256")]);
        check(&key("a", &"+f".repeat(32), ""), &[(3, "keys[0].sha256")]);
        check(&key("a", &"g".repeat(64), ""), &[(3, "keys[0].sha256")]);
        check(&key("a", "ab", ""), &[(3, "keys[0].sha256")]);
        let policies = "policies = [\"frugal\"]\n";
        check(
            &key("a", &hash("a"), &format!("{policies}default_policy = \"quality\"\n")),
            &[(7, "keys[0].default_policy")],
        );
        check(&key("a", &hash("a"), &format!("{policies}default_policy = \"frugal\"\n")), &[]);
        check(&key("a", &hash("a"), "policies = [\"*\"]\ndefault_policy = \"quality\"\n"), &[]);
        check(
            &key("a", &hash("a"), "placement_floor = \"here\"\nlabels = { team = 3 }\n"),
            &[(6, "keys[0].placement_floor"), (7, "keys[0].labels.team")],
        );
        check("[[keys]]\n", &[(1, "keys[0].name"), (1, "keys[0].tenant"), (1, "keys[0].sha256"), (1, "keys[0].roles")]);
    }
}
