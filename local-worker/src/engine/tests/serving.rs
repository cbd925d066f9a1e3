//! Many requests at once: turns, places, beginnings computed once, and answers that are those of a lone run, to the bit.

use super::*;
use crate::testing::soak::{Book, Dice, MODEL, soak};

/// Bytes of one block of [`MODEL`].
const BLOCK: usize = 16 << 10;

/// A worker without a thread: every turn is taken by the test.
struct ByHand {
    desk: Desk,
    worker: Worker,
}

impl ByHand {
    fn new(script: &Script<'_>, config: WorkerConfig) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script.gguf()).unwrap();
        let loaded = source::load("test", &ModelSource::Path(file.path().to_owned()), &config).unwrap();
        let (desk, rates) = Desk::new(loaded.model, &config, loaded.info.context_length as usize).unwrap();
        let shared = Shared::new(config, loaded.info, loaded.front, loaded.decline, (rates, desk.positions()));
        Self { desk, worker: Worker(Arc::new(Handle { shared: Arc::new(shared), thread: Mutex::new(None) })) }
    }

    /// Only while something waits or runs; else it would wait for ever.
    fn turn(&mut self) {
        let shared = self.worker.0.shared.clone();
        assert!(self.desk.turn(&shared));
    }

    fn submit(&self, tenant: &str, text: &str, most: u32) -> Generation {
        self.worker.submit(of(tenant, text, most)).unwrap()
    }
}

fn of(tenant: &str, text: &str, most: u32) -> GenerateRequest {
    GenerateRequest { tenant: Some(tenant.to_owned()), max_tokens: Some(most), ..ask(text) }
}

/// Tokens that have come, and whether the answer has ended.
fn news(generation: &mut Generation) -> (usize, bool) {
    let (mut tokens, mut ended) = (0, false);
    while let Some(event) = generation.try_next() {
        match event {
            Event::Token { .. } => tokens += 1,
            Event::Finished(_) => ended = true,
            Event::Failed(error) => panic!("{error}"),
            Event::Started { .. } => {}
        }
    }
    (tokens, ended)
}

fn letters(seed: u64, count: usize) -> String {
    let mut dice = Dice::new(seed);
    (0..count).map(|_| (b'a' + dice.below(26) as u8) as char).collect()
}

#[test]
fn a_long_prompt_stalls_nobody() {
    let config = WorkerConfig { prefill_chunk: 16, ..WorkerConfig::default() };
    let mut hand = ByHand::new(&Script { context: 4096, ..CHAINS }, config);
    let mut writing = hand.submit("a", "l", 4000);
    hand.turn();
    assert_eq!(news(&mut writing), (1, false));
    let mut long = hand.submit("b", &"x".repeat(16 * 20), 1);
    for _ in 0..19 {
        hand.turn();
        assert_eq!(news(&mut writing), (1, false), "a token in each step");
        assert_eq!(news(&mut long), (0, false), "sixteen tokens of the prompt in each step");
    }
    hand.turn();
    assert_eq!((news(&mut writing), news(&mut long)), ((1, false), (1, true)));
}

#[test]
fn cancelling_takes_one_step_and_gives_blocks_back() {
    let config = WorkerConfig { prefill_chunk: 16, ..WorkerConfig::default() };
    let mut hand = ByHand::new(&Script { context: 4096, ..CHAINS }, config);
    let mut other = hand.submit("b", "l", 1000);
    let (reading, writing) = (hand.submit("a", &"x".repeat(500), 5), hand.submit("a", "l", 1000));
    (0..3).for_each(|_| hand.turn());
    assert_eq!((hand.worker.load().running, hand.worker.load().cache_used_bytes), (3, 4 * BLOCK as u64));
    let meters = [reading.meter(), writing.meter()];
    drop((reading, writing));
    hand.turn();
    assert!(meters.iter().all(UsageMeter::settled));
    assert_eq!(meters[0].usage().prompt_tokens, 46, "no chunk more");
    let load = hand.worker.load();
    assert_eq!((load.running, load.cache_used_bytes), (1, BLOCK as u64), "{load:?}");
    assert_eq!(load.cache_kept_bytes, BLOCK as u64, "one block was whole");
    news(&mut other);
}

#[test]
fn a_tenant_with_hundreds_waiting_starves_nobody() {
    let config = WorkerConfig { max_sequences: 2, queue_capacity: 1000, prefill_chunk: 8, ..WorkerConfig::default() };
    let mut hand = ByHand::new(&CHAINS, config);
    let mut many: Vec<_> = (0..500).map(|_| hand.submit("many", "l", 4)).collect();
    (0..21).for_each(|_| hand.turn());
    let done = |many: &mut Vec<Generation>| {
        let before = many.len();
        many.retain_mut(|one| !news(one).1);
        before - many.len()
    };
    assert_eq!(done(&mut many), 10, "two at a time, four steps each");
    let mut few = hand.submit("few", "a", 4);
    let mut turns = 0;
    while !news(&mut few).1 {
        hand.turn();
        turns += 1;
    }
    assert!(turns <= 8, "after at most one answer of the other's, not {turns} steps");
    assert!(done(&mut many) <= 4);
}

#[test]
fn a_queue_filled_by_one_has_room_for_another() {
    let config = WorkerConfig { max_sequences: 1, queue_capacity: 9, ..WorkerConfig::default() };
    let hand = ByHand::new(&CHAINS, config);
    let mut kept = Vec::new();
    let mut fill = |tenant: &str| {
        let before = kept.len();
        while let Ok(generation) = hand.worker.submit(of(tenant, "a", 1)) {
            kept.push(generation);
        }
        kept.len() - before
    };
    assert_eq!(fill("a"), 10, "nine and the free place");
    assert_eq!((fill("b"), fill("c"), fill("a")), (5, 3, 0), "their shares");
    assert!(!hand.worker.load().full);
    assert_eq!(["d", "e", "f"].map(&mut fill), [2, 0, 0], "twice as many and no more");
    assert!(hand.worker.load().full);
}

#[test]
fn beginnings_are_computed_once_for_each_tenant() {
    let template = Some("{% for message in messages %}{{ message.content }}{% endfor %}");
    let model = start(&Script { template, context: 1024, ..MODEL }, WorkerConfig::default());
    let system = letters(1, 100);
    let turn = |role: &str, content: &str| ChatMessage { role: role.to_owned(), content: content.to_owned() };
    let run = |tenant: Option<&str>, shared_messages: usize, question: &str| {
        let messages = vec![turn("system", &system), turn("user", question)];
        let tenant = tenant.map(str::to_owned);
        let request =
            GenerateRequest { tenant, shared_messages, max_tokens: Some(3), ..GenerateRequest::greedy(messages) };
        let (_, tokens, end) = collect(model.worker.submit(request).unwrap());
        let end = end.unwrap();
        assert_eq!(end.prompt_tokens as usize, 100 + question.len(), "cached ones are counted too");
        (end.cached_prompt_tokens, tokens)
    };
    let (cached, first) = run(Some("a"), 0, "what is it?");
    assert_eq!(cached, 0);
    let (cached, again) = run(Some("a"), 0, "what is it?");
    assert_eq!((cached, &again), (96, &first), "three blocks of thirty-two");
    assert_eq!(run(Some("a"), 0, "another").0, 96);
    assert_eq!(run(Some("b"), 0, "what is it?").0, 0, "another tenant finds nothing");
    assert_eq!(run(None, 0, "what is it?").0, 0);
    assert_eq!(run(Some("a"), 1, "what is it?").0, 0, "not what was computed unshared");
    assert_eq!(run(Some("b"), 1, "what is it?"), (96, first), "but what was shared");
    assert_eq!(model.worker.load().prefix_hit_tokens, 3 * 96);
    let question = letters(2, 60);
    assert_eq!(run(Some("a"), 1, &question).0, 96);
    assert_eq!(run(Some("b"), 1, &question).0, 96, "what follows the shared part is not shared");
    assert_eq!(run(Some("b"), 1, &question).0, 128);
}

#[test]
fn beginnings_that_arrive_together_are_computed_once() {
    let config = WorkerConfig { prefill_chunk: 40, ..WorkerConfig::default() };
    let mut hand = ByHand::new(&Script { context: 1024, ..MODEL }, config);
    let beginning = letters(3, 200);
    let mut all: Vec<_> = (0..4).map(|at| hand.submit("a", &format!("{beginning}{at}"), 2)).collect();
    while !all.is_empty() {
        hand.turn();
        all.retain_mut(|one| !news(one).1);
    }
    assert_eq!(hand.worker.load().prefix_hit_tokens, 3 * 192);
}

#[test]
fn sequences_that_outgrow_the_cache_are_set_back_and_come_out_the_same() {
    let script = Script { context: 256, ..MODEL };
    let alone = start(&script, WorkerConfig::default());
    let small = start(&script, WorkerConfig { cache_bytes: 6 * BLOCK, ..WorkerConfig::default() });
    let request = |at: u64| of(&format!("{at}"), &letters(at, 30), 120);
    let together: Vec<_> = (0..5).map(|at| small.worker.submit(request(at)).unwrap()).collect();
    for (at, generation) in (0..).zip(together) {
        let (text, tokens, end) = collect(generation);
        let expected = collect(alone.worker.submit(request(at)).unwrap());
        assert_eq!((&text, &tokens), (&expected.0, &expected.1), "{at}");
        let (end, expected) = (end.unwrap(), expected.2.unwrap());
        assert_eq!((end.prompt_tokens, end.output_tokens), (30, expected.output_tokens), "counted once");
    }
    let load = small.worker.load();
    assert!(load.preemptions > 0, "{load:?}");
    assert_eq!((load.cache_used_bytes, load.cache_kept_bytes + load.cache_free_bytes), (0, 6 * BLOCK as u64));
    let refused = small.worker.submit(of("a", &letters(9, 100), 94)).err();
    assert_eq!(refused, Some(SubmitError::CacheTooSmall { tokens: 194, positions: 192 }));
    assert!(collect(small.worker.submit(of("a", &letters(9, 100), 93)).unwrap()).2.is_ok());
    let refused = small.worker.submit(ask(&letters(9, 200))).err();
    assert!(matches!(refused, Some(SubmitError::CacheTooSmall { positions: 192, .. })), "{refused:?}");
    assert!(collect(small.worker.submit(ask(&letters(9, 150))).unwrap()).2.is_ok(), "as many as the cache leaves");
}

#[test]
fn random_requests_in_any_company_are_answered_as_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), MODEL.gguf()).unwrap();
    let source = ModelSource::Path(file.path().to_owned());
    let mut dice = Dice::new(5);
    for cache_format in [CacheFormat::Single, CacheFormat::Half] {
        let base = WorkerConfig { cache_format, ..WorkerConfig::default() };
        let block = if cache_format == CacheFormat::Single { 2 * BLOCK } else { BLOCK };
        let mut book = Book::new(source.clone(), &base, &mut dice).unwrap();
        let (mut cached, mut preemptions) = (0, 0);
        for _ in 0..10 {
            let config = WorkerConfig {
                max_sequences: 1 + dice.below(8),
                prefill_chunk: 1 + dice.below(80),
                queue_capacity: 1 + dice.below(20),
                cache_bytes: (7 + dice.below(20)) * block,
                ..base.clone()
            };
            let worker = Worker::start("test", source.clone(), config.clone()).unwrap();
            let budget = worker.load().cache_free_bytes;
            let soaked = soak(&worker, &mut book, 50, &mut dice).unwrap_or_else(|wrong| panic!("{config:?}: {wrong}"));
            assert_eq!(soaked.complete + soaked.cancelled, 50);
            let after = soaked.after;
            assert_eq!((after.running, after.waiting, after.cache_used_bytes), (0, 0, 0), "{config:?}");
            assert_eq!(after.cache_kept_bytes + after.cache_free_bytes, budget, "{config:?}");
            (cached, preemptions) = (cached + soaked.cached, preemptions + after.preemptions);
        }
        assert!(cached > 0 && preemptions > 0, "{cached}, {preemptions}");
    }
}
