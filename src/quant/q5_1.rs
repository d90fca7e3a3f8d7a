//! Q5_1: 32 elements in 24 bytes: d, m, qh[4], qs[16]. Codes as in Q5_0; value = d * q + m.

use super::q5_0::{five_bits, put_five_bits};
use super::{Block, Codes, Sink, code, f16, inverse, put_f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U6, quad};

/// See the module.
pub struct Q5_1;

impl Block for Q5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    const LEN: usize = 32;
    const BYTES: usize = 24;
    type Shape = Codes<U6, 0, false, true>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let (d, m) = (f16(block, 0), f16(block, 2));
        for (i, o) in out.iter_mut().enumerate() {
            *o = d * f32::from(five_bits(&block[4..8], &block[8..], i)) + m;
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        let (min, max) = super::fit::range(values);
        let m = put_f16(block, 2, min);
        let d = put_f16(block, 0, (max - m) / 31.0);
        let id = inverse(d);
        let (head, qs) = block.split_at_mut(8);
        put_five_bits(&mut head[4..], qs, |i| code((values[i] - m) * id, 31));
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let head = s.rows_quad(rows, at);
        let dm = s.transpose(head)[0];
        let (d, m) = (s.f16_lanes(s.and(dm, s.splat32(0xffff))), s.f16_lanes(s.shr32(dm, 16)));
        let (q, mask, fifth) = (s.rows_quad(rows, at + 8), s.splat8(15), s.splat8(16));
        let lo = quad!(I => s.or(s.and(q[I], mask), s.and(s.spread_bits(head[I], 4), fifth)));
        let hi = quad!(I => s.or(s.and(s.shr16(q[I], 4), mask), s.and(s.spread_bits(head[I], 6), fifth)));
        sink.take(lo, hi, [d; 2], [m; 2]);
    }
}
