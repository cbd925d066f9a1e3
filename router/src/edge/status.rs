//! One place maps every refusal to a canonical gRPC status with `google.rpc` details.
//!
//! Message and details travel as headers, which clients bound (gRPC's C core refuses from 8 KiB on), and some of them
//! repeat what the client or an upstream sent: everything here is clipped, or the refusal itself would not arrive.

use super::grpc::wire;
use crate::gateway::{FailureReport, GatewayError, GatewayErrorKind};
use crate::ledger::LedgerError;
use crate::models::ModelsError;
use prost::Message as _;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _, pb};

/// Domain of our `ErrorInfo`s.
const DOMAIN: &str = "sluice";
/// Longest message, bytes; characters beyond ASCII triple on the wire.
const MAX_MESSAGE_BYTES: usize = 600;
/// Most bytes of all violations together; what does not fit is counted.
const MAX_VIOLATION_BYTES: usize = 2_000;
/// Longest path of a violation, bytes.
const MAX_PATH_BYTES: usize = 200;
/// Most bytes of details with a decision among them; on the wire they grow by a third.
const MAX_DETAIL_BYTES: usize = 4_096;
/// When to ask again where nothing better is known.
const SOON: Duration = Duration::from_secs(1);

/// Fields of a request that are wrong, each with a path and what would be right.
pub fn invalid(violations: Vec<(String, String)>) -> Status {
    let message = match violations.as_slice() {
        [(field, description)] => format!("{field}: {description}"),
        several => format!("{} fields are wrong; see the details", several.len()),
    };
    let mut details = ErrorDetails::new();
    details.set_bad_request(fitting(violations));
    details.set_error_info("INVALID_REQUEST", DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, clipped(&message, MAX_MESSAGE_BYTES), details)
}

/// The first violations, as many as fit; the last one says how many did not.
fn fitting(violations: Vec<(String, String)>) -> Vec<FieldViolation> {
    let all = violations.len();
    let mut shown = Vec::new();
    let mut bytes = 0;
    for (field, description) in violations {
        let field = clipped(&field, MAX_PATH_BYTES);
        let description = clipped(&description, MAX_MESSAGE_BYTES);
        bytes += field.len() + description.len();
        if bytes > MAX_VIOLATION_BYTES {
            let rest = format!("{} more fields are wrong", all - shown.len());
            shown.push(FieldViolation::new("ask", rest));
            break;
        }
        shown.push(FieldViolation::new(field, description));
    }
    shown
}

/// The beginning of a text, at most `most` bytes.
fn clipped(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    const ELLIPSIS: &str = "...";
    format!("{}{ELLIPSIS}", &text[..text.floor_char_boundary(most - ELLIPSIS.len())])
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
    Status::with_error_details(Code::PermissionDenied, clipped(&message, MAX_MESSAGE_BYTES), details)
}

/// There is no such policy, or the key may not see it; which of the two is not said.
pub fn unknown_policy(name: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info("UNKNOWN_POLICY", DOMAIN, HashMap::new());
    let message = format!("there is no policy `{name}`");
    Status::with_error_details(Code::NotFound, clipped(&message, MAX_MESSAGE_BYTES), details)
}

/// The status of an error of the model manager.
pub fn of_models(error: &ModelsError) -> Status {
    let (code, reason, retry) = match error {
        ModelsError::Unknown(_) => (Code::NotFound, "UNKNOWN_MODEL", None),
        ModelsError::NotHere { .. } => (Code::FailedPrecondition, "MODEL_NOT_HERE", None),
        ModelsError::Failed { .. } => (Code::FailedPrecondition, "MODEL_UNUSABLE", None),
        ModelsError::TooLarge { .. } => (Code::FailedPrecondition, "MODEL_TOO_LARGE", None),
        ModelsError::NoRoom { .. } => (Code::ResourceExhausted, "NO_ROOM_FOR_MODEL", Some(SOON)),
        ModelsError::Stopping => (Code::Unavailable, "STOPPING", Some(SOON)),
    };
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, HashMap::new());
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, clipped(&error.to_string(), MAX_MESSAGE_BYTES), details)
}

/// A download that failed; `passing` if another try may succeed with nothing changed.
pub fn pull_failed(why: &str, passing: bool) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info("PULL_FAILED", DOMAIN, HashMap::new());
    if passing {
        details.set_retry_info(Some(SOON));
    }
    let code = if passing { Code::Unavailable } else { Code::FailedPrecondition };
    Status::with_error_details(code, clipped(why, MAX_MESSAGE_BYTES), details)
}

/// The status of an error of the ledger. Files and what the store said are for our log, not for clients.
pub fn of_ledger(error: &LedgerError) -> Status {
    match error {
        LedgerError::NotFound(id) => {
            of_gateway(&GatewayError { kind: GatewayErrorKind::UnknownEntry(id.clone()), report: None })
        }
        LedgerError::PageToken => invalid(vec![("page_token".to_owned(), error.to_string())]),
        other => {
            tracing::error!(error = %other, "the ledger could not answer");
            let mut details = ErrorDetails::new();
            details.set_error_info("LEDGER_UNAVAILABLE", DOMAIN, HashMap::new());
            details.set_retry_info(Some(SOON));
            let message = "the ledger can't answer now; retry, and see the gateway's log";
            Status::with_error_details(Code::Unavailable, message, details)
        }
    }
}

/// The status of a gateway error, with what the request used.
pub fn of_gateway(error: &GatewayError) -> Status {
    let kind = &error.kind;
    let mut details = ErrorDetails::new();
    details.set_error_info(kind.code().to_ascii_uppercase(), DOMAIN, metadata(error.report.as_deref()));
    add_specifics(kind, &mut details);
    let message = clipped(&kind.to_string(), MAX_MESSAGE_BYTES);
    let status = Status::with_error_details(code(kind), message, details);
    match &error.report {
        Some(report) => with_report(&status, report),
        None => status,
    }
}

fn code(kind: &GatewayErrorKind) -> Code {
    match kind {
        GatewayErrorKind::UnknownPolicy { .. }
        | GatewayErrorKind::Unsupported { .. }
        | GatewayErrorKind::Invalid { .. }
        | GatewayErrorKind::PromptTooLong(_)
        // The model was asked and found the request itself wrong; the same request would fail again.
        | GatewayErrorKind::UpstreamRejected(_) => Code::InvalidArgument,
        GatewayErrorKind::PlacementConflict(_)
        | GatewayErrorKind::NoCandidate(_)
        | GatewayErrorKind::NoRegion { .. }
        | GatewayErrorKind::Declined { .. } => Code::FailedPrecondition,
        GatewayErrorKind::BudgetExhausted { .. } | GatewayErrorKind::CostCeiling { .. } => Code::ResourceExhausted,
        GatewayErrorKind::Overloaded { .. }
        | GatewayErrorKind::Unavailable { .. }
        | GatewayErrorKind::Late { .. }
        | GatewayErrorKind::JournalUnwritable(_)
        | GatewayErrorKind::ShuttingDown => Code::Unavailable,
        GatewayErrorKind::Cut(_) | GatewayErrorKind::Unfinished(_) => Code::Aborted,
        GatewayErrorKind::DeadlineExceeded(_) => Code::DeadlineExceeded,
        GatewayErrorKind::Cancelled => Code::Cancelled,
        GatewayErrorKind::UnknownEntry(_) => Code::NotFound,
        GatewayErrorKind::Internal(_) => Code::Internal,
    }
}

fn add_specifics(kind: &GatewayErrorKind, details: &mut ErrorDetails) {
    let field = |field: &str| fitting(vec![(field.to_owned(), kind.to_string())]);
    match kind {
        GatewayErrorKind::UnknownPolicy { .. } => drop(details.set_bad_request(field("ask.policy"))),
        GatewayErrorKind::Unsupported { field: name, .. } => {
            details.set_bad_request(field(&format!("ask.{name}")));
        }
        GatewayErrorKind::Invalid { field, why } => {
            details.set_bad_request(fitting(vec![(field.clone(), why.clone())]));
        }
        GatewayErrorKind::NoRegion { field, why } => {
            let description = clipped(why, MAX_MESSAGE_BYTES);
            details.set_precondition_failure(vec![PreconditionViolation::new("REGION", field, description)]);
        }
        GatewayErrorKind::CostCeiling { why, retry_after } => {
            let description = clipped(why, MAX_MESSAGE_BYTES);
            details.set_quota_failure(vec![tonic_types::QuotaViolation::new("policy/max_cost", description)]);
            details.set_retry_info(Some(*retry_after));
        }
        GatewayErrorKind::Unfinished(_) => drop(details.set_bad_request(field("ask.limits.max_tokens"))),
        GatewayErrorKind::PromptTooLong(_) | GatewayErrorKind::UpstreamRejected(_) => {
            details.set_bad_request(field("ask.messages"));
        }
        GatewayErrorKind::BudgetExhausted { tenant, window, resets_in, .. } => {
            let subject = format!("tenant:{tenant}/{}", window.as_str());
            let description = clipped(&kind.to_string(), MAX_MESSAGE_BYTES);
            details.set_quota_failure(vec![tonic_types::QuotaViolation::new(subject, description)]);
            details.set_retry_info(Some(*resets_in));
        }
        GatewayErrorKind::Overloaded { retry_after, .. }
        | GatewayErrorKind::Late { retry_after, .. }
        | GatewayErrorKind::Unavailable { retry_after, .. } => {
            details.set_retry_info(Some(*retry_after));
        }
        GatewayErrorKind::JournalUnwritable(_) | GatewayErrorKind::ShuttingDown => {
            details.set_retry_info(Some(SOON));
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

/// The same status with a `sluice.v1.FailureReport` among its details; without the decision if that is too long.
fn with_report(status: &Status, report: &FailureReport) -> Status {
    let Ok(packed) = pb::Status::decode(status.details()) else { return status.clone() };
    let with = |message: &sluice_proto::v1::FailureReport| {
        let mut packed = packed.clone();
        packed.details.push(prost_types::Any {
            type_url: "type.googleapis.com/sluice.v1.FailureReport".to_owned(),
            value: message.encode_to_vec(),
        });
        packed.encode_to_vec()
    };
    let mut message = wire::failure_report(report);
    let mut encoded = with(&message);
    if encoded.len() > MAX_DETAIL_BYTES {
        message.decision = None;
        encoded = with(&message);
    }
    Status::with_details(status.code(), status.message(), encoded.into())
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
        let unfinished = GatewayErrorKind::Unfinished(text());
        check(unfinished, Code::Aborted, false, false, Some("ask.limits.max_tokens"));
        check(GatewayErrorKind::Declined { by: text() }, Code::FailedPrecondition, false, false, None);
        check(GatewayErrorKind::PlacementConflict(text()), Code::FailedPrecondition, false, false, None);
        check(GatewayErrorKind::DeadlineExceeded(text()), Code::DeadlineExceeded, false, false, None);
        let unknown = GatewayErrorKind::UnknownPolicy { name: text(), known: text() };
        check(unknown, Code::InvalidArgument, false, false, Some("ask.policy"));
        let unsupported = GatewayErrorKind::Unsupported { field: "limits.seed".to_owned(), why: text() };
        check(unsupported, Code::InvalidArgument, false, false, Some("ask.limits.seed"));
        let invalid = GatewayErrorKind::Invalid { field: "texts[3]".to_owned(), why: text() };
        check(invalid, Code::InvalidArgument, false, false, Some("texts[3]"));
        check(GatewayErrorKind::NoCandidate(text()), Code::FailedPrecondition, false, false, None);
        check(GatewayErrorKind::PromptTooLong(text()), Code::InvalidArgument, false, false, Some("ask.messages"));
        check(GatewayErrorKind::UpstreamRejected(text()), Code::InvalidArgument, false, false, Some("ask.messages"));
        check(GatewayErrorKind::JournalUnwritable(text()), Code::Unavailable, true, false, None);
        check(GatewayErrorKind::ShuttingDown, Code::Unavailable, true, false, None);
        check(GatewayErrorKind::Cancelled, Code::Cancelled, false, false, None);
        check(GatewayErrorKind::UnknownEntry(text()), Code::NotFound, false, false, None);
        check(GatewayErrorKind::Internal(text()), Code::Internal, false, false, None);
    }

    #[test]
    fn what_was_used_can_be_read_back() {
        let report = FailureReport {
            request_id: RequestId::fresh(),
            usage: Usage { input_tokens: 7, output_tokens: 3, ..Usage::default() },
            cost: Cost { amount: NanoUsd::new(42), basis: crate::domain::CostBasis::Bound },
            decision: None,
            constraints: None,
        };
        let id = report.request_id.to_string();
        let error = GatewayError { kind: GatewayErrorKind::Cut("x".to_owned()), report: Some(Box::new(report)) };
        let status = of_gateway(&error);
        let info = status.get_error_details().error_info().unwrap().clone();
        let read = |key: &str| info.metadata[key].as_str();
        let keys = ["request_id", "cost_nano_usd", "cost_basis", "input_tokens", "output_tokens"];
        assert_eq!(keys.map(read), [id.as_str(), "42", "bound", "7", "3"]);
        let packed = pb::Status::decode(status.details()).unwrap();
        let any = packed.details.iter().find(|any| any.type_url.ends_with("/sluice.v1.FailureReport")).unwrap();
        let report = sluice_proto::v1::FailureReport::decode(any.value.as_slice()).unwrap();
        assert_eq!((report.request_id, report.cost.unwrap().nano_usd), (id, 42));
    }

    #[test]
    fn what_others_wrote_is_clipped() {
        let long = || "é".repeat(100_000);
        let unknown = GatewayErrorKind::UnknownPolicy { name: long(), known: long() };
        let rejected = GatewayErrorKind::UpstreamRejected(long());
        let mut all = [unknown, rejected].map(|kind| of_gateway(&GatewayError { kind, report: None })).to_vec();
        all.extend([denied(long()), unknown_policy(&long()), invalid(vec![(long(), long()); 500])]);
        for status in all {
            assert!(status.message().len() <= MAX_MESSAGE_BYTES, "{}", status.message().len());
            assert!(status.details().len() <= MAX_DETAIL_BYTES, "{}", status.details().len());
        }
        assert_eq!((clipped("abcdef", 6), clipped("abcdefg", 6)), ("abcdef".to_owned(), "abc...".to_owned()));
    }

    #[test]
    fn the_ledger_s_troubles_stay_in_the_log() {
        let error = LedgerError::Store { path: "/secret/ledger.sqlite".into(), reason: "SELECT".to_owned() };
        let status = of_ledger(&error);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(!status.message().contains("secret") && !status.message().contains("SELECT"));
        assert!(status.get_error_details().retry_info().is_some());
        assert_eq!(of_ledger(&LedgerError::NotFound("x".to_owned())).code(), Code::NotFound);
        assert_eq!(of_ledger(&LedgerError::PageToken).code(), Code::InvalidArgument);
    }
}
