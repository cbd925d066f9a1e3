//! The `[objective]` of a policy file: what it is after, and its ceilings on latency.

use super::read_duration;
use crate::domain::NanoUsd;
use crate::policy::{CostCeiling, LatencyCeilings, Objective, WhenLate};
use crate::toml_file::{Problems, Section, suggest};
use std::time::Duration;

const GOALS: [&str; 3] = ["min-cost", "max-quality", "fixed-threshold"];
/// Length of a window of a cost ceiling, where nothing is said, and the shortest.
const WINDOWS: (Duration, Duration) = (Duration::from_secs(86_400), Duration::from_secs(60));

/// Reads the goal and the ceilings.
pub fn read(root: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> (Option<Objective>, LatencyCeilings) {
    let Some(mut section) = root.section("objective", problems) else {
        root.missing("objective", "say what the policy is after: goal = \"min-cost\"", problems);
        return (None, LatencyCeilings::default());
    };
    let objective = read_goal(&mut section, problems);
    let latency = read_latency(&mut section, problems);
    section.finish(problems);
    (objective, latency)
}

fn read_goal(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<Objective> {
    let Some((goal, span)) = section.text("goal", problems) else {
        section.missing("goal", "use `min-cost`, `max-quality` or `fixed-threshold`", problems);
        return None;
    };
    match goal.as_str() {
        "min-cost" => {
            let quality_target = section.number_in("quality_target", 0.0..=1.0, problems);
            let confidence = section.number_in("confidence", 0.5..=0.9999, problems);
            for key in ["quality_target", "confidence"] {
                section.missing(key, "`min-cost` needs it", problems);
            }
            quality_target
                .zip(confidence)
                .map(|(quality_target, confidence)| Objective::MinCost { quality_target, confidence })
        }
        "fixed-threshold" => {
            let threshold = section.number_in("threshold", 0.0..=1.0, problems);
            section.missing("threshold", "`fixed-threshold` needs one", problems);
            threshold.map(Objective::FixedThreshold)
        }
        "max-quality" => {
            let per_1000 = read_max_cost(section, problems);
            section.missing("max_cost", "`max-quality` needs it: max_cost = \"0.40 USD / 1k requests\"", problems);
            let confidence = section.number_in("confidence", 0.5..=0.9999, problems).unwrap_or(0.95);
            let window = read_window(section, problems);
            per_1000.map(|per_1000| Objective::MaxQuality(CostCeiling { per_1000, confidence, window }))
        }
        other => {
            let suggestion = suggest(other, GOALS.into_iter());
            problems.add(span, &section.path("goal"), format!("`{other}` is no goal"), suggestion);
            None
        }
    }
}

/// `0.40 USD / 1k requests`; `/ 1000 requests` says the same.
fn read_max_cost(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<NanoUsd> {
    let (text, span) = section.text("max_cost", problems)?;
    let amount = text.split_once('/').and_then(|(amount, per)| {
        let per: String = per.split_whitespace().collect::<Vec<_>>().join(" ");
        let thousand = ["1k requests", "1000 requests", "1,000 requests"].contains(&per.as_str());
        let usd = amount.trim().strip_suffix("USD")?.trim_end();
        NanoUsd::from_decimal_usd(usd).ok().filter(|amount| thousand && amount.nanos() > 0)
    });
    if amount.is_none() {
        let message = format!("`{text}` is no ceiling on cost");
        problems.add(span, &section.path("max_cost"), message, "write it like \"0.40 USD / 1k requests\"");
    }
    amount
}

fn read_window(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Duration {
    let window = read_duration(section, "window", problems).unwrap_or(WINDOWS.0);
    if window < WINDOWS.1 {
        let message = "is shorter than a minute";
        let suggestion = "worst cases are held: a window has to earn some";
        problems.add(section.span_of("window"), &section.path("window"), message, suggestion);
    }
    window
}

fn read_latency(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> LatencyCeilings {
    let total = read_duration(section, "max_latency", problems);
    let first_byte = read_duration(section, "max_first_byte", problems);
    let word = section.word("when_late", &["quality", "fastest", "refuse"], problems);
    if section.has("when_late") && !section.has("max_latency") && !section.has("max_first_byte") {
        let message = "nothing is ever late without a ceiling";
        problems.add(
            section.span_of("when_late"),
            &section.path("when_late"),
            message,
            "add max_latency or max_first_byte",
        );
    }
    if let (Some(total), Some(first_byte)) = (total, first_byte)
        && first_byte > total
    {
        let message = "the first byte may come later than the end of the answer";
        problems.add(section.span_of("max_first_byte"), &section.path("max_first_byte"), message, "");
    }
    let when_late = match word {
        Some("fastest") => WhenLate::Fastest,
        Some("refuse") => WhenLate::Refuse,
        _ => WhenLate::Quality,
    };
    LatencyCeilings { total, first_byte, when_late }
}
