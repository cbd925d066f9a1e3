//! From the text of a policy file to a checked policy, with every problem reported.

mod contradictions;
mod rules;
mod selftests;

use super::selftest;
use super::{CertificateState, ExactCacheSettings, JudgeState, Objective, OnExhausted, Policy, StreamWins};
use crate::budget::BudgetLimits;
use crate::catalog::Catalog;
use crate::domain::{ModelId, NanoUsd, Placement, PolicyRef, Route};
use crate::toml_file::{Problem, Problems, Section, suggest};
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
    let (escalate, draft_above, stream_wins) = read_escalate(root, problems);
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
    let around = rules::Surroundings { small: &small, large: &large, placement };
    let rules = rules::read(root, &around, problems);
    let tests = selftests::read(root, problems);
    let policy = Policy {
        reference: PolicyRef { name: name?.0, hash: Policy::hash(text) },
        description,
        text: text.to_owned(),
        small,
        large,
        objective: objective?,
        placement,
        escalate,
        draft_above,
        stream_wins,
        local_when_remote_is_down: remote_down == Some("local"),
        exact_cache,
        budget,
        on_exhausted,
        exploration,
        rules,
        tests,
        certificate: CertificateState::Missing,
        judge: JudgeState::Absent,
    };
    contradictions::find(&policy, root, problems);
    Some(policy)
}

fn read_escalate(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> (bool, f64, StreamWins) {
    let Some(mut section) = root.section("escalate", problems) else {
        return (true, 0.0, StreamWins::default());
    };
    let enabled = section.flag("enabled", problems).unwrap_or(true);
    let draft_above = section.number_in("draft_above", 0.0..=1.0, problems).unwrap_or(0.0);
    let stream_wins = match section.word("stream", &["safety", "first-byte"], problems) {
        Some("first-byte") => StreamWins::FirstByte,
        _ => StreamWins::Safety,
    };
    section.finish(problems);
    (enabled, draft_above, stream_wins)
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
    if !section.has("small") && !section.has("large") {
        section.missing("small", "a policy needs at least one model", problems);
    } else if small.is_empty() && large.is_empty() {
        problems.add(section.span(), &section.path("small"), "a policy needs at least one known model", "");
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
            for key in ["quality_target", "confidence"] {
                section.missing(key, "`min-cost` needs it", problems);
            }
            quality_target
                .zip(confidence)
                .map(|(quality_target, confidence)| Objective::MinCost { quality_target, confidence })
        }
        Some("fixed-threshold") => {
            let threshold = section.number_in("threshold", 0.0..=1.0, problems);
            section.missing("threshold", "`fixed-threshold` needs one", problems);
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
                    "write it like 30s, 15m, 1h or 2d; leave `exact` out to keep nothing",
                );
                None
            }
        });
        exact.missing("ttl", "say how long an answer is kept", problems);
        let any_temperature = exact.flag("any_temperature", problems).unwrap_or(false);
        exact.finish(problems);
        Some(ExactCacheSettings { ttl: ttl?, any_temperature })
    });
    section.finish(problems);
    exact
}

/// `30s`, `15m`, `1h`, `2d`; never zero.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let number = number.parse::<u64>().ok().filter(|number| *number > 0)?;
    number.checked_mul(seconds).map(Duration::from_secs)
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
