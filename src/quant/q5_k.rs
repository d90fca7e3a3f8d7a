//! Q5_K: 256 elements in 176 bytes: d, dmin, scales[12], qh[32], qs[128]. As Q4_K, with bit j of qh[i] the fifth bit of
//! element i of the j-th 32; value = d * scale * q - dmin * min.

use super::q4_k::{Head, encode_scales, scale_min};
use super::{Block, Codes, Sink, f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U6, quad};

/// See the module.
pub struct Q5K;

impl Block for Q5K {
    const TYPE: TensorType = TensorType::Q5_K;
    const LEN: usize = 256;
    const BYTES: usize = 176;
    type Shape = Codes<U6, 0, false, true>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (f16(block, 0), f16(block, 2));
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_min(&block[4..16], j);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            for (i, o) in out.iter_mut().enumerate() {
                let q = block[48 + 32 * (j / 2) + i] >> (4 * (j % 2)) & 15 | (block[16 + i] >> j & 1) << 4;
                *o = scale * f32::from(q) - min;
            }
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        let codes = encode_scales(values, 31, block);
        for (j, codes) in codes.chunks_exact(32).enumerate() {
            for (i, c) in codes.iter().enumerate() {
                block[48 + 32 * (j / 2) + i] |= (c & 15) << (4 * (j % 2));
                block[16 + i] |= (c >> 4) << j;
            }
        }
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let head = Head::read(s, rows, at);
        let (mask, fifth) = (s.splat8(15), s.splat8(16));
        let (mut ha, mut hb) = (s.rows_quad(rows, at + 16), s.rows_quad(rows, at + 32));
        for j in 0..4 {
            let (a, b) = (s.rows_quad(rows, at + 48 + 32 * j), s.rows_quad(rows, at + 64 + 32 * j));
            let (scale, shift) = head.get(s, 2 * j);
            let lo = quad!(I => s.or(s.and(a[I], mask), s.and(s.shl16(ha[I], 4), fifth)));
            let hi = quad!(I => s.or(s.and(b[I], mask), s.and(s.shl16(hb[I], 4), fifth)));
            sink.take(lo, hi, [scale; 2], [shift; 2]);
            let (scale, shift) = head.get(s, 2 * j + 1);
            let lo = quad!(I => s.or(s.and(s.shr16(a[I], 4), mask), s.and(s.shl16(ha[I], 3), fifth)));
            let hi = quad!(I => s.or(s.and(s.shr16(b[I], 4), mask), s.and(s.shl16(hb[I], 3), fifth)));
            sink.take(lo, hi, [scale; 2], [shift; 2]);
            (ha, hb) = (quad!(I => s.shr16(ha[I], 2)), quad!(I => s.shr16(hb[I], 2)));
        }
    }
}
