//! Training-free retrieval for ordinary models: which blocks of memory come back, and where they are placed.
//!
//! A batch of the user's tokens is computed twice. The first pass notes the unrotated queries of its last tokens in every
//! stored layer; then all layers, heads and tokens vote, in two stages: mean keys, and words that block and text share,
//! propose candidates; the best key within each candidate picks the blocks. A vote is the square of the share of attention
//! that a block would get, so that the few heads that know what they look for outweigh the many that do not (measured:
//! `docs/memory.md`). The second pass reads the chosen blocks and those that follow them, the same in all layers: they lie in
//! text order at consecutive positions just before the local window, behind the attention sinks (the first tokens of the
//! text). Positions inside the trained window are never exceeded, however large the memory is. (The family of InfLLM, arXiv
//! 2402.04617, and ReAttention, arXiv 2407.15176.)
//!
//! Invariant: a layer's buffer holds the sinks and the blocks of choice number `placed.0`, rotated to end before position
//! `placed.1`; it is rebuilt when either is out of date.

use super::hparams::Hparams;
use crate::bytes::Cursor;
use crate::error::Result;
use crate::kernels::attention::{Entries, KvSegment, QueryKind, Visibility};
use crate::kernels::codec::Codec;
use crate::kernels::rotary::{Rotary, Turn};
use crate::kernels::vector::exp;
use crate::memory::{Memory, Side};
use crate::threads::Pass;
use simsimd::SpatialSimilarity;

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
    /// Blocks that may come back.
    blocks_max: usize,
    layers: Vec<Layer>,
    sinks_max: usize,
    sinks: Sinks,
    /// In text order, with each block's share of the votes.
    chosen: Vec<(BlockAddress, f32)>,
    /// Counts choices, so that a layer knows whether its copy is of the present one.
    choice: u64,
    /// The pass under way notes queries and reads nothing new.
    surveying: bool,
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
    /// Unrotated queries of the batch's last tokens, `(tokens, heads, key_length)`.
    queries: Vec<f32>,
    /// The choice and the base that the copy below was made for.
    placed: (u64, i64),
    /// Rotated keys and values, `(tokens, heads_kv, length)`, f16.
    keys: Vec<u8>,
    values: Vec<u8>,
    tokens: usize,
}

/// Encoding of the retrieved blocks' copy.
const CODEC: Codec = Codec::F16;
/// Tokens kept as attention sinks, where the context has room for them.
const SINK_TOKENS_MAX: usize = 16;
/// Tokens of a batch that vote: its last ones.
const VOTING_TOKENS: usize = 16;
/// Blocks whose every key is looked at: half of them proposed by the mean keys, half by shared words.
const CANDIDATES: usize = 512;

impl Recall {
    /// For `slots` stored layers and a context of so many tokens, bringing back at most `blocks_max` blocks.
    pub fn new(slots: usize, context: usize, blocks_max: usize) -> Recall {
        Recall {
            blocks_max,
            sinks_max: SINK_TOKENS_MAX.min(context / 8),
            layers: (0..slots).map(|_| Layer::default()).collect(),
            sinks: Sinks::default(),
            chosen: Vec::new(),
            choice: 1,
            surveying: false,
        }
    }

    /// Most tokens that the sinks and retrieved blocks (a memory's first one among them) can take.
    pub fn tokens_max(&self) -> usize {
        let blocks = if self.blocks_max == 0 { 0 } else { self.blocks_max + 1 };
        self.sinks_max + blocks * super::MEMORY_BLOCK_TOKENS as usize
    }

    /// Forgets what was chosen and the sinks.
    pub fn clear(&mut self) {
        self.forget_choice();
        self.sinks = Sinks::default();
    }

    /// Forgets what was chosen: the memories are others now.
    pub fn forget_choice(&mut self) {
        self.chosen.clear();
        self.choice += 1;
    }

    /// Tokens of the text's beginning that are still to be kept when they leave the window.
    pub fn sinks_wanted(&self) -> usize {
        self.sinks_max - self.sinks.tokens
    }

    /// True if it holds sinks: they are read even when there is no memory to retrieve from.
    pub fn has_sinks(&self) -> bool {
        self.sinks.tokens > 0
    }

    /// Keeps `tokens` more of the text's first tokens: unrotated keys and values of each stored layer, in order.
    pub fn keep_sinks<'a>(&mut self, tokens: usize, layers: impl Iterator<Item = (&'a [f32], &'a [f32])>) {
        self.sinks.keys.resize(self.layers.len(), Vec::new());
        self.sinks.values.resize(self.layers.len(), Vec::new());
        for (slot, (keys, values)) in layers.enumerate() {
            self.sinks.keys[slot].extend_from_slice(keys);
            self.sinks.values[slot].extend_from_slice(values);
        }
        self.sinks.tokens += tokens;
        self.choice += 1;
    }

    /// What a snapshot keeps: the sinks and the choice. Copies are made anew from them.
    ///
    /// Layout: sinks (u64 tokens; for each layer u64 floats and keys, u64 floats and values), chosen blocks (u64 count; u64 memory, u64
    /// block, f32 share of the votes).
    pub fn state(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend((self.sinks.tokens as u64).to_le_bytes());
        for rows in self.sinks.keys.iter().zip(&self.sinks.values).flat_map(|(k, v)| [k, v]) {
            out.extend((rows.len() as u64).to_le_bytes());
            out.extend(rows.iter().flat_map(|x| x.to_le_bytes()));
        }
        out.extend((self.chosen.len() as u64).to_le_bytes());
        for (at, share) in &self.chosen {
            out.extend((at.memory as u64).to_le_bytes());
            out.extend((at.block as u64).to_le_bytes());
            out.extend(share.to_le_bytes());
        }
        out
    }

    /// Takes up what [`Recall::state`] gave; `blocks` has how many blocks each memory holds.
    pub fn restore(&mut self, h: &Hparams, blocks: &[usize], c: &mut Cursor<'_>) -> Result<()> {
        let at = c.offset();
        let tokens = c.u64("sinks")? as usize;
        if tokens > self.sinks_max {
            return Err(c.error_at(at, "sinks", format!("at most {}", self.sinks_max), tokens));
        }
        let mut sinks = Sinks { tokens, ..Sinks::default() };
        for _ in 0..if tokens > 0 { self.layers.len() } else { 0 } {
            for (length, side) in [(h.key_length, &mut sinks.keys), (h.value_length, &mut sinks.values)] {
                let at = c.offset();
                let (n, expected) = (c.count("sink rows", 4)?, tokens * h.head_count_kv * length);
                if n != expected {
                    return Err(c.error_at(at, "sink rows", expected, n));
                }
                side.push(c.take("sink rows", 4 * n)?.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect());
            }
        }
        let mut chosen = Vec::new();
        for _ in 0..c.count("chosen blocks", 20)? {
            let at = c.offset();
            let (memory, block) = (c.u64("chosen memory")? as usize, c.u64("chosen block")? as usize);
            if blocks.get(memory).is_none_or(|n| block >= *n) || chosen.len() > self.blocks_max {
                return Err(c.error_at(at, "chosen block", format!("at most {} of those in {blocks:?}", self.blocks_max + 1), block));
            }
            chosen.push((BlockAddress { memory, block }, f32::from_le_bytes(c.array("share")?)));
        }
        (self.sinks, self.chosen) = (sinks, chosen);
        self.choice += 1;
        Ok(())
    }

    /// Begins or ends a pass that only notes queries.
    pub fn set_surveying(&mut self, surveying: bool) {
        self.surveying = surveying;
    }

    /// The blocks that were chosen, in text order, each with its share of the votes.
    pub fn chosen(&self) -> &[(BlockAddress, f32)] {
        &self.chosen
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|l| l.keys.capacity() + l.values.capacity() + l.queries.capacity() * 4).sum()
    }

    /// In a survey: keeps the unrotated `queries`, `(tokens, heads, key_length)`, of the batch's last tokens, for the vote.
    pub fn note(&mut self, h: &Hparams, slot: usize, queries: &[f32]) {
        if self.surveying {
            let row = h.head_count * h.key_length;
            let noted = &mut self.layers[slot].queries;
            noted.clear();
            noted.extend_from_slice(&queries[queries.len().saturating_sub(VOTING_TOKENS * row)..]);
        }
    }

    /// Readies layer `slot` for a batch; `base` is the position of the first local token.
    pub fn prepare(
        &mut self,
        h: &Hparams,
        slot: usize,
        memories: &[&Memory],
        rotary: &Rotary,
        base: i64,
        bytes_read: &mut u64,
    ) -> Result<()> {
        let layer = &mut self.layers[slot];
        if layer.placed != (self.choice, base) {
            place(h, slot, memories, layer, &self.sinks, &self.chosen, rotary, base, bytes_read)?;
            layer.placed = (self.choice, base);
        }
        Ok(())
    }

    /// What KV head `head` reads, if anything.
    pub fn segment(&self, h: &Hparams, slot: usize, head: usize) -> Option<KvSegment<'_>> {
        let layer = &self.layers[slot];
        (layer.tokens > 0).then(|| KvSegment {
            entries: Entries::Rows {
                codec: CODEC,
                keys: &layer.keys[head * h.key_length * CODEC.bytes()..],
                values: &layer.values[head * h.value_length * CODEC.bytes()..],
                key_stride: h.head_count_kv * h.key_length,
                value_stride: h.head_count_kv * h.value_length,
            },
            len: layer.tokens,
            query: QueryKind::Local,
            visibility: Visibility::All,
        })
    }

    /// Chooses the blocks to bring back: by the votes of the queries that the last pass noted, among candidates that the mean
    /// keys and the words of the `text` propose.
    pub fn choose(&mut self, pass: &Pass<'_>, h: &Hparams, memories: &[&Memory], text: &[u32], bytes_read: &mut u64) -> Result<()> {
        let blocks: Vec<usize> = memories.iter().map(|m| m.blocks()).collect();
        let total = blocks.iter().sum();
        let mut candidates: Vec<usize> = (0..total).collect();
        if total > CANDIDATES {
            let by_mean = self.vote(pass, &candidates, |slot, queries| mean_logits(h, slot, memories, queries))?;
            candidates = best(&by_mean, CANDIDATES / 2);
            candidates.extend(best(&shared_words(memories, text)?, CANDIDATES / 2));
            candidates.sort_unstable();
            candidates.dedup();
        }
        // The first block of a text draws attention whatever is asked (it is the sink): it has no vote to win.
        let firsts: Vec<usize> = blocks.iter().scan(0, |start, n| Some(std::mem::replace(start, *start + n))).collect();
        candidates.retain(|c| firsts.binary_search(c).is_err());
        let readable: Vec<bool> = addresses(&blocks, &candidates).iter().map(|at| memories[at.memory].is_readable(at.block)).collect();
        let mut readable = readable.into_iter();
        candidates.retain(|_| readable.next() == Some(true));
        let all = addresses(&blocks, &candidates);
        let votes = self.vote(pass, &candidates, |slot, queries| best_key_logits(h, slot, memories, &all, queries))?;
        let geometry = memories.first().map(|m| m.geometry());
        let key_bytes = geometry.map_or(0, |g| g.row_bytes(Side::Keys) * (g.block_tokens * g.head_count_kv) as usize);
        *bytes_read += (key_bytes * candidates.len() * self.layers.len()) as u64;
        self.chosen = with_what_follows(&blocks, &candidates, &votes, self.blocks_max);
        // It comes back all the same, as the sink that the chosen blocks were computed with, unless this text has its own.
        if self.blocks_max > 0 && self.sinks.tokens == 0 && blocks.first().is_some_and(|n| *n > 0) {
            self.chosen.insert(0, (BlockAddress { memory: 0, block: 0 }, 0.0));
        }
        // What follows a candidate may be forgotten, and a candidate may just have turned out damaged.
        self.chosen.retain(|(at, _)| memories[at.memory].is_readable(at.block));
        self.choice += 1;
        Ok(())
    }

    /// The votes of all layers, tokens and heads for `candidates`; `logits` gives a layer's `(token and head, candidate)`.
    fn vote(&self, pass: &Pass<'_>, candidates: &[usize], logits: impl Fn(usize, &[f32]) -> Result<Vec<f32>> + Sync) -> Result<Vec<f32>> {
        let mut by_layer: Vec<Result<Vec<f32>>> = self.layers.iter().map(|_| Ok(Vec::new())).collect();
        pass.for_each_chunk(&mut by_layer, 1, |slot, out| {
            out[0] = logits(slot, &self.layers[slot].queries).map(|mut logits| {
                let mut votes = vec![0.0; candidates.len()];
                for row in logits.chunks_exact_mut(candidates.len().max(1)) {
                    softmax(row);
                    votes.iter_mut().zip(row).for_each(|(v, p)| *v += *p * *p);
                }
                votes
            });
        });
        let mut votes = vec![0.0; candidates.len()];
        for layer in by_layer {
            votes.iter_mut().zip(layer?).for_each(|(v, l)| *v += l);
        }
        Ok(votes)
    }
}

/// Scores of every block's mean key, `(token and head, block)`.
fn mean_logits(h: &Hparams, slot: usize, memories: &[&Memory], queries: &[f32]) -> Result<Vec<f32>> {
    let d = h.key_length;
    let scale = 1.0 / (d as f32).sqrt();
    let means = memories.iter().map(|m| m.mean_keys(slot)).collect::<Result<Vec<_>>>()?;
    let mut logits = Vec::new();
    for (row, q) in queries.chunks_exact(d).enumerate() {
        let head = row % h.head_count / h.group();
        for means in &means {
            logits.extend(means.chunks_exact(h.head_count_kv * d).map(|mean| dot(q, &mean[head * d..][..d]) * scale));
        }
    }
    Ok(logits)
}

/// Scores of the best key of each of `blocks`, `(token and head, block)`.
fn best_key_logits(h: &Hparams, slot: usize, memories: &[&Memory], blocks: &[BlockAddress], queries: &[f32]) -> Result<Vec<f32>> {
    let d = h.key_length;
    let scale = 1.0 / (d as f32).sqrt();
    let rows = queries.len() / d;
    let mut logits = vec![0.0; rows * blocks.len()];
    let mut keys = Vec::new();
    for (b, at) in blocks.iter().enumerate() {
        for head in 0..h.head_count_kv {
            let memory = memories[at.memory];
            let Some(view) = memory.or_drop(at.block, memory.keys(slot, head, at.block))? else {
                (0..rows).for_each(|row| logits[row * blocks.len() + b] = f32::NEG_INFINITY);
                break;
            };
            keys.clear();
            keys.resize(view.len * d, 0.0);
            view.decode(&mut keys);
            let mine = |row: &usize| row % h.head_count / h.group() == head;
            for row in (0..rows).filter(mine) {
                let q = &queries[row * d..][..d];
                let best = keys.chunks_exact(d).map(|k| dot(q, k)).fold(f32::NEG_INFINITY, f32::max);
                logits[row * blocks.len() + b] = best * scale;
            }
        }
    }
    Ok(logits)
}

/// The inner product, by the widest instructions that the scoring library finds on this machine.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    <f32 as SpatialSimilarity>::dot(a, b).unwrap_or(0.0) as f32
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in row.iter_mut() {
        *v = exp(*v - max);
        sum += *v;
    }
    row.iter_mut().for_each(|v| *v /= sum);
}

/// Indices of the `n` highest votes, in ascending order; the lower index wins a tie.
fn best(votes: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..votes.len()).collect();
    if n < order.len() {
        order.select_nth_unstable_by(n, |a, b| votes[*b].total_cmp(&votes[*a]).then(a.cmp(b)));
        order.truncate(n);
        order.sort_unstable();
    }
    order
}

/// How much of the text's rarer words each block holds: the sum over shared tokens of their inverse document frequency
/// (Robertson and Sparck Jones's weight, blocks as documents). What a question is about is mostly named in it.
fn shared_words(memories: &[&Memory], text: &[u32]) -> Result<Vec<f32>> {
    let mut words = text.to_vec();
    words.sort_unstable();
    words.dedup();
    let mut shared: Vec<Vec<u32>> = Vec::new();
    let mut frequency = vec![0u32; words.len()];
    for memory in memories {
        for b in 0..memory.blocks() {
            let span = memory.block(b)?;
            let tokens = memory.tokens(span.first_token..span.first_token + span.len as u64)?;
            let mut found: Vec<u32> = tokens.iter().filter_map(|t| words.binary_search(t).ok()).map(|i| i as u32).collect();
            found.sort_unstable();
            found.dedup();
            found.iter().for_each(|i| frequency[*i as usize] += 1);
            shared.push(found);
        }
    }
    let n = shared.len() as f32;
    let weight: Vec<f32> = frequency.iter().map(|df| (1.0 + (n - *df as f32 + 0.5) / (*df as f32 + 0.5)).ln()).collect();
    Ok(shared.iter().map(|found| found.iter().map(|i| weight[*i as usize]).sum()).collect())
}

/// The candidates with the most votes, each with the block that follows it (a thought rarely ends with its block), `n` blocks
/// in all, in text order with their share of the votes.
fn with_what_follows(blocks: &[usize], candidates: &[usize], votes: &[f32], n: usize) -> Vec<(BlockAddress, f32)> {
    let all: f32 = votes.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|a, b| votes[*b].total_cmp(&votes[*a]).then(a.cmp(b)));
    let mut chosen = std::collections::BTreeMap::new();
    for i in order {
        let at = addresses(blocks, &candidates[i..=i])[0];
        let next = BlockAddress { block: at.block + 1, ..at };
        if chosen.len() < n {
            *chosen.entry(at).or_default() = votes[i] / all;
        }
        if chosen.len() < n && next.block < blocks[at.memory] {
            chosen.entry(next).or_insert(0.0);
        }
        if chosen.len() == n {
            break;
        }
    }
    chosen.into_iter().collect()
}

/// Where the blocks with these (ascending) numbers, counted over all memories, lie; `blocks` has how many each memory holds.
fn addresses(blocks: &[usize], numbers: &[usize]) -> Vec<BlockAddress> {
    let mut out = Vec::with_capacity(numbers.len());
    let mut start = 0;
    let mut rest = numbers.iter().peekable();
    for (memory, count) in blocks.iter().enumerate() {
        while let Some(i) = rest.next_if(|i| **i < start + count) {
            out.push(BlockAddress { memory, block: i - start });
        }
        start += count;
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
    chosen: &[(BlockAddress, f32)],
    rotary: &Rotary,
    base: i64,
    bytes_read: &mut u64,
) -> Result<()> {
    let mut total = sinks.tokens;
    let mut readable = Vec::new();
    for (at, _) in chosen {
        let memory = memories[at.memory];
        // A block that is damaged in this layer is left out here.
        if memory.or_drop(at.block, memory.keys(slot, 0, at.block))?.is_some() {
            total += memory.block(at.block)?.len;
            readable.push(at);
        }
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
    for address in readable {
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
    rotary.turn(Turn::Forward, base - total as i64, &mut keys, h.head_count_kv, h.key_length);
    layer.keys.clear();
    layer.values.clear();
    CODEC.append(&keys, &mut layer.keys);
    CODEC.append(&values, &mut layer.values);
    layer.tokens = total;
    Ok(())
}
