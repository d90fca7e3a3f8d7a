//! A part of the keys and values against the queries of a tile of tokens: scores, then weights, then the weighted values.
//!
//! Few rows read the window's f16 tiles in place; many rows share keys and values that were decoded once, a sub-tile at a time. Both
//! do the same arithmetic in the same order.
//!
//! Invariants: a row's results do not depend on the rows beside it; of a part, a row's maximum, sum and accumulator are made of
//! exactly what it sees there, with one maximum for all of it.

use super::best::Best;
use super::cells::{ABREAST, Cells, FloatKeys, Floats, View, decode_keys, decode_values, keys_in_place, values_in_place};
use super::codes::{self, CodedValues, Codes, Q4, Q8_0, QueryBlock};
use super::products::{Values, score};
use super::{Entries, KvSegment, PART, Part, Partial, Queries, QueryKind, Shape, Visibility};
use crate::kernels::codec::F16;
use crate::kernels::hadamard::hadamard;
use crate::kernels::tiles::{BLOCK as CODE_BLOCK, KvType, TILE_TOKENS, TileLayout};
use crate::kernels::vector::{LANES, exp_vector, sum_vectors};
use crate::simd::{Level, Scratch, Simd, Task, dispatch};
use std::ops::Range;

/// Keys (or values) decoded at once.
const SUB_TILE: usize = ABREAST * TILE_TOKENS;
/// Rows of a block.
const BLOCK: usize = 4;
/// Most rows that read in place: two blocks decode about as often as they would read a buffer.
const IN_PLACE_ROWS: usize = 2 * BLOCK;
/// Floats from one row's scores to the next: a part, and the rest of a tile whose beginning ends it.
const SCORES: usize = PART + TILE_TOKENS;

/// Some tokens of the batch with the query heads that share one KV head.
pub(super) struct QueryTile<'a> {
    pub level: Level,
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
    /// Keys or values of a sub-tile.
    floats: Scratch,
    /// Encoded keys that cannot be read in place.
    spill: Vec<u8>,
    /// Scores, then weights: `(rows, SCORES)`.
    scores: Vec<f32>,
    /// Queries for quantised keys, `(rows, blocks)`, for each of the ways in which they meet them: see [`coding`].
    coded: [Vec<QueryBlock>; 4],
    rotated: Vec<f32>,
    /// For thresholds: each row's best scores in memory.
    best: Vec<Best>,
}

/// Tokens of a part that are consecutive tokens of a segment.
struct Piece<'a> {
    segment: &'a KvSegment<'a>,
    /// The first token of the segment.
    skip: usize,
    /// Its place in the part.
    at: usize,
    n: usize,
}

impl<'a> QueryTile<'a> {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.heads_kv
    }

    /// Row `r` of the tile is (token `r / group`, query head `r % group` of this KV head).
    pub fn rows(&self) -> usize {
        self.tokens * self.group()
    }

    /// Bytes that the buffers of the thread which computes it may grow to.
    pub fn room(&self) -> usize {
        let (rows, shape) = (self.rows(), self.shape);
        let (best, parts) = if self.has_thresholds() {
            let (total, parts) = self.in_memory().fold((0, self.segments.len()), |(t, p), s| (t + s.len, p + s.len.div_ceil(PART)));
            (Best::room(shape.memory_top_k, total), parts)
        } else {
            (0, 0)
        };
        let floats =
            Thresholds::floats(rows, parts) + rows * (SCORES + best + 4 * shape.key_length) + 2 * Partial::floats(rows, shape.value_length);
        size_of::<f32>() * (floats + 2 * SUB_TILE * shape.key_length.max(shape.value_length))
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

    /// What row `r` sees of the part.
    #[inline(always)]
    fn range(&self, part: &Part, r: usize) -> Range<usize> {
        if part.open {
            return 0..part.keys;
        }
        let seen = self.visible(&self.segments[part.segment], r / self.group());
        let start = seen.start.clamp(part.skip, part.skip + part.keys) - part.skip;
        let end = seen.end.clamp(part.skip, part.skip + part.keys) - part.skip;
        start..end.max(start)
    }

    /// The query of row `r`.
    #[inline(always)]
    fn query(&self, kind: QueryKind, r: usize) -> &'a [f32] {
        let queries = if kind == QueryKind::Local { self.queries.local } else { self.queries.memory };
        let row = (self.first + r / self.group()) * self.shape.heads + self.head * self.group() + r % self.group();
        &queries[row * self.shape.key_length..][..self.shape.key_length]
    }

    /// Quantises the queries in the ways in which they meet quantised keys.
    pub fn pack_queries(&self, buffers: &mut Buffers) {
        self.pack_for(self.segments.iter(), buffers);
    }

    /// The same for a part alone: a memory has very many segments.
    pub fn pack_queries_for(&self, part: &Part, buffers: &mut Buffers) {
        self.pack_for(self.pieces(part).map(|piece| piece.segment), buffers);
    }

    fn pack_for<'s>(&self, segments: impl Iterator<Item = &'s KvSegment<'s>>, buffers: &mut Buffers) {
        let mut done = [false; 4];
        for s in segments {
            let Entries::Tiles { layout: TileLayout { keys, .. }, .. } = &s.entries else { continue };
            let i = coding(*keys, s.query);
            if keys.codec().is_some() || std::mem::replace(&mut done[i], true) {
                continue;
            }
            dispatch(self.level, PackQueries { tile: self, keys: *keys, kind: s.query, buffers });
        }
    }

    fn pieces(&self, part: &Part) -> impl Iterator<Item = Piece<'a>> {
        let (keys, mut skip, mut at) = (part.keys, part.skip, 0);
        self.segments[part.segment..].iter().map_while(move |segment| {
            let piece = Piece { segment, skip, at, n: (segment.len - skip).min(keys - at) };
            let wanted = at < keys;
            skip = 0;
            at += piece.n;
            wanted.then_some(piece)
        })
    }
}

/// The queries of a tile's rows, for keys of one type.
struct PackQueries<'a> {
    tile: &'a QueryTile<'a>,
    keys: KvType,
    kind: QueryKind,
    buffers: &'a mut Buffers,
}

impl Task for PackQueries<'_> {
    type Out = ();
    const PRODUCTS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackQueries { tile, keys, kind, buffers } = self;
        let coded = &mut buffers.coded[coding(keys, kind)];
        coded.clear();
        for r in 0..tile.rows() {
            codes::pack(s, keys, tile.query(kind, r), &mut buffers.rotated, coded);
        }
    }
}

/// Which of a tile's quantised queries meet quantised keys of this type: the type matters only for its rotation.
#[inline(always)]
fn coding(keys: KvType, kind: QueryKind) -> usize {
    2 * usize::from(kind == QueryKind::Memory) + usize::from(keys.is_rotated())
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
    const PRODUCTS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let FoldPart { tile, part, thresholds, buffers, partial } = self;
        partial.clear();
        let need = tile.rows() * SCORES;
        if buffers.scores.len() < need {
            buffers.scores.resize(need, 0.0);
        }
        for piece in tile.pieces(part) {
            dispatch(tile.level, ScorePiece { tile, part, piece: &piece, buffers });
            if piece.segment.query == QueryKind::Memory {
                for (scores, least) in buffers.scores.chunks_exact_mut(SCORES).zip(thresholds) {
                    for score in &mut scores[piece.at..piece.at + piece.n] {
                        *score = if *score < *least { f32::NEG_INFINITY } else { *score };
                    }
                }
            }
        }
        for (r, scores) in buffers.scores.chunks_exact_mut(SCORES).take(tile.rows()).enumerate() {
            (partial.max[r], partial.sum[r]) = weigh(s, tile.range(part, r), scores);
        }
        for piece in tile.pieces(part) {
            add_piece(s, tile, part, &piece, buffers, partial);
        }
        if part.rotated {
            let (width, length) = (tile.shape.value_length.next_multiple_of(LANES), tile.shape.value_length);
            partial.acc.chunks_exact_mut(width).for_each(|acc| hadamard(&mut acc[..length]));
        }
    }
}

/// What top-k asks of a tile: `(1 + parts, rows)`, the least score in memory that counts for each row, then of each part the best score of
/// each row. Parts in which no row has a key that counts need no second look, and their values none at all.
#[derive(Clone, Copy)]
pub(super) struct Thresholds<'a> {
    floats: &'a [f32],
    rows: usize,
}

impl<'a> Thresholds<'a> {
    /// Floats for so many parts.
    pub fn floats(rows: usize, parts: usize) -> usize {
        rows * (1 + parts)
    }

    /// What [`find_thresholds`] has left; no floats where every key counts.
    pub fn new(floats: &'a [f32], rows: usize) -> Thresholds<'a> {
        Thresholds { floats, rows }
    }

    /// The threshold of each row, or nothing.
    pub fn of_rows(&self) -> &'a [f32] {
        &self.floats[..self.rows.min(self.floats.len())]
    }

    /// Whether part number `part` has a key that counts.
    pub fn need(&self, part: usize) -> bool {
        let Some(best) = self.floats.get(self.rows * (1 + part)..) else { return true };
        // A score that is not a number counts, as it does everywhere.
        self.of_rows().is_empty() || best.iter().zip(self.of_rows()).any(|(best, least)| best >= least || best.is_nan())
    }
}

/// With top-k: per row, the k-th best score over all memory segments, and the best of every part, for [`Thresholds`].
pub(super) fn find_thresholds(tile: &QueryTile<'_>, parts: &[Part], buffers: &mut Buffers, floats: &mut [f32]) {
    let (rows, k) = (tile.rows(), tile.shape.memory_top_k);
    let total: usize = tile.in_memory().map(|s| s.len).sum();
    buffers.best.resize_with(rows, Best::default);
    buffers.best.iter_mut().for_each(|best| best.clear(k, total));
    buffers.scores.resize(buffers.scores.len().max(rows * SCORES), 0.0);
    let (thresholds, maxima) = floats.split_at_mut(rows);
    maxima.fill(f32::NEG_INFINITY);
    for (part, maxima) in parts.iter().zip(maxima.chunks_exact_mut(rows)) {
        for piece in tile.pieces(part) {
            if piece.segment.query != QueryKind::Memory {
                // All of the window counts.
                maxima.fill(f32::INFINITY);
                continue;
            }
            dispatch(tile.level, ScorePiece { tile, part, piece: &piece, buffers });
            for ((best, scores), most) in buffers.best.iter_mut().zip(buffers.scores.chunks_exact(SCORES)).zip(maxima.iter_mut()) {
                let scores = &scores[piece.at..piece.at + piece.n];
                best.add(k, scores);
                *most = scores.iter().fold(*most, |most, s| if *s > most || s.is_nan() { *s } else { most });
            }
        }
    }
    for (best, threshold) in buffers.best.iter_mut().zip(thresholds) {
        *threshold = best.kth(k);
    }
}

/// Hands the best score of each row in every piece of the parts, which all rows see, to `found`: row, segment, score.
pub(super) fn best_scores(tile: &QueryTile<'_>, parts: &[Part], buffers: &mut Buffers, found: &mut dyn FnMut(usize, usize, f32)) {
    buffers.scores.resize(buffers.scores.len().max(tile.rows() * SCORES), 0.0);
    for part in parts {
        for (i, piece) in tile.pieces(part).enumerate() {
            dispatch(tile.level, ScorePiece { tile, part, piece: &piece, buffers });
            for (r, scores) in buffers.scores.chunks_exact(SCORES).take(tile.rows()).enumerate() {
                let best = scores[piece.at..piece.at + piece.n].iter().fold(f32::NEG_INFINITY, |best, s| best.max(*s));
                found(r, part.segment + i, best);
            }
        }
    }
}

/// The tiles of a piece that few enough rows read for it to be done in place: f16 only, so that there are not too many kernels.
#[inline(always)]
fn to_read_in_place<'a>(tile: &QueryTile<'_>, piece: &Piece<'a>) -> Option<&'a Entries<'a>> {
    let entries = &piece.segment.entries;
    let is_half = |layout: &TileLayout| layout.keys == KvType::F16 && layout.values == KvType::F16;
    (tile.rows() <= IN_PLACE_ROWS && matches!(entries, Entries::Tiles { layout, .. } if is_half(layout))).then_some(entries)
}

/// The piece's scores for every row, in `buffers.scores` from `piece.at` on. A task of its own, so that its code, which is long, is there
/// once for each level.
struct ScorePiece<'a> {
    tile: &'a QueryTile<'a>,
    part: &'a Part,
    piece: &'a Piece<'a>,
    buffers: &'a mut Buffers,
}

impl Task for ScorePiece<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ScorePiece { tile, part, piece, buffers } = self;
        if score_quantised(s, tile, part, piece, buffers) {
            return;
        }
        if let Some(Entries::Tiles { layout, keys, key_stride, .. }) = to_read_in_place(tile, piece) {
            let keys = keys_in_place::<F16>(layout, keys, *key_stride, piece.skip / TILE_TOKENS);
            score_rows(s, tile, part, piece.segment.query, piece.at..piece.at + piece.n, keys, &mut buffers.scores);
            return;
        }
        score_decoded(s, tile, part, piece, buffers);
    }
}

/// The same if its keys are quantised; else false.
#[inline(always)]
fn score_quantised<S: Simd>(s: S, tile: &QueryTile<'_>, part: &Part, piece: &Piece<'_>, buffers: &mut Buffers) -> bool {
    let Entries::Tiles { layout, keys, key_stride, .. } = &piece.segment.entries else { return false };
    let bytes = &keys[piece.skip / TILE_TOKENS * key_stride..];
    match layout.keys {
        KvType::Q4 => score_codes::<S, Q4>(s, tile, part, piece, layout, bytes, *key_stride, buffers),
        KvType::Q8_0 => score_codes::<S, Q8_0>(s, tile, part, piece, layout, bytes, *key_stride, buffers),
        _ => return false,
    }
    true
}

/// The same through a buffer.
#[inline(always)]
fn score_decoded<S: Simd>(s: S, tile: &QueryTile<'_>, part: &Part, piece: &Piece<'_>, buffers: &mut Buffers) {
    let kind = piece.segment.query;
    let d = tile.shape.key_length;
    let all = seen_of(tile, part, 0..tile.rows());
    for sub in (0..piece.n).step_by(SUB_TILE) {
        let n = SUB_TILE.min(piece.n - sub);
        let at = piece.at + sub..piece.at + sub + n;
        if at.start < all.end && all.start < at.end {
            let (keys, _) = buffers.floats.two::<f32, f32>(d * SUB_TILE, 0);
            decode_keys(s, piece.segment, piece.skip + sub, n, d, &mut buffers.spill, keys);
            score_rows(s, tile, part, kind, at, View::<FloatKeys>::of(keys, d * SUB_TILE), &mut buffers.scores);
        }
    }
}

/// The union of what some rows see of a part.
#[inline(always)]
fn seen_of(tile: &QueryTile<'_>, part: &Part, rows: Range<usize>) -> Range<usize> {
    tile.range(part, rows.start).start..tile.range(part, rows.end - 1).end
}

/// Scores of all rows for those of the keys `at` of the part, which are the view's first, that they see.
#[inline(always)]
fn score_rows<S: Simd, T: Cells>(
    s: S,
    tile: &QueryTile<'_>,
    part: &Part,
    kind: QueryKind,
    at: Range<usize>,
    keys: View<'_, T>,
    scores: &mut [f32],
) {
    for first in (0..tile.rows()).step_by(S::QUERY_ROWS) {
        let rows = S::QUERY_ROWS.min(tile.rows() - first);
        let seen = seen_of(tile, part, first..first + rows);
        let (start, end) = (seen.start.max(at.start), seen.end.min(at.end));
        if start < end {
            let tiles = (start - at.start) / TILE_TOKENS..(end - at.start).div_ceil(TILE_TOKENS);
            let scores = &mut scores[first * SCORES + at.start + tiles.start * TILE_TOKENS..];
            by_rows!(rows, R => {
                let mut queries: [&[f32]; R] = [&[]; R];
                for (r, query) in queries.iter_mut().enumerate() {
                    *query = tile.query(kind, first + r);
                }
                score(s, queries, keys, tiles, tile.shape.scale, scores, SCORES);
            });
        }
    }
}

/// As [`score_rows`] for a piece in quantised tiles, `bytes` from its first one on.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn score_codes<S: Simd, K: Codes>(
    s: S,
    tile: &QueryTile<'_>,
    part: &Part,
    piece: &Piece<'_>,
    layout: &TileLayout,
    bytes: &[u8],
    stride: usize,
    buffers: &mut Buffers,
) {
    let blocks = tile.shape.key_length / CODE_BLOCK;
    let at = piece.at..piece.at + piece.n;
    let coded = &buffers.coded[coding(layout.keys, piece.segment.query)];
    for first in (0..tile.rows()).step_by(S::QUERY_ROWS) {
        let rows = S::QUERY_ROWS.min(tile.rows() - first);
        let seen = seen_of(tile, part, first..first + rows);
        let (start, end) = (seen.start.max(at.start), seen.end.min(at.end));
        if start < end {
            let tiles = (start - at.start) / TILE_TOKENS..(end - at.start).div_ceil(TILE_TOKENS);
            let scores = &mut buffers.scores[first * SCORES + at.start + tiles.start * TILE_TOKENS..];
            by_rows!(rows, R => {
                let mut queries: [&[QueryBlock]; R] = [&[]; R];
                for (r, query) in queries.iter_mut().enumerate() {
                    *query = &coded[(first + r) * blocks..][..blocks];
                }
                codes::score::<S, K, R>(s, queries, layout, bytes, stride, tiles, tile.shape.scale, scores, SCORES);
            });
        }
    }
}

/// Turns a row's scores in `range` into weights; gives their maximum and the weights' sum.
#[inline(always)]
fn weigh<S: Simd>(s: S, range: Range<usize>, scores: &mut [f32]) -> (f32, f32) {
    if range.is_empty() {
        return (f32::NEG_INFINITY, 0.0);
    }
    let whole = range.start / LANES * LANES..range.end.next_multiple_of(LANES);
    scores[whole.start..range.start].fill(f32::NEG_INFINITY);
    scores[range.end..whole.end].fill(f32::NEG_INFINITY);
    let scores = scores[whole].as_chunks_mut::<LANES>().0;
    let mut most = [s.splat(f32::NEG_INFINITY); 4];
    for scores in scores.iter() {
        for (most, scores) in most.iter_mut().zip(scores.chunks_exact(S::LANES)) {
            *most = s.max(*most, s.load(scores));
        }
    }
    let mut max = s.most(most[0]);
    for most in &most[1..LANES / S::LANES] {
        let most = s.most(*most);
        max = if most > max || most.is_nan() { most } else { max };
    }
    if max == f32::NEG_INFINITY {
        scores.as_flattened_mut().fill(0.0);
        return (max, 0.0);
    }
    let maxima = s.splat(max);
    let mut sums = [s.splat(0.0); 4];
    for scores in scores {
        for (scores, sum) in scores.chunks_exact_mut(S::LANES).zip(&mut sums) {
            let weight = exp_vector(s, s.sub(s.load(scores), maxima));
            s.store(weight, scores);
            *sum = s.add(*sum, weight);
        }
    }
    (max, sum_vectors(s, sums))
}

/// Adds the piece's values, weighted, to the rows' accumulators.
#[inline(always)]
fn add_piece<S: Simd>(s: S, tile: &QueryTile<'_>, part: &Part, piece: &Piece<'_>, buffers: &mut Buffers, partial: &mut Partial<'_>) {
    if let Entries::Tiles { layout, values, value_stride, .. } = &piece.segment.entries
        && tile.rows() <= IN_PLACE_ROWS
    {
        let (at, first) = (piece.at..piece.at + piece.n, piece.skip / TILE_TOKENS);
        match layout.values {
            KvType::F16 if layout.keys == KvType::F16 => {
                let values = values_in_place::<F16>(layout, values, *value_stride, first);
                return add_rows(s, tile, part, at, values, &buffers.scores, partial);
            }
            KvType::Q8_0 => {
                let values = CodedValues::<Q8_0>::new(layout, values, *value_stride, first);
                return add_rows(s, tile, part, at, values, &buffers.scores, partial);
            }
            KvType::Q4 => {
                let values = CodedValues::<Q4>::new(layout, values, *value_stride, first);
                return add_rows(s, tile, part, at, values, &buffers.scores, partial);
            }
            _ => {}
        }
    }
    let length = tile.shape.value_length;
    let width = length.next_multiple_of(LANES);
    let all = seen_of(tile, part, 0..tile.rows());
    for sub in (0..piece.n).step_by(SUB_TILE) {
        let n = SUB_TILE.min(piece.n - sub);
        let at = piece.at + sub..piece.at + sub + n;
        if at.start < all.end && all.start < at.end {
            let (values, _) = buffers.floats.two::<f32, f32>(width * SUB_TILE, 0);
            decode_values(s, piece.segment, piece.skip + sub, n, length, values);
            add_rows(s, tile, part, at, View::<Floats>::of(values, width * TILE_TOKENS), &buffers.scores, partial);
        }
    }
}

/// Adds the values `at` of the part, which are the view's first, to the rows that see them.
#[inline(always)]
fn add_rows<S: Simd>(
    s: S,
    tile: &QueryTile<'_>,
    part: &Part,
    at: Range<usize>,
    values: impl Values,
    weights: &[f32],
    partial: &mut Partial<'_>,
) {
    let width = tile.shape.value_length.next_multiple_of(LANES);
    for first in (0..tile.rows()).step_by(S::QUERY_ROWS) {
        let rows = S::QUERY_ROWS.min(tile.rows() - first);
        let acc = &mut partial.acc[first * width..][..rows * width];
        let weights = &weights[first * SCORES..];
        // Tokens that every row sees; before and after them each row's own. Those that a row does not see must not even be
        // multiplied by zero.
        let last = tile.range(part, first + rows - 1);
        let (start, end) = (last.start.max(at.start), tile.range(part, first).end.min(at.end));
        let common = if start < end { start..end } else { at.end..at.end };
        for (r, acc) in acc.chunks_exact_mut(width).enumerate() {
            let range = tile.range(part, first + r);
            let own = range.start.max(at.start)..range.end.min(common.start);
            add_own(s, &weights[r * SCORES..], at.start, own, values, acc);
        }
        if !common.is_empty() {
            by_rows!(rows, R => {
                let mut of_rows: [&[f32]; R] = [&[]; R];
                for (r, row) in of_rows.iter_mut().enumerate() {
                    *row = &weights[r * SCORES..][common.clone()];
                }
                values.add(s, of_rows, common.start - at.start..common.end - at.start, acc, width);
            });
            for (r, acc) in acc.chunks_exact_mut(width).enumerate() {
                let range = tile.range(part, first + r);
                let own = common.end..range.end.min(at.end);
                add_own(s, &weights[r * SCORES..], at.start, own, values, acc);
            }
        }
    }
}

/// Adds the values of the part's tokens `own` to one row.
#[inline(always)]
fn add_own<S: Simd>(s: S, weights: &[f32], at: usize, own: Range<usize>, values: impl Values, acc: &mut [f32]) {
    if !own.is_empty() {
        let width = acc.len();
        values.add(s, [&weights[own.clone()]], own.start - at..own.end - at, acc, width);
    }
}
