//! `sluice distill scorer`: the classifier that decides in microseconds, taught by the blend.

use crate::cli::eval::student::{SOFT, check_soft};
use crate::cli::train::{self, scorer_by};
use crate::evidence::outcome::unpack;
use crate::score::train::Way;
use anyhow::{Context as _, ensure};
use clap::Args;
use local_worker::scorer::FitOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `distill scorer`.
#[derive(Debug, Args)]
pub struct TaughtArguments {
    /// Outcomes, pair, result, policies to solve: as of `sluice train scorer`.
    #[command(flatten)]
    pub train: train::ScorerArguments,
    /// Prompts that nobody graded, for the teacher to grade: JSON lines with a `prompt` each, gzipped or not, such as a corpus
    /// or a replay's log of outcomes of other pairs.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub unlabelled: Vec<PathBuf>,
    /// How much what the teacher says counts beside the grades, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = SOFT)]
    pub soft: f32,
}

/// Runs `distill scorer`.
pub fn run(arguments: &TaughtArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    check_soft(arguments.soft)?;
    let mut unlabelled = Vec::new();
    for file in &arguments.unlabelled {
        unlabelled.extend(prompts(file)?);
    }
    if !unlabelled.is_empty() {
        writeln!(out, "{} prompts without grades are learnt by what the teacher says of them", unlabelled.len())?;
    }
    let options = FitOptions { seed: arguments.train.seed, ..FitOptions::default() };
    let ways = vec![Way::Taught { options, soft: arguments.soft }];
    scorer_by(&arguments.train, ways, unlabelled, out)
}

/// The prompts of a file, each once.
fn prompts(file: &Path) -> anyhow::Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Line {
        prompt: String,
    }
    let text = unpack(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line).with_context(|| format!("{}:{}", file.display(), number + 1))?;
        prompts.push(line.prompt);
    }
    ensure!(!prompts.is_empty(), "{}: no prompt; each line must be a JSON object with one", file.display());
    prompts.sort_unstable();
    prompts.dedup();
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arguments, Verb};
    use crate::score::PairScorer;
    use clap::Parser as _;

    fn distil(words: &[&str]) -> anyhow::Result<String> {
        let words = ["sluice", "distill", "scorer"].iter().chain(words);
        let Verb::Distill(arguments) = Arguments::try_parse_from(words)?.verb else { panic!("another verb") };
        let mut out = Vec::new();
        crate::cli::distill::run(&arguments, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn a_taught_scorer_is_small_and_ranks_what_it_has_not_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let row = |id: usize| {
            let ask = if id.is_multiple_of(2) { "Is this spam?" } else { "Write an essay on" };
            let good = u8::from(id.is_multiple_of(2) != id.is_multiple_of(7));
            format!(
                "{{\"id\":\"{id}\",\"source\":\"made\",\"prompt\":\"{ask} number {id}\",\"weak_model\":\"nano\",\"weak_quality\":{good},\"cluster\":\"{id}\"}}\n"
            )
        };
        std::fs::write(file("outcomes.jsonl"), (0..600).map(row).collect::<String>()).unwrap();
        let more = (0..50).map(|n| format!("{{\"prompt\":\"Is this spam? again {n}\",\"x\":1}}\n")).collect::<String>();
        std::fs::write(file("more.jsonl"), more + "\n").unwrap();
        let (outcomes, more, out) = (file("outcomes.jsonl"), file("more.jsonl"), file("small.scorer"));
        let words = ["--outcomes", &outcomes, "--small", "nano", "--out", &out];
        let said = distil(&[&words[..], &["--unlabelled", &more]].concat()).unwrap();
        assert!(said.contains("50 prompts without grades"), "{said}");
        let scorer = PairScorer::read(Path::new(&out)).unwrap();
        assert!(scorer.neighbours(&[]).is_none(), "the student remembers no prompts");
        let score = |text: &str| scorer.score_turns(&[local_worker::scorer::Turn::user(text)]).unwrap().get();
        assert!(score("Is this spam? Really") > 0.6 && score("Write an essay on spam") < 0.4);
        let size = |file: &str| std::fs::metadata(file).unwrap().len();
        assert!(size(&out) < 600_000, "{}", size(&out));

        std::fs::write(&more, "{\"prompt\":1}\n").unwrap();
        let error = format!("{:#}", distil(&[&words[..], &["--unlabelled", &more]].concat()).unwrap_err());
        assert!(error.contains("more.jsonl:1"), "{error}");
        let error = distil(&[&words[..], &["--soft", "1.5"]].concat()).unwrap_err().to_string();
        assert!(error.contains("--soft must be from 0 to 1"), "{error}");
    }
}
