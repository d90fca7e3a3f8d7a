//! Weight formats: what a block of bytes means, one file per format, and the register of those this build can compute with.
//!
//! A block format says three things: its plain meaning ([`Block::decode`], the reference), how to make one
//! ([`Block::encode`]), and how to unpack a block of `LANES` rows at once in the words of [`Simd`] ([`Block::unpack`]).
//! Unpacking brings every format to one shape, so that one mat-vec and one mat-mat serve them all: per 32 elements, codes of
//! one kind with a scale per 32 (or per 16, if `HALVES`) and, if `SHIFTS`, an additive term:
//!
//! > value = scale * (code - OFFSET) + shift
//!
//! Layouts: the GGUF type table (little-endian; d and m are f16). Any bytes are a valid block; scales may be NaN or infinite.

mod fit;
mod float;
mod iq4_nl;
mod iq4_xs;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

use crate::error::{Error, Result};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd};

/// The register: one line per format.
macro_rules! formats {
    (blocks: [$($block:path,)*] floats: [$($float:path,)*]) => {
        /// Calls `visitor` with the format of `ty`; `None` if this build cannot compute with it.
        pub fn visit<V: Visitor>(ty: TensorType, visitor: V) -> Option<V::Out> {
            match ty {
                $(t if t == <$block as Block>::TYPE => Some(visitor.block::<$block>()),)*
                $(t if t == <$float as Float>::TYPE => Some(visitor.float::<$float>()),)*
                _ => None,
            }
        }
    };
}
formats! {
    blocks: [
        q4_0::Q4_0,
        q4_1::Q4_1,
        q5_0::Q5_0,
        q5_1::Q5_1,
        q8_0::Q8_0,
        q2_k::Q2K,
        q3_k::Q3K,
        q4_k::Q4K,
        q5_k::Q5K,
        q6_k::Q6K,
        iq4_nl::Iq4Nl,
        iq4_xs::Iq4Xs,
    ]
    floats: [
        float::F32,
        float::F16,
        float::BF16,
    ]
}

/// What a format looks like once it is unpacked: all that the products have to know about it.
pub trait Shape: 'static {
    /// The kind of the codes: `simd::{U4, U6, I8}`.
    const CODE: u8;
    /// What the codes stand above the value; 0 or a power of two.
    const OFFSET: i32;
    /// A scale (and shift) for every 16 elements instead of 32.
    const HALVES: bool;
    /// There is an additive term.
    const SHIFTS: bool;
}

/// The [`Shape`] with these properties.
pub struct Codes<const CODE: u8, const OFFSET: i32, const HALVES: bool, const SHIFTS: bool>;

impl<const CODE: u8, const OFFSET: i32, const HALVES: bool, const SHIFTS: bool> Shape for Codes<CODE, OFFSET, HALVES, SHIFTS> {
    const CODE: u8 = CODE;
    const OFFSET: i32 = OFFSET;
    const HALVES: bool = HALVES;
    const SHIFTS: bool = SHIFTS;
}

/// A format of blocks with integer codes.
pub trait Block: 'static {
    /// Its id and geometry.
    const TYPE: TensorType;
    /// Elements of a block: 32 or 256.
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// What unpacking gives.
    type Shape: Shape;

    /// The plain meaning of one block: `BYTES` bytes to `LEN` values.
    fn decode(block: &[u8], out: &mut [f32]);

    /// Makes a block from `LEN` values; false if this build cannot write the format.
    fn encode(_values: &[f32], _block: &mut [u8]) -> bool {
        false
    }

    /// Unpacks the block at byte `at` of every row, 32 elements at a time in order. `#[inline(always)]`.
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K);

    /// Whether there is [`Block::unpack_long`].
    const LONG: bool = false;

    /// As [`Block::unpack`], but with codes as 64 bytes of one row at a time give them, for mat-vec where `Simd::LONG`. Blocks of 256
    /// elements with `HALVES` only. `#[inline(always)]`.
    fn unpack_long<S: Simd, K: LongSink<S>>(_s: S, _rows: &Rows<'_>, _at: usize, _sink: &mut K) {
        unreachable!("LONG is false")
    }
}

/// Takes unpacked blocks: 32 elements of `LANES` rows at a time.
pub trait Sink<S: Simd> {
    /// `lo` holds the codes of elements 0 to 15, `hi` of 16 to 31, as quads of rows; scales and shifts of both halves (equal
    /// ones unless the format has `HALVES`; zero shifts unless it has `SHIFTS`). `#[inline(always)]`.
    fn take(&mut self, lo: [S::V; 4], hi: [S::V; 4], scale: [S::F; 2], shift: [S::F; 2]);
}

/// Takes 128 elements of `LANES` rows at a time, in the order of the rows' bytes.
pub trait LongSink<S: Simd> {
    /// The dots of four rows; vector `i` of `first` holds the codes of elements 0 to 63 of row `i`, of `second` those of 64 to 127.
    /// `#[inline(always)]`.
    fn dots(&mut self, first: [S::V; 4], second: [S::V; 4]) -> [S::V; 2];
    /// Adds these dots of all rows to their sums, with the scales of both halves of each 32 elements. `#[inline(always)]`.
    fn join(&mut self, dots: [[S::V; 2]; 4], scales: [[S::F; 2]; 4]);
}

/// A format whose elements are floats by themselves.
pub trait Float: 'static {
    /// Its id.
    const TYPE: TensorType;
    /// Bytes of an element.
    const BYTES: usize;
    /// One element.
    fn decode(bytes: &[u8]) -> f32;
    /// Appends one element.
    fn encode(value: f32, out: &mut Vec<u8>);
    /// `LANES` elements. `#[inline(always)]`.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F;
}

/// A computation that is generic over the format; see [`visit`].
pub trait Visitor {
    /// What it gives.
    type Out;
    /// For block formats.
    fn block<B: Block>(self) -> Self::Out;
    /// For float formats.
    fn float<F: Float>(self) -> Self::Out;
}

/// True if matrices of this type can be computed with.
pub fn is_supported(ty: TensorType) -> bool {
    struct Yes;
    impl Visitor for Yes {
        type Out = ();
        fn block<B: Block>(self) {}
        fn float<F: Float>(self) {}
    }
    visit(ty, Yes).is_some()
}

/// Decodes `bytes` to `out.len()` values.
///
/// # Errors
/// [`Error::Unsupported`] for a type without a decoder, [`Error::Mismatch`] if the bytes do not hold exactly that many values.
pub fn dequantise(ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    struct Decode<'a>(&'a [u8], &'a mut [f32]);
    impl Visitor for Decode<'_> {
        type Out = ();
        fn block<B: Block>(self) {
            for (block, out) in self.0.chunks_exact(B::BYTES).zip(self.1.chunks_exact_mut(B::LEN)) {
                B::decode(block, out);
            }
        }
        fn float<F: Float>(self) {
            for (bytes, out) in self.0.chunks_exact(F::BYTES).zip(self.1) {
                *out = F::decode(bytes);
            }
        }
    }
    let need = ty.row_bytes(out.len());
    if need != Some(bytes.len()) {
        let need = need.map_or_else(|| format!("a multiple of {} values", ty.block_len()), |n| format!("{n} bytes"));
        return Err(Error::mismatch(format!("{} values of {ty}", out.len()), need, format!("{} bytes", bytes.len())));
    }
    visit(ty, Decode(bytes, out)).ok_or_else(|| unsupported(ty))
}

/// Encodes `values`, appending to `out`.
///
/// # Errors
/// [`Error::Unsupported`] for a type without an encoder, [`Error::Mismatch`] if blocks do not divide the values.
pub fn quantise(ty: TensorType, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    struct Encode<'a>(&'a [f32], &'a mut Vec<u8>);
    impl Visitor for Encode<'_> {
        type Out = bool;
        fn block<B: Block>(self) -> bool {
            let start = self.1.len();
            self.1.resize(start + self.0.len() / B::LEN * B::BYTES, 0);
            let blocks = self.1[start..].chunks_exact_mut(B::BYTES);
            self.0.chunks_exact(B::LEN).zip(blocks).all(|(values, block)| B::encode(values, block))
        }
        fn float<F: Float>(self) -> bool {
            self.0.iter().for_each(|v| F::encode(*v, self.1));
            true
        }
    }
    if ty.row_bytes(values.len()).is_none() {
        return Err(Error::mismatch(format!("values for {ty}"), format!("a multiple of {}", ty.block_len()), values.len()));
    }
    let start = out.len();
    if visit(ty, Encode(values, out)) == Some(true) {
        return Ok(());
    }
    out.truncate(start);
    Err(Error::Unsupported(format!("writing tensors of type {ty}")))
}

pub(crate) fn unsupported(ty: TensorType) -> Error {
    Error::Unsupported(format!("computing with tensors of type {ty}"))
}

/// The f16 at byte `at`.
fn f16(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Writes an f16 at byte `at` and gives back what a reader will see.
fn put_f16(bytes: &mut [u8], at: usize, v: f32) -> f32 {
    let h = half::f16::from_f32(v);
    bytes[at..at + 2].copy_from_slice(&h.to_le_bytes());
    h.to_f32()
}

/// `1 / v`, or 0 where that is not a number to multiply with.
fn inverse(v: f32) -> f32 {
    let i = 1.0 / v;
    if i.is_finite() { i } else { 0.0 }
}

/// `v` to the nearest code of `0..=max`; what is not a number becomes 0.
fn code(v: f32, max: u8) -> u8 {
    (v.round_ties_even() as i32).clamp(0, i32::from(max)) as u8
}
