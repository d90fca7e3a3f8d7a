//! Candidates by mean keys: for the layers that search, every block's mean key in 8 bits, scanned as the rows of a matrix.
//!
//! 31,250 blocks of a million tokens are 2 MB for each layer and head of 64 elements, so an exact scan takes milliseconds and needs no
//! graph. The means come from the index of the memory file; they are not compared with its checksum, for all that they can do is
//! propose.
//!
//! Invariant: a part holds complete blocks only, and those never change; the last block of a memory, which may grow, is in none.

use super::vote::square_shares;
use crate::bytes::{Map, MapSlice};
use crate::error::{Result, try_grow, try_with_capacity, try_zeroed};
use crate::gguf::TensorType;
use crate::kernels::matmul::{Activations, Matrix, matmul};
use crate::memory::Memory;
use crate::model::hparams::Hparams;
use crate::quant::quantise;
use crate::threads::Pass;
use std::ops::Range;
use std::sync::Arc;

/// Blocks after which a part is closed.
const PART_BLOCKS: usize = 4096;

/// Mean keys of consecutive blocks: a matrix for each searching layer and head, `(layer, head)`.
struct Part {
    blocks: usize,
    means: Vec<Matrix>,
}

/// The mean keys of all attached memories.
#[derive(Default)]
pub struct Coarse {
    /// How many of the searching layers have their means here.
    layers: usize,
    memories: Vec<Vec<Part>>,
    activations: Activations,
    logits: Vec<f32>,
}

impl Coarse {
    /// Forgets all memories but the first `keep`.
    pub fn truncate(&mut self, keep: usize) {
        self.memories.truncate(keep);
    }

    /// Bytes of a block's mean key of one layer and head.
    pub fn row_bytes(key_length: usize) -> usize {
        row_type(key_length).row_bytes(key_length).unwrap_or(0)
    }

    /// Bytes of the mean keys, all of which a choice looks at.
    pub fn index_bytes(&self) -> usize {
        let matrices = self.memories.iter().flatten().flat_map(|p| &p.means);
        matrices.map(|m| m.rows() * Coarse::row_bytes(m.cols())).sum()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.index_bytes() + self.logits.capacity() * 4
    }

    /// Takes up the blocks that have been completed since; `slots` are the layers that search.
    pub fn update(&mut self, pass: &Pass<'_>, h: &Hparams, slots: &[usize], memories: &[&Memory], bytes_read: &mut u64) -> Result<()> {
        if self.layers != slots.len() {
            self.memories.clear();
            self.layers = slots.len();
        }
        self.memories.resize_with(memories.len(), Vec::new);
        for (parts, memory) in self.memories.iter_mut().zip(memories) {
            let complete = memory.blocks().saturating_sub(1);
            match parts.iter().map(|p| p.blocks).sum::<usize>() {
                n if n == complete => continue,
                n if n > complete => parts.clear(),
                _ => {}
            }
            // The last part is made anew with what has come, while it is small.
            parts.pop_if(|p| p.blocks < PART_BLOCKS);
            let mut first: usize = parts.iter().map(|p| p.blocks).sum();
            while first < complete {
                let blocks = (complete - first).min(PART_BLOCKS);
                parts.push(Part::read(pass, h, slots, memory, first..first + blocks, bytes_read)?);
                first += blocks;
            }
        }
        Ok(())
    }

    /// The votes of `queries` (of each searching layer, `(tokens, heads, key_length)`) for every block of every memory, in order; 0
    /// for blocks that are not complete.
    pub fn votes(&mut self, pass: &Pass<'_>, h: &Hparams, queries: &[&[f32]], memories: &[&Memory]) -> Result<Vec<f32>> {
        let total = memories.iter().map(|m| m.blocks()).sum();
        let mut votes = try_zeroed("votes", total)?;
        let (d, group) = (h.key_length, h.group());
        let mut rows = Vec::new();
        for (layer, queries) in queries.iter().enumerate() {
            for head in 0..h.head_count_kv {
                rows.clear();
                for token in queries.chunks_exact(h.head_count * d) {
                    rows.extend(token[head * group * d..][..group * d].iter().map(|q| q * h.attention_scale));
                }
                let count = rows.len() / d;
                let matrices = || self.memories.iter().flatten().map(|p| &p.means[layer * h.head_count_kv + head]);
                let Some(any) = matrices().next() else { continue };
                self.activations.load_for(pass, &rows, &[any])?;
                let indexed: usize = matrices().map(|m| m.rows()).sum();
                try_grow(&mut self.logits, "votes", 2 * count * indexed)?;
                let (product, logits) = self.logits.split_at_mut(count * indexed);
                let logits = &mut logits[..count * indexed];
                let mut at = 0;
                for m in matrices() {
                    let product = &mut product[..count * m.rows()];
                    matmul(pass, m, &self.activations, product);
                    for (row, found) in product.chunks_exact(m.rows()).enumerate() {
                        logits[row * indexed + at..][..m.rows()].copy_from_slice(found);
                    }
                    at += m.rows();
                }
                let of_indexed = square_shares(pass, logits, indexed)?;
                // Every memory has one block more than it has indexed.
                let (mut from, mut to) = (0, 0);
                for (parts, memory) in self.memories.iter().zip(memories) {
                    let n: usize = parts.iter().map(|p| p.blocks).sum();
                    votes[to..to + n].iter_mut().zip(&of_indexed[from..from + n]).for_each(|(v, x)| *v += x);
                    from += n;
                    to += memory.blocks();
                }
            }
        }
        Ok(votes)
    }
}

/// 8 bits with a scale for 32 elements where the length allows it.
fn row_type(key_length: usize) -> TensorType {
    if key_length.is_multiple_of(32) { TensorType::Q8_0 } else { TensorType::F16 }
}

impl Part {
    fn read(pass: &Pass<'_>, h: &Hparams, slots: &[usize], memory: &Memory, blocks: Range<usize>, bytes_read: &mut u64) -> Result<Part> {
        let (d, heads) = (h.key_length, h.head_count_kv);
        let mut layers: Vec<Result<Vec<Vec<u8>>>> = slots.iter().map(|_| Ok(Vec::new())).collect();
        pass.for_each_chunk(&mut layers, 1, |i, layer| layer[0] = quantised(h, slots[i], memory, blocks.clone()));
        let mut means = Vec::with_capacity(slots.len() * heads);
        for layer in layers {
            for bytes in layer? {
                let len = bytes.len();
                means.push(Matrix::new(row_type(d), blocks.len(), d, MapSlice::new(Arc::new(Map::owned(bytes)), 0..len))?);
            }
        }
        *bytes_read += 4 * (slots.len() * heads * blocks.len() * d) as u64;
        Ok(Part { blocks: blocks.len(), means })
    }
}

/// One layer's mean keys of some blocks, in rows of [`row_type`] for each head.
fn quantised(h: &Hparams, slot: usize, memory: &Memory, blocks: Range<usize>) -> Result<Vec<Vec<u8>>> {
    let (d, heads) = (h.key_length, h.head_count_kv);
    let of_head = |_| try_with_capacity("mean keys", blocks.len() * Coarse::row_bytes(d));
    let mut rows = (0..heads).map(of_head).collect::<Result<Vec<Vec<u8>>>>()?;
    let mut failed = Ok(());
    memory.scan_mean_keys(slot, blocks, &mut |of_blocks| {
        // Unchecked bytes may be anything.
        of_blocks.iter_mut().filter(|x| x.is_nan() || x.abs() > 1e4).for_each(|x| *x = 0.0);
        for (i, mean) in of_blocks.chunks_exact(d).enumerate() {
            if let Err(e) = quantise(row_type(d), mean, &mut rows[i % heads]) {
                failed = Err(e);
            }
        }
    })?;
    failed.map(|()| rows)
}
