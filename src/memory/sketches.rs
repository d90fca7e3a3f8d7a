//! Sketches of keys as a search finds them, a segment at a time, with the mean keys around which they were made: in place, or read into
//! the caller's room.
//!
//! Invariant: what is handed out was compared with a checksum when this handle first touched it: in place with that of the whole index, read
//! with that of its layer and head. Where it does not match, as where a file keeps no sketches and for what is not committed, there is nothing
//! here, and every key has to be read.

use super::form::Form;
use super::format::Section;
use super::segment::{Segment, check_crc, read};
use super::{Geometry, Memory};
use crate::error::{Error, Result, try_grow, try_reserve, try_zeroed};
use crate::gguf::TensorType;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// The sketches of one layer slot and head in consecutive blocks.
pub struct Sketches<'a> {
    /// The blocks of the memory.
    pub blocks: Range<usize>,
    /// Keys of these blocks.
    pub keys: usize,
    geometry: &'a Geometry,
    /// The mean keys, a row of [`Memory::mean_type`] for each block.
    pub means: &'a [u8],
    /// Those of all keys, each block's in whole tiles (`kernels/sketch.rs`).
    pub tiles: &'a [u8],
}

impl<'a> Sketches<'a> {
    /// Keys of a block, its mean key, and their sketches.
    ///
    /// # Panics
    /// If the block is not one of these.
    pub fn of(&self, block: usize) -> (usize, &'a [u8], &'a [u8]) {
        let (geometry, i) = (self.geometry, block - self.blocks.start);
        let len = geometry.block_len().min(self.keys - i * geometry.block_len());
        let (row, full) = (Form::RAM.row_bytes(geometry), geometry.sketch_bytes(geometry.block_len()));
        (len, &self.means[i * row..][..row], &self.tiles[i * full..][..geometry.sketch_bytes(len)])
    }
}

/// Where the mean keys and the sketches of a layer slot and some heads stand in the index of a segment.
fn places(geometry: &Geometry, form: Form, segment: &Segment, slot: usize, heads: Range<usize>) -> Option<[Range<usize>; 2]> {
    let first = geometry.sketched_slot(slot)? * geometry.heads();
    let (blocks, tokens) = (segment.layout.blocks, segment.header.token_count as usize);
    let mean = |head: usize| form.mean_at(geometry, blocks, slot, head, 0);
    let sketch = |head: usize| form.sketches_at(geometry, tokens, first + head, 0);
    Some([mean(heads.start)..mean(heads.end), sketch(heads.start)..sketch(heads.end)])
}

/// What is known of the groups of a segment's index: a layer slot and head, counted over the layers with sketches.
#[derive(Default)]
pub struct Groups(OnceLock<Vec<AtomicU8>>);

const GOOD: u8 = 1;
const BAD: u8 = 2;

impl Groups {
    fn of(&self, geometry: &Geometry, group: usize) -> Result<&AtomicU8> {
        let groups = match self.0.get() {
            Some(groups) => groups,
            None => {
                let made = try_zeroed::<u8>("what is known of an index", geometry.sketched.len() * geometry.heads())?;
                self.0.get_or_init(|| made.into_iter().map(AtomicU8::new).collect())
            }
        };
        groups.get(group).ok_or_else(|| Error::argument("head", format!("below {}", geometry.heads()), group))
    }
}

/// Room for the sketches of a layer slot and head of a segment, to be read into again and again.
#[derive(Default)]
pub struct SketchRoom {
    means: Vec<u8>,
    tiles: Vec<u8>,
}

impl Memory {
    /// Encoding of the mean keys beside sketches: 8 bits where 32 divides a key, else half precision.
    pub fn mean_type(&self) -> TensorType {
        Form::RAM.row_type(&self.geometry)
    }

    /// The sketches of a layer slot and head in place, in the order of the blocks, as far as there are any.
    ///
    /// # Errors
    /// [`Error::Argument`] for what is not there, [`Error::Corrupt`] if the file was cut short, [`Error::Io`].
    pub fn sketches(&self, slot: usize, head: usize) -> Result<Vec<Sketches<'_>>> {
        self.check_layer_slot(slot)?;
        self.check_head(head)?;
        let geometry = &self.geometry;
        let Some(store) = self.store.as_ref().filter(|_| geometry.sketched_slot(slot).is_some()) else { return Ok(Vec::new()) };
        let of_tokens = || store.segments.iter().filter(|s| !s.lost && s.layout.blocks > 0);
        for segment in of_tokens().filter(|s| !s.is_checked(Section::Index)) {
            let (at, len) = segment.layout.sections[Section::Index as usize];
            store.will_need(segment.offset + at, len);
        }
        let mut out = Vec::new();
        for segment in of_tokens() {
            let read = store.section(segment, Section::Index);
            if let (Ok(index), Some([means, tiles])) =
                (store.or_skip(segment, Section::Index, read)?, places(geometry, store.form(), segment, slot, head..head + 1))
            {
                let keys = segment.header.token_count as usize;
                out.push(Sketches { blocks: segment.blocks(), keys, geometry, means: &index[means], tiles: &index[tiles] });
            }
        }
        Ok(out)
    }

    /// Consecutive blocks of which [`Memory::read_sketches`] may find sketches of a layer slot, in their order.
    pub fn sketched_blocks(&self, slot: usize) -> impl Iterator<Item = Range<usize>> {
        let has_sketches = |store: &&super::store::Store| store.form() == Form::Sketches && self.geometry.sketched_slot(slot).is_some();
        let segments = self.store.as_ref().filter(has_sketches).map_or(&[][..], |store| &store.segments);
        segments.iter().filter(|s| !s.lost && s.layout.blocks > 0).map(Segment::blocks)
    }

    /// Readable blocks that are in none of these ranges, which are in order: those without sketches.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn readable_outside(&self, sketched: impl Iterator<Item = Range<usize>>) -> Result<Vec<usize>> {
        let (mut out, mut block) = (Vec::new(), 0);
        for blocks in sketched.chain(std::iter::once(self.blocks()..self.blocks())) {
            try_reserve(&mut out, "blocks of a memory", blocks.start - block)?;
            out.extend((block..blocks.start).filter(|block| self.is_readable(*block)));
            block = blocks.end;
        }
        Ok(out)
    }

    /// Reads the sketches of a layer slot and head in the blocks of one of the ranges of [`Memory::sketched_blocks`], by one of them. `None` if they do not match
    /// their checksum, which the log says once.
    ///
    /// # Errors
    /// [`Error::Argument`] for what is not there, [`Error::Corrupt`] if the file was cut short, [`Error::Io`].
    pub fn read_sketches<'a>(&'a self, slot: usize, head: usize, block: usize, room: &'a mut SketchRoom) -> Result<Option<Sketches<'a>>> {
        self.check_layer_slot(slot)?;
        self.check_head(head)?;
        if self.pending_block(block)?.is_some() {
            return Ok(None);
        }
        let (geometry, (store, segment)) = (&self.geometry, self.committed_block(block)?);
        let (blocks, index) = (segment.blocks(), segment.offset + segment.layout.sections[Section::Index as usize].0);
        let places = places(geometry, store.form(), segment, slot, head..head + 1).filter(|_| store.form() == Form::Sketches);
        let crc_at = store.form().crc_at(geometry, blocks.len(), slot, head);
        let (Some([means, tiles]), Some(crc_at), Some(i)) = (places, crc_at, geometry.sketched_slot(slot)) else { return Ok(None) };
        let state = segment.groups.of(geometry, i * geometry.heads() + head)?;
        if segment.lost || state.load(Relaxed) == BAD {
            return Ok(None);
        }
        for (place, room) in [(&means, &mut room.means), (&tiles, &mut room.tiles)] {
            room.truncate(place.len());
            try_grow(room, "sketches of keys", place.len())?;
            read(&*store.storage, room, index + place.start as u64)?;
        }
        if state.load(Relaxed) != GOOD {
            let mut recorded = [0; 4];
            read(&*store.storage, &mut recorded, index + crc_at as u64)?;
            let what = || {
                let layer = geometry.layers.get(slot).copied().unwrap_or_default();
                format!("sketches of layer {layer}, head {head}, in segment {}", segment.header.sequence)
            };
            let crc = crc32c::crc32c_append(crc32c::crc32c(&room.means), &room.tiles);
            if let Err(e) = check_crc(index + tiles.start as u64, what, u32::from_le_bytes(recorded), crc) {
                log::warn!("all keys of these blocks are read: {e}");
                state.store(BAD, Relaxed);
                return Ok(None);
            }
            state.store(GOOD, Relaxed);
        }
        Ok(Some(Sketches { blocks, keys: segment.header.token_count as usize, geometry, means: &room.means, tiles: &room.tiles }))
    }

    /// Asks the system to read ahead what a search goes through of a layer slot: mean keys and sketches of all heads. Only a hint. Two
    /// requests for each commit, however many parts they have: a disk answers few large ones sooner.
    pub fn prefetch_search(&self, slot: usize) {
        let (Some(store), geometry) = (&self.store, &self.geometry) else { return };
        for segment in store.segments.iter().filter(|s| store.form() == Form::Sketches && !s.lost && s.layout.blocks > 0) {
            let index = segment.offset + segment.layout.sections[Section::Index as usize].0;
            let Some([means, tiles]) = places(geometry, store.form(), segment, slot, 0..geometry.heads()) else { continue };
            store.will_need(index + means.start as u64, means.len() as u64);
            // The checksums stand before the sketches of the first layer.
            let from = store.form().crc_at(geometry, segment.layout.blocks, slot, 0).filter(|_| geometry.sketched_slot(slot) == Some(0));
            let from = from.unwrap_or(tiles.start);
            store.will_need(index + from as u64, (tiles.end - from) as u64);
        }
    }

    /// Asks the system to read a block ahead that this handle has not touched yet: only a hint.
    pub fn prefetch_untouched(&self, layer_slot: usize, block: usize) {
        if let Ok((_, segment)) = self.committed_block(block)
            && !segment.is_extent_checked(layer_slot, block - segment.first_block)
        {
            self.prefetch(layer_slot, block);
        }
    }
}
