//! The filter `tojson` as `transformers` gives it to templates: Python's `json.dumps` without the escapes for HTML that
//! Jinja's own has, and with a space after each comma and colon.

use std::collections::BTreeMap;
use std::io::{self, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind, State};
use serde::Serialize as _;
use serde_json::Serializer;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::within;

/// Deepest indentation that a template may ask for.
const WIDEST: usize = 16;

/// A value as JSON.
///
/// # Errors
/// It can't be written as JSON within what the template may still do, or an option is none of Python's.
pub(super) fn dump(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    within::spend(state, value)?;
    let indent: Option<usize> = options.get("indent")?;
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let wrong = |error: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}"));
    if ascii || indent.is_some_and(|indent| indent > WIDEST) {
        return Err(wrong(&format!("ensure_ascii and an indent above {WIDEST} are not supported")));
    }
    let sorted = sorted.then(|| sort(value)).transpose()?;
    let (value, mut bytes) = (sorted.as_ref().unwrap_or(value), Vec::new());
    let written = match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, pretty))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
    };
    written.map_err(|error| wrong(&error))?;
    String::from_utf8(bytes).map(Value::from).map_err(|error| wrong(&error))
}

/// The same with the keys of every map in order.
fn sort(value: &Value) -> Result<Value, Error> {
    use minijinja::value::ValueKind;
    match value.kind() {
        ValueKind::Map => {
            let pair = |key: Value| Ok::<_, Error>((key.to_string(), sort(&value.get_item(&key)?)?));
            let sorted = value.try_iter()?.map(pair).collect::<Result<BTreeMap<String, Value>, Error>>()?;
            Ok(Value::from(sorted))
        }
        ValueKind::Seq => Ok(Value::from(value.try_iter()?.map(|item| sort(&item)).collect::<Result<Vec<_>, _>>()?)),
        _ => Ok(value.clone()),
    }
}

/// A space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
