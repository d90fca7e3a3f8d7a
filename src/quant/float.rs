//! F32, F16 and BF16: elements that are floats by themselves.

use super::Float;
use crate::gguf::TensorType;
use crate::simd::Simd;

/// IEEE binary32.
pub struct F32;
/// IEEE binary16.
pub struct F16;
/// The upper half of a binary32.
pub struct BF16;

impl Float for F32 {
    const TYPE: TensorType = TensorType::F32;
    const BYTES: usize = 4;
    fn decode(b: &[u8]) -> f32 {
        f32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
    fn encode(value: f32, out: &mut Vec<u8>) {
        out.extend_from_slice(&value.to_le_bytes());
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_f32(bytes)
    }
}

impl Float for F16 {
    const TYPE: TensorType = TensorType::F16;
    const BYTES: usize = 2;
    fn decode(b: &[u8]) -> f32 {
        half::f16::from_le_bytes([b[0], b[1]]).to_f32()
    }
    fn encode(value: f32, out: &mut Vec<u8>) {
        out.extend_from_slice(&half::f16::from_f32(value).to_le_bytes());
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_f16(bytes)
    }
}

impl Float for BF16 {
    const TYPE: TensorType = TensorType::BF16;
    const BYTES: usize = 2;
    fn decode(b: &[u8]) -> f32 {
        half::bf16::from_le_bytes([b[0], b[1]]).to_f32()
    }
    fn encode(value: f32, out: &mut Vec<u8>) {
        out.extend_from_slice(&half::bf16::from_f32(value).to_le_bytes());
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_bf16(bytes)
    }
}
