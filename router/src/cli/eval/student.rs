//! `sluice eval student`: the linear scorer with a teacher and without, fitted on the same rows of one folder and measured on
//! another.

use super::routing::{Given, decision_us, micros, rows};
use crate::cli::table::{self, Align};
use crate::score::report::{Latency, measure_latency};
use crate::score::routing::{ARMS, Arm, Gain, Students, students};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `eval student`.
#[derive(Clone, Debug, Args)]
pub struct StudentArguments {
    /// Folder of outcomes to fit on, as of `sluice eval routing`.
    #[arg(long, value_name = "DIR")]
    pub train: PathBuf,
    /// Folder of outcomes to measure on, as of `sluice eval routing`.
    #[arg(long, value_name = "DIR")]
    pub test: PathBuf,
    /// How much what the teacher says counts beside the grades, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = SOFT)]
    pub soft: f32,
    /// The first of three seeds of fits; also that of intervals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How much a teacher counts where nothing is said; not tuned.
pub const SOFT: f32 = 0.5;

/// Refuses what is no share.
///
/// # Errors
/// It is outside 0 to 1.
pub fn check_soft(soft: f32) -> anyhow::Result<()> {
    anyhow::ensure!((0.0..=1.0).contains(&soft), "--soft must be from 0 to 1, not {soft}");
    Ok(())
}

/// Runs `eval student`.
pub fn run(arguments: &StudentArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    check_soft(arguments.soft)?;
    let Given { train, test, mut notes } = rows(&arguments.train, &arguments.test)?;
    let found = students(&train, &test, arguments.seed, arguments.soft)?;
    notes.extend(found.notes.clone());
    let prompts = || test.iter().map(|row| row.prompt.as_str());
    let latencies = match &found.timed {
        Some((student, teacher)) => [measure_latency(student, prompts())?, measure_latency(teacher, prompts())?],
        None => [Vec::new(), Vec::new()],
    };
    if arguments.json {
        writeln!(out, "{}", as_json(&found, &latencies, &notes))?;
    } else {
        told(&found, &latencies, &notes, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn arms_json(arms: &[Arm; ARMS.len()]) -> Value {
    let arm = |(name, arm): (&&str, &Arm)| ((*name).to_owned(), json!({ "apgr": arm.apgr, "auc": arm.auc }));
    Value::Object(ARMS.iter().zip(arms).map(arm).collect())
}

fn as_json(found: &Students, latencies: &[Vec<Latency>; 2], notes: &[String]) -> Value {
    let pairs: Vec<Value> = found
        .pairs
        .iter()
        .map(|pair| {
            json!({
                "source": pair.source, "weak_model": pair.pair.small, "strong_model": pair.pair.large, "n": pair.n,
                "fitted_on": pair.fitted_on, "more_prompts": pair.more_prompts, "gap_differs_from_0": pair.differs,
                "arms": arms_json(&pair.arms),
            })
        })
        .collect();
    let gain = |(name, gain): (&&str, &Gain)| {
        let told = json!({
            "apgr": gain.apgr, "apgr_ci": [gain.apgr_ci.0, gain.apgr_ci.1], "apgr_by_seed": gain.apgr_by_seed,
            "auc": gain.auc, "auc_ci": [gain.auc_ci.0, gain.auc_ci.1], "auc_by_seed": gain.auc_by_seed,
        });
        ((*name).to_owned(), told)
    };
    let gains: Map<String, Value> = ARMS.iter().skip(1).zip(&found.gains).map(gain).collect();
    let [student, teacher] = latencies;
    json!({
        "pairs": pairs, "mean": arms_json(&found.means), "gain_over_grades_alone": gains,
        "decision_us": { "student": decision_us(student), "teacher": decision_us(teacher) }, "notes": notes,
    })
}

fn told(
    found: &Students,
    [student, teacher]: &[Vec<Latency>; 2],
    notes: &[String],
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"));
    let mut header = vec![("source, small model", Align::Left), ("n", Align::Right), ("fitted on", Align::Right)];
    header.extend(ARMS.iter().map(|arm| (*arm, Align::Right)));
    let rows: Vec<Vec<String>> = found
        .pairs
        .iter()
        .map(|pair| {
            let mut row =
                vec![format!("{} {}", pair.source, pair.pair.small), pair.n.to_string(), pair.fitted_on.to_string()];
            row.extend(pair.arms.iter().map(|arm| format!("{} / {}", number(arm.apgr), number(arm.auc))));
            row
        })
        .collect();
    table::print(out, &header, &rows)?;
    writeln!(
        out,
        "\neach APGR / AUC, means over 3 seeds; means over pairs, and differences to grades alone with 95 % intervals:"
    )?;
    for (place, (name, arm)) in ARMS.iter().zip(&found.means).enumerate() {
        write!(out, "{name}: APGR {}, AUC {}", number(arm.apgr), number(arm.auc))?;
        if let Some(gain) = place.checked_sub(1).and_then(|place| found.gains.get(place)) {
            let interval = |value: f64, (low, high): (f64, f64)| format!("{value:+.4} ({low:+.4} to {high:+.4})");
            let (apgr, auc) = (interval(gain.apgr, gain.apgr_ci), interval(gain.auc, gain.auc_ci));
            write!(out, "; {apgr} and {auc}")?;
        }
        writeln!(out)?;
    }
    for (student, teacher) in student.iter().zip(teacher) {
        let ((p50, p99), (teacher_p50, teacher_p99)) = (micros(student), micros(teacher));
        writeln!(
            out,
            "decision at {} tokens: student {p50:.1} µs (p50), {p99:.1} µs (p99); teacher {teacher_p50:.1}, {teacher_p99:.1}",
            student.tokens
        )?;
    }
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}
