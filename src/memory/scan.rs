//! What a search reads of a memory: mean keys, and whole blocks of a layer. All of it with plain reads into the caller's room, so that no
//! kernel meets a page of the file, processes share the system's copy alone, and a file that is cut short meanwhile is an error.
//!
//! Invariant: what is handed out was compared with its checksum: a group of codes (a layer slot and head of a segment) when it is first
//! read, an extent each time. Only the floats of the first form of the index are not.

use super::form::Form;
use super::format::{FILE, Section};
use super::geometry::Side;
use super::index::codes_of;
use super::segment::{Segment, check_crc, read};
use super::{BlockView, Geometry, Memory};
use crate::bytes::{AlignedBytes, Storage};
use crate::error::{Error, Result, try_zeroed};
use crate::gguf::TensorType;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// What is known of the groups of a segment's index.
#[derive(Default)]
pub struct Groups(OnceLock<Vec<AtomicU8>>);

const GOOD: u8 = 1;
const BAD: u8 = 2;

impl Groups {
    fn of(&self, geometry: &Geometry, slot: usize, head: usize) -> Result<&AtomicU8> {
        let groups = match self.0.get() {
            Some(groups) => groups,
            None => {
                let made = try_zeroed::<u8>("what is known of an index", geometry.layer_count() * geometry.heads())?;
                self.0.get_or_init(|| made.into_iter().map(AtomicU8::new).collect())
            }
        };
        groups.get(slot * geometry.heads() + head).ok_or_else(|| Error::argument("head", format!("below {}", geometry.heads()), head))
    }
}

impl Segment {
    /// The means of some blocks of this segment as rows of [`Form::Codes`]; zeros, and false, if they do not match their checksum.
    fn mean_rows(
        &self,
        storage: &dyn Storage,
        geometry: &Geometry,
        form: Form,
        [slot, head]: [usize; 2],
        blocks: Range<usize>,
        out: &mut [u8],
    ) -> Result<bool> {
        if self.lost {
            out.fill(0);
            return Ok(false);
        }
        let (all, row) = (self.layout.blocks, form.row_bytes(geometry));
        let index_at = self.offset + self.layout.sections[Section::Index as usize].0;
        let at = |block: usize| index_at + form.mean_at(geometry, all, slot, head, block) as u64;
        let Some(crc_at) = form.crc_at(geometry, slot, head) else {
            // All heads of a block stand together.
            let mut bytes: Vec<u8> = try_zeroed("mean keys", blocks.len() * geometry.heads() * row)?;
            read(storage, &mut bytes, index_at + form.mean_at(geometry, all, slot, 0, blocks.start) as u64)?;
            let (mut floats, mut codes) = (Vec::with_capacity(row / 4), Vec::with_capacity(row));
            for (block, out) in bytes.chunks_exact(geometry.heads() * row).zip(out.chunks_exact_mut(out.len() / blocks.len().max(1))) {
                floats.clear();
                floats.extend(block[head * row..][..row].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
                codes.clear();
                codes_of(geometry, &mut floats, &mut codes)?;
                out.copy_from_slice(&codes);
            }
            return Ok(true);
        };
        let state = self.groups.of(geometry, slot, head)?;
        match state.load(Relaxed) {
            GOOD => {
                read(storage, out, at(blocks.start))?;
                return Ok(true);
            }
            BAD => {
                out.fill(0);
                return Ok(false);
            }
            _ => {}
        }
        let mut recorded = [0; 4];
        read(storage, &mut recorded, index_at + crc_at as u64)?;
        let mut whole: Vec<u8> = try_zeroed("mean keys", all * row)?;
        read(storage, &mut whole, at(0))?;
        out.copy_from_slice(&whole[blocks.start * row..blocks.end * row]);
        let what = || {
            let layer = geometry.layers.get(slot).copied().unwrap_or_default();
            format!("mean keys of layer {layer}, head {head}, in segment {}", self.header.sequence)
        };
        match check_crc(at(0), what, u32::from_le_bytes(recorded), crc32c::crc32c(&whole)) {
            Ok(()) => {
                state.store(GOOD, Relaxed);
                Ok(true)
            }
            Err(e) => {
                log::warn!("no block is proposed by what is damaged: {e}");
                state.store(BAD, Relaxed);
                out.fill(0);
                Ok(false)
            }
        }
    }
}

/// Bytes of source spans that are read with what lies around them.
const SPANS_BYTES_BETWEEN: u32 = 1 << 16;

/// Room for one block of one layer, to be read into again and again.
#[derive(Default)]
pub struct ExtentRoom(Option<AlignedBytes>);

impl ExtentRoom {
    fn of(&mut self, len: usize) -> Result<&mut [u8]> {
        if self.0.as_ref().is_none_or(|bytes| bytes.len() < len) {
            self.0 = Some(AlignedBytes::zeroed("a block of a memory", len)?);
        }
        Ok(&mut self.0.as_deref_mut().unwrap_or_default()[..len])
    }
}

/// One block of one layer: keys and values of all heads.
#[derive(Clone, Copy)]
pub struct Extent<'a> {
    geometry: &'a Geometry,
    bytes: &'a [u8],
    /// Tokens that the layout has room for.
    room: usize,
    len: usize,
}

impl<'a> Extent<'a> {
    /// The keys or the values of a head.
    ///
    /// # Panics
    /// If the memory has no such head.
    pub fn rows(&self, side: Side, head: usize) -> BlockView<'a> {
        let (g, len) = (self.geometry, self.len);
        assert!(head < g.heads(), "head {head} of {}", g.heads());
        let bytes = &self.bytes[g.run_offset(side, head, self.room)..][..g.run_bytes(side, len)];
        BlockView { bytes, codec: g.codec, side, len, length: g.length(side) }
    }
}

impl Memory {
    /// Encoding of the rows of [`Memory::mean_rows`]: 8 bits where 32 divides a key, else half precision.
    pub fn mean_row_type(&self) -> TensorType {
        Form::Codes.row_type(&self.geometry)
    }

    /// Reads the mean keys of one layer slot and head, of consecutive blocks: rows of [`Memory::mean_row_type`] into `out`, which is as
    /// long as they are. Those that do not match their checksum come as zeros, and the log says so. Returns how many those are.
    ///
    /// # Errors
    /// [`Error::Argument`] for what is not there, [`Error::Corrupt`] if the file was cut short, [`Error::Io`].
    pub fn mean_rows(&self, layer_slot: usize, head: usize, blocks: Range<usize>, out: &mut [u8]) -> Result<usize> {
        self.check_layer_slot(layer_slot)?;
        let (geometry, row) = (&self.geometry, Form::Codes.row_bytes(&self.geometry));
        if head >= geometry.heads() || blocks.start > blocks.end || blocks.end > self.blocks() || out.len() != blocks.len() * row {
            let found = format!("head {head}, blocks {blocks:?}, {} bytes", out.len());
            return Err(Error::argument("blocks", format!("blocks below {}, {row} bytes each", self.blocks()), found));
        }
        let mut damaged = 0;
        if let Some(store) = &self.store {
            let from = store.segments.partition_point(|s| s.first_block + s.layout.blocks <= blocks.start);
            for segment in store.segments.iter().skip(from).take_while(|s| s.first_block < blocks.end) {
                let of = |block: usize| block.clamp(segment.first_block, segment.first_block + segment.layout.blocks);
                let (first, last) = (of(blocks.start), of(blocks.end));
                let out = &mut out[(first - blocks.start) * row..(last - blocks.start) * row];
                let part = first - segment.first_block..last - segment.first_block;
                if !segment.mean_rows(&*store.storage, geometry, store.form(), [layer_slot, head], part, out)? {
                    damaged += last - first;
                }
            }
        }
        let committed = self.committed_blocks();
        for block in blocks.start.max(committed)..blocks.end {
            let (Some(pending), out) = (self.pending_block(block)?, &mut out[(block - blocks.start) * row..][..row]) else { continue };
            let (mean, _) = pending.summary(geometry, layer_slot, head);
            if self.form() != Form::Floats {
                out.copy_from_slice(mean);
            } else {
                let mut floats: Vec<f32> = mean.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                let mut codes = Vec::with_capacity(row);
                codes_of(geometry, &mut floats, &mut codes)?;
                out.copy_from_slice(&codes);
            }
        }
        Ok(damaged)
    }

    /// Asks the system to read ahead what a search goes through: all token ids, and the mean keys of consecutive layer slots. Only a hint. Two
    /// requests for each commit, however many parts they have: a disk answers few large ones sooner.
    pub fn prefetch_search(&self, layer_slots: Range<usize>) {
        let (Some(store), geometry) = (&self.store, &self.geometry) else { return };
        let (form, slots) = (store.form(), layer_slots.start..layer_slots.end.min(geometry.layer_count()));
        for segment in store.segments.iter().filter(|s| !slots.is_empty() && !s.lost) {
            let at = |section: Section| segment.offset + segment.layout.sections[section as usize].0;
            let means_at = |slot: usize| form.mean_at(geometry, segment.layout.blocks, slot, 0, 0) as u64;
            // The checksums of the mean keys stand at the beginning of the index, behind ids and sources.
            let checksums = form.radius_at(geometry, segment.layout.blocks, 0, 0, 0) as u64;
            let ids_end = at(Section::Index) + if form == Form::Floats { 0 } else { checksums };
            if segment.header.spans_bytes <= SPANS_BYTES_BETWEEN {
                store.will_need(at(Section::Tokens), ids_end - at(Section::Tokens));
            } else {
                store.will_need(at(Section::Tokens), segment.layout.sections[Section::Tokens as usize].1);
                store.will_need(at(Section::Index), ids_end - at(Section::Index));
            }
            store.will_need(at(Section::Index) + means_at(slots.start), means_at(slots.end) - means_at(slots.start));
        }
    }

    /// Reads one block of one layer slot into `room` (or finds it in RAM) and compares it with its checksum.
    ///
    /// # Errors
    /// As [`Memory::rows`]; [`Error::Io`].
    pub fn extent<'a>(&'a self, layer_slot: usize, block: usize, room: &'a mut ExtentRoom) -> Result<Extent<'a>> {
        self.check_layer_slot(layer_slot)?;
        let geometry = &self.geometry;
        if let Some(pending) = self.pending_block(block)? {
            return Ok(Extent { geometry, bytes: pending.extent(geometry, layer_slot), room: geometry.block_len(), len: pending.len });
        }
        let (store, segment) = self.committed_block(block)?;
        segment.not_lost()?;
        let i = block - segment.first_block;
        let len = if i + 1 == segment.layout.blocks { segment.layout.last_len } else { geometry.block_len() };
        let (at, size) = segment.layout.extent(layer_slot, i);
        let mut recorded = [0; 4];
        let table = segment.layout.sections[Section::ExtentCrcs as usize].0;
        read(&*store.storage, &mut recorded, segment.offset + table + 4 * (layer_slot * segment.layout.blocks + i) as u64)?;
        let bytes = room.of(size)?;
        read(&*store.storage, bytes, segment.offset + at)?;
        let what = || segment.extent_name(geometry, layer_slot, i);
        check_crc(segment.offset + at, what, u32::from_le_bytes(recorded), crc32c::crc32c(bytes))?;
        Ok(Extent { geometry, bytes, room: len, len })
    }

    /// The ids of a segment's tokens from `first` on, as many as `out` has room for; the whole section is compared with its checksum when
    /// it is first read.
    pub(super) fn read_ids(storage: &dyn Storage, segment: &Segment, first: usize, out: &mut Vec<u32>, count: usize) -> Result<()> {
        segment.not_lost()?;
        let (at, len) = segment.layout.sections[Section::Tokens as usize];
        let (start, end) = (4 * first, 4 * (first + count));
        if end as u64 > len {
            return Err(Error::Corrupt { file: FILE, offset: segment.offset + at, what: format!("{end} bytes of token ids, of {len}") });
        }
        let known = segment.is_checked(Section::Tokens);
        let (from, to) = if known { (start, end) } else { (0, len as usize) };
        let mut bytes: Vec<u8> = try_zeroed("token ids", to - from)?;
        read(storage, &mut bytes, segment.offset + at + from as u64)?;
        if !known {
            segment.check_section(Section::Tokens, &bytes)?;
        }
        out.extend(bytes[start - from..end - from].as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)));
        Ok(())
    }
}
