//! `GatewayService`.

use super::ask::{deadline, request};
use super::{Services, wire};
use crate::domain::{Request, RequestId};
use crate::edge::auth::{Caller, KeyRole};
use crate::edge::status;
use crate::gateway::{Reply, ReplyEvent};
use crate::ledger::{Feedback, FeedbackOutcome, FeedbackSource};
use crate::telemetry::spans;
use futures_util::{Stream, StreamExt as _, stream};
use sluice_proto::v1;
use std::pin::Pin;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};
use tracing::{Instrument as _, Span};
use v1::stream_complete_response::Event;

type Events = Pin<Box<dyn Stream<Item = Result<v1::StreamCompleteResponse, Status>> + Send>>;

impl Services {
    fn request<T>(
        &self,
        call: tonic::Request<T>,
        ask: impl FnOnce(T) -> Option<v1::Ask>,
        stream: bool,
    ) -> Result<Request, Status> {
        let caller = self.caller(call.metadata(), KeyRole::Serve)?;
        let deadline = deadline(call.metadata());
        let checked = request(ask(call.into_inner()), &caller, deadline, stream, self.max_prompt_bytes);
        let request = checked.map_err(status::invalid)?;
        self.check_policy(&caller, request.policy.as_deref())?;
        Ok(request)
    }

    fn check_policy(&self, caller: &Caller, named: Option<&str>) -> Result<(), Status> {
        let snapshot = self.registry.snapshot();
        let policy = named.unwrap_or(snapshot.default_name());
        if caller.may_use(policy) {
            return Ok(());
        }
        let allowed = caller.policies.clone().unwrap_or_default().join(", ");
        Err(status::denied(format!("the key may not use policy `{policy}`; it may use {allowed}")))
    }

    /// Serves a request and gathers its answer.
    async fn whole(&self, call: tonic::Request<v1::CompleteRequest>) -> Result<Response<v1::CompleteResponse>, Status> {
        let request = self.request(call, |message| message.ask, false)?;
        let mut reply = self.gateway.handle(request).await.map_err(|error| status::of_gateway(&error))?;
        let (mut text, mut logprobs) = (String::new(), Vec::new());
        while let Some(event) = reply.events.next().await {
            match event.map_err(|error| status::of_gateway(&error))? {
                ReplyEvent::Rerouted(_) => {}
                ReplyEvent::Text { text: more, logprobs: tokens } => {
                    text.push_str(&more);
                    logprobs.extend(tokens);
                }
                ReplyEvent::Finished(summary) => {
                    let kind = Some(v1::part::Kind::Text(text));
                    return Ok(Response::new(v1::CompleteResponse {
                        request_id: reply.request_id.to_string(),
                        parts: vec![v1::Part { kind }],
                        finished: Some(wire::finished(&summary)),
                        logprobs: wire::logprobs(logprobs),
                    }));
                }
            }
        }
        Err(Status::internal("the answer ended without its end: a fault of the gateway"))
    }

    /// A ledger entry by its id, of the tenants that the caller may see.
    pub(super) fn entry_id(field: &str, text: &str) -> Result<RequestId, Status> {
        let wrong = || status::invalid(vec![(field.to_owned(), format!("`{text}` is no entry id"))]);
        RequestId::parse(text).ok_or_else(wrong)
    }
}

#[tonic::async_trait]
impl v1::gateway_service_server::GatewayService for Services {
    type StreamCompleteStream = Events;

    async fn complete(
        &self,
        call: tonic::Request<v1::CompleteRequest>,
    ) -> Result<Response<v1::CompleteResponse>, Status> {
        let span = span("sluice.v1.GatewayService/Complete", call.metadata());
        self.whole(call).instrument(span).await
    }

    async fn stream_complete(
        &self,
        call: tonic::Request<v1::StreamCompleteRequest>,
    ) -> Result<Response<Self::StreamCompleteStream>, Status> {
        let span = span("sluice.v1.GatewayService/StreamComplete", call.metadata());
        let request = self.request(call, |message| message.ask, true)?;
        let reply = self.gateway.handle(request).instrument(span.clone()).await;
        Ok(Response::new(events(reply.map_err(|error| status::of_gateway(&error))?, span)))
    }

    async fn explain(&self, call: tonic::Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        use v1::explain_request::Subject;
        match call.get_ref().subject.clone() {
            Some(Subject::Ask(ask)) => {
                let request = self.request(call, |_| Some(ask), false)?;
                let explained = self.gateway.explain(&request).map_err(|error| status::of_gateway(&error))?;
                let mut decision = wire::decision(&explained.decision, Some(&explained.constraints));
                decision.reason.get_or_insert_default().strongest = explained.strongest;
                Ok(Response::new(v1::ExplainResponse {
                    decision: Some(decision),
                    entry: None,
                    certificate: explained.certificate,
                }))
            }
            Some(Subject::EntryId(id)) => {
                let caller = self.any_caller(call.metadata())?;
                if ![KeyRole::Serve, KeyRole::UsageOwn, KeyRole::UsageAll].iter().any(|role| caller.may(*role)) {
                    return Err(status::denied("the key has no role that lets it see entries".to_owned()));
                }
                let all = caller.may(KeyRole::UsageAll);
                let id = Self::entry_id("entry_id", &id)?;
                let story = self.ledger.story((!all).then_some(&caller.tenant), id).await;
                let story = story.map_err(|error| status::of_ledger(&error))?;
                let entry = wire::entry(&story);
                Ok(Response::new(v1::ExplainResponse {
                    decision: entry.decision.clone(),
                    entry: Some(entry),
                    certificate: String::new(),
                }))
            }
            None => {
                Err(status::invalid(vec![("subject".to_owned(), "is missing: set `ask` or `entry_id`".to_owned())]))
            }
        }
    }

    async fn embed(&self, call: tonic::Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        let span = span("sluice.v1.GatewayService/Embed", call.metadata());
        self.vectors(call).instrument(span).await
    }

    async fn submit_feedback(
        &self,
        call: tonic::Request<v1::SubmitFeedbackRequest>,
    ) -> Result<Response<v1::SubmitFeedbackResponse>, Status> {
        let caller = self.caller(call.metadata(), KeyRole::Serve)?;
        let message = call.into_inner();
        let mut wrong = Vec::new();
        let source = match message.source() {
            v1::FeedbackSource::User => FeedbackSource::User,
            v1::FeedbackSource::Judge => FeedbackSource::Judge,
            v1::FeedbackSource::Metric => FeedbackSource::Metric,
            v1::FeedbackSource::Unspecified => {
                wrong.push(("source".to_owned(), "is not set; use USER, JUDGE or METRIC".to_owned()));
                FeedbackSource::User
            }
        };
        let value = message.value.filter(|value| (0.0..=1.0).contains(value));
        if value.is_none() {
            wrong.push(("value".to_owned(), "must be set, within 0 and 1".to_owned()));
        }
        let (Some(value), true) = (value, wrong.is_empty()) else { return Err(status::invalid(wrong)) };
        let entry = Self::entry_id("entry_id", &message.entry_id)?;
        let feedback = Feedback { entry, source, value, at: jiff::Timestamp::now() };
        let outcome = self.gateway.feedback(&caller.tenant, &feedback).await;
        let outcome = match outcome.map_err(|error| status::of_ledger(&error))? {
            FeedbackOutcome::Recorded => v1::FeedbackOutcome::Recorded,
            FeedbackOutcome::Unchanged => v1::FeedbackOutcome::Unchanged,
            FeedbackOutcome::Updated => v1::FeedbackOutcome::Updated,
        };
        Ok(Response::new(v1::SubmitFeedbackResponse { outcome: outcome.into() }))
    }
}

/// The span of a call, within the caller's trace if its metadata names one.
fn span(method: &'static str, metadata: &MetadataMap) -> Span {
    let header = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    spans::call_span(method, header("traceparent"), header("tracestate"))
}

/// A reply as wire events: `started`, then whatever comes. Dropping the stream drops the reply, which hangs up.
/// The span of the call lasts as long as the stream.
fn events(reply: Reply, span: Span) -> Events {
    let started = v1::Started {
        request_id: reply.request_id.to_string(),
        decision: Some(wire::decision(&reply.decision, Some(&reply.constraints))),
    };
    let constraints = reply.constraints;
    let wrap = |event| Ok(v1::StreamCompleteResponse { event: Some(event) });
    let rest = reply.events.map(move |event| {
        span.in_scope(|| match event {
            Ok(ReplyEvent::Rerouted(decision)) => {
                wrap(Event::Rerouted(v1::Rerouted { decision: Some(wire::decision(&decision, Some(&constraints))) }))
            }
            Ok(ReplyEvent::Text { text, logprobs }) => {
                let kind = Some(v1::delta::Kind::Text(text));
                wrap(Event::Delta(v1::Delta { kind, logprobs: wire::logprobs(logprobs) }))
            }
            Ok(ReplyEvent::Finished(summary)) => wrap(Event::Finished(wire::finished(&summary))),
            Err(error) => Err(status::of_gateway(&error)),
        })
    });
    Box::pin(stream::iter([wrap(Event::Started(started))]).chain(rest))
}
