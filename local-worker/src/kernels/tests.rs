//! Every fast product against the scalar one, and the scalar one against the definition.

use std::sync::Arc;

use half::f16;
use proptest::prelude::*;

use super::*;

fn pseudo(seed: u64, index: usize) -> f32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
}

fn activations(level: Level, rows: usize, cols: usize, seed: u64) -> Activations {
    let mut input = Activations::default();
    for (index, value) in input.reset(rows, cols).iter_mut().enumerate() {
        *value = pseudo(seed, index) * if index % 97 == 0 { 20.0 } else { 1.0 };
    }
    input.quantize(level);
    input
}

fn matrix(kind: Kind, rows: usize, cols: usize, seed: u64) -> QuantizedMatrix {
    let top = (1u32 << kind.bits()) as f32 - 1.0;
    QuantizedMatrix::pack(&mut Memory::default(), (rows, cols), kind, |row, block| {
        let at = (row * cols / BLOCK + block) * 40;
        // What stands for several blocks must be the same in all of them.
        let group = (row * cols + block * BLOCK) / kind.group();
        let q = std::array::from_fn(|i| ((pseudo(seed + 1, at + i) * 0.5 + 0.5) * top).round() as u8);
        let small = |part: usize| (pseudo(seed + 3, at + part) * 63.0) as i8;
        Unit {
            words: kind.words(&q),
            scale: f16::from_f32(0.01 + pseudo(seed, group).abs() * if kind.units() { 0.003 } else { 0.1 }),
            minimum: f16::from_f32(pseudo(seed + 2, group) * if kind.units() { 0.02 } else { 1.0 }),
            small_scale: [small(0), small(1)],
            small_minimum: -(small(2).abs()),
        }
    })
}

/// Less under Miri, which takes a thousand times as long.
const fn most(usual: usize, interpreted: usize) -> usize {
    if cfg!(miri) { interpreted } else { usual }
}

const KINDS: [Kind; 8] = [
    Kind::Four,
    Kind::FourMin,
    Kind::FourSuper,
    Kind::Five,
    Kind::FiveMin,
    Kind::FiveSuper,
    Kind::SixSuper,
    Kind::Eight,
];

#[test]
fn integers_are_found_where_they_were_put() {
    for kind in KINDS {
        let q = |row: usize, block: usize, at: usize| ((row * 31 + block * 7 + at * 13) % (1 << kind.bits())) as u8;
        let matrix = QuantizedMatrix::pack(&mut Memory::default(), (19, 256), kind, |row, block| Unit {
            words: kind.words(&std::array::from_fn(|at| q(row, block, at))),
            ..Unit::default()
        });
        for (row, block, at) in (0..19).flat_map(|row| (0..256).map(move |at| (row, at / BLOCK, at % BLOCK))) {
            let found = matrix.tile(row / TILE).integer(kind, row % TILE, block, at) + kind.zero();
            assert_eq!(found, i32::from(q(row, block, at)), "{kind:?} {row} {block} {at}");
        }
    }
}

#[test]
fn packed_matrices_take_what_their_formats_take() {
    for (kind, bits) in KINDS.into_iter().zip([4.5, 5.0, 4.5, 5.5, 6.0, 5.5, 6.5625, 8.5]) {
        let packed = matrix(kind, 32, 512, 1).bytes() as f64 * 8.0 / (32.0 * 512.0);
        assert!((bits..=bits * 1.03).contains(&packed), "{kind:?}: {packed} bits a weight for {bits}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 24 }))]

    #[test]
    fn every_level_agrees_with_the_definition(rows in 1usize..most(50, 20), blocks in 1usize..most(9, 2), m in 1usize..most(20, 4), seed in any::<u32>()) {
        for kind in KINDS {
            let cols = (blocks * BLOCK).next_multiple_of(kind.group());
            let matrix = matrix(kind, rows, cols, u64::from(seed));
            let input = activations(Level::Scalar, m, cols, u64::from(seed) + 9);
            let mut scalar = vec![0.0; m * rows];
            matrix.multiply(Level::Scalar, &input, &mut scalar);
            let mut weights = vec![0.0; cols];
            for row in 0..rows {
                matrix.read_row(row, &mut weights);
                for m in 0..m {
                    let mut want = 0.0f64;
                    let mut size = 0.0f64;
                    for (block, part) in input.row_blocks(m).iter().zip(weights.chunks(BLOCK)) {
                        for (q, weight) in block.q.iter().zip(part) {
                            let term = f64::from(*q) * f64::from(block.scale) * f64::from(*weight);
                            want += term;
                            size += term.abs();
                        }
                    }
                    let got = f64::from(scalar[m * rows + row]);
                    prop_assert!((got - want).abs() <= 1e-5 * size + 1e-6, "{kind:?}: {got} for {want}");
                }
            }
            for level in Level::available() {
                let quick = activations(level, m, cols, u64::from(seed) + 9);
                let mut out = vec![0.0; m * rows];
                matrix.multiply(level, &quick, &mut out);
                for (got, want) in out.iter().zip(&scalar) {
                    prop_assert!((got - want).abs() <= 2e-4 * want.abs() + 2e-3, "{kind:?} {level:?}: {got} for {want}");
                }
                let mut alone = vec![0.0; rows];
                let mut input = Activations::default();
                input.reset(1, cols).copy_from_slice(quick.row(m - 1));
                input.quantize(level);
                matrix.multiply(level, &input, &mut alone);
                prop_assert_eq!(&alone, &out[(m - 1) * rows..], "a row alone and among others, {:?} {:?}", kind, level);
            }
        }
    }

    #[test]
    fn dense_products_are_right(rows in 1usize..most(150, 20), cols in 1usize..most(70, 20), m in 1usize..most(9, 4), seed in any::<u32>()) {
        // Few bits, so that every precision holds the same.
        let weight = |row: usize, col: usize| f16::from_f32((pseudo(u64::from(seed), row * cols + col) * 64.0).round() / 64.0);
        let single = DenseMatrix::pack_single(&mut Memory::default(), (rows, cols), |row, col| weight(row, col).to_f32());
        let half = DenseMatrix::pack_half(&mut Memory::default(), (rows, cols), weight);
        let brain = DenseMatrix::pack_brain(&mut Memory::default(), (rows, cols), |row, col| half::bf16::from_f32(weight(row, col).to_f32()));
        for level in Level::available() {
            let input = activations(level, m, cols, 5);
            for matrix in [&single, &half, &brain] {
                let mut out = vec![0.0; m * rows];
                matrix.multiply(level, &input, &mut out);
                for m in 0..m {
                    for row in 0..rows {
                        let want: f64 =
                            (0..cols).map(|col| f64::from(weight(row, col).to_f32()) * f64::from(input.row(m)[col])).sum();
                        let got = f64::from(out[m * rows + row]);
                        prop_assert!((got - want).abs() < 1e-4, "{level:?}: {got} for {want}");
                    }
                }
                let mut alone = vec![0.0; rows];
                let mut last = Activations::default();
                last.reset(1, cols).copy_from_slice(input.row(m - 1));
                matrix.multiply(level, &last, &mut alone);
                prop_assert_eq!(&alone, &out[(m - 1) * rows..], "a row alone and among others, {:?}", level);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "a quarter of an hour and not through; the team's own tests share outputs under Miri")]
fn threads_change_no_bit() {
    let team = Arc::new(Team::new("team", 3).unwrap());
    let quantised = KINDS.map(|kind| Matrix::Quantized(matrix(kind, 300, 256, 4)));
    let weight = |row: usize, col: usize| pseudo(4, row * 256 + col);
    let dense = Matrix::Dense(DenseMatrix::pack_single(&mut Memory::default(), (300, 256), weight));
    for (number, matrix) in quantised.iter().chain([&dense]).enumerate() {
        for level in Level::available() {
            let alone = activations(level, 5, 256, 8);
            let mut shared = Activations::shared_by(Some(Arc::clone(&team)));
            for row in 0..5 {
                shared.reset(5, 256)[row * 256..(row + 1) * 256].copy_from_slice(alone.row(row));
            }
            shared.quantize(level);
            let (mut want, mut got) = (vec![0.0; 5 * 300], vec![0.0; 5 * 300]);
            matrix.multiply(level, &alone, &mut want);
            matrix.multiply(level, &shared, &mut got);
            assert_eq!(want, got, "{number} {level:?}");
        }
    }
}

#[test]
fn quantised_activations_are_the_same_at_every_level_and_poisoned_by_what_is_not_finite() {
    let scalar = activations(Level::Scalar, 3, 64, 1);
    for level in Level::available() {
        let input = activations(level, 3, 64, 1);
        for (a, b) in scalar.row_blocks(2).iter().zip(input.row_blocks(2)) {
            assert_eq!((a.q, a.sums, a.scale), (b.q, b.sums, b.scale));
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let mut input = Activations::default();
            input.reset(1, 32)[7] = bad;
            input.quantize(level);
            assert!(input.row_blocks(0)[0].scale.is_nan());
        }
    }
}

#[test]
fn products_with_tiles_and_weights_of_neighbours_are_those_of_their_definitions() {
    let (dims, rows) = (12, 3 * TILE);
    let vector: Vec<f32> = (0..dims).map(|at| pseudo(1, at)).collect();
    let byte = |row: usize, number: usize| (pseudo(2, row * dims + number) * 100.0) as i8;
    let mut tiles = vec![0_i8; rows * dims];
    for row in 0..rows {
        for number in 0..dims {
            tiles[(row / TILE * dims + number) * TILE + row % TILE] = byte(row, number);
        }
    }
    let values: Vec<f32> = (0..rows).map(|row| pseudo(3, row)).collect();
    let wanted: Vec<f32> =
        (0..rows).map(|row| (0..dims).map(|number| vector[number] * f32::from(byte(row, number))).sum()).collect();
    let mut first: Option<(Vec<f32>, [f32; 3])> = None;
    for level in Level::available() {
        let mut sums = vec![f32::NAN; rows];
        products_with_tiles(level, &vector, &tiles, &mut sums);
        assert!(sums.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-3), "{level:?}: {sums:?} {wanted:?}");
        let near: Vec<f32> = sums.iter().map(|sum| (sum / 400.0).clamp(-1.0, 1.0)).collect();
        let found = weigh_neighbours(level, &near, &values, 7.0);
        let weight = |row: usize| (7.0 * (near[row] - 1.0)).exp();
        let weights: f32 = (0..rows).map(weight).sum();
        let sum: f32 = (0..rows).map(|row| weight(row) * values[row]).sum();
        assert!((found[0] - weights).abs() < 1e-4 * weights && (found[1] - sum).abs() < 1e-4 * weights, "{level:?}");
        assert_eq!(found[2], near.iter().copied().fold(-1.0, f32::max));
        // Every level gives the same bits.
        assert_eq!(first.get_or_insert_with(|| (sums.clone(), found)), &mut (sums, found));
    }
    let nothing = weigh_neighbours(Level::detect(), &[], &[], 7.0);
    assert_eq!(nothing, [0.0, 0.0, -1.0]);
}
