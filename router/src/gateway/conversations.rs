//! Which conversations went remote, and when last: what `sticky = "escalate-only"` looks at.
//!
//! Memory is bounded: two generations of at most [`GENERATION`] conversations each, of which the older one is dropped when
//! the younger is full. So a conversation is forgotten only after as many others went remote since it was last seen, and
//! at a restart; its next turn is then decided like a first one.

use crate::domain::TenantId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most conversations of one generation.
const GENERATION: usize = 16_384;

type Key = (TenantId, String);

#[derive(Default)]
struct Generations {
    young: HashMap<Key, Instant>,
    old: HashMap<Key, Instant>,
}

/// Conversations that went remote.
#[derive(Default)]
pub struct Conversations(Mutex<Generations>);

impl Conversations {
    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a conversation was served remotely at `now`; one without a name is none.
    pub fn went_remote(&self, tenant: &TenantId, conversation: &str, now: Instant) {
        if conversation.is_empty() {
            return;
        }
        let mut generations = self.lock();
        let key = (tenant.clone(), conversation.to_owned());
        generations.old.remove(&key);
        if generations.young.len() >= GENERATION && !generations.young.contains_key(&key) {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(key, now);
    }

    /// Whether a conversation was served remotely within `time_to_live` before `now`.
    pub fn is_remote(&self, tenant: &TenantId, conversation: &str, time_to_live: Duration, now: Instant) -> bool {
        if conversation.is_empty() {
            return false;
        }
        let generations = self.lock();
        let key = (tenant.clone(), conversation.to_owned());
        let last = generations.young.get(&key).or_else(|| generations.old.get(&key));
        last.is_some_and(|last| now.saturating_duration_since(*last) <= time_to_live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_remote_until_it_was_silent_for_long_enough() {
        let conversations = Conversations::default();
        let (acme, other) = (TenantId::new("acme"), TenantId::new("other"));
        let (start, half_hour) = (Instant::now(), Duration::from_secs(1_800));
        let check = |tenant: &TenantId, name: &str, seconds: u64, expected: bool| {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(conversations.is_remote(tenant, name, half_hour, now), expected, "{tenant} {name} {seconds}");
        };
        check(&acme, "c", 0, false);
        conversations.went_remote(&acme, "c", start);
        check(&acme, "c", 1_800, true);
        check(&acme, "c", 1_801, false);
        check(&other, "c", 1, false);
        conversations.went_remote(&acme, "c", start + Duration::from_secs(1_800));
        check(&acme, "c", 3_600, true);
        conversations.went_remote(&acme, "", start);
        check(&acme, "", 0, false);
    }

    #[test]
    fn memory_is_bounded_and_those_seen_last_are_kept() {
        let conversations = Conversations::default();
        let (acme, now, day) = (TenantId::new("acme"), Instant::now(), Duration::from_secs(86_400));
        for number in 0..5 * GENERATION {
            conversations.went_remote(&acme, &number.to_string(), now);
            conversations.went_remote(&acme, "kept alive", now);
        }
        let generations = conversations.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
        drop(generations);
        assert!(conversations.is_remote(&acme, "kept alive", day, now));
        assert!(conversations.is_remote(&acme, &(5 * GENERATION - 1).to_string(), day, now));
        assert!(!conversations.is_remote(&acme, "0", day, now));
    }
}
