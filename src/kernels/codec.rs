//! How keys and values are encoded, in the local window and in memory alike: little-endian, element by element.
//!
//! bf16 rounds to nearest, ties to even (spec of the FoT reference, section 11); f16 as IEEE 754 says.

use crate::simd::Simd;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Encoding of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// 32-bit floats, as computed.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
}

impl Codec {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Codec::F32 => 4,
            Codec::F16 | Codec::Bf16 => 2,
        }
    }

    /// Bytes of an encoded row of `len` elements.
    pub const fn row_bytes(self, len: usize) -> usize {
        len * self.bytes()
    }

    /// True if `x` is finite and stays so when it is stored.
    #[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
    pub fn holds(self, x: f32) -> bool {
        match self {
            Codec::F32 => x.is_finite(),
            // Half way between the largest half, 65504, and the power of two above it: from there on it rounds to infinity.
            Codec::F16 => x.abs() < 65520.0,
            Codec::Bf16 => x.abs().to_bits() < 0x7f7f_8000,
        }
    }

    /// The name users type: `f32`, `f16`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::F32 => "f32",
            Codec::F16 => "f16",
            Codec::Bf16 => "bf16",
        }
    }

    /// The codec with this name.
    #[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
    pub fn from_name(name: &str) -> Option<Codec> {
        [Codec::F32, Codec::F16, Codec::Bf16].into_iter().find(|c| c.name() == name)
    }

    /// Appends the encoding of `values` to `out`.
    pub fn append(self, values: &[f32], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + values.len() * self.bytes(), 0);
        self.encode(values, &mut out[start..]);
    }

    /// Encodes `values` over `out`, which has exactly the bytes for them.
    pub fn encode(self, values: &[f32], out: &mut [u8]) {
        debug_assert_eq!(out.len(), values.len() * self.bytes());
        match self {
            Codec::F32 => {
                for (o, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *o = v.to_le_bytes();
                }
            }
            Codec::F16 => {
                // Through a small buffer, so that the conversion runs on whole vectors where the CPU has them.
                let mut half = [f16::ZERO; 64];
                for (o, v) in out.chunks_mut(128).zip(values.chunks(64)) {
                    half[..v.len()].convert_from_f32_slice(v);
                    for (o, h) in o.as_chunks_mut::<2>().0.iter_mut().zip(&half) {
                        *o = h.to_le_bytes();
                    }
                }
            }
            Codec::Bf16 => {
                for (o, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *o = bf16::from_f32(*v).to_le_bytes();
                }
            }
        }
    }

    /// Decodes `bytes` into `out`, which has as many elements as `bytes` encodes.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), out.len() * self.bytes());
        match self {
            Codec::F32 => {
                for (b, o) in bytes.as_chunks::<4>().0.iter().zip(out) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Codec::F16 => {
                let mut half = [f16::ZERO; 64];
                for (b, o) in bytes.chunks(128).zip(out.chunks_mut(64)) {
                    for (b, h) in b.as_chunks::<2>().0.iter().zip(&mut half) {
                        *h = f16::from_le_bytes(*b);
                    }
                    half[..o.len()].convert_to_f32_slice(o);
                }
            }
            Codec::Bf16 => {
                for (b, o) in bytes.as_chunks::<2>().0.iter().zip(out) {
                    *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
        }
    }
}

/// A codec as a type, for kernels written in the vocabulary.
pub(super) trait Encoding {
    /// Bytes of an element.
    const BYTES: usize;
    /// `LANES` elements from the front of `bytes`.
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F;
    /// Element `j` of the `4 / BYTES` in every 32-bit lane.
    fn lane<S: Simd>(s: S, words: S::V, j: usize) -> S::F;
}

/// [`Codec::F32`]
pub(super) struct F32;
/// [`Codec::F16`]
pub(super) struct F16;
/// [`Codec::Bf16`]
pub(super) struct Bf16;

impl Encoding for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_f32(bytes)
    }
    #[inline(always)]
    fn lane<S: Simd>(s: S, words: S::V, _: usize) -> S::F {
        s.as_floats(words)
    }
}

impl Encoding for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_f16(bytes)
    }
    #[inline(always)]
    fn lane<S: Simd>(s: S, words: S::V, j: usize) -> S::F {
        s.f16_lanes(if j == 0 { s.and(words, s.splat32(0xffff)) } else { s.shr32(words, 16) })
    }
}

impl Encoding for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_bf16(bytes)
    }
    #[inline(always)]
    fn lane<S: Simd>(s: S, words: S::V, j: usize) -> S::F {
        s.as_floats(if j == 0 { s.shl32(words, 16) } else { s.and(words, s.splat32(0xffff_0000_u32 as i32)) })
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
