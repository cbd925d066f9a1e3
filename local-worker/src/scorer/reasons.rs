//! What moved a score most, in words a person can read.
//!
//! A hashed weight has no name, but the text at hand does: whatever the n-grams in and right after a word contribute is
//! credited to that word. Used by Explain only, so it may allocate.

use super::features::{GROUPS, Sink, visit};
use super::surface::name;
use super::{SAID, Scorer, Turn, first, group_norm, region, shape};
use std::collections::BTreeMap;

/// A contribution to a raw score.
#[derive(Debug, Clone, PartialEq)]
pub struct Reason {
    /// A word of the text in quotes, or the name of a surface feature.
    pub what: String,
    /// What it adds to the log-odds: above 0 speaks for the small model, below 0 against it.
    pub push: f64,
}

impl Scorer {
    /// The `most` strongest contributions, strongest first. They do not add up to the score: weak ones and the bias are
    /// left out.
    pub fn reasons(&self, turns: &[Turn<'_>], most: usize) -> Vec<Reason> {
        let mut sink = WordSink {
            weights: &self.weights,
            halves: self.halves.then(|| (self.bits(), Box::new([0; SAID]))),
            pending: [0; GROUPS],
            counts: [0; GROUPS],
            words: BTreeMap::new(),
        };
        let surface = visit(turns, self.bits(), &mut sink);
        let norms = sink.counts.map(group_norm);
        let words = sink.words.into_iter().map(|(word, sums)| {
            let push = sums.iter().zip(norms).map(|(sum, norm)| *sum as f64 * norm);
            Reason { what: format!("\"{word}\""), push: push.sum::<f64>() * f64::from(self.scale) }
        });
        let shapes = self.surface.iter().zip(surface.values()).enumerate().skip(1);
        let shapes = shapes.map(|(place, (weight, value))| Reason {
            what: name(place).to_owned(),
            push: f64::from(*weight) * f64::from(value),
        });
        let trees = (!self.trees.is_empty()).then(|| self.trees.credits(&shape::shapes(turns)));
        let trees = trees
            .iter()
            .flatten()
            .enumerate()
            .map(|(place, credit)| Reason { what: shape::name(place).to_owned(), push: *credit });
        let sense = self.sense.iter().flat_map(|sense| {
            let near = sense.neighbours(turns);
            let kept = match near.count {
                0 => "no recorded prompt is near".to_owned(),
                count => format!("{count} recorded prompts near, {:.0} % of one kind", near.agreement * 100.0),
            };
            [
                Reason { what: kept, push: near.push },
                Reason { what: "what it is about".to_owned(), push: sense.line_push(turns) },
            ]
        });
        let mut reasons: Vec<Reason> =
            words.chain(shapes).chain(trees).chain(sense).filter(|reason| reason.push != 0.0).collect();
        reasons.sort_by(|a, b| b.push.abs().total_cmp(&a.push.abs()).then(a.what.cmp(&b.what)));
        reasons.truncate(most);
        reasons
    }
}

struct WordSink<'weights> {
    weights: &'weights [i16],
    /// Bits of the table and words that were there, where words and characters have halves of it.
    halves: Option<(u32, Box<[u64; SAID]>)>,
    pending: [i64; GROUPS],
    counts: [u32; GROUPS],
    words: BTreeMap<String, [i64; GROUPS]>,
}

impl Sink for WordSink<'_> {
    fn slots<const N: usize>(&mut self, group: usize, slots: [usize; N]) {
        let mut sum = 0;
        for mut slot in slots {
            let mut counts = true;
            if let Some((bits, said)) = &mut self.halves {
                slot = region(group, slot, *bits);
                counts = group % 2 == 1 || first(said, group, slot);
            }
            if counts {
                sum += i64::from(self.weights.get(slot).copied().unwrap_or(0));
            }
        }
        if let (Some(pending), Some(count)) = (self.pending.get_mut(group), self.counts.get_mut(group)) {
            *pending += sum;
            *count += N as u32;
        }
    }

    fn word(&mut self, word: &str) {
        // N-grams between words wait for the next word.
        if word.is_empty() {
            return;
        }
        let sums = self.words.entry(word.to_lowercase()).or_default();
        for (sum, pending) in sums.iter_mut().zip(&mut self.pending) {
            *sum += std::mem::take(pending);
        }
    }
}
