//! Mat-vec: one activation row. Weights stream from the map and are multiplied while their codes are in registers.

use super::activations::Panel;
use super::{BLOCK, Matrix, Multiply};
use crate::quant::{Block, LongSink, Shape, Sink};
use crate::simd::{I8, Rows, Simd, Task};
use std::marker::PhantomData;

/// The sums of a band of a product with one activation row; gives the lanes of a group.
pub(super) struct Single<'a, B>(Multiply<'a>, PhantomData<B>);

impl<'a, B> Single<'a, B> {
    pub(super) fn new(product: Multiply<'a>) -> Self {
        Single(product, PhantomData)
    }
}

impl<B: Block> Task for Single<'_, B> {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let Multiply { w, x, columns, work, sums, .. } = self.0;
        repeat_few::<S>(w, &mut work.few);
        let (sums, _) = sums.two::<S::F, u8>(columns.len().div_ceil(S::LANES), 0);
        for (k, out) in sums.iter_mut().enumerate() {
            let rows = group::<S>(w, &work.few, columns.start + k * S::LANES);
            let mut sink = VecSink::<S, B> { s, x: &x.single, sum: s.splat(0.0), rows, ahead: 0, format: PhantomData };
            for at in (0..w.row_bytes).step_by(B::BYTES) {
                if S::LONG && B::LONG {
                    B::unpack_long(s, &rows, at, &mut sink);
                } else {
                    B::unpack(s, &rows, at, &mut sink);
                }
            }
            *out = sink.sum;
        }
        S::LANES
    }
}

/// Where a matrix has fewer rows than a group: its rows, the last one repeated.
#[inline(always)]
pub(super) fn repeat_few<S: Simd>(w: &Matrix, few: &mut Vec<u8>) {
    if w.rows < S::LANES {
        few.clear();
        (0..S::LANES).for_each(|r| few.extend_from_slice(&w.bytes()[r.min(w.rows - 1) * w.row_bytes..][..w.row_bytes]));
    }
}

/// The `LANES` rows from `first` on, or the last ones of the matrix.
#[inline(always)]
pub(super) fn group<'a, S: Simd>(w: &'a Matrix, few: &'a [u8], first: usize) -> Rows<'a> {
    if w.rows < S::LANES {
        Rows::new(few, w.row_bytes, 0, S::LANES)
    } else {
        Rows::new(w.bytes(), w.row_bytes, first.min(w.rows - S::LANES), S::LANES)
    }
}

/// What codes of this shape stand above their values, as the dot words want them.
#[inline(always)]
pub(super) fn offset<S: Simd, C: Shape>() -> i32 {
    C::OFFSET + if C::CODE == I8 { S::SIGNED_BIAS } else { 0 }
}

macro_rules! by_code {
    ($shape:ident, $s:ident . $word:ident $(::<$($more:literal),*>)? ( $($arg:expr),* )) => {
        match $shape::CODE {
            crate::simd::U4 => $s.$word::<{ crate::simd::U4 } $($(, $more)*)?>($($arg),*),
            crate::simd::U6 => $s.$word::<{ crate::simd::U6 } $($(, $more)*)?>($($arg),*),
            _ => $s.$word::<{ crate::simd::I8 } $($(, $more)*)?>($($arg),*),
        }
    };
}
pub(super) use by_code;

/// Multiplies with one activation row.
struct VecSink<'a, S: Simd, B> {
    s: S,
    /// What is left of it.
    x: &'a [Panel<1>],
    sum: S::F,
    rows: Rows<'a>,
    /// How many bytes of the following groups have been asked for.
    ahead: usize,
    format: PhantomData<B>,
}

impl<S: Simd, B: Block> VecSink<'_, S, B> {
    /// Asks for as many bytes as `elements` of the rows are: as many as are used up, and a few lines at a time, or the requests queue up.
    #[inline(always)]
    fn ask(&mut self, elements: usize) {
        let used = B::BYTES * S::LANES * elements / B::LEN;
        self.rows.prefetch_following(self.ahead, used);
        self.ahead += used;
    }
}

impl<S: Simd, B: Block> Sink<S> for VecSink<'_, S, B> {
    #[inline(always)]
    fn take(&mut self, lo: [S::V; 4], hi: [S::V; 4], scale: [S::F; 2], shift: [S::F; 2]) {
        let Some((x, rest)) = self.x.split_first() else { return };
        self.x = rest;
        self.sum = multiply::<S, B::Shape>(self.s, x, self.sum, lo, hi, scale, shift);
        self.ask(BLOCK);
    }
}

impl<S: Simd, B: Block> LongSink<S> for VecSink<'_, S, B> {
    #[inline(always)]
    fn dots(&mut self, first: [S::V; 4], second: [S::V; 4]) -> [S::V; 2] {
        let (s, zero) = (self.s, self.s.splat32(0));
        let Some([a, b, c, d]) = self.x.first_chunk() else { return [zero; 2] };
        // Four of sixteen rows.
        self.ask(BLOCK);
        [s.dot_long(first, [&a.codes[0], &b.codes[0]]), s.dot_long(second, [&c.codes[0], &d.codes[0]])]
    }

    #[inline(always)]
    fn join(&mut self, dots: [[S::V; 2]; 4], scales: [[S::F; 2]; 4]) {
        let Some((x, rest)) = self.x.split_first_chunk::<4>() else { return };
        self.x = rest;
        let (s, zero) = (self.s, self.s.splat(0.0));
        let (first, second) = (s.transpose_parts(dots.map(|d| d[0])), s.transpose_parts(dots.map(|d| d[1])));
        for (j, x) in x.iter().enumerate() {
            let dots = if j < 2 { [first[2 * j], first[2 * j + 1]] } else { [second[2 * j - 4], second[2 * j - 3]] };
            self.sum = halves::<S, B::Shape>(s, x, self.sum, dots, scales[j], [zero; 2]);
        }
    }
}

#[inline(always)]
fn multiply<S: Simd, C: Shape>(s: S, x: &Panel<1>, sum: S::F, lo: [S::V; 4], hi: [S::V; 4], scale: [S::F; 2], shift: [S::F; 2]) -> S::F {
    if C::HALVES {
        let [a, b] = x.codes[0].as_chunks::<16>().0 else { return sum };
        halves::<S, C>(s, x, sum, [by_code!(C, s.dot_rows16(lo, a)), by_code!(C, s.dot_rows16(hi, b))], scale, shift)
    } else {
        let dot = s.add32(by_code!(C, s.dot_rows32(lo, hi, &x.codes[0])), s.splat32(x.start(0, offset::<S, C>())));
        join::<S, C, 1>(s, dot, x, 0, scale[0], shift[0], sum)
    }
}

/// Adds the dots of codes with the two halves of a block.
#[inline(always)]
fn halves<S: Simd, C: Shape>(s: S, x: &Panel<1>, sum: S::F, dots: [S::V; 2], scale: [S::F; 2], shift: [S::F; 2]) -> S::F {
    let start = |half| s.splat32(x.half_start(0, half, offset::<S, C>()));
    join_halves::<S, C, 1>(s, [s.add32(dots[0], start(0)), s.add32(dots[1], start(1))], x, 0, scale, shift, sum)
}

/// Adds the dot of a block with column `c` of a panel to its sum. The one place that says in which order.
#[inline(always)]
pub(super) fn join<S: Simd, C: Shape, const W: usize>(
    s: S,
    dot: S::V,
    x: &Panel<W>,
    c: usize,
    scale: S::F,
    shift: S::F,
    sum: S::F,
) -> S::F {
    let sum = s.fma(s.to_f(dot), s.mul(scale, s.splat(x.scale[c])), sum);
    if C::SHIFTS { s.fma(shift, s.splat(x.scaled_sum[c]), sum) } else { sum }
}

/// As [`join`], for the two dots of a format with `HALVES`.
#[inline(always)]
pub(super) fn join_halves<S: Simd, C: Shape, const W: usize>(
    s: S,
    dots: [S::V; 2],
    x: &Panel<W>,
    c: usize,
    scale: [S::F; 2],
    shift: [S::F; 2],
    sum: S::F,
) -> S::F {
    let both = s.fma(s.to_f(dots[1]), scale[1], s.mul(s.to_f(dots[0]), scale[0]));
    let sum = s.fma(both, s.splat(x.scale[c]), sum);
    if C::SHIFTS {
        let sum = s.fma(shift[0], s.splat(x.half_sum(c, 0)), sum);
        s.fma(shift[1], s.splat(x.half_sum(c, 1)), sum)
    } else {
        sum
    }
}
