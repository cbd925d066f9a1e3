//! From the text of a policy file to a checked policy, with every problem reported.

mod contradictions;
mod escalation;
mod live;
mod objective;
mod rules;
mod selftests;

use super::scoring::is_scorer_file;
use super::selftest;
use super::{CertificateState, ExactCacheSettings, Experiment, JudgeState, OnExhausted, Policy};
use crate::budget::BudgetLimits;
use crate::catalog::Catalog;
use crate::domain::{ModelId, NanoUsd, Placement, PolicyRef, Residency, Route};
use crate::toml_file::{Problem, Problems, Section, suggest};
use std::collections::BTreeSet;
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
    let scorer_file = read_scorer(root, problems);
    let (objective, latency) = objective::read(root, problems);
    let placement = read_placement(root, problems).unwrap_or_default();
    let models = small.iter().chain(&large).filter_map(|model| catalog.get(model));
    let regions: BTreeSet<String> = models.filter_map(|model| model.region.clone()).collect();
    let residency = read_regions(root, "regions", &regions, problems);
    let sticky = read_sticky(root, problems);
    let experiment = read_experiment(root, name.as_ref().map_or("", |(name, _)| name), problems);
    let escalation = escalation::read(root, &small, catalog, problems);
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
    let shadow = live::read_shadow(root, catalog, problems);
    let learn = live::read_learn(root, problems);
    let promotion = live::read_promotion(root, root.has("shadow"), problems);
    let on_breach = live::read_on_breach(root, problems);
    let around = rules::Surroundings { small: &small, large: &large, placement, regions: &regions };
    let rules = rules::read(root, &around, problems);
    let tests = selftests::read(root, problems);
    let policy = Policy {
        reference: PolicyRef { name: name?.0, hash: Policy::hash(text) },
        description,
        text: text.to_owned(),
        scorer_file,
        small,
        large,
        objective: objective?,
        latency,
        placement,
        residency,
        sticky,
        experiment,
        escalate: escalation.enabled,
        draft_above: escalation.draft_above,
        stream_wins: escalation.stream_wins,
        second: escalation.second,
        local_when_remote_is_down: remote_down == Some("local"),
        exact_cache,
        budget,
        on_exhausted,
        exploration,
        shadow,
        learn,
        promotion,
        candidate: None,
        on_breach,
        rules,
        tests,
        certificate: CertificateState::Missing,
        judge: JudgeState::Absent,
        filed: None,
        learnt: None,
    };
    contradictions::find(&policy, root, problems);
    Some(policy)
}

/// `scorer = "long.scorer"`: a file beside the policy's, which is read by whoever knows where that is.
fn read_scorer(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<String> {
    let (name, span) = root.text("scorer", problems)?;
    if !is_scorer_file(&name) {
        let suggestion = "name a file beside the policy, such as \"long.scorer\"";
        problems.add(span, "scorer", format!("`{name}` is no name of a scorer file"), suggestion);
    }
    Some(name)
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

/// How long a conversation that went remote stays there while it is silent, where nothing is said.
const STICKY_TTL: Duration = Duration::from_secs(30 * 60);

fn read_sticky(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Duration> {
    let on = root.word("sticky", &["off", "escalate-only"], problems) == Some("escalate-only");
    let ttl = read_duration(root, "sticky_ttl", problems);
    if root.has("sticky_ttl") && !root.has("sticky") {
        let message = "says how long, but nothing sticks";
        problems.add(root.span_of("sticky_ttl"), "sticky_ttl", message, "add sticky = \"escalate-only\"");
    }
    on.then(|| ttl.unwrap_or(STICKY_TTL))
}

fn read_experiment(root: &mut Section<'_, '_>, name: &str, problems: &mut Problems<'_>) -> Option<Experiment> {
    let mut section = root.section("experiment", problems)?;
    let candidate = section.text("candidate", problems);
    let share = section.number_in("share", 0.0..=1.0, problems);
    section.missing("candidate", "name the policy to try", problems);
    section.missing("share", "say which share of the conversations it decides, up to 1", problems);
    if let Some((_, span)) = candidate.as_ref().filter(|(candidate, _)| candidate == name) {
        problems.add(span.clone(), &section.path("candidate"), "is this policy itself", "name another one");
    }
    if share == Some(0.0) {
        problems.add(section.span_of("share"), &section.path("share"), "tries nothing", "leave [experiment] out");
    }
    section.finish(problems);
    Some(Experiment { candidate: candidate?.0, share: share? })
}

/// `regions = ["eu"]`: at least one, and one that a model of the policy runs in.
fn read_regions(
    section: &mut Section<'_, '_>,
    by: &str,
    known: &BTreeSet<String>,
    problems: &mut Problems<'_>,
) -> Residency {
    let Some(regions) = section.texts("regions", problems) else { return Residency::anywhere() };
    let (path, span) = (section.path("regions"), section.span_of("regions"));
    if regions.is_empty() {
        problems.add(span, &path, "names no region", "leave the key out to allow all");
    } else if !regions.iter().any(|(region, _)| known.contains(region)) {
        let message = "no model of the policy runs there: every request would be refused";
        let suggestion = match known.is_empty() {
            true => "models of the catalog are labelled with region = \"eu\"".to_owned(),
            false => format!("its models run in {}", known.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
        };
        problems.add(span, &path, message, suggestion);
    }
    Residency::only(by, regions.into_iter().map(|(region, _)| region))
}

/// A length of time such as `30m`.
fn read_duration(section: &mut Section<'_, '_>, key: &'static str, problems: &mut Problems<'_>) -> Option<Duration> {
    let (text, span) = section.text(key, problems)?;
    let found = duration(&text);
    if found.is_none() {
        let message = format!("`{text}` is no duration");
        problems.add(span, &section.path(key), message, "write it like 500ms, 30s, 15m, 1h or 7d");
    }
    found
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
        let ttl = read_duration(&mut exact, "ttl", problems);
        exact.missing("ttl", "say how long an answer is kept", problems);
        let any_temperature = exact.flag("any_temperature", problems).unwrap_or(false);
        exact.finish(problems);
        Some(ExactCacheSettings { ttl: ttl?, any_temperature })
    });
    section.finish(problems);
    exact
}

/// `500ms`, `30s`, `15m`, `1h`, `2d`; never zero.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number = number.parse::<u64>().ok().filter(|number| *number > 0)?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
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
