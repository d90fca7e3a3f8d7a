//! What goes into a memory and what comes out of it: the plain types of its interface.

use super::{Codec, Side};
use crate::error::Error;
use crate::kernels::attention::Entries;
use crate::kernels::tiles::{TILE_TOKENS, TileLayout};
use std::ops::Range;

/// What a handle may do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Append and commit; one handle at a time.
    Write,
    /// Read what is committed; any number of handles.
    Read,
}

/// Keys and values of one layer slot, as they are appended.
#[derive(Clone, Copy, Debug)]
pub struct LayerKv<'a> {
    /// Unrotated keys, `(tokens, head_count_kv, key_length)`.
    pub keys: &'a [f32],
    /// Values, `(tokens, head_count_kv, value_length)`.
    pub values: &'a [f32],
}

/// Where appended tokens come from, so that an answer can cite it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// For example a file's name; at most 4096 bytes.
    pub label: &'a str,
    /// The bytes of the source that these tokens are.
    pub text: Range<u64>,
}

/// Tokens that come from one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpan {
    /// The source's label.
    pub label: String,
    /// The tokens, as indices into the memory.
    pub tokens: Range<u64>,
    /// The bytes of the source that they cover.
    pub text: Range<u64>,
}

/// The tokens of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSpan {
    /// Index of its first token.
    pub first_token: u64,
    /// Number of tokens, at least 1 and at most [`Geometry::block_tokens`](super::Geometry::block_tokens).
    pub len: usize,
}

/// The keys or the values of one head in one block, in place: rows of `length` elements, token by token, or tiles of sixteen tokens.
/// The first byte of a whole block stands at a multiple of 64.
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a> {
    /// The encoded rows, without padding; or tiles, the last one whole.
    pub bytes: &'a [u8],
    /// How they are encoded.
    pub codec: Codec,
    /// Whether these are keys or values.
    pub side: Side,
    /// Tokens.
    pub len: usize,
    /// Elements of a row.
    pub length: usize,
}

impl<'a> BlockView<'a> {
    /// Decodes all rows; `out` has `len * length` elements. What a codec has rotated is turned back.
    pub fn decode(&self, out: &mut [f32]) {
        let kv = self.codec.of(self.side);
        if let Some(codec) = kv.codec() {
            return codec.decode(self.bytes, out);
        }
        let layout = TileLayout { keys: kv, values: kv, key_length: self.length, value_length: self.length };
        let tile_bytes = TILE_TOKENS * kv.row_bytes(self.length);
        for (tile, rows) in self.bytes.chunks_exact(tile_bytes).zip(out.chunks_mut(TILE_TOKENS * self.length)) {
            for (slot, row) in rows.chunks_exact_mut(self.length).enumerate() {
                match self.side {
                    Side::Keys => layout.get_key(tile, slot, row),
                    Side::Values => layout.get_value(tile, slot, row),
                }
            }
        }
    }

    /// Some of the tokens; where they lie in tiles, from the tile of the first to that of the last.
    ///
    /// # Panics
    /// If there are no such tokens.
    pub fn part(&self, tokens: Range<usize>) -> BlockView<'a> {
        assert!(tokens.start < tokens.end && tokens.end <= self.len, "tokens {tokens:?} of {}", self.len);
        let row_bytes = self.codec.of(self.side).row_bytes(self.length);
        if !self.codec.is_quantised() {
            return BlockView { bytes: &self.bytes[tokens.start * row_bytes..tokens.end * row_bytes], len: tokens.len(), ..*self };
        }
        let (start, end) = (tokens.start / TILE_TOKENS * TILE_TOKENS, tokens.end.next_multiple_of(TILE_TOKENS));
        BlockView { bytes: &self.bytes[start * row_bytes..end * row_bytes], len: end.min(self.len) - start, ..*self }
    }

    /// These keys and the `values` of the same head and block, as attention reads them.
    pub fn entries(&self, values: &BlockView<'a>) -> Entries<'a> {
        let (keys, value_length) = (self, values.length);
        let (key_type, value_type) = (keys.codec.of(Side::Keys), values.codec.of(Side::Values));
        if let Some(codec) = key_type.codec() {
            let (key_stride, value_stride) = (keys.length, value_length);
            return Entries::Rows { codec, keys: keys.bytes, values: values.bytes, key_stride, value_stride };
        }
        let layout = TileLayout { keys: key_type, values: value_type, key_length: keys.length, value_length };
        let (key_stride, value_stride) = (layout.key_bytes(), layout.value_bytes());
        Entries::Tiles { layout, keys: keys.bytes, values: values.bytes, key_stride, value_stride }
    }
}

/// A part of a memory file that does not match its checksum.
#[derive(Debug)]
pub struct Damage {
    /// The blocks that it touches.
    pub blocks: Range<usize>,
    /// The layer slot whose keys and values are bad; `None` if it is tokens, sources or the index of these blocks.
    pub layer_slot: Option<usize>,
    /// [`Error::Corrupt`] with the offset.
    pub error: Error,
}

/// Sizes of a memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens, committed or not.
    pub tokens: u64,
    /// Durable tokens.
    pub committed_tokens: u64,
    /// Tokens that are forgotten: they still count above.
    pub forgotten_tokens: u64,
    /// Blocks that this handle found damaged and does not read any more.
    pub dropped_blocks: usize,
    /// Lists of token ids, or of sources, of a commit which this handle found damaged and does without.
    pub damaged_sections: usize,
    /// Pages of the chain of commits that were damaged when this handle followed it: what most of them held follows from the rest.
    pub damaged_pages: usize,
    /// Tokens that cannot be read because pages of their commits are damaged and do not follow from the rest. They still count above.
    pub lost_tokens: u64,
    /// Blocks, committed or not.
    pub blocks: usize,
    /// Commits.
    pub commits: u64,
    /// Bytes of the file that commits take.
    pub file_bytes: u64,
    /// Bytes of the file that are mapped (not: resident) at present.
    pub mapped_bytes: u64,
    /// Number of maps.
    pub maps: usize,
    /// Bytes of blocks in RAM which are not committed, and of the loaded index.
    pub ram_bytes: u64,
}
