//! Identical requests in flight share one call. The flight owns the call, in a task of its own, so nobody who asked is more
//! important than another: whoever hangs up merely leaves, and when the last one has left the call is dropped at once. Who
//! joins late gets everything from the beginning.
//!
//! Everything that came is kept until the flight and its subscribers are gone; the call's own caps bound it. A slow
//! subscriber holds nobody up. Which requests may share is the caller's to say: only greedy ones should.

use futures_util::{Stream, StreamExt};
use std::collections::HashMap;
use std::hash::Hash;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How a subscriber came to its flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlightRole {
    /// It started the call, and pays for it.
    Leader,
    /// It joined one under way, free of charge.
    Follower,
}

/// Calls in flight, by key. Clones are the same set.
pub struct Flights<K, T>(Arc<Hangar<K, T>>);

impl<K, T> Clone for Flights<K, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Hangar<K, T> {
    tasks: TaskTracker,
    flights: Mutex<HashMap<K, Arc<Flight<T>>>>,
}

struct Flight<T> {
    state: Mutex<FlightState<T>>,
    /// Fires when the last subscriber has left.
    abandoned: CancellationToken,
}

struct FlightState<T> {
    items: Vec<T>,
    ended: bool,
    subscribers: usize,
    waiting: Vec<Waker>,
}

impl<T> Flight<T> {
    fn new() -> Self {
        let state = FlightState { items: Vec::new(), ended: false, subscribers: 0, waiting: Vec::new() };
        Self { state: Mutex::new(state), abandoned: CancellationToken::new() }
    }

    fn lock(&self) -> MutexGuard<'_, FlightState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes everybody who waits for that.
    fn advance(&self, change: impl FnOnce(&mut FlightState<T>)) {
        let waiting = {
            let mut state = self.lock();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// None in flight yet; their tasks will be `tasks`'.
    pub fn new(tasks: TaskTracker) -> Self {
        Self(Arc::new(Hangar { tasks, flights: Mutex::new(HashMap::new()) }))
    }

    /// Joins the flight of `key`, or starts one: `start` is called only then, and its stream runs until it ends or the last
    /// subscription is dropped. The subscription gives every item from the first on, and ends when the stream has ended.
    pub fn join<S>(&self, key: K, start: impl FnOnce() -> S) -> (Subscription<K, T>, FlightRole)
    where
        S: Stream<Item = T> + Send + 'static,
    {
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(&key) {
            flight.lock().subscribers += 1;
            let subscription = Subscription { hangar: self.0.clone(), key, flight: flight.clone(), seen: 0 };
            return (subscription, FlightRole::Follower);
        }
        let flight = Arc::new(Flight::new());
        flight.lock().subscribers = 1;
        flights.insert(key.clone(), flight.clone());
        drop(flights);
        let subscription = Subscription { hangar: self.0.clone(), key: key.clone(), flight: flight.clone(), seen: 0 };
        self.0.tasks.spawn(fly(Landing { hangar: self.0.clone(), key, flight }, start()));
        (subscription, FlightRole::Leader)
    }

    /// Flights under way.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K, T> Hangar<K, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Flight<T>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, T> Hangar<K, T> {
    /// Takes `flight` out, unless another one has taken its place.
    fn remove(&self, key: &K, flight: &Arc<Flight<T>>) {
        let mut flights = self.lock();
        if flights.get(key).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            flights.remove(key);
        }
    }
}

/// Ends a flight when its task ends, even by a panic: subscribers then see the stream end early and nobody waits for ever.
struct Landing<K: Eq + Hash, T> {
    hangar: Arc<Hangar<K, T>>,
    key: K,
    flight: Arc<Flight<T>>,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        self.hangar.remove(&self.key, &self.flight);
        self.flight.advance(|state| state.ended = true);
    }
}

async fn fly<K: Eq + Hash, T>(landing: Landing<K, T>, stream: impl Stream<Item = T>) {
    let mut stream = pin!(stream);
    let flight = landing.flight.clone();
    loop {
        tokio::select! {
            biased;
            () = flight.abandoned.cancelled() => return,
            item = stream.next() => match item {
                Some(item) => flight.advance(|state| state.items.push(item)),
                None => return,
            },
        }
    }
}

/// One caller's view of a flight: a stream of all its items. Dropping it leaves the flight.
pub struct Subscription<K: Eq + Hash, T> {
    hangar: Arc<Hangar<K, T>>,
    key: K,
    flight: Arc<Flight<T>>,
    seen: usize,
}

impl<K: Eq + Hash + Unpin, T: Clone> Stream for Subscription<K, T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let this = self.get_mut();
        let mut state = this.flight.lock();
        if let Some(item) = state.items.get(this.seen) {
            let item = item.clone();
            this.seen += 1;
            return Poll::Ready(Some(item));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl<K: Eq + Hash, T> Drop for Subscription<K, T> {
    fn drop(&mut self) {
        // The map's lock is held meanwhile, so that nobody joins a flight that is just being given up.
        let mut flights = self.hangar.lock();
        let mut state = self.flight.lock();
        state.subscribers -= 1;
        if state.subscribers > 0 {
            return;
        }
        drop(state);
        if flights.get(&self.key).is_some_and(|current| Arc::ptr_eq(current, &self.flight)) {
            flights.remove(&self.key);
        }
        drop(flights);
        self.flight.abandoned.cancel();
    }
}

#[cfg(test)]
mod tests;
