//! IQ4_XS: 256 elements in 136 bytes: d, u16 scales_h, scales_l[4], qs[128]. Per 32 elements 16 bytes of nibbles into the
//! levels of IQ4_NL and a scale of six bits (four in scales_l, two in scales_h), 32 above its value; value = d * scale * level.

use super::iq4_nl::{LEVELS, levels};
use super::{Block, Codes, Sink, f16};
use crate::gguf::TensorType;
use crate::simd::{I8, Rows, Simd};

/// See the module.
pub struct Iq4Xs;

impl Block for Iq4Xs {
    const TYPE: TensorType = TensorType::IQ4_XS;
    const LEN: usize = 256;
    const BYTES: usize = 136;
    type Shape = Codes<I8, 0, false, false>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let (d, high) = (f16(block, 0), u16::from_le_bytes([block[2], block[3]]));
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
            let scale = d * f32::from((low | ((high >> (2 * j) & 3) as u8) << 4) as i8 - 32);
            for i in 0..16 {
                let q = block[8 + 16 * j + i];
                out[i] = scale * f32::from(LEVELS[usize::from(q & 15)]);
                out[i + 16] = scale * f32::from(LEVELS[usize::from(q >> 4)]);
            }
        }
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let head = s.rows_u32(rows, at);
        let (d, high, low) = (s.f16_lanes(s.and(head, s.splat32(0xffff))), s.shr32(head, 16), s.rows_u32(rows, at + 4));
        let zero = s.splat(0.0);
        for j in 0..8 {
            let four = s.and(s.shr32(low, 4 * j), s.splat32(15));
            let two = s.shl32(s.and(s.shr32(high, 2 * j), s.splat32(3)), 4);
            let scale = s.mul(d, s.to_f(s.add32(s.or(four, two), s.splat32(-32))));
            let (lo, hi) = levels(s, s.rows_quad(rows, at + 8 + 16 * j as usize));
            sink.take(lo, hi, [scale; 2], [zero; 2]);
        }
    }
}
