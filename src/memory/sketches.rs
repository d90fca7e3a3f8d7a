//! Sketches of keys as a search finds them: in place, a segment at a time, with the mean keys around which they were made.
//!
//! Invariant: what is handed out was compared with the checksum of its section when this handle first touched it. Where a section is
//! damaged, as where a file keeps no sketches and for what is not committed, there is nothing here, and every key has to be read.

use super::form::Form;
use super::format::Section;
use super::{Geometry, Memory};
use crate::error::Result;
use crate::gguf::TensorType;
use std::ops::Range;

/// The sketches of one layer slot and head in consecutive blocks.
pub struct Sketches<'a> {
    /// The blocks of the memory.
    pub blocks: Range<usize>,
    geometry: &'a Geometry,
    index: &'a [u8],
    tokens: usize,
    slot: usize,
    head: usize,
}

impl<'a> Sketches<'a> {
    /// Encoding of mean keys.
    pub fn mean_type(&self) -> TensorType {
        Form::Codes.row_type(self.geometry)
    }

    /// Keys of a block, its mean key, and their sketches in whole tiles (`kernels/sketch.rs`).
    ///
    /// # Panics
    /// If the block is not one of these.
    pub fn of(&self, block: usize) -> (usize, &'a [u8], &'a [u8]) {
        let (form, geometry, index) = (Form::Codes, self.geometry, self.index);
        let (i, count) = (block - self.blocks.start, self.blocks.len());
        let len = geometry.block_len().min(self.tokens - i * geometry.block_len());
        let mean = form.mean_at(geometry, count, self.slot, self.head, i);
        let at = form.sketches_at(geometry, self.tokens, self.slot * geometry.heads() + self.head, i);
        (len, &index[mean..][..form.row_bytes(geometry)], &index[at..][..geometry.sketch_bytes(len)])
    }
}

impl Memory {
    /// The sketches of a layer slot and head, in the order of the blocks, as far as there are any.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::error::Error::Argument) for what is not there, [`Error::Corrupt`](crate::error::Error::Corrupt) if the
    /// file was cut short, [`Error::Io`](crate::error::Error::Io).
    pub fn sketches(&self, slot: usize, head: usize) -> Result<Vec<Sketches<'_>>> {
        self.check_layer_slot(slot)?;
        self.check_head(head)?;
        let geometry = &self.geometry;
        let Some(store) = self.store.as_ref().filter(|_| geometry.sketches) else { return Ok(Vec::new()) };
        let of_tokens = || store.segments.iter().filter(|s| !s.lost && s.layout.blocks > 0);
        for segment in of_tokens().filter(|s| !s.is_checked(Section::Index)) {
            let (at, len) = segment.layout.sections[Section::Index as usize];
            store.will_need(segment.offset + at, len);
        }
        let mut out = Vec::new();
        for segment in of_tokens() {
            let read = store.section(segment, Section::Index);
            if let Ok(index) = store.or_skip(segment, Section::Index, read)? {
                let blocks = segment.first_block..segment.first_block + segment.layout.blocks;
                out.push(Sketches { blocks, geometry, index, tokens: segment.header.token_count as usize, slot, head });
            }
        }
        Ok(out)
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
