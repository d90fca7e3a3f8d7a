//! Attention over segments: one softmax over everything that a query may see, wherever it lies.
//!
//! The local window is a segment, attention sinks and blocks retrieved from memory are segments, the memory of a Focused
//! Transformer is a list of segments (arXiv 2307.03170: one softmax over local and memory logits together). The kernel runs
//! once over all of them with an online softmax (arXiv 1805.02867), a tile of keys at a time; the query heads that share a
//! KV head are rows of one small product, so keys and values are decoded once for all of them.
//!
//! Invariant: which tiles there are depends on the segments alone, never on the batch or the number of threads, so a token's
//! result has the same bits however it is computed.

use super::codec::Codec;
use super::vector::{add_scaled, dot, exp};
use crate::threads::Pass;
use std::cell::RefCell;

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

/// Keys and values of one KV head for consecutive tokens.
#[derive(Clone, Copy)]
pub struct KvSegment<'a> {
    /// Encoding of both.
    pub codec: Codec,
    /// Encoded keys, the first of this head first.
    pub keys: &'a [u8],
    /// Encoded values likewise.
    pub values: &'a [u8],
    /// Elements from one token's key to the next one's.
    pub key_stride: usize,
    /// Elements from one token's value to the next one's.
    pub value_stride: usize,
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

/// Keys decoded and scored at once.
const KEY_TILE: usize = 64;
/// Tokens of the batch whose queries share one decoding of a tile.
const QUERY_TILE: usize = 16;

/// Buffers of one thread, kept between calls.
#[derive(Default)]
struct Workspace {
    decoded: Vec<f32>,
    scores: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    acc: Vec<f32>,
    all_scores: Vec<f32>,
    thresholds: Vec<f32>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// `out = softmax(scale * q K^T) V` for every token and head; `out` is `(tokens, heads, value_length)`.
/// `segments[h]` are those of KV head `h`. A query that sees nothing gets zeros.
pub fn attention(pass: &Pass<'_>, shape: &Shape, queries: Queries<'_>, segments: &[Vec<KvSegment<'_>>], out: &mut [f32]) {
    debug_assert_eq!(segments.len(), shape.heads_kv);
    debug_assert_eq!(out.len(), shape.tokens * shape.heads * shape.value_length);
    let group = shape.heads / shape.heads_kv;
    let band = group * shape.value_length;
    // One unit of work is a KV head and a tile of tokens. Units of a tile are the bands of its rows of `out`.
    let tiles = shape.tokens.div_ceil(QUERY_TILE);
    if tiles == 1 {
        pass.for_each_band(out, shape.heads * shape.value_length, band, |columns, out| {
            let head = columns.start / band;
            WORKSPACE.with_borrow_mut(|w| {
                let tile = Tile { shape, first: 0, tokens: shape.tokens, head, queries, segments: &segments[head] };
                tile.run(w, |token, row, value| out.row(token)[row * shape.value_length..][..shape.value_length].copy_from_slice(value));
            });
        });
        return;
    }
    let row = shape.heads * shape.value_length;
    pass.for_each_chunk(out, QUERY_TILE * row, |i, out| {
        WORKSPACE.with_borrow_mut(|w| {
            for (head, segments) in segments.iter().enumerate() {
                let tile = Tile { shape, first: i * QUERY_TILE, tokens: out.len() / row, head, queries, segments };
                tile.run(w, |token, g, value| {
                    out[token * row + head * band + g * shape.value_length..][..value.len()].copy_from_slice(value)
                });
            }
        });
    });
}

struct Tile<'a> {
    shape: &'a Shape,
    first: usize,
    tokens: usize,
    head: usize,
    queries: Queries<'a>,
    segments: &'a [KvSegment<'a>],
}

impl Tile<'_> {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.heads_kv
    }

    /// Row `r` of the tile is (token `r / group`, query head `r % group` of this KV head).
    fn query(&self, kind: QueryKind, row: usize) -> &[f32] {
        let (s, group) = (self.shape, self.group());
        let all = if kind == QueryKind::Local { self.queries.local } else { self.queries.memory };
        let at = (self.first + row / group) * s.heads + self.head * group + row % group;
        &all[at * s.key_length..][..s.key_length]
    }

    /// Entries of the segment that row `row` sees, as a range.
    fn visible(&self, segment: &KvSegment<'_>, token: usize) -> std::ops::Range<usize> {
        match segment.visibility {
            Visibility::All => 0..segment.len,
            Visibility::Causal { first, window } => {
                let end = (first + self.first + token + 1).min(segment.len);
                let start = if window == 0 { 0 } else { end.saturating_sub(window) };
                start..end
            }
        }
    }

    fn run(&self, w: &mut Workspace, mut emit: impl FnMut(usize, usize, &[f32])) {
        let (s, group) = (self.shape, self.group());
        let rows = self.tokens * group;
        w.max.clear();
        w.max.resize(rows, f32::NEG_INFINITY);
        w.sum.clear();
        w.sum.resize(rows, 0.0);
        w.acc.clear();
        w.acc.resize(rows * s.value_length, 0.0);
        w.scores.resize(rows * KEY_TILE, 0.0);
        w.decoded.resize(KEY_TILE * s.key_length.max(s.value_length), 0.0);
        self.find_thresholds(w);
        for segment in self.segments {
            // The union of what the tile's tokens see: later tokens see further, earlier ones begin sooner.
            let seen = self.visible(segment, 0).start..self.visible(segment, self.tokens - 1).end;
            let mut at = seen.start / KEY_TILE * KEY_TILE;
            while at < seen.end {
                let n = KEY_TILE.min(segment.len - at);
                self.score(w, segment, at, n);
                self.accumulate(w, segment, at, n);
                at += KEY_TILE;
            }
        }
        for row in 0..rows {
            let acc = &mut w.acc[row * s.value_length..][..s.value_length];
            let inverse = if w.sum[row] > 0.0 { 1.0 / w.sum[row] } else { 0.0 };
            acc.iter_mut().for_each(|a| *a *= inverse);
            emit(row / group, row % group, acc);
        }
    }

    /// Scores of `n` keys from `at` for all rows, masked, into `w.scores`.
    fn score(&self, w: &mut Workspace, segment: &KvSegment<'_>, at: usize, n: usize) {
        let d = self.shape.key_length;
        decode_rows(segment.codec, segment.keys, segment.key_stride, at, n, d, &mut w.decoded);
        let rows = self.tokens * self.group();
        for row in 0..rows {
            let q = self.query(segment.query, row);
            let scores = &mut w.scores[row * KEY_TILE..][..n];
            for (score, k) in scores.iter_mut().zip(w.decoded.chunks_exact(d)) {
                *score = dot(q, k) * self.shape.scale;
            }
            let seen = self.visible(segment, row / self.group());
            if seen.start > at {
                let hidden = (seen.start - at).min(n);
                scores[..hidden].fill(f32::NEG_INFINITY);
            }
            if seen.end < at + n {
                scores[seen.end.saturating_sub(at)..].fill(f32::NEG_INFINITY);
            }
            if segment.query == QueryKind::Memory && !w.thresholds.is_empty() {
                let least = w.thresholds[row];
                scores.iter_mut().filter(|s| **s < least).for_each(|s| *s = f32::NEG_INFINITY);
            }
        }
    }

    /// Folds the tile in `w.scores` into the running softmax.
    fn accumulate(&self, w: &mut Workspace, segment: &KvSegment<'_>, at: usize, n: usize) {
        let d = self.shape.value_length;
        decode_rows(segment.codec, segment.values, segment.value_stride, at, n, d, &mut w.decoded);
        let rows = self.tokens * self.group();
        for row in 0..rows {
            let scores = &mut w.scores[row * KEY_TILE..][..n];
            let tile_max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let max = w.max[row].max(tile_max);
            if max == f32::NEG_INFINITY {
                continue;
            }
            let acc = &mut w.acc[row * d..][..d];
            if max > w.max[row] {
                let shrink = exp(w.max[row] - max);
                acc.iter_mut().for_each(|a| *a *= shrink);
                w.sum[row] *= shrink;
                w.max[row] = max;
            }
            let mut sum = 0.0;
            for s in scores.iter_mut() {
                *s = exp(*s - max);
                sum += *s;
            }
            w.sum[row] += sum;
            for (p, v) in scores.iter().zip(w.decoded.chunks_exact(d)) {
                if *p > 0.0 {
                    add_scaled(acc, *p, v);
                }
            }
        }
    }

    /// With top-k: the k-th best score over all memory segments, per row.
    fn find_thresholds(&self, w: &mut Workspace) {
        w.thresholds.clear();
        let k = self.shape.memory_top_k;
        let total: usize = self.segments.iter().filter(|s| s.query == QueryKind::Memory).map(|s| s.len).sum();
        if k == 0 || total <= k {
            return;
        }
        let rows = self.tokens * self.group();
        w.all_scores.resize(rows * total, 0.0);
        let mut filled = 0;
        for segment in self.segments.iter().filter(|s| s.query == QueryKind::Memory) {
            for at in (0..segment.len).step_by(KEY_TILE) {
                let n = KEY_TILE.min(segment.len - at);
                self.score(w, segment, at, n);
                for row in 0..rows {
                    w.all_scores[row * total + filled..][..n].copy_from_slice(&w.scores[row * KEY_TILE..][..n]);
                }
                filled += n;
            }
        }
        let mut thresholds = std::mem::take(&mut w.thresholds);
        for scores in w.all_scores.chunks_exact_mut(total).take(rows) {
            let (_, kth, _) = scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            thresholds.push(*kth);
        }
        w.thresholds = thresholds;
    }
}

/// Decodes rows `at .. at + n` of `width` elements each into the front of `out`.
fn decode_rows(codec: Codec, bytes: &[u8], stride: usize, at: usize, n: usize, width: usize, out: &mut [f32]) {
    let each = codec.bytes();
    if stride == width {
        codec.decode(&bytes[at * width * each..(at + n) * width * each], &mut out[..n * width]);
        return;
    }
    for (i, out) in out.chunks_exact_mut(width).take(n).enumerate() {
        let start = (at + i) * stride * each;
        codec.decode(&bytes[start..start + width * each], out);
    }
}
