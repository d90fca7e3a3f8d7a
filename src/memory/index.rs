//! The index: mean key and radius of each block and head, and sketches of all keys where there are any, in the form in which a search
//! scans them.
//!
//! New files keep mean keys in 8 bits (half precision where 32 does not divide a key), the rows of one layer and head one after the other, and
//! so the sketches, so that a search reads what it scans and nothing else; a checksum for each such group lets it know what it has read. Files of the
//! first form keep mean keys as floats, all heads of a block together. Here is what all forms look like, and the floats of a whole layer slot.
//!
//! Invariant: the radius is that around the mean *as it is kept*, so that it bounds every score whatever the encoding.

use super::Geometry;
use super::form::Form;
use super::format::Section;
use super::geometry::Side;
use super::page::Block;
use super::store::Store;
use crate::error::{Result, try_reserve, try_zeroed};
use crate::gguf::TensorType;
use crate::quant::{dequantise, quantise};

/// Larger elements of a mean are cut to this, which every encoding holds.
const LARGEST: f32 = 65504.0;

impl Form {
    /// Encoding of a mean key.
    pub fn row_type(self, geometry: &Geometry) -> TensorType {
        match self {
            Form::Floats => TensorType::F32,
            _ if geometry.key_length.is_multiple_of(32) => TensorType::Q8_0,
            _ => TensorType::F16,
        }
    }

    /// Bytes of a mean key.
    pub fn row_bytes(self, geometry: &Geometry) -> usize {
        self.row_type(geometry).row_bytes(geometry.length(Side::Keys)).unwrap_or(0)
    }

    /// Bytes of the index of a segment of so many tokens.
    pub fn section_bytes(self, geometry: &Geometry, tokens: usize) -> u64 {
        let blocks = tokens.div_ceil(geometry.block_len());
        match self {
            Form::Floats => (self.groups(geometry) * blocks) as u64 * (self.row_bytes(geometry) as u64 + 4),
            _ if blocks == 0 => 0,
            _ => self.sketches_at(geometry, tokens, sketched_groups(geometry), 0) as u64,
        }
    }

    /// Bytes before the radii: checksums of the groups of mean keys.
    fn radii_at(self, geometry: &Geometry) -> usize {
        if matches!(self, Form::Codes | Form::Sectors) { 4 * self.groups(geometry) } else { 0 }
    }

    /// Which of the layers with mean keys and radii a slot is, if it is one: all are, but in [`Form::Sketches`].
    pub fn summary_slot(self, geometry: &Geometry, slot: usize) -> Option<usize> {
        if self == Form::Sketches { geometry.sketched_slot(slot) } else { (slot < geometry.layer_count()).then_some(slot) }
    }

    /// Groups of means: one for each head of a layer that has them.
    fn groups(self, geometry: &Geometry) -> usize {
        geometry.heads() * if self == Form::Sketches { geometry.sketched.len() } else { geometry.layer_count() }
    }

    /// Where the mean keys of the last group end.
    fn means_end(self, geometry: &Geometry, blocks: usize) -> usize {
        self.radii_at(geometry) + self.groups(geometry) * blocks * (4 + self.row_bytes(geometry))
    }

    /// Where the CRC of a group stands in the index of a segment of `blocks` blocks: that of its mean keys, in [`Form::Sketches`] that of
    /// its mean keys and its sketches.
    pub fn crc_at(self, geometry: &Geometry, blocks: usize, slot: usize, head: usize) -> Option<usize> {
        match self {
            Form::Floats => None,
            Form::Codes | Form::Sectors => Some(4 * (slot * geometry.heads() + head)),
            Form::Sketches => geometry.sketched_slot(slot).map(|i| self.means_end(geometry, blocks) + 4 * (i * geometry.heads() + head)),
        }
    }

    /// Where the radius of a block stands in the index of a segment of `blocks` blocks. Of layers that have radii.
    pub fn radius_at(self, geometry: &Geometry, blocks: usize, slot: usize, head: usize, block: usize) -> usize {
        let (heads, slot) = (geometry.heads(), self.summary_slot(geometry, slot).unwrap_or_default());
        match self {
            Form::Floats => (slot + 1) * blocks * heads * self.row_bytes(geometry) + 4 * ((slot * blocks + block) * heads + head),
            _ => self.radii_at(geometry) + 4 * ((slot * heads + head) * blocks + block),
        }
    }

    /// Where the mean key of a block stands. Of layers that have mean keys.
    pub fn mean_at(self, geometry: &Geometry, blocks: usize, slot: usize, head: usize, block: usize) -> usize {
        let (heads, row, slot) = (geometry.heads(), self.row_bytes(geometry), self.summary_slot(geometry, slot).unwrap_or_default());
        match self {
            Form::Floats => ((slot * blocks + block) * heads + head) * row + 4 * slot * blocks * heads,
            _ => self.radii_at(geometry) + 4 * self.groups(geometry) * blocks + ((slot * heads + head) * blocks + block) * row,
        }
    }

    /// Where the sketches of a block begin in the index of a segment of `tokens` tokens. `group` counts heads over all layers that have sketches.
    pub fn sketches_at(self, geometry: &Geometry, tokens: usize, group: usize, block: usize) -> usize {
        let blocks = tokens.div_ceil(geometry.block_len());
        let full = blocks.saturating_sub(1);
        let of_group = full * geometry.sketch_bytes(geometry.block_len()) + geometry.sketch_bytes(tokens - full * geometry.block_len());
        let crcs = if self == Form::Sketches { 4 * sketched_groups(geometry) } else { 0 };
        self.means_end(geometry, blocks) + crcs + group * of_group + block * geometry.sketch_bytes(geometry.block_len())
    }

    /// The index of a segment: `of` writes the mean key of (layer slot, head, block), and its sketches where there are any, and returns its
    /// radius; it is asked for the layers that have them.
    pub fn build(
        self,
        geometry: &Geometry,
        tokens: usize,
        mut of: impl FnMut([usize; 3], &mut [u8], &mut [u8]) -> Result<f32>,
    ) -> Result<Vec<u8>> {
        let mut out: Vec<u8> = try_zeroed("the index of a memory", self.section_bytes(geometry, tokens) as usize)?;
        let (row, blocks) = (self.row_bytes(geometry), tokens.div_ceil(geometry.block_len()));
        let summarised = (0..geometry.layer_count()).filter(|slot| self.summary_slot(geometry, *slot).is_some());
        for (slot, head) in summarised.flat_map(|slot| (0..geometry.heads()).map(move |head| (slot, head))) {
            let group = geometry.sketched_slot(slot).map(|i| i * geometry.heads() + head);
            for block in 0..blocks {
                let (means, sketches) = out.split_at_mut(self.sketches_at(geometry, tokens, 0, 0));
                let sketches = match group {
                    Some(group) => {
                        let len = geometry.block_len().min(tokens - block * geometry.block_len());
                        let at = self.sketches_at(geometry, tokens, group, block) - means.len();
                        &mut sketches[at..][..geometry.sketch_bytes(len)]
                    }
                    None => &mut [],
                };
                let radius = of([slot, head, block], &mut means[self.mean_at(geometry, blocks, slot, head, block)..][..row], sketches)?;
                out[self.radius_at(geometry, blocks, slot, head, block)..][..4].copy_from_slice(&radius.to_le_bytes());
            }
            if let Some(at) = self.crc_at(geometry, blocks, slot, head).filter(|_| blocks > 0) {
                let mut crc = crc32c::crc32c(&out[self.mean_at(geometry, blocks, slot, head, 0)..][..blocks * row]);
                if let (Form::Sketches, Some(group)) = (self, group) {
                    let at = |group: usize| self.sketches_at(geometry, tokens, group, 0);
                    crc = crc32c::crc32c_append(crc, &out[at(group)..at(group + 1)]);
                }
                out[at..][..4].copy_from_slice(&crc.to_le_bytes());
            }
        }
        Ok(out)
    }

    /// Encodes a mean key into `row` and leaves in `mean` what was kept of it; `room` is scratch.
    pub fn encode(self, geometry: &Geometry, mean: &mut [f32], room: &mut Vec<u8>, row: &mut [u8]) {
        let ty = self.row_type(geometry);
        if self != Form::Floats {
            mean.iter_mut().for_each(|x| *x = x.clamp(-LARGEST, LARGEST));
        }
        room.clear();
        // Lengths fit: both follow from the geometry.
        if quantise(ty, mean, room).is_ok() && room.len() == row.len() {
            row.copy_from_slice(room);
            let _ = dequantise(ty, row, mean);
        }
    }
}

/// Groups of sketches.
fn sketched_groups(geometry: &Geometry) -> usize {
    geometry.sketched.len() * geometry.heads()
}

/// The index of one layer slot over all blocks, as floats. It is loaded from the segments when it is first asked for, and kept up by
/// appends and refreshes from then on; a commit does not change it, because blocks keep their numbers.
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
    pub fn push(&mut self, geometry: &Geometry, form: Form, slot: usize, block: &Block) {
        for head in 0..geometry.heads() {
            let (mean, radius) = block.summary(geometry, slot, head);
            self.take(geometry, form, mean, radius);
        }
    }

    fn take(&mut self, geometry: &Geometry, form: Form, row: &[u8], radius: f32) {
        let start = self.means.len();
        self.means.resize(start + geometry.length(Side::Keys), 0.0);
        let _ = dequantise(form.row_type(geometry), row, &mut self.means[start..]);
        self.radii.push(radius);
    }

    /// Appends the index of the committed segments from number `first` on.
    pub fn load(&mut self, geometry: &Geometry, store: &Store, slot: usize, first: usize) -> Result<()> {
        let form = store.form();
        for segment in store.segments.iter().skip(first) {
            let blocks = segment.layout.blocks;
            self.reserve(geometry, blocks)?;
            let bytes = store.section(segment, Section::Index)?;
            for (block, head) in (0..blocks).flat_map(|block| (0..geometry.heads()).map(move |head| (block, head))) {
                let mean = &bytes[form.mean_at(geometry, blocks, slot, head, block)..][..form.row_bytes(geometry)];
                let radius = &bytes[form.radius_at(geometry, blocks, slot, head, block)..];
                let radius = radius.first_chunk().map_or(0.0, |b| f32::from_le_bytes(*b));
                self.take(geometry, form, mean, radius);
            }
        }
        Ok(())
    }
}
