//! The sections `[shadow]` and `[on_breach]`.

use super::{read_duration, read_money};
use crate::catalog::Catalog;
use crate::domain::{ModelId, NanoUsd, Route};
use crate::policy::live::{BreachAction, Compare, FEWEST_OUTCOMES, Learn, OnBreach, Promotion, Shadow, TIGHTEN_STEP};
use crate::toml_file::{Problems, Section, suggest};

/// Reads `[shadow]`; `None` where there is none, or it has problems.
pub fn read_shadow(root: &mut Section<'_, '_>, catalog: &Catalog, problems: &mut Problems<'_>) -> Option<Shadow> {
    let mut section = root.section("shadow", problems)?;
    let share = section.number_in("share", 0.0..=1.0, problems);
    section.missing("share", "say which share of requests is answered twice, such as 0.05", problems);
    let daily = read_money(&mut section, "daily", problems);
    let word = section.word("compare", &["exact", "numeric", "json", "judge"], problems);
    section.missing("compare", "use `exact`, `numeric`, `json` or `judge`", problems);
    let judge = read_judge(&mut section, catalog, problems);
    let compare = match (word?, judge) {
        ("judge", None) => {
            section.missing("judge", "name the remote model that judges", problems);
            None
        }
        ("judge", Some(judge)) => Some(Compare::Judge(judge)),
        (_, Some(_)) => {
            let message = "a judge is named, but answers are not compared by one";
            problems.add(section.span_of("judge"), &section.path("judge"), message, "use compare = \"judge\"");
            None
        }
        ("exact", None) => Some(Compare::Exact),
        ("numeric", None) => Some(Compare::Numeric),
        _ => Some(Compare::Json),
    };
    if daily.is_none() && matches!(compare, Some(Compare::Judge(_))) {
        section.missing("daily", "a judge costs money; say how much a day may cost, such as \"1 USD\"", problems);
    }
    section.finish(problems);
    let share = share.filter(|share| *share > 0.0)?;
    Some(Shadow { share, daily: daily.unwrap_or(NanoUsd::ZERO), compare: compare? })
}

fn read_judge(section: &mut Section<'_, '_>, catalog: &Catalog, problems: &mut Problems<'_>) -> Option<ModelId> {
    let (name, span) = section.text("judge", problems)?;
    let id = ModelId::new(name.as_str());
    match catalog.get(&id) {
        Some(model) if model.route() == Route::Remote => Some(id),
        Some(_) => {
            problems.add(span, &section.path("judge"), format!("model `{name}` is local"), "name a remote model");
            None
        }
        None => {
            let known = suggest(&name, catalog.models().map(|model| model.id.as_str()));
            problems.add(span, &section.path("judge"), format!("model `{name}` is not in the catalog"), known);
            None
        }
    }
}

/// Reads `[learn]`; `None` where there is none, it is turned off, or it has problems.
pub fn read_learn(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Learn> {
    let mut section = root.section("learn", problems)?;
    let enabled = section.flag("enabled", problems).unwrap_or(true);
    let usual = Learn::default();
    let first = match section.count("first", problems) {
        Some(first) if first < FEWEST_OUTCOMES => {
            let message = format!("a scorer that is fitted on half of {first} outcomes knows nothing");
            let suggestion = format!("use {FEWEST_OUTCOMES} or more");
            problems.add(section.span_of("first"), &section.path("first"), message, suggestion);
            None
        }
        Some(first) => Some(first),
        None => Some(usual.first),
    };
    let every = read_duration(&mut section, "every", problems).unwrap_or(usual.every);
    section.finish(problems);
    enabled.then_some(Learn { first: first?, every })
}

/// Reads `[flywheel]`: what a candidate has to show. There is nothing to show it by without shadow runs.
pub fn read_promotion(root: &mut Section<'_, '_>, shadows: bool, problems: &mut Problems<'_>) -> Option<Promotion> {
    let mut section = root.section("flywheel", problems)?;
    let usual = Promotion::default();
    let promotion = Promotion {
        graded: section.count("graded", problems).unwrap_or(usual.graded).max(1),
        confidence: section.number_in("confidence", 0.5..=0.9999, problems).unwrap_or(usual.confidence),
        margin: section.number_in("margin", 0.0..=0.5, problems).unwrap_or(usual.margin),
        max_slower: section.number_in("max_slower", 0.1..=1000.0, problems).unwrap_or(usual.max_slower),
    };
    if !shadows {
        let message = "a candidate is judged by shadow runs, and the policy makes none";
        problems.add(section.span(), "flywheel", message, "add [shadow]");
    }
    section.finish(problems);
    Some(promotion)
}

/// Reads `[on_breach]`.
pub fn read_on_breach(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> OnBreach {
    let Some(mut section) = root.section("on_breach", problems) else { return OnBreach::default() };
    let mut action = |key: &'static str| {
        let word = section.word(key, &BreachAction::WORDS, problems);
        word.and_then(BreachAction::parse).unwrap_or_default()
    };
    let (quality, drift) = (action("quality"), action("drift"));
    let step = section.number_in("step", 0.001..=1.0, problems).unwrap_or(TIGHTEN_STEP);
    if section.has("step") && ![quality, drift].contains(&BreachAction::Tighten) {
        let message = "a step is given, but nothing tightens";
        problems.add(section.span_of("step"), &section.path("step"), message, "leave it out, or use `tighten`");
    }
    section.finish(problems);
    OnBreach { quality, drift, step }
}
