//! The shape of a memory: which layers it holds, how long a key and a value are, how many tokens make a block; and the
//! arithmetic that follows from it. Everything about offsets inside a block is derived here, nowhere stored.
//!
//! An *extent* is one block of one layer: the keys of every head, then the values of every head. A *run* is one head's part of
//! it, `[token][dimension]` or tiles of sixteen tokens, and starts at a multiple of 64 bytes; how an
//! extent is padded is the file's form (`form.rs`).

use super::Codec;
use crate::bytes::ALIGNMENT;
use crate::error::{Error, Result};
use crate::kernels::sketch;
use crate::kernels::tiles::{TILE_TOKENS, TileLayout};

/// The unit of the format. Not the page of the system, which may be larger.
pub const PAGE_BYTES: usize = 4096;

const LAYERS_MAX: usize = 512;
const LAYER_INDEX_MAX: u32 = 1 << 16;
const HEADS_MAX: u32 = 1 << 10;
const LENGTH_MAX: u32 = 1 << 12;
const BLOCK_TOKENS_MAX: u32 = 1 << 12;
const EXTENT_BYTES_MAX: u64 = 64 << 20;
/// All layers of one block: what a writer has to allocate at once.
const BLOCK_BYTES_MAX: u64 = 1 << 30;

/// The shape of a memory. Fixed when it is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The model's layers that are stored, 0-based and strictly increasing. A *layer slot* is an index into this list.
    pub layers: Vec<u32>,
    /// Key/value heads, the same number in all stored layers.
    pub head_count_kv: u32,
    /// Elements of a key.
    pub key_length: u32,
    /// Elements of a value.
    pub value_length: u32,
    /// Tokens in a full block (32 is a good start).
    pub block_tokens: u32,
    /// How keys and values are stored.
    pub codec: Codec,
    /// Of these layers, strictly increasing: the ones of which a file keeps a sketch of every key, from which the few that a query may want
    /// are found without reading the others.
    pub sketched: Vec<u32>,
}

/// Where the two halves of a block's rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The unrotated keys.
    Keys,
    /// The values.
    Values,
}

impl Geometry {
    /// What is wrong with it, as (field, expected, found); `Ok` if nothing is, and then none of the sizes below can overflow.
    pub(super) fn check(&self) -> std::result::Result<(), (&'static str, String, String)> {
        let range = |field, value: u32, max: u32| {
            if (1..=max).contains(&value) { Ok(()) } else { Err((field, format!("1 to {max}"), value.to_string())) }
        };
        if self.layers.is_empty() || self.layers.len() > LAYERS_MAX {
            return Err(("layers", format!("1 to {LAYERS_MAX} layers"), self.layers.len().to_string()));
        }
        if let Some(w) = self.layers.windows(2).find(|w| w[0] >= w[1]) {
            return Err(("layers", "strictly increasing".into(), format!("{} before {}", w[0], w[1])));
        }
        if let Some(l) = self.layers.iter().find(|l| **l >= LAYER_INDEX_MAX) {
            return Err(("layers", format!("layers below {LAYER_INDEX_MAX}"), l.to_string()));
        }
        if !self.sketched.is_sorted_by(|a, b| a < b) || self.sketched.iter().any(|layer| self.layer_slot(*layer).is_none()) {
            return Err(("sketched", format!("some of the layers {:?}, strictly increasing", self.layers), format!("{:?}", self.sketched)));
        }
        range("head_count_kv", self.head_count_kv, HEADS_MAX)?;
        range("key_length", self.key_length, LENGTH_MAX)?;
        range("value_length", self.value_length, LENGTH_MAX)?;
        range("block_tokens", self.block_tokens, BLOCK_TOKENS_MAX)?;
        for (field, side) in [("key_length", Side::Keys), ("value_length", Side::Values)] {
            if self.codec.of(side).check(self.length(side)).is_err() {
                let found = format!("{} with codec {}", self.length(side), self.codec);
                return Err((field, "a multiple of 32, at most 1024, where rows are quantised".into(), found));
            }
        }
        // 2^12 tokens x 2^10 heads x 2^13 elements x 4 bytes stays below 2^38.
        let elements = u64::from(self.head_count_kv) * u64::from(self.key_length + self.value_length);
        let extent = elements * 4 * u64::from(self.block_tokens);
        if extent > EXTENT_BYTES_MAX || extent * self.layers.len() as u64 > BLOCK_BYTES_MAX {
            return Err((
                "block_tokens",
                format!("a block of at most {EXTENT_BYTES_MAX} bytes a layer and {BLOCK_BYTES_MAX} bytes in all, as F32"),
                format!("{extent} bytes in each of {} layers", self.layers.len()),
            ));
        }
        Ok(())
    }

    /// [`Error::Argument`] unless every field is inside its range.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(|(name, expected, found)| Error::Argument { name, expected, found })
    }

    /// Number of layer slots.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// The slot of a model's layer, if it is stored.
    pub fn layer_slot(&self, layer: u32) -> Option<usize> {
        self.layers.binary_search(&layer).ok()
    }

    /// Which of the layers with sketches a slot is, if it is one.
    pub(super) fn sketched_slot(&self, slot: usize) -> Option<usize> {
        self.layers.get(slot).and_then(|layer| self.sketched.binary_search(layer).ok())
    }

    /// Key/value heads.
    pub fn heads(&self) -> usize {
        self.head_count_kv as usize
    }

    /// Elements of a row of that side.
    pub fn length(&self, side: Side) -> usize {
        match side {
            Side::Keys => self.key_length as usize,
            Side::Values => self.value_length as usize,
        }
    }

    /// Bytes of one encoded row of that side: its share of a tile, where rows are quantised.
    pub fn row_bytes(&self, side: Side) -> usize {
        self.codec.of(side).row_bytes(self.length(side))
    }

    /// What the tiles of a quantised codec look like; `None` if rows stand one after the other.
    pub fn tiles(&self) -> Option<TileLayout> {
        let (keys, values) = (self.codec.of(Side::Keys), self.codec.of(Side::Values));
        let (key_length, value_length) = (self.length(Side::Keys), self.length(Side::Values));
        self.codec.is_quantised().then_some(TileLayout { keys, values, key_length, value_length })
    }

    /// Bytes of the run of `len` tokens: tiles are whole.
    pub(super) fn run_bytes(&self, side: Side, len: usize) -> usize {
        let rows = if self.codec.is_quantised() { len.next_multiple_of(TILE_TOKENS) } else { len };
        self.row_bytes(side) * rows
    }

    /// Bytes from one head's run to the next one's, in an extent of `len` tokens.
    pub(super) fn run_stride(&self, side: Side, len: usize) -> usize {
        self.run_bytes(side, len).next_multiple_of(ALIGNMENT)
    }

    /// Where a head's run starts in an extent of `len` tokens.
    pub(super) fn run_offset(&self, side: Side, head: usize, len: usize) -> usize {
        match side {
            Side::Keys => head * self.run_stride(side, len),
            Side::Values => self.heads() * self.run_stride(Side::Keys, len) + head * self.run_stride(side, len),
        }
    }

    /// Bytes of the sketches of one head's keys in a block of `len` tokens.
    pub(super) fn sketch_bytes(&self, len: usize) -> usize {
        sketch::bytes(self.length(Side::Keys), len)
    }

    /// Tokens in a full block.
    pub(super) fn block_len(&self) -> usize {
        self.block_tokens as usize
    }
}

/// Says which model a memory belongs to: keys and values of another model would be noise. The caller decides what it covers (the
/// weights of the memory layers, the tokenizer, the RoPE layout of the keys).
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Name of the architecture, at most 32 bytes, no NUL.
    pub architecture: String,
    /// A hash that the caller computed.
    pub hash: [u8; 32],
}

/// Bytes that the architecture's name takes in a file.
pub(super) const ARCHITECTURE_BYTES: usize = 32;

impl Fingerprint {
    /// [`Error::Argument`] if the name does not fit.
    pub fn validate(&self) -> Result<()> {
        if self.architecture.len() > ARCHITECTURE_BYTES || self.architecture.contains('\0') {
            let expected = format!("at most {ARCHITECTURE_BYTES} bytes without NUL");
            return Err(Error::argument("fingerprint.architecture", expected, format!("{:?}", self.architecture)));
        }
        Ok(())
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.architecture)?;
        self.hash.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}
