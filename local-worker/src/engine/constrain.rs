//! Answers of a given form: a JSON Schema, a regular expression or a list of choices becomes a grammar (`llguidance`), and
//! the grammar says before each token which tokens of the vocabulary may come.
//!
//! A grammar is compiled on the caller's thread, once for each constraint and worker, within limits on its size and on the
//! work it may take. The mask for the next token is worked out on a thread of its own while the model runs the step
//! that it is for. Whatever can't be kept is refused: an answer is what was asked for, or there is an error instead.
//!
//! A model that has a decline text may still decline: at the start of an answer the decline's next token is allowed beside
//! the grammar's where the model finds it likeliest of all, and once one has been taken that the grammar forbids, nothing else
//! is. (Allowed always, it would beat tokens that the model merely did not expect of this form.)

mod guide;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, regex_to_lark};

use super::request::{Constraint, SubmitError};
use crate::tokenizer::Tokenizer;
use guide::MaskThread;

pub(super) use guide::{Guide, Progress};

/// Compiled constraints that are kept for a worker.
const KEPT: usize = 64;
/// Longest schema, and all choices together, bytes.
const LONGEST: usize = 64 << 10;
/// Longest regular expression, bytes.
const LONGEST_REGEX: usize = 4 << 10;
/// Most choices.
const MOST_CHOICES: usize = 512;
/// Longest complaint of the compiler that is passed on, bytes.
const LONGEST_PROBLEM: usize = 300;

/// Limits on a grammar: some tens of milliseconds to compile and for a mask, and at most about 20 MB for its states.
fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 10_000,
        max_grammar_size: 100_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// The constraints a worker has compiled, over its vocabulary.
#[derive(Default)]
pub(super) struct Grammars {
    factory: OnceLock<Result<ParserFactory, String>>,
    kept: Mutex<Kept>,
    masks: OnceLock<Arc<MaskThread>>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammars")
    }
}

#[derive(Default)]
struct Kept {
    compiled: HashMap<Constraint, (u64, Arc<Compiled>)>,
    /// Counts uses, so that what was used longest ago can be let go.
    uses: u64,
}

/// A grammar at its beginning, and what may come first.
struct Compiled {
    matcher: Mutex<Matcher>,
    mask: Vec<u32>,
}

impl Grammars {
    /// A guide for one answer.
    ///
    /// # Errors
    /// [`SubmitError::Invalid`] naming `json_schema`, `regex` or `choices`: too long, malformed, not to be satisfied, or
    /// not to be kept.
    pub fn guide(
        &self,
        tokenizer: &Tokenizer,
        constraint: &Constraint,
        decline: Option<&str>,
    ) -> Result<Guide, SubmitError> {
        let wrong = |problem: String| {
            let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
            let clipped = &problem[..problem.floor_char_boundary(LONGEST_PROBLEM)];
            SubmitError::Invalid { field: field(constraint), problem: clipped.to_owned() }
        };
        let compiled = self.compiled(tokenizer, constraint).map_err(wrong)?;
        let matcher = compiled.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        let decline = decline.map(|text| tokenizer.encode(text)).transpose().map_err(wrong)?;
        let masks = Arc::clone(self.masks.get_or_init(|| Arc::new(MaskThread::start())));
        Ok(Guide::new(matcher, compiled.mask.clone(), decline.unwrap_or_default(), masks))
    }

    fn compiled(&self, tokenizer: &Tokenizer, constraint: &Constraint) -> Result<Arc<Compiled>, String> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = lock();
            kept.uses += 1;
            let uses = kept.uses;
            if let Some((used, compiled)) = kept.compiled.get_mut(constraint) {
                *used = uses;
                return Ok(Arc::clone(compiled));
            }
        }
        let factory = self.factory.get_or_init(|| guarded(|| factory(tokenizer))).as_ref().map_err(Clone::clone)?;
        let grammar = grammar(constraint)?;
        let compiled = Arc::new(guarded(|| compile(factory, grammar))?);
        let mut kept = lock();
        if kept.compiled.len() >= KEPT
            && let Some(oldest) = kept.compiled.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone())
        {
            kept.compiled.remove(&oldest);
        }
        let uses = kept.uses;
        kept.compiled.insert(constraint.clone(), (uses, Arc::clone(&compiled)));
        Ok(compiled)
    }
}

fn field(constraint: &Constraint) -> &'static str {
    match constraint {
        Constraint::JsonSchema(_) => "json_schema",
        Constraint::Regex(_) => "regex",
        Constraint::Choices(_) => "choices",
    }
}

/// Runs work of the library, which may panic on what nobody thought of.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("is more than the grammar compiler can take".to_owned()))
}

/// The vocabulary as the library wants it. Control tokens have no text and are never allowed, but for those that end an
/// answer; a vocabulary without one gets an end of its own, which the model can't choose.
fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, String> {
    let count = tokenizer.len() as u32;
    // The library takes 0xff, which is in no UTF-8, for the mark of a control token.
    let usable = |id: u32, bytes: &[u8]| !tokenizer.ends(id) && !bytes.contains(&0xff);
    let text = |id: u32| Some(tokenizer.bytes(id)).filter(|bytes| usable(id, bytes)).unwrap_or_default().to_vec();
    let mut words: Vec<Vec<u8>> = (0..count).map(text).collect();
    let mut ends: Vec<u32> = (0..count).filter(|id| tokenizer.ends(*id)).collect();
    if ends.is_empty() {
        ends.push(count);
        words.push(Vec::new());
    }
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, ends[0]), &words).with_eos_tokens(&ends);
    let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
    factory.quiet();
    *factory.limits_mut() = limits();
    Ok(factory)
}

fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, String> {
    match constraint {
        Constraint::JsonSchema(schema) => {
            if schema.len() > LONGEST {
                return Err(format!("has {} bytes, at most {LONGEST} are allowed", schema.len()));
            }
            let schema = serde_json::from_str(schema).map_err(|error| format!("is no JSON: {error}"))?;
            Ok(TopLevelGrammar::from_json_schema(with_options(schema)?))
        }
        Constraint::Regex(pattern) => {
            if pattern.len() > LONGEST_REGEX {
                return Err(format!("has {} bytes, at most {LONGEST_REGEX} are allowed", pattern.len()));
            }
            let pattern = regex_to_lark(unanchored(pattern), "dw");
            Ok(TopLevelGrammar::from_lark(format!("start: /{pattern}/")))
        }
        Constraint::Choices(choices) => {
            let bytes: usize = choices.iter().map(String::len).sum();
            if !(1..=MOST_CHOICES).contains(&choices.len()) {
                return Err(format!("has {} texts, it must have 1 to {MOST_CHOICES}", choices.len()));
            }
            if bytes > LONGEST || choices.iter().any(String::is_empty) {
                return Err(format!("must be texts that are not empty, of at most {LONGEST} bytes together"));
            }
            let choices: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
            Ok(TopLevelGrammar::from_regex(&format!("(?:{})", choices.join("|"))))
        }
    }
}

/// A schema with our options instead of its own: no optional white space, which small models never stop writing, and nothing
/// unsupported passed over.
fn with_options(schema: serde_json::Value) -> Result<serde_json::Value, String> {
    use serde_json::{Value, json};
    let mut schema = match schema {
        Value::Object(schema) => schema,
        Value::Bool(true) => serde_json::Map::new(),
        Value::Bool(false) => return Err("is `false`, which nothing satisfies".to_owned()),
        _ => return Err("must be a JSON object".to_owned()),
    };
    schema.insert("x-guidance".to_owned(), json!({ "whitespace_flexible": false, "lenient": false }));
    Ok(Value::Object(schema))
}

/// The whole answer must match anyhow: outer anchors say nothing, and the library has none.
fn unanchored(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let escaped = pattern.bytes().rev().skip(1).take_while(|byte| *byte == b'\\').count() % 2 == 1;
    if escaped { pattern } else { pattern.strip_suffix('$').unwrap_or(pattern) }
}

/// A regular expression that matches just this text.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_ascii_punctuation() && !matches!(letter, '<' | '>' | '/' | '"' | '\'' | '_' | '`') {
            pattern.push('\\');
        }
        match letter {
            letter if letter.is_ascii_control() => pattern.push_str(&format!("\\x{:02x}", letter as u32)),
            letter => pattern.push(letter),
        }
    }
    pattern
}

fn compile(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Compiled, String> {
    // The library's advice is about options that a caller does not have.
    let problem = |error: &dyn std::fmt::Display| {
        let error = error.to_string();
        let what = error.split(". Enable '").next().unwrap_or_default();
        format!("is refused by the grammar compiler: {what}")
    };
    let parser = factory.create_parser(grammar).map_err(|error| problem(&error))?;
    let mut matcher = Matcher::new(Ok(parser));
    if let Some(warning) = matcher.grammar_warnings().first() {
        return Err(problem(warning));
    }
    let mask = matcher.compute_mask_or_eos().map_err(|error| problem(&error))?;
    if mask.is_zero() {
        return Err("can't be satisfied".to_owned());
    }
    Ok(Compiled { mask: mask.as_slice().to_vec(), matcher: Mutex::new(matcher) })
}

#[cfg(test)]
mod tests;
