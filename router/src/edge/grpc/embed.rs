//! `GatewayService.Embed`: from a wire message to a call, every wrong field reported by its path, and back.

use super::Services;
use super::ask::deadline;
use crate::domain::{Limits, Placement, Request, RequestId};
use crate::edge::auth::KeyRole;
use crate::edge::status;
use crate::encoders::Wish;
use crate::gateway::{EmbedCall, Embedded};
use sluice_proto::v1;
use tonic::{Response, Status};

/// Most texts of a call.
const MAX_TEXTS: usize = 1_024;
/// Longest name of an encoder, bytes.
const MAX_NAME_BYTES: usize = 128;

/// What a message wishes for.
fn wish(message: &mut v1::EmbedRequest, max_bytes: usize) -> Result<Wish, Vec<(String, String)>> {
    let mut wrong = Vec::new();
    let mut add = |field: String, problem: String| wrong.push((field, problem));
    let texts = std::mem::take(&mut message.texts);
    match texts.len() {
        0 => add("texts".to_owned(), "is empty: send one text at least".to_owned()),
        1..=MAX_TEXTS => {}
        count => add("texts".to_owned(), format!("has {count} texts, at most {MAX_TEXTS} are read in one call")),
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    if bytes > max_bytes {
        add("texts".to_owned(), format!("has {bytes} bytes in all, at most {max_bytes} are allowed"));
    }
    for (at, _) in texts.iter().enumerate().take(MAX_TEXTS).filter(|(_, text)| text.trim().is_empty()) {
        add(format!("texts[{at}]"), "is blank, and a blank text has no vector".to_owned());
    }
    let dimensions = message.dimensions.map(|dimensions| usize::try_from(dimensions).unwrap_or(0));
    if dimensions == Some(0) {
        add("dimensions".to_owned(), "must be 1 at least; leave it out for all".to_owned());
    }
    if message.model.len() > MAX_NAME_BYTES {
        add("model".to_owned(), format!("has {} bytes, at most {MAX_NAME_BYTES} are allowed", message.model.len()));
    }
    if wrong.is_empty() { Ok(Wish { texts, dimensions, truncate: message.truncate }) } else { Err(wrong) }
}

fn told(embedded: Embedded) -> v1::EmbedResponse {
    let dimensions = embedded.vectors.first().map_or(0, |vector| vector.values.len());
    let tokens: usize = embedded.vectors.iter().map(|vector| vector.tokens).sum();
    let vectors = embedded.vectors.into_iter().map(|vector| v1::TextVector {
        values: vector.values,
        tokens: i32::try_from(vector.tokens).unwrap_or(i32::MAX),
        cut: vector.cut,
    });
    v1::EmbedResponse {
        request_id: embedded.request_id.to_string(),
        vectors: vectors.collect(),
        model: embedded.model.to_string(),
        version: embedded.version,
        dimensions: i32::try_from(dimensions).unwrap_or(i32::MAX),
        tokens: i64::try_from(tokens).unwrap_or(i64::MAX),
    }
}

impl Services {
    /// Checks a call and makes its vectors.
    pub(super) async fn vectors(
        &self,
        call: tonic::Request<v1::EmbedRequest>,
    ) -> Result<Response<v1::EmbedResponse>, Status> {
        let caller = self.caller(call.metadata(), KeyRole::Serve)?;
        let deadline = deadline(call.metadata());
        let mut message = call.into_inner();
        let wish = wish(&mut message, self.max_prompt_bytes).map_err(status::invalid)?;
        let request = Request {
            id: RequestId::fresh(),
            tenant: caller.tenant.clone(),
            key_name: caller.key_name.clone(),
            messages: Vec::new(),
            limits: Limits::default(),
            placement: Placement::Auto,
            placement_floor: caller.placement_floor,
            residency: caller.residency.clone(),
            policy: None,
            labels: caller.labels.clone(),
            conversation_id: String::new(),
            end_user_id: String::new(),
            deadline,
            stream: false,
        };
        let made = self.gateway.embed(EmbedCall { request, model: message.model, wish }).await;
        made.map(|made| Response::new(told(made))).map_err(|error| status::of_gateway(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut v1::EmbedRequest), fields: &[&str]) {
        let mut message = sluice_proto::client::embed(["one", "two"]);
        change(&mut message);
        let found = wish(&mut message, 100).err().unwrap_or_default();
        let found: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(found, fields);
    }

    #[test]
    fn every_wrong_field_is_named() {
        check(|_| {}, &[]);
        check(|message| message.texts.clear(), &["texts"]);
        check(|message| message.texts = vec!["a".to_owned(); MAX_TEXTS + 1], &["texts", "texts"]);
        check(|message| message.texts[1] = " \n".to_owned(), &["texts[1]"]);
        check(|message| message.texts[0] = "a".repeat(98), &["texts"]);
        check(|message| message.texts[0] = "a".repeat(97), &[]);
        check(|message| message.dimensions = Some(0), &["dimensions"]);
        check(|message| message.dimensions = Some(-3), &["dimensions"]);
        check(|message| message.model = "a".repeat(129), &["model"]);
    }
}
