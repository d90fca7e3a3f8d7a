//! The forms that files of version 1 have had. A file keeps the one it was created in, in all of its segments; a new one, a compacted one
//! too, has the present one. Which it is stands in the superblock's features.

use super::Geometry;
use super::geometry::{PAGE_BYTES, Side};

/// The unit of a disk: what a power cut damages is never less, and never more than the sectors that were being written.
const SECTOR_BYTES: usize = 512;

/// What a file looks like where the geometry does not say it, in the order in which these came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The index is, for each layer slot, mean keys as f32 `[block][head]`, then radii `[block][head]`. Extents are padded to pages.
    Floats,
    /// The index has CRC32C of each group of codes `[layer slot][head]`, radii `[layer slot][head][block]`, codes of the mean keys
    /// `[layer slot][head][block]`; sketches `[layer slot][head][block]`, if the geometry says so.
    Codes,
    /// As [`Form::Codes`], and extents are padded to sectors: a block of codes often fills no page.
    Sectors,
    /// As [`Form::Sectors`], but only the layers that the geometry says have mean keys, radii and sketches; and the checksums of the groups stand
    /// behind the mean keys, before the sketches: each is that of a group's mean keys and its sketches, which a search reads together.
    Sketches,
}

impl Form {
    /// That of what lies in RAM, and in the snapshots of sessions.
    pub const RAM: Form = Form::Codes;

    /// Bytes of an extent of `len` tokens, padding included: extents start at multiples of what they are padded to.
    pub fn extent_bytes(self, geometry: &Geometry, len: usize) -> usize {
        let unit = if matches!(self, Form::Sectors | Form::Sketches) { SECTOR_BYTES } else { PAGE_BYTES };
        geometry.run_offset(Side::Values, geometry.heads(), len).next_multiple_of(unit)
    }
}
