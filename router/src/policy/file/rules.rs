//! The `[[rules]]` of a policy file: compiled, and refused where they can never match or could only be refused.

use super::{read_placement, read_regions};
use crate::domain::{ModelId, Placement};
use crate::policy::rules::Rule;
use crate::toml_file::{Problems, Section, suggest};
use std::collections::BTreeSet;

/// What rules are read against.
pub struct Surroundings<'a> {
    /// The policy's small models.
    pub small: &'a [ModelId],
    /// The policy's large models.
    pub large: &'a [ModelId],
    /// The policy's own placement.
    pub placement: Placement,
    /// Regions of its models.
    pub regions: &'a BTreeSet<String>,
}

/// Reads all rules.
pub fn read(root: &mut Section<'_, '_>, around: &Surroundings<'_>, problems: &mut Problems<'_>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for section in root.sections("rules", problems) {
        if let Some(rule) = read_one(section, &rules, around, problems) {
            rules.push(rule);
        }
    }
    rules
}

fn read_one(
    mut section: Section<'_, '_>,
    earlier: &[Rule],
    around: &Surroundings<'_>,
    problems: &mut Problems<'_>,
) -> Option<Rule> {
    let name = section.text("name", problems);
    match &name {
        None => section.missing("name", "rules are named in every decision they make", problems),
        Some((name, span)) if earlier.iter().any(|rule| rule.name == *name) => {
            let message = format!("another rule is called `{name}` already");
            problems.add(span.clone(), &section.path("name"), message, "decisions name rules: tell them apart");
        }
        Some(_) => {}
    }
    let when = section.text("when", problems);
    if when.is_none() {
        section.missing("when", "say when the rule matches, in CEL; `true` is always", problems);
    }
    let placement = read_placement(&mut section, problems);
    let model = read_model(&mut section, around, problems);
    let cache_off = section.word("cache", &["off"], problems).is_some();
    let regions = read_regions(&mut section, "rules.regions", around.regions, problems);
    if !["placement", "model", "cache", "regions"].iter().any(|key| section.has(key)) {
        section.missing("placement", "a rule sets `placement`, `model`, `regions` or `cache = \"off\"`", problems);
    }
    refuse_contradictions(&section, placement, model.as_ref(), around, problems);
    let key = section.path("when");
    let rule = when.and_then(|(expression, span)| {
        let name = name.map(|(name, _)| name).unwrap_or_default();
        match Rule::compile(name, expression, placement, model, cache_off) {
            Ok(mut rule) => {
                rule.residency = regions;
                for (message, suggestion) in never_matches(&rule, earlier) {
                    problems.add(span.clone(), &key, message, suggestion);
                }
                Some(rule)
            }
            Err(problem) => {
                let place = problems.inside(&span, problem.offset);
                problems.add(place, &key, problem.message, "");
                None
            }
        }
    });
    section.finish(problems);
    rule
}

fn read_model(
    section: &mut Section<'_, '_>,
    around: &Surroundings<'_>,
    problems: &mut Problems<'_>,
) -> Option<ModelId> {
    let (name, span) = section.text("model", problems)?;
    let models = || around.small.iter().chain(around.large);
    let found = models().find(|model| model.as_str() == name);
    if found.is_none() {
        let message = format!("`{name}` is not among the policy's models");
        problems.add(span, &section.path("model"), message, suggest(&name, models().map(ModelId::as_str)));
    }
    found.cloned()
}

/// Why a rule can never match, and what to do about it.
fn never_matches(rule: &Rule, earlier: &[Rule]) -> Vec<(String, &'static str)> {
    let mut found = Vec::new();
    if rule.constant() == Some(false) {
        found.push(("can never match: it is constant".to_owned(), "delete the rule"));
    }
    if let Some(always) = earlier.iter().find(|rule| rule.constant() == Some(true)) {
        let message = format!("can never match: rule `{}` before it always does", always.name);
        found.push((message, "move it up, or delete it"));
    }
    if let Some(twin) = earlier.iter().find(|other| other.expression.trim() == rule.expression.trim()) {
        let message = format!("can never match: rule `{}` before it has the same condition", twin.name);
        found.push((message, "merge the two"));
    }
    found
}

/// Effects that could only ever end in a refusal.
fn refuse_contradictions(
    section: &Section<'_, '_>,
    placement: Option<Placement>,
    model: Option<&ModelId>,
    around: &Surroundings<'_>,
    problems: &mut Problems<'_>,
) {
    use Placement::{LocalOnly, RemoteOnly};
    let mut contradicts = |key: &str, message: String, suggestion: &str| {
        problems.add(section.span_of(key), &section.path(key), message, suggestion);
    };
    match (placement, around.placement) {
        (Some(LocalOnly), RemoteOnly) | (Some(RemoteOnly), LocalOnly) => {
            let message = format!("contradicts the policy's own placement `{}`", around.placement.as_str());
            contradicts("placement", message, "every request it matches would be refused");
        }
        _ => {}
    }
    let strictest = Placement::combine([("", placement.unwrap_or_default()), ("", around.placement)]);
    let Ok(strictest) = strictest else { return };
    let barred = match strictest {
        LocalOnly => around.large,
        RemoteOnly => around.small,
        _ => &[],
    };
    if let Some(model) = model
        && barred.contains(model)
    {
        let message = format!("`{model}` can't serve under placement `{}`", strictest.as_str());
        contradicts("model", message, "every request it matches would be refused");
    }
    let (open, what) = match placement {
        Some(LocalOnly) => (around.small, "small"),
        Some(RemoteOnly) => (around.large, "large"),
        _ => return,
    };
    if open.is_empty() {
        contradicts("placement", format!("the policy has no {what} model to serve it"), "name one in [models]");
    }
}
