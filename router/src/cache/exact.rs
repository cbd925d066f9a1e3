//! Answers kept in memory under their exact key, within a number of bytes, each for as long as its policy said when it was
//! stored. What is read again often outlives what is not (moka's TinyLFU).

use super::CacheKey;
use crate::domain::{Cost, Finish, ModelId, RequestId, Route};
use moka::future::Cache;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What an entry takes besides its texts: the key, the answer's fixed fields, and the cache's own bookkeeping, measured
/// roughly and rounded up.
const ENTRY_OVERHEAD: usize = 512;

/// A complete answer and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedAnswer {
    /// The whole text.
    pub text: String,
    /// How it ended and what it used then.
    pub finish: Finish,
    /// The ledger entry of the request that it was written for.
    pub entry_id: RequestId,
    /// The model that wrote it.
    pub model: ModelId,
    /// The way that request took.
    pub route: Route,
    /// What it cost then: what a hit saves.
    pub cost: Cost,
}

/// A kept answer that fits.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The answer.
    pub answer: Arc<CachedAnswer>,
    /// How long ago it was stored.
    pub age: Duration,
}

#[derive(Clone)]
struct Kept {
    answer: Arc<CachedAnswer>,
    stored: Instant,
    time_to_live: Duration,
}

/// A cache bounded in bytes. Clones are the same cache.
#[derive(Clone)]
pub struct ExactCache {
    entries: Cache<CacheKey, Kept>,
    /// An entry may take this much: one huge answer must not drive out all others.
    max_entry_bytes: u64,
}

/// Lets moka drop what has outlived its own time; [`ExactCache::lookup`] looks at the time itself and does not rely on it.
struct OwnTime;

impl moka::Expiry<CacheKey, Kept> for OwnTime {
    fn expire_after_create(&self, _: &CacheKey, kept: &Kept, _: std::time::Instant) -> Option<Duration> {
        Some(kept.time_to_live)
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        kept: &Kept,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(kept.time_to_live)
    }
}

impl ExactCache {
    /// A cache of at most `max_bytes` of texts and overhead, an eighth of it for one answer; 0 keeps nothing.
    pub fn new(max_bytes: u64) -> Self {
        let weigher = |_: &CacheKey, kept: &Kept| u32::try_from(weight(&kept.answer)).unwrap_or(u32::MAX);
        let entries = Cache::builder().max_capacity(max_bytes).weigher(weigher).expire_after(OwnTime).build();
        Self { entries, max_entry_bytes: max_bytes / 8 }
    }

    /// The answer kept under `key`, unless its time is over.
    pub async fn lookup(&self, key: &CacheKey) -> Option<Hit> {
        let kept = self.entries.get(key).await?;
        let age = kept.stored.elapsed();
        if age >= kept.time_to_live {
            self.entries.invalidate(key).await;
            return None;
        }
        Some(Hit { answer: kept.answer, age })
    }

    /// Keeps `answer` for `time_to_live`; an earlier one under the same key is gone even if this one is too large. What may be kept is
    /// [`cacheable`](super::cacheable)'s to say.
    pub async fn store(&self, key: CacheKey, answer: CachedAnswer, time_to_live: Duration) {
        if weight(&answer) > self.max_entry_bytes {
            self.entries.invalidate(&key).await;
            return;
        }
        let kept = Kept { answer: Arc::new(answer), stored: Instant::now(), time_to_live };
        self.entries.insert(key, kept).await;
    }

    /// Entries, and bytes that they are counted for; both may lag a little behind.
    pub fn size(&self) -> (u64, u64) {
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

/// Bytes that an entry counts for.
fn weight(answer: &CachedAnswer) -> u64 {
    (answer.text.len() + answer.finish.response_model.len() + ENTRY_OVERHEAD) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{FinishReason, Usage};

    fn key(number: u8) -> CacheKey {
        CacheKey([number; 32])
    }

    fn answer(text: &str) -> CachedAnswer {
        CachedAnswer {
            text: text.to_owned(),
            finish: Finish {
                reason: FinishReason::Stop,
                usage: Usage::default(),
                usage_reported: true,
                max_tokens: None,
                cpu_seconds: 0.0,
                response_model: String::new(),
            },
            entry_id: RequestId::fresh(),
            model: ModelId::new("m"),
            route: Route::Remote,
            cost: Cost::FREE,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_live_as_long_as_their_policy_says() {
        let cache = ExactCache::new(1 << 20);
        assert!(cache.lookup(&key(1)).await.is_none());
        cache.store(key(1), answer("short"), Duration::from_secs(60)).await;
        cache.store(key(2), answer("long"), Duration::from_secs(600)).await;
        tokio::time::advance(Duration::from_secs(59)).await;
        let hit = cache.lookup(&key(1)).await.unwrap();
        assert_eq!((hit.answer.text.as_str(), hit.age), ("short", Duration::from_secs(59)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.lookup(&key(1)).await.is_none());
        assert_eq!(cache.lookup(&key(2)).await.unwrap().answer.text, "long");
        cache.store(key(2), answer("newer"), Duration::from_secs(600)).await;
        let hit = cache.lookup(&key(2)).await.unwrap();
        assert_eq!((hit.answer.text.as_str(), hit.age), ("newer", Duration::ZERO));
    }

    #[tokio::test]
    async fn bytes_are_bounded() {
        let limit = 100 * 1_024;
        let cache = ExactCache::new(limit);
        for number in 0..=255 {
            cache.store(key(number), answer(&"x".repeat(1_024)), Duration::from_secs(600)).await;
        }
        cache.store(key(255), answer(&"x".repeat(1 << 20)), Duration::from_secs(600)).await;
        cache.entries.run_pending_tasks().await;
        let (entries, bytes) = cache.size();
        assert!(bytes <= limit && entries >= 50, "{entries} entries of {bytes} bytes");
        let mut present = 0;
        for number in 0..=255 {
            present += u64::from(cache.lookup(&key(number)).await.is_some());
        }
        assert_eq!(present, entries);
    }
}
