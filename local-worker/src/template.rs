//! Chat templates: Jinja as model files carry it, rendered with the functions Hugging Face gives it. Templates come with
//! weights, so they are untrusted: what they may compute is limited, and they see only the conversation.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, context};

/// Steps a rendering may take; a conversation of a thousand turns takes some ten thousand.
const FUEL: u64 = 2_000_000;

/// One turn of a conversation, as chat templates see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`: whatever the model's template knows.
    pub role: String,
    /// The text; control tokens spelled out in it stay text where a worker renders it.
    pub content: String,
}

/// How a conversation becomes a prompt.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Option<String>,
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
        let environment = environment();
        if let Some(source) = source {
            self::environment().template_from_str(source).map_err(|error| describe(&error))?;
        }
        Ok(Self { environment, source: source.map(str::to_owned), begin: begin.to_owned(), end: end.to_owned() })
    }

    /// The prompt for a conversation, up to where the model's turn begins.
    ///
    /// # Errors
    /// The template refuses the conversation, fails, or takes too long.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, String> {
        let Some(source) = &self.source else {
            let turns: Vec<String> = messages.iter().map(|turn| format!("{}: {}\n", turn.role, turn.content)).collect();
            return Ok(turns.concat() + "assistant:");
        };
        let messages: Vec<_> =
            messages.iter().map(|turn| context! { role => &turn.role, content => &turn.content }).collect();
        let values = context! {
            messages, add_generation_prompt => true, bos_token => &self.begin, eos_token => &self.end,
        };
        self.environment.render_str(source, values).map_err(|error| describe(&error))
    }
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
    environment
}

fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line} of the template)"),
        None => detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn templates_render_refuse_and_stop() {
        let check = |source: &str, expected: Result<&str, &str>| {
            let template = ChatTemplate::new(Some(source), "<s>", "</s>").unwrap();
            let got = template.render(&[turn("user", " hi "), turn("assistant", "yo")]);
            match (got, expected) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got} should name {want}"),
                (got, want) => panic!("{got:?} for {want:?}"),
            }
        };
        check(
            "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}:{{ m.content | trim }}]{% endfor %}",
            Ok("<s>[user:hi][assistant:yo]"),
        );
        check("{%- for m in messages %}\n  {{- m.content.strip().upper() }}\n{%- endfor %}", Ok("HIYO"));
        check(
            "{% if messages[0].role == 'user' %}\n{{ raise_exception('no user first') }}\n{% endif %}",
            Err("no user first (line 2"),
        );
        check("{% for i in range(9999999) %}{% for j in range(9999999) %}x{% endfor %}{% endfor %}", Err(""));
        check("{{ strftime_now('%Y') | length }}{% if add_generation_prompt %}>{% endif %}", Ok("4>"));
        check("{{ messages | tojson | length > 20 }}", Ok("True"));
    }

    #[test]
    fn without_a_template_the_plain_form_serves_and_bad_jinja_is_refused() {
        let plain = ChatTemplate::new(None, "", "").unwrap();
        assert_eq!(plain.render(&[turn("user", "hi")]).unwrap(), "user: hi\nassistant:");
        assert!(ChatTemplate::new(Some("{% for %}"), "", "").is_err());
    }
}
