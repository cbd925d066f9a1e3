//! The cache of a running model with its budget: room for what runs first, beginnings worth finding again in what is left.

use super::prefix::{Prefixes, Tenant, Tokens};
use super::request::WorkerConfig;
use super::sequence::Sequence;
use crate::model::{Cache, CacheShape, LoadError, POSITIONS};

/// The part of the budget that may hold what no running sequence needs, so that a small model does not fill memory with
/// beginnings nobody asks for again.
const KEPT_PART: usize = 4;

/// Blocks, and the index of those worth keeping.
#[derive(Debug)]
pub(super) struct Store {
    pub cache: Cache,
    prefixes: Prefixes,
    /// Entries the index may have beside those in use.
    kept: usize,
}

/// What the cache holds and has done.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct CacheReading {
    pub used_bytes: u64,
    pub kept_bytes: u64,
    pub free_bytes: u64,
    pub hit_tokens: u64,
    pub preemptions: u64,
}

impl Store {
    /// Within the budget of `config`.
    ///
    /// # Errors
    /// The budget holds less than one block.
    pub fn new(shape: CacheShape, config: &WorkerConfig) -> Result<Self, LoadError> {
        let (bytes, block) = (config.cache_bytes, shape.block_bytes().max(1));
        let most = bytes / block;
        if most == 0 {
            let problem =
                format!("is {bytes}; {POSITIONS} tokens of this model take {block}, so it must be at least that");
            return Err(LoadError::Config { setting: "cache_bytes", problem });
        }
        let cache = Cache::bounded(config.max_sequences, shape, most);
        Ok(Self { cache, prefixes: Prefixes::default(), kept: most / KEPT_PART })
    }

    /// Tokens that one sequence may have in the cache.
    pub fn positions(&self) -> usize {
        self.cache.most_blocks().saturating_mul(POSITIONS)
    }

    /// Gives a sequence what was computed before of the tokens it is to read next, if it stands between two blocks. At
    /// least one token is left to be read, for its logits. Returns how many tokens of the prompt that
    /// spared.
    pub fn adopt(&mut self, slot: usize, sequence: &mut Sequence) -> usize {
        let mut spared = 0;
        while sequence.read() == self.cache.table(slot).len() * POSITIONS
            && sequence.read() + POSITIONS < sequence.tokens().ids.len()
            && let Some((entry, block)) = sequence.next_key().and_then(|key| self.prefixes.find(&key))
        {
            self.cache.adopt(slot, block);
            spared += sequence.adopted(entry, POSITIONS);
        }
        spared
    }

    /// Puts the blocks a sequence has filled into the index. Where another was first, its block takes the place of this one:
    /// the same tokens gave the same numbers.
    pub fn index(&mut self, slot: usize, sequence: &mut Sequence) {
        while (sequence.chain().len() + 1) * POSITIONS <= sequence.read() {
            let index = sequence.chain().len();
            let Some(key) = sequence.next_key() else { return };
            let own = self.cache.table(slot)[index];
            let entry = match self.prefixes.find(&key) {
                Some((entry, block)) => {
                    if block != own {
                        self.cache.replace(slot, index, block);
                    }
                    entry
                }
                None => self.prefixes.insert(key, own, &mut self.cache),
            };
            sequence.indexed(entry);
        }
    }

    /// Makes room for a sequence's `positions`, letting go of beginnings nobody uses. False if running sequences hold all.
    #[must_use]
    pub fn reserve(&mut self, slot: usize, positions: usize) -> bool {
        while !self.cache.reserve(slot, positions) {
            if !self.prefixes.evict(&mut self.cache) {
                return false;
            }
        }
        true
    }

    /// Takes a sequence's place away; its indexed blocks stay as long as there is room.
    pub fn clear(&mut self, slot: usize, sequence: &Sequence) {
        self.prefixes.touch(sequence.chain());
        self.cache.clear(slot);
        while self.prefixes.len() > self.kept && self.prefixes.evict(&mut self.cache) {}
    }

    /// Blocks that could be had for a new sequence.
    pub fn available(&self) -> usize {
        self.cache.most_blocks() - self.cache.used_blocks() + self.cache.idle_blocks()
    }

    /// Blocks that a sequence of these tokens needs for them and the next one, beyond those that running ones hold for it.
    pub fn needed(&self, tokens: &Tokens) -> usize {
        let (mut before, mut held) = (0, 0);
        for index in 0..tokens.ids.len().saturating_sub(1) / POSITIONS {
            let found = tokens.key(index, before).and_then(|key| self.prefixes.find(&key));
            let Some((entry, block)) = found else { break };
            held += usize::from(self.cache.holders(block) > 1);
            before = entry;
        }
        blocks_for(tokens) - held
    }

    /// Blocks that a running sequence still needs for its tokens and the next one.
    pub fn outstanding(&self, slot: usize, tokens: &Tokens) -> usize {
        blocks_for(tokens).saturating_sub(self.cache.table(slot).len())
    }

    /// Bytes in use, kept and free.
    pub fn reading(&self) -> CacheReading {
        let bytes = |blocks: usize| (blocks * self.cache.block_bytes()) as u64;
        let kept = self.cache.idle_blocks();
        CacheReading {
            used_bytes: bytes(self.cache.used_blocks() - kept),
            kept_bytes: bytes(kept),
            free_bytes: bytes(self.cache.most_blocks() - self.cache.used_blocks()),
            ..CacheReading::default()
        }
    }
}

fn blocks_for(tokens: &Tokens) -> usize {
    (tokens.ids.len() + 1).div_ceil(POSITIONS)
}

/// Splits `chunk` prompt rows among sequences that have so many left to read, given with their tenants in the order of their
/// age. Tenants get equal parts; within one, half is the oldest's and the rest goes to whoever is done soonest, so that a
/// long prompt neither holds up short ones nor starves behind them. What some don't need goes to the others. `turn` decides
/// who comes first where there are more tenants than rows.
pub(super) fn split(chunk: usize, wanting: &[(&Tenant, usize)], turn: usize) -> Vec<usize> {
    let mut parts = vec![0; wanting.len()];
    let mut tenants: Vec<&Tenant> = Vec::new();
    for (tenant, left) in wanting {
        if *left > 0 && !tenants.contains(tenant) {
            tenants.push(tenant);
        }
    }
    let mut room = chunk;
    if !tenants.is_empty() {
        let first = turn % tenants.len();
        tenants.rotate_left(first);
    }
    while room > 0 && !tenants.is_empty() {
        let share = room.div_ceil(tenants.len());
        tenants.retain(|tenant| {
            let budget = share.min(room);
            let given = give(budget, tenant, wanting, &mut parts);
            room -= given;
            given == budget
        });
    }
    parts
}

/// Adds a tenant's rows to the parts of its sequences; returns how many it took.
fn give(budget: usize, tenant: &Tenant, wanting: &[(&Tenant, usize)], parts: &mut [usize]) -> usize {
    let mut rest = budget;
    let mut own: Vec<usize> =
        (0..wanting.len()).filter(|at| wanting[*at].0 == tenant && wanting[*at].1 > parts[*at]).collect();
    let mut add = |at: usize, most: usize, rest: &mut usize| {
        let more = most.min(*rest).min(wanting[at].1 - parts[at]);
        parts[at] += more;
        *rest -= more;
        wanting[at].1 - parts[at]
    };
    if let Some(oldest) = own.first() {
        add(*oldest, budget.div_ceil(2), &mut rest);
    }
    own.sort_by_key(|at| add(*at, 0, &mut rest));
    for at in own {
        add(at, budget, &mut rest);
    }
    budget - rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn prompt_rows_are_split_by_tenant_and_short_prompts_go_ahead() {
        let [a, b, c] = ["a", "b", "c"].map(|name| Some(Arc::from(name)));
        let check = |chunk: usize, turn: usize, wanting: &[(&Tenant, usize)], expected: &[usize]| {
            assert_eq!(split(chunk, wanting, turn), expected, "{chunk} for {wanting:?}");
        };
        check(128, 0, &[(&a, 500), (&a, 500)], &[128, 0]);
        check(128, 0, &[(&a, 100), (&a, 500)], &[100, 28]);
        check(128, 0, &[(&a, 500), (&a, 3), (&a, 90)], &[64, 3, 61]);
        check(128, 0, &[(&a, 500), (&a, 500), (&b, 500)], &[64, 0, 64]);
        check(128, 0, &[(&a, 500), (&b, 10), (&b, 10)], &[108, 10, 10]);
        check(128, 1, &[(&a, 5), (&b, 7)], &[5, 7]);
        check(2, 0, &[(&a, 5), (&b, 7), (&c, 1)], &[1, 1, 0]);
        check(2, 1, &[(&a, 5), (&b, 7), (&c, 1)], &[0, 1, 1]);
        check(9, 0, &[], &[]);
        check(9, 0, &[(&a, 0), (&b, 20)], &[0, 9]);
    }
}
