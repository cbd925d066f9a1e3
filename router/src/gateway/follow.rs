//! Single flight: identical greedy requests under way share one run. Whoever came first pays; who joins gets everything
//! from the beginning, has an entry of its own and costs nothing. A run that ended for its first caller's sake alone — a
//! deadline, a hang-up — is started anew for the others, as long as they were shown nothing.

use super::attempt::sleep_until;
use super::observe::request_span;
use super::reply::{GatewayError, GatewayErrorKind, Reply, ReplyEvent, Summary};
use super::run::{Events, Run, Totals};
use super::{Admitted, EVENT_QUEUE, Gateway};
use crate::cache::{CacheKey, FlightRole, Subscription};
use crate::domain::{Cost, CostBasis, Decision, EntryStatus, Reason, ReasonCode, RequestId, Route, Usage};
use futures_util::StreamExt as _;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument as _;

/// What goes through a flight: an event and the request that it was first meant for.
#[derive(Clone)]
pub struct FlightItem {
    leader: RequestId,
    event: Result<ReplyEvent, GatewayError>,
}

impl Gateway {
    /// Starts the run of a request, or joins one that is under way for the same.
    pub(super) fn start_or_join(self: &Arc<Self>, admitted: Admitted, decision: Decision) -> Reply {
        let shareable = admitted.request.limits.is_deterministic();
        let Some(key) = admitted.cache_key.filter(|_| shareable) else { return self.start(admitted, decision) };
        let request_id = admitted.request.id;
        let constraints = admitted.constraints.clone();
        let shown = decision.clone();
        let mut waiting = Some((admitted, decision));
        let (subscription, role) = self.flights.join(key, || {
            let started = waiting.take().map(|(admitted, decision)| self.start(admitted, decision).events);
            let events = started.unwrap_or_else(|| Box::pin(futures_util::stream::empty()));
            events.map(move |event| FlightItem { leader: request_id, event })
        });
        let events = match (role, waiting) {
            (FlightRole::Follower, Some((admitted, decision))) => {
                let (events, receiver) = mpsc::channel(EVENT_QUEUE);
                let span = request_span(&admitted, &decision);
                let follower = Follower { run: Run::new(Arc::clone(self), admitted, decision, events) };
                self.tracker.spawn(follower.follow(subscription).instrument(span));
                ReceiverStream::new(receiver).boxed()
            }
            _ => subscription.map(|item| item.event).boxed(),
        };
        Reply { request_id, decision: shown, constraints, events }
    }
}

/// A request that waits for another's answer; its run is only started if that one is given up.
struct Follower {
    run: Run,
}

/// How following ended.
enum Followed {
    Done,
    OnItsOwn,
}

impl Follower {
    async fn follow(mut self, subscription: Subscription<CacheKey, FlightItem>) {
        match self.pass_on(Box::pin(subscription)).await {
            Followed::Done => {}
            Followed::OnItsOwn => self.run.finish().await,
        }
    }

    async fn pass_on(&mut self, mut flight: Pin<Box<Subscription<CacheKey, FlightItem>>>) -> Followed {
        let events: Events = self.run.events.clone();
        let deadline = sleep_until(self.run.admitted.request.deadline);
        tokio::pin!(deadline);
        loop {
            let item = tokio::select! {
                biased;
                () = events.closed() => return self.end(GatewayErrorKind::Cancelled).await,
                () = &mut deadline => {
                    let how = "while an identical request was under way".to_owned();
                    return self.end(GatewayErrorKind::DeadlineExceeded(how)).await;
                }
                item = flight.next() => item,
            };
            let Some(FlightItem { leader, event }) = item else {
                return self.end(GatewayErrorKind::Cut("the shared answer ended without its end".to_owned())).await;
            };
            match event {
                Ok(ReplyEvent::Text { text, logprobs }) => {
                    self.run.first_byte.get_or_insert_with(|| self.run.admitted.received.elapsed());
                    self.run.shown = true;
                    self.run.answer.push_str(&text);
                    let _hung_up = events.send(Ok(ReplyEvent::Text { text, logprobs })).await;
                }
                // Told at the end: what is under way is the other request's decision.
                Ok(ReplyEvent::Rerouted(_)) => {}
                Ok(ReplyEvent::Finished(summary)) => return self.finished(leader, &summary).await,
                Err(error) if !self.run.shown && is_the_leaders_own(&error.kind) => return Followed::OnItsOwn,
                Err(error) => return self.end(error.kind).await,
            }
        }
    }

    async fn finished(&mut self, leader: RequestId, summary: &Summary) -> Followed {
        let run = &mut self.run;
        let detail = format!("joined the identical request {leader} under way");
        run.decision.route = Route::Cache;
        run.decision.model = summary.decision.model.clone();
        run.decision.reason = Reason::new(ReasonCode::CacheHit, detail);
        run.totals = Totals::default();
        run.cached_from = Some(leader);
        let amount = if summary.decision.route == Route::Local { summary.baseline.amount } else { summary.cost.amount };
        run.baseline = Some(amount);
        run.gateway.record(run, EntryStatus::Ok, Some(summary.finish_reason), None);
        let summary = Summary {
            usage: Usage::default(),
            cpu_seconds: 0.0,
            cost: Cost::FREE,
            decision: run.decision.clone(),
            constraints: run.admitted.constraints.clone(),
            baseline: Cost { amount, basis: CostBasis::Estimated },
            saved: amount,
            latency: run.admitted.received.elapsed(),
            ..summary.clone()
        };
        let _hung_up = run.events.send(Ok(ReplyEvent::Finished(Box::new(summary)))).await;
        Followed::Done
    }

    async fn end(&mut self, kind: GatewayErrorKind) -> Followed {
        let kind = match kind {
            GatewayErrorKind::Unavailable { .. } | GatewayErrorKind::Overloaded { .. } => kind,
            other if self.run.shown => GatewayErrorKind::Cut(other.to_string()),
            other => other,
        };
        self.run.fail(kind).await;
        Followed::Done
    }
}

/// Whether an error concerns only the request that the run was started for.
fn is_the_leaders_own(kind: &GatewayErrorKind) -> bool {
    matches!(kind, GatewayErrorKind::Cancelled | GatewayErrorKind::DeadlineExceeded(_))
}
