//! Chat templates: Jinja as model files carry it, rendered with the functions Hugging Face gives it. Templates come with
//! weights, so they are untrusted: the steps they may take are limited, and they see only the conversation. How large a
//! text or how deep a list they build on the way is not limited, for the engine has no means to; a template that is made to
//! harm can exhaust memory or stack.

mod json;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

/// Steps a rendering may take; a conversation of a thousand turns takes some ten thousand.
const FUEL: u64 = 2_000_000;
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
            let source = without_marks_of_answers(source);
            environment.add_template_owned(NAME, source).map_err(|error| describe(&error))?;
        }
        Ok(Self { environment, own: source.is_some(), begin: begin.to_owned(), end: end.to_owned() })
    }

    /// The prompt for a conversation, up to where the model's turn begins.
    ///
    /// # Errors
    /// The template refuses the conversation, fails, or takes too long.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, String> {
        if !self.own {
            let turns: Vec<String> = messages.iter().map(|turn| format!("{}: {}\n", turn.role, turn.content)).collect();
            return Ok(turns.concat() + "assistant:");
        }
        let messages: Vec<Value> =
            messages.iter().map(|turn| context! { role => &turn.role, content => &turn.content }).collect();
        // What `transformers` passes, tools and documents being none.
        let values = context! {
            messages, tools => (), documents => (), add_generation_prompt => true,
            bos_token => token(&self.begin), eos_token => token(&self.end),
        };
        let template = self.environment.get_template(NAME).map_err(|error| describe(&error))?;
        template.render(values).map_err(|error| describe(&error))
    }
}

/// A token's name; one that the model lacks is not defined.
fn token(name: &str) -> Value {
    if name.is_empty() { Value::UNDEFINED } else { Value::from(name) }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
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
