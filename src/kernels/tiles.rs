//! How the local window, and the quantised codecs of a memory, lay out keys and values: in tiles of sixteen tokens, so that attention
//! reads them as they lie.
//!
//! A tile of one KV head is a sequence of *planes*, each with an equal share of every token, tokens in order:
//!
//! - keys: a plane per element, so that the lanes of a vector are tokens and scores need no sums across lanes;
//! - values: one plane with each token's row, filled with zeros up to a whole number of sixteen elements.
//!
//! The quantised types take 32 elements at a time, a block: an f16 scale and 32 codes.
//!
//! - keys, per block: a plane of scales, then planes of four bytes. `Q8_0`: eight, byte `i` of plane `g` is element `4 g + i`, signed.
//!   `Q4`: four, the low half of byte `i` of plane `g` is element `4 g + i`, the high half element `4 g + i + 16`, each plus 8.
//! - values: a plane of scales per block, then one plane with each token's codes. `Q8_0`: a byte per element, plus 128. `Q4`: 16 bytes
//!   per block, the low half of byte `i` is element `i`, the high half element `i + 16`, each plus 8.
//!
//! `Q4` holds what comes out of a Hadamard rotation (`hadamard.rs`), which spreads large elements over all.
//!
//! Invariant: what a tile holds of a token depends on that token alone, so tokens may be written one by one and in any order,
//! and a tile's unused places may hold anything.

use super::codec::Codec;
use super::hadamard::hadamard;
use crate::error::{Error, Result};
use half::f16;

/// Tokens of a tile.
pub const TILE_TOKENS: usize = 16;
/// Elements of a block of a quantised type.
pub const BLOCK: usize = 32;
/// Longest key or value of a quantised type.
const QUANTISED_LENGTH_MAX: usize = 1024;
/// Bytes of a plane of scales.
pub(super) const SCALES: usize = 2 * TILE_TOKENS;

/// What the local window keeps keys and values as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit floats, as computed.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// 8 bits and a scale per 32 elements: 8.5 bits an element.
    Q8_0,
    /// 4 bits and a scale per 32 elements, rotated: 4.5 bits an element.
    Q4,
}

impl KvType {
    /// All there are.
    pub const ALL: [KvType; 5] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8_0, KvType::Q4];

    /// The name users type.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::Q8_0 => "q8_0",
            KvType::Q4 => "q4",
        }
    }

    /// The type with this name.
    pub fn from_name(name: &str) -> Option<KvType> {
        KvType::ALL.into_iter().find(|t| t.name() == name)
    }

    /// The encoding of single elements; quantised types have none.
    pub const fn codec(self) -> Option<Codec> {
        match self {
            KvType::F32 => Some(Codec::F32),
            KvType::F16 => Some(Codec::F16),
            KvType::Bf16 => Some(Codec::Bf16),
            KvType::Q8_0 | KvType::Q4 => None,
        }
    }

    /// True if keys and values are rotated before they are stored.
    pub const fn is_rotated(self) -> bool {
        matches!(self, KvType::Q4)
    }

    /// Bytes of the codes of a block of a quantised type; 0 for others.
    const fn code_bytes(self) -> usize {
        match self {
            KvType::Q8_0 => BLOCK,
            KvType::Q4 => BLOCK / 2,
            _ => 0,
        }
    }

    /// Bytes of a row of `length` elements, scales included.
    pub const fn row_bytes(self, length: usize) -> usize {
        match self.codec() {
            Some(codec) => codec.row_bytes(length),
            None => length / BLOCK * (2 + self.code_bytes()),
        }
    }

    /// # Errors
    /// [`Error::Unsupported`] if heads of this size cannot be stored.
    pub fn check(self, head_size: usize) -> Result<()> {
        let fits = head_size.is_multiple_of(BLOCK) && head_size <= QUANTISED_LENGTH_MAX;
        if self.codec().is_some() || fits {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "keys and values of type {} with a head size of {head_size} (it must be a multiple of {BLOCK}, at most {QUANTISED_LENGTH_MAX})",
            self.name()
        )))
    }
}

impl From<Codec> for KvType {
    fn from(codec: Codec) -> KvType {
        match codec {
            Codec::F32 => KvType::F32,
            Codec::F16 => KvType::F16,
            Codec::Bf16 => KvType::Bf16,
        }
    }
}

/// Sizes of a tile of one KV head.
#[derive(Clone, Copy, Debug)]
pub struct TileLayout {
    /// What keys are kept as.
    pub keys: KvType,
    /// What values are kept as.
    pub values: KvType,
    /// Elements of a key.
    pub key_length: usize,
    /// Elements of a value.
    pub value_length: usize,
}

impl TileLayout {
    /// Elements of a value's row, zeros included.
    pub const fn value_width(&self) -> usize {
        self.value_length.next_multiple_of(TILE_TOKENS)
    }

    /// Bytes of the keys of a tile; the values follow.
    pub const fn key_bytes(&self) -> usize {
        TILE_TOKENS * self.keys.row_bytes(self.key_length)
    }

    /// Bytes of the values of a tile.
    pub const fn value_bytes(&self) -> usize {
        TILE_TOKENS * self.values.row_bytes(self.value_width())
    }

    /// Bytes of a tile.
    pub const fn bytes(&self) -> usize {
        self.key_bytes() + self.value_bytes()
    }

    /// Writes the key and the value of token `slot` of `tile`.
    pub fn put(&self, tile: &mut [u8], slot: usize, key: &[f32], value: &[f32]) {
        let (keys, values) = tile.split_at_mut(self.key_bytes());
        self.put_key(keys, slot, key);
        self.put_value(values, slot, value);
    }

    /// Writes the key of token `slot` into a tile's keys.
    pub fn put_key(&self, keys: &mut [u8], slot: usize, key: &[f32]) {
        debug_assert!(slot < TILE_TOKENS && key.len() == self.key_length);
        let Some(codec) = self.keys.codec() else {
            let bytes = self.keys.code_bytes();
            let signed = if self.keys == KvType::Q8_0 { 128 } else { 0 };
            each_block(self.keys, key, |b, scale, codes| {
                let planes = &mut keys[b * (SCALES + TILE_TOKENS * bytes)..][..SCALES + TILE_TOKENS * bytes];
                planes[2 * slot..][..2].copy_from_slice(&scale.to_le_bytes());
                for (plane, codes) in planes[SCALES..].as_chunks_mut::<{ 4 * TILE_TOKENS }>().0.iter_mut().zip(codes.as_chunks::<4>().0) {
                    plane[4 * slot..][..4].copy_from_slice(&codes.map(|c| c ^ signed));
                }
            });
            return;
        };
        put_key(codec, keys, slot, key);
    }

    /// Writes the value of token `slot` into a tile's values.
    pub fn put_value(&self, values: &mut [u8], slot: usize, value: &[f32]) {
        debug_assert!(slot < TILE_TOKENS && value.len() == self.value_length);
        let Some(codec) = self.values.codec() else {
            let bytes = self.values.code_bytes();
            let (scales, rows) = values.split_at_mut(value.len() / BLOCK * SCALES);
            let row = &mut rows[slot * value.len() / BLOCK * bytes..][..value.len() / BLOCK * bytes];
            each_block(self.values, value, |b, scale, codes| {
                scales[b * SCALES + 2 * slot..][..2].copy_from_slice(&scale.to_le_bytes());
                row[b * bytes..][..bytes].copy_from_slice(&codes[..bytes]);
            });
            return;
        };
        let each = codec.bytes();
        let row = &mut values[slot * self.value_width() * each..][..self.value_width() * each];
        let (row, rest) = row.split_at_mut(self.value_length * each);
        codec.encode(value, row);
        rest.fill(0);
    }

    /// Reads the key and the value of token `slot` of `tile`.
    pub fn get(&self, tile: &[u8], slot: usize, key: &mut [f32], value: &mut [f32]) {
        let (keys, values) = tile.split_at(self.key_bytes());
        self.get_key(keys, slot, key);
        self.get_value(values, slot, value);
    }

    /// Reads the key of token `slot` from a tile's keys, as it was before any rotation.
    pub fn get_key(&self, keys: &[u8], slot: usize, key: &mut [f32]) {
        let Some(codec) = self.keys.codec() else {
            let bytes = self.keys.code_bytes();
            let signed = if self.keys == KvType::Q8_0 { 128 } else { 0 };
            for (planes, out) in keys.chunks_exact(SCALES + TILE_TOKENS * bytes).zip(key.as_chunks_mut::<BLOCK>().0) {
                let mut codes = [0; BLOCK];
                for (plane, codes) in planes[SCALES..].as_chunks::<{ 4 * TILE_TOKENS }>().0.iter().zip(codes.as_chunks_mut::<4>().0) {
                    codes.copy_from_slice(&plane[4 * slot..][..4]);
                    *codes = codes.map(|c| c ^ signed);
                }
                decode_block(self.keys, &planes[2 * slot..], &codes, out);
            }
            if self.keys.is_rotated() {
                hadamard(key);
            }
            return;
        };
        get_key(codec, keys, slot, key);
    }

    /// Reads the value of token `slot` from a tile's values, as it was before any rotation.
    pub fn get_value(&self, values: &[u8], slot: usize, value: &mut [f32]) {
        let Some(codec) = self.values.codec() else {
            let bytes = self.values.code_bytes();
            let blocks = value.len() / BLOCK;
            let (scales, rows) = values.split_at(blocks * SCALES);
            let row = rows[slot * blocks * bytes..].chunks_exact(bytes);
            for ((scales, codes), out) in scales.chunks_exact(SCALES).zip(row).zip(value.as_chunks_mut::<BLOCK>().0) {
                decode_block(self.values, &scales[2 * slot..], codes, out);
            }
            if self.values.is_rotated() {
                hadamard(value);
            }
            return;
        };
        let each = codec.bytes();
        codec.decode(&values[slot * self.value_width() * each..][..self.value_length * each], value);
    }

    /// Moves the token at `from`, as (first byte of its tile, slot), to `to`, which lies before it.
    pub fn shift(&self, tiles: &mut [u8], from: (usize, usize), to: (usize, usize)) {
        let mut plane = 0;
        let mut copy = |planes: usize, share: usize| {
            for _ in 0..planes {
                let source = from.0 + plane + from.1 * share;
                tiles.copy_within(source..source + share, to.0 + plane + to.1 * share);
                plane += TILE_TOKENS * share;
            }
        };
        match self.keys.codec() {
            Some(codec) => copy(self.key_length, codec.bytes()),
            None => {
                for _ in 0..self.key_length / BLOCK {
                    copy(1, 2);
                    copy(self.keys.code_bytes() / 4, 4);
                }
            }
        }
        match self.values.codec() {
            Some(codec) => copy(1, codec.row_bytes(self.value_width())),
            None => {
                copy(self.value_length / BLOCK, 2);
                copy(1, self.value_length / BLOCK * self.values.code_bytes());
            }
        }
    }
}

/// Quantises a key or a value: calls `put` with every block's number, scale and codes (of `Q8_0` plus 128).
fn each_block(kv: KvType, x: &[f32], mut put: impl FnMut(usize, f16, &[u8; BLOCK])) {
    let mut rotated = [0.0; QUANTISED_LENGTH_MAX];
    let x = if kv.is_rotated() {
        let rotated = &mut rotated[..x.len()];
        rotated.copy_from_slice(x);
        hadamard(rotated);
        rotated
    } else {
        x
    };
    for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let (scale, codes) = if kv == KvType::Q8_0 { quantise8(x) } else { quantise4(x) };
        put(b, scale, &codes);
    }
}

/// From the bytes of a scale on, and the codes of a block as values have them.
fn decode_block(kv: KvType, scale: &[u8], codes: &[u8], out: &mut [f32; BLOCK]) {
    let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
    if kv == KvType::Q8_0 {
        return out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * (f32::from(*code) - 128.0));
    }
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        (*low, *high) = (scale * (f32::from(code & 15) - 8.0), scale * (f32::from(code >> 4) - 8.0));
    }
}

/// The scale of a block whose codes reach `steps`, and its inverse. Not a number where the block is not finite, so that it shows.
fn scale_of(x: &[f32; BLOCK], extreme: f32, steps: f32) -> (f16, f32) {
    let scale = if x.iter().all(|x| x.is_finite()) { f16::from_f32(extreme / steps) } else { f16::NAN };
    (scale, if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() })
}

/// `x` to the nearest whole number, to the even one of two, for less than 2^22 and not for more: as [`f32::round_ties_even`], which is a
/// call where the CPU is not known to have an instruction.
fn nearest(x: f32) -> f32 {
    const ONES: f32 = 12_582_912.0; // 1.5 * 2^23: its last bit counts ones
    (x + ONES) - ONES
}

/// Codes plus 128 in -127 ..= 127.
fn quantise8(x: &[f32; BLOCK]) -> (f16, [u8; BLOCK]) {
    let (scale, inverse) = scale_of(x, x.iter().fold(0f32, |m, x| m.max(x.abs())), 127.0);
    (scale, x.map(|x| (nearest(x * inverse).clamp(-127.0, 127.0) as i8 as u8) ^ 128))
}

/// Codes plus 8 in -8 ..= 7, two to a byte: the element of the largest magnitude gets -8, whatever its sign.
fn quantise4(x: &[f32; BLOCK]) -> (f16, [u8; BLOCK]) {
    let extreme = x.iter().fold(0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
    let (scale, inverse) = scale_of(x, extreme, -8.0);
    let code = |x: f32| (nearest(x * inverse).clamp(-8.0, 7.0) + 8.0) as u8;
    let mut codes = [0; BLOCK];
    for i in 0..BLOCK / 2 {
        codes[i] = code(x[i]) | code(x[i + BLOCK / 2]) << 4;
    }
    (scale, codes)
}

/// Elements of a key that are encoded at once.
const PIECE: usize = 64;

fn put_key(codec: Codec, keys: &mut [u8], slot: usize, key: &[f32]) {
    let each = codec.bytes();
    let mut encoded = [0; 4 * PIECE];
    for (key, planes) in key.chunks(PIECE).zip(keys.chunks_mut(PIECE * TILE_TOKENS * each)) {
        let encoded = &mut encoded[..key.len() * each];
        codec.encode(key, encoded);
        match each {
            2 => scatter::<2>(encoded, planes, slot),
            _ => scatter::<4>(encoded, planes, slot),
        }
    }
}

fn get_key(codec: Codec, keys: &[u8], slot: usize, key: &mut [f32]) {
    let each = codec.bytes();
    let mut encoded = [0; 4 * PIECE];
    for (key, planes) in key.chunks_mut(PIECE).zip(keys.chunks(PIECE * TILE_TOKENS * each)) {
        let encoded = &mut encoded[..key.len() * each];
        for (element, plane) in encoded.chunks_exact_mut(each).zip(planes.chunks_exact(TILE_TOKENS * each)) {
            element.copy_from_slice(&plane[slot * each..][..each]);
        }
        codec.decode(encoded, key);
    }
}

/// Writes elements of `N` bytes to place `slot` of consecutive planes.
fn scatter<const N: usize>(elements: &[u8], planes: &mut [u8], slot: usize) {
    let places = planes.as_chunks_mut::<N>().0;
    for (element, plane) in elements.as_chunks::<N>().0.iter().zip(places.chunks_exact_mut(TILE_TOKENS)) {
        plane[slot] = *element;
    }
}
