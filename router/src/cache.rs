//! Answers that need not be written twice: kept ones (`exact`) and ones that are being written right now (`flight`).
//!
//! Everything is keyed by [`CacheKey`], which covers whatever may change the answer or who may see it; two requests with one
//! key may share an answer. Trouble in here is a miss, never a failed request. What a policy lets be read or written is
//! decided before: [`Constraints`] carries it, and [`cacheable`] adds what no policy can allow.

pub mod exact;
pub mod flight;

pub use exact::{CachedAnswer, ExactCache, Hit};
pub use flight::{FlightRole, Flights, Subscription};

use crate::domain::{Constraints, Finish, FinishReason, Limits, Message, Part, PolicyRef, ResponseFormat, TenantId};

/// What may change an answer or who may see it, as a blake3 hash: tenant, constraints, messages, limits, policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey([u8; 32]);

/// The ingredients of a [`CacheKey`].
#[derive(Clone, Copy, Debug)]
pub struct KeyParts<'a> {
    /// Whose request it is; one tenant's answers never reach another.
    pub tenant: &'a TenantId,
    /// Placement, rule and model count; who set the placement and the cache switches don't.
    pub constraints: &'a Constraints,
    /// The conversation.
    pub messages: &'a [Message],
    /// All of them count.
    pub limits: &'a Limits,
    /// Its content hash counts, and with it thresholds, models and rules.
    pub policy: &'a PolicyRef,
}

impl CacheKey {
    /// Hashes the ingredients. Each text goes in with its length before it and each choice with a tag, so that no two
    /// different requests are written the same way.
    pub fn new(parts: &KeyParts<'_>) -> Self {
        let mut encoder = Encoder(blake3::Hasher::new_derive_key("sluice exact cache v1"));
        encoder.text(parts.tenant.as_str());
        encoder.text(&parts.policy.name);
        encoder.text(&parts.policy.hash);
        encoder.text(parts.constraints.placement.as_str());
        encoder.optional_text(parts.constraints.rule.as_deref());
        encoder.optional_text(parts.constraints.model.as_ref().map(|model| model.as_str()));
        // Whoever may only be served in the EU must not get what was made elsewhere.
        let regions = parts.constraints.residency.regions();
        encoder.number(regions.map_or(0, |regions| regions.len() as u64 + 1));
        regions.into_iter().flatten().for_each(|region| encoder.text(region));
        encoder.limits(parts.limits);
        encoder.number(parts.messages.len() as u64);
        for message in parts.messages {
            encoder.text(message.role.as_str());
            encoder.number(message.parts.len() as u64);
            for part in &message.parts {
                match part {
                    Part::Text(text) => {
                        encoder.text("text");
                        encoder.text(text);
                    }
                }
            }
        }
        Self(*encoder.0.finalize().as_bytes())
    }
}

struct Encoder(blake3::Hasher);

impl Encoder {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn optional_number(&mut self, number: Option<u64>) {
        self.number(u64::from(number.is_some()));
        self.number(number.unwrap_or(0));
    }

    fn optional_text(&mut self, text: Option<&str>) {
        self.number(u64::from(text.is_some()));
        self.text(text.unwrap_or(""));
    }

    fn limits(&mut self, limits: &Limits) {
        // 0.0 + x makes one zero of the two that floats have.
        let bits = |value: Option<f32>| value.map(|value| u64::from((0.0 + value).to_bits()));
        self.optional_number(limits.max_tokens.map(u64::from));
        self.optional_number(bits(limits.temperature));
        self.optional_number(bits(limits.top_p));
        self.optional_number(limits.seed);
        self.number(limits.stop.len() as u64);
        for stop in &limits.stop {
            self.text(stop);
        }
        self.optional_number(limits.top_k.map(u64::from));
        let penalties = [limits.repetition_penalty, limits.presence_penalty, limits.frequency_penalty];
        for value in [limits.min_p].into_iter().chain(penalties) {
            self.optional_number(bits(value));
        }
        self.optional_number(limits.logprobs.map(u64::from));
        self.format(limits.format.as_ref());
    }

    fn format(&mut self, format: Option<&ResponseFormat>) {
        self.optional_text(format.map(ResponseFormat::field));
        match format {
            None => {}
            Some(ResponseFormat::JsonSchema(text) | ResponseFormat::Regex(text)) => self.text(text),
            Some(ResponseFormat::Choices(choices)) => {
                self.number(choices.len() as u64);
                choices.iter().for_each(|choice| self.text(choice));
            }
        }
    }
}

/// Whether requests like this may be answered from the cache: greedy ones, others only if the policy says so; none that asks
/// for log-probabilities, which are not kept. To share a
/// call in flight a request must be greedy ([`Limits::is_deterministic`]), whatever the policy says.
pub fn may_look_up(limits: &Limits, any_temperature: bool) -> bool {
    limits.logprobs.is_none() && (limits.is_deterministic() || any_temperature)
}

/// Whether an answer may be kept: one that its model ended by itself ([`FinishReason::Stop`]). One that ran into a limit is a
/// fragment, a declined one is none, a filtered one may be judged otherwise next time.
pub fn cacheable(limits: &Limits, any_temperature: bool, finish: &Finish) -> bool {
    may_look_up(limits, any_temperature) && finish.reason == FinishReason::Stop
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ModelId, Placement, Residency, Role, Usage};

    struct Ingredients {
        tenant: TenantId,
        constraints: Constraints,
        messages: Vec<Message>,
        limits: Limits,
        policy: PolicyRef,
    }

    impl Ingredients {
        fn new() -> Self {
            Self {
                tenant: TenantId::new("acme"),
                constraints: Constraints {
                    placement: Placement::Auto,
                    placement_by: "policy".to_owned(),
                    rule: None,
                    model: None,
                    residency: Residency::anywhere(),
                    cache_read: true,
                    cache_write: true,
                },
                messages: vec![Message::text(Role::System, "Be brief."), Message::text(Role::User, "Hi")],
                limits: Limits { temperature: Some(0.0), stop: vec!["a".into(), "b".into()], ..Limits::default() },
                policy: PolicyRef { name: "balanced".to_owned(), hash: "00ff".to_owned() },
            }
        }

        fn key(&self) -> CacheKey {
            CacheKey::new(&KeyParts {
                tenant: &self.tenant,
                constraints: &self.constraints,
                messages: &self.messages,
                limits: &self.limits,
                policy: &self.policy,
            })
        }
    }

    #[test]
    fn whatever_may_change_the_answer_changes_the_key() {
        let mut keys = vec![Ingredients::new().key()];
        let mut check = |change: &dyn Fn(&mut Ingredients)| {
            let mut changed = Ingredients::new();
            change(&mut changed);
            keys.push(changed.key());
        };
        check(&|parts| parts.tenant = TenantId::new("acm"));
        check(&|parts| parts.constraints.placement = Placement::LocalOnly);
        check(&|parts| parts.constraints.rule = Some(String::new()));
        check(&|parts| parts.constraints.model = Some(ModelId::new("m")));
        check(&|parts| parts.constraints.residency = Residency::only("x", ["eu"]));
        check(&|parts| parts.constraints.residency = Residency::only("x", ["eu", "us"]));
        check(&|parts| parts.policy.hash = "00fe".to_owned());
        check(&|parts| parts.limits.temperature = None);
        check(&|parts| parts.limits.temperature = Some(0.1));
        check(&|parts| parts.limits.top_p = Some(0.0));
        check(&|parts| parts.limits.max_tokens = Some(0));
        check(&|parts| parts.limits.seed = Some(0));
        check(&|parts| parts.limits.top_k = Some(1));
        check(&|parts| parts.limits.min_p = Some(0.5));
        check(&|parts| parts.limits.repetition_penalty = Some(0.5));
        check(&|parts| parts.limits.presence_penalty = Some(0.5));
        check(&|parts| parts.limits.frequency_penalty = Some(0.5));
        check(&|parts| parts.limits.logprobs = Some(0));
        check(&|parts| parts.limits.format = Some(ResponseFormat::Regex("a".into())));
        check(&|parts| parts.limits.format = Some(ResponseFormat::JsonSchema("a".into())));
        check(&|parts| parts.limits.format = Some(ResponseFormat::Choices(vec!["a".into()])));
        check(&|parts| parts.limits.format = Some(ResponseFormat::Choices(vec!["a".into(), "b".into()])));
        check(&|parts| parts.limits.stop = vec!["ab".into()]);
        check(&|parts| parts.limits.stop = vec!["b".into(), "a".into()]);
        check(&|parts| parts.messages = vec![Message::text(Role::User, "Be brief.Hi")]);
        check(&|parts| parts.messages = vec![Message::text(Role::User, "Be brief."), Message::text(Role::User, "Hi")]);
        check(&|parts| parts.messages[1].parts = vec![Part::Text("H".into()), Part::Text("i".into())]);
        check(&|parts| parts.messages.reverse());
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn whatever_may_not_change_it_does_not() {
        let mut same = Ingredients::new();
        same.constraints.placement_by = "client".to_owned();
        same.constraints.cache_write = false;
        same.limits.temperature = Some(-0.0);
        assert_eq!(same.key(), Ingredients::new().key());
    }

    #[test]
    fn only_whole_answers_are_kept() {
        let check = |temperature: Option<f32>, any: bool, reason: FinishReason, expected: bool| {
            let limits = Limits { temperature, ..Limits::default() };
            let finish = Finish {
                reason,
                usage: Usage::default(),
                usage_reported: true,
                max_tokens: None,
                cpu_seconds: 0.0,
                response_model: String::new(),
            };
            assert_eq!(cacheable(&limits, any, &finish), expected, "{temperature:?} {any} {reason:?}");
        };
        check(Some(0.0), false, FinishReason::Stop, true);
        check(Some(0.7), false, FinishReason::Stop, false);
        check(None, false, FinishReason::Stop, false);
        check(Some(0.7), true, FinishReason::Stop, true);
        let told = Limits { temperature: Some(0.0), logprobs: Some(0), ..Limits::default() };
        assert!(!may_look_up(&told, true), "log-probabilities are not kept");
        for reason in [FinishReason::Length, FinishReason::Declined, FinishReason::Filtered, FinishReason::ToolCalls] {
            check(Some(0.0), true, reason, false);
        }
    }
}
