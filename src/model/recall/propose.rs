//! Candidates by sketches: in the layer that looks first, every key of the memories is estimated, two bits an element, and a block has the
//! votes of its best one.
//!
//! The best key finds a fact that the mean of its block has drowned (measured: `docs/memory.md`), and the sketches of a million keys are
//! read in order, while their keys would be a third of a gigabyte of that layer. They are read a commit and a head at a time, and nothing of
//! them is kept between choices but by the system, once for all processes.
//!
//! Invariant: a block has votes by its sketches, or is among those whose keys are to be read, or is not to be read.

use super::BlockAddress;
use super::vote::square_shares;
use crate::bytes::{Map, MapSlice};
use crate::error::{Error, Result, try_grow, try_reserve, try_with_capacity};
use crate::kernels::matmul::{Activations, Matrix, matmul};
use crate::kernels::sketch::{SketchQuery, best_of_blocks};
use crate::memory::{Memory, SketchRoom};
use crate::model::hparams::Hparams;
use crate::threads::{Pass, alone};
use std::ops::Range;
use std::sync::Arc;

/// Commits that a thread reads one after the other into the same room.
const STRETCHES_AT_ONCE: usize = 4;

/// What sketches say.
#[derive(Default)]
pub struct Proposed {
    /// Blocks with sketches, and the votes for each.
    pub sketched: Vec<(BlockAddress, f32)>,
    /// The other blocks.
    pub others: Vec<BlockAddress>,
}

/// Consecutive blocks of one memory with sketches.
struct Stretch {
    memory: usize,
    blocks: Range<usize>,
    /// Scores of the best keys of a head, `(query, block)`.
    best: Vec<f32>,
    bytes: u64,
    damaged: bool,
    error: Option<Error>,
}

/// How many tokens' queries can vote with so many bytes to work with; one at least.
pub fn voters(h: &Hparams, memories: &[&Memory], bytes: usize) -> usize {
    let blocks: usize = memories.iter().map(|m| m.blocks()).sum();
    // For each query of a head its scores, as they are found and as they vote; and the votes.
    ((bytes / blocks.max(1)).saturating_sub(8) / (8 * h.group())).max(1)
}

/// The votes of `queries`, `(tokens, heads, key_length)`, of the layer slot `slot`, for all blocks that are to be read. Adds the bytes of
/// sketches that were read to `bytes_read`.
///
/// # Errors
/// [`Error::OutOfMemory`]; [`Error::Corrupt`] if a file was cut short, [`Error::Io`].
pub fn by_sketches(
    pass: &Pass<'_>,
    h: &Hparams,
    slot: usize,
    queries: &[f32],
    memories: &[&Memory],
    bytes_read: &mut u64,
) -> Result<Proposed> {
    let (d, group) = (h.key_length, h.group());
    let mut stretches = Vec::new();
    for (memory, m) in memories.iter().enumerate() {
        for blocks in m.sketched_blocks(slot) {
            try_reserve(&mut stretches, "votes", 1)?;
            stretches.push(Stretch { memory, blocks, best: Vec::new(), bytes: 0, damaged: false, error: None });
        }
    }
    let total: usize = stretches.iter().map(|s| s.blocks.len()).sum();
    let readable = |at: &BlockAddress| at.block > 0 && memories[at.memory].is_readable(at.block);
    let mut sketched: Vec<(BlockAddress, f32)> = Vec::new();
    try_reserve(&mut sketched, "votes", total)?;
    for Stretch { memory, blocks, .. } in &stretches {
        sketched.extend(blocks.clone().map(|block| (BlockAddress { memory: *memory, block }, 0.0)));
    }
    let hidden: Vec<usize> = (0..total).filter(|i| !readable(&sketched[*i].0)).collect();
    let (mut logits, mut activations): (Vec<f32>, Activations) = Default::default();
    for head in 0..if total > 0 { h.head_count_kv } else { 0 } {
        let mut rows = Vec::new();
        let mut loaded = Vec::new();
        for query in queries.chunks_exact(h.head_count * d).flat_map(|token| token[head * group * d..][..group * d].chunks_exact(d)) {
            let mut as_loaded = SketchQuery::default();
            let query = query.iter().map(|q| q * h.attention_scale);
            let at = rows.len();
            rows.extend(query);
            // What is no number has no vote.
            match as_loaded.load_coarse(&rows[at..])? {
                true => loaded.push(as_loaded),
                false => rows.truncate(at),
            }
        }
        activations.load(pass, &rows, d)?;
        let queries = HeadQueries { loaded: &loaded, activations: &activations };
        pass.for_each_chunk(&mut stretches, STRETCHES_AT_ONCE, |_, stretches| {
            let mut room = Room::default();
            for stretch in stretches {
                stretch.error = stretch.score(memories[stretch.memory], (slot, head), &queries, &mut room).err();
            }
        });
        for stretch in &mut stretches {
            if let Some(e) = stretch.error.take() {
                return Err(e);
            }
            *bytes_read += std::mem::take(&mut stretch.bytes);
        }
        if loaded.is_empty() {
            continue;
        }
        logits.truncate(loaded.len() * total);
        try_grow(&mut logits, "votes", loaded.len() * total)?;
        pass.for_each_chunk(&mut logits, total, |query, row| {
            let mut first = 0;
            for Stretch { blocks, best, .. } in &stretches {
                row[first..first + blocks.len()].copy_from_slice(&best[query * blocks.len()..][..blocks.len()]);
                first += blocks.len();
            }
            hidden.iter().for_each(|i| row[*i] = f32::NEG_INFINITY);
        });
        sketched.iter_mut().zip(square_shares(pass, &mut logits, total)?).for_each(|(of_block, vote)| of_block.1 += vote);
    }
    let of_damaged = |at: &BlockAddress| stretches.iter().any(|s| s.damaged && s.memory == at.memory && s.blocks.contains(&at.block));
    if stretches.iter().any(|s| s.damaged) {
        sketched.retain(|(at, _)| !of_damaged(at));
    }
    sketched.retain(|(at, _)| readable(at));
    let mut others = Vec::new();
    for (memory, m) in memories.iter().enumerate() {
        let sketches = stretches.iter().filter(|s| s.memory == memory && !s.damaged).map(|s| s.blocks.clone());
        others.extend(m.readable_outside(sketches)?.into_iter().map(|block| BlockAddress { memory, block }).filter(|at| at.block > 0));
    }
    Ok(Proposed { sketched, others })
}

/// What a stretch of a head is read into, and the scores of its mean keys.
#[derive(Default)]
struct Room {
    sketches: SketchRoom,
    means: Vec<f32>,
}

/// What one head asks with.
struct HeadQueries<'a> {
    loaded: &'a [SketchQuery],
    /// The same for the products with mean keys.
    activations: &'a Activations,
}

impl Stretch {
    /// The scores of the best keys of a head, or what their sketches say of them. Negative infinity where they are damaged.
    fn score(&mut self, memory: &Memory, (slot, head): (usize, usize), queries: &HeadQueries<'_>, room: &mut Room) -> Result<()> {
        let (n, blocks, geometry) = (queries.loaded.len(), self.blocks.len(), memory.geometry());
        for scores in [&mut room.means, &mut self.best] {
            scores.truncate(n * blocks);
            try_grow(scores, "votes", n * blocks)?;
        }
        let sketches = if self.damaged { None } else { memory.read_sketches(slot, head, self.blocks.start, &mut room.sketches)? };
        let Some(sketches) = sketches else {
            self.damaged = true;
            self.best.fill(f32::NEG_INFINITY);
            return Ok(());
        };
        best_of_blocks(queries.loaded, sketches.tiles, geometry.block_tokens as usize, sketches.keys, &mut self.best, blocks);
        let mut means = try_with_capacity("mean keys", sketches.means.len())?;
        means.extend_from_slice(sketches.means);
        self.bytes += (means.len() + sketches.tiles.len()) as u64;
        let all = 0..means.len();
        let means = Matrix::new(memory.mean_type(), blocks, geometry.key_length as usize, MapSlice::new(Arc::new(Map::owned(means)), all))?;
        alone(|pass| matmul(pass, &means, queries.activations, &mut room.means));
        self.best.iter_mut().zip(&room.means).for_each(|(best, mean)| *best += mean);
        Ok(())
    }
}
