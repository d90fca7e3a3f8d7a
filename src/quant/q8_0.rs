//! Q8_0: 32 elements in 34 bytes: d, i8 qs[32]; value = d * q.

use super::{Block, Codes, Sink, f16, inverse, put_f16};
use crate::gguf::TensorType;
use crate::simd::{I8, Rows, Simd, quad};

/// See the module.
pub struct Q8_0;

impl Block for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    const LEN: usize = 32;
    const BYTES: usize = 34;
    type Shape = Codes<I8, 0, false, false>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let d = f16(block, 0);
        for (o, q) in out.iter_mut().zip(&block[2..]) {
            *o = d * f32::from(*q as i8);
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        let d = put_f16(block, 0, super::fit::extreme(values).abs() / 127.0);
        let id = inverse(d);
        // Rounds to nearest, ties to even, what is far below 2^22, without the call that older targets need for it.
        const ROUND: f32 = 12_582_912.0;
        for (q, v) in block[2..].iter_mut().zip(values) {
            *q = ((v * id + ROUND) - ROUND).clamp(-127.0, 127.0) as i8 as u8;
        }
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let (d, zero) = (s.rows_f16(rows, at), s.splat(0.0));
        let (lo, hi) = (s.rows_quad(rows, at + 2), s.rows_quad(rows, at + 18));
        sink.take(quad!(I => s.signed(lo[I])), quad!(I => s.signed(hi[I])), [d; 2], [zero; 2]);
    }
}
