//! Training-free retrieval for ordinary models: which blocks of memory come back, and where they are placed.
//!
//! A batch of the user's tokens is computed twice. The first pass goes as far as the layers that search and notes the unrotated
//! queries of the batch's last tokens; their heads vote, in stages: sketches of all keys of one layer propose candidates (`propose.rs`); the
//! best key within each candidate votes (`vote.rs`). The second pass
//! reads the chosen blocks and those that follow them (`choice.rs`), the same in all layers (`blocks.rs`): they lie, the most wanted last,
//! at consecutive positions just before the local window, behind the attention sinks (the first tokens of the text). Positions
//! inside the trained window are never exceeded, however large the memory is. While an answer is generated, its own queries choose
//! again, now and then, among the best candidates of the turn; what is new is read a block a token, and read in attention when all of
//! it is there. (The family of InfLLM, arXiv 2402.04617, and ReAttention, arXiv 2407.15176.)
//!
//! Invariants: a layer's copy holds the sinks and the blocks of choice number `placed.0`, rotated to end before position
//! `placed.1`; it is rebuilt when either is out of date, as is what it has of the choice on its way, number `choice + 1`. Every chosen block is held in RAM. What is held stays within the budget,
//! but for the blocks of one choice, which are as few as they must be to fit.

mod blocks;
mod choice;
mod propose;
mod vote;

use self::blocks::{Blocks, CODEC, Placed, Sinks, Turning};
use self::choice::{unread, with_what_follows};
use self::vote::{Read, best, best_key_votes};
use super::hparams::Hparams;
use crate::bytes::Cursor;
use crate::error::{Result, try_reserve};
use crate::kernels::attention::{Entries, KvSegment, QueryKind, Visibility};
use crate::kernels::rotary::Rotary;
use crate::memory::Memory;
use crate::threads::Pass;
use std::collections::BTreeSet;
use std::ops::Range;

/// A block of one of the attached memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockAddress {
    /// Index among the attached memories.
    pub memory: usize,
    /// Block of that memory.
    pub block: usize,
}

/// What retrieval has read, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecallStats {
    /// Bytes of memories read: sketches, keys of candidates, blocks.
    pub bytes_read: u64,
    /// Blocks read, each in all layers.
    pub blocks_read: u64,
    /// Chosen blocks that were in RAM already.
    pub block_hits: u64,
    /// Damaged blocks that were left out.
    pub blocks_damaged: u64,
    /// Choices made.
    pub choices: u64,
    /// Of the last choice: the share of the votes that went to blocks which were not read.
    pub unread_share: f32,
}

/// How a session retrieves.
#[derive(Clone, Debug, Default)]
pub struct RecallOptions {
    /// Blocks that may come back.
    pub blocks_max: usize,
    /// Layer slots whose queries search.
    pub searching: Vec<usize>,
    /// Bytes that a choice may work with, and that blocks and their copies may take.
    pub budget_bytes: usize,
    /// Tokens of an answer after which it chooses again; 0: never.
    pub reselect_tokens: usize,
}

/// Retrieval state of a session.
pub struct Recall {
    options: RecallOptions,
    layers: Vec<Layer>,
    turning: Turning,
    /// For each searching layer the unrotated queries of the last tokens, `(tokens, heads, key_length)`.
    queries: Vec<Vec<f32>>,
    blocks: Blocks,
    sinks_max: usize,
    sinks: Sinks,
    /// As they are laid out, with each block's share of the votes.
    chosen: Vec<(BlockAddress, f32)>,
    /// The best candidates of the turn: what an answer may choose from.
    finalists: Vec<BlockAddress>,
    /// A choice on its way: some of its blocks are still to be read, or to be laid out in some layers.
    next: Option<Vec<(BlockAddress, f32)>>,
    /// Tokens for which all blocks of that choice have been here: so many times `LAYERS_AT_ONCE` layers have copies of it.
    steps: usize,
    /// Blocks that a snapshot says were held.
    missing: Vec<BlockAddress>,
    /// Tokens generated since the last choice.
    since: usize,
    /// Queries are noted: not in a batch's second pass, which has them already.
    noting: bool,
    /// Counts choices, so that a layer knows whether its copy is of the present one.
    choice: u64,
    stats: RecallStats,
}

#[derive(Default)]
struct Layer {
    /// The choice and the base that the copy was made for.
    placed: (u64, i64),
    copy: Placed,
    /// Of the choice on its way, in the same way; no choice has the number 0.
    next_placed: (u64, i64),
    next: Placed,
}

/// Tokens kept as attention sinks, where the context has room for them.
const SINK_TOKENS_MAX: usize = 16;
/// Tokens of a batch that vote: its last ones.
const VOTING_TOKENS: usize = 8;
/// Tokens of an answer that vote when it chooses again.
const VOTING_TOKENS_RUNNING: usize = 2;
/// A memory of no more blocks needs no stages: every key of the layers that search is looked at.
const CANDIDATES: usize = 512;
/// Blocks that sketches propose of more than those (measured: `docs/memory.md`).
const PROPOSED: usize = 256;
/// Of the candidates, as many as an answer may choose from; and all searching layers, where there are more than [`CANDIDATES`] blocks.
const FINALISTS: usize = 64;
/// Layers in which a choice on its way is laid out for each token.
const LAYERS_AT_ONCE: usize = 4;
/// A block that is there already counts so much more when an answer chooses again.
const HYSTERESIS: f32 = 2.0;

/// The layer slots that search where nobody says: the middle of the model finds facts (measured: `docs/memory.md`); all of them where
/// few are stored.
pub fn searching_slots(h: &Hparams) -> Vec<usize> {
    let stored = &h.memory_layers;
    let middle = |l: usize| (0.5..0.6).contains(&(l as f64 / h.block_count as f64));
    let found: Vec<usize> = (0..stored.len()).filter(|slot| middle(stored[*slot])).collect();
    if stored.len() <= 4 || found.is_empty() { (0..stored.len()).collect() } else { found }
}

impl Recall {
    /// For `slots` stored layers and a context of so many tokens.
    pub fn new(slots: usize, context: usize, options: RecallOptions) -> Recall {
        Recall {
            queries: options.searching.iter().map(|_| Vec::new()).collect(),
            options,
            sinks_max: SINK_TOKENS_MAX.min(context / 8),
            layers: (0..slots).map(|_| Layer::default()).collect(),
            turning: Turning::default(),
            blocks: Blocks::default(),
            sinks: Sinks::default(),
            chosen: Vec::new(),
            finalists: Vec::new(),
            next: None,
            steps: 0,
            missing: Vec::new(),
            since: 0,
            noting: true,
            choice: 1,
            stats: RecallStats::default(),
        }
    }

    /// Most tokens that the sinks and retrieved blocks (a memory's first one among them) can take.
    pub fn tokens_max(&self) -> usize {
        let blocks = if self.options.blocks_max == 0 { 0 } else { self.options.blocks_max + 1 };
        self.sinks_max + blocks * super::MEMORY_BLOCK_TOKENS as usize
    }

    /// Forgets what was chosen, the sinks, and all memories but the first `keep`.
    pub fn clear(&mut self, keep: usize) {
        self.forget_choice();
        self.queries.iter_mut().for_each(Vec::clear);
        self.sinks = Sinks::default();
        self.blocks.truncate(keep);
    }

    /// Forgets what was chosen.
    fn forget_choice(&mut self) {
        self.chosen.clear();
        self.finalists.clear();
        self.missing.clear();
        self.next = None;
        self.start_over();
        self.since = 0;
        self.choice += 1;
    }

    /// What was laid out of a choice on its way is not that choice any more.
    fn start_over(&mut self) {
        self.steps = 0;
        self.layers.iter_mut().for_each(|layer| (layer.next_placed, layer.next) = Default::default());
    }

    /// The memories from number `keep` on are others now.
    pub fn memories_changed(&mut self, keep: usize) {
        self.forget_choice();
        self.blocks.truncate(keep);
    }

    /// Gives back what can be read again: blocks that are not chosen.
    pub fn trim(&mut self) {
        let (chosen, next) = (&self.chosen, self.next.as_deref().unwrap_or_default());
        self.blocks.shrink(0, |at| chosen.iter().chain(next).any(|c| c.0 == at));
    }

    /// Tokens of the text's beginning that are still to be kept when they leave the window.
    pub fn sinks_wanted(&self) -> usize {
        self.sinks_max - self.sinks.tokens
    }

    /// True if it holds sinks: they are read even when there is no memory to retrieve from.
    pub fn has_sinks(&self) -> bool {
        self.sinks.tokens > 0
    }

    /// Makes room for `tokens` more of the text's first tokens, so that [`Recall::keep_sinks`] cannot fail.
    pub fn reserve_sinks(&mut self, h: &Hparams, tokens: usize) -> Result<()> {
        self.sinks.keys.resize(self.layers.len(), Vec::new());
        self.sinks.values.resize(self.layers.len(), Vec::new());
        let keys = self.sinks.keys.iter_mut().map(|keys| (keys, h.key_length));
        for (rows, length) in keys.chain(self.sinks.values.iter_mut().map(|values| (values, h.value_length))) {
            try_reserve(rows, "the first tokens", tokens * h.head_count_kv * length)?;
        }
        Ok(())
    }

    /// Keeps `tokens` more of the text's first tokens, for which there is room: unrotated keys and values of each stored layer, in order.
    pub fn keep_sinks<'a>(&mut self, tokens: usize, layers: impl Iterator<Item = (&'a [f32], &'a [f32])>) {
        for (slot, (keys, values)) in layers.enumerate() {
            self.sinks.keys[slot].extend_from_slice(keys);
            self.sinks.values[slot].extend_from_slice(values);
        }
        self.sinks.tokens += tokens;
        self.choice += 1;
    }

    /// The blocks that were chosen, the most wanted last, each with its share of the votes.
    pub fn chosen(&self) -> &[(BlockAddress, f32)] {
        &self.chosen
    }

    /// What was read.
    pub fn stats(&self) -> RecallStats {
        self.stats
    }

    /// Bytes held: blocks, copies, queries.
    pub fn bytes(&self) -> usize {
        let queries = self.queries.iter().map(|q| 4 * q.capacity()).sum::<usize>();
        self.blocks.bytes() + self.copies() + queries
    }

    fn copies(&self) -> usize {
        self.layers.iter().map(|l| l.copy.bytes() + l.next.bytes()).sum::<usize>() + self.turning.bytes()
    }

    /// The last layer slot that searches: a pass that is made for its queries need not go further.
    pub fn last_searching(&self) -> Option<usize> {
        self.options.searching.last().copied()
    }

    /// Keeps the unrotated `queries`, `(tokens, heads, key_length)`, of a layer's last tokens, if it searches.
    pub fn note(&mut self, h: &Hparams, slot: usize, queries: &[f32]) {
        if let (true, Ok(i)) = (self.noting, self.options.searching.binary_search(&slot)) {
            let most = VOTING_TOKENS * h.head_count * h.key_length;
            let noted = &mut self.queries[i];
            let queries = &queries[queries.len().saturating_sub(most)..];
            let surplus = (noted.len() + queries.len()).saturating_sub(most);
            noted.drain(..surplus);
            noted.extend_from_slice(queries);
        }
    }

    /// What a snapshot keeps: the sinks, the choice, what it may be changed to, and the queries that would change it. Copies are made
    /// anew from them.
    ///
    /// Layout: sinks (u64 tokens; for each layer u64 floats and keys, u64 floats and values), chosen blocks, finalists, blocks on their
    /// way (each u64 count; u64 memory, u64 block, f32 share of the votes, u32 1 if it is held), u64 1 if there is such a choice and 1 more
    /// for each token for which all of it has been here, u64 tokens since the last choice, and for each searching layer u64 floats and queries.
    pub fn state(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let put = |out: &mut Vec<u8>, rows: &[f32]| {
            try_reserve(out, "the state of recall", 8 + 4 * rows.len())?;
            out.extend((rows.len() as u64).to_le_bytes());
            out.extend(rows.iter().flat_map(|x| x.to_le_bytes()));
            Ok(())
        };
        out.extend((self.sinks.tokens as u64).to_le_bytes());
        // Room may have been made for some that did not come.
        let rows = self.sinks.keys.iter().zip(&self.sinks.values).filter(|_| self.sinks.tokens > 0);
        for rows in rows.flat_map(|(k, v)| [k, v]) {
            put(&mut out, rows)?;
        }
        let finalists: Vec<(BlockAddress, f32)> = self.finalists.iter().map(|at| (*at, 0.0)).collect();
        for list in [&self.chosen, &finalists, self.next.as_ref().unwrap_or(&Vec::new())] {
            out.extend((list.len() as u64).to_le_bytes());
            for (at, share) in list {
                out.extend((at.memory as u64).to_le_bytes());
                out.extend((at.block as u64).to_le_bytes());
                out.extend(share.to_le_bytes());
                out.extend(u32::from(self.blocks.holds(*at)).to_le_bytes());
            }
        }
        out.extend(self.next.as_ref().map_or(0, |_| 1 + self.steps as u64).to_le_bytes());
        out.extend((self.since as u64).to_le_bytes());
        self.queries.iter().try_for_each(|q| put(&mut out, q))?;
        Ok(out)
    }

    /// Takes up what [`Recall::state`] gave; `blocks` has how many blocks each memory holds. [`Recall::bring_back`] must follow before
    /// anything is computed.
    pub fn restore(&mut self, h: &Hparams, blocks: &[usize], c: &mut Cursor<'_>) -> Result<()> {
        let floats = |c: &mut Cursor<'_>, what: &'static str, fits: &dyn Fn(usize) -> bool| -> Result<Vec<f32>> {
            let at = c.offset();
            let n = c.count(what, 4)?;
            if !fits(n) {
                return Err(c.error_at(at, what, "as many as the model has", n));
            }
            Ok(c.take(what, 4 * n)?.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
        };
        let at = c.offset();
        let tokens = c.u64("sinks")? as usize;
        if tokens > self.sinks_max {
            return Err(c.error_at(at, "sinks", format!("at most {}", self.sinks_max), tokens));
        }
        let mut sinks = Sinks { tokens, ..Sinks::default() };
        for _ in 0..if tokens > 0 { self.layers.len() } else { 0 } {
            sinks.keys.push(floats(c, "sink rows", &|n| n == tokens * h.head_count_kv * h.key_length)?);
            sinks.values.push(floats(c, "sink rows", &|n| n == tokens * h.head_count_kv * h.value_length)?);
        }
        let mut lists = Vec::new();
        for most in [self.options.blocks_max + 1, FINALISTS, self.options.blocks_max + 1] {
            let mut list = Vec::new();
            for _ in 0..c.count("chosen blocks", 24)? {
                let at = c.offset();
                let (memory, block) = (c.u64("chosen memory")? as usize, c.u64("chosen block")? as usize);
                if blocks.get(memory).is_none_or(|n| block >= *n) || list.len() >= most {
                    return Err(c.error_at(at, "chosen block", format!("at most {most} of those in {blocks:?}"), block));
                }
                let share = f32::from_le_bytes(c.array("share")?);
                list.push((BlockAddress { memory, block }, share, c.u32("held")? != 0));
            }
            lists.push(list);
        }
        let at = c.offset();
        let next = c.u64("a choice on its way")?;
        if next > 1 + self.layers.len() as u64 {
            return Err(c.error_at(at, "a choice on its way", format!("at most {}", 1 + self.layers.len()), next));
        }
        self.start_over();
        self.steps = next.saturating_sub(1) as usize;
        self.since = c.u64("tokens since the choice")? as usize;
        for i in 0..self.queries.len() {
            let row = h.head_count * h.key_length;
            self.queries[i] = floats(c, "queries", &|n| n.is_multiple_of(row) && n <= VOTING_TOKENS * row)?;
        }
        self.missing = lists.iter().flatten().filter(|b| b.2).map(|b| b.0).collect();
        let mut lists = lists.into_iter().map(|list| list.into_iter().map(|(at, share, _)| (at, share)).collect::<Vec<_>>());
        self.chosen = lists.next().unwrap_or_default();
        self.finalists = lists.next().unwrap_or_default().into_iter().map(|b| b.0).collect();
        self.next = lists.next().filter(|_| next > 0);
        self.sinks = sinks;
        self.choice += 1;
        Ok(())
    }

    /// Reads what a restored state had held.
    pub fn bring_back(&mut self, pass: &Pass<'_>, h: &Hparams, memories: &[&Memory]) -> Result<()> {
        for at in std::mem::take(&mut self.missing) {
            if at.memory < memories.len() && !self.ready(pass, h, memories, at)? {
                self.chosen.retain(|c| c.0 != at);
            }
        }
        Ok(())
    }

    /// Whether the passes that follow note their queries.
    pub fn set_noting(&mut self, noting: bool) {
        self.noting = noting;
    }

    /// Readies layer `slot` for a batch; `base` is the position of the first local token. Where it is the layer's turn, lays out the choice
    /// on its way beside what is read.
    pub fn prepare(&mut self, h: &Hparams, slot: usize, rotary: &Rotary, base: i64) -> Result<()> {
        let layer = &mut self.layers[slot];
        if layer.placed != (self.choice, base) {
            let chosen: Vec<BlockAddress> = self.chosen.iter().map(|c| c.0).collect();
            self.blocks.place(h, slot, &self.sinks, &chosen, (rotary, base, &mut self.turning), &mut layer.copy)?;
            layer.placed = (self.choice, base);
        }
        if let Some(next) = self.next.as_ref().filter(|_| (slot / LAYERS_AT_ONCE) + 1 == self.steps)
            && layer.next_placed != (self.choice + 1, base)
        {
            let chosen: Vec<BlockAddress> = next.iter().map(|c| c.0).collect();
            self.blocks.place(h, slot, &self.sinks, &chosen, (rotary, base, &mut self.turning), &mut layer.next)?;
            layer.next_placed = (self.choice + 1, base);
        }
        Ok(())
    }

    /// From now on the choice that was on its way is read: what its layers have of it takes the place of the old copies.
    fn arrive(&mut self, next: Vec<(BlockAddress, f32)>) {
        (self.chosen, self.choice) = (next, self.choice + 1);
        for layer in &mut self.layers {
            let (placed, copy) = (layer.next_placed, std::mem::take(&mut layer.next));
            if placed.0 == self.choice {
                (layer.placed, layer.copy) = (placed, copy);
            }
        }
        self.steps = 0;
        self.stats.choices += 1;
    }

    /// What KV head `head` reads, if anything.
    pub fn segment(&self, h: &Hparams, slot: usize, head: usize) -> Option<KvSegment<'_>> {
        let copy = &self.layers[slot].copy;
        (copy.tokens > 0).then(|| KvSegment {
            entries: Entries::Rows {
                codec: CODEC,
                keys: &copy.keys[head * h.key_length * CODEC.bytes()..],
                values: &copy.values[head * h.value_length * CODEC.bytes()..],
                key_stride: h.head_count_kv * h.key_length,
                value_stride: h.head_count_kv * h.value_length,
            },
            len: copy.tokens,
            query: QueryKind::Local,
            visibility: Visibility::All,
        })
    }

    /// Asks the system for what [`Recall::choose`] will go through, so that the disk works while the queries are computed.
    pub fn look_ahead(&self, memories: &[&Memory]) {
        if let Some(slot) = self.options.searching.last().filter(|_| is_searched(memories)) {
            memories.iter().for_each(|m| m.prefetch_search(*slot));
        }
    }

    /// Chooses the blocks to bring back, and reads them: by the votes of the noted queries, among candidates that sketches propose.
    pub fn choose(&mut self, pass: &Pass<'_>, h: &Hparams, memories: &[&Memory]) -> Result<()> {
        let counts: Vec<usize> = memories.iter().map(|m| m.blocks()).collect();
        // The first block of a text draws attention whatever is asked (it is the sink): it has no vote to win.
        let all = counts.iter().enumerate().flat_map(|(memory, n)| (1..*n).map(move |block| BlockAddress { memory, block }));
        let (mut candidates, mut proposed) = (Vec::new(), Vec::new());
        let slots = self.options.searching.len();
        match (self.queries.last(), self.options.searching.last()) {
            (Some(queries), Some(slot)) if is_searched(memories) => {
                let voters = propose::voters(h, memories, self.options.budget_bytes / 2);
                let last = queries.len().saturating_sub(voters * h.head_count * h.key_length);
                let found = propose::by_sketches(pass, h, *slot, &queries[last..], memories, &mut self.stats.bytes_read)?;
                let votes: Vec<f32> = found.sketched.iter().map(|(_, vote)| *vote).collect();
                proposed.extend(best(&votes, PROPOSED).into_iter().map(|i| found.sketched[i].0));
                candidates = found.others;
            }
            _ => candidates.extend(all.filter(|at| memories[at.memory].is_readable(at.block))),
        }
        candidates.extend(proposed);
        candidates.sort_unstable();
        if is_searched(memories) && slots > 1 {
            // One layer finds nearly what all of them find: it says where the others look.
            let votes = self.votes(pass, h, memories, &candidates, slots - 1..slots)?;
            candidates = best(&votes, FINALISTS).into_iter().map(|i| candidates[i]).collect();
        }
        let votes = self.votes(pass, h, memories, &candidates, 0..slots)?;
        self.finalists = best(&votes, FINALISTS).into_iter().map(|i| candidates[i]).collect();
        let mut chosen = with_what_follows(&counts, &candidates, &votes, self.affordable_blocks(h));
        self.stats.unread_share = unread(&chosen);
        // It comes back all the same, as the sink that the chosen blocks were computed with, unless this text has its own.
        if self.options.blocks_max > 0 && self.sinks.tokens == 0 && counts.first().is_some_and(|n| *n > 0) {
            chosen.insert(0, (BlockAddress { memory: 0, block: 0 }, 0.0));
        }
        self.forget_choice_but_finalists();
        self.ask_for(memories, &chosen);
        let wanted = std::mem::take(&mut chosen);
        for (at, share) in wanted {
            if self.ready(pass, h, memories, at)? {
                chosen.push((at, share));
            }
        }
        self.chosen = chosen;
        self.make_room();
        Ok(())
    }

    fn forget_choice_but_finalists(&mut self) {
        let finalists = std::mem::take(&mut self.finalists);
        self.forget_choice();
        self.finalists = finalists;
        self.stats.choices += 1;
    }

    /// Before a token of an answer is computed: reads on for a choice that is on its way, at most one block, then has it laid out in a few
    /// layers; or chooses again when it is time to. So no token waits for all of it, and when it is read depends on nothing but how
    /// many of its blocks were here.
    pub fn follow(&mut self, pass: &Pass<'_>, h: &Hparams, memories: &[&Memory]) -> Result<()> {
        if let Some(mut next) = self.next.take() {
            let all = next.len();
            next.retain(|(at, _)| len_of(memories, *at) > 0);
            let missing = next.iter().find(|(at, _)| !self.blocks.use_for(*at, self.choice, len_of(memories, *at))).map(|c| c.0);
            if missing.is_some() || next.len() < all {
                self.start_over();
            }
            match missing {
                Some(at) if self.ready(pass, h, memories, at)? => self.next = Some(next),
                Some(at) => self.next = Some(next.into_iter().filter(|c| c.0 != at).collect()),
                None if self.steps < self.layers.len().div_ceil(LAYERS_AT_ONCE) => (self.next, self.steps) = (Some(next), self.steps + 1),
                None => self.arrive(next),
            }
            self.make_room();
            return Ok(());
        }
        self.since += 1;
        if self.options.reselect_tokens == 0 || self.since < self.options.reselect_tokens || self.finalists.is_empty() {
            return Ok(());
        }
        self.since = 0;
        let row = h.head_count * h.key_length;
        for queries in &mut self.queries {
            let surplus = queries.len().saturating_sub(VOTING_TOKENS_RUNNING * row);
            queries.drain(..surplus);
        }
        let mut candidates = self.finalists.clone();
        candidates.extend(self.chosen.iter().map(|c| c.0).filter(|at| at.block > 0));
        candidates.sort_unstable();
        candidates.dedup();
        candidates.retain(|at| len_of(memories, *at) > 0 && memories[at.memory].is_readable(at.block));
        let mut votes = self.votes(pass, h, memories, &candidates, 0..self.options.searching.len())?;
        for (at, vote) in candidates.iter().zip(&mut votes) {
            if self.chosen.iter().any(|c| c.0 == *at) {
                *vote *= HYSTERESIS;
            }
        }
        let counts: Vec<usize> = memories.iter().map(|m| m.blocks()).collect();
        let mut next = with_what_follows(&counts, &candidates, &votes, self.affordable_blocks(h));
        self.stats.unread_share = unread(&next);
        if let Some(first) = self.chosen.first().filter(|c| c.0 == BlockAddress { memory: 0, block: 0 }) {
            next.insert(0, *first);
        }
        // The same in another order is no reason to lay it out again.
        let as_set = |blocks: &[(BlockAddress, f32)]| blocks.iter().map(|c| c.0).collect::<BTreeSet<_>>();
        if as_set(&next) != as_set(&self.chosen) {
            self.ask_for(memories, &next);
            self.next = Some(next);
        }
        Ok(())
    }

    /// The votes of some of the searching layers by the candidates' best keys.
    fn votes(
        &mut self,
        pass: &Pass<'_>,
        h: &Hparams,
        memories: &[&Memory],
        candidates: &[BlockAddress],
        searching: Range<usize>,
    ) -> Result<Vec<f32>> {
        let mut read = Read::default();
        let queries: Vec<&[f32]> = self.queries[searching.clone()].iter().map(Vec::as_slice).collect();
        let votes = best_key_votes(pass, h, &self.options.searching[searching], &queries, memories, candidates, &mut read);
        self.stats.bytes_read += read.bytes;
        self.stats.blocks_damaged += read.damaged;
        votes
    }

    /// Asks for all layers of blocks ahead of their reading.
    fn ask_for(&self, memories: &[&Memory], blocks: &[(BlockAddress, f32)]) {
        for (at, _) in blocks {
            (0..self.layers.len()).for_each(|slot| memories[at.memory].prefetch(slot, at.block));
        }
    }

    /// Brings a block into RAM, unless it is there; false if it is damaged.
    fn ready(&mut self, pass: &Pass<'_>, h: &Hparams, memories: &[&Memory], at: BlockAddress) -> Result<bool> {
        if !memories[at.memory].is_readable(at.block) {
            return Ok(false);
        }
        if self.blocks.use_for(at, self.choice, len_of(memories, at)) {
            self.stats.block_hits += 1;
            return Ok(true);
        }
        let memory = memories[at.memory];
        match memory.or_drop(at.block, self.blocks.load(pass, h, memories, at, self.choice))? {
            Some(bytes) => {
                self.stats.bytes_read += bytes;
                self.stats.blocks_read += 1;
                Ok(true)
            }
            None => {
                self.stats.blocks_damaged += 1;
                Ok(false)
            }
        }
    }

    /// Drops blocks that are not chosen until the budget holds.
    fn make_room(&mut self) {
        let others = self.copies();
        let (chosen, next) = (&self.chosen, self.next.as_deref().unwrap_or_default());
        let wanted = |at| chosen.iter().chain(next).any(|c| c.0 == at);
        self.blocks.shrink(self.options.budget_bytes.saturating_sub(others), wanted);
    }

    /// How many blocks half of the budget holds, with their copies; the other half is what a choice works with.
    fn affordable_blocks(&self, h: &Hparams) -> usize {
        let row = h.head_count_kv * (h.key_length + h.value_length);
        let of_block = self.layers.len() * super::MEMORY_BLOCK_TOKENS as usize * row * CODEC.bytes();
        (self.options.budget_bytes / 2 / (4 * of_block).max(1)).clamp(1.min(self.options.blocks_max), self.options.blocks_max)
    }
}

/// True if there are more blocks than those whose every key is looked at.
fn is_searched(memories: &[&Memory]) -> bool {
    memories.iter().map(|m| m.blocks()).sum::<usize>() > CANDIDATES
}

fn len_of(memories: &[&Memory], at: BlockAddress) -> usize {
    memories.get(at.memory).and_then(|m| m.block(at.block).ok()).map_or(0, |b| b.len)
}
