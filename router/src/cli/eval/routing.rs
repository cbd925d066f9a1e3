//! `sluice eval routing`: scorers fitted on one folder of recorded outcomes, measured on another.

use crate::cli::table::{self, Align};
use crate::evidence::outcome::{Outcome, Outcomes};
use crate::score::report::{Latency, measure_latency};
use crate::score::routing::{BASELINES, Learnt, PairFigures, Routing, routing};
use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `eval routing`.
#[derive(Clone, Debug, Args)]
pub struct RoutingArguments {
    /// Folder of outcomes to fit on: `*.jsonl`, `*.jsonl.gz`.
    #[arg(long, value_name = "DIR")]
    pub train: PathBuf,
    /// Folder of outcomes to measure on. Prompts that are in it are not learnt. If it is the same folder, rows whose
    /// `split` is `train` are learnt and all others measured.
    #[arg(long, value_name = "DIR")]
    pub test: PathBuf,
    /// Also the learning curve: APGR after 100, 300, 1,000 and 3,000 of a pair's own outcomes.
    #[arg(long)]
    pub learning_curve: bool,
    /// Decides the random numbers of fits and intervals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs `eval routing`.
pub fn run(arguments: &RoutingArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let Given { train, test, mut notes } = rows(&arguments.train, &arguments.test)?;
    let found = routing(&train, &test, arguments.seed, arguments.learning_curve)?;
    notes.extend(found.notes.clone());
    let latencies = match &found.scorer {
        Some(scorer) => measure_latency(scorer, test.iter().map(|row| row.prompt.as_str()))?,
        None => Vec::new(),
    };
    if arguments.json {
        writeln!(out, "{}", as_json(&found, &latencies, &notes))?;
    } else {
        told(&found, &latencies, &notes, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Outcomes of two folders.
pub(super) struct Given {
    /// Rows to fit on.
    pub train: Vec<Outcome>,
    /// Rows to measure on.
    pub test: Vec<Outcome>,
    /// What is odd about the files.
    pub notes: Vec<String>,
}

/// Rows to fit on and to measure on.
pub(super) fn rows(train: &Path, test: &Path) -> anyhow::Result<Given> {
    let known = read(train)?;
    let same = train.canonicalize().ok().is_some_and(|folder| test.canonicalize().ok() == Some(folder));
    if !same {
        let tested = read(test)?;
        return Ok(Given { train: known.rows, test: tested.rows, notes: [known.notes, tested.notes].concat() });
    }
    let mut notes = known.notes;
    notes.push("one folder for both: rows of split `train` were learnt, all others measured".to_owned());
    let (learnt, measured): (Vec<Outcome>, Vec<Outcome>) = known.rows.into_iter().partition(|row| row.split == "train");
    anyhow::ensure!(
        !learnt.is_empty() && !measured.is_empty(),
        "{} is given for both --train and --test, and its rows have no `split` of which one is `train`",
        train.display()
    );
    Ok(Given { train: learnt, test: measured, notes })
}

fn read(folder: &Path) -> anyhow::Result<Outcomes> {
    let cannot = || format!("cannot read the folder {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let file = entry.with_context(cannot)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".jsonl") || name.ends_with(".jsonl.gz") {
            files.push(file);
        }
    }
    files.sort_unstable();
    anyhow::ensure!(!files.is_empty(), "{} holds no outcomes: no *.jsonl and no *.jsonl.gz", folder.display());
    Ok(Outcomes::read(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>())?)
}

fn named<T: Copy + Into<Value>>(values: &[T]) -> Map<String, Value> {
    BASELINES.iter().zip(values).map(|(name, value)| ((*name).to_owned(), (*value).into())).collect()
}

fn pair_json(figures: &PairFigures) -> Value {
    let shares: Map<String, Value> =
        figures.shares.iter().map(|(name, share)| ((*name).to_owned(), (*share).into())).collect();
    json!({
        "source": figures.source, "weak_model": figures.pair.small, "strong_model": figures.pair.large,
        "n": figures.n, "fitted_on": figures.fitted_on, "gap_differs_from_0": figures.differs,
        "apgr": figures.apgr, "apgr_ci": figures.apgr_ci.map(|(low, high)| [low, high]),
        "cpt50": figures.cpt50, "cpt80": figures.cpt80, "auc": figures.auc,
        "ece": figures.ece, "ece_perfect": [figures.ece_perfect.0, figures.ece_perfect.1],
        "baselines": named(&figures.baselines), "parts": shares,
    })
}

/// Half and 99 of 100 decisions take less, in microseconds.
pub fn micros(latency: &Latency) -> (f64, f64) {
    (latency.p50.as_nanos() as f64 / 1000.0, latency.p99.as_nanos() as f64 / 1000.0)
}

/// Times of decisions by tokens.
pub fn decision_us(latencies: &[Latency]) -> Map<String, Value> {
    let time = |latency: &Latency| {
        let (p50, p99) = micros(latency);
        (latency.tokens.to_string(), json!({ "p50": p50, "p99": p99 }))
    };
    latencies.iter().map(time).collect()
}

fn as_json(found: &Routing, latencies: &[Latency], notes: &[String]) -> Value {
    let mean = &found.mean;
    let curve = |point: &Learnt| {
        json!({
            "outcomes": point.outcomes, "pairs": point.pairs, "apgr": point.apgr, "apgr_with_all": point.apgr_with_all,
        })
    };
    json!({
        "pairs": found.pairs.iter().map(pair_json).collect::<Vec<_>>(),
        "mean": {
            "apgr": mean.apgr, "pairs": mean.pairs, "best_baseline": mean.best,
            "gain_over_best_baseline": mean.gain, "gain_ci": [mean.gain_ci.0, mean.gain_ci.1],
            "baselines": named(&mean.baselines),
        },
        "decision_us": decision_us(latencies),
        "learning_curve": found.curve.iter().map(curve).collect::<Vec<_>>(),
        "notes": notes,
    })
}

fn told(found: &Routing, latencies: &[Latency], notes: &[String], out: &mut dyn Write) -> anyhow::Result<()> {
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
    let rows: Vec<Vec<String>> = found
        .pairs
        .iter()
        .map(|pair| {
            let mut row = vec![format!("{} {}", pair.source, pair.pair.small), pair.n.to_string(), number(pair.apgr)];
            row.push(pair.apgr_ci.map_or_else(String::new, |(low, high)| format!("{low:.3}–{high:.3}")));
            row.extend(pair.baselines.iter().map(|value| number(*value)));
            row.extend([number(pair.cpt50), number(pair.cpt80), number(pair.auc)]);
            row.push(format!("{:.3}{}", pair.ece, if pair.ece <= pair.ece_perfect.1 { "" } else { " >" }));
            row.push(format!("{:.3}", pair.ece_perfect.1));
            row
        })
        .collect();
    let names = [
        "n",
        "APGR",
        "95 %",
        "random",
        "length",
        "tf-idf",
        "neighbours",
        "oracle",
        "CPT50",
        "CPT80",
        "AUC",
        "ECE",
        "perfect ≤",
    ];
    let header: Vec<(&str, Align)> =
        [("source, small model", Align::Left)].into_iter().chain(names.map(|name| (name, Align::Right))).collect();
    table::print(out, &header, &rows)?;
    let mean = &found.mean;
    let calibrated = found.pairs.iter().filter(|pair| pair.ece <= pair.ece_perfect.1).count();
    writeln!(
        out,
        "\nmean APGR over {} pairs whose gap is not 0: {:.4}; best simple rule {} {:.4}; gain {:+.4} (95 %: {:+.4} to {:+.4})",
        mean.pairs,
        mean.apgr,
        mean.best,
        mean.apgr - mean.gain,
        mean.gain,
        mean.gain_ci.0,
        mean.gain_ci.1
    )?;
    writeln!(out, "calibration error within what perfect scores show: {calibrated} of {} pairs", found.pairs.len())?;
    for point in &found.curve {
        writeln!(
            out,
            "after {} own outcomes: APGR {:.3} ({} pairs; {:.3} with all of theirs)",
            point.outcomes, point.apgr, point.pairs, point.apgr_with_all
        )?;
    }
    for latency in latencies {
        let (p50, p99) = micros(latency);
        writeln!(out, "decision at {} tokens: {p50:.1} µs (p50), {p99:.1} µs (p99)", latency.tokens)?;
    }
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(from: usize, to: usize, split: &str) -> String {
        let row = |number: usize| {
            let (ask, quality) = if number.is_multiple_of(2) {
                ("sum up", 1)
            } else {
                ("prove that", u8::from(number.is_multiple_of(3)))
            };
            format!(
                "{{\"id\":\"{number}\",\"source\":\"made\",\"prompt\":\"{ask} {number}\",\"weak_model\":\"a\",\"strong_model\":\"b\",\"weak_quality\":{quality},\"strong_quality\":1,\"cluster\":\"{number}\",\"split\":\"{split}\"}}\n"
            )
        };
        (from..to).map(row).collect()
    }

    #[test]
    fn measures_one_folder_by_split_and_two_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        for folder in [&a, &b] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(a.join("x.jsonl"), outcomes(0, 150, "train") + &outcomes(150, 250, "dev")).unwrap();
        std::fs::write(b.join("y.jsonl"), outcomes(300, 400, "")).unwrap();
        let run_on = |train: &Path, test: &Path, json: bool| {
            let arguments = RoutingArguments {
                train: train.to_owned(),
                test: test.to_owned(),
                learning_curve: true,
                seed: 1,
                json,
            };
            let mut said = Vec::new();
            run(&arguments, &mut said).map(|_| String::from_utf8(said).unwrap())
        };
        let one: Value = serde_json::from_str(&run_on(&a, &a, true).unwrap()).unwrap();
        assert_eq!((&one["pairs"][0]["n"], &one["pairs"][0]["fitted_on"]), (&json!(100), &json!(150)));
        assert!(one["mean"]["apgr"].as_f64().unwrap() > 0.6, "{one}");
        assert!(one["decision_us"]["8000"]["p99"].as_f64().unwrap() > 0.0);
        assert_eq!(one["learning_curve"][0]["outcomes"], 100);
        let two: Value = serde_json::from_str(&run_on(&a, &b, true).unwrap()).unwrap();
        assert_eq!((&two["pairs"][0]["n"], &two["pairs"][0]["fitted_on"]), (&json!(100), &json!(250)));
        assert!(run_on(&a, &b, false).unwrap().contains("mean APGR over 1 pairs"));
        let refused = run_on(&b, &b, false).unwrap_err().to_string();
        assert!(refused.contains("no `split`"), "{refused}");
        let refused = run_on(folder.path(), &b, false).unwrap_err().to_string();
        assert!(refused.contains("holds no outcomes"), "{refused}");
    }

    fn measured(text: &str) -> anyhow::Result<Value> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.jsonl"), text).unwrap();
        let both = folder.path().to_owned();
        let arguments = RoutingArguments { train: both.clone(), test: both, learning_curve: true, seed: 1, json: true };
        let mut said = Vec::new();
        run(&arguments, &mut said)?;
        Ok(serde_json::from_slice(&said)?)
    }

    #[test]
    fn bad_input_is_refused_or_measured_with_a_note() {
        let good = outcomes(0, 60, "train") + &outcomes(60, 90, "dev");
        for (broken, words) in [
            (good.replace("\"weak_quality\":1", "\"weak_quality\":NaN"), "leave the row out or grade it again"),
            (good.clone() + &outcomes(3, 4, "train"), "is there twice for this pair"),
            (good[..good.len() - 30].to_owned(), "the file ends within this row"),
            (String::new(), "holds no outcomes"),
            (good.replace("\"weak_quality\":1", "\"weak_quality\":1.01"), "not within 0 and 1"),
        ] {
            let refused = measured(&broken).unwrap_err().to_string();
            assert!(refused.contains(words) && refused.contains("x.jsonl"), "{words}: {refused}");
        }
        let note = |found: &Value, words: &str| {
            found["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(words))
        };
        let one_class = measured(&good.replace("\"weak_quality\":1", "\"weak_quality\":0")).unwrap();
        assert!(note(&one_class, "both kinds are needed") && one_class["pairs"][0]["apgr"] == 0.5, "{one_class}");
        // Ten rows are too few to say anything, and nothing breaks.
        let few = measured(&(outcomes(0, 10, "train") + &outcomes(10, 20, "dev"))).unwrap();
        assert_eq!((&few["pairs"][0]["fitted_on"], &few["learning_curve"]), (&json!(10), &json!([])));
        let one = measured(&(outcomes(0, 1, "train") + &outcomes(10, 20, "dev"))).unwrap();
        assert!(note(&one, "no scorer"), "{one}");
        let mut clock = 0;
        let back: String = good
            .lines()
            .map(|row| {
                clock += if clock == 40 { -30 } else { 10 };
                row.replace("\"id\"", &format!("\"at_ms\":{clock},\"id\"")) + "\n"
            })
            .collect();
        assert!(note(&measured(&back).unwrap(), "at_ms goes backwards"));
    }
}
