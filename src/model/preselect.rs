//! Which entries of a Focused Transformer's memory are worth a look: top-k attends to a hundred keys of a million, and to find them by
//! their scores it would have to read the million.
//!
//! Sketches (`kernels/sketch.rs`) estimate every score from a sixth of the bytes of f16 keys. Of the best by these estimates, several for
//! each that will count, the keys are read and scored, by attention itself, which then counts the best k of them. What has no sketch (a
//! session's own memory in RAM, files of before, damaged ones) is scored key by key as ever.
//!
//! Invariants: the candidates of a token depend on that token and the memories alone, not on the batch or the number of threads; a
//! memory so small that there is little to leave out is read whole.

use super::hparams::Hparams;
use crate::error::{Result, try_reserve, try_zeroed};
use crate::kernels::sketch::{SketchQuery, estimate};
use crate::kernels::tiles::TILE_TOKENS;
use crate::memory::{Memory, Sketches};
use crate::quant::dequantise;
use crate::threads::Pass;
use simsimd::SpatialSimilarity;
use std::ops::Range;

/// Keys that are read for each that will count (measured: `docs/fot.md`).
const CANDIDATES_PER_KEY: usize = 8;
/// With fewer sketched keys than so many times the candidates all are read.
const WORTH: usize = 4;
/// Blocks that one unit of a parallel loop scans at least.
const BLOCKS_AT_ONCE: usize = 1024;
/// Units for each thread, where there are blocks enough.
const UNITS_PER_THREAD: usize = 4;

/// An entry of an attached memory, ordered by memory, block and token: 16, 32 and 16 bits of one number, for there are many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryAddress(u64);

impl EntryAddress {
    fn new(memory: usize, block: usize, at: usize) -> EntryAddress {
        EntryAddress((memory as u64) << 48 | (block as u64) << 16 | at as u64)
    }

    /// Index among the attached memories.
    pub fn memory(self) -> usize {
        (self.0 >> 48) as usize
    }

    /// Block of that memory.
    pub fn block(self) -> usize {
        (self.0 >> 16) as u32 as usize
    }

    /// Token of the block.
    pub fn at(self) -> usize {
        self.0 as u16 as usize
    }
}

/// The sketches of all memories for one layer slot.
pub struct Sketched<'a> {
    /// For each KV head those of each memory.
    heads: Vec<Vec<(usize, Sketches<'a>)>>,
    /// Readable blocks that are in none of them, (memory, block), in order.
    unsketched: Vec<(usize, usize)>,
    memories: &'a [&'a Memory],
    k: usize,
}

impl<'a> Sketched<'a> {
    /// None if it is not worth the while: everything counts, or there are too few sketches.
    ///
    /// # Errors
    /// As [`Memory::sketches`].
    pub fn new(h: &Hparams, memories: &'a [&'a Memory], slot: usize, k: usize) -> Result<Option<Sketched<'a>>> {
        let few = k.saturating_mul(CANDIDATES_PER_KEY * WORTH) as u64;
        if k == 0 || memories.iter().filter(|m| !m.geometry().sketched.is_empty()).map(|m| m.committed_len()).sum::<u64>() <= few {
            return Ok(None);
        }
        let mut heads = Vec::new();
        for head in 0..h.head_count_kv {
            let mut of_head = Vec::new();
            for (i, memory) in memories.iter().enumerate() {
                of_head.extend(memory.sketches(slot, head)?.into_iter().map(|sketches| (i, sketches)));
            }
            heads.push(of_head);
        }
        // A segment has sketches of all heads or of none.
        let unsketched = blocks_without(memories, heads.first().map_or(&[], Vec::as_slice))?;
        Ok(Some(Sketched { heads, unsketched, memories, k }))
    }

    /// Blocks without sketches, (memory, block): all of their keys are scored.
    pub fn unsketched(&self) -> &[(usize, usize)] {
        &self.unsketched
    }

    /// Sketched entries that may count for one token's queries, `(heads, key_length)`: for each KV head in order, each once. Adds the bytes of sketches that were read to `bytes_read`.
    /// None if a query holds what is not a number.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory).
    pub fn candidates(
        &self,
        pass: &Pass<'_>,
        h: &Hparams,
        queries: &[f32],
        bytes_read: &mut u64,
    ) -> Result<Option<Vec<Vec<EntryAddress>>>> {
        let (group, d) = (h.group(), h.key_length);
        let mut loaded = Vec::new();
        try_reserve(&mut loaded, "queries", h.head_count)?;
        for query in queries.chunks_exact(d) {
            let mut as_loaded = SketchQuery::default();
            if !as_loaded.load(query)? {
                return Ok(None);
            }
            loaded.push(as_loaded);
        }
        let blocks: usize = self.heads.iter().flatten().map(|(_, sketches)| sketches.blocks.len()).sum();
        let step = BLOCKS_AT_ONCE.max(blocks / (UNITS_PER_THREAD * pass.threads()));
        let mut units = Vec::new();
        for (head, of_head) in self.heads.iter().enumerate() {
            let mut room = 0;
            for (memory, sketches) in of_head {
                let mut first = sketches.blocks.start;
                while first < sketches.blocks.end {
                    if room == 0 {
                        units.push(Unit { head, stretches: Vec::new(), found: Ok(Vec::new()), bytes: 0 });
                        room = step;
                    }
                    let blocks = first..sketches.blocks.end.min(first + room);
                    (first, room) = (blocks.end, room - blocks.len());
                    if let Some(unit) = units.last_mut() {
                        unit.stretches.push((*memory, sketches, blocks));
                    }
                }
            }
        }
        let wanted = self.k.saturating_mul(CANDIDATES_PER_KEY);
        pass.for_each_chunk(&mut units, 1, |_, unit| {
            let unit = &mut unit[0];
            let of_head = unit.head * group..(unit.head + 1) * group;
            unit.found = unit.scan(self.memories, &loaded[of_head.clone()], &queries[of_head.start * d..of_head.end * d], wanted);
        });
        let mut best: Vec<Best> = (0..h.head_count).map(|_| Best::default()).collect();
        for unit in units {
            *bytes_read += unit.bytes;
            for (best, found) in best[unit.head * group..].iter_mut().zip(unit.found?) {
                best.join(wanted, found)?;
            }
        }
        let of_heads = best.chunks_exact(group).map(|rows| {
            let mut entries = Vec::new();
            try_reserve(&mut entries, "candidates of a memory", rows.iter().map(|best| best.found.len()).sum())?;
            entries.extend(rows.iter().flat_map(|best| &best.found).map(|(_, at)| *at));
            entries.sort_unstable();
            entries.dedup();
            Ok(entries)
        });
        of_heads.collect::<Result<_>>().map(Some)
    }
}

/// Readable blocks that are in none of the sketches.
fn blocks_without(memories: &[&Memory], sketches: &[(usize, Sketches<'_>)]) -> Result<Vec<(usize, usize)>> {
    let mut out = Vec::new();
    for (i, memory) in memories.iter().enumerate() {
        let sketched = sketches.iter().filter(|(of, _)| *of == i).map(|(_, sketches)| sketches.blocks.clone());
        out.extend(memory.readable_outside(sketched)?.into_iter().map(|block| (i, block)));
    }
    Ok(out)
}

/// Consecutive blocks of the memories for one KV head.
struct Unit<'s, 'a> {
    head: usize,
    /// Memory, its sketches, and which of their blocks.
    stretches: Vec<(usize, &'s Sketches<'a>, Range<usize>)>,
    /// The best of each query.
    found: Result<Vec<Best>>,
    bytes: u64,
}

impl Unit<'_, '_> {
    /// The best `wanted` entries of each of `queries` (`rows` as they are).
    fn scan(&mut self, memories: &[&Memory], queries: &[SketchQuery], rows: &[f32], wanted: usize) -> Result<Vec<Best>> {
        let d = rows.len() / queries.len().max(1);
        let block_tokens = self.stretches.iter().map(|(memory, ..)| memories[*memory].geometry().block_tokens).max().unwrap_or(0);
        let width = block_tokens.next_multiple_of(TILE_TOKENS as u32) as usize;
        let mut mean: Vec<f32> = try_zeroed("a mean key", d)?;
        let mut bases: Vec<f32> = try_zeroed("estimates", queries.len())?;
        let mut estimates: Vec<f32> = try_zeroed("estimates", queries.len() * width)?;
        let mut best: Vec<Best> = queries.iter().map(|_| Best::default()).collect();
        for (memory, sketches, blocks) in &self.stretches {
            let ty = memories[*memory].mean_type();
            for block in blocks.clone().filter(|block| memories[*memory].is_readable(*block)) {
                let (len, row, tiles) = sketches.of(block);
                self.bytes += (row.len() + tiles.len()) as u64;
                dequantise(ty, row, &mut mean)?;
                for (base, query) in bases.iter_mut().zip(rows.chunks_exact(d)) {
                    *base = <f32 as SpatialSimilarity>::dot(query, &mean).unwrap_or(0.0) as f32;
                }
                estimate(queries, &bases, tiles, &mut estimates, width);
                for (best, estimates) in best.iter_mut().zip(estimates.chunks_exact(width)) {
                    best.offer(wanted, &estimates[..len], EntryAddress::new(*memory, block, 0))?;
                }
            }
        }
        best.iter_mut().for_each(|best| best.cut(wanted));
        Ok(best)
    }
}

/// The best of a row of estimates that come some at a time in the order of the entries; of equal ones the earlier.
#[derive(Default)]
struct Best {
    found: Vec<(f32, EntryAddress)>,
    /// The worst of them when they were last sorted out: what is no better has no chance.
    least: Option<f32>,
}

impl Best {
    /// Takes the estimates of entries from `first` on.
    fn offer(&mut self, wanted: usize, estimates: &[f32], first: EntryAddress) -> Result<()> {
        let least = self.least.unwrap_or(f32::NEG_INFINITY);
        for (i, estimates) in estimates.chunks(TILE_TOKENS).enumerate() {
            // Few of very many tiles have one.
            if self.least.is_some() && !estimates.iter().fold(false, |any, e| any | (*e > least)) {
                continue;
            }
            if self.found.capacity() - self.found.len() < estimates.len() {
                // As many as there can be before they are sorted out.
                try_reserve(&mut self.found, "candidates of a memory", wanted.saturating_mul(2).min(1 << 16) + estimates.len())?;
            }
            let better = estimates.iter().enumerate().filter(|(_, e)| self.least.is_none() || **e > least);
            self.found.extend(better.map(|(j, e)| (*e, EntryAddress(first.0 + (i * TILE_TOKENS + j) as u64))));
        }
        if self.found.len() >= wanted.saturating_mul(2) {
            self.cut(wanted);
        }
        Ok(())
    }

    /// Takes what another found in later entries.
    fn join(&mut self, wanted: usize, other: Best) -> Result<()> {
        try_reserve(&mut self.found, "candidates of a memory", other.found.len())?;
        self.found.extend(other.found);
        self.cut(wanted);
        Ok(())
    }

    fn cut(&mut self, wanted: usize) {
        if let Some(last) = wanted.checked_sub(1)
            && wanted < self.found.len()
        {
            let (_, worst, _) = self.found.select_nth_unstable_by(last, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            self.least = Some(worst.0);
            self.found.truncate(wanted);
        }
    }
}
