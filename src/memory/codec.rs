//! How one row (the key or the value of one token in one head) is stored. The ids stand in files and are never reused.
//!
//! Rows are encoded one by one, so that a later codec may carry a scale per row (K8V4, K4V4 have their ids reserved).

use crate::error::{Error, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Storage type of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// 32-bit floats, exact.
    F32,
    /// IEEE half precision, rounded to nearest, ties to even.
    F16,
    /// bfloat16, rounded to nearest, ties to even: what the FoT reference keeps its memory in.
    Bf16,
}

/// Elements converted at a time, on the stack.
const CHUNK: usize = 64;

impl Codec {
    /// The id in a file. 3 (K8V4) and 4 (K4V4) are reserved.
    pub fn id(self) -> u32 {
        match self {
            Codec::F32 => 0,
            Codec::F16 => 1,
            Codec::Bf16 => 2,
        }
    }

    /// The codec of an id; [`Error::Unsupported`] for one that this build does not know.
    pub fn from_id(id: u32) -> Result<Codec> {
        match id {
            0 => Ok(Codec::F32),
            1 => Ok(Codec::F16),
            2 => Ok(Codec::Bf16),
            _ => Err(Error::Unsupported(format!("memory codec {id} (this build knows F32, F16 and BF16)"))),
        }
    }

    /// Bytes of an encoded row of `len` elements.
    pub fn row_bytes(self, len: usize) -> usize {
        match self {
            Codec::F32 => len * 4,
            Codec::F16 | Codec::Bf16 => len * 2,
        }
    }

    /// True if `x` is finite and stays so when it is stored.
    pub fn holds(self, x: f32) -> bool {
        match self {
            Codec::F32 => x.is_finite(),
            // Half way between the largest half, 65504, and the power of two above it: from there on it rounds to infinity.
            Codec::F16 => x.abs() < 65520.0,
            Codec::Bf16 => x.abs().to_bits() < 0x7f7f_8000,
        }
    }

    /// Encodes a row; `out` is [`Codec::row_bytes`] long.
    pub fn encode(self, row: &[f32], out: &mut [u8]) {
        debug_assert_eq!(out.len(), self.row_bytes(row.len()));
        match self {
            Codec::F32 => {
                for (o, x) in out.as_chunks_mut().0.iter_mut().zip(row) {
                    *o = x.to_le_bytes();
                }
            }
            Codec::F16 => {
                let mut chunk = [f16::ZERO; CHUNK];
                for (out, row) in out.chunks_mut(CHUNK * 2).zip(row.chunks(CHUNK)) {
                    let chunk = &mut chunk[..row.len()];
                    chunk.convert_from_f32_slice(row);
                    for (o, x) in out.as_chunks_mut().0.iter_mut().zip(chunk) {
                        *o = x.to_le_bytes();
                    }
                }
            }
            Codec::Bf16 => {
                for (o, &x) in out.as_chunks_mut().0.iter_mut().zip(row) {
                    *o = bf16::from_f32(x).to_le_bytes();
                }
            }
        }
    }

    /// Decodes a row, or any number of rows that follow each other, as long as `bytes` and `out` have the same number of elements.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), self.row_bytes(out.len()));
        match self {
            Codec::F32 => {
                for (x, &b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *x = f32::from_le_bytes(b);
                }
            }
            Codec::F16 => {
                let mut chunk = [f16::ZERO; CHUNK];
                for (out, bytes) in out.chunks_mut(CHUNK).zip(bytes.chunks(CHUNK * 2)) {
                    let chunk = &mut chunk[..out.len()];
                    for (x, &b) in chunk.iter_mut().zip(bytes.as_chunks().0) {
                        *x = f16::from_le_bytes(b);
                    }
                    chunk.convert_to_f32_slice(out);
                }
            }
            Codec::Bf16 => {
                for (x, &b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *x = bf16::from_le_bytes(b).to_f32();
                }
            }
        }
    }
}
