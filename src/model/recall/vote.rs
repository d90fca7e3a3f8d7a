//! Votes: the square of the share of attention that a block would get, so that the few heads that know what they look for outweigh
//! the many that do not (measured: `docs/memory.md`). And the second stage's scores: the best key within each candidate.

use super::BlockAddress;
use crate::error::{Error, Result, try_with_capacity, try_zeroed};
use crate::kernels::vector;
use crate::memory::{ExtentRoom, Memory, Side};
use crate::model::hparams::Hparams;
use crate::threads::Pass;
use simsimd::SpatialSimilarity;

/// Candidates whose keys one chunk of a loop scores.
const CANDIDATES_AT_ONCE: usize = 8;

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
    let (d, group) = (h.key_length, h.group());
    let rows = queries.len() / d;
    let mut found = Found::default();
    match try_with_capacity("votes", rows * blocks.len()) {
        Ok(logits) => found.logits = logits,
        Err(e) => return Found { error: Some(e), ..found },
    }
    found.logits.resize(rows * blocks.len(), f32::NEG_INFINITY);
    let (mut keys, mut room) = (Vec::new(), ExtentRoom::default());
    for (b, at) in blocks.iter().enumerate() {
        let memory = memories[at.memory];
        let extent = match memory.or_drop(at.block, memory.extent(slot, at.block, &mut room)) {
            Ok(Some(extent)) => extent,
            Ok(None) => {
                found.damaged += 1;
                continue;
            }
            Err(e) => return Found { error: Some(e), ..found },
        };
        for head in 0..h.head_count_kv {
            let view = extent.rows(Side::Keys, head);
            // The values with them: all of an extent is compared with its checksum.
            found.bytes += (view.bytes.len() * (d + h.value_length) / d) as u64;
            keys.clear();
            keys.resize(view.len * d, 0.0);
            view.decode(&mut keys);
            for token in 0..rows / h.head_count {
                for row in token * h.head_count + head * group..token * h.head_count + (head + 1) * group {
                    let q = &queries[row * d..][..d];
                    let best = keys.chunks_exact(d).map(|k| dot(q, k)).fold(f32::NEG_INFINITY, f32::max);
                    found.logits[row * blocks.len() + b] = best * h.attention_scale;
                }
            }
        }
    }
    found
}

/// The inner product, by the widest instructions that the scoring library finds on this machine.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    <f32 as SpatialSimilarity>::dot(a, b).unwrap_or(0.0) as f32
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
