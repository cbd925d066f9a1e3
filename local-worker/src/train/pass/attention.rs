//! Causal attention of each record over itself, with grouped heads and rotary angles, and its way back.

use super::super::network::Shape;
use super::{Kept, Passing, Sample, fit};
use crate::kernels::{
    Level, View, ViewMut, causal_softmax, causal_softmax_backward, product, rope_neighbours, rope_neighbours_backward,
};

/// One record's rows and where its squares of shares begin.
struct Record {
    first: usize,
    length: usize,
    square: usize,
}

fn records<'a>(shape: &'a Shape, samples: &'a [&Sample]) -> impl Iterator<Item = Record> + 'a {
    let (mut first, mut square) = (0, 0);
    samples.iter().map(move |sample| {
        let record = Record { first, length: sample.len(), square };
        first += record.length;
        square += record.length * record.length * shape.heads;
        record
    })
}

/// Turns queries and keys in `kept.turned`, and fills `kept.shares` and `kept.mixed`.
pub(super) fn forward(level: Level, shape: &Shape, samples: &[&Sample], kept: &mut Kept, passing: &Passing) {
    let (head, step, queries) = (shape.head(), shape.turned(), shape.heads * shape.head());
    let (squares, rows) = records(shape, samples).fold((0, 0), |(squares, rows), record| {
        (squares + record.length * record.length * shape.heads, rows + record.length)
    });
    let (shares, mixed) = (fit(&mut kept.shares, squares), fit(&mut kept.mixed, rows * queries));
    for record in records(shape, samples) {
        let turned = &mut kept.turned[record.first * step..][..record.length * step];
        turn(level, shape, turned, passing, rope_neighbours);
        let mixed = &mut mixed[record.first * queries..][..record.length * queries];
        for query in 0..shape.heads {
            let places = Places::new(shape, query);
            let part = |start: usize| View::new(&turned[start..], record.length, head, step);
            let square = record.length * record.length;
            let shares = &mut shares[record.square + query * square..][..square];
            let out = ViewMut::new(shares, record.length, record.length, record.length);
            let scale = 1.0 / (head as f32).sqrt();
            product(out, part(places.query), part(places.key).transposed(), scale, false);
            causal_softmax(level, shares, record.length);
            let out = ViewMut::new(&mut mixed[places.query..], record.length, head, queries);
            let shares = View::new(shares, record.length, record.length, record.length);
            product(out, shares, part(places.value), 1.0, false);
        }
    }
}

/// From the gradient by the mixed values in `passing.narrow` to that by queries, keys and values in `passing.wide`.
pub(super) fn backward(level: Level, shape: &Shape, samples: &[&Sample], kept: &Kept, passing: &mut Passing) {
    let (head, step, queries) = (shape.head(), shape.turned(), shape.heads * shape.head());
    let rows = samples.iter().map(|sample| sample.len()).sum::<usize>();
    let mut wide = std::mem::take(&mut passing.wide);
    let mut square = std::mem::take(&mut passing.square);
    let group = shape.heads / shape.kv_heads.max(1);
    let all = fit(&mut wide, rows * step);
    for record in records(shape, samples) {
        let length = record.length;
        let turned = &kept.turned[record.first * step..][..length * step];
        let dturned = &mut all[record.first * step..][..length * step];
        let dmixed = &passing.narrow[record.first * queries..][..length * queries];
        for query in 0..shape.heads {
            let places = Places::new(shape, query);
            let part = |start: usize| View::new(&turned[start..], length, head, step);
            let shares = &kept.shares[record.square + query * length * length..][..length * length];
            let dscores = fit(&mut square, length * length);
            let dout = View::new(&dmixed[places.query..], length, head, queries);
            let out = ViewMut::new(dscores, length, length, length);
            product(out, dout, part(places.value).transposed(), 1.0, false);
            causal_softmax_backward(level, shares, dscores, length, 1.0 / (head as f32).sqrt());
            // Heads of a group share keys and values: the first begins their gradients, the others add.
            let add = !query.is_multiple_of(group);
            let shares = View::new(shares, length, length, length).transposed();
            product(ViewMut::new(&mut dturned[places.value..], length, head, step), shares, dout, 1.0, add);
            let dscores = View::new(dscores, length, length, length);
            let out = ViewMut::new(&mut dturned[places.query..], length, head, step);
            product(out, dscores, part(places.key), 1.0, false);
            let out = ViewMut::new(&mut dturned[places.key..], length, head, step);
            product(out, dscores.transposed(), part(places.query), 1.0, add);
        }
        turn(level, shape, dturned, passing, rope_neighbours_backward);
    }
    (passing.wide, passing.square) = (wide, square);
}

/// Where one query head and what it looks at begin in a row.
struct Places {
    query: usize,
    key: usize,
    value: usize,
}

impl Places {
    fn new(shape: &Shape, query: usize) -> Self {
        let (head, group) = (shape.head(), shape.heads / shape.kv_heads.max(1));
        let key = (shape.heads + query / group.max(1)) * head;
        Self { query: query * head, key, value: key + shape.kv_heads * head }
    }
}

fn turn(
    level: Level,
    shape: &Shape,
    rows: &mut [f32],
    passing: &Passing,
    turn: fn(Level, &mut [f32], usize, &[f32], &[f32]),
) {
    let (head, half) = (shape.head(), shape.head() / 2);
    let turned = (shape.heads + shape.kv_heads) * head;
    for (position, row) in rows.chunks_exact_mut(shape.turned()).enumerate() {
        let angles = position * half..(position + 1) * half;
        turn(level, &mut row[..turned], head, &passing.cosines[angles.clone()], &passing.sines[angles]);
    }
}
