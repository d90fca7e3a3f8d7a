//! What goes into a memory and what comes out of it: the plain types of its interface.

use super::Codec;
use crate::error::Error;
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

/// The keys or the values of one head in one block, in place: rows of `length` elements, token by token. The first byte stands at
/// a multiple of 64.
#[derive(Clone, Copy, Debug)]
pub struct BlockView<'a> {
    /// The encoded rows, without padding.
    pub bytes: &'a [u8],
    /// How they are encoded.
    pub codec: Codec,
    /// Tokens.
    pub len: usize,
    /// Elements of a row.
    pub length: usize,
}

impl BlockView<'_> {
    /// Decodes all rows; `out` has `len * length` elements.
    pub fn decode(&self, out: &mut [f32]) {
        self.codec.decode(self.bytes, out);
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
