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
//! Where many queries ask at once for each block's best key ([`SketchQuery::load_coarse`]), their codes are so small that what two of them add
//! to a dot, with any of the sixteen pairs of levels, fits a byte: a table. Where there is no instruction for dots of bytes, one lookup then does
//! what two multiplications and an addition do (the idea of Quicker ADC, arXiv 1812.09162, and of Faiss's fast scan).
//!
//! Invariants: dots are exact, by products or by tables, the rest is done for each key alone in one order, so an estimate has the same bits on
//! every level.

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

/// Largest code of a coarse query: two of them times levels 0 to 3 add up to one of 61 numbers in a row, and four such sums, each from zero on, stay
/// below 256.
const COARSE: f32 = 10.0;
/// Planes of which the sums of tables are taken at once: keys of 256 elements.
const PLANES_MAX: usize = 16;
/// Pairs of elements in a plane.
const PAIRS: usize = PLANE / 2;

/// A query as it meets sketches.
#[derive(Clone, Debug, Default)]
pub struct SketchQuery {
    codes: Vec<[i8; PLANE]>,
    scale: f32,
    /// What the codes' offset of 3/2 adds to a dot.
    offset: f32,
    /// Of a coarse query, for each plane: table `2 i + h` has at `x` the product of elements `8 h + i` and `8 h + 4 + i` with `x & 3` and `x >> 2`, and
    /// as much as makes the least of its products zero.
    tables: Vec<[[i8; 16]; PAIRS]>,
    /// The sum of what was added.
    added: i32,
}

impl SketchQuery {
    /// Takes up a query; false if it has an element that is not a finite number: nothing can be estimated then.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory).
    pub fn load(&mut self, query: &[f32]) -> Result<bool> {
        self.tables.clear();
        self.load_codes(query, 127.0)
    }

    /// Takes up a query for [`best_of_blocks`]: in 21 steps an element in place of 255, which costs little beside the four of a key.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory).
    pub fn load_coarse(&mut self, query: &[f32]) -> Result<bool> {
        let loaded = self.load_codes(query, COARSE)?;
        self.tables.clear();
        try_grow(&mut self.tables, "a query", self.codes.len())?;
        self.added = 0;
        for (tables, codes) in self.tables.iter_mut().zip(&self.codes) {
            for (t, table) in tables.iter_mut().enumerate() {
                let first = t % 2 * PLANE / 2 + t / 2;
                let pair = [codes[first], codes[first + 4]];
                let added = pair.map(|code| 3 * i32::from(code.min(0))).iter().sum::<i32>();
                for (x, product) in (0..).zip(table) {
                    *product = (i32::from(pair[0]) * (x & 3) + i32::from(pair[1]) * (x >> 2) - added) as i8;
                }
                self.added -= added;
            }
        }
        Ok(loaded)
    }

    /// False as [`SketchQuery::load`] says; codes are at most `largest`.
    fn load_codes(&mut self, query: &[f32], largest: f32) -> Result<bool> {
        let mut rotated = Vec::new();
        try_grow(&mut rotated, "a query", query.len())?;
        rotated.copy_from_slice(query);
        hadamard(&mut rotated);
        let most = rotated.iter().fold(0f32, |m, x| m.max(x.abs()));
        self.codes.clear();
        if !rotated.iter().all(|x| x.is_finite()) {
            return Ok(false);
        }
        self.scale = most / largest;
        let inverse = if most > 0.0 { largest / most } else { 0.0 };
        try_grow(&mut self.codes, "a query", query.len().div_ceil(PLANE))?;
        let mut sum = 0;
        for (codes, x) in self.codes.iter_mut().zip(rotated.chunks(PLANE)) {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = (x * inverse).round_ties_even().clamp(-largest, largest) as i8;
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
    let Some(planes) = queries.first().map(|q| q.codes.len()) else { return };
    assert!(queries.iter().all(|q| q.codes.len() == planes), "queries of one length");
    let blocks = Blocks { planes, tiles, block_keys: block_keys.max(1), keys };
    dispatch(level, BestOfBlocks { queries, blocks, out, width });
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
        *out = scaled(s, query, dot, steps);
    }
    out
}

/// Keys in blocks, each in whole tiles.
#[derive(Clone, Copy)]
struct Blocks<'a> {
    planes: usize,
    tiles: &'a [u8],
    block_keys: usize,
    keys: usize,
}

impl<'a> Blocks<'a> {
    fn tile_bytes(&self) -> usize {
        self.planes * PLANE_BYTES + STEPS
    }

    /// How many keys a block has, and its tiles.
    fn of(&self, block: usize) -> (usize, &'a [u8]) {
        let of_block = self.block_keys.div_ceil(TILE_TOKENS) * self.tile_bytes();
        let len = self.block_keys.min(self.keys - block * self.block_keys);
        (len, &self.tiles[block * of_block..][..len.div_ceil(TILE_TOKENS) * self.tile_bytes()])
    }
}

struct BestOfBlocks<'a> {
    queries: &'a [SketchQuery],
    blocks: Blocks<'a>,
    out: &'a mut [f32],
    width: usize,
}

impl Task for BestOfBlocks<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let BestOfBlocks { queries, blocks, out, width } = self;
        let all = blocks.keys.div_ceil(blocks.block_keys);
        let have_tables = blocks.planes <= PLANES_MAX && queries.iter().all(|q| q.tables.len() == blocks.planes);
        // The last block may have fewer keys than go together.
        let by_tables = S::LOOKUP_BEATS_DOT && have_tables && blocks.block_keys.is_multiple_of(4 * S::LANES);
        let by_tables = if by_tables { blocks.keys / blocks.block_keys } else { 0 };
        for block in 0..by_tables {
            best_by_tables(s, queries, blocks, block, out, width);
        }
        let (fours, rest) = queries.as_chunks::<4>();
        for (i, [a, b, c, d]) in fours.iter().enumerate() {
            for block in by_tables..all {
                best_by_dots(s, &[a, b, c, d], blocks, block, &mut out[4 * i * width..], width);
            }
        }
        for (i, query) in rest.iter().enumerate() {
            for block in by_tables..all {
                best_by_dots(s, &[query], blocks, block, &mut out[(4 * fours.len() + i) * width..], width);
            }
        }
    }
}

#[inline(always)]
fn best_by_dots<S: Simd, const R: usize>(
    s: S,
    queries: &[&SketchQuery; R],
    blocks: Blocks<'_>,
    block: usize,
    out: &mut [f32],
    width: usize,
) {
    let (len, tiles) = blocks.of(block);
    let mut most = [s.splat(f32::NEG_INFINITY); R];
    // What fills up the last tile are no keys.
    let mut most_of_last = [f32::NEG_INFINITY; R];
    for (t, tile) in tiles.chunks_exact(blocks.tile_bytes()).enumerate() {
        let (codes, steps) = tile.split_at(blocks.planes * PLANE_BYTES);
        for from in (0..TILE_TOKENS).step_by(S::LANES) {
            let found = estimates(s, queries, codes, steps, from);
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

/// `4 * LANES` keys go together, four vectors of them: byte `j` of lane `l` of an index is of key `j * LANES + l`.
#[inline(always)]
fn best_by_tables<S: Simd>(s: S, queries: &[SketchQuery], blocks: Blocks<'_>, block: usize, out: &mut [f32], width: usize) {
    let (len, tiles) = blocks.of(block);
    let [low, high] = [s.splat32(0x00ff_00ff), s.splat32(0xff00_ff00_u32 as i32)];
    let [low_half, high_half] = [s.splat32(0x0000_ffff), s.splat32(0xffff_0000_u32 as i32)];
    let nibble = s.splat8(15);
    for first in (0..len).step_by(4 * S::LANES) {
        let place = |j: usize| {
            let key = first + j * S::LANES;
            (&tiles[key / TILE_TOKENS * blocks.tile_bytes()..][..blocks.tile_bytes()], key % TILE_TOKENS)
        };
        let mut indices = [[s.splat32(0); PAIRS]; PLANES_MAX];
        for (p, indices) in indices[..blocks.planes].iter_mut().enumerate() {
            let [a, b, c, d] = quad!(J => {
                let (tile, at) = place(J);
                s.load_bytes(&tile[p * PLANE_BYTES + 4 * at..])
            });
            // Bytes 0 and 2 of two keys, then 1 and 3; then byte i of four keys.
            let [ab02, cd02] = [[a, b], [c, d]].map(|[x, y]| s.or(s.and(x, low), s.shl16(y, 8)));
            let [ab13, cd13] = [[a, b], [c, d]].map(|[x, y]| s.or(s.shr16(x, 8), s.and(y, high)));
            let [byte0, byte1] = [[ab02, cd02], [ab13, cd13]].map(|[x, y]| s.or(s.and(x, low_half), s.shl32(y, 16)));
            let [byte2, byte3] = [[ab02, cd02], [ab13, cd13]].map(|[x, y]| s.or(s.shr32(x, 16), s.and(y, high_half)));
            for (i, byte) in [byte0, byte1, byte2, byte3].into_iter().enumerate() {
                indices[2 * i] = s.and(byte, nibble);
                indices[2 * i + 1] = s.and(s.shr16(byte, 4), nibble);
            }
        }
        let steps: [S::F; 4] = quad!(J => {
            let (tile, at) = place(J);
            s.load_f16(&tile[blocks.planes * PLANE_BYTES + 2 * at..])
        });
        for (r, query) in queries.iter().enumerate() {
            // Sums of keys 0 and 2 of a lane, and of 1 and 3, in 16 bits: at most 240 for each four tables.
            let (mut even, mut odd) = (s.splat32(0), s.splat32(0));
            for (tables, indices) in query.tables.iter().zip(&indices) {
                for half in [0, PAIRS / 2] {
                    let [a, b, c, d] = quad!(T => s.lookup(&tables[half + T], indices[half + T]));
                    let sums = s.add32(s.add32(a, b), s.add32(c, d));
                    even = s.add32(even, s.and(sums, low));
                    odd = s.add32(odd, s.shr16(sums, 8));
                }
            }
            let dots = [s.and(even, low_half), s.and(odd, low_half), s.shr32(even, 16), s.shr32(odd, 16)];
            let mut most = s.splat(f32::NEG_INFINITY);
            for (dot, steps) in dots.into_iter().zip(steps) {
                most = s.max(most, scaled(s, query, s.add32(dot, s.splat32(-query.added)), steps));
            }
            let most = s.most(most);
            let best = &mut out[r * width + block];
            *best = if first == 0 { most } else { most.max(*best) };
        }
    }
}

/// Estimates from dots.
#[inline(always)]
fn scaled<S: Simd>(s: S, query: &SketchQuery, dot: S::V, steps: S::F) -> S::F {
    s.mul(s.mul(s.sub(s.to_f(dot), s.splat(query.offset)), s.splat(query.scale)), steps)
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
