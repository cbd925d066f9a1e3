//! Boosted trees over the shapes of a text.
//!
//! Least-squares gradient boosting (Friedman, "Greedy function approximation: a gradient boosting machine", 2001) with
//! histograms of quantile bins, growth leaf by leaf, and random rows and columns for each tree. Trees are tiny, four leaves
//! each: outcomes are mostly noise, and what shapes tell is little and broad. Seeded and sequential: the same rows give the
//! same trees.

use super::shape::SHAPES;
use serde::{Deserialize, Serialize};

/// A sum of small trees; without trees it is 0 everywhere.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Trees(Vec<Tree>);

/// Nodes, the root first; children stand behind their parents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Tree(Vec<Node>);

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    /// What rows that come here are worth; the tree's value where it is a leaf.
    value: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<Split>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Split {
    shape: usize,
    /// Values up to this one go to `low`, others to `high`.
    at: f32,
    low: usize,
    high: usize,
}

/// Runs of boosting whose mean is taken, each with other random rows and columns (bagging).
const BAGS: u64 = 3;
const ROUNDS: usize = 100;
const LEAVES: usize = 4;
const RATE: f32 = 0.05;
const LEAST_ROWS: f32 = 20.0;
/// Rows of value 0 that each leaf is thought to hold besides.
const SHRINK: f32 = 10.0;
const ROW_PERCENT: u64 = 70;
const COLUMN_PERCENT: u64 = 40;
const BINS: usize = 32;

impl Trees {
    /// Fits trees to targets whose mean is about 0. Rows with less than twice [`LEAST_ROWS`] of weight give no tree.
    pub(super) fn fit(rows: &[[f32; SHAPES]], targets: &[f32], weights: &[f32], seed: u64) -> Self {
        let binned = Binned::of(rows);
        let bags = (0..BAGS).flat_map(|bag| Self::boosted(rows, &binned, targets, weights, seed ^ (bag << 32)).0);
        Self(bags.collect()).times(1.0 / BAGS as f32)
    }

    /// One run of boosting.
    fn boosted(rows: &[[f32; SHAPES]], binned: &Binned, targets: &[f32], weights: &[f32], seed: u64) -> Self {
        let mut left: Vec<f32> = targets.to_vec();
        let mut random = Random(seed);
        let mut trees = Vec::new();
        for _ in 0..ROUNDS {
            let columns: Vec<usize> = (0..SHAPES).filter(|_| random.next() % 100 < COLUMN_PERCENT).collect();
            let drawn: Vec<u32> = (0..rows.len() as u32).filter(|_| random.next() % 100 < ROW_PERCENT).collect();
            let tree = grow(binned, &left, weights, drawn, &columns);
            if tree.0.len() < 2 {
                continue;
            }
            for (left, row) in left.iter_mut().zip(rows) {
                *left -= tree.value(row);
            }
            trees.push(tree);
        }
        Self(trees)
    }

    /// The sum of all trees.
    pub(super) fn value(&self, row: &[f32; SHAPES]) -> f64 {
        self.0.iter().map(|tree| f64::from(tree.value(row))).sum()
    }

    /// What each shape adds to the sum: along a row's path each split is credited with how far it moves the value.
    pub(super) fn credits(&self, row: &[f32; SHAPES]) -> [f64; SHAPES] {
        let mut credits = [0.0; SHAPES];
        for tree in &self.0 {
            let mut here = tree.0.first();
            while let Some(Node { value, split: Some(split) }) = here {
                let next = split.next(row, &tree.0);
                if let (Some(credit), Some(next)) = (credits.get_mut(split.shape), next) {
                    *credit += f64::from(next.value - value);
                }
                here = next;
            }
        }
        credits
    }

    /// The same trees, each value multiplied; none where that leaves nothing.
    pub(super) fn times(mut self, factor: f32) -> Self {
        if factor == 0.0 {
            return Self::default();
        }
        for node in self.0.iter_mut().flat_map(|tree| &mut tree.0) {
            node.value *= factor;
        }
        self
    }

    /// These trees and others.
    pub(super) fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every split names a shape and two nodes behind its own, and every number is one.
    pub(super) fn sound(&self) -> bool {
        let sound = |tree: &Tree| {
            let node = |(place, node): (usize, &Node)| {
                let split = node.split.is_none_or(|split| {
                    let behind = place + 1..tree.0.len();
                    split.shape < SHAPES
                        && split.at.is_finite()
                        && behind.contains(&split.low)
                        && behind.contains(&split.high)
                });
                node.value.is_finite() && split
            };
            tree.0.iter().enumerate().all(node)
        };
        self.0.iter().all(sound)
    }
}

impl Tree {
    fn value(&self, row: &[f32; SHAPES]) -> f32 {
        let mut here = self.0.first();
        while let Some(Node { split: Some(split), .. }) = here {
            here = split.next(row, &self.0);
        }
        here.map_or(0.0, |node| node.value)
    }
}

impl Split {
    fn next<'nodes>(&self, row: &[f32; SHAPES], nodes: &'nodes [Node]) -> Option<&'nodes Node> {
        let low = row.get(self.shape).is_none_or(|value| *value <= self.at);
        nodes.get(if low { self.low } else { self.high })
    }
}

/// Shapes as the numbers of quantile bins, column by column.
struct Binned {
    columns: Vec<Vec<u8>>,
    /// Highest values of the bins but the last.
    edges: Vec<Vec<f32>>,
}

impl Binned {
    fn of(rows: &[[f32; SHAPES]]) -> Self {
        let mut binned = Self { columns: Vec::new(), edges: Vec::new() };
        for shape in 0..SHAPES {
            let column: Vec<f32> = rows.iter().filter_map(|row| row.get(shape).copied()).collect();
            let mut sorted = column.clone();
            sorted.sort_unstable_by(f32::total_cmp);
            let at = |bin: usize| sorted.get(bin * sorted.len() / BINS).copied();
            let mut edges: Vec<f32> = (1..BINS).filter_map(at).collect();
            edges.dedup();
            let last = sorted.last().copied().unwrap_or(0.0);
            edges.retain(|edge| *edge < last);
            let bin = |value: &f32| edges.partition_point(|edge| edge < value) as u8;
            binned.columns.push(column.iter().map(bin).collect());
            binned.edges.push(edges);
        }
        binned
    }
}

/// Rows of a leaf while a tree grows, and the best way to split them.
struct Leaf {
    node: usize,
    rows: Vec<u32>,
    best: Option<Cut>,
}

#[derive(Clone, Copy)]
struct Cut {
    gain: f32,
    shape: usize,
    /// The highest bin that goes low.
    bin: u8,
    low: f32,
    high: f32,
}

fn grow(binned: &Binned, left: &[f32], weights: &[f32], rows: Vec<u32>, columns: &[usize]) -> Tree {
    let best = cut(binned, left, weights, &rows, columns);
    let mut nodes = vec![Node { value: 0.0, split: None }];
    let mut leaves = vec![Leaf { node: 0, rows, best }];
    while leaves.len() < LEAVES {
        let gain = |leaf: &Leaf| leaf.best.map_or(0.0, |cut| cut.gain);
        let Some((place, _)) = leaves
            .iter()
            .enumerate()
            .filter(|(_, leaf)| gain(leaf) > 0.0)
            .max_by(|a, b| gain(a.1).total_cmp(&gain(b.1)).then(b.0.cmp(&a.0)))
        else {
            break;
        };
        let leaf = leaves.swap_remove(place);
        let Some(found) = leaf.best else { break };
        let column = binned.columns.get(found.shape);
        let goes_low = |row: &u32| column.and_then(|bins| bins.get(*row as usize)).is_some_and(|bin| *bin <= found.bin);
        let (low, high): (Vec<u32>, Vec<u32>) = leaf.rows.iter().partition(|row| goes_low(row));
        let at = binned.edges.get(found.shape).and_then(|edges| edges.get(usize::from(found.bin)));
        if let (Some(node), Some(at)) = (nodes.get_mut(leaf.node), at) {
            node.split = Some(Split { shape: found.shape, at: *at, low: 0, high: 0 });
        }
        for (rows, value, is_low) in [(low, found.low, true), (high, found.high, false)] {
            let place = nodes.len();
            nodes.push(Node { value: value * RATE, split: None });
            if let Some(split) = nodes.get_mut(leaf.node).and_then(|node| node.split.as_mut()) {
                *(if is_low { &mut split.low } else { &mut split.high }) = place;
            }
            let best = cut(binned, left, weights, &rows, columns);
            leaves.push(Leaf { node: place, rows, best });
        }
    }
    Tree(nodes)
}

/// The split that takes most squared error away, with [`LEAST_ROWS`] of weight on both sides.
fn cut(binned: &Binned, left: &[f32], weights: &[f32], rows: &[u32], columns: &[usize]) -> Option<Cut> {
    let mut best: Option<Cut> = None;
    for &shape in columns {
        let (Some(column), Some(edges)) = (binned.columns.get(shape), binned.edges.get(shape)) else { continue };
        let mut bins = [(0.0_f32, 0.0_f32); BINS];
        for &row in rows {
            let row = row as usize;
            if let (Some(bin), Some(left), Some(weight)) = (column.get(row), left.get(row), weights.get(row)) {
                let (sum, count) = &mut bins[usize::from(*bin) % BINS];
                *sum += left * weight;
                *count += weight;
            }
        }
        let (all, count) = bins.iter().fold((0.0, 0.0), |(sum, count), bin| (sum + bin.0, count + bin.1));
        let worth = |sum: f32, count: f32| sum * sum / (count + SHRINK);
        let (mut low, mut low_count) = (0.0, 0.0);
        for (bin, (sum, weight)) in bins.iter().enumerate().take(edges.len()) {
            low += sum;
            low_count += weight;
            let (high, high_count) = (all - low, count - low_count);
            if low_count < LEAST_ROWS || high_count < LEAST_ROWS {
                continue;
            }
            let gain = worth(low, low_count) + worth(high, high_count) - worth(all, count);
            if best.is_none_or(|best| gain > best.gain) {
                let value = |sum: f32, count: f32| sum / (count + SHRINK);
                let (low, high) = (value(low, low_count), value(high, high_count));
                best = Some(Cut { gain, shape, bin: bin as u8, low, high });
            }
        }
    }
    best
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize) -> (Vec<[f32; SHAPES]>, Vec<f32>) {
        let mut random = Random(9);
        let mut row = || {
            let mut row = [0.0; SHAPES];
            for value in &mut row {
                *value = (random.next() % 1000) as f32 / 1000.0;
            }
            let target = if row[3] > 0.5 { 0.5 } else { -0.5 } + if row[7] > 0.8 { 0.4 } else { -0.1 };
            (row, target)
        };
        (0..count).map(|_| row()).unzip()
    }

    #[test]
    fn finds_the_shapes_that_matter_and_credits_them() {
        let (rows, targets) = rows(1500);
        let trees = Trees::fit(&rows, &targets, &vec![1.0; rows.len()], 1);
        assert!(trees.sound());
        let error: f64 =
            rows.iter().zip(&targets).map(|(row, target)| (trees.value(row) - f64::from(*target)).powi(2)).sum::<f64>()
                / rows.len() as f64;
        assert!(error < 0.04, "{error}");
        let credits = trees.credits(&rows[0]);
        let sum: f64 = credits.iter().sum();
        assert!((sum - trees.value(&rows[0])).abs() < 1e-4);
        let strongest = (0..SHAPES).max_by(|a, b| credits[*a].abs().total_cmp(&credits[*b].abs()));
        assert!(strongest == Some(3) || strongest == Some(7));
        assert_eq!(trees, Trees::fit(&rows, &targets, &vec![1.0; rows.len()], 1));
        assert!((trees.clone().times(2.0).value(&rows[5]) - 2.0 * trees.value(&rows[5])).abs() < 1e-4);
    }

    #[test]
    fn few_rows_and_constant_shapes_give_no_trees() {
        let (rows, targets) = rows(30);
        assert!(Trees::fit(&rows, &targets, &[1.0; 30], 1).is_empty());
        assert!(Trees::fit(&[[1.0; SHAPES]; 200], &[1.0; 200], &[1.0; 200], 1).is_empty());
        assert_eq!(Trees::default().value(&rows[0]), 0.0);
    }

    #[test]
    fn unsound_trees_are_noticed() {
        let tree = |text: &str| serde_json::from_str::<Trees>(text).unwrap().sound();
        assert!(tree("[[{\"value\":1}]]") && tree("[]"));
        for broken in [
            r#"[[{"value":0,"split":{"shape":0,"at":1,"low":0,"high":0}}]]"#,
            r#"[[{"value":0,"split":{"shape":999,"at":1,"low":1,"high":2}},{"value":1},{"value":1}]]"#,
            r#"[[{"value":0,"split":{"shape":0,"at":1,"low":1,"high":3}},{"value":1},{"value":1}]]"#,
        ] {
            assert!(!tree(broken), "{broken}");
        }
    }
}
