//! A smaller vocabulary: the tokens that a text needs most, with all that they are merged from.

use super::PruneError;
use crate::train::model::{Metadata, Words};
use crate::train::network::{Network, Shape};
use candle_core::quantized::gguf_file::Value;
use std::collections::{HashMap, HashSet};

/// The network with about `keep` tokens: control tokens, single bytes, and of the others those that `text` has most often,
/// each with the tokens it is merged from. Text becomes the same tokens as before where all of them stay.
///
/// # Errors
/// The vocabulary is none of byte-level BPE, or `keep` is too small or too large.
pub fn keep_tokens(
    network: &Network,
    metadata: &Metadata,
    text: &str,
    keep: usize,
) -> Result<(Network, Metadata), PruneError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let there = vocabulary.tokens.len();
    let words = Words::new(metadata, network.shape.vocabulary)?;
    let mut counts = vec![0_u64; there];
    for token in words.encode(text)? {
        if let Some(count) = counts.get_mut(token as usize) {
            *count += 1;
        }
    }
    let kept = vocabulary.choose(&counts, keep)?;
    let shape = Shape { vocabulary: kept.len(), ..network.shape.clone() };
    let mut small = Network::zero(shape);
    let width = network.shape.width;
    for part in small.parts.clone() {
        let values = network.tensor(&part.name).unwrap_or_default();
        let into = &mut small.weights[part.range()];
        if matches!(part.name.as_str(), "token_embd.weight" | "output.weight") {
            for (row, old) in into.chunks_exact_mut(width).zip(&kept) {
                row.copy_from_slice(&values[old * width..][..width]);
            }
        } else {
            into.copy_from_slice(values);
        }
    }
    Ok((small, vocabulary.metadata(metadata, &kept)?))
}

struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    merges: Vec<String>,
}

fn wrong(problem: impl std::fmt::Display) -> PruneError {
    PruneError::Vocabulary(problem.to_string())
}

impl Vocabulary {
    fn read(metadata: &Metadata) -> Result<Self, PruneError> {
        let list = |key: &str| match metadata.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Array(values)) => Ok(values),
            _ => Err(wrong(format!("tokenizer.ggml.{key} is missing"))),
        };
        let texts = |key: &str| -> Result<Vec<String>, PruneError> {
            list(key)?.iter().map(|value| value.to_string().cloned().map_err(wrong)).collect()
        };
        let kinds = list("token_type")?.iter().map(|value| value.to_i32().map_err(wrong)).collect::<Result<_, _>>()?;
        Ok(Self { tokens: texts("tokens")?, kinds, merges: texts("merges")? })
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.merges.iter().filter_map(|merge| {
            let at = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ').map(|(at, _)| at)?;
            Some((&merge[..at], &merge[at + 1..]))
        })
    }

    /// Ids that stay, in their order.
    fn choose(&self, counts: &[u64], keep: usize) -> Result<Vec<usize>, PruneError> {
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let mut made: HashMap<usize, (usize, usize)> = HashMap::new();
        for (left, right) in self.pairs() {
            let whole = ids.get(format!("{left}{right}").as_str());
            if let (Some(whole), Some(left), Some(right)) = (whole, ids.get(left), ids.get(right)) {
                made.entry(*whole).or_insert((*left, *right));
            }
        }
        let plain = |id: &usize| self.kinds.get(*id) == Some(&1);
        let mut kept: HashSet<usize> =
            (0..self.tokens.len()).filter(|id| !plain(id) || self.tokens[*id].chars().count() == 1).collect();
        if keep < kept.len() || keep > self.tokens.len() {
            let right = "control tokens and single bytes must stay";
            return Err(PruneError::Amount { what: "tokens", wanted: keep, there: self.tokens.len(), right });
        }
        let mut order: Vec<usize> = (0..self.tokens.len()).filter(|id| counts[*id] > 0 && !kept.contains(id)).collect();
        order.sort_by_key(|id| (std::cmp::Reverse(counts[*id]), *id));
        // Tokens that the text lacks fill up, those that were merged first before the others.
        order.extend((0..self.tokens.len()).filter(|id| counts[*id] == 0 && !kept.contains(id)));
        for id in order {
            let (mut needed, mut open) = (Vec::new(), vec![id]);
            while let Some(id) = open.pop() {
                if !kept.contains(&id) && !needed.contains(&id) {
                    needed.push(id);
                    open.extend(made.get(&id).iter().flat_map(|(left, right)| [*left, *right]));
                }
            }
            if kept.len() + needed.len() <= keep {
                kept.extend(needed);
            }
            if kept.len() == keep {
                break;
            }
        }
        let mut kept: Vec<usize> = kept.into_iter().collect();
        kept.sort_unstable();
        Ok(kept)
    }

    fn metadata(&self, metadata: &Metadata, kept: &[usize]) -> Result<Metadata, PruneError> {
        let names: HashSet<&str> = kept.iter().map(|id| self.tokens[*id].as_str()).collect();
        let stays = |(left, right): (&str, &str)| {
            names.contains(left) && names.contains(right) && names.contains(format!("{left}{right}").as_str())
        };
        let merges = self.pairs().zip(&self.merges).filter(|(pair, _)| stays(*pair));
        let merges: Vec<Value> = merges.map(|(_, merge)| Value::String(merge.clone())).collect();
        let mut small = metadata.clone();
        let mut put = |key: &str, value: Value| drop(small.insert(format!("tokenizer.ggml.{key}"), value));
        put("tokens", Value::Array(kept.iter().map(|id| Value::String(self.tokens[*id].clone())).collect()));
        put("token_type", Value::Array(kept.iter().map(|id| Value::I32(self.kinds[*id])).collect()));
        put("merges", Value::Array(merges));
        small.remove("tokenizer.ggml.scores");
        for (key, value) in &mut small {
            let Some("id") = key.rsplit('_').next().filter(|_| key.starts_with("tokenizer.ggml.")) else { continue };
            let old = value.to_u32().map_err(wrong)? as usize;
            let new =
                kept.binary_search(&old).map_err(|_| wrong(format!("{key} is {old}, which is none of its tokens")))?;
            *value = Value::U32(new as u32);
        }
        Ok(small)
    }
}
