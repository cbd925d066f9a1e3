//! How good a scorer is: the figures of its card, all measured on rows that neither fit nor calibration saw.

use super::long::NGRAMS;
use super::train::Parts;
use super::{PairScorer, ScoreError};
use crate::evidence::calibration::{ECE_BINS, Reliability, Scored, auc, reliability};
use crate::evidence::outcome::Outcome;
use local_worker::scorer::Turn;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Figures of a trained scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What was trained, in words.
    pub title: String,
    /// Version of the scorer.
    pub version: String,
    /// Hash of the outcomes.
    pub outcomes: String,
    /// What scores, in words.
    pub scored_by: String,
    /// Which calibration was chosen.
    pub calibration: &'static str,
    /// Rows and those where the small model suffices, for fit, calibration and evidence.
    pub parts: [PartSize; 3],
    /// Held-out ranking quality, 0.5 to 1; `None` with one class only.
    pub auc: Option<f64>,
    /// Held-out calibration.
    pub reliability: Reliability,
    /// The held-out rows by source and domain.
    pub groups: Vec<Group>,
}

/// Size of a part of the outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSize {
    /// What it is used for.
    pub name: &'static str,
    /// Rows.
    pub rows: usize,
    /// Rows where the small model suffices.
    pub good: usize,
}

/// Held-out rows of one source and domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// `source / domain`, or the source alone where there are too many domains.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Share in which the small model suffices.
    pub observed: f64,
    /// Mean score.
    pub predicted: f64,
}

/// Time of one decision for conversations of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Length of the conversation, at four bytes a token.
    pub tokens: usize,
    /// Half of the decisions are faster.
    pub p50: Duration,
    /// 99 of 100 are faster.
    pub p99: Duration,
}

/// Sources with more domains than this are shown as one line.
const MOST_DOMAINS: usize = 16;

impl Report {
    pub(super) fn measure(scorer: &PairScorer, parts: &Parts<'_>) -> Result<Self, ScoreError> {
        let scored: Vec<Scored> = parts
            .certify
            .iter()
            .map(|row| {
                Ok(Scored {
                    score: scorer.score_turns(&[Turn::user(&row.prompt)])?.get(),
                    suffices: row.small_suffices(),
                })
            })
            .collect::<Result<_, ScoreError>>()?;
        let size = |name, rows: &[&Outcome]| PartSize {
            name,
            rows: rows.len(),
            good: rows.iter().filter(|row| row.small_suffices()).count(),
        };
        Ok(Self {
            title: scorer.pair().to_string(),
            version: scorer.version().to_owned(),
            outcomes: scorer.outcomes.clone(),
            scored_by: scorer.describe(),
            calibration: scorer.calibration().name(),
            parts: [size("fit", &parts.fit), size("calibration", &parts.calibrate), size("evidence", &parts.certify)],
            auc: auc(&scored),
            reliability: reliability(&scored, ECE_BINS),
            groups: groups(&parts.certify, &scored),
        })
    }

    /// The report as Markdown, with decision times where they were measured.
    pub fn markdown(&self, latencies: &[Latency]) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, latencies);
        text
    }

    fn write(&self, text: &mut String, latencies: &[Latency]) -> std::fmt::Result {
        writeln!(text, "# Scorer for {}\n", self.title)?;
        writeln!(
            text,
            "Probability that the small model's answer is as good as the large one's (ties count as good).\n"
        )?;
        writeln!(text, "- version `{}`, trained on outcomes `{}`", self.version, self.outcomes)?;
        writeln!(
            text,
            "- hashed word 1-2-grams, character 3-5-grams and surface features, linear; {} calibration",
            self.calibration
        )?;
        if self.scored_by != NGRAMS {
            writeln!(text, "- scored by: {}", self.scored_by)?;
        }
        writeln!(
            text,
            "- clusters of near-duplicates are disjoint between the parts; all figures are on the evidence part\n"
        )?;
        writeln!(text, "| part | outcomes | small model suffices |\n|---|---:|---:|")?;
        for PartSize { name, rows, good } in self.parts {
            writeln!(text, "| {name} | {rows} | {:.1} % |", percent(good, rows))?;
        }
        writeln!(text, "\n| held-out figure | value |\n|---|---:|")?;
        match self.auc {
            Some(auc) => writeln!(text, "| AUC | {auc:.3} |")?,
            None => writeln!(text, "| AUC | one class only |")?,
        }
        writeln!(text, "| ECE, {ECE_BINS} equal-mass bins, debiased | {:.3} |", self.reliability.ece_debiased)?;
        writeln!(text, "| ECE, {ECE_BINS} equal-mass bins, plain | {:.3} |", self.reliability.ece)?;
        writeln!(text, "\n## Reliability\n\n| bin | outcomes | predicted | observed |\n|---:|---:|---:|---:|")?;
        for (place, bin) in self.reliability.bins.iter().enumerate() {
            writeln!(text, "| {} | {} | {:.3} | {:.3} |", place + 1, bin.rows, bin.predicted, bin.observed)?;
        }
        writeln!(text, "\n## By source\n\n| source | outcomes | predicted | observed |\n|---|---:|---:|---:|")?;
        for group in &self.groups {
            writeln!(text, "| {} | {} | {:.3} | {:.3} |", group.name, group.rows, group.predicted, group.observed)?;
        }
        if !latencies.is_empty() {
            writeln!(text, "\n## Time of one score\n\n| tokens | p50 | p99 |\n|---:|---:|---:|")?;
        }
        for Latency { tokens, p50, p99 } in latencies {
            let micros = |time: &Duration| time.as_nanos() as f64 / 1000.0;
            writeln!(text, "| {tokens} | {:.1} µs | {:.1} µs |", micros(p50), micros(p99))?;
        }
        Ok(())
    }
}

/// Times one score of conversations of 100, 500, 2,000 and 8,000 tokens made of these prompts.
///
/// # Errors
/// The scorer failed.
pub fn measure_latency<'text>(
    scorer: &PairScorer,
    prompts: impl IntoIterator<Item = &'text str>,
) -> Result<Vec<Latency>, ScoreError> {
    const BYTES_PER_TOKEN: usize = 4;
    const RUNS: usize = 500;
    const LONGEST: usize = 8000;
    const FEWEST: usize = 20;
    const ENOUGH: Duration = Duration::from_secs(2);
    let mut text = String::from("\n");
    for prompt in prompts {
        text.push_str(prompt);
        text.push('\n');
        if text.len() > RUNS * 100 + LONGEST * BYTES_PER_TOKEN {
            break;
        }
    }
    while text.len() < 2 * LONGEST * BYTES_PER_TOKEN {
        text = text.repeat(2);
    }
    let cut = |start: usize, length: usize| {
        let end = text.floor_char_boundary(start + length);
        text.get(text.floor_char_boundary(start)..end).unwrap_or_default()
    };
    let mut latencies = Vec::new();
    for tokens in [100, 500, 2000, LONGEST] {
        let length = tokens * BYTES_PER_TOKEN;
        let mut times = Vec::with_capacity(RUNS);
        let begun = Instant::now();
        for run in 0..RUNS {
            // An encoder takes milliseconds.
            if run >= FEWEST && begun.elapsed() > ENOUGH {
                break;
            }
            let turns = [Turn::user(cut(run * (text.len() - length) / RUNS, length))];
            let start = Instant::now();
            std::hint::black_box(scorer.score_turns(&turns)?);
            times.push(start.elapsed());
        }
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
        latencies.push(Latency { tokens, p50: at(50), p99: at(99) });
    }
    Ok(latencies)
}

fn percent(good: usize, rows: usize) -> f64 {
    100.0 * good as f64 / rows.max(1) as f64
}

/// Rows by source, and by domain where a source has few.
fn groups(rows: &[&Outcome], scored: &[Scored]) -> Vec<Group> {
    let mut domains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in rows {
        let domains = domains.entry(&row.source).or_default();
        if !domains.contains(&row.domain.as_str()) {
            domains.push(&row.domain);
        }
    }
    let name = |row: &Outcome| match domains.get(row.source.as_str()) {
        Some(domains) if (2..=MOST_DOMAINS).contains(&domains.len()) => {
            format!("{} / {}", row.source, row.domain)
        }
        _ => row.source.clone(),
    };
    let mut sums: BTreeMap<String, (usize, f64, f64)> = BTreeMap::new();
    for (row, scored) in rows.iter().zip(scored) {
        let sum = sums.entry(name(row)).or_default();
        sum.0 += 1;
        sum.1 += f64::from(u8::from(scored.suffices));
        sum.2 += scored.score;
    }
    sums.into_iter()
        .map(|(name, (rows, good, score))| Group {
            name,
            rows,
            observed: good / rows as f64,
            predicted: score / rows as f64,
        })
        .collect()
}
