//! Chat templates: Jinja as model files carry it, rendered with the functions Hugging Face gives it. Templates come with
//! weights, so they are untrusted: they see only the conversation, and a source longer than any real one is refused. Steps are
//! counted, and so is what they make and read (64 bytes are a step), in proportion to the conversation; `within` counts what
//! the engine does not, `growth` refuses what can't be counted. A source may be nested as deep as it is long, so it is read on a thread whose stack is as large
//! as that can need.

mod growth;
mod json;
mod within;

use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

/// Longest source; those of published models have some twenty thousand bytes.
const LONGEST: usize = 64 << 10;
/// Steps a rendering may take beside what the conversation's length gives it; one of a thousand turns takes some ten thousand.
const FUEL: u64 = 200_000;
/// Bytes of the conversation that give one more step: each may be copied some thirty times.
const BYTES_A_STEP: u64 = 2;
/// Stack for one level of nesting in a source; measured: 1.5 KiB without optimisation.
const LEVEL: usize = 2 << 10;
/// How deep macros and loops may call themselves, as the engine counts it: some twenty calls.
const DEEPEST: usize = 100;
/// The template's name in its environment.
const NAME: &str = "chat_template";

/// One turn of a conversation, as chat templates see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`: whatever the model's template knows.
    pub role: String,
    /// The text; control tokens spelled out in it stay text where a worker renders it.
    pub content: String,
}

/// The form that Phi-2, which has no template, was taught questions in, as its publisher describes it.
const PHI_2: &str = "\
{% for turn in messages %}{% if turn.role == 'system' %}{{ turn.content }}
{% elif turn.role == 'assistant' %}Output: {{ turn.content }}
{% else %}Instruct: {{ turn.content }}
{% endif %}{% endfor %}Output:";

/// The form of prompts that a family without a template has all the same.
pub(crate) fn form_of(family: &str) -> Option<&'static str> {
    (family == "phi2").then_some(PHI_2)
}

/// How a conversation becomes a prompt.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether there is a template; if not, the plain form serves.
    own: bool,
    begin: String,
    end: String,
}

impl ChatTemplate {
    /// A model's own template, or the plain form without one; `begin` and `end` are what the template knows as `bos_token`
    /// and `eos_token`.
    ///
    /// # Errors
    /// The template is no Jinja this build understands.
    pub fn new(source: Option<&str>, begin: &str, end: &str) -> Result<Self, String> {
        let mut environment = environment();
        if let Some(source) = source {
            if source.len() > LONGEST {
                return Err(format!("the template has {} bytes, {LONGEST} are read at most", source.len()));
            }
            let source = without_marks_of_answers(source);
            on_deep_stack(LONGEST * LEVEL, || {
                let parsed = parse(&source, NAME, syntax()).map_err(|error| describe(&error))?;
                growth::check(&parsed)?;
                environment.add_template_owned(NAME, source.clone()).map_err(|error| describe(&error))
            })?;
        }
        Ok(Self { environment, own: source.is_some(), begin: begin.to_owned(), end: end.to_owned() })
    }

    /// The prompt for a conversation, up to where the model's turn begins.
    ///
    /// # Errors
    /// The template refuses the conversation, fails, or takes too many steps or too much memory.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, String> {
        if !self.own {
            let turns: Vec<String> = messages.iter().map(|turn| format!("{}: {}\n", turn.role, turn.content)).collect();
            return Ok(turns.concat() + "assistant:");
        }
        let bytes: usize = messages.iter().map(|turn| turn.role.len() + turn.content.len()).sum();
        let fuel = FUEL + bytes as u64 / BYTES_A_STEP;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let messages: Vec<Value> =
            messages.iter().map(|turn| context! { role => &turn.role, content => &turn.content }).collect();
        // What `transformers` passes, tools and documents being none.
        let values = context! {
            messages, tools => (), documents => (), add_generation_prompt => true,
            bos_token => token(&self.begin), eos_token => token(&self.end),
        };
        let template = environment.get_template(NAME).map_err(|error| describe(&error))?;
        template.render(values).map_err(|error| describe(&error))
    }
}

/// Runs on a thread of its own; a stack takes memory only where it is used.
fn on_deep_stack<T: Send>(bytes: usize, work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(bytes);
        let thread = thread.spawn_scoped(scope, work).map_err(|error| format!("no thread for it: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("the engine for templates panicked".to_owned()))
    })
}

/// A token's name; one that the model lacks is not defined.
fn token(name: &str) -> Value {
    if name.is_empty() { Value::UNDEFINED } else { Value::from(name) }
}

/// As `transformers` sets it.
fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default()
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_recursion_limit(DEEPEST);
    environment.set_unknown_method_callback(within::method);
    within::guard(&mut environment);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
        let now = jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::UTC);
        jiff::fmt::strtime::format(&format, &now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
    });
    environment.add_filter("tojson", json::dump);
    // A string can be iterated over in Python.
    environment.add_test("iterable", |value: &Value| value.as_str().is_some() || value.try_iter().is_ok());
    environment
}

/// `{% generation %}` marks what a model wrote, for those who train it; a prompt is the same without.
fn without_marks_of_answers(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_matches(['{', '}', '%', '-', '+']).trim();
        match word {
            "generation" => text.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => text.push_str(&tag.replacen(word, "endif", 1)),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text + rest
}

fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    }
}

#[cfg(test)]
mod tests;
