//! Reads `[escalate]`: what becomes of drafts.

use crate::catalog::Catalog;
use crate::domain::{ModelId, Route};
use crate::policy::{SAMPLE, Second, StreamWins};
use crate::toml_file::{Problems, Section, suggest};

/// What the table says.
pub struct Escalation {
    pub enabled: bool,
    pub draft_above: f64,
    pub stream_wins: StreamWins,
    pub second: Option<Second>,
}

/// Reads the table; what holds without it if it is absent.
pub fn read(
    root: &mut Section<'_, '_>,
    small: &[ModelId],
    catalog: &Catalog,
    problems: &mut Problems<'_>,
) -> Escalation {
    let Some(mut section) = root.section("escalate", problems) else {
        return Escalation { enabled: true, draft_above: 0.0, stream_wins: StreamWins::default(), second: None };
    };
    let enabled = section.flag("enabled", problems).unwrap_or(true);
    let draft_above = section.number_in("draft_above", 0.0..=1.0, problems).unwrap_or(0.0);
    let stream_wins = match section.word("stream", &["safety", "first-byte"], problems) {
        Some("first-byte") => StreamWins::FirstByte,
        _ => StreamWins::Safety,
    };
    let second = read_second(&mut section, small, catalog, problems);
    if second.is_some() && !enabled {
        let message = "nobody can be asked about drafts: none is judged with `enabled = false`";
        problems.add(section.span_of("second"), &section.path("second"), message, "leave it out");
    }
    section.finish(problems);
    Escalation { enabled, draft_above, stream_wins, second }
}

fn read_second(
    section: &mut Section<'_, '_>,
    small: &[ModelId],
    catalog: &Catalog,
    problems: &mut Problems<'_>,
) -> Option<Second> {
    let (name, span) = section.text("second", problems)?;
    let path = section.path("second");
    if name == SAMPLE {
        return Some(Second::Sample);
    }
    let id = ModelId::new(name.as_str());
    match catalog.get(&id) {
        None => {
            let known = suggest(&name, catalog.models().map(|model| model.id.as_str()).chain([SAMPLE]));
            problems.add(span, &path, format!("model `{name}` is not in the catalog"), known);
            None
        }
        Some(model) if model.route() == Route::Remote => {
            let message = format!("model `{name}` is remote: asking it costs what escalating does");
            problems.add(span, &path, message, "name a local model, or `sample`");
            None
        }
        Some(_) if matches!(small, [only] if *only == id) => {
            let message = format!("model `{name}` is the one that drafts and would agree with itself");
            problems.add(span, &path, message, "name another small model, or `sample`");
            None
        }
        Some(_) => Some(Second::Model(id)),
    }
}
