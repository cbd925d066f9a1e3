//! From the text of a policy file to a checked policy, with every problem reported.

use super::rules::Rule;
use super::selftest::{self, SelfTest};
use super::{CertificateState, ExactCacheSettings, Objective, OnExhausted, Policy};
use crate::budget::BudgetLimits;
use crate::catalog::Catalog;
use crate::domain::{Labels, ModelId, NanoUsd, Placement, PolicyRef, Route};
use crate::toml_file::{Problem, Problems, Section, suggest};
use std::ops::Range;
use std::time::Duration;

/// Placement words, in files and suggestions.
const PLACEMENTS: [&str; 5] = ["auto", "local-only", "prefer-local", "prefer-remote", "remote-only"];

/// Reads a policy and runs its embedded tests.
pub fn read(file: &str, text: &str, catalog: &Catalog) -> Result<Policy, Vec<Problem>> {
    let (table, mut problems) = Problems::parse(file, text);
    let mut root = Section::root(&table);
    let policy = read_root(&mut root, text, catalog, &mut problems);
    root.finish(&mut problems);
    let found = problems.into_found();
    match policy {
        Some(policy) if found.is_empty() => {
            let failures = selftest::run(&policy, file, text, catalog);
            if failures.is_empty() { Ok(policy) } else { Err(failures) }
        }
        _ => Err(found),
    }
}

fn read_root(root: &mut Section<'_, '_>, text: &str, catalog: &Catalog, problems: &mut Problems<'_>) -> Option<Policy> {
    let name = root.text("name", problems);
    match &name {
        None => root.missing("name", "give the policy a name", problems),
        Some((name, span)) if !is_name(name) => {
            problems.add(span.clone(), "name", format!("`{name}` is no name"), "use a-z, 0-9, - and _");
        }
        Some(_) => {}
    }
    let description = root.text("description", problems).map(|(text, _)| text).unwrap_or_default();
    let (small, large) = read_models(root, catalog, problems);
    let objective = read_objective(root, problems);
    let placement = read_placement(root, problems).unwrap_or_default();
    let escalate = match root.section("escalate", problems) {
        Some(mut section) => {
            let enabled = section.flag("enabled", problems).unwrap_or(true);
            section.finish(problems);
            enabled
        }
        None => true,
    };
    let remote_down = match root.section("fallback", problems) {
        Some(mut section) => {
            let word = section.word("remote_down", &["local", "error"], problems);
            section.finish(problems);
            word
        }
        None => None,
    };
    let exact_cache = root.section("cache", problems).and_then(|section| read_cache(section, problems));
    let (budget, on_exhausted) = read_budget(root, problems);
    let exploration = match root.section("exploration", problems) {
        Some(mut section) => {
            let share = section.number_in("share", 0.0..=0.5, problems).unwrap_or(0.0);
            section.finish(problems);
            share
        }
        None => 0.0,
    };
    let rules = read_rules(root, &small, &large, problems);
    let tests =
        root.sections("tests", problems).into_iter().filter_map(|section| read_test(section, problems)).collect();
    Some(Policy {
        reference: PolicyRef { name: name?.0, hash: Policy::hash(text) },
        description,
        text: text.to_owned(),
        small,
        large,
        objective: objective?,
        placement,
        escalate,
        local_when_remote_is_down: remote_down == Some("local"),
        exact_cache,
        budget,
        on_exhausted,
        exploration,
        rules,
        tests,
        certificate: CertificateState::Missing,
    })
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
}

fn read_models(
    root: &mut Section<'_, '_>,
    catalog: &Catalog,
    problems: &mut Problems<'_>,
) -> (Vec<ModelId>, Vec<ModelId>) {
    let Some(mut section) = root.section("models", problems) else {
        root.missing("models", "name the candidates: small = [...], large = [...]", problems);
        return (Vec::new(), Vec::new());
    };
    let mut read = |key: &'static str, route: Route| {
        let mut ids = Vec::new();
        for (name, span) in section.texts(key, problems).unwrap_or_default() {
            let path = section.path(key);
            let id = ModelId::new(name.as_str());
            match catalog.get(&id) {
                None => {
                    let known = suggest(&name, catalog.models().map(|model| model.id.as_str()));
                    problems.add(span, &path, format!("model `{name}` is not in the catalog"), known);
                }
                Some(model) if model.route() != route => {
                    let place = if model.route() == Route::Local { "local" } else { "remote" };
                    problems.add(
                        span,
                        &path,
                        format!("model `{name}` is {place}"),
                        "small ones are local, large ones remote",
                    );
                }
                Some(_) if ids.contains(&id) => {
                    problems.add(span, &path, format!("model `{name}` is listed twice"), "")
                }
                Some(_) => ids.push(id),
            }
        }
        ids
    };
    let (small, large) = (read("small", Route::Local), read("large", Route::Remote));
    if small.is_empty() && large.is_empty() {
        section.missing("small", "a policy needs at least one model", problems);
    }
    section.finish(problems);
    (small, large)
}

fn read_objective(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Objective> {
    let Some(mut section) = root.section("objective", problems) else {
        root.missing("objective", "say what the policy is after: goal = \"min-cost\"", problems);
        return None;
    };
    let goal = section.text("goal", problems);
    let objective = match goal.as_ref().map(|(goal, _)| goal.as_str()) {
        Some("min-cost") => {
            let quality_target = section.number_in("quality_target", 0.0..=1.0, problems);
            let confidence = section.number_in("confidence", 0.5..=0.9999, problems);
            for (key, value) in [("quality_target", quality_target), ("confidence", confidence)] {
                if value.is_none() && section.span_of(key) == section.span() {
                    section.missing(key, "`min-cost` needs it", problems);
                }
            }
            quality_target
                .zip(confidence)
                .map(|(quality_target, confidence)| Objective::MinCost { quality_target, confidence })
        }
        Some("fixed-threshold") => {
            let threshold = section.number_in("threshold", 0.0..=1.0, problems);
            if threshold.is_none() && section.span_of("threshold") == section.span() {
                section.missing("threshold", "`fixed-threshold` needs one", problems);
            }
            threshold.map(Objective::FixedThreshold)
        }
        Some("max-quality") => {
            let (_, span) = goal.clone()?;
            let message = "`max-quality` is not in this build";
            problems.add(span, &section.path("goal"), message, "use `min-cost` or `fixed-threshold`");
            section.take("max_cost");
            None
        }
        Some(other) => {
            let (_, span) = goal.clone()?;
            let suggestion = suggest(other, ["min-cost", "fixed-threshold"].into_iter());
            problems.add(span, &section.path("goal"), format!("`{other}` is no goal"), suggestion);
            None
        }
        None => {
            section.missing("goal", "use `min-cost` or `fixed-threshold`", problems);
            None
        }
    };
    section.finish(problems);
    objective
}

fn read_placement(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Placement> {
    section.word("placement", &PLACEMENTS, problems).and_then(Placement::parse)
}

fn read_cache(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> Option<ExactCacheSettings> {
    if section.take("semantic").is_some() {
        let span = section.span_of("semantic");
        problems.add(span, &section.path("semantic"), "the semantic cache is not in this build", "leave the key out");
    }
    let exact = section.section("exact", problems).and_then(|mut exact| {
        let ttl = exact.text("ttl", problems).and_then(|(text, span)| match duration(&text) {
            Some(ttl) => Some(ttl),
            None => {
                problems.add(
                    span,
                    &exact.path("ttl"),
                    format!("`{text}` is no duration"),
                    "write it like 30s, 15m, 1h or 2d",
                );
                None
            }
        });
        if ttl.is_none() && exact.span_of("ttl") == exact.span() {
            exact.missing("ttl", "say how long an answer is kept", problems);
        }
        let any_temperature = exact.flag("any_temperature", problems).unwrap_or(false);
        exact.finish(problems);
        Some(ExactCacheSettings { ttl: ttl?, any_temperature })
    });
    section.finish(problems);
    exact
}

/// `30s`, `15m`, `1h`, `2d`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)).map(Duration::from_secs)
}

fn read_budget(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> (BudgetLimits, OnExhausted) {
    let mut limits = BudgetLimits::default();
    let Some(mut section) = root.section("budget", problems) else { return (limits, OnExhausted::Reject) };
    if let Some(mut tenant) = section.section("per_tenant", problems) {
        limits.daily = read_money(&mut tenant, "daily", problems);
        limits.monthly = read_money(&mut tenant, "monthly", problems);
        tenant.finish(problems);
    }
    let on_exhausted = match section.word("on_exhausted", &["local-only", "reject"], problems) {
        Some("local-only") => OnExhausted::LocalOnly,
        _ => OnExhausted::Reject,
    };
    section.finish(problems);
    (limits, on_exhausted)
}

fn read_money(section: &mut Section<'_, '_>, key: &'static str, problems: &mut Problems<'_>) -> Option<NanoUsd> {
    let (text, span) = section.text(key, problems)?;
    let amount = text.strip_suffix("USD").map(str::trim_end).ok_or("should end in USD".to_owned());
    let amount = amount.and_then(|amount| NanoUsd::from_decimal_usd(amount).map_err(|error| error.to_string()));
    amount.map_err(|message| problems.add(span, &section.path(key), message, "write it like \"25 USD\"")).ok()
}

fn read_rules(
    root: &mut Section<'_, '_>,
    small: &[ModelId],
    large: &[ModelId],
    problems: &mut Problems<'_>,
) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut unconditional: Option<String> = None;
    for mut section in root.sections("rules", problems) {
        let name = section.text("name", problems);
        if name.is_none() {
            section.missing("name", "rules are named in every decision they make", problems);
        }
        let when = section.text("when", problems);
        if when.is_none() && section.span_of("when") == section.span() {
            section.missing("when", "say when the rule matches, in CEL; `true` is always", problems);
        }
        let placement = read_placement(&mut section, problems);
        let model = section.text("model", problems).and_then(|(name, span)| {
            let id = ModelId::new(name.as_str());
            let known = small.iter().chain(large).any(|model| *model == id);
            if !known {
                let suggestion = suggest(&name, small.iter().chain(large).map(ModelId::as_str));
                problems.add(
                    span,
                    &section.path("model"),
                    format!("`{name}` is not among the policy's models"),
                    suggestion,
                );
            }
            known.then_some(id)
        });
        let cache_off = section.word("cache", &["off"], problems).is_some();
        if placement.is_none() && model.is_none() && !cache_off {
            section.missing("placement", "a rule sets `placement`, `model` or `cache = \"off\"`", problems);
        }
        if let Some((expression, span)) = when {
            let key = section.path("when");
            if let Some(earlier) = &unconditional {
                let message = format!("can never match: rule `{earlier}` before it always does");
                problems.add(span.clone(), &key, message, "move it up, or delete it");
            }
            if let Some(twin) = rules.iter().find(|rule| rule.expression.trim() == expression.trim()) {
                let message = format!("can never match: rule `{}` before it has the same condition", twin.name);
                problems.add(span.clone(), &key, message, "merge the two");
            }
            let name = name.map(|(name, _)| name).unwrap_or_default();
            match expression.trim() {
                "true" if unconditional.is_none() => unconditional = Some(name.clone()),
                "false" => problems.add(span.clone(), &key, "can never match: it is constant", "delete the rule"),
                _ => {}
            }
            match Rule::compile(name, expression, placement, model, cache_off) {
                Ok(rule) => rules.push(rule),
                Err(problem) => problems.add(inside(&span, problem.offset), &key, problem.message, ""),
            }
        }
        section.finish(problems);
    }
    rules
}

/// A place within a quoted value: after its opening quote.
fn inside(span: &Range<usize>, offset: usize) -> Range<usize> {
    let at = (span.start + 1 + offset).min(span.end);
    at..at
}

fn read_test(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> Option<SelfTest> {
    let span = section.span();
    let name = section.text("name", problems).map(|(name, _)| name);
    let prompt = section.text("prompt", problems).map(|(prompt, _)| prompt);
    for (key, given) in [("name", name.is_some()), ("prompt", prompt.is_some())] {
        if !given {
            section.missing(key, "a test needs it", problems);
        }
    }
    let mut labels = Labels::new();
    if let Some(mut table) = section.section("labels", problems) {
        for (key, key_span, value) in table.take_all() {
            match value.get_ref().as_str() {
                Some(text) => drop(labels.insert(key, text.to_owned())),
                None => problems.add(key_span, &table.path(&key), "should be a text in quotes", ""),
            }
        }
    }
    let placement = read_placement(&mut section, problems).unwrap_or_default();
    let score = section.number_in("score", 0.0..=1.0, problems);
    let threshold = section.number_in("threshold", 0.0..=1.0, problems);
    let mut test = SelfTest {
        name: name.unwrap_or_default(),
        prompt: prompt.unwrap_or_default(),
        labels,
        placement,
        score,
        threshold,
        expect_route: None,
        expect_refused: false,
        expect_model: None,
        expect_rule: None,
        span,
    };
    match section.section("expect", problems) {
        Some(mut expect) => {
            match expect.word("route", &["local", "remote", "refused"], problems) {
                Some("refused") => test.expect_refused = true,
                word => test.expect_route = word.and_then(Route::parse),
            }
            test.expect_model = expect.text("model", problems).map(|(model, _)| model);
            test.expect_rule = expect.text("rule", problems).map(|(rule, _)| rule);
            if test.expect_route.is_none()
                && !test.expect_refused
                && test.expect_model.is_none()
                && test.expect_rule.is_none()
            {
                expect.missing("route", "a test that expects nothing can't fail", problems);
            }
            expect.finish(problems);
        }
        None => section.missing("expect", "say what should come out: expect = { route = \"local\" }", problems),
    }
    section.finish(problems);
    Some(test)
}
