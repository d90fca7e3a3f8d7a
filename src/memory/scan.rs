//! What a search reads of a memory beside sketches: whole blocks of a layer, token ids. All of it with plain reads into the caller's room, so
//! that no kernel meets a page of the file, processes share the system's copy alone, and a file that is cut short meanwhile is an error.
//!
//! Invariant: what is handed out was compared with its checksum: a segment's ids when they are first read, an extent each time.

use super::format::{FILE, Section};
use super::geometry::Side;
use super::segment::{Segment, check_crc, read};
use super::{BlockView, Geometry, Memory};
use crate::bytes::{AlignedBytes, Storage};
use crate::error::{Error, Result, try_zeroed};

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
