//! What a memory is read through: ids and sources, rows of keys and values, summaries, and which blocks are fit to be read.
//!
//! Invariants: nothing here changes what is stored; a committed block is compared with its checksum when it is first touched, and one that
//! fails is dropped by itself, not the memory. What a search reads is in `scan.rs`.

use super::Memory;
use super::format::{FILE, Section, parse_spans};
use super::geometry::Side;
use super::index::LayerIndex;
use super::page::Block;
use super::records::TokenRanges;
use super::segment::{Segment, not_truncated};
use super::store::Store;
use super::view::{BlockSpan, BlockView, SourceSpan};
use crate::error::{Error, Result, try_reserve};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

/// Tokens whose sources are damaged, and how.
pub(super) type Gaps = Vec<(Range<u64>, Error)>;

impl Memory {
    /// The ids of a range of tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] for a range that is not there; [`Error::Corrupt`] if any of them are damaged.
    pub fn tokens(&self, range: Range<u64>) -> Result<Vec<u32>> {
        self.read_tokens(range, None)
    }

    /// As [`Memory::tokens`], but with zeros in the place of ids that are damaged, and with the ranges in which they are. The damage is
    /// counted ([`Stats::damaged_sections`](super::Stats::damaged_sections)), and the log has it once.
    pub fn tokens_and_gaps(&self, range: Range<u64>) -> Result<(Vec<u32>, Vec<Range<u64>>)> {
        let mut gaps = Vec::new();
        let ids = self.read_tokens(range, Some(&mut gaps))?;
        Ok((ids, gaps))
    }

    fn read_tokens(&self, range: Range<u64>, mut gaps: Option<&mut Vec<Range<u64>>>) -> Result<Vec<u32>> {
        if range.start > range.end || range.end > self.len() {
            return Err(Error::argument("range", format!("a range within {} tokens", self.len()), format!("{range:?}")));
        }
        let mut out = Vec::new();
        try_reserve(&mut out, "token ids", (range.end - range.start) as usize)?;
        // The part of the range that lies in `len` tokens from `first` on, counted from `first`.
        let part = |first: u64, len: u64| {
            range.start.clamp(first, first + len) as usize - first as usize..range.end.clamp(first, first + len) as usize - first as usize
        };
        if let Some(store) = &self.store {
            let from = store.segments.partition_point(|s| s.header.first_token + u64::from(s.header.token_count) <= range.start);
            for segment in store.segments.iter().skip(from).take_while(|s| s.header.first_token < range.end) {
                let part = part(segment.header.first_token, segment.header.token_count.into());
                let read = Memory::read_ids(&*store.storage, segment, part.start, &mut out, part.len());
                match &mut gaps {
                    None => read?,
                    Some(gaps) => {
                        if store.or_skip(segment, Section::Tokens, read)?.is_err() {
                            let of_memory = |i: usize| segment.header.first_token + i as u64;
                            gaps.push(of_memory(part.start)..of_memory(part.end));
                            out.resize(out.len() + part.len(), 0);
                        }
                    }
                }
            }
        }
        out.extend(&self.pending.tokens[part(self.committed_len(), self.pending.tokens.len() as u64)]);
        Ok(out)
    }

    /// Where the tokens come from, in the order of the tokens. Tokens without a source, and forgotten ones, are in none of the spans; nor
    /// are those whose sources are damaged, which is counted ([`Stats::damaged_sections`](super::Stats::damaged_sections)) and logged.
    pub fn sources(&self) -> Result<Vec<SourceSpan>> {
        Ok(self.sources_and_gaps()?.0)
    }

    /// [`Memory::sources`], and which tokens that are not forgotten have sources that are damaged, with the damage.
    pub(super) fn sources_and_gaps(&self) -> Result<(Vec<SourceSpan>, Gaps)> {
        let (mut out, mut gaps): (Vec<SourceSpan>, Gaps) = Default::default();
        if let Some(store) = &self.store {
            for segment in &store.segments {
                let at = segment.offset + segment.layout.sections[Section::Spans as usize].0;
                let before = out.len();
                let read = segment.read_section(&*store.storage, Section::Spans);
                let read = read.and_then(|bytes| parse_spans(&bytes, at, &segment.header, |span| out.push(span)));
                if let Err(damage) = store.or_skip(segment, Section::Spans, read)? {
                    out.truncate(before);
                    gaps.push((segment.tokens(), damage));
                }
            }
        }
        out.extend(self.pending.spans.iter().cloned());
        out.retain(|span| !self.forgotten().covers(&span.tokens));
        gaps.retain(|gap| !self.forgotten().covers(&gap.0));
        Ok((out, gaps))
    }

    /// The tokens of a block.
    pub fn block(&self, block: usize) -> Result<BlockSpan> {
        if let Some(pending) = self.pending_block(block)? {
            let first_token = self.committed_len() + ((block - self.committed_blocks()) * self.geometry.block_len()) as u64;
            return Ok(BlockSpan { first_token, len: pending.len });
        }
        let (_, segment) = self.committed_block(block)?;
        let i = block - segment.first_block;
        let first_token = segment.header.first_token + (i * self.geometry.block_len()) as u64;
        let len = if i + 1 == segment.layout.blocks { segment.layout.last_len } else { self.geometry.block_len() };
        Ok(BlockSpan { first_token, len })
    }

    /// `None` if the block is committed; an error if there is no such block.
    pub(super) fn pending_block(&self, block: usize) -> Result<Option<&Block>> {
        let Some(i) = block.checked_sub(self.committed_blocks()) else { return Ok(None) };
        match self.pending.blocks.get(i) {
            Some(block) => Ok(Some(block)),
            None => Err(Error::argument("block", format!("below {}", self.blocks()), block)),
        }
    }

    pub(super) fn committed_block(&self, block: usize) -> Result<(&Store, &Segment)> {
        let found = self.store.as_ref().and_then(|store| Some((store, store.segment_of_block(block)?)));
        found.ok_or_else(|| Error::argument("block", format!("below {}", self.blocks()), block))
    }

    /// The keys or the values of one head in one block, in place. A committed block is compared with its checksum when it is first
    /// touched.
    ///
    /// # Errors
    /// [`Error::Argument`] for a slot, head or block that is not there; [`Error::Corrupt`] with the offset if this block of this
    /// layer is damaged (others stay readable).
    pub fn rows(&self, side: Side, layer_slot: usize, head: usize, block: usize) -> Result<BlockView<'_>> {
        let geometry = &self.geometry;
        self.check_layer_slot(layer_slot)?;
        self.check_head(head)?;
        let (codec, length) = (geometry.codec, geometry.length(side));
        if let Some(pending) = self.pending_block(block)? {
            return Ok(BlockView { bytes: pending.run(geometry, layer_slot, side, head), codec, side, len: pending.len, length });
        }
        let (store, segment) = self.committed_block(block)?;
        let len = self.block(block)?.len;
        let extent = segment.extent(&store.maps, &*store.storage, geometry, layer_slot, block - segment.first_block)?;
        let bytes = &extent[geometry.run_offset(side, head, len)..][..geometry.run_bytes(side, len)];
        Ok(BlockView { bytes, codec, side, len, length })
    }

    /// The unrotated keys of one head in one block: see [`Memory::rows`].
    pub fn keys(&self, layer_slot: usize, head: usize, block: usize) -> Result<BlockView<'_>> {
        self.rows(Side::Keys, layer_slot, head, block)
    }

    /// The values of one head in one block: see [`Memory::rows`].
    pub fn values(&self, layer_slot: usize, head: usize, block: usize) -> Result<BlockView<'_>> {
        self.rows(Side::Values, layer_slot, head, block)
    }

    /// Asks the system to read a block of a layer slot ahead. Only a hint: it returns at once and never fails.
    pub fn prefetch(&self, layer_slot: usize, block: usize) {
        if layer_slot < self.geometry.layer_count()
            && let Some(store) = &self.store
            && block < store.blocks()
            && let Some(segment) = store.segment_of_block(block)
        {
            let (at, len) = segment.layout.extent(layer_slot, block - segment.first_block);
            store.will_need(segment.offset + at, len as u64);
        }
    }

    /// What this handle leaves out from now on, in place of what it left out before: blocks with any of these tokens are not read, as if
    /// they were forgotten. Nothing is written.
    pub fn leave_out(&mut self, tokens: &[Range<u64>]) {
        self.left_out = TokenRanges::default();
        tokens.iter().for_each(|range| self.left_out.insert(range.clone()));
    }

    /// True if the block is to be read: none of its tokens is forgotten or left out, and it was not found damaged.
    pub fn is_readable(&self, block: usize) -> bool {
        for ranges in [self.forgotten(), &self.left_out] {
            if !ranges.is_empty()
                && let Ok(span) = self.block(block)
                && ranges.meets(&(span.first_token..span.first_token + span.len as u64))
            {
                return false;
            }
        }
        self.dropped_count.load(Relaxed) == 0 || !self.dropped.lock().unwrap_or_else(|e| e.into_inner()).contains(&block)
    }

    /// What was being read of `block`, or `None` if it turned out damaged: then it is not read any more, which the log and
    /// [`Stats::dropped_blocks`](super::Stats::dropped_blocks) say. Other errors stay errors.
    pub fn or_drop<T>(&self, block: usize, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(e @ Error::Corrupt { .. }) if self.store.as_ref().is_some_and(|s| not_truncated(&*s.storage, s.tip().end).is_ok()) => {
                let is_new = {
                    let mut dropped = self.dropped.lock().unwrap_or_else(|e| e.into_inner());
                    let is_new = dropped.insert(block);
                    self.dropped_count.store(dropped.len(), Relaxed);
                    is_new
                };
                // Not under the lock: who takes the log may ask the memory something.
                if is_new {
                    log::warn!("block {block} of a memory is damaged and not read any more: {e}");
                }
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Blocks that were found damaged are looked at again.
    pub(super) fn read_again(&mut self) {
        self.dropped.get_mut().unwrap_or_else(|e| e.into_inner()).clear();
        self.dropped_count.store(0, Relaxed);
    }

    /// [`Error::Corrupt`] if somebody has cut the file short: what is mapped must not be touched then. To be asked before a round of
    /// reading.
    pub fn check_length(&self) -> Result<()> {
        self.store.as_ref().map_or(Ok(()), |s| not_truncated(&*s.storage, s.tip().end))
    }

    /// Times that a page of the files could not be had while it was read in place. Who reads in place asks before and after
    /// ([`Memory::check_unlost`]), and throws away what came of the reading if there are more.
    pub fn lost_pages(memories: &[&Memory]) -> u64 {
        memories.iter().filter_map(|m| m.store.as_ref()).map(|s| s.maps.lost_pages()).sum()
    }

    /// [`Error::Corrupt`] if some of what was read in place since [`Memory::lost_pages`] was `before` may have been zeros that the files have
    /// not: somebody has cut one short, or a disk has an error. Who reads again is told the place.
    pub fn check_unlost(memories: &[&Memory], before: u64) -> Result<()> {
        if Memory::lost_pages(memories) == before {
            return Ok(());
        }
        memories.iter().try_for_each(|m| m.check_length())?;
        let lost = memories.iter().filter_map(|m| m.store.as_ref()).find_map(|s| s.maps.first_lost());
        let what = "this page of the file could not be read while it was in use: the disk has an error, or had one";
        Err(Error::Corrupt { file: FILE, offset: lost.unwrap_or(0), what: what.into() })
    }

    pub(super) fn check_layer_slot(&self, layer_slot: usize) -> Result<()> {
        if layer_slot >= self.geometry.layer_count() {
            return Err(Error::argument("layer_slot", format!("below {}", self.geometry.layer_count()), layer_slot));
        }
        Ok(())
    }

    pub(super) fn check_head(&self, head: usize) -> Result<()> {
        let heads = self.geometry.heads();
        if head >= heads { Err(Error::argument("head", format!("below {heads}"), head)) } else { Ok(()) }
    }

    fn layer_index(&self, layer_slot: usize) -> Result<&LayerIndex> {
        self.check_layer_slot(layer_slot)?;
        if self.form().summary_slot(&self.geometry, layer_slot).is_none() {
            return Err(Error::argument(
                "layer_slot",
                format!("one of layers {:?}, of which there is an index", self.geometry.sketched),
                layer_slot,
            ));
        }
        let cell = &self.index[layer_slot];
        if let Some(index) = cell.get() {
            return Ok(index);
        }
        let mut index = LayerIndex::default();
        if let Some(store) = &self.store {
            index.load(&self.geometry, store, layer_slot, 0)?;
        }
        index.reserve(&self.geometry, self.pending.blocks.len())?;
        self.pending.blocks.iter().for_each(|b| index.push(&self.geometry, self.form(), layer_slot, b));
        Ok(cell.get_or_init(|| index))
    }

    /// The mean of the stored keys of each block and head, `(block, head, key_length)`, as the index keeps it. The first call for a layer
    /// slot reads the index of all its blocks from the file (never keys or values); later calls return what is kept up to date.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer of which the file keeps none: new ones have those of [`Geometry::sketched`](super::Geometry::sketched).
    pub fn mean_keys(&self, layer_slot: usize) -> Result<&[f32]> {
        Ok(&self.layer_index(layer_slot)?.means)
    }

    /// How far from its mean a key of a block and head is at most, `(block, head)`: `q·mean + |q|·radius` bounds every score.
    pub fn radii(&self, layer_slot: usize) -> Result<&[f32]> {
        Ok(&self.layer_index(layer_slot)?.radii)
    }
}
