//! From a wire ask to a domain request. Every wrong field is reported, by its path; what this build can't honour is refused
//! by name.

use crate::domain::{Labels, Limits, Message, Part, Placement, Request, RequestId, Residency, ResponseFormat, Role};
use crate::edge::auth::Caller;
use sluice_proto::v1;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

/// Longest conversation id, end-user id and policy name, bytes.
const MAX_ID_BYTES: usize = 128;
/// Most labels.
const MAX_LABELS: usize = 32;
/// Longest label key and value, bytes.
const MAX_LABEL_BYTES: (usize, usize) = (64, 256);
/// Most regions, and the longest, bytes.
const MAX_REGIONS: (usize, usize) = (16, 64);
/// Most tokens that can be asked for.
const MAX_TOKENS: i32 = 131_072;
/// Most stop texts, and the longest, bytes.
const MAX_STOPS: (usize, usize) = (8, 256);
/// Most tokens to sample from, and most alternatives told of a token.
const MAX_TOP_K: i32 = 100_000;
const MAX_LOGPROBS: i32 = 20;
/// Longest JSON schema, and all choices together, bytes.
const MAX_FORMAT_BYTES: usize = 64 << 10;
/// Longest regular expression, bytes.
const MAX_REGEX_BYTES: usize = 4 << 10;
/// Most choices.
const MAX_CHOICES: usize = 512;
/// Most messages.
const MAX_MESSAGES: usize = 2_048;

/// What is wrong: paths and descriptions.
pub type Violations = Vec<(String, String)>;

/// Checks an ask and makes it a request of `caller`.
///
/// # Errors
/// Every wrong field.
pub fn request(
    ask: Option<v1::Ask>,
    caller: &Caller,
    deadline: Option<Instant>,
    stream: bool,
    max_prompt_bytes: usize,
) -> Result<Request, Violations> {
    let mut wrong = Violations::new();
    let Some(ask) = ask else {
        return Err(vec![("ask".to_owned(), "is missing".to_owned())]);
    };
    let messages = messages(&ask, max_prompt_bytes, &mut wrong);
    let mut limits = limits(ask.limits.clone().unwrap_or_default(), &mut wrong);
    limits.format = response_format(ask.response_format.clone(), &mut wrong);
    if limits.format.is_some() && !limits.stop.is_empty() {
        add(&mut wrong, "ask.limits.stop", "would cut short what response_format asks for; leave one of the two out");
    }
    let placement = placement(&ask, &mut wrong);
    if !ask.tools.is_empty() {
        add(&mut wrong, "ask.tools", "tools are not served by this build; leave the field empty");
    }
    let ids = [
        ("ask.conversation_id", &ask.conversation_id),
        ("ask.end_user_id", &ask.end_user_id),
        ("ask.policy", &ask.policy),
    ];
    for (field, id) in ids {
        if id.len() > MAX_ID_BYTES {
            add(&mut wrong, field, format!("has {} bytes, at most {MAX_ID_BYTES} are allowed", id.len()));
        }
    }
    let residency = residency(&ask, &mut wrong).and(&caller.residency);
    let mut labels = labels(&ask, &mut wrong);
    labels.extend(caller.labels.clone());
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let named = (!ask.policy.is_empty()).then_some(ask.policy);
    Ok(Request {
        id: RequestId::fresh(),
        tenant: caller.tenant.clone(),
        key_name: caller.key_name.clone(),
        messages,
        limits,
        placement,
        placement_floor: caller.placement_floor,
        residency,
        policy: named.or_else(|| caller.default_policy.clone()),
        labels,
        conversation_id: ask.conversation_id,
        end_user_id: ask.end_user_id,
        deadline,
        stream,
    })
}

fn add(wrong: &mut Violations, field: impl Into<String>, description: impl Into<String>) {
    wrong.push((field.into(), description.into()));
}

/// The client's own demand on residency; none is anywhere.
fn residency(ask: &v1::Ask, wrong: &mut Violations) -> Residency {
    if ask.regions.len() > MAX_REGIONS.0 {
        let what = format!("has {} regions, at most {} are allowed", ask.regions.len(), MAX_REGIONS.0);
        add(wrong, "ask.regions", what);
    }
    for (index, region) in ask.regions.iter().enumerate() {
        if region.is_empty() || region.len() > MAX_REGIONS.1 {
            let what = format!("is no region; it should have 1 to {} bytes", MAX_REGIONS.1);
            add(wrong, format!("ask.regions[{index}]"), what);
        }
    }
    match ask.regions.as_slice() {
        [] => Residency::anywhere(),
        regions => Residency::only("ask.regions", regions.iter().cloned()),
    }
}

fn messages(ask: &v1::Ask, max_prompt_bytes: usize, wrong: &mut Violations) -> Vec<Message> {
    if ask.messages.is_empty() {
        add(wrong, "ask.messages", "is empty; at least one message is needed");
    }
    if ask.messages.len() > MAX_MESSAGES {
        add(wrong, "ask.messages", format!("has {} messages, at most {MAX_MESSAGES} are allowed", ask.messages.len()));
    }
    let mut messages = Vec::new();
    for (index, message) in ask.messages.iter().enumerate() {
        let path = format!("ask.messages[{index}]");
        let role = match message.role() {
            v1::Role::System => Some(Role::System),
            v1::Role::User => Some(Role::User),
            v1::Role::Assistant => Some(Role::Assistant),
            v1::Role::Tool => Some(Role::Tool),
            v1::Role::Unspecified => {
                add(wrong, format!("{path}.role"), "is not set; use SYSTEM, USER, ASSISTANT or TOOL");
                None
            }
        };
        let parts = parts(&message.parts, &path, wrong);
        messages.extend(role.map(|role| Message { role, parts }));
    }
    if let Some(last) = ask.messages.last()
        && matches!(last.role(), v1::Role::System | v1::Role::Assistant)
    {
        let path = format!("ask.messages[{}].role", ask.messages.len() - 1);
        add(wrong, path, "the last message must be of the user or a tool");
    }
    let bytes: usize = messages.iter().map(Message::byte_len).sum();
    if bytes > max_prompt_bytes {
        add(wrong, "ask.messages", format!("have {bytes} bytes of text, at most {max_prompt_bytes} are allowed"));
    }
    messages
}

fn parts(parts: &[v1::Part], path: &str, wrong: &mut Violations) -> Vec<Part> {
    if parts.is_empty() {
        add(wrong, format!("{path}.parts"), "is empty; at least one part is needed");
    }
    let mut checked = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let path = format!("{path}.parts[{index}]");
        let refused = "is not served by this build; send text";
        match &part.kind {
            Some(v1::part::Kind::Text(text)) if text.is_empty() => add(wrong, format!("{path}.text"), "is empty"),
            Some(v1::part::Kind::Text(text)) => checked.push(Part::Text(text.clone())),
            Some(v1::part::Kind::ToolCall(_)) => add(wrong, format!("{path}.tool_call"), refused),
            Some(v1::part::Kind::ToolResult(_)) => add(wrong, format!("{path}.tool_result"), refused),
            Some(v1::part::Kind::Image(_)) => add(wrong, format!("{path}.image"), refused),
            None => add(wrong, path, "is empty; set its text"),
        }
    }
    checked
}

fn limits(limits: v1::Limits, wrong: &mut Violations) -> Limits {
    if let Some(tokens) = limits.max_tokens
        && !(1..=MAX_TOKENS).contains(&tokens)
    {
        add(wrong, "ask.limits.max_tokens", format!("is {tokens}, it must be within 1 and {MAX_TOKENS}"));
    }
    let within = [
        ("temperature", limits.temperature, 0.0, 2.0),
        ("min_p", limits.min_p, 0.0, 1.0),
        ("presence_penalty", limits.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", limits.frequency_penalty, -2.0, 2.0),
    ];
    for (field, value, least, most) in within {
        if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
            add(wrong, format!("ask.limits.{field}"), format!("is {value}, it must be within {least} and {most}"));
        }
    }
    if let Some(penalty) = limits.repetition_penalty.filter(|penalty| !(*penalty > 0.0 && *penalty <= 10.0)) {
        add(wrong, "ask.limits.repetition_penalty", format!("is {penalty}, it must be above 0 and at most 10"));
    }
    for (field, value, least, most) in
        [("top_k", limits.top_k, 1, MAX_TOP_K), ("logprobs", limits.logprobs, 0, MAX_LOGPROBS)]
    {
        if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
            add(wrong, format!("ask.limits.{field}"), format!("is {value}, it must be within {least} and {most}"));
        }
    }
    if let Some(top_p) = limits.top_p
        && !(top_p > 0.0 && top_p <= 1.0)
    {
        add(wrong, "ask.limits.top_p", format!("is {top_p}, it must be above 0 and at most 1"));
    }
    if limits.stop.len() > MAX_STOPS.0 {
        add(wrong, "ask.limits.stop", format!("has {} texts, at most {} are allowed", limits.stop.len(), MAX_STOPS.0));
    }
    for (index, stop) in limits.stop.iter().enumerate() {
        if stop.is_empty() || stop.len() > MAX_STOPS.1 {
            let description = format!("has {} bytes, it must have 1 to {}", stop.len(), MAX_STOPS.1);
            add(wrong, format!("ask.limits.stop[{index}]"), description);
        }
    }
    Limits {
        max_tokens: limits.max_tokens.map(i32::unsigned_abs),
        temperature: limits.temperature,
        top_p: limits.top_p,
        stop: limits.stop,
        seed: limits.seed.map(i64::cast_unsigned),
        top_k: limits.top_k.map(i32::unsigned_abs),
        min_p: limits.min_p,
        repetition_penalty: limits.repetition_penalty,
        presence_penalty: limits.presence_penalty,
        frequency_penalty: limits.frequency_penalty,
        logprobs: limits.logprobs.map(i32::unsigned_abs),
        format: None,
    }
}

fn response_format(format: Option<v1::ResponseFormat>, wrong: &mut Violations) -> Option<ResponseFormat> {
    use v1::response_format::Kind;
    match format?.kind {
        Some(Kind::JsonSchema(schema)) => {
            let field = "ask.response_format.json_schema";
            if schema.len() > MAX_FORMAT_BYTES {
                add(wrong, field, format!("has {} bytes, at most {MAX_FORMAT_BYTES} are allowed", schema.len()));
            } else if let Err(error) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&schema) {
                add(wrong, field, format!("is not a JSON object: {error}"));
            }
            Some(ResponseFormat::JsonSchema(schema))
        }
        Some(Kind::Regex(regex)) => {
            if !(1..=MAX_REGEX_BYTES).contains(&regex.len()) {
                let description = format!("has {} bytes, it must have 1 to {MAX_REGEX_BYTES}", regex.len());
                add(wrong, "ask.response_format.regex", description);
            }
            Some(ResponseFormat::Regex(regex))
        }
        Some(Kind::Choices(choices)) => {
            let texts = choices.texts;
            let bytes: usize = texts.iter().map(String::len).sum();
            if !(1..=MAX_CHOICES).contains(&texts.len()) || bytes > MAX_FORMAT_BYTES {
                let description = format!(
                    "has {} texts of {bytes} bytes, it must have 1 to {MAX_CHOICES} of at most {MAX_FORMAT_BYTES}",
                    texts.len()
                );
                add(wrong, "ask.response_format.choices", description);
            }
            for (index, _) in texts.iter().enumerate().filter(|(_, text)| text.is_empty()) {
                add(wrong, format!("ask.response_format.choices.texts[{index}]"), "is empty");
            }
            Some(ResponseFormat::Choices(texts))
        }
        None => {
            add(wrong, "ask.response_format", "is empty; set json_schema, regex or choices");
            None
        }
    }
}

fn placement(ask: &v1::Ask, wrong: &mut Violations) -> Placement {
    match v1::Placement::try_from(ask.placement) {
        Ok(v1::Placement::Unspecified | v1::Placement::Auto) => Placement::Auto,
        Ok(v1::Placement::LocalOnly) => Placement::LocalOnly,
        Ok(v1::Placement::PreferLocal) => Placement::PreferLocal,
        Ok(v1::Placement::PreferRemote) => Placement::PreferRemote,
        Ok(v1::Placement::RemoteOnly) => Placement::RemoteOnly,
        Err(_) => {
            add(wrong, "ask.placement", format!("{} is not known to this build", ask.placement));
            Placement::Auto
        }
    }
}

fn labels(ask: &v1::Ask, wrong: &mut Violations) -> Labels {
    if ask.labels.len() > MAX_LABELS {
        add(wrong, "ask.labels", format!("has {} labels, at most {MAX_LABELS} are allowed", ask.labels.len()));
    }
    for (key, value) in &ask.labels {
        let plain = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b));
        if key.is_empty() || key.len() > MAX_LABEL_BYTES.0 || !plain {
            let shown: String = key.chars().take(MAX_LABEL_BYTES.0).collect();
            add(wrong, format!("ask.labels[{shown}]"), "keys have 1 to 64 bytes of a-z, 0-9, _, . and -");
        } else if value.len() > MAX_LABEL_BYTES.1 {
            let description = format!("has {} bytes, at most {} are allowed", value.len(), MAX_LABEL_BYTES.1);
            add(wrong, format!("ask.labels[{key}]"), description);
        }
    }
    ask.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The caller's deadline from the `grpc-timeout` metadata (gRPC over HTTP/2: up to eight digits and a unit).
pub fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number.checked_mul(3_600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Instant::now().checked_add(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::auth::Keys;

    fn good() -> v1::Ask {
        sluice_proto::client::ask("hello")
    }

    fn check(change: impl FnOnce(&mut v1::Ask), fields: &[&str]) {
        let mut ask = good();
        change(&mut ask);
        let caller = Keys::load(None).unwrap().caller(None).unwrap();
        let outcome = request(Some(ask), &caller, None, false, 1_000);
        let found: Vec<String> = outcome.err().unwrap_or_default().into_iter().map(|(field, _)| field).collect();
        assert_eq!(found, fields);
    }

    #[test]
    fn every_wrong_field_is_named() {
        check(|_| {}, &[]);
        check(|ask| ask.messages.clear(), &["ask.messages"]);
        check(|ask| ask.messages[0].role = 0, &["ask.messages[0].role"]);
        check(|ask| ask.messages[0].role = 3, &["ask.messages[0].role"]);
        check(|ask| ask.messages[0].parts.clear(), &["ask.messages[0].parts"]);
        check(|ask| ask.messages[0].parts[0].kind = None, &["ask.messages[0].parts[0]"]);
        let image = || Some(v1::part::Kind::Image(v1::Image::default()));
        check(|ask| ask.messages[0].parts[0].kind = image(), &["ask.messages[0].parts[0].image"]);
        check(|ask| ask.tools.push(v1::Tool::default()), &["ask.tools"]);
        check(|ask| ask.placement = 99, &["ask.placement"]);
        check(|ask| ask.conversation_id = "x".repeat(129), &["ask.conversation_id"]);
        check(|ask| ask.end_user_id = "x".repeat(129), &["ask.end_user_id"]);
        check(|ask| ask.policy = "x".repeat(129), &["ask.policy"]);
        let call = || Some(v1::part::Kind::ToolCall(v1::ToolCall::default()));
        check(|ask| ask.messages[0].parts[0].kind = call(), &["ask.messages[0].parts[0].tool_call"]);
        let result = || Some(v1::part::Kind::ToolResult(v1::ToolResult::default()));
        check(|ask| ask.messages[0].parts[0].kind = result(), &["ask.messages[0].parts[0].tool_result"]);
        check(|ask| drop(ask.labels.insert("a".into(), "x".repeat(257))), &["ask.labels[a]"]);
        check(|ask| (0..33).for_each(|n| drop(ask.labels.insert(n.to_string(), String::new()))), &["ask.labels"]);
        let stops = |stop: Vec<String>| Some(v1::Limits { stop, ..v1::Limits::default() });
        check(|ask| ask.limits = stops(vec!["x".to_owned(); 9]), &["ask.limits.stop"]);
        check(|ask| ask.limits = stops(vec!["x".repeat(257)]), &["ask.limits.stop[0]"]);
        check(|ask| drop(ask.labels.insert("Bad Key".into(), "x".into())), &["ask.labels[Bad Key]"]);
        let long = || Some(v1::part::Kind::Text("x".repeat(1_001)));
        check(|ask| ask.messages[0].parts[0].kind = long(), &["ask.messages"]);
        let limits = v1::Limits {
            max_tokens: Some(0),
            temperature: Some(f32::NAN),
            top_p: Some(0.0),
            stop: vec![String::new()],
            seed: Some(-1),
            top_k: Some(0),
            min_p: Some(-0.1),
            repetition_penalty: Some(0.0),
            presence_penalty: Some(2.5),
            frequency_penalty: Some(f32::NAN),
            logprobs: Some(21),
        };
        let all = [
            "max_tokens",
            "temperature",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "top_k",
            "logprobs",
            "top_p",
            "stop[0]",
        ];
        let all: Vec<String> = all.iter().map(|field| format!("ask.limits.{field}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        check(|ask| ask.limits = Some(limits), &all);
    }

    #[test]
    fn forms_are_checked() {
        use v1::response_format::Kind;
        let form =
            |kind: Option<Kind>| move |ask: &mut v1::Ask| ask.response_format = Some(v1::ResponseFormat { kind });
        let choices = |texts: &[&str]| {
            Some(Kind::Choices(v1::Choices { texts: texts.iter().map(|text| (*text).to_owned()).collect() }))
        };
        check(form(Some(Kind::JsonSchema("{\"type\": \"object\"}".to_owned()))), &[]);
        check(form(Some(Kind::Regex("a+".to_owned()))), &[]);
        check(form(choices(&["a", "b"])), &[]);
        check(form(None), &["ask.response_format"]);
        check(form(Some(Kind::JsonSchema("{".to_owned()))), &["ask.response_format.json_schema"]);
        check(form(Some(Kind::JsonSchema("[]".to_owned()))), &["ask.response_format.json_schema"]);
        check(form(Some(Kind::JsonSchema(" ".repeat(65_537)))), &["ask.response_format.json_schema"]);
        check(form(Some(Kind::Regex(String::new()))), &["ask.response_format.regex"]);
        check(form(Some(Kind::Regex("a".repeat(4_097)))), &["ask.response_format.regex"]);
        check(form(choices(&[])), &["ask.response_format.choices"]);
        check(form(choices(&["a"; 513])), &["ask.response_format.choices"]);
        check(form(choices(&["a", ""])), &["ask.response_format.choices.texts[1]"]);
        let stop = |ask: &mut v1::Ask| {
            form(choices(&["a"]))(ask);
            ask.limits = Some(v1::Limits { stop: vec!["a".to_owned()], ..v1::Limits::default() });
        };
        check(stop, &["ask.limits.stop"]);
    }

    #[test]
    fn limits_are_checked_at_their_edges() {
        let check = |limits: v1::Limits, field: Option<&str>| {
            let mut wrong = Violations::new();
            super::limits(limits.clone(), &mut wrong);
            let found = wrong.first().map(|(path, _)| path.trim_start_matches("ask.limits.").to_owned());
            assert_eq!(found.as_deref(), field, "{limits:?}");
        };
        let none = v1::Limits::default;
        for (tokens, good) in [(i32::MIN, false), (-1, false), (0, false), (1, true), (131_072, true), (131_073, false)]
        {
            check(v1::Limits { max_tokens: Some(tokens), ..none() }, (!good).then_some("max_tokens"));
        }
        for (value, good) in [(-0.1, false), (0.0, true), (2.0, true), (2.1, false), (f32::INFINITY, false)] {
            check(v1::Limits { temperature: Some(value), ..none() }, (!good).then_some("temperature"));
        }
        for (value, good) in [(-1.0, false), (0.001, true), (1.0, true), (1.001, false), (f32::NAN, false)] {
            check(v1::Limits { top_p: Some(value), ..none() }, (!good).then_some("top_p"));
        }
    }

    #[test]
    fn what_the_key_says_wins() {
        let mut caller = Caller::clone(&Keys::load(None).unwrap().caller(None).unwrap());
        caller.labels = [("team".to_owned(), "search".to_owned())].into();
        caller.default_policy = Some("frugal".to_owned());
        caller.placement_floor = Placement::LocalOnly;
        let mut ask = good();
        ask.labels.insert("team".to_owned(), "mine".to_owned());
        ask.labels.insert("app".to_owned(), "shop".to_owned());
        let made = request(Some(ask.clone()), &caller, None, false, 1_000).unwrap();
        assert_eq!((made.labels["team"].as_str(), made.labels["app"].as_str()), ("search", "shop"));
        assert_eq!((made.policy.as_deref(), made.placement_floor), (Some("frugal"), Placement::LocalOnly));
        ask.policy = "quality".to_owned();
        assert_eq!(request(Some(ask), &caller, None, false, 1_000).unwrap().policy.as_deref(), Some("quality"));
    }

    #[test]
    fn deadlines_are_read() {
        let check = |text: &str, seconds: Option<f64>| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            let found = deadline(&metadata).map(|at| at.duration_since(Instant::now()).as_secs_f64());
            match seconds {
                Some(seconds) => assert!((found.unwrap() - seconds).abs() < 1.0, "{text}"),
                None => assert!(found.is_none(), "{text}"),
            }
        };
        check("20S", Some(20.0));
        check("20000m", Some(20.0));
        check("1H", Some(3_600.0));
        check("x", None);
        check("", None);
    }
}
