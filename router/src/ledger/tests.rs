use super::*;
use crate::domain::{
    Arm, Candidate, CostBasis, ExcludedBy, FirstChoice, Message, Placement, PolicyRef, Predicted, Reason, ReasonCode,
    RecordLevel, Residency, Role, Score,
};
use std::collections::BTreeMap;

struct Open {
    ledger: Arc<Ledger>,
    recovery: Recovery,
    tracker: TaskTracker,
    stop: CancellationToken,
}

async fn open_with(folder: &Path, options: LedgerOptions) -> Result<Open, LedgerError> {
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let (ledger, recovery) = Ledger::open(folder, options, &tracker, stop.clone()).await?;
    Ok(Open { ledger, recovery, tracker, stop })
}

async fn open(folder: &Path) -> Open {
    open_with(folder, LedgerOptions::default()).await.unwrap()
}

impl Open {
    async fn close(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn started(request: RequestId, hold: i64) -> AttemptStarted {
    AttemptStarted {
        attempt: AttemptId::fresh(),
        request,
        tenant: TenantId::new("acme"),
        model: ModelId::new("a/large"),
        route: Route::Remote,
        number: 1,
        started_at: Timestamp::now(),
        hold: NanoUsd::new(hold),
        shadow: None,
    }
}

fn ended(started: &AttemptStarted, cost: i64) -> AttemptEnded {
    AttemptEnded {
        attempt: started.attempt,
        request: started.request,
        ended_at: Timestamp::now(),
        status: EntryStatus::Ok,
        cost: Cost { amount: NanoUsd::new(cost), basis: CostBasis::Reported },
        usage: Usage { input_tokens: 7, output_tokens: 5, cached_input_tokens: 2, reasoning_tokens: 1 },
        cpu_seconds: 0.25,
        latency: Duration::from_millis(12),
        error: String::new(),
        overrun: false,
    }
}

fn entry(id: RequestId, at_ms: i64, route: Route, cost: i64) -> Entry {
    let decision = Decision {
        route,
        model: ModelId::new("a/large"),
        fallbacks: vec![ModelId::new("b")],
        escalate_to: None,
        candidates: vec![Candidate {
            score: Score::new(0.5).ok(),
            worst_cost: NanoUsd::new(7),
            predicted: Some(Predicted { first_byte: Duration::from_millis(3), total: Duration::from_millis(9) }),
            region: Some("eu".to_owned()),
            excluded_by: Some(ExcludedBy("why".to_owned())),
            ..Candidate::new(ModelId::new("s"), Route::Local)
        }],
        reason: Reason::new(ReasonCode::ScoreBelowThreshold, "detail"),
        threshold: Some(0.75),
        policy: PolicyRef { name: "balanced".to_owned(), hash: "h".to_owned() },
        scorer_version: "v".to_owned(),
        propensity: 1.0,
        explored: false,
        arm: Some(Arm { experiment: "balanced".to_owned(), candidate: true }),
    };
    Entry {
        id,
        tenant: TenantId::new("acme"),
        key_name: "k".to_owned(),
        received_at: Timestamp::from_millisecond(at_ms).unwrap(),
        latency: Duration::from_millis(20),
        first_byte: Some(Duration::from_millis(3)),
        status: EntryStatus::Ok,
        decision: Some(decision),
        constraints: Some(Constraints {
            placement: Placement::Auto,
            placement_by: "default".to_owned(),
            rule: None,
            model: None,
            residency: Residency::only("keys.regions", ["eu"]),
            cache_read: true,
            cache_write: false,
        }),
        usage: Usage { input_tokens: 7, output_tokens: 5, ..Usage::default() },
        cpu_seconds: 0.5,
        cost: Cost { amount: NanoUsd::new(cost), basis: CostBasis::Reported },
        baseline: NanoUsd::new(100),
        baseline_method: "m".to_owned(),
        finish_reason: Some(FinishReason::Stop),
        error: String::new(),
        cached_from: None,
        labels: BTreeMap::from([("team".to_owned(), if cost % 2 == 0 { "even" } else { "odd" }.to_owned())]),
        conversation_id: "c".to_owned(),
        end_user_id: "u".to_owned(),
        recording: None,
        shadow_of: None,
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn what_is_written_is_read_back_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let id = RequestId::fresh();
    let (start, whole) = (started(id, 50), entry(id, 1_000, Route::Remote, 30));
    let end = ended(&start, 30);
    let first = open(folder.path()).await;
    first.ledger.attempt_started(&start).unwrap();
    first.ledger.attempt_ended(&end).unwrap();
    first.ledger.entry(&whole).unwrap();
    first.close().await;
    let second = open(folder.path()).await;
    assert_eq!((second.recovery.replayed, second.recovery.interrupted), (0, 0));
    let story = second.ledger.story(None, id).await.unwrap();
    assert_eq!(story.entry, whole);
    let milliseconds = |at: Timestamp| at.as_millisecond();
    let attempt = &story.attempts[0];
    assert_eq!(milliseconds(attempt.started.started_at), milliseconds(start.started_at));
    assert_eq!((attempt.started.hold, attempt.started.attempt), (start.hold, start.attempt));
    let read = attempt.ended.as_ref().unwrap();
    assert_eq!((read.cost, read.usage, read.latency, read.status), (end.cost, end.usage, end.latency, end.status));
    assert_eq!(second.recovery.spent.iter().map(|(_, _, amount)| amount.nanos()).sum::<i64>(), 30);
    second.close().await;
}

#[tokio::test]
async fn what_a_killed_process_left_is_booked_at_its_hold() {
    let (folder, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = open(folder.path()).await;
    let (done, lost) = (RequestId::fresh(), RequestId::fresh());
    let start = started(done, 50);
    running.ledger.attempt_started(&start).unwrap();
    running.ledger.attempt_ended(&ended(&start, 30)).unwrap();
    running.ledger.entry(&entry(done, 1_000, Route::Remote, 30)).unwrap();
    running.ledger.attempt_started(&started(lost, 70)).unwrap();
    // The folder as a killed process leaves it, whatever the writer has taken by now.
    copy(folder.path(), copied.path());
    let next = open(copied.path()).await;
    assert_eq!(next.recovery.interrupted, 1);
    let story = next.ledger.story(None, lost).await.unwrap();
    assert_eq!(story.entry.status, EntryStatus::Interrupted);
    assert_eq!(story.entry.cost, Cost { amount: NanoUsd::new(70), basis: CostBasis::Bound });
    assert_eq!(story.attempts[0].ended.as_ref().unwrap().status, EntryStatus::Interrupted);
    assert_eq!(next.ledger.story(None, done).await.unwrap().entry.cost.amount.nanos(), 30);
    next.close().await;
    running.close().await;
}

#[tokio::test]
async fn a_torn_end_is_set_aside_and_the_journal_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<RequestId> = (0..3).map(|_| RequestId::fresh()).collect();
    let mut torn = Vec::new();
    let (journal_options, position) = (LedgerOptions::default(), journal::Position::default());
    let journal = Journal::open(folder.path(), journal_options, &position, &mut torn).unwrap();
    for id in &ids {
        journal.append(&Record::entry(&entry(*id, 1_000, Route::Local, 0))).unwrap();
    }
    let segment = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&segment).unwrap();
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    drop(journal);
    for end in [last + 1, (last + bytes.len()) / 2, bytes.len() - 1] {
        let copied = tempfile::tempdir().unwrap();
        std::fs::write(copied.path().join(segment.file_name().unwrap()), &bytes[..end]).unwrap();
        let opened = open(copied.path()).await;
        assert_eq!((opened.recovery.replayed, opened.recovery.torn.len()), (2, 1), "cut at {end}");
        assert_eq!(std::fs::read(&opened.recovery.torn[0]).unwrap(), &bytes[last..end]);
        assert!(opened.ledger.story(None, ids[1]).await.is_ok());
        assert!(matches!(opened.ledger.story(None, ids[2]).await, Err(LedgerError::NotFound(_))));
        // The journal goes on behind the tear.
        opened.ledger.entry(&entry(ids[2], 1_000, Route::Local, 0)).unwrap();
        assert!(opened.ledger.story(None, ids[2]).await.is_ok());
        opened.close().await;
    }
}

#[tokio::test]
async fn segments_rotate_and_drained_ones_go() {
    let folder = tempfile::tempdir().unwrap();
    let opened =
        open_with(folder.path(), LedgerOptions { segment_bytes: 2_000, ..LedgerOptions::default() }).await.unwrap();
    for number in 0..60 {
        opened.ledger.entry(&entry(RequestId::fresh(), number, Route::Local, 0)).unwrap();
    }
    opened.ledger.flush().await;
    let rows = opened.ledger.summarize(&everything(GroupBy::None)).await.unwrap();
    assert_eq!(rows[0].summary.requests, 60);
    assert_eq!(opened.ledger.backlog_bytes(), 0);
    let segments = std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap);
    let left = segments.filter(|file| file.file_name().to_string_lossy().starts_with("journal-")).count();
    assert!(left <= 2, "{left} segments are left");
    opened.close().await;
}

#[tokio::test]
async fn a_store_that_is_behind_refuses_paid_attempts() {
    let folder = tempfile::tempdir().unwrap();
    let opened =
        open_with(folder.path(), LedgerOptions { max_backlog_bytes: 0, ..LedgerOptions::default() }).await.unwrap();
    opened.ledger.entry(&entry(RequestId::fresh(), 0, Route::Local, 0)).unwrap();
    // Not yet drained: this test has one thread and has not given it away.
    let refused = opened.ledger.attempt_started(&started(RequestId::fresh(), 1));
    assert!(matches!(refused, Err(LedgerError::Backlogged { .. })), "{refused:?}");
    opened.ledger.flush().await;
    opened.ledger.attempt_started(&started(RequestId::fresh(), 1)).unwrap();
    opened.close().await;
}

#[tokio::test]
async fn flushing_after_the_end_does_not_hang() {
    let folder = tempfile::tempdir().unwrap();
    let Open { ledger, tracker, stop, .. } = open(folder.path()).await;
    stop.cancel();
    tracker.close();
    tracker.wait().await;
    ledger.entry(&entry(RequestId::fresh(), 0, Route::Local, 0)).unwrap();
    tokio::time::timeout(Duration::from_secs(20), ledger.flush()).await.unwrap();
}

#[tokio::test]
async fn feedback_is_idempotent_and_the_tenants_own() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path()).await;
    let id = RequestId::fresh();
    opened.ledger.entry(&entry(id, 0, Route::Local, 0)).unwrap();
    let feedback = |value| Feedback { entry: id, source: FeedbackSource::User, value, at: Timestamp::now() };
    let (acme, other) = (TenantId::new("acme"), TenantId::new("other"));
    let give = async |tenant, value| opened.ledger.feedback(tenant, &feedback(value)).await;
    assert_eq!(give(&acme, 0.5).await.unwrap(), FeedbackOutcome::Recorded);
    assert_eq!(give(&acme, 0.5).await.unwrap(), FeedbackOutcome::Unchanged);
    assert_eq!(give(&acme, 0.75).await.unwrap(), FeedbackOutcome::Updated);
    assert!(matches!(give(&other, 0.5).await, Err(LedgerError::NotFound(_))));
    assert_eq!(opened.ledger.story(None, id).await.unwrap().feedback[0].value, 0.75);
    opened.close().await;
}

fn everything(group_by: GroupBy) -> SummaryQuery {
    SummaryQuery {
        from: Timestamp::from_millisecond(0).unwrap(),
        to: Timestamp::from_millisecond(1_000_000).unwrap(),
        bucket: None,
        group_by,
        tenant: String::new(),
    }
}

#[tokio::test]
async fn sums_and_pages_agree_with_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path()).await;
    let routes = [Route::Local, Route::Remote, Route::Cache];
    for number in 0..40_i64 {
        // Several at the same millisecond: pages must not lose or repeat any.
        let route = routes[number as usize % 3];
        opened.ledger.entry(&entry(RequestId::fresh(), 1_000 * (number / 7), route, number)).unwrap();
    }
    for (group_by, groups) in [
        (GroupBy::None, 1),
        (GroupBy::Tenant, 1),
        (GroupBy::Route, 3),
        (GroupBy::Policy, 1),
        (GroupBy::Label("team".to_owned()), 2),
        (GroupBy::Label("absent".to_owned()), 1),
    ] {
        let rows = opened.ledger.summarize(&everything(group_by.clone())).await.unwrap();
        assert_eq!(rows.len(), groups, "{group_by:?}");
        assert_eq!(rows.iter().map(|row| row.summary.requests).sum::<u64>(), 40);
        let cost: i64 = rows.iter().flat_map(|row| row.summary.cost.values()).map(|cost| cost.nanos()).sum();
        assert_eq!(cost, (0..40).sum::<i64>());
        assert_eq!(rows.iter().map(|row| row.summary.saved.nanos()).sum::<i64>(), 40 * 100 - cost);
    }
    let buckets = SummaryQuery { bucket: Some(Duration::from_secs(1)), ..everything(GroupBy::None) };
    let rows = opened.ledger.summarize(&buckets).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.summary.requests).collect::<Vec<_>>(), [7, 7, 7, 7, 7, 5]);
    let mut seen = std::collections::BTreeSet::new();
    let mut filter = EntryFilter { size: 6, ..EntryFilter::default() };
    loop {
        let page = opened.ledger.list(&filter).await.unwrap();
        assert!(page.stories.iter().all(|story| seen.insert(story.entry.id)));
        if page.next_page_token.is_empty() {
            break;
        }
        filter.page_token = page.next_page_token;
    }
    assert_eq!(seen.len(), 40);
    let only = async |filter: EntryFilter| {
        opened.ledger.list(&EntryFilter { size: 1_000, ..filter }).await.unwrap().stories.len()
    };
    assert_eq!(only(EntryFilter { route: "cache".to_owned(), ..EntryFilter::default() }).await, 13);
    assert_eq!(only(EntryFilter { tenant: "nobody".to_owned(), ..EntryFilter::default() }).await, 0);
    let odd = BTreeMap::from([("team".to_owned(), "odd".to_owned())]);
    assert_eq!(only(EntryFilter { labels: odd, ..EntryFilter::default() }).await, 20);
    let foreign = EntryFilter { page_token: "x".to_owned(), ..EntryFilter::default() };
    assert!(matches!(opened.ledger.list(&foreign).await, Err(LedgerError::PageToken)));
    opened.close().await;
}

#[tokio::test]
async fn a_request_killed_after_its_attempt_keeps_the_basis_of_the_attempt() {
    let (folder, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = open(folder.path()).await;
    let (reported, huge) = (RequestId::fresh(), RequestId::fresh());
    let start = started(reported, 50);
    running.ledger.attempt_started(&start).unwrap();
    running.ledger.attempt_ended(&ended(&start, 30)).unwrap();
    // Two holds whose sum is past 64 bits must not keep the next process from starting.
    for _ in 0..2 {
        running.ledger.attempt_started(&started(huge, i64::MAX)).unwrap();
    }
    copy(folder.path(), copied.path());
    let next = open(copied.path()).await;
    assert_eq!(next.recovery.interrupted, 2);
    let cost = async |id| next.ledger.story(None, id).await.unwrap().entry.cost;
    assert_eq!(cost(reported).await, Cost { amount: NanoUsd::new(30), basis: CostBasis::Reported });
    assert_eq!(cost(huge).await, Cost { amount: NanoUsd::MAX, basis: CostBasis::Bound });
    assert_eq!(next.recovery.spent.iter().map(|(_, _, amount)| *amount).sum::<NanoUsd>(), NanoUsd::MAX);
    next.close().await;
    running.close().await;
}

#[tokio::test]
async fn while_the_store_is_away_reads_return_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path()).await;
    let id = RequestId::fresh();
    let rename = async |from: &str, to: &str| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        opened.ledger.store.execute_for_tests(sql).await;
    };
    rename("entries", "gone").await;
    opened.ledger.entry(&entry(id, 0, Route::Local, 0)).unwrap();
    tokio::time::timeout(Duration::from_secs(60), opened.ledger.flush()).await.unwrap();
    assert!(matches!(opened.ledger.story(None, id).await, Err(LedgerError::Store { .. })));
    assert!(opened.ledger.backlog_bytes() > 0);
    rename("gone", "entries").await;
    while opened.ledger.story(None, id).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(opened.ledger.backlog_bytes(), 0);
    opened.close().await;
}

#[tokio::test]
async fn folders_and_files_that_can_not_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = async |path: &Path| open_with(path, LedgerOptions::default()).await.err().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(refused(&file.join("under")).await, LedgerError::Folder { path, .. } if path.starts_with(&file)));
    let corrupt = folder.path().join("corrupt");
    std::fs::create_dir(&corrupt).unwrap();
    std::fs::write(corrupt.join("ledger.sqlite"), "no database at all, but long enough to look at").unwrap();
    assert!(matches!(refused(&corrupt).await, LedgerError::Store { path, .. } if path.ends_with("ledger.sqlite")));
    let newer = folder.path().join("newer");
    let opened = open(&newer).await;
    let sql = "INSERT INTO _sqlx_migrations VALUES (99, 'later', CURRENT_TIMESTAMP, TRUE, x'00', 1)";
    opened.ledger.store.execute_for_tests(sql.to_owned()).await;
    opened.close().await;
    assert!(matches!(refused(&newer).await, LedgerError::Newer { migration: 99, .. }));
    let running = open(&folder.path().join("running")).await;
    assert!(matches!(refused(&folder.path().join("running")).await, LedgerError::Locked { .. }));
    running.close().await;
}

#[tokio::test]
async fn what_is_not_a_number_is_no_reason_to_lose_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open(folder.path()).await;
    let id = RequestId::fresh();
    opened.ledger.entry(&Entry { cpu_seconds: f64::NAN, ..entry(id, 0, Route::Local, 0) }).unwrap();
    assert_eq!(opened.ledger.story(None, id).await.unwrap().entry.cpu_seconds, 0.0);
    // A tenant without a name is a tenant, not all of them.
    assert!(matches!(opened.ledger.story(Some(&TenantId::new("")), id).await, Err(LedgerError::NotFound(_))));
    opened.close().await;
}

#[tokio::test]
async fn recordings_stand_apart_from_the_books_and_can_be_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let id = RequestId::fresh();
    let recording = Recording {
        level: RecordLevel::Text,
        first: FirstChoice {
            model: ModelId::new("s"),
            route: Route::Local,
            escalates: true,
            reason: ReasonCode::Explored,
        },
        placement: Placement::PreferLocal,
        placement_floor: Placement::Auto,
        residency: Residency::only("the request", ["eu"]),
        prompt_bytes: 11,
        turns: 1,
        max_tokens: Some(7),
        messages: vec![Message::text(Role::User, "tell no one")],
        answer: Some("I won't".to_owned()),
    };
    let opened = open(folder.path()).await;
    let whole = Entry { recording: Some(recording), ..entry(id, 1_000, Route::Cascade, 30) };
    opened.ledger.entry(&whole).unwrap();
    assert_eq!(opened.ledger.story(None, id).await.unwrap().entry, whole);
    // A reader needs no lock, and sees the same.
    let archive = Archive::open(folder.path()).await.unwrap();
    let page = archive.list(&EntryFilter { size: 10, ..EntryFilter::default() }).await.unwrap();
    assert_eq!(page.stories[0].entry, whole);
    assert_eq!(opened.ledger.forget(&TenantId::new("other")).await.unwrap(), 0);
    assert_eq!(opened.ledger.forget(&TenantId::new("acme")).await.unwrap(), 1);
    assert_eq!(opened.ledger.story(None, id).await.unwrap().entry, Entry { recording: None, ..whole });
    opened.close().await;
    assert!(Archive::open(&folder.path().join("none")).await.is_err());
}
