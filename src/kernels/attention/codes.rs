//! Keys and values of quantised tiles: scores from integer dot products, values decoded exactly.
//!
//! Queries become two terms of 8 bits per block, the second of which holds the rounding error of the first, so that they lose
//! nothing that matters beside the keys. Per block the integer dots are exact; then one fma, in the order of the blocks.

use crate::kernels::hadamard::hadamard;
use crate::kernels::tiles::{BLOCK, KvType, SCALES, TILE_TOKENS, TileLayout};
use crate::kernels::vector::LANES;
use crate::simd::{I8, Simd, U4, prefetch, quad};
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
pub(super) fn pack(kv: KvType, query: &[f32], rotated: &mut Vec<f32>, out: &mut Vec<QueryBlock>) {
    rotated.clear();
    rotated.extend_from_slice(query);
    if kv.is_rotated() {
        hadamard(rotated);
    }
    for x in rotated.as_chunks::<BLOCK>().0 {
        let most = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let finite = x.iter().all(|x| x.is_finite());
        let inverse = if most > 0.0 && finite { 127.0 / most } else { 0.0 };
        let mut block = QueryBlock { codes: [[0; 16]; 4], scale: if finite { most / 127.0 / FINE } else { f32::NAN }, sums: [0; 2] };
        for (i, x) in x.iter().enumerate() {
            let x = x * inverse;
            let first = x.round_ties_even().clamp(-127.0, 127.0);
            let second = ((x - first) * FINE).round_ties_even().clamp(-127.0, 127.0);
            block.codes[i / 16][i % 16] = first as i8;
            block.codes[2 + i / 16][i % 16] = second as i8;
            block.sums[0] += first as i32;
            block.sums[1] += second as i32;
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
}

/// [`KvType::Q8_0`]
pub(super) struct Q8_0;
/// [`KvType::Q4`]
pub(super) struct Q4;

impl Codes for Q8_0 {
    const KIND: u8 = I8;
    const BYTES: usize = SCALES + BLOCK * TILE_TOKENS;
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
    for tile in tiles {
        prefetch(bytes, (tile + 4) * stride, layout.bytes().min(stride));
        let keys = &bytes[tile * stride..][..layout.key_bytes()];
        for from in (0..TILE_TOKENS).step_by(S::LANES) {
            let mut sums = [s.splat(0.0); R];
            for (b, block) in keys.chunks_exact(K::BYTES).enumerate() {
                let (scales, planes) = block.split_at(SCALES);
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
