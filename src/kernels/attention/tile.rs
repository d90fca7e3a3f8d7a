//! A tile of keys and values against the queries of a tile of tokens.
//!
//! Keys are decoded transposed, `(key_length, KEY_TILE)`: the lanes of a vector are keys, so scores need no sums across lanes.
//! Rows (token, query head) are taken four at a time, and a block of four rows by some vectors of keys, or of values, stays
//! in registers while the product runs over the other dimension.
//!
//! Invariants: a row's results do not depend on the rows it shares a block with; per row, scores are summed over the key's
//! elements and values over the keys, in order, so that they are the same whatever the number of lanes.

use super::{KvSegment, PAD, Part, Partial, Queries, QueryKind, Shape, Visibility};
use crate::kernels::codec::{Bf16, Codec, Encoding, F16, F32};
use crate::kernels::vector::{LANES, exp, exp_vector, sum_vectors};
use crate::simd::{Rows, Scratch, Simd, Task};
use std::ops::Range;

/// Keys decoded and scored at once.
const KEY_TILE: usize = 64;
/// Rows of a block.
const BLOCK: usize = 4;

/// Some tokens of the batch with the query heads that share one KV head.
pub(super) struct QueryTile<'a> {
    pub shape: &'a Shape,
    /// The first token.
    pub first: usize,
    pub tokens: usize,
    /// KV head.
    pub head: usize,
    pub queries: Queries<'a>,
    /// What this KV head holds.
    pub segments: &'a [KvSegment<'a>],
}

/// Buffers of one thread, kept between calls.
#[derive(Default)]
pub(super) struct Buffers {
    /// Transposed keys and values of a tile.
    tile: Scratch,
    /// Encoded keys that cannot be read in place.
    spill: Vec<u8>,
    /// Queries in blocks of rows, `(key_length, rows of the block)` each.
    local: Vec<f32>,
    memory: Vec<f32>,
    /// For thresholds: `(rows, keys in memory)`.
    scores: Vec<f32>,
}

impl QueryTile<'_> {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.heads_kv
    }

    /// Row `r` of the tile is (token `r / group`, query head `r % group` of this KV head).
    pub fn rows(&self) -> usize {
        self.tokens * self.group()
    }

    fn in_memory(&self) -> impl Iterator<Item = &KvSegment<'_>> {
        self.segments.iter().filter(|s| s.query == QueryKind::Memory)
    }

    /// True if top-k leaves anything out.
    #[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
    pub fn has_thresholds(&self) -> bool {
        let k = self.shape.memory_top_k;
        k > 0 && self.in_memory().map(|s| s.len).sum::<usize>() > k
    }

    /// Entries of the segment that a token sees.
    #[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
    fn visible(&self, segment: &KvSegment<'_>, token: usize) -> Range<usize> {
        match segment.visibility {
            Visibility::All => 0..segment.len,
            Visibility::Causal { first, window } => {
                let end = (first + self.first + token + 1).min(segment.len);
                let start = if window == 0 { 0 } else { end.saturating_sub(window) };
                start..end
            }
        }
    }

    /// The union of what the tokens see: later ones see further, earlier ones begin sooner.
    #[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
    fn seen(&self, segment: &KvSegment<'_>) -> Range<usize> {
        self.visible(segment, 0).start..self.visible(segment, self.tokens - 1).end
    }

    /// True if some token sees some of the part.
    pub fn sees(&self, part: &Part) -> bool {
        let seen = self.seen(&self.segments[part.segment]);
        part.open || (seen.start < part.skip + part.keys && part.skip < seen.end)
    }

    /// Copies the queries into blocks.
    pub fn pack_queries(&self, buffers: &mut Buffers) {
        pack(self, self.queries.local, &mut buffers.local);
        if self.in_memory().next().is_some() {
            pack(self, self.queries.memory, &mut buffers.memory);
        }
    }
}

fn pack(tile: &QueryTile<'_>, queries: &[f32], out: &mut Vec<f32>) {
    let (d, group) = (tile.shape.key_length, tile.group());
    out.resize(tile.rows() * d, 0.0);
    for (b, block) in out.chunks_mut(BLOCK * d).enumerate() {
        let rows = block.len() / d;
        for r in 0..rows {
            let row = b * BLOCK + r;
            let at = (tile.first + row / group) * tile.shape.heads + tile.head * group + row % group;
            for (o, q) in block[r..].iter_mut().step_by(rows).zip(&queries[at * d..][..d]) {
                *o = *q;
            }
        }
    }
}

/// Runs `$call` with the block's number of rows as a constant.
macro_rules! by_rows {
    ($rows:expr, $r:ident => $call:expr) => {
        match $rows {
            4 => {
                const $r: usize = 4;
                $call
            }
            3 => {
                const $r: usize = 3;
                $call
            }
            2 => {
                const $r: usize = 2;
                $call
            }
            _ => {
                const $r: usize = 1;
                $call
            }
        }
    };
}

/// Everything that the rows of a tile learn from a part.
pub(super) struct FoldPart<'a, 'b> {
    pub tile: &'a QueryTile<'a>,
    pub part: &'a Part,
    /// Per row, or empty: memory keys that score less do not count.
    pub thresholds: &'a [f32],
    pub buffers: &'a mut Buffers,
    pub partial: &'a mut Partial<'b>,
}

impl Task for FoldPart<'_, '_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let FoldPart { tile, part, thresholds, buffers, partial } = self;
        let (d, length) = (tile.shape.key_length, tile.shape.value_length);
        let width = length.next_multiple_of(PAD);
        partial.clear();
        let (mut left, mut skip) = (part.keys, part.skip);
        for segment in &tile.segments[part.segment..] {
            let end = segment.len.min(skip + left);
            left -= end - skip;
            let seen = tile.seen(segment);
            let memory = segment.query == QueryKind::Memory;
            let queries = if memory { &buffers.memory } else { &buffers.local };
            for at in (skip..end).step_by(KEY_TILE) {
                let n = KEY_TILE.min(end - at);
                if seen.end <= at || at + n <= seen.start {
                    continue;
                }
                let (keys, values) = buffers.tile.two::<f32, f32>(d.next_multiple_of(8) * KEY_TILE, width * KEY_TILE);
                decode_keys(s, segment, at, n, d, &mut buffers.spill, keys);
                decode_values(s, segment, at, n, length, values);
                for first in (0..tile.rows()).step_by(BLOCK) {
                    let rows = BLOCK.min(tile.rows() - first);
                    let least = if memory { thresholds.get(first..first + rows) } else { None };
                    let block = BlockTile { tile, segment, at, n, first, keys, least, query: &queries[first * d..][..rows * d] };
                    by_rows!(rows, R => {
                        let mut scores = [[f32::NEG_INFINITY; KEY_TILE]; R];
                        let ranges: [Range<usize>; R] = std::array::from_fn(|r| block.range(r));
                        if ranges.iter().any(|r| !r.is_empty()) {
                            block.score(s, &ranges, &mut scores);
                            block.fold(s, &ranges, &mut scores, &values[..n * width], partial);
                        }
                    });
                }
            }
            if left == 0 {
                break;
            }
            skip = 0;
        }
    }
}

/// With top-k: per row, the k-th best score over all memory segments.
pub(super) struct Thresholds<'a> {
    pub tile: &'a QueryTile<'a>,
    pub buffers: &'a mut Buffers,
    pub thresholds: &'a mut [f32],
}

impl Task for Thresholds<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Thresholds { tile, buffers, thresholds } = self;
        let (d, k) = (tile.shape.key_length, tile.shape.memory_top_k);
        let total: usize = tile.in_memory().map(|s| s.len).sum();
        buffers.scores.resize(tile.rows() * total, 0.0);
        let mut filled = 0;
        for segment in tile.in_memory() {
            for at in (0..segment.len).step_by(KEY_TILE) {
                let n = KEY_TILE.min(segment.len - at);
                let (keys, _) = buffers.tile.two::<f32, f32>(d.next_multiple_of(8) * KEY_TILE, 0);
                decode_keys(s, segment, at, n, d, &mut buffers.spill, keys);
                for first in (0..tile.rows()).step_by(BLOCK) {
                    let rows = BLOCK.min(tile.rows() - first);
                    let query = &buffers.memory[first * d..][..rows * d];
                    let block = BlockTile { tile, segment, at, n, first, keys, least: None, query };
                    by_rows!(rows, R => {
                        let mut scores = [[f32::NEG_INFINITY; KEY_TILE]; R];
                        block.score(s, &std::array::from_fn(|r| block.range(r)), &mut scores);
                        for (r, scores) in scores.iter().enumerate() {
                            buffers.scores[(first + r) * total + filled..][..n].copy_from_slice(&scores[..n]);
                        }
                    });
                }
                filled += n;
            }
        }
        for (scores, threshold) in buffers.scores.chunks_exact_mut(total).zip(thresholds) {
            let (_, kth, _) = scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            *threshold = *kth;
        }
    }
}

/// A tile of `n` keys from `at` of a segment, with a block of rows.
struct BlockTile<'a> {
    tile: &'a QueryTile<'a>,
    segment: &'a KvSegment<'a>,
    at: usize,
    n: usize,
    /// The block's first row.
    first: usize,
    /// Transposed keys.
    keys: &'a [f32],
    /// Thresholds of the rows.
    least: Option<&'a [f32]>,
    /// `(key_length, rows of the block)`
    query: &'a [f32],
}

impl BlockTile<'_> {
    /// The keys of the tile that row `r` of the block sees.
    #[inline(always)]
    fn range(&self, r: usize) -> Range<usize> {
        let seen = self.tile.visible(self.segment, (self.first + r) / self.tile.group());
        let start = seen.start.clamp(self.at, self.at + self.n) - self.at;
        let end = seen.end.clamp(self.at, self.at + self.n) - self.at;
        start..end.max(start)
    }

    /// Scores; minus infinity for keys that do not count.
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&self, s: S, ranges: &[Range<usize>; R], scores: &mut [[f32; KEY_TILE]; R]) {
        let query = self.query.as_chunks::<R>().0;
        let end = self.n.next_multiple_of(S::LANES);
        let scale = s.splat(self.tile.shape.scale);
        let mut at = 0;
        while at < end {
            let vectors = (end - at) / S::LANES;
            let done = if S::TILE_PANELS > 1 && vectors >= 4 {
                products::<S, R, 4>(s, query, self.keys, at, scale, scores);
                4
            } else if vectors >= 2 {
                products::<S, R, 2>(s, query, self.keys, at, scale, scores);
                2
            } else {
                products::<S, R, 1>(s, query, self.keys, at, scale, scores);
                1
            };
            at += done * S::LANES;
        }
        for (scores, range) in scores.iter_mut().zip(ranges) {
            scores[..range.start].fill(f32::NEG_INFINITY);
            scores[range.end..].fill(f32::NEG_INFINITY);
        }
        for (scores, least) in scores.iter_mut().zip(self.least.unwrap_or(&[])) {
            for score in scores {
                *score = if *score < *least { f32::NEG_INFINITY } else { *score };
            }
        }
    }

    /// Turns scores into weights and adds the weighted values.
    #[inline(always)]
    fn fold<S: Simd, const R: usize>(
        &self,
        s: S,
        ranges: &[Range<usize>; R],
        scores: &mut [[f32; KEY_TILE]; R],
        values: &[f32],
        partial: &mut Partial<'_>,
    ) {
        let width = values.len() / self.n;
        let columns = self.tile.shape.value_length.next_multiple_of(S::LANES);
        let acc = &mut partial.acc[self.first * width..][..R * width];
        for (r, scores) in scores.iter_mut().enumerate() {
            let row = self.first + r;
            let (before, tile) = (partial.max[row], most(s, scores));
            let max = if tile > before || tile.is_nan() { tile } else { before };
            if max == f32::NEG_INFINITY {
                scores.fill(0.0);
                continue;
            }
            if max != before {
                let shrink = exp(before - max);
                for a in acc[r * width..][..columns].chunks_exact_mut(S::LANES) {
                    s.store(s.mul(s.load(a), s.splat(shrink)), a);
                }
                partial.sum[row] *= shrink;
                partial.max[row] = max;
            }
            partial.sum[row] += weigh(s, max, scores);
        }
        // Keys that every row sees; then each row's own. Those that a row does not see must not even be multiplied by zero.
        let start = ranges.iter().map(|r| r.start).fold(0, usize::max);
        let end = ranges.iter().map(|r| r.end).fold(KEY_TILE, usize::min);
        let common = if start < end { start..end } else { 0..0 };
        for r in 0..R {
            let own = if common.is_empty() { ranges[r].clone() } else { ranges[r].start..start };
            add_values(s, [&scores[r]], own, values, width, columns, &mut acc[r * width..][..width]);
        }
        add_values(s, std::array::from_fn::<_, R, _>(|r| &scores[r]), common.clone(), values, width, columns, acc);
        for r in 0..R {
            let own = if common.is_empty() { 0..0 } else { end..ranges[r].end };
            add_values(s, [&scores[r]], own, values, width, columns, &mut acc[r * width..][..width]);
        }
    }
}

/// Products of `R` queries with `C` vectors of keys, times `scale`.
#[inline(always)]
fn products<S: Simd, const R: usize, const C: usize>(
    s: S,
    query: &[[f32; R]],
    keys: &[f32],
    at: usize,
    scale: S::F,
    scores: &mut [[f32; KEY_TILE]; R],
) {
    let mut sums = [[s.splat(0.0); C]; R];
    for (query, keys) in query.iter().zip(keys.as_chunks::<KEY_TILE>().0) {
        let keys = &keys[at..at + C * S::LANES];
        let mut k = [s.splat(0.0); C];
        for (k, keys) in k.iter_mut().zip(keys.chunks_exact(S::LANES)) {
            *k = s.load(keys);
        }
        for (sums, q) in sums.iter_mut().zip(query) {
            let q = s.splat(*q);
            for (sum, k) in sums.iter_mut().zip(&k) {
                *sum = s.fma(q, *k, *sum);
            }
        }
    }
    for (scores, sums) in scores.iter_mut().zip(sums) {
        for (scores, sum) in scores[at..at + C * S::LANES].chunks_exact_mut(S::LANES).zip(sums) {
            s.store(s.mul(sum, scale), scores);
        }
    }
}

#[inline(always)]
fn most<S: Simd>(s: S, scores: &[f32; KEY_TILE]) -> f32 {
    let mut most = s.splat(f32::NEG_INFINITY);
    for scores in scores.chunks_exact(S::LANES) {
        most = s.max(most, s.load(scores));
    }
    s.most(most)
}

/// `e^(score - max)` in place, and their sum.
#[inline(always)]
fn weigh<S: Simd>(s: S, max: f32, scores: &mut [f32; KEY_TILE]) -> f32 {
    let max = s.splat(max);
    let mut sums = [s.splat(0.0); 4];
    for scores in scores.as_chunks_mut::<LANES>().0 {
        for (scores, sum) in scores.chunks_exact_mut(S::LANES).zip(&mut sums) {
            let weight = exp_vector(s, s.sub(s.load(scores), max));
            s.store(weight, scores);
            *sum = s.add(*sum, weight);
        }
    }
    sum_vectors(s, sums)
}

/// Adds the values of `keys`, times their weights in each of `R` rows, to the rows of `acc`.
#[inline(always)]
fn add_values<S: Simd, const R: usize>(
    s: S,
    weights: [&[f32; KEY_TILE]; R],
    keys: Range<usize>,
    values: &[f32],
    width: usize,
    columns: usize,
    acc: &mut [f32],
) {
    if keys.is_empty() {
        return;
    }
    let mut at = 0;
    while at < columns {
        let vectors = (columns - at) / S::LANES;
        let done = if S::TILE_PANELS > 1 && vectors >= 4 {
            add_columns::<S, R, 4>(s, weights, keys.clone(), values, width, at, acc);
            4
        } else if vectors >= 2 {
            add_columns::<S, R, 2>(s, weights, keys.clone(), values, width, at, acc);
            2
        } else {
            add_columns::<S, R, 1>(s, weights, keys.clone(), values, width, at, acc);
            1
        };
        at += done * S::LANES;
    }
}

#[inline(always)]
fn add_columns<S: Simd, const R: usize, const C: usize>(
    s: S,
    weights: [&[f32; KEY_TILE]; R],
    keys: Range<usize>,
    values: &[f32],
    width: usize,
    at: usize,
    acc: &mut [f32],
) {
    let mut sums = [[s.splat(0.0); C]; R];
    for (sums, acc) in sums.iter_mut().zip(acc.chunks_exact(width)) {
        for (sum, acc) in sums.iter_mut().zip(acc[at..].chunks_exact(S::LANES)) {
            *sum = s.load(acc);
        }
    }
    let end = keys.end.min(KEY_TILE);
    let mut rows = values[keys.start * width..].chunks_exact(width);
    for key in keys.start..end {
        let Some(row) = rows.next() else { break };
        let row = &row[at..at + C * S::LANES];
        let mut v = [s.splat(0.0); C];
        for (v, row) in v.iter_mut().zip(row.chunks_exact(S::LANES)) {
            *v = s.load(row);
        }
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = s.splat(weights[key]);
            for (sum, v) in sums.iter_mut().zip(&v) {
                *sum = s.fma(weight, *v, *sum);
            }
        }
    }
    for (sums, acc) in sums.iter().zip(acc.chunks_exact_mut(width)) {
        for (sum, acc) in sums.iter().zip(acc[at..].chunks_exact_mut(S::LANES)) {
            s.store(*sum, acc);
        }
    }
}

#[inline(always)]
fn decode_keys<S: Simd>(s: S, segment: &KvSegment<'_>, at: usize, n: usize, d: usize, spill: &mut Vec<u8>, out: &mut [f32]) {
    match segment.codec {
        Codec::F32 => transpose_keys::<S, F32>(s, segment, at, n, d, spill, out),
        Codec::F16 => transpose_keys::<S, F16>(s, segment, at, n, d, spill, out),
        Codec::Bf16 => transpose_keys::<S, Bf16>(s, segment, at, n, d, spill, out),
    }
}

/// Keys `at .. at + n` into the columns of `out`; the columns behind them up to a whole vector get something finite or not.
#[inline(always)]
fn transpose_keys<S: Simd, E: Encoding>(
    s: S,
    segment: &KvSegment<'_>,
    at: usize,
    n: usize,
    d: usize,
    spill: &mut Vec<u8>,
    out: &mut [f32],
) {
    let (stride, row) = (segment.key_stride * E::BYTES, d * E::BYTES);
    let padded = row.next_multiple_of(16);
    for first in (0..n).step_by(S::LANES) {
        let key = at + first;
        let whole = row == padded && first + S::LANES <= n && (key + S::LANES) * stride <= segment.keys.len();
        let group = if whole {
            Rows::new(segment.keys, stride, key, S::LANES)
        } else {
            spill.clear();
            spill.resize(S::LANES * padded, 0);
            for (r, spill) in spill.chunks_exact_mut(padded).take(n - first).enumerate() {
                spill[..row].copy_from_slice(&segment.keys[(key + r) * stride..][..row]);
            }
            Rows::new(spill, padded, 0, S::LANES)
        };
        let per_lane = 4 / E::BYTES;
        for (c, out) in out.chunks_exact_mut(4 * per_lane * KEY_TILE).take(padded / 16).enumerate() {
            let words = s.transpose(s.rows_quad(&group, 16 * c));
            for (out, words) in out.chunks_exact_mut(per_lane * KEY_TILE).zip(words) {
                for (j, out) in out.chunks_exact_mut(KEY_TILE).enumerate() {
                    s.store(E::lane(s, words, j), &mut out[first..]);
                }
            }
        }
    }
}

#[inline(always)]
fn decode_values<S: Simd>(s: S, segment: &KvSegment<'_>, at: usize, n: usize, length: usize, out: &mut [f32]) {
    match segment.codec {
        Codec::F32 => load_values::<S, F32>(s, segment, at, n, length, out),
        Codec::F16 => load_values::<S, F16>(s, segment, at, n, length, out),
        Codec::Bf16 => load_values::<S, Bf16>(s, segment, at, n, length, out),
    }
}

/// Values `at .. at + n` into the rows of `out`, filled with zeros up to a whole vector.
#[inline(always)]
fn load_values<S: Simd, E: Encoding>(s: S, segment: &KvSegment<'_>, at: usize, n: usize, length: usize, out: &mut [f32]) {
    let stride = segment.value_stride * E::BYTES;
    let whole = length - length % S::LANES;
    for (i, out) in out.chunks_exact_mut(length.next_multiple_of(PAD)).take(n).enumerate() {
        let bytes = &segment.values[(at + i) * stride..][..length * E::BYTES];
        let (vectors, rest) = bytes.split_at(whole * E::BYTES);
        for (b, o) in vectors.chunks_exact(S::LANES * E::BYTES).zip(out.chunks_exact_mut(S::LANES)) {
            s.store(E::load(s, b), o);
        }
        if !rest.is_empty() {
            let mut last = [0; 4 * LANES];
            last[..rest.len()].copy_from_slice(rest);
            s.store(E::load(s, &last), &mut out[whole..]);
        }
    }
}
