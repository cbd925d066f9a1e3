//! Rules: CEL expressions over what is known of a request before anything is looked up. The first that matches wins.
//!
//! An absent label reads as the empty string. A rule that fails to evaluate counts as a match if it restricts and as none
//! otherwise, so that a fault never opens a door; both are counted.

use super::Policy;
use super::decide::Refusal;
use crate::domain::{Constraints, ModelId, Placement, Request, Residency, Role};
use cel::{Context, Env, Program};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// Names an expression may use.
pub const VARIABLES: [&str; 8] =
    ["labels", "prompt", "tokens", "turns", "tenant", "conversation", "end_user", "placement"];
/// Functions an expression may call, beside operators and `in`.
pub const FUNCTIONS: [&str; 11] =
    ["size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bool", "has"];
/// Longest expression, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 2_048;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Evaluation errors since the policy was loaded.
#[derive(Debug, Default)]
pub struct RuleErrors {
    /// Of rules that restrict: counted as matches.
    pub restricting: AtomicU64,
    /// Of other rules: counted as none.
    pub other: AtomicU64,
}

/// A compiled rule.
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Its expression.
    pub expression: String,
    /// Placement that it sets.
    pub placement: Option<Placement>,
    /// The one model that it allows.
    pub model: Option<ModelId>,
    /// Whether it keeps the cache out.
    pub cache_off: bool,
    /// Where it lets requests be served.
    pub residency: Residency,
    program: Program,
    labels: BTreeSet<String>,
    /// Whether the expression reads the prompt, which is worth not copying otherwise.
    reads_prompt: bool,
    /// The value of an expression that reads nothing of the request.
    constant: Option<bool>,
    errors: RuleErrors,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Rule({} when {})", self.name, self.expression)
    }
}

/// What is wrong with an expression, and where in it.
#[derive(Debug)]
pub struct ExpressionProblem {
    /// What.
    pub message: String,
    /// Bytes into the expression, if known.
    pub offset: usize,
}

/// What an expression sees.
pub struct Subject<'a> {
    /// Labels.
    pub labels: &'a crate::domain::Labels,
    /// The last user message, whole: a client must not get round a rule by padding. Searches in it take linear time,
    /// and nothing in CEL's standard library loops over a text.
    pub prompt: &'a str,
    /// Estimated prompt tokens.
    pub tokens: u64,
    /// Messages.
    pub turns: usize,
    /// The tenant.
    pub tenant: &'a str,
    /// The conversation id.
    pub conversation: &'a str,
    /// The end-user id.
    pub end_user: &'a str,
    /// The client's placement.
    pub placement: Placement,
}

impl Rule {
    /// Whether its expression reads the prompt.
    pub fn reads_prompt(&self) -> bool {
        self.reads_prompt
    }

    /// Compiles a rule and tries it on a sample request.
    pub fn compile(
        name: String,
        expression: String,
        placement: Option<Placement>,
        model: Option<ModelId>,
        cache_off: bool,
    ) -> Result<Self, ExpressionProblem> {
        let problem = |message: String| ExpressionProblem { message, offset: 0 };
        if expression.len() > MAX_EXPRESSION_BYTES {
            return Err(problem(format!("is longer than {MAX_EXPRESSION_BYTES} bytes")));
        }
        let program = ENVIRONMENT.compile(&expression).map_err(|errors| {
            let first = errors.errors.first();
            let message = first.map_or_else(|| errors.to_string(), |error| error.msg.clone());
            let offset = first.map_or(0, |error| offset(&expression, error.pos));
            ExpressionProblem { message: format!("is no CEL expression: {message}"), offset }
        })?;
        let (reads_prompt, reads_nothing) = check_names(&program).map_err(problem)?;
        let labels = label_names(&expression);
        let mut rule = Self {
            name,
            expression,
            placement,
            model,
            cache_off,
            residency: Residency::anywhere(),
            program,
            labels,
            reads_prompt,
            constant: None,
            errors: RuleErrors::default(),
        };
        let sample = crate::domain::Labels::new();
        let subject = Subject {
            labels: &sample,
            prompt: "sample",
            tokens: 2,
            turns: 1,
            tenant: "sample",
            conversation: "",
            end_user: "",
            placement: Placement::Auto,
        };
        let matches =
            rule.evaluate(&subject).map_err(|message| problem(format!("fails on a sample request: {message}")))?;
        rule.constant = reads_nothing.then_some(matches);
        Ok(rule)
    }

    /// The value of an expression that is the same for every request.
    pub fn constant(&self) -> Option<bool> {
        self.constant
    }

    /// Whether the rule only ever narrows what may happen.
    pub fn restricts(&self) -> bool {
        matches!(self.placement, Some(Placement::LocalOnly | Placement::RemoteOnly))
            || self.model.is_some()
            || self.cache_off
            || !self.residency.is_anywhere()
    }

    /// Evaluation errors so far.
    pub fn errors(&self) -> &RuleErrors {
        &self.errors
    }

    fn evaluate(&self, subject: &Subject<'_>) -> Result<bool, String> {
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        let mut labels: HashMap<String, String> =
            self.labels.iter().map(|name| (name.clone(), String::new())).collect();
        labels.extend(subject.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        context.add_variable("labels", labels).map_err(|error| failed(&error))?;
        if self.reads_prompt {
            context.add_variable_from_value("prompt", subject.prompt.to_owned());
        }
        context.add_variable_from_value("tokens", i64::try_from(subject.tokens).unwrap_or(i64::MAX));
        context.add_variable_from_value("turns", i64::try_from(subject.turns).unwrap_or(i64::MAX));
        context.add_variable_from_value("tenant", subject.tenant.to_owned());
        context.add_variable_from_value("conversation", subject.conversation.to_owned());
        context.add_variable_from_value("end_user", subject.end_user.to_owned());
        context.add_variable_from_value("placement", subject.placement.as_str().to_owned());
        match self.program.execute(&context) {
            Ok(cel::Value::Bool(matches)) => Ok(matches),
            Ok(other) => Err(format!("it yields {other:?}, not true or false")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        match self.evaluate(subject) {
            Ok(matches) => matches,
            Err(error) => {
                let restricts = self.restricts();
                let counter = if restricts { &self.errors.restricting } else { &self.errors.other };
                counter.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(rule = %self.name, %error, counted_as_match = restricts, "a rule failed to evaluate");
                restricts
            }
        }
    }
}

/// Bytes before a place that is given as line and column, both from 1.
fn offset(expression: &str, (line, column): (isize, isize)) -> usize {
    let before = |place: isize| usize::try_from(place - 1).unwrap_or(0);
    let lines: usize = expression.split_inclusive('\n').take(before(line)).map(str::len).sum();
    let rest = expression.get(lines..).unwrap_or_default();
    lines + rest.chars().take(before(column)).map(char::len_utf8).sum::<usize>()
}

/// Refuses names that only evaluation would find missing, perhaps behind an `&&` and months later. Yields whether the
/// prompt is read, and whether nothing of the request is.
fn check_names(program: &Program) -> Result<(bool, bool), String> {
    let references = program.references();
    let mut unknown: Vec<&str> = references.variables().into_iter().filter(|name| !VARIABLES.contains(name)).collect();
    if !unknown.is_empty() {
        unknown.sort_unstable();
        return Err(format!("uses {}, but rules know only {}", unknown.join(", "), VARIABLES.join(", ")));
    }
    let is_word = |name: &&str| name.starts_with(|first: char| first.is_ascii_alphabetic());
    let mut unknown: Vec<&str> =
        references.functions().into_iter().filter(is_word).filter(|name| !FUNCTIONS.contains(name)).collect();
    if !unknown.is_empty() {
        unknown.sort_unstable();
        return Err(format!("calls {}, but rules know only {}", unknown.join(", "), FUNCTIONS.join(", ")));
    }
    Ok((references.has_variable("prompt"), references.variables().is_empty()))
}

/// Label keys that an expression names as `labels.key` or `labels["key"]`, so that absent ones can read as empty.
fn label_names(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for rest in expression.split("labels").skip(1) {
        let rest = rest.trim_start();
        let name: String = if let Some(rest) = rest.strip_prefix('.') {
            rest.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        } else if let Some(rest) = rest.strip_prefix('[') {
            let rest = rest.trim_start().trim_start_matches(['"', '\'']);
            rest.chars().take_while(|c| !['"', '\'', ']'].contains(c)).collect()
        } else {
            String::new()
        };
        if !name.is_empty() {
            names.insert(name);
        }
    }
    names
}

impl Policy {
    /// What placement, key, policy and rules allow. Pure; called before anything is looked up.
    ///
    /// # Errors
    /// The placements contradict each other.
    pub fn constrain(&self, request: &Request) -> Result<Constraints, Refusal> {
        let last = request.messages.iter().rev().find(|message| message.role == Role::User);
        let prompt = last.map(crate::domain::Message::content).unwrap_or_default();
        let subject = Subject {
            labels: &request.labels,
            prompt: &prompt,
            tokens: (request.prompt_bytes() as u64).div_ceil(4),
            turns: request.messages.len(),
            tenant: request.tenant.as_str(),
            conversation: &request.conversation_id,
            end_user: &request.end_user_id,
            placement: request.placement,
        };
        let rule = self.rules.iter().find(|rule| rule.matches(&subject));
        let rule_name = rule.map(|rule| format!("rule `{}`", rule.name)).unwrap_or_default();
        let asked = [
            (rule_name.as_str(), rule.and_then(|rule| rule.placement).unwrap_or_default()),
            ("key", request.placement_floor),
            ("client", request.placement),
            ("policy", self.placement),
        ];
        let placement = Placement::combine(asked)?;
        let placement_by = match placement {
            Placement::Auto => "default",
            _ => asked.iter().find(|(_, asked)| *asked == placement).map_or("default", |(who, _)| who),
        };
        let caches = self.exact_cache.is_some() && !rule.is_some_and(|rule| rule.cache_off);
        Ok(Constraints {
            placement,
            placement_by: placement_by.to_owned(),
            rule: rule.map(|rule| rule.name.clone()),
            model: rule.and_then(|rule| rule.model.clone()),
            residency: rule
                .map_or_else(|| request.residency.clone(), |rule| request.residency.clone().and(&rule.residency))
                .and(&self.residency),
            cache_read: caches,
            cache_write: caches,
        })
    }

    /// How often each rule failed to evaluate: as a match, as none.
    pub fn rule_errors(&self) -> Vec<(&str, u64, u64)> {
        let of = |rule: &'_ Rule| {
            (rule.errors().restricting.load(Ordering::Relaxed), rule.errors().other.load(Ordering::Relaxed))
        };
        self.rules.iter().map(|rule| (rule.name.as_str(), of(rule).0, of(rule).1)).collect()
    }
}
