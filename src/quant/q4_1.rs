//! Q4_1: 32 elements in 20 bytes: d, m, qs[16]. Nibbles as in Q4_0; value = d * q + m.

use super::{Block, Codes, Sink, code, f16, inverse, put_f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U4, quad};

/// See the module.
pub struct Q4_1;

impl Block for Q4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
    const LEN: usize = 32;
    const BYTES: usize = 20;
    type Shape = Codes<U4, 0, false, true>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let (d, m) = (f16(block, 0), f16(block, 2));
        for i in 0..16 {
            let q = block[4 + i];
            out[i] = d * f32::from(q & 15) + m;
            out[i + 16] = d * f32::from(q >> 4) + m;
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        let (min, max) = super::fit::range(values);
        let m = put_f16(block, 2, min);
        let d = put_f16(block, 0, (max - m) / 15.0);
        let id = inverse(d);
        for i in 0..16 {
            block[4 + i] = code((values[i] - m) * id, 15) | code((values[i + 16] - m) * id, 15) << 4;
        }
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let head = s.rows_u32(rows, at);
        let (d, m) = (s.f16_lanes(s.and(head, s.splat32(0xffff))), s.f16_lanes(s.shr32(head, 16)));
        let (q, mask) = (s.rows_quad(rows, at + 4), s.splat8(15));
        sink.take(quad!(I => s.and(q[I], mask)), quad!(I => s.and(s.shr16(q[I], 4), mask)), [d; 2], [m; 2]);
    }
}
