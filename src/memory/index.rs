//! The index: mean key and radius of each block and head, one after the other for all blocks of a layer slot, ready to be scanned.
//!
//! It is loaded from the segments when it is first asked for, and kept up by appends and refreshes from then on; a commit does not
//! change it, because blocks keep their numbers.

use super::Geometry;
use super::format::Section;
use super::geometry::Side;
use super::page::Block;
use super::store::Store;
use crate::error::{Result, try_reserve};

/// The index of one layer slot over all blocks.
#[derive(Default)]
pub struct LayerIndex {
    /// `(block, head, key_length)`.
    pub means: Vec<f32>,
    /// `(block, head)`.
    pub radii: Vec<f32>,
}

impl LayerIndex {
    /// Makes room for more blocks.
    pub fn reserve(&mut self, geometry: &Geometry, blocks: usize) -> Result<()> {
        let heads = blocks * geometry.heads();
        try_reserve(&mut self.radii, "the index of a memory", heads)?;
        try_reserve(&mut self.means, "the index of a memory", heads * geometry.length(Side::Keys))
    }

    /// Keeps the first blocks only.
    pub fn truncate(&mut self, geometry: &Geometry, blocks: usize) {
        self.radii.truncate(blocks * geometry.heads());
        self.means.truncate(blocks * geometry.heads() * geometry.length(Side::Keys));
    }

    /// Appends a block that is in memory.
    pub fn push(&mut self, geometry: &Geometry, slot: usize, block: &Block) {
        self.means.extend(block.means(geometry, slot));
        self.radii.extend(block.radii(geometry, slot));
    }

    /// Appends the index of the committed segments from number `first` on.
    pub fn load(&mut self, geometry: &Geometry, store: &Store, slot: usize, first: usize) -> Result<()> {
        for segment in store.segments.iter().skip(first) {
            let blocks = segment.layout.blocks;
            self.reserve(geometry, blocks)?;
            let bytes = store.section(segment, Section::Index)?;
            let per_layer = bytes.len() / geometry.layer_count();
            let mut floats = bytes[slot * per_layer..][..per_layer].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
            self.means.extend(floats.by_ref().take(blocks * geometry.heads() * geometry.length(Side::Keys)));
            self.radii.extend(floats);
        }
        Ok(())
    }
}
