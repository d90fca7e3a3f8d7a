//! Sketches: two bits for each element of a key, enough to say which few keys of very many a query may want.
//!
//! What is sketched is how a key differs from a mean that its neighbours share: rotated, so that every element says as much as any other
//! ([`hadamard`]), each element becomes one of the four levels -3/2, -1/2, 1/2, 3/2 times a step of the key's own. The step is the one with which
//! the product of the sketch and the key is the key's own length squared, so that estimates are right on average whatever the direction of
//! the query (after RaBitQ, arXiv 2405.12497). The score of key `k` of mean `m` for a query `q` is estimated as `q m + step * (H q) (code - 3/2)`.
//!
//! Keys lie in tiles of sixteen: for each sixteen elements a plane of four bytes a key, then sixteen steps. Bits `2 j` and `2 j + 1` of
//! byte `i` of plane `p` are the code of element `16 p + 4 j + i`; what is missing to sixteen elements or keys is zero.
//!
//! Invariants: dots are exact, the rest is done for each key alone in one order, so an estimate has the same bits on every level.

use super::hadamard::hadamard;
use super::tiles::TILE_TOKENS;
use crate::error::{Result, try_grow};
use crate::simd::{Level, Simd, Task, U4, dispatch, quad};
use half::f16;

/// Elements of a plane.
const PLANE: usize = 16;
/// Bytes of a plane.
const PLANE_BYTES: usize = 4 * TILE_TOKENS;
/// Bytes of a tile's steps.
const STEPS: usize = 2 * TILE_TOKENS;
/// The step that loses least of a normal distribution in four even levels, in standard deviations.
const BEST_STEP: f64 = 0.9957;

/// Bytes of the sketches of sixteen keys of `key_length` elements.
pub fn tile_bytes(key_length: usize) -> usize {
    key_length.div_ceil(PLANE) * PLANE_BYTES + STEPS
}

/// Bytes of the sketches of `keys` keys.
pub fn bytes(key_length: usize, keys: usize) -> usize {
    keys.div_ceil(TILE_TOKENS) * tile_bytes(key_length)
}

/// Writes the sketches of `keys`, rows as long as `mean`, around `mean`; `out` has [`bytes`] of them. The keys are spent.
pub fn encode(keys: &mut [f32], mean: &[f32], out: &mut [u8]) {
    let (length, tile_bytes) = (mean.len(), tile_bytes(mean.len()));
    out.fill(0);
    for (i, key) in keys.chunks_exact_mut(length).enumerate() {
        key.iter_mut().zip(mean).for_each(|(k, m)| *k -= m);
        hadamard(key);
        let (tile, at) = (&mut out[i / TILE_TOKENS * tile_bytes..][..tile_bytes], i % TILE_TOKENS);
        let (planes, steps) = tile.split_at_mut(tile_bytes - STEPS);
        let squares: f64 = key.iter().map(|x| f64::from(*x).powi(2)).sum();
        let deviation = BEST_STEP * (squares / length as f64).sqrt();
        let mut along = 0.0;
        for (j, x) in key.iter().enumerate() {
            let x = f64::from(*x);
            // Zero in all elements: any code, times a step of zero.
            let code = if deviation > 0.0 { (x / deviation + 2.0).clamp(0.0, 3.0) as u8 } else { 0 };
            along += x * (f64::from(code) - 1.5);
            planes[j / PLANE * PLANE_BYTES + 4 * at + j % 4] |= code << (j % PLANE / 4 * 2);
        }
        let step = if along > 0.0 { (squares / along).min(65504.0) } else { 0.0 };
        steps[2 * at..][..2].copy_from_slice(&f16::from_f64(step).to_le_bytes());
    }
}

/// A query as it meets sketches.
#[derive(Clone, Debug, Default)]
pub struct SketchQuery {
    codes: Vec<[i8; PLANE]>,
    scale: f32,
    /// What the codes' offset of 3/2 adds to a dot.
    offset: f32,
}

impl SketchQuery {
    /// Takes up a query; false if it has an element that is not a finite number: nothing can be estimated then.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory).
    pub fn load(&mut self, query: &[f32]) -> Result<bool> {
        let mut rotated = Vec::new();
        try_grow(&mut rotated, "a query", query.len())?;
        rotated.copy_from_slice(query);
        hadamard(&mut rotated);
        let most = rotated.iter().fold(0f32, |m, x| m.max(x.abs()));
        if !rotated.iter().all(|x| x.is_finite()) {
            return Ok(false);
        }
        self.scale = most / 127.0;
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        self.codes.clear();
        try_grow(&mut self.codes, "a query", query.len().div_ceil(PLANE))?;
        let mut sum = 0;
        for (codes, x) in self.codes.iter_mut().zip(rotated.chunks(PLANE)) {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
                sum += i32::from(*code);
            }
        }
        self.offset = 1.5 * sum as f32;
        Ok(true)
    }
}

/// Estimates for whole tiles of sketches: `(queries, keys)` into `out`, of which rows are `width` apart; `bases` are the scores of the mean.
pub fn estimate(queries: &[SketchQuery], bases: &[f32], tiles: &[u8], out: &mut [f32], width: usize) {
    estimate_at(Level::detect(), queries, bases, tiles, out, width);
}

/// [`estimate`] on a given level.
///
/// # Panics
/// If `out` has no room for a row of each query.
pub fn estimate_at(level: Level, queries: &[SketchQuery], bases: &[f32], tiles: &[u8], out: &mut [f32], width: usize) {
    for (i, (queries, bases)) in queries.chunks(2).zip(bases.chunks(2)).enumerate() {
        let out = &mut out[2 * i * width..];
        match (queries, bases) {
            ([a, b], [x, y]) => dispatch(level, Estimate { queries: [a, b], bases: [*x, *y], tiles, out, width }),
            ([a], [x]) => dispatch(level, Estimate { queries: [a], bases: [*x], tiles, out, width }),
            _ => {}
        }
    }
}

/// The best estimate of each block, the score of its mean left out, `(queries, blocks)` into `out`, of which rows are `width` apart: `tiles`
/// hold `keys` keys in blocks of `block_keys`, each block in whole tiles.
///
/// # Panics
/// If `out` has no room for a row of each query, or `tiles` do not hold so many keys.
pub fn best_of_blocks(queries: &[SketchQuery], tiles: &[u8], block_keys: usize, keys: usize, out: &mut [f32], width: usize) {
    best_of_blocks_at(Level::detect(), queries, tiles, block_keys, keys, out, width);
}

/// [`best_of_blocks`] on a given level.
///
/// # Panics
/// As [`best_of_blocks`].
pub fn best_of_blocks_at(
    level: Level,
    queries: &[SketchQuery],
    tiles: &[u8],
    block_keys: usize,
    keys: usize,
    out: &mut [f32],
    width: usize,
) {
    let (fours, rest) = queries.as_chunks::<4>();
    let blocks = [block_keys, keys];
    for (i, [a, b, c, d]) in fours.iter().enumerate() {
        dispatch(level, BestOfBlocks { queries: [a, b, c, d], tiles, blocks, out: &mut out[4 * i * width..], width });
    }
    for (i, query) in rest.iter().enumerate() {
        dispatch(level, BestOfBlocks { queries: [query], tiles, blocks, out: &mut out[(4 * fours.len() + i) * width..], width });
    }
}

/// Estimates for `S::LANES` keys of a tile from number `from` on, without the scores of the mean.
#[inline(always)]
fn estimates<S: Simd, const R: usize>(s: S, queries: &[&SketchQuery; R], codes: &[u8], steps: &[u8], from: usize) -> [S::F; R] {
    let mask = s.splat8(3);
    let mut dots = [s.splat32(0); R];
    for (p, plane) in codes.chunks_exact(PLANE_BYTES).enumerate() {
        let four = s.load_bytes(&plane[4 * from..]);
        let w: [S::V; 4] = quad!(I => s.and(s.shr16(four, 2 * I as u32), mask));
        for (dot, query) in dots.iter_mut().zip(queries) {
            *dot = s.dot::<U4>(*dot, &w, &query.codes[p]);
        }
    }
    let steps = s.load_f16(&steps[2 * from..]);
    let mut out = [s.splat(0.0); R];
    for ((out, dot), query) in out.iter_mut().zip(dots).zip(queries) {
        *out = s.mul(s.mul(s.sub(s.to_f(dot), s.splat(query.offset)), s.splat(query.scale)), steps);
    }
    out
}

/// For `R` queries.
struct BestOfBlocks<'a, const R: usize> {
    queries: [&'a SketchQuery; R],
    tiles: &'a [u8],
    /// Keys of a block, and of all.
    blocks: [usize; 2],
    out: &'a mut [f32],
    width: usize,
}

impl<const R: usize> Task for BestOfBlocks<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let BestOfBlocks { queries, tiles, blocks: [block_keys, keys], out, width } = self;
        let Some(planes) = queries.first().map(|q| q.codes.len()) else { return };
        let tile_bytes = planes * PLANE_BYTES + STEPS;
        let of_block = block_keys.div_ceil(TILE_TOKENS) * tile_bytes;
        for block in 0..keys.div_ceil(block_keys.max(1)) {
            let len = block_keys.min(keys - block * block_keys);
            let tiles = &tiles[block * of_block..][..len.div_ceil(TILE_TOKENS) * tile_bytes];
            let mut most = [s.splat(f32::NEG_INFINITY); R];
            // What fills up the last tile are no keys.
            let mut most_of_last = [f32::NEG_INFINITY; R];
            for (t, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
                let (codes, steps) = tile.split_at(planes * PLANE_BYTES);
                for from in (0..TILE_TOKENS).step_by(S::LANES) {
                    let found = estimates(s, &queries, codes, steps, from);
                    let here = (len - t * TILE_TOKENS).saturating_sub(from).min(S::LANES);
                    if here == S::LANES {
                        most.iter_mut().zip(found).for_each(|(most, found)| *most = s.max(*most, found));
                    } else {
                        for (most, found) in most_of_last.iter_mut().zip(found) {
                            *most = s.to_array(found)[..here].iter().copied().fold(*most, f32::max);
                        }
                    }
                }
            }
            for (r, (most, of_last)) in most.into_iter().zip(most_of_last).enumerate() {
                out[r * width + block] = s.most(most).max(of_last);
            }
        }
    }
}

/// For `R` queries.
struct Estimate<'a, const R: usize> {
    queries: [&'a SketchQuery; R],
    bases: [f32; R],
    tiles: &'a [u8],
    out: &'a mut [f32],
    width: usize,
}

impl<const R: usize> Task for Estimate<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Estimate { queries, bases, tiles, out, width } = self;
        let Some(first) = queries.first() else { return };
        let planes = first.codes.len();
        let tile_bytes = planes * PLANE_BYTES + STEPS;
        for (t, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
            let (codes, steps) = tile.split_at(planes * PLANE_BYTES);
            for from in (0..TILE_TOKENS).step_by(S::LANES) {
                for (r, found) in estimates(s, &queries, codes, steps, from).into_iter().enumerate() {
                    s.store(s.add(found, s.splat(bases[r])), &mut out[r * width + t * TILE_TOKENS + from..]);
                }
            }
        }
    }
}
