//! Training-free retrieval for ordinary models: which blocks of memory come back, and where they are placed.
//!
//! Every global layer scores the blocks of all attached memories by their mean keys (unrotated, as are the queries that
//! score them), takes the best, and lays them in text order at consecutive positions just before the local window, behind
//! the attention sinks (the first tokens of the text). Positions inside the trained window are never exceeded, however
//! large the memory is. (The family of InfLLM, arXiv 2402.04617, and ReAttention, arXiv 2407.15176.)
//!
//! Invariant: a layer's buffer holds the keys of `chosen`, rotated to `placed_before`; it is rebuilt when either changes.

use super::hparams::Hparams;
use crate::error::Result;
use crate::kernels::attention::{KvSegment, QueryKind, Visibility};
use crate::kernels::codec::Codec;
use crate::kernels::rotary::Rotary;
use crate::kernels::vector::{dot, exp};
use crate::memory::Memory;

/// A block of one of the attached memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockAddress {
    /// Index among the attached memories.
    pub memory: usize,
    /// Block of that memory.
    pub block: usize,
}

/// Retrieval state of a session.
pub struct Recall {
    /// Blocks that each layer may bring back.
    blocks_max: usize,
    layers: Vec<Layer>,
    sinks: Sinks,
    /// Counts decode steps, so that the choice is made anew only every few of them.
    step: usize,
}

/// The first tokens of the text, kept when they leave the window: `(tokens, heads_kv, length)` per stored layer.
#[derive(Default)]
struct Sinks {
    tokens: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

#[derive(Default)]
struct Layer {
    /// In text order.
    chosen: Vec<BlockAddress>,
    /// Score of every block of every memory, smoothed over the tokens of the answer.
    scores: Vec<f32>,
    placed_before: i64,
    sinks_placed: usize,
    /// Rotated keys and values, `(tokens, heads_kv, length)`, f16.
    keys: Vec<u8>,
    values: Vec<u8>,
    tokens: usize,
}

/// Encoding of the retrieved blocks' copy.
const CODEC: Codec = Codec::F16;
/// Tokens kept as attention sinks.
pub const SINK_TOKENS: usize = 16;
/// Decode steps between two choices.
const STEPS_BETWEEN_CHOICES: usize = 8;
/// Weight of the past in the smoothed scores.
const SMOOTHING: f32 = 0.8;

impl Recall {
    /// For `slots` stored layers, each bringing back at most `blocks_max` blocks.
    pub fn new(slots: usize, blocks_max: usize) -> Recall {
        Recall { blocks_max, layers: (0..slots).map(|_| Layer::default()).collect(), sinks: Sinks::default(), step: 0 }
    }

    /// Most tokens that a layer's sinks and retrieved blocks can take.
    pub fn tokens_max(&self) -> usize {
        SINK_TOKENS + self.blocks_max * super::MEMORY_BLOCK_TOKENS as usize
    }

    /// Forgets what was chosen and the sinks.
    pub fn clear(&mut self) {
        *self = Recall::new(self.layers.len(), self.blocks_max);
    }

    /// True if the first tokens of the text were kept already.
    pub fn has_sinks(&self) -> bool {
        self.sinks.tokens > 0
    }

    /// Keeps the first tokens of the text; called once, for each slot in order, before they leave the window.
    pub fn keep_sinks(&mut self, tokens: usize, keys: Vec<f32>, values: Vec<f32>) {
        self.sinks.tokens = tokens;
        self.sinks.keys.push(keys);
        self.sinks.values.push(values);
    }

    /// Tells that a batch begins: a prompt's batch always chooses anew, an answer's token every few steps.
    pub fn begin(&mut self, tokens: usize) {
        self.step = if tokens > 1 { 0 } else { self.step + 1 };
    }

    /// The blocks that layers have chosen, with the share of the score each got, summed over layers.
    pub fn chosen(&self) -> Vec<(BlockAddress, f32)> {
        let mut all: std::collections::BTreeMap<BlockAddress, f32> = std::collections::BTreeMap::new();
        for layer in &self.layers {
            for at in &layer.chosen {
                *all.entry(*at).or_default() += 1.0 / self.layers.len() as f32;
            }
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|l| l.keys.capacity() + l.values.capacity() + l.scores.capacity() * 4).sum()
    }

    /// Chooses and places blocks for the batch whose unrotated queries are `queries`, `(tokens, heads, key_length)`;
    /// `base` is the position of the first local token.
    #[allow(clippy::too_many_arguments)]
    pub fn prepare(
        &mut self,
        h: &Hparams,
        slot: usize,
        memories: &[&Memory],
        queries: &[f32],
        rotary: &Rotary,
        base: i64,
        bytes_read: &mut u64,
    ) -> Result<()> {
        let layer = &mut self.layers[slot];
        let total: usize = memories.iter().map(|m| m.blocks()).sum();
        let fresh = layer.scores.len() != total;
        let choose = total > 0 && (fresh || self.step.is_multiple_of(STEPS_BETWEEN_CHOICES));
        if total > 0 {
            let keep = if fresh || self.step == 0 { 0.0 } else { SMOOTHING };
            layer.scores.resize(total, 0.0);
            layer.scores.iter_mut().for_each(|s| *s *= keep);
            score_blocks(h, slot, memories, queries, 1.0 - keep, &mut layer.scores)?;
        }
        let mut moved = layer.placed_before != base || layer.sinks_placed != self.sinks.tokens;
        if choose {
            let chosen = best_blocks(memories, &layer.scores, self.blocks_max);
            moved |= chosen != layer.chosen;
            layer.chosen = chosen;
        }
        if moved {
            place(h, slot, memories, layer, &self.sinks, rotary, base, bytes_read)?;
        }
        Ok(())
    }

    /// What KV head `head` reads, if anything.
    pub fn segment(&self, h: &Hparams, slot: usize, head: usize) -> Option<KvSegment<'_>> {
        let layer = &self.layers[slot];
        (layer.tokens > 0).then(|| KvSegment {
            codec: CODEC,
            keys: &layer.keys[head * h.key_length * CODEC.bytes()..],
            values: &layer.values[head * h.value_length * CODEC.bytes()..],
            key_stride: h.head_count_kv * h.key_length,
            value_stride: h.head_count_kv * h.value_length,
            len: layer.tokens,
            query: QueryKind::Local,
            visibility: Visibility::All,
        })
    }
}

/// Adds `weight` times each block's share of the batch's attention, as its mean keys predict it: a softmax over blocks per
/// token and query head, averaged.
fn score_blocks(h: &Hparams, slot: usize, memories: &[&Memory], queries: &[f32], weight: f32, scores: &mut [f32]) -> Result<()> {
    let means = memories.iter().map(|m| m.mean_keys(slot)).collect::<Result<Vec<_>>>()?;
    let d = h.key_length;
    let scale = 1.0 / (d as f32).sqrt();
    let votes = queries.len() / d;
    let mut logits = vec![0.0; scores.len()];
    for (i, q) in queries.chunks_exact(d).enumerate() {
        let head = i % h.head_count / h.group();
        let mut at = 0;
        for means in &means {
            for mean in means.chunks_exact(h.head_count_kv * d) {
                logits[at] = dot(q, &mean[head * d..][..d]) * scale;
                at += 1;
            }
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for l in &mut logits {
            *l = exp(*l - max);
            sum += *l;
        }
        let share = weight / (sum * votes as f32);
        for (s, l) in scores.iter_mut().zip(&logits) {
            *s += l * share;
        }
    }
    Ok(())
}

/// The best `n` blocks by score, in text order.
fn best_blocks(memories: &[&Memory], scores: &[f32], n: usize) -> Vec<BlockAddress> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if n < order.len() {
        order.select_nth_unstable_by(n, |a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order.truncate(n);
        order.sort_unstable();
    }
    let mut out = Vec::with_capacity(order.len());
    let mut start = 0;
    let mut rest = order.into_iter().peekable();
    for (memory, m) in memories.iter().enumerate() {
        let end = start + m.blocks();
        while let Some(i) = rest.next_if(|i| *i < end) {
            out.push(BlockAddress { memory, block: i - start });
        }
        start = end;
    }
    out
}

/// Copies sinks and chosen blocks into the layer's buffer, keys rotated to consecutive positions that end before `base`.
#[allow(clippy::too_many_arguments)]
fn place(
    h: &Hparams,
    slot: usize,
    memories: &[&Memory],
    layer: &mut Layer,
    sinks: &Sinks,
    rotary: &Rotary,
    base: i64,
    bytes_read: &mut u64,
) -> Result<()> {
    let mut total = sinks.tokens;
    for at in &layer.chosen {
        total += memories[at.memory].block(at.block)?.len;
    }
    let (key_row, value_row) = (h.head_count_kv * h.key_length, h.head_count_kv * h.value_length);
    let mut keys = vec![0.0; total * key_row];
    let mut values = vec![0.0; total * value_row];
    if sinks.tokens > 0 {
        keys[..sinks.tokens * key_row].copy_from_slice(&sinks.keys[slot]);
        values[..sinks.tokens * value_row].copy_from_slice(&sinks.values[slot]);
    }
    let mut at = sinks.tokens;
    let mut rows = Vec::new();
    for address in &layer.chosen {
        let memory = memories[address.memory];
        for head in 0..h.head_count_kv {
            let (k, v) = (memory.keys(slot, head, address.block)?, memory.values(slot, head, address.block)?);
            *bytes_read += (k.bytes.len() + v.bytes.len()) as u64;
            for (view, width, out) in [(k, key_row, &mut keys), (v, value_row, &mut values)] {
                rows.clear();
                rows.resize(view.len * view.length, 0.0);
                view.decode(&mut rows);
                for (t, row) in rows.chunks_exact(view.length).enumerate() {
                    out[(at + t) * width + head * view.length..][..view.length].copy_from_slice(row);
                }
            }
        }
        at += memory.block(address.block)?.len;
    }
    let mut angles = Vec::with_capacity(rotary.pairs());
    for (t, token) in keys.chunks_exact_mut(key_row).enumerate() {
        angles.clear();
        rotary.angles(base - total as i64 + t as i64, &mut angles);
        token.chunks_exact_mut(h.key_length).for_each(|head| rotary.rotate(head, &angles));
    }
    layer.keys.clear();
    layer.values.clear();
    CODEC.append(&keys, &mut layer.keys);
    CODEC.append(&values, &mut layer.values);
    layer.tokens = total;
    layer.placed_before = base;
    layer.sinks_placed = sinks.tokens;
    Ok(())
}
