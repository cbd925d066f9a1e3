//! Single weights to zero. The file stays dense: it is no smaller and no faster for it, only easier to compress and to heal.

use super::{PruneError, matrices, squares};
use crate::model::Watch;
use crate::train::network::Network;

/// Which weights become zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// This share, in [0, 1): of each matrix by size alone, of each row where inputs are known.
    Share(f64),
    /// Two of every four neighbours in a row.
    TwoOfFour,
}

/// Zeroes weights inside layers, the least important first. With `watch`, importance is |weight| times the norm of the channel
/// it reads, compared within an output (Wanda, Sun et al. 2024); without, it is |weight|, compared within a matrix.
/// Inputs are those of the network before any pruning.
///
/// # Errors
/// The watch is not of this network, the share is none, or rows don't fit the pattern.
pub fn zero(network: &mut Network, pattern: Pattern, watch: Option<&Watch>) -> Result<(), PruneError> {
    if let Pattern::Share(share) = pattern
        && !(0.0..1.0).contains(&share)
    {
        let right = "the share that becomes zero must be from 0 to below 1";
        return Err(PruneError::Amount { what: "weights", wanted: 0, there: network.weights.len(), right });
    }
    for (index, layer, site) in matrices(network) {
        let part = network.parts[index].clone();
        let norms: Vec<f32> = match watch {
            Some(watch) => {
                squares(watch, layer, site, part.columns)?.iter().map(|square| square.sqrt() as f32).collect()
            }
            None => vec![1.0; part.columns],
        };
        let values = &mut network.weights[part.range()];
        match pattern {
            Pattern::Share(share) if watch.is_none() => least(values, &norms, share),
            Pattern::Share(share) => values.chunks_exact_mut(part.columns).for_each(|row| least(row, &norms, share)),
            Pattern::TwoOfFour if !part.columns.is_multiple_of(4) => {
                return Err(PruneError::Pattern { tensor: part.name, columns: part.columns, of: 4 });
            }
            Pattern::TwoOfFour => {
                let fours = values.as_chunks_mut::<4>().0.iter_mut();
                fours.zip(norms.as_chunks::<4>().0.iter().cycle()).for_each(|(four, norms)| least(four, norms, 0.5));
            }
        }
    }
    Ok(())
}

/// Zeroes the share of `values` that matters least.
fn least(values: &mut [f32], norms: &[f32], share: f64) {
    let count = (values.len() as f64 * share).round() as usize;
    let importance = |place: usize| values[place].abs() * norms[place % norms.len()];
    let mut places: Vec<(f32, usize)> = (0..values.len()).map(|place| (importance(place), place)).collect();
    if count == 0 || count >= places.len() {
        return;
    }
    places.select_nth_unstable_by(count, |one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
    for (_, place) in &places[..count] {
        values[*place] = 0.0;
    }
}
