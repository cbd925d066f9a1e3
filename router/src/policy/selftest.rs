//! The tests embedded in a policy file: run whenever it is checked or loaded.

use super::{Facts, Policy};
use crate::catalog::Catalog;
use crate::domain::{
    Candidate, Labels, Limits, Message, ModelId, NanoUsd, Placement, Predicted, Request, RequestId, Residency, Route,
    Score, TenantId,
};
use crate::toml_file::{Problem, Problems};
use std::ops::Range;
use std::time::Duration;

/// One embedded test.
#[derive(Clone, Debug)]
pub struct SelfTest {
    /// Its name.
    pub name: String,
    /// The request's messages.
    pub messages: Vec<Message>,
    /// The request's labels.
    pub labels: Labels,
    /// The client's placement.
    pub placement: Placement,
    /// Score of the small models; absent means that there is none.
    pub score: Option<f64>,
    /// Threshold to test with instead of the certificate's.
    pub threshold: Option<f64>,
    /// Regions that the client demands; `None` is no demand.
    pub regions: Option<Vec<String>>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether the conversation went remote before.
    pub went_remote: bool,
    /// Predicted time of each model that is named, to the first byte and to the end alike.
    pub predicted: Vec<(String, Duration)>,
    /// What the cost ceiling leaves for a worst case; `None` is enough.
    pub allowance: Option<NanoUsd>,
    /// The route that should come out.
    pub expect_route: Option<Route>,
    /// Whether the request should be refused.
    pub expect_refused: bool,
    /// The model that should serve.
    pub expect_model: Option<String>,
    /// The rule that should match.
    pub expect_rule: Option<String>,
    /// The code of the reason that should be given.
    pub expect_reason: Option<&'static str>,
    /// Where the test stands in the file.
    pub span: Range<usize>,
}

/// Runs a policy's tests; each failure is a problem at the test's place.
pub fn run(policy: &Policy, file: &str, text: &str, catalog: &Catalog) -> Vec<Problem> {
    let (_, mut problems) = Problems::parse(file, text);
    for (index, test) in policy.tests.iter().enumerate() {
        if let Err(message) = check(policy, test, catalog) {
            problems.add(
                test.span.clone(),
                &format!("tests[{index}]"),
                format!("test `{}` fails: {message}", test.name),
                "",
            );
        }
    }
    problems.into_found()
}

fn check(policy: &Policy, test: &SelfTest, catalog: &Catalog) -> Result<(), String> {
    let request = request(test);
    let outcome = policy.constrain(&request).and_then(|constraints| {
        let decision =
            policy.decide_with(&facts(policy, test, catalog), &constraints, test.threshold.or(policy.threshold()))?;
        Ok((constraints, decision))
    });
    match outcome {
        Err(_) if test.expect_refused => Ok(()),
        Err(refusal) => Err(format!("the request is refused: {refusal}")),
        Ok((_, decision)) if test.expect_refused => Err(format!("the request is served by {}", decision.model)),
        Ok((constraints, decision)) => {
            expect("route", test.expect_route.map(Route::as_str), decision.route.as_str())?;
            expect("model", test.expect_model.as_deref(), decision.model.as_str())?;
            expect("reason", test.expect_reason, decision.reason.code.as_str())?;
            expect("rule", test.expect_rule.as_deref(), constraints.rule.as_deref().unwrap_or(""))
        }
    }
}

fn expect(what: &str, expected: Option<&str>, found: &str) -> Result<(), String> {
    match expected {
        Some(expected) if expected != found => Err(format!("{what} is `{found}`, `{expected}` was expected")),
        _ => Ok(()),
    }
}

fn request(test: &SelfTest) -> Request {
    Request {
        id: RequestId::fresh(),
        tenant: TenantId::new("test"),
        key_name: String::new(),
        messages: test.messages.clone(),
        limits: Limits::default(),
        placement: test.placement,
        placement_floor: Placement::Auto,
        residency: test
            .regions
            .clone()
            .map_or_else(Residency::anywhere, |regions| Residency::only("ask.regions", regions)),
        policy: None,
        labels: test.labels.clone(),
        conversation_id: String::new(),
        end_user_id: String::new(),
        deadline: None,
        stream: test.stream,
    }
}

fn facts(policy: &Policy, test: &SelfTest, catalog: &Catalog) -> Facts {
    let score = test.score.and_then(|score| Score::new(score).ok());
    let candidate = |model: &ModelId| {
        let entry = catalog.get(model);
        let route = entry.map_or(Route::Remote, crate::catalog::Model::route);
        let predicted = test.predicted.iter().find(|(name, _)| name == model.as_str());
        Candidate {
            score: score.filter(|_| route == Route::Local),
            worst_cost: entry.map_or(NanoUsd::ZERO, |entry| worst_cost(test, entry)),
            predicted: predicted.map(|(_, time)| Predicted { first_byte: *time, total: *time }),
            region: entry.and_then(|entry| entry.region.clone()),
            ..Candidate::new(model.clone(), route)
        }
    };
    let candidates = policy.small.iter().chain(&policy.large).map(candidate).collect();
    // A draw at the upper end: tests see the policy without exploration.
    Facts {
        candidates,
        stream: test.stream,
        went_remote: test.went_remote,
        allowance: test.allowance,
        ..Facts::default()
    }
}

fn worst_cost(test: &SelfTest, entry: &crate::catalog::Model) -> NanoUsd {
    let bytes: usize = test.messages.iter().map(Message::byte_len).sum();
    entry.bound(bytes as u64, test.messages.len() as u64, entry.output_cap(None))
}
