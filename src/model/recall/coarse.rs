//! Candidates by mean keys: for the layers that search, every block's mean key in 8 bits, scanned as the rows of a matrix.
//!
//! 31,250 blocks of a million tokens are 2 MB for each layer and head of 64 elements, so an exact scan takes milliseconds and needs no
//! graph. The file keeps them as they are scanned: they are read into one buffer, a layer and head at a time, and nothing of them
//! is kept between choices but by the system, once for all processes.
//!
//! Invariant: the last block of a memory, which may grow, has no vote here.

use super::vote::square_shares;
use crate::bytes::{Map, MapSlice};
use crate::error::{Result, try_zeroed};
use crate::kernels::matmul::{Activations, Matrix, matmul};
use crate::memory::Memory;
use crate::model::hparams::Hparams;
use crate::threads::Pass;
use std::ops::Range;
use std::sync::Arc;

/// Blocks that one thread reads in one go.
const BLOCKS_AT_ONCE: usize = 1024;

/// Blocks of the memories that have mean keys to vote with, each memory's first.
struct Indexed {
    /// For each memory the numbers of its blocks, counted over all of them.
    ranges: Vec<Range<usize>>,
    total: usize,
}

impl Indexed {
    fn of(memories: &[&Memory]) -> Indexed {
        let mut total = 0;
        let ranges = memories.iter().map(|m| {
            let start = total;
            total += m.blocks().saturating_sub(1);
            start..total
        });
        Indexed { ranges: ranges.collect(), total }
    }
}

/// Bytes of a block's mean key of one layer and head.
fn row_bytes(memory: &Memory, h: &Hparams) -> usize {
    memory.mean_row_type().row_bytes(h.key_length).unwrap_or(0)
}

/// How many tokens' queries can vote with so many bytes to work with.
pub fn voters(h: &Hparams, memories: &[&Memory], bytes: usize) -> usize {
    let Some(memory) = memories.first() else { return 0 };
    let blocks = Indexed::of(memories).total.max(1);
    // The codes, the votes, and for each query its logits.
    (bytes / blocks).saturating_sub(row_bytes(memory, h) + 4) / (4 * h.group())
}

/// The votes of `queries` (of each layer slot in `slots`, `(tokens, heads, key_length)`) for every block of every memory, in order; 0
/// for blocks that are not complete. Adds the bytes of mean keys that were read to `bytes_read`.
pub fn votes(
    pass: &Pass<'_>,
    h: &Hparams,
    slots: &[usize],
    queries: &[&[f32]],
    memories: &[&Memory],
    bytes_read: &mut u64,
) -> Result<Vec<f32>> {
    let mut votes = try_zeroed("votes", memories.iter().map(|m| m.blocks()).sum())?;
    let (indexed, d, group) = (Indexed::of(memories), h.key_length, h.group());
    let (Some(memory), true) = (memories.first(), indexed.total > 0) else { return Ok(votes) };
    let (ty, row) = (memory.mean_row_type(), row_bytes(memory, h));
    let (mut activations, mut rows) = (Activations::new(), Vec::new());
    let mut logits: Vec<f32> = Vec::new();
    for (&slot, queries) in slots.iter().zip(queries) {
        for head in 0..h.head_count_kv {
            rows.clear();
            for token in queries.chunks_exact(h.head_count * d) {
                rows.extend(token[head * group * d..][..group * d].iter().map(|q| q * h.attention_scale));
            }
            let mut codes: Vec<u8> = try_zeroed("mean keys", indexed.total * row)?;
            read(pass, memories, &indexed, [slot, head], row, &mut codes)?;
            *bytes_read += codes.len() as u64;
            let len = codes.len();
            let means = Matrix::new(ty, indexed.total, d, MapSlice::new(Arc::new(Map::owned(codes)), 0..len))?;
            activations.load_for(pass, &rows, &[&means])?;
            // Every product is written anew; heads have as many queries as each other.
            logits.truncate(rows.len() / d * indexed.total);
            crate::error::try_grow(&mut logits, "votes", rows.len() / d * indexed.total)?;
            matmul(pass, &means, &activations, &mut logits);
            let of_indexed = square_shares(pass, &mut logits, indexed.total)?;
            let mut first = 0;
            for (range, memory) in indexed.ranges.iter().zip(memories) {
                votes[first..].iter_mut().zip(&of_indexed[range.clone()]).for_each(|(v, x)| *v += x);
                first += memory.blocks();
            }
        }
    }
    Ok(votes)
}

/// Reads the mean keys of a layer slot and head into `codes`.
fn read(pass: &Pass<'_>, memories: &[&Memory], indexed: &Indexed, [slot, head]: [usize; 2], row: usize, codes: &mut [u8]) -> Result<()> {
    let mut parts: Vec<(&mut [u8], Result<()>)> = codes.chunks_mut(BLOCKS_AT_ONCE * row).map(|part| (part, Ok(()))).collect();
    pass.for_each_chunk(&mut parts, 1, |i, part| {
        let (out, done) = &mut part[0];
        let blocks = i * BLOCKS_AT_ONCE..i * BLOCKS_AT_ONCE + out.len() / row;
        *done = indexed.ranges.iter().zip(memories).try_for_each(|(range, memory)| {
            let (from, to) = (blocks.start.clamp(range.start, range.end), blocks.end.clamp(range.start, range.end));
            if from >= to {
                return Ok(());
            }
            let out = &mut out[(from - blocks.start) * row..(to - blocks.start) * row];
            memory.mean_rows(slot, head, from - range.start..to - range.start, out).map(|_| ())
        });
    });
    parts.into_iter().try_for_each(|(_, done)| done)
}
