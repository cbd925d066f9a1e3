//! What a template asks for that its engine counts too late or not at all: the text of a list that holds one list many times,
//! and padding. Here it is counted before it is made, so that a template can pay for it or is stopped.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat;

/// Widest padding that `str.format` may be asked for.
const WIDEST: usize = 4096;
/// Bytes that are a step, as the engine counts them.
const STEP: u64 = 64;

/// Puts the filters that make texts of lists behind a count of what they will read.
pub(super) fn guard(environment: &mut Environment<'_>) {
    environment.add_filter("string", |state: &State, value: &Value| {
        spend(state, value)?;
        filters::string(state, value)
    });
    environment.add_filter("pprint", |state: &State, value: &Value| {
        spend(state, value)?;
        Ok::<_, Error>(filters::pprint(value))
    });
    environment.add_filter("sort", |state: &State, value: Value, options| {
        spend(state, &value)?;
        filters::sort(state, value, options)
    });
    environment.add_filter("unique", |state: &State, value: Value, options| {
        spend(state, &value)?;
        filters::unique(state, value, options)
    });
}

/// Methods of Python's texts, maps and lists.
///
/// # Errors
/// As Python has it, or it is more than the template may still do.
pub(super) fn method(state: &mut State, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match method {
        "join" | "format" | "count" => {
            for value in [value].into_iter().chain(arguments) {
                spend(state, value)?;
            }
        }
        _ => {}
    }
    if let Some(text) = value.as_str().filter(|text| method == "format" && pads(text)) {
        let text: String = text.chars().take(40).collect();
        let problem = format!("format: \"{text}\" asks for a width above {WIDEST}");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    pycompat::unknown_method_callback(state, value, method, arguments)
}

/// Takes the steps that reading all of a value costs, however often it holds the same.
///
/// # Errors
/// They are more than are left.
pub(super) fn spend(state: &State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String => state.consume_fuel(value.as_str().map_or(0, str::len) as u64 / STEP),
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.try_for_each(|item| {
            state.consume_fuel(1)?;
            spend(state, &item)
        }),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            state.consume_fuel(1)?;
            spend(state, &key)?;
            spend(state, &value.get_item(&key)?)
        }),
        _ => Ok(()),
    }
}

/// Whether a form asks for more than any table needs: a number in it that large.
fn pads(form: &str) -> bool {
    let numbers = form.split(|letter: char| !letter.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.into_iter().any(|digits| digits.parse::<usize>().map_or(true, |number| number > WIDEST))
}
