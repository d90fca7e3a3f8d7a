//! Products of float weights with the exact activations, in `LANES` partial sums along the columns. For one activation row the
//! weights stream from the map; for more they are decoded once, four rows at a time.

use super::{Matrix, Multiply, PAD};
use crate::quant::Float;
use crate::simd::{Rows, Simd, Task, quad};
use std::marker::PhantomData;

/// The sums of a band of a product with any activation rows; gives the lanes of a group.
pub(super) struct FloatRows<'a, F>(Multiply<'a>, PhantomData<F>);

impl<'a, F> FloatRows<'a, F> {
    pub(super) fn new(product: Multiply<'a>) -> Self {
        FloatRows(product, PhantomData)
    }
}

/// Rows decoded together.
const TOGETHER: usize = 4;

impl<F: Float> Task for FloatRows<'_, F> {
    type Out = usize;
    const PRODUCTS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let Multiply { w, x, columns, rows, work, sums } = self.0;
        let padded = w.cols.next_multiple_of(PAD);
        let (buffer, _) = work.tile.two::<f32, u8>(TOGETHER * padded, 0);
        let (sums, _) = sums.two::<f32, u8>(columns.len().div_ceil(S::LANES) * S::LANES * rows.len(), 0);
        for row in columns.clone().step_by(TOGETHER) {
            let at = row - columns.start;
            // A group at the edge begins earlier; its sums lie where the store looks for them.
            let first = (columns.start + at / S::LANES * S::LANES).min(w.rows.saturating_sub(S::LANES));
            let group = &mut sums[at / S::LANES * rows.len() * S::LANES..][..rows.len() * S::LANES];
            let mut rest = group.chunks_exact_mut(S::LANES);
            if rows.len() == 1 && row + TOGETHER <= columns.end {
                let dots = stream::<S, F>(s, &Rows::new(w.bytes(), w.row_bytes, row, TOGETHER), w, row, &x.exact[rows.start * padded..]);
                put(&mut rest, row - first, TOGETHER, [dots]);
                continue;
            }
            for (r, out) in buffer.chunks_exact_mut(padded).enumerate() {
                // The last rows repeat where there are fewer than four.
                let bytes = &w.bytes()[(row + r).min(columns.end - 1) * w.row_bytes..][..w.row_bytes];
                let whole = w.cols - w.cols % S::LANES;
                let (vectors, rest) = bytes.split_at(whole * F::BYTES);
                for (b, o) in vectors.chunks_exact(S::LANES * F::BYTES).zip(out.chunks_exact_mut(S::LANES)) {
                    s.store(F::load(s, b), o);
                }
                out[whole..].fill(0.0);
                rest.chunks_exact(F::BYTES).zip(&mut out[whole..]).for_each(|(b, o)| *o = F::decode(b));
            }
            let x = &x.exact[rows.start * padded..rows.end * padded];
            let mut quads = x.chunks_exact(4 * padded);
            for x in &mut quads {
                put(&mut rest, row - first, columns.end - row, dots::<S, 4>(s, buffer, x));
            }
            for x in quads.remainder().chunks_exact(padded) {
                put(&mut rest, row - first, columns.end - row, dots::<S, 1>(s, buffer, x));
            }
        }
        S::LANES
    }
}

fn put<const C: usize>(groups: &mut std::slice::ChunksExactMut<'_, f32>, lane: usize, count: usize, sums: [[f32; TOGETHER]; C]) {
    for (sums, group) in sums.iter().zip(groups) {
        group[lane..].iter_mut().zip(sums).take(count).for_each(|(o, v)| *o = *v);
    }
}

/// Dots of four rows from `row` on with one row of `x`, straight from the map.
#[inline(always)]
fn stream<S: Simd, F: Float>(s: S, group: &Rows<'_>, w: &Matrix, row: usize, x: &[f32]) -> [f32; TOGETHER] {
    let bytes: [&[u8]; TOGETHER] = quad!(R => &w.bytes()[(row + R) * w.row_bytes..][..w.row_bytes]);
    let mut sums = [s.splat(0.0); TOGETHER];
    let whole = w.cols - w.cols % S::LANES;
    let step = S::LANES * F::BYTES;
    let mut ahead = 0;
    for (at, x) in (0..whole).step_by(S::LANES).zip(x.chunks_exact(S::LANES)) {
        if at % PAD == 0 {
            group.prefetch_following(ahead, TOGETHER * PAD * F::BYTES);
            ahead += TOGETHER * PAD * F::BYTES;
        }
        let x = s.load(x);
        sums = quad!(R => s.fma(F::load(s, &bytes[R][at * F::BYTES..][..step]), x, sums[R]));
    }
    if whole < w.cols {
        let x = s.load(&x[whole..]);
        let mut last = [[0.0; PAD]; TOGETHER];
        for (last, bytes) in last.iter_mut().zip(bytes) {
            bytes[whole * F::BYTES..].chunks_exact(F::BYTES).zip(last).for_each(|(b, o)| *o = F::decode(b));
        }
        sums = quad!(R => s.fma(s.load(&last[R]), x, sums[R]));
    }
    quad!(R => s.sum(sums[R]))
}

/// Dots of four rows with `C` rows of `x`.
#[inline(always)]
fn dots<S: Simd, const C: usize>(s: S, rows: &[f32], x: &[f32]) -> [[f32; TOGETHER]; C] {
    let n = x.len() / C;
    let mut sums = [[s.splat(0.0); TOGETHER]; C];
    let w: [&[f32]; TOGETHER] = quad!(R => &rows[R * n..(R + 1) * n]);
    let mut at = 0;
    while at + S::LANES <= n {
        let w = quad!(R => s.load(&w[R][at..]));
        let mut c = 0;
        while c < C {
            let x = s.load(&x[c * n + at..]);
            sums[c] = quad!(R => s.fma(w[R], x, sums[c][R]));
            c += 1;
        }
        at += S::LANES;
    }
    let mut out = [[0.0; TOGETHER]; C];
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = quad!(R => s.sum(sums[R]));
    }
    out
}
