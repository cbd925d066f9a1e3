//! `sluice eval cascade`: what looking at drafts is worth, on recorded answers of several small models or on recorded drafts.

use crate::cli::table::{self, Align};
use crate::evidence::grading::agree;
use crate::evidence::outcome::{Outcome, Outcomes};
use crate::judge::{RecordedDraft, TokenFacts, parse_drafts};
use crate::lab::cascade::{
    Cascade, Case, Measured, OF_ANSWERS, OF_DRAFTS, OF_SECONDS, PairFigures, Rule, WithInterval, cascade,
};
use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `eval cascade`.
#[derive(Clone, Debug, Args)]
pub struct CascadeArguments {
    /// Files of recorded outcomes, of several small models on the same prompts.
    #[arg(long, num_args = 1.., value_name = "FILE", requires = "answers", required_unless_present = "drafts")]
    pub outcomes: Vec<PathBuf>,
    /// The answers that those outcomes grade: one JSON object of row ids and texts, gzipped or not. A row about which another
    /// small model's answer to the same prompt is known has a second opinion.
    #[arg(long, value_name = "FILE", requires = "outcomes")]
    pub answers: Option<PathBuf>,
    /// Files of recorded drafts with token probabilities, as `sluice eval model --drafts` writes them.
    #[arg(long, num_args = 1.., value_name = "FILE", conflicts_with = "outcomes")]
    pub drafts: Vec<PathBuf>,
    /// Decides the random numbers of fits and intervals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs `eval cascade`.
pub fn run(arguments: &CascadeArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let (cases, rules, mut notes) = match &arguments.answers {
        Some(answers) => of_answers(&arguments.outcomes, answers)?,
        None => of_drafts(&arguments.drafts)?,
    };
    let found = cascade(&cases, &rules, arguments.seed).map_err(anyhow::Error::msg)?;
    notes.extend(found.notes.clone());
    if arguments.json {
        writeln!(out, "{}", as_json(&found, &notes))?;
    } else {
        told(&found, &notes, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

type Input = (Vec<Case>, Vec<Rule>, Vec<String>);

fn of_answers(files: &[PathBuf], answers: &Path) -> anyhow::Result<Input> {
    let Outcomes { rows, mut notes, .. } = Outcomes::read(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let known = read_answers(answers)?;
    let all = rows.len();
    let rows: Vec<Outcome> = rows.into_iter().filter(|row| known.contains_key(&row.id)).collect();
    anyhow::ensure!(!rows.is_empty(), "{} answers none of the outcomes: its keys must be their ids", answers.display());
    if rows.len() < all {
        notes.push(format!("{} of {all} outcomes have no answer and were left out", all - rows.len()));
    }
    let mut asked: BTreeMap<(&str, &str), Vec<&Outcome>> = BTreeMap::new();
    for row in &rows {
        asked.entry((&row.source, &row.prompt)).or_default().push(row);
    }
    let case = |row: &Outcome| {
        let text = known.get(&row.id).cloned().unwrap_or_default();
        let of = |other: &&Outcome| {
            let said = known.get(&other.id)?;
            Some((other.small.clone(), f64::from(u8::from(agree(&text, said)))))
        };
        let same = asked.get(&(row.source.as_str(), row.prompt.as_str())).into_iter().flatten();
        let others = same.filter(|other| other.small != row.small).filter_map(of).collect();
        // Nobody recorded how sure the model was: a draft's tokens only tell its length.
        let unknown = TokenFacts { logprob: f64::NAN, margin: None, entropy: None };
        let tokens = vec![unknown; row.recorded.small_tokens.unwrap_or(0) as usize];
        Case { outcome: row.clone(), text, tokens, cut: false, others }
    };
    let cases: Vec<Case> = rows.iter().map(case).collect();
    anyhow::ensure!(
        cases.iter().any(|case| !case.others.is_empty()),
        "no prompt was answered by two small models, so nothing can agree: add the outcomes of another"
    );
    Ok((cases, OF_ANSWERS.to_vec(), notes))
}

fn read_answers(file: &Path) -> anyhow::Result<HashMap<String, String>> {
    let cannot = || format!("cannot read {}", file.display());
    let bytes = std::fs::read(file).with_context(cannot)?;
    let mut text = Vec::new();
    match bytes.starts_with(&[0x1f, 0x8b]) {
        true => flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut text).with_context(cannot)?,
        false => bytes.as_slice().read_to_end(&mut text)?,
    };
    let wrong = || format!("{}: should be one JSON object of row ids and answers, texts or null", file.display());
    let answers: HashMap<String, Option<String>> = serde_json::from_slice(&text).with_context(wrong)?;
    // Who gave no answer agrees with nobody.
    Ok(answers.into_iter().map(|(id, answer)| (id, answer.unwrap_or_default())).collect())
}

fn of_drafts(files: &[PathBuf]) -> anyhow::Result<Input> {
    let mut cases = Vec::new();
    let mut declined = 0;
    for file in files {
        let (rows, _) = parse_drafts(&file.display().to_string(), &super::read(file)?)?;
        for row in rows {
            // Who declines is asked no further under any rule.
            if row.declined {
                declined += 1;
                continue;
            }
            let RecordedDraft { outcome, text, tokens, cut, agrees, second, .. } = row;
            let others = agrees.map(|agrees| (second, agrees)).into_iter().collect();
            // Tasks have sources of their own; a model is judged over all of them.
            let outcome = Outcome { source: "drafts".to_owned(), ..outcome };
            cases.push(Case { outcome, text, tokens, cut, others });
        }
    }
    let mut rules = OF_DRAFTS.to_vec();
    if cases.iter().any(|case: &Case| !case.others.is_empty()) {
        rules.extend(OF_SECONDS);
    }
    let note = format!("{declined} drafts were declined, which escalate under every rule, and are left out");
    Ok((cases, rules, if declined > 0 { vec![note] } else { Vec::new() }))
}

fn interval_json((value, interval): WithInterval) -> (Value, Value) {
    (json!(value), interval.map_or(Value::Null, |(low, high)| json!([low, high])))
}

fn measured_json(measured: &Measured) -> Value {
    let rules: Map<String, Value> = measured
        .rules
        .iter()
        .map(|figures| {
            let ((apgr, apgr_ci), (gain, gain_ci)) = (interval_json(figures.apgr), interval_json(figures.gain));
            let told = json!({
                "apgr": apgr, "apgr_ci": apgr_ci, "gain_over_prompt": gain, "gain_ci": gain_ci, "auc": figures.auc,
                "cpt50": figures.cpt50, "cpt80": figures.cpt80, "small_models_asked": figures.asked,
                "second_needed_at_cpt80": figures.undecided,
            });
            (figures.rule.name.to_owned(), told)
        })
        .collect();
    json!({ "n": measured.n, "rules": rules })
}

fn pair_json(pair: &PairFigures) -> Value {
    let others: Vec<Value> = pair
        .others
        .iter()
        .map(|other| json!({ "model": other.name, "quality": other.quality, "agreement_apgr": other.apgr }))
        .collect();
    let second: Vec<Value> =
        pair.second.iter().map(|(model, folds)| json!({ "model": model, "folds": folds })).collect();
    json!({
        "source": pair.source, "weak_model": pair.pair.small, "strong_model": pair.pair.large,
        "weak_quality": pair.qualities.0, "strong_quality": pair.qualities.1,
        "second": second, "others": others,
        "folds": measured_json(&pair.folds), "apart": pair.apart.as_ref().map(measured_json),
    })
}

fn as_json(found: &Cascade, notes: &[String]) -> Value {
    let mean: Map<String, Value> = found
        .mean
        .iter()
        .map(|(rule, apgr, gain)| {
            let ((apgr, apgr_ci), (gain, gain_ci)) = (interval_json(*apgr), interval_json(*gain));
            let told = json!({ "apgr": apgr, "apgr_ci": apgr_ci, "gain_over_prompt": gain, "gain_ci": gain_ci });
            (rule.name.to_owned(), told)
        })
        .collect();
    let rules: Map<String, Value> =
        found.mean.iter().map(|(rule, ..)| (rule.name.to_owned(), rule.what.into())).collect();
    json!({
        "pairs": found.pairs.iter().map(pair_json).collect::<Vec<_>>(), "mean": mean, "rules": rules, "notes": notes,
    })
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

fn between(interval: Option<(f64, f64)>) -> String {
    interval.map_or_else(String::new, |(low, high)| format!("{low:.3}–{high:.3}"))
}

fn told(found: &Cascade, notes: &[String], out: &mut dyn Write) -> anyhow::Result<()> {
    for pair in &found.pairs {
        let (small, large) = pair.qualities;
        writeln!(out, "{} {} ({small:.3}) and {} ({large:.3})", pair.source, pair.pair.small, pair.pair.large)?;
        let sets = [("folds", Some(&pair.folds)), ("apart", pair.apart.as_ref())];
        let rows: Vec<Vec<String>> = sets
            .into_iter()
            .flat_map(|(name, set)| set.into_iter().map(move |set| (name, set)))
            .flat_map(|(name, set)| set.rules.iter().map(move |figures| (name, set.n, figures)))
            .map(|(name, n, figures)| {
                let gain = figures.gain.1.map_or_else(String::new, |(low, high)| format!("{low:+.3} to {high:+.3}"));
                vec![
                    format!("{name}, n = {n}"),
                    figures.rule.name.to_owned(),
                    number(figures.apgr.0),
                    between(figures.apgr.1),
                    gain,
                    number(figures.auc),
                    number(figures.cpt50),
                    number(figures.cpt80),
                    figures.asked.to_string(),
                    number(figures.undecided),
                ]
            })
            .collect();
        let right = ["APGR", "95 %", "gain on prompt", "AUC", "CPT50", "CPT80", "drafts", "second at CPT80"];
        let header: Vec<(&str, Align)> = [("rows", Align::Left), ("order by", Align::Left)]
            .into_iter()
            .chain(right.map(|name| (name, Align::Right)))
            .collect();
        table::print(out, &header, &rows)?;
        let others: Vec<String> = pair
            .others
            .iter()
            .map(|other| format!("{} (own quality {}) {}", other.name, number(other.quality), number(other.apgr)))
            .collect();
        if !others.is_empty() {
            let chosen: Vec<String> = pair.second.iter().map(|(name, folds)| format!("{name} in {folds}")).collect();
            writeln!(
                out,
                "second model, by folds: {}; APGR of each one's agreement: {}",
                chosen.join(", "),
                others.join(", ")
            )?;
        }
        writeln!(out)?;
    }
    if found.pairs.len() > 1 {
        writeln!(out, "means over {} pairs, by cross-validation", found.pairs.len())?;
        let row = |(rule, apgr, gain): &(Rule, WithInterval, WithInterval)| {
            let gain = gain.1.map_or_else(String::new, |(low, high)| format!("{low:+.3} to {high:+.3}"));
            vec![rule.name.to_owned(), rule.what.to_owned(), number(apgr.0), between(apgr.1), gain]
        };
        let header = [
            ("order by", Align::Left),
            ("what", Align::Left),
            ("APGR", Align::Right),
            ("95 %", Align::Right),
            ("gain on prompt", Align::Right),
        ];
        table::print(out, &header, &found.mean.iter().map(row).collect::<Vec<_>>())?;
    }
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}
