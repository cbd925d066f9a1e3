//! Beginnings of sequences that have been computed: an index from tokens to blocks of the cache, so that what several
//! requests begin with is computed once.
//!
//! An entry stands for one whole block and names the entry before it, so a match is exact: same tokens from the first one
//! on, no hashes compared for equality. The scope is part of the name. A tenant finds what it computed itself, and what was
//! marked as shared; how long an answer takes therefore tells nobody what others have asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::{BlockId, Cache, POSITIONS};

/// On whose behalf something is computed; those that name no tenant are one.
pub(super) type Tenant = Option<Arc<str>>;

/// Who may find an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Everyone: the beginning was marked as shared.
    Shared,
    /// One tenant.
    Of(Tenant),
}

/// What an entry stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub scope: Scope,
    /// The entry before, 0 at the beginning.
    pub before: u64,
    /// The tokens of this block.
    pub tokens: Box<[u32]>,
}

/// The tokens of a request so far, and who may know of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Tokens {
    pub ids: Vec<u32>,
    pub tenant: Tenant,
    /// So many of the first are marked as shared.
    pub shared: usize,
}

impl Tokens {
    /// The key of a block, following an entry; `None` if the block is not whole.
    pub fn key(&self, index: usize, before: u64) -> Option<Key> {
        let end = (index + 1) * POSITIONS;
        let tokens = self.ids.get(index * POSITIONS..end)?.into();
        let scope = if end <= self.shared { Scope::Shared } else { Scope::Of(self.tenant.clone()) };
        Some(Key { scope, before, tokens })
    }
}

/// The index. It is a holder of each of its blocks.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    by_key: HashMap<Key, u64>,
    entries: HashMap<u64, Entry>,
    /// Entries by the time of their last use. What follows an entry is always older than itself, so the oldest entry has no
    /// followers left.
    by_age: BTreeMap<u64, u64>,
    /// Counts entries and uses; numbers are never given twice.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    block: BlockId,
    used: u64,
}

impl Prefixes {
    /// The entry of a key, and its block.
    pub fn find(&self, key: &Key) -> Option<(u64, BlockId)> {
        let id = *self.by_key.get(key)?;
        self.entries.get(&id).map(|entry| (id, entry.block))
    }

    /// Remembers a block.
    pub fn insert(&mut self, key: Key, block: BlockId, cache: &mut Cache) -> u64 {
        cache.keep(block);
        self.clock += 1;
        let id = self.clock;
        self.by_key.insert(key.clone(), id);
        self.by_age.insert(id, id);
        self.entries.insert(id, Entry { key, block, used: id });
        id
    }

    /// Takes note that a chain of entries was used, given from its beginning.
    pub fn touch(&mut self, chain: &[u64]) {
        for id in chain.iter().rev() {
            if let Some(entry) = self.entries.get_mut(id) {
                self.clock += 1;
                self.by_age.remove(&entry.used);
                entry.used = self.clock;
                self.by_age.insert(self.clock, *id);
            }
        }
    }

    /// Lets go of the entry used longest ago that no sequence holds. False if there is none.
    pub fn evict(&mut self, cache: &mut Cache) -> bool {
        let idle = |id: &&u64| self.entries.get(id).is_some_and(|entry| cache.holders(entry.block) == 1);
        let Some(id) = self.by_age.values().find(idle).copied() else { return false };
        if let Some(entry) = self.entries.remove(&id) {
            self.by_age.remove(&entry.used);
            self.by_key.remove(&entry.key);
            cache.forget(entry.block);
        }
        true
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_exact_scoped_and_go_oldest_first() {
        let (mut cache, mut index) = (Cache::new(2, 1, 1, 4), Prefixes::default());
        assert!(cache.reserve(0, 96));
        let blocks = cache.table(0).to_vec();
        let of = |name: &str| Scope::Of(Some(Arc::from(name)));
        let key = |scope: Scope, before: u64, token: u32| Key { scope, before, tokens: vec![token; 32].into() };
        let first = index.insert(key(of("a"), 0, 1), blocks[0], &mut cache);
        let second = index.insert(key(of("a"), first, 1), blocks[1], &mut cache);
        let shared = index.insert(key(Scope::Shared, 0, 1), blocks[2], &mut cache);
        assert_eq!(index.find(&key(of("a"), 0, 1)), Some((first, blocks[0])));
        assert_eq!(index.find(&key(of("a"), first, 1)), Some((second, blocks[1])));
        for other in [key(of("b"), 0, 1), key(Scope::Of(None), 0, 1), key(of("a"), 0, 2), key(of("a"), second, 1)] {
            assert_eq!(index.find(&other), None, "{other:?}");
        }
        assert!(!index.evict(&mut cache), "a sequence holds all");
        cache.clear(0);
        assert_eq!((index.len(), cache.idle_blocks(), cache.used_blocks()), (3, 3, 3));
        index.touch(&[first, second]);
        assert!(index.evict(&mut cache) && index.find(&key(Scope::Shared, 0, 1)).is_none(), "{shared} was oldest");
        assert!(index.evict(&mut cache) && index.find(&key(of("a"), first, 1)).is_none(), "the end goes first");
        assert!(index.evict(&mut cache) && !index.evict(&mut cache));
        assert_eq!((index.len(), cache.used_blocks()), (0, 0));
    }
}
