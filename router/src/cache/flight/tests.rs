use super::*;
use futures_util::stream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

type Item = Result<u32, &'static str>;

/// Counts calls that were started and dropped or ended.
#[derive(Clone, Default)]
struct Calls {
    started: Arc<AtomicUsize>,
    gone: Arc<AtomicUsize>,
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Calls {
    /// A call that gives an item every second.
    fn start(&self, items: Vec<Item>) -> impl Stream<Item = Item> + Send + use<> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let guard = Guard(self.gone.clone());
        stream::unfold((items.into_iter(), guard), |(mut items, guard)| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let item = items.next()?;
            Some((item, (items, guard)))
        })
    }

    fn counts(&self) -> (usize, usize) {
        (self.started.load(Ordering::SeqCst), self.gone.load(Ordering::SeqCst))
    }
}

fn flights() -> Flights<&'static str, Item> {
    Flights::new(TaskTracker::new())
}

const ITEMS: [Item; 3] = [Ok(1), Ok(2), Ok(3)];

#[tokio::test(start_paused = true)]
async fn a_late_joiner_gets_everything_from_the_beginning() {
    let (flights, calls) = (flights(), Calls::default());
    let (mut first, role) = flights.join("a", || calls.start(ITEMS.to_vec()));
    assert_eq!(role, FlightRole::Leader);
    assert_eq!(first.next().await, Some(Ok(1)));
    assert_eq!(first.next().await, Some(Ok(2)));
    let (late, role) = flights.join("a", || calls.start(ITEMS.to_vec()));
    assert_eq!(role, FlightRole::Follower);
    let (other, role) = flights.join("b", || calls.start(vec![Ok(9)]));
    assert_eq!(role, FlightRole::Leader);
    let (late, rest, other) =
        tokio::join!(late.collect::<Vec<_>>(), first.collect::<Vec<_>>(), other.collect::<Vec<_>>());
    assert_eq!((late, rest, other), (ITEMS.to_vec(), vec![Ok(3)], vec![Ok(9)]));
    assert_eq!(calls.counts(), (2, 2));
    assert!(flights.is_empty());
    let (_again, role) = flights.join("a", || calls.start(ITEMS.to_vec()));
    assert_eq!(role, FlightRole::Leader, "what has ended is not joined");
}

#[tokio::test(start_paused = true)]
async fn the_one_who_started_it_may_leave() {
    let (flights, calls) = (flights(), Calls::default());
    let (mut first, _) = flights.join("a", || calls.start(ITEMS.to_vec()));
    let (follower, _) = flights.join("a", || calls.start(ITEMS.to_vec()));
    assert_eq!(first.next().await, Some(Ok(1)));
    drop(first);
    assert_eq!(follower.collect::<Vec<_>>().await, ITEMS);
    assert_eq!(calls.counts().0, 1);
}

#[tokio::test(start_paused = true)]
async fn when_all_have_left_the_call_is_dropped() {
    let (flights, calls) = (flights(), Calls::default());
    let (mut first, _) = flights.join("a", || calls.start(ITEMS.to_vec()));
    let (second, _) = flights.join("a", || calls.start(ITEMS.to_vec()));
    assert_eq!(first.next().await, Some(Ok(1)));
    drop(second);
    drop(first);
    let (newcomer, role) = flights.join("a", || calls.start(vec![Ok(7)]));
    assert_eq!(role, FlightRole::Leader, "an abandoned flight is not joined");
    tokio::task::yield_now().await;
    assert_eq!(calls.counts(), (2, 1), "dropped without waiting for its next item");
    assert_eq!(newcomer.collect::<Vec<_>>().await, [Ok(7)], "the old flight's end does not touch the new one");
}

#[tokio::test(start_paused = true)]
async fn an_error_is_everybodys() {
    let (flights, calls) = (flights(), Calls::default());
    let (first, _) = flights.join("a", || calls.start(vec![Ok(1), Err("cut")]));
    let (second, _) = flights.join("a", || calls.start(ITEMS.to_vec()));
    let (first, second) = tokio::join!(first.collect::<Vec<_>>(), second.collect::<Vec<_>>());
    assert_eq!(first, [Ok(1), Err("cut")]);
    assert_eq!(second, first);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_call_ends_the_stream_for_everybody() {
    let flights = flights();
    let broken = || stream::iter([1, 2]).map(|number| if number == 2 { panic!("on purpose") } else { Ok(number) });
    let (first, _) = flights.join("a", broken);
    let (second, _) = flights.join("a", broken);
    let (first, second) = tokio::join!(first.collect::<Vec<_>>(), second.collect::<Vec<_>>());
    assert_eq!((first, second), (vec![Ok(1)], vec![Ok(1)]));
    assert!(flights.is_empty());
}

/// Many callers come and go at random on few keys: everyone who stays gets all, in order, and no call outlives its callers.
#[tokio::test(start_paused = true)]
async fn comings_and_goings_lose_nothing() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let (flights, calls, tasks) = (flights(), Calls::default(), TaskTracker::new());
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..500 {
        let key = ["a", "b", "c"][rng.random_range(0..3)];
        let (start, stay) = (rng.random_range(0..20_000), rng.random_range(0..5));
        let (flights, calls) = (flights.clone(), calls.clone());
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(start)).await;
            let (subscription, _) = flights.join(key, || calls.start(ITEMS.to_vec()));
            let seen: Vec<Item> = subscription.take(stay).collect().await;
            assert_eq!(seen, ITEMS[..stay.min(3)]);
        });
    }
    tasks.close();
    tasks.wait().await;
    tokio::task::yield_now().await;
    let (started, gone) = calls.counts();
    assert_eq!(started, gone);
    assert!(started > 3 && started < 400, "{started} calls for 500 callers");
    assert!(flights.is_empty());
}
