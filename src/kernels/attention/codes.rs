//! Keys and values of quantised tiles: scores from integer dot products, values decoded exactly.
//!
//! Queries become two terms of 8 bits per block, the second of which holds the rounding error of the first, so that they lose
//! nothing that matters beside the keys. Per block the integer dots are exact; then one fma, in the order of the blocks.

use super::cells::AHEAD;
use super::products::Values;
use crate::kernels::hadamard::hadamard;
use crate::kernels::tiles::{BLOCK, KvType, SCALES, TILE_TOKENS, TileLayout};
use crate::kernels::vector::LANES;
use crate::simd::{I8, Simd, U4, prefetch_ahead, quad};
use std::marker::PhantomData;
use std::ops::Range;

/// Steps of the second term in a step of the first.
const FINE: f32 = 254.0;

/// A block of a query: `scale * (254 * first + second)`.
#[derive(Clone, Copy)]
pub(super) struct QueryBlock {
    /// The codes of the first term, then of the second, in halves.
    codes: [[i8; 16]; 4],
    scale: f32,
    /// Their sums.
    sums: [i32; 2],
}

/// Appends the blocks of a query.
#[inline(always)]
pub(super) fn pack<S: Simd>(s: S, kv: KvType, query: &[f32], rotated: &mut Vec<f32>, out: &mut Vec<QueryBlock>) {
    rotated.clear();
    rotated.extend_from_slice(query);
    if kv.is_rotated() {
        hadamard(rotated);
    }
    let step = S::LANES;
    for x in rotated.as_chunks::<BLOCK>().0 {
        let (mut most, mut nothing) = (s.splat(0.0), s.splat(0.0));
        for x in x.chunks_exact(step) {
            let x = s.load(x);
            most = s.max(most, s.abs(x));
            nothing = s.fma(x, s.splat(0.0), nothing);
        }
        // Zero, but for what is not finite.
        let (most, finite) = (s.most(most), s.sum(nothing) == 0.0);
        // The inverse of less has no end.
        let counts = finite && most > 128.0 * f32::MIN_POSITIVE;
        let inverse = s.splat(if counts { 127.0 / most } else { 0.0 });
        let mut block = QueryBlock { codes: [[0; 16]; 4], scale: if finite { most / 127.0 / FINE } else { f32::NAN }, sums: [0; 2] };
        let limit = |x| s.min(s.max(x, s.splat(-127.0)), s.splat(127.0));
        for (i, x) in x.chunks_exact(step).enumerate().filter(|_| counts) {
            let x = s.mul(s.load(x), inverse);
            let first = s.round(limit(x));
            let second = s.round(limit(s.mul(s.sub(x, s.to_f(first)), s.splat(FINE))));
            for (term, codes) in [first, second].into_iter().enumerate() {
                s.store_i8(codes, &mut block.codes[2 * term + i * step / 16][i * step % 16..]);
                block.sums[term] += s.total(codes);
            }
        }
        out.push(block);
    }
}

/// A quantised type in the vocabulary.
pub(super) trait Codes {
    /// What the dot word is told.
    const KIND: u8;
    /// Bytes of a block of sixteen keys.
    const BYTES: usize;
    /// What codes are too large by.
    fn offset<S: Simd>() -> i32;
    /// The two halves of a block's codes for the lanes from token `from` on.
    fn load<S: Simd>(s: S, planes: &[u8], from: usize) -> [[S::V; 4]; 2];
    /// Bytes of a block of a value.
    const ROW_BYTES: usize;
    /// What the codes of values are too large by.
    const ROW_OFFSET: f32;
    /// The codes of a value's block from element `from` on.
    fn row<S: Simd>(s: S, codes: &[u8], from: usize) -> S::V;
}

/// [`KvType::Q8_0`]
pub(super) struct Q8_0;
/// [`KvType::Q4`]
pub(super) struct Q4;

impl Codes for Q8_0 {
    const KIND: u8 = I8;
    const BYTES: usize = SCALES + BLOCK * TILE_TOKENS;
    const ROW_BYTES: usize = BLOCK;
    const ROW_OFFSET: f32 = 128.0;
    #[inline(always)]
    fn row<S: Simd>(s: S, codes: &[u8], from: usize) -> S::V {
        s.load_u8(&codes[from..])
    }
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        S::SIGNED_BIAS
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, planes: &[u8], from: usize) -> [[S::V; 4]; 2] {
        let planes = &planes[4 * from..];
        [quad!(I => s.signed(s.load_bytes(&planes[64 * I..]))), quad!(I => s.signed(s.load_bytes(&planes[64 * (4 + I)..])))]
    }
}

impl Codes for Q4 {
    const KIND: u8 = U4;
    const BYTES: usize = SCALES + BLOCK / 2 * TILE_TOKENS;
    const ROW_BYTES: usize = BLOCK / 2;
    const ROW_OFFSET: f32 = 8.0;
    #[inline(always)]
    fn row<S: Simd>(s: S, codes: &[u8], from: usize) -> S::V {
        let both = s.load_u8(&codes[from % (BLOCK / 2)..]);
        if from < BLOCK / 2 { s.and(both, s.splat32(15)) } else { s.shr32(both, 4) }
    }
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        8
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, planes: &[u8], from: usize) -> [[S::V; 4]; 2] {
        let (planes, mask) = (&planes[4 * from..], s.splat8(15));
        let both: [S::V; 4] = quad!(I => s.load_bytes(&planes[64 * I..]));
        [quad!(I => s.and(both[I], mask)), quad!(I => s.and(s.shr16(both[I], 4), mask))]
    }
}

/// As `products::score`, with the keys at the front of tiles that are `stride` bytes apart.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
pub(super) fn score<S: Simd, K: Codes, const R: usize>(
    s: S,
    queries: [&[QueryBlock]; R],
    layout: &TileLayout,
    bytes: &[u8],
    stride: usize,
    tiles: Range<usize>,
    scale: f32,
    scores: &mut [f32],
    width: usize,
) {
    let fine = s.splat(FINE);
    let first = tiles.start;
    let ahead = AHEAD.div_ceil(layout.key_bytes().max(1)) * stride;
    for tile in tiles {
        let keys = &bytes[tile * stride..][..layout.key_bytes()];
        for from in (0..TILE_TOKENS).step_by(S::LANES) {
            let mut sums = [s.splat(0.0); R];
            for (b, block) in keys.chunks_exact(K::BYTES).enumerate() {
                let (scales, planes) = block.split_at(SCALES);
                if from == 0 {
                    prefetch_ahead(block, ahead, K::BYTES);
                }
                let scales = s.load_f16(&scales[2 * from..]);
                let [lo, hi] = K::load(s, planes, from);
                for (sum, query) in sums.iter_mut().zip(&queries) {
                    let query = &query[b];
                    let [a, b, c, d] = &query.codes;
                    let start = query.sums.map(|sum| -K::offset::<S>() * sum);
                    let first = dot::<S, K>(s, start[0], &lo, a, &hi, b);
                    let second = dot::<S, K>(s, start[1], &lo, c, &hi, d);
                    let both = s.fma(s.to_f(first), fine, s.to_f(second));
                    *sum = s.fma(both, s.mul(scales, s.splat(query.scale)), *sum);
                }
            }
            for (scores, sum) in scores.chunks_mut(width).zip(sums) {
                s.store(s.mul(sum, s.splat(scale)), &mut scores[(tile - first) * TILE_TOKENS + from..]);
            }
        }
    }
}

#[inline(always)]
fn dot<S: Simd, K: Codes>(s: S, start: i32, lo: &[S::V; 4], a: &[i8; 16], hi: &[S::V; 4], b: &[i8; 16]) -> S::V {
    let start = s.splat32(start);
    // The kind of the word is a constant of its own, which generics cannot pass on.
    if K::KIND == I8 { s.dot::<I8>(s.dot::<I8>(start, lo, a), hi, b) } else { s.dot::<U4>(s.dot::<U4>(start, lo, a), hi, b) }
}

/// The values of a tile, as rows, into `out`.
#[inline(always)]
pub(super) fn decode_values<S: Simd>(s: S, layout: &TileLayout, values: &[u8], out: &mut [f32]) {
    let length = layout.value_length;
    let (scales, rows) = values.split_at(length / BLOCK * SCALES);
    let eight = layout.values == KvType::Q8_0;
    let (bytes, offset) = if eight { (BLOCK, -128.0) } else { (BLOCK / 2, -8.0) };
    for (b, scales) in scales.chunks_exact(SCALES).enumerate() {
        let mut of_token = [0.0; TILE_TOKENS];
        for from in (0..LANES).step_by(S::LANES) {
            s.store(s.load_f16(&scales[2 * from..]), &mut of_token[from..]);
        }
        for (slot, scale) in of_token.iter().enumerate() {
            let codes = &rows[(slot * (length / BLOCK) + b) * bytes..][..bytes];
            let out = &mut out[slot * length + b * BLOCK..][..BLOCK];
            // Exact: a code has 8 bits, a scale 11.
            let (scale, shift) = (s.splat(*scale), s.splat(offset * scale));
            for (v, codes) in codes.chunks_exact(S::LANES).enumerate() {
                let codes = s.load_u8(codes);
                if eight {
                    s.store(s.fma(s.to_f(codes), scale, shift), &mut out[v * S::LANES..]);
                } else {
                    s.store(s.fma(s.to_f(s.and(codes, s.splat32(15))), scale, shift), &mut out[v * S::LANES..]);
                    s.store(s.fma(s.to_f(s.shr32(codes, 4)), scale, shift), &mut out[BLOCK / 2 + v * S::LANES..]);
                }
            }
        }
    }
}

/// Values in quantised tiles that are `stride` bytes apart, in place.
pub(super) struct CodedValues<'a, K> {
    layout: &'a TileLayout,
    bytes: &'a [u8],
    stride: usize,
    kind: PhantomData<K>,
}

impl<'a, K> CodedValues<'a, K> {
    /// Those of tiles from number `first` on.
    #[inline(always)]
    pub fn new(layout: &'a TileLayout, bytes: &'a [u8], stride: usize, first: usize) -> Self {
        CodedValues { layout, bytes: bytes.get(first * stride..).unwrap_or(&[]), stride, kind: PhantomData }
    }
}

impl<K> Clone for CodedValues<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for CodedValues<'_, K> {}

impl<K: Codes> Values for CodedValues<'_, K> {
    #[inline(always)]
    fn add<S: Simd, const R: usize>(self, s: S, weights: [&[f32]; R], tokens: Range<usize>, acc: &mut [f32], width: usize) {
        for first in (0..self.layout.value_length).step_by(if S::LANES == LANES { BLOCK } else { LANES }) {
            if S::LANES == LANES {
                add_cells::<S, K, R, 2>(s, weights, self, tokens.clone(), first, acc, width);
            } else {
                add_cells::<S, K, R, 1>(s, weights, self, tokens.clone(), first, acc, width);
            }
        }
    }
}

/// Adds `C` times sixteen elements of the values, from number `first` on.
#[inline(always)]
fn add_cells<S: Simd, K: Codes, const R: usize, const C: usize>(
    s: S,
    weights: [&[f32]; R],
    values: CodedValues<'_, K>,
    tokens: Range<usize>,
    first: usize,
    acc: &mut [f32],
    width: usize,
) {
    let CodedValues { layout, bytes, stride, .. } = values;
    let (blocks, block) = (layout.value_length / BLOCK, first / BLOCK);
    let mut sums = [[[s.splat(0.0); 4]; C]; R];
    for (sums, acc) in sums.iter_mut().zip(acc.chunks_exact(width)) {
        for (sums, acc) in sums.iter_mut().zip(acc[first..].chunks_exact(LANES)) {
            for (sum, acc) in sums.iter_mut().zip(acc.chunks_exact(S::LANES)) {
                *sum = s.load(acc);
            }
        }
    }
    let (step, at) = (blocks * K::ROW_BYTES, block * K::ROW_BYTES);
    let ahead = AHEAD.div_ceil(layout.value_bytes().max(1)) * stride;
    let mut token = tokens.start;
    while token < tokens.end {
        let slot = token % TILE_TOKENS;
        let n = (TILE_TOKENS - slot).min(tokens.end - token);
        let (scales, rows) = bytes[token / TILE_TOKENS * stride..][..layout.value_bytes()].split_at(blocks * SCALES);
        let (mut scale_of, mut shift_of) = ([0.0; TILE_TOKENS], [0.0; TILE_TOKENS]);
        for from in (0..LANES).step_by(S::LANES) {
            let scale = s.load_f16(&scales[block * SCALES + 2 * from..]);
            s.store(scale, &mut scale_of[from..]);
            s.store(s.mul(scale, s.splat(-K::ROW_OFFSET)), &mut shift_of[from..]);
        }
        let (scale_of, shift_of) = (&scale_of[slot..][..n], &shift_of[slot..][..n]);
        let mut of_rows: [&[f32]; R] = [&[]; R];
        for (of_row, weights) in of_rows.iter_mut().zip(&weights) {
            *of_row = &weights[token - tokens.start..][..n];
        }
        for (i, (scale, shift)) in scale_of.iter().zip(shift_of).enumerate() {
            let codes = &rows[(slot + i) * step + at..][..K::ROW_BYTES];
            prefetch_ahead(codes, ahead, K::ROW_BYTES);
            // Exact: a code has 8 bits, a scale 11.
            let (scale, shift) = (s.splat(*scale), s.splat(*shift));
            for c in 0..C {
                for v in 0..LANES / S::LANES {
                    let value = s.fma(s.to_f(K::row(s, codes, first % BLOCK + c * LANES + v * S::LANES)), scale, shift);
                    for (sums, weights) in sums.iter_mut().zip(&of_rows) {
                        sums[c][v] = s.fma(s.splat(weights[i]), value, sums[c][v]);
                    }
                }
            }
        }
        token += n;
    }
    for (sums, acc) in sums.iter().zip(acc.chunks_exact_mut(width)) {
        for (sums, acc) in sums.iter().zip(acc[first..].chunks_exact_mut(LANES)) {
            for (sum, acc) in sums.iter().zip(acc.chunks_exact_mut(S::LANES)) {
                s.store(*sum, acc);
            }
        }
    }
}
