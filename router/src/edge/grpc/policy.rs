//! `PolicyService`.

use super::Services;
use crate::edge::auth::Caller;
use crate::edge::status;
use crate::policy::{Policy, RegistryError};
use crate::toml_file::Problem;
use sluice_proto::v1;
use tonic::{Response, Status};

/// Longest text that is checked.
const MAX_TEXT_BYTES: usize = 256 << 10;

fn info(services: &Services, policy: &Policy, default: &str) -> v1::PolicyInfo {
    let gateway = &services.gateway;
    v1::PolicyInfo {
        name: policy.reference.name.clone(),
        description: policy.description.clone(),
        hash: policy.reference.hash.clone(),
        certificate: gateway.certificate_as_it_stands(policy),
        threshold: gateway.live().standing(policy).applied(policy.threshold()),
        is_default: policy.reference.name == default,
    }
}

fn problem(problem: &Problem) -> v1::Problem {
    let number = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    v1::Problem {
        file: problem.file.clone(),
        line: number(problem.line),
        column: number(problem.column),
        key: problem.key.clone(),
        message: problem.message.clone(),
        suggestion: problem.suggestion.clone(),
    }
}

fn reload_problems(failure: Option<RegistryError>) -> Vec<v1::Problem> {
    match failure {
        Some(RegistryError::Problems(problems)) => problems.iter().map(problem).collect(),
        Some(other) => vec![v1::Problem { message: other.to_string(), ..v1::Problem::default() }],
        None => Vec::new(),
    }
}

fn may_see(caller: &Caller, policy: &str) -> bool {
    caller.may_use(policy) || caller.may(crate::edge::auth::KeyRole::Admin)
}

#[tonic::async_trait]
impl v1::policy_service_server::PolicyService for Services {
    async fn list(&self, call: tonic::Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let caller = self.any_caller(call.metadata())?;
        let snapshot = self.registry.snapshot();
        let visible = snapshot.policies().filter(|policy| may_see(&caller, &policy.reference.name));
        Ok(Response::new(v1::ListResponse {
            policies: visible.map(|policy| info(self, policy, snapshot.default_name())).collect(),
            reload_problems: reload_problems(self.registry.failure()),
        }))
    }

    async fn get(&self, call: tonic::Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let caller = self.any_caller(call.metadata())?;
        let name = call.into_inner().name;
        let snapshot = self.registry.snapshot();
        // What the key may not see does not exist for it.
        let found = snapshot.policy(Some(&name)).filter(|_| may_see(&caller, &name));
        let policy = found.ok_or_else(|| status::unknown_policy(&name))?;
        Ok(Response::new(v1::GetResponse {
            policy: Some(info(self, &policy, snapshot.default_name())),
            text: policy.text.clone(),
        }))
    }

    async fn check(&self, call: tonic::Request<v1::CheckRequest>) -> Result<Response<v1::CheckResponse>, Status> {
        self.any_caller(call.metadata())?;
        let message = call.into_inner();
        if message.text.len() > MAX_TEXT_BYTES {
            let description = format!("has {} bytes, at most {MAX_TEXT_BYTES} are allowed", message.text.len());
            return Err(status::invalid(vec![("text".to_owned(), description)]));
        }
        let file = if message.file_name.is_empty() { "policy.toml" } else { &message.file_name };
        let checked = Policy::parse(file, &message.text, self.registry.snapshot().catalog());
        let problems = checked.err().unwrap_or_default();
        Ok(Response::new(v1::CheckResponse { problems: problems.iter().map(problem).collect() }))
    }
}
