//! Votes: the square of the share of attention that a block would get, so that the few heads that know what they look for outweigh
//! the many that do not (measured: `docs/memory.md`). And the second stage's scores: the best key within each candidate.

use super::BlockAddress;
use crate::error::{Error, Result, try_grow, try_with_capacity, try_zeroed};
use crate::kernels::attention::{KvSegment, Queries, QueryKind, Visibility, best_scores};
use crate::kernels::vector;
use crate::memory::{ExtentRoom, Memory, Side};
use crate::model::hparams::Hparams;
use crate::threads::Pass;

/// Candidates whose keys one chunk of a loop scores: the queries are made ready once for all of them.
const CANDIDATES_AT_ONCE: usize = 16;

/// Sums over the rows of `logits`, `(rows, blocks)`, of the squares of each block's share; the logits are spent.
pub fn square_shares(pass: &Pass<'_>, logits: &mut [f32], blocks: usize) -> Result<Vec<f32>> {
    let blocks = blocks.max(1);
    pass.for_each_chunk(logits, blocks, |_, row| vector::square_shares(row));
    let mut votes = try_zeroed("votes", blocks)?;
    for row in logits.chunks_exact(blocks) {
        votes.iter_mut().zip(row).for_each(|(v, x)| *v += x);
    }
    Ok(votes)
}

/// The votes of `queries` (of each searching layer in `slots`) for `candidates` by their best keys. A candidate whose keys are
/// damaged gets none; how many those are is added to `damaged`.
pub fn best_key_votes(
    pass: &Pass<'_>,
    h: &Hparams,
    slots: &[usize],
    queries: &[&[f32]],
    memories: &[&Memory],
    candidates: &[BlockAddress],
    read: &mut Read,
) -> Result<Vec<f32>> {
    let n = candidates.len();
    // All of them are asked for before the first is touched.
    for at in candidates {
        slots.iter().for_each(|slot| memories[at.memory].prefetch(*slot, at.block));
    }
    let mut votes = try_zeroed("votes", n)?;
    for (&slot, queries) in slots.iter().zip(queries) {
        let rows = queries.len() / h.key_length;
        let mut by_chunk: Vec<Found> = candidates.chunks(CANDIDATES_AT_ONCE).map(|_| Found::default()).collect();
        pass.for_each_chunk(&mut by_chunk, 1, |i, found| {
            let mine = &candidates[i * CANDIDATES_AT_ONCE..][..CANDIDATES_AT_ONCE.min(n - i * CANDIDATES_AT_ONCE)];
            found[0] = best_keys(h, slot, memories, mine, queries);
        });
        let mut logits = try_with_capacity("votes", rows * n)?;
        logits.resize(rows * n, f32::NEG_INFINITY);
        for (i, found) in by_chunk.into_iter().enumerate() {
            read.bytes += found.bytes;
            read.damaged += found.damaged;
            let width = found.logits.len() / rows.max(1);
            for (row, part) in found.logits.chunks_exact(width.max(1)).enumerate() {
                logits[row * n + i * CANDIDATES_AT_ONCE..][..width].copy_from_slice(part);
            }
            if let Some(e) = found.error {
                return Err(e);
            }
        }
        if logits.iter().all(|x| *x == f32::NEG_INFINITY) {
            continue;
        }
        votes.iter_mut().zip(square_shares(pass, &mut logits, n)?).for_each(|(v, x)| *v += x);
    }
    Ok(votes)
}

/// What the second stage has read.
#[derive(Default)]
pub struct Read {
    pub bytes: u64,
    pub damaged: u64,
}

#[derive(Default)]
struct Found {
    /// `(token and head, candidate)`
    logits: Vec<f32>,
    bytes: u64,
    damaged: u64,
    error: Option<Error>,
}

/// Scores of the best key of each of `blocks` in one layer.
fn best_keys(h: &Hparams, slot: usize, memories: &[&Memory], blocks: &[BlockAddress], queries: &[f32]) -> Found {
    let mut found = Found::default();
    if let Err(e) = found.score(h, slot, memories, blocks, queries) {
        found.error = Some(e);
    }
    found
}

impl Found {
    fn score(&mut self, h: &Hparams, slot: usize, memories: &[&Memory], blocks: &[BlockAddress], queries: &[f32]) -> Result<()> {
        let rows = queries.len() / h.key_length;
        try_grow(&mut self.logits, "votes", rows * blocks.len())?;
        self.logits.fill(f32::NEG_INFINITY);
        let mut rooms: Vec<ExtentRoom> = blocks.iter().map(|_| ExtentRoom::default()).collect();
        let mut extents = try_with_capacity("votes", blocks.len())?;
        for (b, (at, room)) in blocks.iter().zip(&mut rooms).enumerate() {
            let memory = memories[at.memory];
            match memory.or_drop(at.block, memory.extent(slot, at.block, room))? {
                Some(extent) => extents.push((b, extent)),
                None => self.damaged += 1,
            }
        }
        let mut segments = try_with_capacity("votes", extents.len() * h.head_count_kv)?;
        for head in 0..h.head_count_kv {
            for (_, extent) in &extents {
                let (keys, values) = (extent.rows(Side::Keys, head), extent.rows(Side::Values, head));
                // The values with them: all of an extent is compared with its checksum.
                self.bytes += (keys.bytes.len() + values.bytes.len()) as u64;
                let (query, visibility) = (QueryKind::Local, Visibility::All);
                segments.push(KvSegment { entries: keys.entries(&values), len: keys.len, query, visibility });
            }
        }
        let shape = h.attention_shape(rows / h.head_count, 0);
        let mut best: Vec<f32> = try_zeroed("votes", rows * extents.len())?;
        best_scores(&shape, Queries { local: queries, memory: &[] }, &segments, &mut best)?;
        for (logits, best) in self.logits.chunks_exact_mut(blocks.len()).zip(best.chunks_exact(extents.len().max(1))) {
            extents.iter().zip(best).for_each(|((b, _), best)| logits[*b] = *best);
        }
        Ok(())
    }
}

/// Indices of the `n` highest votes, in ascending order; the lower index wins a tie.
pub fn best(votes: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..votes.len()).collect();
    if n < order.len() {
        order.select_nth_unstable_by(n, |a, b| votes[*b].total_cmp(&votes[*a]).then(a.cmp(b)));
        order.truncate(n);
        order.sort_unstable();
    }
    order
}
