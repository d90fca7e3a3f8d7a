//! Q4_0: 32 elements in 18 bytes: d, qs[16]. Low nibbles are elements 0 to 15, high nibbles 16 to 31; value = d * (q - 8).

use super::{Block, Codes, Sink, code, f16, inverse, put_f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U4, quad};

/// See the module.
pub struct Q4_0;

impl Block for Q4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    const LEN: usize = 32;
    const BYTES: usize = 18;
    type Shape = Codes<U4, 8, false, false>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let d = f16(block, 0);
        for i in 0..16 {
            let q = block[2 + i];
            out[i] = d * f32::from((q & 15) as i8 - 8);
            out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        // The extreme value gets the code 0 (-8): the only one of that magnitude.
        let d = put_f16(block, 0, super::fit::extreme(values) / -8.0);
        let id = inverse(d);
        for i in 0..16 {
            block[2 + i] = code(values[i] * id + 8.0, 15) | code(values[i + 16] * id + 8.0, 15) << 4;
        }
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let d = s.rows_f16(rows, at);
        let (q, mask, zero) = (s.rows_quad(rows, at + 2), s.splat8(15), s.splat(0.0));
        sink.take(quad!(I => s.and(q[I], mask)), quad!(I => s.and(s.shr16(q[I], 4), mask)), [d; 2], [zero; 2]);
    }
}
