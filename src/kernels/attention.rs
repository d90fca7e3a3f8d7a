//! Attention over segments: one softmax over everything that a query may see, wherever it lies.
//!
//! The local window is a segment, attention sinks and blocks retrieved from memory are segments, the memory of a Focused
//! Transformer is a list of segments (arXiv 2307.03170: one softmax over local and memory logits together). The kernel runs
//! once over all of them with an online softmax (arXiv 1805.02867), a part of the keys at a time; the query heads that share a
//! KV head are rows of one small product, so keys and values are decoded once for all of them.
//!
//! The keys are cut into *parts* of at most `PART` keys (`part.rs`). A part gives every row its own (maximum, sum, accumulator),
//! and parts are merged in order. Few tokens with much to look at spread parts over the threads, many tokens spread tokens.
//!
//! Invariant: which parts there are depends on the segments alone, never on the batch or the number of threads, and
//! what a query does not see does not enter its sums at all; so a token's result has the same bits however it is computed.

mod best;
mod cells;
mod codes;
mod part;
mod products;

use self::part::{Buffers, FoldPart, QueryTile, Thresholds, find_thresholds};
use super::codec::Codec;
use super::tiles::TileLayout;
use super::vector::exp;
use crate::error::{Result, check_room, try_grow, try_reserve};
use crate::simd::{Level, Simd, Task, dispatch};
use crate::threads::Pass;
use std::cell::RefCell;
use std::ops::Range;

/// Which of a token's query vectors scores a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKind {
    /// Rotated to the token's place in the text.
    Local,
    /// Rotated to the token's index in the local window: memory keys lie unrotated at the window's first token.
    Memory,
}

/// Which tokens of a segment a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// All of them.
    All,
    /// Query `j` of the batch sees entries `0 ..= first + j`, and of those the last `window` if that is not 0.
    Causal {
        /// Entries in the segment before the batch's own.
        first: usize,
        /// Sliding window length; 0 is unlimited.
        window: usize,
    },
}

/// Where the keys and values of one KV head lie.
#[derive(Clone, Copy)]
pub enum Entries<'a> {
    /// Token by token, as in the pages of a memory.
    Rows {
        /// Encoding of both.
        codec: Codec,
        /// Encoded keys, the first of this head first.
        keys: &'a [u8],
        /// Encoded values likewise.
        values: &'a [u8],
        /// Elements from one token's key to the next one's.
        key_stride: usize,
        /// Elements from one token's value to the next one's.
        value_stride: usize,
    },
    /// In tiles, as in the local window and in quantised memories.
    Tiles {
        /// What a tile looks like.
        layout: TileLayout,
        /// From the keys of this head's first tile on.
        keys: &'a [u8],
        /// From the values of this head's first tile on.
        values: &'a [u8],
        /// Bytes from the keys of one tile of this head to those of the next.
        key_stride: usize,
        /// Bytes from the values of one tile of this head to those of the next.
        value_stride: usize,
    },
}

impl Entries<'_> {
    /// True if the values, and with them their weighted sums, are rotated.
    fn has_rotated_values(&self) -> bool {
        matches!(self, Entries::Tiles { layout, .. } if layout.values.is_rotated())
    }
}

/// Keys and values of one KV head for consecutive tokens.
#[derive(Clone, Copy)]
pub struct KvSegment<'a> {
    /// The keys and values.
    pub entries: Entries<'a>,
    /// Tokens.
    pub len: usize,
    /// Which query scores it.
    pub query: QueryKind,
    /// Who sees what.
    pub visibility: Visibility,
}

/// Sizes of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Tokens in the batch.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads; divides `heads`.
    pub heads_kv: usize,
    /// Elements of a query or key.
    pub key_length: usize,
    /// Elements of a value.
    pub value_length: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Memory segments: only the so many best keys count, per query and head (0: all). Ties with the last one count too.
    pub memory_top_k: usize,
}

/// Query vectors of the batch, `(tokens, heads, key_length)`.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// For [`QueryKind::Local`] segments.
    pub local: &'a [f32],
    /// For [`QueryKind::Memory`] segments; may be empty if there are none.
    pub memory: &'a [f32],
}

/// Most keys of a part.
const PART: usize = 256;
/// Tokens of the batch whose queries share one decoding of a tile, at least and at most.
const QUERY_TILE: Range<usize> = 4..32;
/// So few units are merged sooner than a loop begins.
const SERIAL_UNITS: usize = 16;
/// Accumulators are padded to a multiple of this, the most lanes of any level.
const PAD: usize = 16;

/// Consecutive keys of consecutive segments: `keys` of them, after the first `skip` of segment `segment`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    segment: usize,
    skip: usize,
    keys: usize,
    /// What it holds is seen by every query, and it may hold several segments.
    open: bool,
    /// Its sums are to be rotated back.
    rotated: bool,
}

/// Cuts segments into parts. Those that all queries see may share a part, if the sums of all or of none are to be rotated back;
/// another may grow with the batch, so it shares none.
fn cut(segments: &[KvSegment<'_>], parts: &mut Vec<Part>) {
    parts.clear();
    for (segment, s) in segments.iter().enumerate() {
        let (open, rotated) = (s.visibility == Visibility::All, s.entries.has_rotated_values());
        for skip in (0..s.len).step_by(PART) {
            let keys = PART.min(s.len - skip);
            match parts.last_mut() {
                Some(last) if open && last.open && last.rotated == rotated && last.keys + keys <= PART => last.keys += keys,
                _ => parts.push(Part { segment, skip, keys, open, rotated }),
            }
        }
    }
}

/// What is known of some rows: `rows` accumulators, each padded to a multiple of [`PAD`], then maxima, then sums.
struct Partial<'a> {
    acc: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

/// A [`Partial`] to read, or some of its rows.
#[derive(Clone, Copy)]
struct Found<'a> {
    acc: &'a [f32],
    max: &'a [f32],
    sum: &'a [f32],
}

impl<'a> Found<'a> {
    fn new(floats: &'a [f32], rows: usize) -> Found<'a> {
        let (acc, rest) = floats.split_at(floats.len() - 2 * rows);
        let (max, sum) = rest.split_at(rows);
        Found { acc, max, sum }
    }

    fn rows(&self, rows: Range<usize>) -> Found<'a> {
        let width = self.acc.len() / self.max.len();
        Found { acc: &self.acc[rows.start * width..rows.end * width], max: &self.max[rows.clone()], sum: &self.sum[rows] }
    }
}

impl Partial<'_> {
    fn floats(rows: usize, value_length: usize) -> usize {
        rows * (value_length.next_multiple_of(PAD) + 2)
    }

    fn new(floats: &mut [f32], rows: usize) -> Partial<'_> {
        let (acc, rest) = floats.split_at_mut(floats.len() - 2 * rows);
        let (max, sum) = rest.split_at_mut(rows);
        Partial { acc, max, sum }
    }

    #[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
    fn clear(&mut self) {
        self.acc.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// Row `r`'s weighted mean into `out`; zeros where the row saw nothing.
    fn finish(&self, r: usize, out: &mut [f32]) {
        let width = self.acc.len() / self.max.len();
        let inverse = if self.sum[r] == 0.0 { 0.0 } else { 1.0 / self.sum[r] };
        for (o, a) in out.iter_mut().zip(&self.acc[r * width..]) {
            *o = a * inverse;
        }
    }
}

/// Adds what a later part found. (Plain loops: nothing is fused.)
struct Merge<'a, 'b> {
    total: &'a mut Partial<'b>,
    later: Found<'a>,
}

impl Task for Merge<'_, '_> {
    type Out = ();
    const PRODUCTS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Merge { total, later } = self;
        let width = total.acc.len() / total.max.len();
        for (r, (acc, other)) in total.acc.chunks_exact_mut(width).zip(later.acc.chunks_exact(width)).enumerate() {
            let max = if later.max[r] > total.max[r] || later.max[r].is_nan() { later.max[r] } else { total.max[r] };
            if max == f32::NEG_INFINITY {
                continue;
            }
            let (mine, its) = (exp(total.max[r] - max), exp(later.max[r] - max));
            for (a, b) in acc.iter_mut().zip(other) {
                *a = *a * mine + b * its;
            }
            total.sum[r] = total.sum[r] * mine + later.sum[r] * its;
            total.max[r] = max;
        }
    }
}

/// Buffers of one thread, kept between calls.
#[derive(Default)]
struct Workspace {
    buffers: Buffers,
    parts: Vec<Part>,
    partial: Vec<f32>,
    total: Vec<f32>,
    thresholds: Vec<f32>,
}

/// A part of what one tile of tokens sees through one KV head.
#[derive(Clone, Copy)]
struct Unit {
    tile: usize,
    head: usize,
    part: Part,
}

/// Buffers of the caller, kept between calls.
#[derive(Default)]
struct Plan {
    parts: Vec<Part>,
    units: Vec<Unit>,
    partials: Vec<f32>,
    thresholds: Vec<f32>,
    /// Bytes for which every thread's workspace has had room so far.
    room: usize,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
    static PLAN: RefCell<Plan> = RefCell::default();
}

/// `out = softmax(scale * q K^T) V` for every token and head; `out` is `(tokens, heads, value_length)`.
/// `segments` is `(heads_kv, n)`: those of the first KV head, then as many of the next. A query that sees nothing gets zeros.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory) where there is no room for scores and sums.
pub fn attention(pass: &Pass<'_>, shape: &Shape, queries: Queries<'_>, segments: &[KvSegment<'_>], out: &mut [f32]) -> Result<()> {
    attention_at(Level::detect(), pass, shape, queries, segments, out)
}

/// [`attention`] at a level of one's choice. Every level but `Portable` gives the same bits.
///
/// # Errors
///
/// As [`attention`].
pub fn attention_at(
    level: Level,
    pass: &Pass<'_>,
    shape: &Shape,
    queries: Queries<'_>,
    segments: &[KvSegment<'_>],
    out: &mut [f32],
) -> Result<()> {
    debug_assert!(segments.len().is_multiple_of(shape.heads_kv));
    debug_assert_eq!(out.len(), shape.tokens * shape.heads * shape.value_length);
    if shape.tokens == 0 {
        return Ok(());
    }
    let call = Call { level, shape, queries, segments };
    let tokens = (shape.tokens / (2 * pass.threads())).clamp(QUERY_TILE.start, QUERY_TILE.end);
    PLAN.with_borrow_mut(|plan| {
        plan.make_room(pass.threads(), (0..shape.heads_kv).map(|head| call.tile(tokens, 0, head).room()).max().unwrap_or(0))?;
        if shape.tokens.div_ceil(tokens) >= pass.threads() {
            call.by_tokens(pass, tokens, out);
            Ok(())
        } else {
            call.by_parts(pass, tokens, plan, out)
        }
    })
}

/// The best score of any key of each segment, for every token and query head: `(tokens, heads, n)` into `out`, of `(heads_kv, n)` segments that
/// every token sees whole. On the calling thread alone.
///
/// # Errors
///
/// As [`attention`].
pub fn best_scores(shape: &Shape, queries: Queries<'_>, segments: &[KvSegment<'_>], out: &mut [f32]) -> Result<()> {
    best_scores_at(Level::detect(), shape, queries, segments, out)
}

/// [`best_scores`] at a level of one's choice.
///
/// # Errors
///
/// As [`attention`].
pub fn best_scores_at(level: Level, shape: &Shape, queries: Queries<'_>, segments: &[KvSegment<'_>], out: &mut [f32]) -> Result<()> {
    let call = Call { level, shape, queries, segments };
    let (n, group) = (segments.len() / shape.heads_kv, call.group());
    debug_assert!(segments.iter().all(|s| s.visibility == Visibility::All) && out.len() == shape.tokens * shape.heads * n);
    out.fill(f32::NEG_INFINITY);
    if shape.tokens == 0 {
        return Ok(());
    }
    for head in 0..shape.heads_kv {
        let tile = call.tile(shape.tokens, 0, head);
        PLAN.with_borrow_mut(|plan| plan.make_room(1, tile.room()))?;
        WORKSPACE.with_borrow_mut(|w| {
            tile.pack_queries(&mut w.buffers);
            cut(tile.segments, &mut w.parts);
            part::best_scores(&tile, &w.parts, &mut w.buffers, &mut |r, segment, best| {
                let best_of = &mut out[(r / group * shape.heads + head * group + r % group) * n + segment];
                *best_of = best_of.max(best);
            });
        });
    }
    Ok(())
}

impl Plan {
    /// Sees that there are `bytes` for each of the threads. Theirs grow where nothing can be reported, so it is asked before, once for every
    /// size that is larger than those before.
    fn make_room(&mut self, threads: usize, bytes: usize) -> Result<()> {
        if bytes > self.room {
            check_room("attention", bytes.saturating_mul(threads))?;
            self.room = bytes;
        }
        Ok(())
    }
}

struct Call<'a> {
    level: Level,
    shape: &'a Shape,
    queries: Queries<'a>,
    segments: &'a [KvSegment<'a>],
}

impl<'a> Call<'a> {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.heads_kv
    }

    /// What a KV head holds.
    fn of_head(&self, head: usize) -> &'a [KvSegment<'a>] {
        let each = self.segments.len() / self.shape.heads_kv;
        &self.segments[head * each..][..each]
    }

    /// The tile of `tokens` tokens that is number `i`, through one KV head.
    fn tile(&self, tokens: usize, i: usize, head: usize) -> QueryTile<'a> {
        let first = i * tokens;
        QueryTile {
            level: self.level,
            shape: self.shape,
            first,
            tokens: tokens.min(self.shape.tokens - first),
            head,
            queries: self.queries,
            segments: self.of_head(head),
        }
    }

    /// Tiles of tokens over the threads, each through all heads and parts.
    fn by_tokens(&self, pass: &Pass<'_>, tokens: usize, out: &mut [f32]) {
        let row = self.shape.heads * self.shape.value_length;
        pass.for_each_chunk(out, tokens * row, |i, out| {
            WORKSPACE.with_borrow_mut(|w| {
                for head in 0..self.shape.heads_kv {
                    let tile = self.tile(tokens, i, head);
                    let rows = tile.rows();
                    let floats = Partial::floats(rows, self.shape.value_length);
                    w.total.resize(floats, 0.0);
                    w.partial.resize(floats, 0.0);
                    tile.pack_queries(&mut w.buffers);
                    cut(tile.segments, &mut w.parts);
                    w.thresholds.resize(if tile.has_thresholds() { Thresholds::floats(rows, w.parts.len()) } else { 0 }, 0.0);
                    if tile.has_thresholds() {
                        find_thresholds(&tile, &w.parts, &mut w.buffers, &mut w.thresholds);
                    }
                    let found = Thresholds::new(&w.thresholds, rows);
                    let mut total = Partial::new(&mut w.total, rows);
                    total.clear();
                    for (_, part) in w.parts.iter().enumerate().filter(|(i, p)| tile.sees(p) && found.need(*i)) {
                        let mut partial = Partial::new(&mut w.partial, rows);
                        let (thresholds, buffers) = (found.of_rows(), &mut w.buffers);
                        dispatch(self.level, FoldPart { tile: &tile, part, thresholds, buffers, partial: &mut partial });
                        dispatch(self.level, Merge { total: &mut total, later: Found::new(&w.partial, rows) });
                    }
                    let (group, length) = (self.group(), self.shape.value_length);
                    for r in 0..rows {
                        let at = (r / group * self.shape.heads + head * group + r % group) * length;
                        total.finish(r, &mut out[at..][..length]);
                    }
                }
            });
        });
    }

    /// Parts over the threads; then tokens and heads merge theirs.
    fn by_parts(&self, pass: &Pass<'_>, tokens: usize, plan: &mut Plan, out: &mut [f32]) -> Result<()> {
        let heads = self.shape.heads_kv;
        let rows = tokens * self.group();
        let tiles = self.shape.tokens.div_ceil(tokens);
        let mut of_tile = 0; // floats of thresholds
        for head in 0..heads {
            let tile = self.tile(tokens, 0, head);
            if tile.has_thresholds() {
                cut(tile.segments, &mut plan.parts);
                of_tile = of_tile.max(Thresholds::floats(rows, plan.parts.len()));
            }
        }
        plan.thresholds.clear();
        try_grow(&mut plan.thresholds, "thresholds of attention", tiles * heads * of_tile)?;
        if of_tile > 0 {
            pass.for_each_chunk(&mut plan.thresholds, of_tile, |i, thresholds| {
                let tile = self.tile(tokens, i / heads, i % heads);
                if tile.has_thresholds() {
                    WORKSPACE.with_borrow_mut(|w| {
                        tile.pack_queries(&mut w.buffers);
                        cut(tile.segments, &mut w.parts);
                        find_thresholds(&tile, &w.parts, &mut w.buffers, thresholds);
                    });
                }
            });
        }
        let thresholds = &plan.thresholds;
        let thresholds_of = |tile: usize, head: usize| {
            let query_tile = self.tile(tokens, tile, head);
            let floats = if query_tile.has_thresholds() { &thresholds[(tile * heads + head) * of_tile..] } else { &[] };
            Thresholds::new(floats, query_tile.rows())
        };
        plan.units.clear();
        for (tile, head) in (0..tiles).flat_map(|tile| (0..heads).map(move |head| (tile, head))) {
            let (query_tile, found) = (self.tile(tokens, tile, head), thresholds_of(tile, head));
            cut(query_tile.segments, &mut plan.parts);
            try_reserve(&mut plan.units, "parts of attention", plan.parts.len())?;
            let parts = plan.parts.iter().enumerate().filter(|(i, p)| query_tile.sees(p) && found.need(*i));
            plan.units.extend(parts.map(|(_, p)| Unit { tile, head, part: *p }));
        }
        let floats = Partial::floats(rows, self.shape.value_length);
        try_grow(&mut plan.partials, "partial sums of attention", plan.units.len() * floats)?;
        let units = &plan.units;
        pass.for_each_chunk(&mut plan.partials[..units.len() * floats], floats, |i, partial| {
            let unit = &units[i];
            let tile = self.tile(tokens, unit.tile, unit.head);
            let thresholds = thresholds_of(unit.tile, unit.head).of_rows();
            WORKSPACE.with_borrow_mut(|w| {
                tile.pack_queries_for(&unit.part, &mut w.buffers);
                let buffers = &mut w.buffers;
                let partial = &mut Partial::new(&mut partial[..Partial::floats(tile.rows(), self.shape.value_length)], tile.rows());
                dispatch(self.level, FoldPart { tile: &tile, part: &unit.part, thresholds, buffers, partial });
            });
        });
        let partials = &plan.partials;
        let merge = |i: usize, out: &mut [f32]| {
            let (token, head) = (i / heads, i % heads);
            let tile = self.tile(tokens, token / tokens, head);
            let (group, first) = (self.group(), token % tokens * self.group());
            WORKSPACE.with_borrow_mut(|w| {
                w.total.resize(Partial::floats(group, self.shape.value_length), 0.0);
                let mut total = Partial::new(&mut w.total, group);
                total.clear();
                for (_, partial) in
                    units.iter().zip(partials.chunks_exact(floats)).filter(|(u, _)| (u.tile, u.head) == (token / tokens, head))
                {
                    let found = Found::new(&partial[..Partial::floats(tile.rows(), self.shape.value_length)], tile.rows());
                    dispatch(self.level, Merge { total: &mut total, later: found.rows(first..first + group) });
                }
                for (r, out) in out.chunks_exact_mut(self.shape.value_length).enumerate() {
                    total.finish(r, out);
                }
            });
        };
        let each = self.group() * self.shape.value_length;
        if units.len() < SERIAL_UNITS {
            out.chunks_exact_mut(each).enumerate().for_each(|(i, out)| merge(i, out));
        } else {
            pass.for_each_chunk(out, each, merge);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(len: usize, visibility: Visibility) -> KvSegment<'static> {
        let (keys, values): (&[u8], &[u8]) = (&[], &[]);
        let query = QueryKind::Memory;
        let entries = Entries::Rows { codec: Codec::F32, keys, values, key_stride: 0, value_stride: 0 };
        KvSegment { entries, len, query, visibility }
    }

    #[test]
    fn parts_of_what_all_see_do_not_move_when_the_window_grows() {
        let mut parts = Vec::new();
        for window in [1, PART - 1, PART, PART + 1, 3 * PART] {
            let mut segments = vec![segment(window, Visibility::Causal { first: 0, window: 0 })];
            segments.extend([100, 100, 100, 2 * PART + 25, 200, 0, 30, 5].map(|n| segment(n, Visibility::All)));
            cut(&segments, &mut parts);
            let all: Vec<_> = parts.iter().filter(|p| p.open).map(|p| (p.segment, p.skip, p.keys)).collect();
            assert_eq!(all, [(1, 0, 200), (3, 0, 100), (4, 0, PART), (4, PART, PART), (4, 2 * PART, 255), (8, 0, 5)]);
            assert_eq!(parts.iter().filter(|p| !p.open).map(|p| p.keys).sum::<usize>(), window);
        }
    }
}
