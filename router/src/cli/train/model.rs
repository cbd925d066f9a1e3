//! `sluice train model`: a small decoder from a recipe and a corpus, in a folder that can be trained on in at any time.

use anyhow::Context as _;
use clap::Args;
use local_worker::train::folder::{Files, Lesson, Plan, Prepared};
use local_worker::train::recipe::Recipe;
use local_worker::train::run::{Event, Progress};
use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Arguments of `train model`.
#[derive(Clone, Debug, Args)]
pub struct ModelArguments {
    /// What to train, on what part of the corpus, and how; `local-worker/models/sluice-nano-v0.recipe.toml` is one.
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: PathBuf,
    /// The corpus: JSON lines with id, task, licence, prompt and answer, gzipped or not.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// Records to look at on the way; those that the recipe holds out of the corpus if absent.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub dev: Vec<PathBuf>,
    /// The run's folder: what it was made of, vocabulary, log, loss curve, checkpoint, and in the end `model.gguf`. A run that
    /// was stopped goes on from its checkpoint.
    #[arg(long, value_name = "DIR")]
    pub folder: PathBuf,
}

/// Runs `train model`.
pub fn run(arguments: &ModelArguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let recipe = Recipe::read(&arguments.recipe)?;
    let files = Files { train: arguments.data.clone(), dev: arguments.dev.clone(), ..Files::default() };
    let prepared = Prepared::new(recipe, &files, &arguments.folder, serde_json::Value::Null)?;
    tell_plan(&prepared.plan(), out)?;
    let mut teller = Teller::new(out);
    let model = prepared.run(&Lesson::default(), &mut |event| teller.tell(event))?;
    teller.finish()?;
    writeln!(out, "{}", model.display())?;
    Ok(ExitCode::SUCCESS)
}

/// What is about to be trained, in words.
pub fn tell_plan(plan: &Plan, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{:.1} M weights; {} records, {:.2} M tokens, seen {:.1} times; {} dev records",
        plan.parameters as f64 / 1e6,
        plan.records,
        plan.tokens as f64 / 1e6,
        plan.epochs,
        plan.dev
    )?;
    if plan.left_out > 0 {
        writeln!(out, "{} records are longer than the context and left out", plan.left_out)?;
    }
    if plan.embedded > 0 {
        writeln!(out, "{} tokens start from the vector of their text", plan.embedded)?;
    }
    Ok(())
}

/// Time between lines where there is no terminal to draw on.
const BETWEEN_LINES: Duration = Duration::from_secs(20);

/// Tells how a run goes: a bar that is drawn over on a terminal, lines now and then elsewhere.
pub struct Teller<'a> {
    out: &'a mut dyn Write,
    drawing: bool,
    drawn: bool,
    last: Option<Instant>,
    failed: Option<std::io::Error>,
}

impl<'a> Teller<'a> {
    /// Tells `out`.
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, drawing: std::io::stdout().is_terminal(), drawn: false, last: None, failed: None }
    }

    /// Tells one event. What can't be told stops no training.
    pub fn tell(&mut self, event: Event) {
        if let Err(error) = self.write(event) {
            self.failed.get_or_insert(error);
        }
    }

    fn write(&mut self, event: Event) -> std::io::Result<()> {
        let line = match event {
            Event::Resumed(step) => format!("goes on from the checkpoint of step {step}"),
            Event::Saved(_) => return Ok(()),
            Event::Dev(look) => format!(
                "step {}: dev loss {:.4}, {:.1} % of {} answers exactly right",
                look.step,
                look.loss,
                look.right * 100.0,
                look.records
            ),
            Event::Step(progress) => return self.progress(&progress),
        };
        let clear = if std::mem::take(&mut self.drawn) { "\r\x1b[K" } else { "" };
        writeln!(self.out, "{clear}{line}")?;
        self.out.flush()
    }

    fn progress(&mut self, progress: &Progress) -> std::io::Result<()> {
        let line = words(progress);
        if self.drawing {
            self.drawn = true;
            write!(self.out, "\r\x1b[K{} {line}", bar(progress))?;
            return self.out.flush();
        }
        if self.last.is_some_and(|last| last.elapsed() < BETWEEN_LINES) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// Ends the drawing; tells if something could not be told.
    ///
    /// # Errors
    /// What was written last could not be.
    pub fn finish(mut self) -> anyhow::Result<()> {
        if self.drawn {
            writeln!(self.out)?;
        }
        self.failed.take().map_or(Ok(()), |error| Err(error).context("training is done, but telling of it failed"))
    }
}

fn words(progress: &Progress) -> String {
    let left = progress.left.as_secs();
    let left = match (left / 3600, left / 60 % 60) {
        (0, 0) => format!("{left} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes:02} min"),
    };
    format!(
        "step {}: {:.2} of {:.2} M tokens, loss {:.4}, rate {:.2e}, {:.0} tokens/s, {left} left",
        progress.step,
        progress.tokens as f64 / 1e6,
        progress.of as f64 / 1e6,
        progress.loss,
        progress.rate,
        progress.pace
    )
}

fn bar(progress: &Progress) -> String {
    const WIDE: usize = 24;
    let share = (progress.tokens as f64 / progress.of.max(1) as f64).clamp(0.0, 1.0);
    let full = (share * WIDE as f64) as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(WIDE - full))
}

#[cfg(test)]
mod tests {
    use super::*;
    use local_worker::train::run::Look;

    fn progress() -> Progress {
        Progress {
            step: 40,
            tokens: 500_000,
            of: 2_000_000,
            loss: 1.25,
            rate: 3e-3,
            norm: 1.0,
            pace: 4000.0,
            left: Duration::from_secs(3700),
        }
    }

    #[test]
    fn progress_is_told_in_words_and_as_a_bar() {
        let told = words(&progress());
        assert_eq!(told, "step 40: 0.50 of 2.00 M tokens, loss 1.2500, rate 3.00e-3, 4000 tokens/s, 1 h 01 min left");
        assert_eq!(bar(&progress()), "[######..................]");
    }

    #[test]
    fn lines_come_now_and_then_and_dev_always() {
        let mut said = Vec::new();
        let mut teller = Teller::new(&mut said);
        teller.drawing = false;
        for _ in 0..50 {
            teller.tell(Event::Step(progress()));
        }
        teller.tell(Event::Dev(Look { step: 41, tokens: 1, loss: 0.5, right: 0.25, records: 8 }));
        teller.finish().unwrap();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains("dev loss 0.5000, 25.0 % of 8 answers"), "{said}");
    }
}
