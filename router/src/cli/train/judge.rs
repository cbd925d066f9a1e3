//! `sluice train judge`: fits a judge of finished drafts, and solves the thresholds that drafts must reach under policies.
//!
//! Prompts are dealt to the same parts as for the scorer, by cluster: the judge learns on what calibrated the scorer and is
//! certified on what neither has seen. Policies that ask somebody else about drafts get a judge that learnt from such opinions:
//! in the certificate each draft has its opinion, and in the gateway only those drafts are asked about whose verdict hangs on it.

use super::{read, today};
use crate::catalog::Catalog;
use crate::domain::ModelId;
use crate::evidence::bound::{Evidence, Promise};
use crate::evidence::calibration::{ECE_BINS, Scored, auc, reliability};
use crate::judge::{
    FIRST_LOOK, Judge, JudgeFile, Judged, RecordedDraft, Verdict, features, fit, parse_drafts, prefix_features,
};
use crate::policy::{Objective, Policy, SAMPLE, Second};
use crate::score::PairScorer;
use crate::score::solve::{SolveFor, certify_version};
use crate::score::train::{Purpose, representatives};
use anyhow::Context as _;
use clap::Args;
use local_worker::scorer::Turn;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `train judge`.
#[derive(Debug, Args)]
pub struct JudgeArguments {
    /// A file of recorded drafts: JSON lines of outcomes, each with `draft`.
    #[arg(long, value_name = "FILE")]
    pub drafts: PathBuf,
    /// The small model whose drafts they are.
    #[arg(long, default_value = "sluice-nano")]
    pub small: String,
    /// The scorer of prompts; the bundled one if absent.
    #[arg(long, value_name = "FILE.scorer")]
    pub scorer: Option<PathBuf>,
    /// Policies whose judge this becomes; `NAME.judge.toml` goes beside each.
    #[arg(long, num_args = 1.., value_name = "POLICY.toml")]
    pub solve: Vec<PathBuf>,
    /// The catalog the policies name models of; `models.toml` beside the first policy if absent.
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
}

/// Runs `train judge`.
pub fn run(arguments: &JudgeArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let scorer = match &arguments.scorer {
        Some(file) => PairScorer::read(file)?,
        None => PairScorer::bundled()?.context("this build has no bundled scorer: name one with --scorer")?,
    };
    let name = arguments.drafts.display().to_string();
    let (rows, hash) = parse_drafts(&name, &read(&arguments.drafts)?)?;
    let rows: Vec<RecordedDraft> = rows.into_iter().filter(|row| row.outcome.small == arguments.small).collect();
    anyhow::ensure!(!rows.is_empty(), "{name}: no draft of {}; name the model with --small", arguments.small);
    let policies: Vec<(&Path, Policy)> = arguments
        .solve
        .iter()
        .map(|file| Ok((file.as_path(), policy_of(file, arguments)?)))
        .collect::<anyhow::Result<_>>()?;
    // A policy that asks nobody else needs a judge that never heard of anybody else, and the other way round.
    let mut kinds: Vec<Option<Second>> = policies.iter().map(|(_, policy)| policy.second.clone()).collect();
    if kinds.is_empty() {
        kinds.extend([None, asked(&rows)]);
    }
    let mut done: Vec<Option<Second>> = Vec::new();
    for second in kinds {
        if done.contains(&second) {
            continue;
        }
        let rows = heard(rows.clone(), second.as_ref(), &name)?;
        let fitted = fitted(&arguments.small, &rows, second.as_ref(), &scorer, out)?;
        for (file, policy) in policies.iter().filter(|(_, policy)| policy.second == second) {
            solve(file, policy, arguments, &fitted, &hash, out)?;
        }
        done.push(second);
    }
    Ok(ExitCode::SUCCESS)
}

/// Who was asked about the drafts besides the model that wrote them.
fn asked(rows: &[RecordedDraft]) -> Option<Second> {
    let by = rows.iter().find(|row| row.agrees.is_some()).map(|row| row.second.as_str())?;
    Some(if by == SAMPLE || by.is_empty() { Second::Sample } else { Second::Model(ModelId::new(by)) })
}

/// The drafts as a policy sees them that asks `second`: others' opinions are left out, and a missing one is no evidence.
///
/// # Errors
/// Nobody, or somebody else, was asked about the drafts.
fn heard(mut rows: Vec<RecordedDraft>, second: Option<&Second>, file: &str) -> anyhow::Result<Vec<RecordedDraft>> {
    let Some(second) = second else {
        rows.iter_mut().for_each(|row| row.agrees = None);
        return Ok(rows);
    };
    let is_by = |row: &RecordedDraft| row.second.is_empty() || row.second == second.as_str();
    let missing = rows.iter().filter(|row| !row.declined && (row.agrees.is_none() || !is_by(row))).count();
    anyhow::ensure!(
        missing == 0,
        "{file}: {missing} drafts have no second opinion of `{0}`, which `escalate.second` asks; record them with `sluice eval model --drafts FILE --second {0}`",
        second.as_str()
    );
    Ok(rows)
}

/// A judge with what it is certified on.
struct Fitted<'a> {
    judge: Judge,
    scorer: &'a PairScorer,
    certify: Vec<&'a RecordedDraft>,
}

/// Fits a judge of drafts about which `second` was asked, and tells how good it is.
fn fitted<'a>(
    small: &str,
    rows: &'a [RecordedDraft],
    second: Option<&Second>,
    scorer: &'a PairScorer,
    out: &mut dyn Write,
) -> anyhow::Result<Fitted<'a>> {
    let part = |purpose: Purpose| -> Vec<&'a RecordedDraft> {
        rows.iter().filter(|row| Purpose::of(&row.outcome.cluster) == purpose).collect()
    };
    let learnt: Vec<Judged> = part(Purpose::Calibrate)
        .into_iter()
        .filter(|row| !row.declined)
        .map(|row| judged(row, scorer))
        .collect::<anyhow::Result<_>>()?;
    let (judge, held_out) = fit(small, &learnt)?;
    let with = second.map_or_else(String::new, |second| format!(" and second opinions of {}", second.as_str()));
    writeln!(
        out,
        "judge {} of {small}: fitted on {} drafts{with}, AUC {held_out:.3} on held-out folds of them",
        judge.version(),
        learnt.len()
    )?;
    let fitted = Fitted { judge, scorer, certify: part(Purpose::Certify) };
    compare(&fitted, out)?;
    Ok(fitted)
}

fn policy_of(file: &Path, arguments: &JudgeArguments) -> anyhow::Result<Policy> {
    let catalog = arguments.catalog.clone().unwrap_or_else(|| file.with_file_name("models.toml"));
    let listed = |problems: Vec<crate::toml_file::Problem>| {
        anyhow::anyhow!(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    };
    let catalog = Catalog::parse(&catalog.display().to_string(), &read(&catalog)?).map_err(listed)?;
    Policy::parse(&file.display().to_string(), &read(file)?, &catalog).map_err(listed)
}

fn prompt_score(row: &RecordedDraft, scorer: &PairScorer) -> anyhow::Result<f64> {
    Ok(scorer.score_turns(&[Turn::user(&row.outcome.prompt)])?.get())
}

fn judged(row: &RecordedDraft, scorer: &PairScorer) -> anyhow::Result<Judged> {
    let draft = row.draft(Some(prompt_score(row, scorer)?));
    Ok(Judged {
        features: features(&draft),
        prefix: (draft.tokens.len() >= FIRST_LOOK).then(|| prefix_features(&draft)),
        suffices: row.outcome.small_suffices(),
        cluster: row.outcome.cluster.clone(),
    })
}

/// What the gateway would make of a recorded draft: 0 where nobody is asked, because the model declined or was stopped.
fn verdict(judge: &Judge, scorer: &PairScorer, row: &RecordedDraft, draft_above: f64) -> anyhow::Result<f64> {
    let score = prompt_score(row, scorer)?;
    let draft = row.draft(Some(score));
    let out = row.declined || score < draft_above || judge.hopeless(&draft);
    Ok(if out { 0.0 } else { judge.judge(&draft).get() })
}

/// Of how many drafts the verdict hangs on a second opinion: nobody is asked about the others.
fn needed(fitted: &Fitted<'_>, threshold: f64) -> anyhow::Result<String> {
    let (mut drafts, mut undecided) = (0_i32, 0_usize);
    for row in fitted.certify.iter().filter(|row| !row.declined) {
        let draft = row.draft(Some(prompt_score(row, fitted.scorer)?));
        drafts += 1;
        undecided += usize::from(fitted.judge.verdict(&draft, threshold) == Verdict::Undecided);
    }
    let share = 100.0 * undecided as f64 / f64::from(drafts.max(1));
    Ok(format!("asked about {share:.1} % of drafts like the evidence; the others are decided without"))
}

/// The judge beside the prompt's score on drafts that neither has seen.
fn compare(fitted: &Fitted<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    let Fitted { judge, scorer, certify: rows } = fitted;
    let (mut judged, mut prompted, mut stopped) = (Vec::new(), Vec::new(), 0);
    for row in rows.iter().filter(|row| !row.declined) {
        let suffices = row.outcome.small_suffices();
        judged.push(Scored { score: verdict(judge, scorer, row, 0.0)?, suffices });
        prompted.push(Scored { score: prompt_score(row, scorer)?, suffices });
        stopped += usize::from(judge.hopeless(&row.draft(None)));
    }
    let area = |rows: &[Scored]| auc(rows).map_or("–".to_owned(), |auc| format!("{auc:.3}"));
    writeln!(
        out,
        "on {} drafts of other prompts: AUC {} against {} of the prompt's score alone; calibration error {:.3} (debiased, {ECE_BINS} bins); {stopped} stopped after {FIRST_LOOK} tokens",
        judged.len(),
        area(&judged),
        area(&prompted),
        reliability(&judged, ECE_BINS).ece_debiased,
    )?;
    Ok(())
}

fn solve(
    file: &Path,
    policy: &Policy,
    arguments: &JudgeArguments,
    fitted: &Fitted<'_>,
    hash: &str,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let Fitted { judge, scorer, certify: rows } = fitted;
    let Objective::MinCost { quality_target: target, confidence } = policy.objective else {
        anyhow::bail!(
            "{}: only `min-cost` has a quality target to solve for; `sluice replay --solve` solves `max-quality`",
            file.display()
        );
    };
    let outcomes: Vec<&crate::evidence::outcome::Outcome> = rows.iter().map(|row| &row.outcome).collect();
    let chosen = representatives(&outcomes);
    let mut evidence: Vec<Evidence> = Vec::with_capacity(chosen.len());
    for outcome in chosen {
        let Some(row) = rows.iter().find(|row| std::ptr::eq(&row.outcome, outcome)) else { continue };
        let score = verdict(judge, scorer, row, policy.draft_above)?;
        evidence.push(Evidence { score, small: outcome.small_quality, large: outcome.large_quality, weight: 1.0 });
    }
    let solve_for = SolveFor {
        policy: policy.reference.name.clone(),
        policy_hash: policy.reference.hash.clone(),
        promise: Promise { target, confidence },
        evidence_hash: hash.to_owned(),
        date: today()?,
    };
    let certificate = certify_version(judge.version(), (&arguments.small, "*"), &evidence, &solve_for)?;
    let said = match certificate.threshold {
        Some(threshold) => format!(
            "drafts judged {threshold} or better are shown, about {:.1} % of requests like the evidence",
            100.0 * certificate.local_share
        ),
        None => "not enough evidence: every draft would be turned down, so none is made".to_owned(),
    };
    let certificate_threshold = certificate.threshold;
    let to = file.with_extension("judge.toml");
    let text = JudgeFile { judge: judge.clone(), certificate }.to_toml()?;
    std::fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
    if let (Some(threshold), Some(second)) = (certificate_threshold, &policy.second) {
        writeln!(out, "{}: {}", second.as_str(), needed(fitted, threshold)?)?;
    }
    writeln!(
        out,
        "{}: {:.0} % of quality at {:.0} % confidence: {said}; in {}",
        solve_for.policy,
        target * 100.0,
        confidence * 100.0,
        to.display()
    )?;
    Ok(())
}
