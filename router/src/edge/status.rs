//! One place maps every refusal to a canonical gRPC status with `google.rpc` details.

use super::grpc::wire;
use crate::gateway::{FailureReport, GatewayError, GatewayErrorKind};
use prost::Message as _;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _, pb};

/// Domain of our `ErrorInfo`s.
const DOMAIN: &str = "sluice";

/// Fields of a request that are wrong, each with a path and what would be right.
pub fn invalid(violations: Vec<(String, String)>) -> Status {
    let message = match violations.as_slice() {
        [(field, description)] => format!("{field}: {description}"),
        several => format!("{} fields are wrong; see the details", several.len()),
    };
    let violation = |(field, description): (String, String)| FieldViolation::new(field, description);
    let mut details = ErrorDetails::new();
    details.set_bad_request(violations.into_iter().map(violation).collect::<Vec<_>>());
    details.set_error_info("INVALID_REQUEST", DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// No key, or one that nobody gave out; which of the two is not said.
pub fn unauthenticated() -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info("BAD_KEY", DOMAIN, HashMap::new());
    let message = "a valid key is needed: metadata `authorization: Bearer KEY`";
    Status::with_error_details(Code::Unauthenticated, message, details)
}

/// The key may not do this.
pub fn denied(message: String) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info("NOT_ALLOWED_FOR_KEY", DOMAIN, HashMap::new());
    Status::with_error_details(Code::PermissionDenied, message, details)
}

/// The status of a gateway error, with what the request used.
pub fn of_gateway(error: &GatewayError) -> Status {
    let kind = &error.kind;
    let mut details = ErrorDetails::new();
    details.set_error_info(kind.code().to_ascii_uppercase(), DOMAIN, metadata(error.report.as_deref()));
    add_specifics(kind, &mut details);
    let status = Status::with_error_details(code(kind), kind.to_string(), details);
    match &error.report {
        Some(report) => with_report(&status, report),
        None => status,
    }
}

fn code(kind: &GatewayErrorKind) -> Code {
    match kind {
        GatewayErrorKind::UnknownPolicy { .. }
        | GatewayErrorKind::Unsupported { .. }
        | GatewayErrorKind::PromptTooLong(_)
        // The model was asked and found the request itself wrong; the same request would fail again.
        | GatewayErrorKind::UpstreamRejected(_) => Code::InvalidArgument,
        GatewayErrorKind::PlacementConflict(_) | GatewayErrorKind::NoCandidate(_) | GatewayErrorKind::Declined { .. } => {
            Code::FailedPrecondition
        }
        GatewayErrorKind::BudgetExhausted { .. } => Code::ResourceExhausted,
        GatewayErrorKind::Overloaded { .. }
        | GatewayErrorKind::Unavailable { .. }
        | GatewayErrorKind::JournalUnwritable(_)
        | GatewayErrorKind::ShuttingDown => Code::Unavailable,
        GatewayErrorKind::Cut(_) => Code::Aborted,
        GatewayErrorKind::DeadlineExceeded(_) => Code::DeadlineExceeded,
        GatewayErrorKind::Cancelled => Code::Cancelled,
        GatewayErrorKind::UnknownEntry(_) => Code::NotFound,
        GatewayErrorKind::Internal(_) => Code::Internal,
    }
}

fn add_specifics(kind: &GatewayErrorKind, details: &mut ErrorDetails) {
    let field = |field: &str| vec![FieldViolation::new(field, kind.to_string())];
    match kind {
        GatewayErrorKind::UnknownPolicy { .. } => drop(details.set_bad_request(field("ask.policy"))),
        GatewayErrorKind::Unsupported { field: name, .. } => {
            details.set_bad_request(field(&format!("ask.{name}")));
        }
        GatewayErrorKind::PromptTooLong(_) | GatewayErrorKind::UpstreamRejected(_) => {
            details.set_bad_request(field("ask.messages"));
        }
        GatewayErrorKind::BudgetExhausted { tenant, window, resets_in, .. } => {
            let subject = format!("tenant:{tenant}/{}", window.as_str());
            details.set_quota_failure(vec![tonic_types::QuotaViolation::new(subject, kind.to_string())]);
            details.set_retry_info(Some(*resets_in));
        }
        GatewayErrorKind::Overloaded { retry_after, .. } | GatewayErrorKind::Unavailable { retry_after, .. } => {
            details.set_retry_info(Some(*retry_after));
        }
        GatewayErrorKind::JournalUnwritable(_) | GatewayErrorKind::ShuttingDown => {
            details.set_retry_info(Some(Duration::from_secs(1)));
        }
        _ => {}
    }
}

fn metadata(report: Option<&FailureReport>) -> HashMap<String, String> {
    let Some(report) = report else { return HashMap::new() };
    HashMap::from([
        ("request_id".to_owned(), report.request_id.to_string()),
        ("cost_nano_usd".to_owned(), report.cost.amount.nanos().to_string()),
        ("cost_basis".to_owned(), report.cost.basis.as_str().to_owned()),
        ("input_tokens".to_owned(), report.usage.input_tokens.to_string()),
        ("output_tokens".to_owned(), report.usage.output_tokens.to_string()),
    ])
}

/// The same status with a `sluice.v1.FailureReport` among its details.
fn with_report(status: &Status, report: &FailureReport) -> Status {
    let Ok(mut packed) = pb::Status::decode(status.details()) else { return status.clone() };
    packed.details.push(prost_types::Any {
        type_url: "type.googleapis.com/sluice.v1.FailureReport".to_owned(),
        value: wire::failure_report(report).encode_to_vec(),
    });
    Status::with_details(status.code(), status.message(), packed.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::BudgetWindow;
    use crate::domain::{Cost, NanoUsd, RequestId, Usage};

    #[test]
    fn every_refusal_has_its_code_and_details() {
        let check = |kind: GatewayErrorKind, code: Code, retry: bool, quota: bool, field: Option<&str>| {
            let report = FailureReport {
                request_id: RequestId::fresh(),
                usage: Usage::default(),
                cost: Cost::FREE,
                decision: None,
                constraints: None,
            };
            let status = of_gateway(&GatewayError { kind, report: Some(Box::new(report)) });
            assert_eq!(status.code(), code, "{status:?}");
            let details = status.get_error_details();
            assert_eq!(details.retry_info().is_some(), retry, "{status:?}");
            assert_eq!(details.quota_failure().is_some(), quota, "{status:?}");
            let found = details.bad_request().and_then(|bad| bad.field_violations.first()).map(|v| v.field.clone());
            assert_eq!(found.as_deref(), field, "{status:?}");
            assert_eq!(details.error_info().unwrap().domain, DOMAIN);
            let packed = pb::Status::decode(status.details()).unwrap();
            assert!(packed.details.iter().any(|any| any.type_url.ends_with("FailureReport")));
            assert_eq!(packed.code, i32::from(code));
        };
        let soon = Duration::from_secs(1);
        let text = || "x".to_owned();
        check(
            GatewayErrorKind::BudgetExhausted {
                tenant: text(),
                window: BudgetWindow::Day,
                limit: NanoUsd::ZERO,
                spent: NanoUsd::ZERO,
                held: NanoUsd::ZERO,
                asked: NanoUsd::ZERO,
                resets_in: soon,
            },
            Code::ResourceExhausted,
            true,
            true,
            None,
        );
        check(GatewayErrorKind::Overloaded { what: text(), retry_after: soon }, Code::Unavailable, true, false, None);
        check(GatewayErrorKind::Unavailable { what: text(), retry_after: soon }, Code::Unavailable, true, false, None);
        check(GatewayErrorKind::Cut(text()), Code::Aborted, false, false, None);
        check(GatewayErrorKind::Declined { by: text() }, Code::FailedPrecondition, false, false, None);
        check(GatewayErrorKind::PlacementConflict(text()), Code::FailedPrecondition, false, false, None);
        check(GatewayErrorKind::DeadlineExceeded(text()), Code::DeadlineExceeded, false, false, None);
        let unknown = GatewayErrorKind::UnknownPolicy { name: text(), known: text() };
        check(unknown, Code::InvalidArgument, false, false, Some("ask.policy"));
        let unsupported = GatewayErrorKind::Unsupported { field: "limits.seed".to_owned(), why: text() };
        check(unsupported, Code::InvalidArgument, false, false, Some("ask.limits.seed"));
    }
}
