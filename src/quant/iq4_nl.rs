//! IQ4_NL: 32 elements in 18 bytes: d, qs[16]. Nibbles as in Q4_0 choose from a table of uneven levels; value = d * table[q].

use super::{Block, Codes, Sink, f16, inverse, put_f16};
use crate::gguf::TensorType;
use crate::simd::{I8, Rows, Simd, quad};

/// The sixteen levels: dense around zero, where weights are.
pub(super) const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// See the module.
pub struct Iq4Nl;

impl Block for Iq4Nl {
    const TYPE: TensorType = TensorType::IQ4_NL;
    const LEN: usize = 32;
    const BYTES: usize = 18;
    type Shape = Codes<I8, 0, false, false>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let d = f16(block, 0);
        for i in 0..16 {
            let q = block[2 + i];
            out[i] = d * f32::from(LEVELS[usize::from(q & 15)]);
            out[i + 16] = d * f32::from(LEVELS[usize::from(q >> 4)]);
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        let d = put_f16(block, 0, super::fit::extreme(values) / -127.0);
        let id = inverse(d);
        let nearest = |v: f32| (0..16u8).min_by(|a, b| distance(v * id, *a).total_cmp(&distance(v * id, *b))).unwrap_or(8);
        for i in 0..16 {
            block[2 + i] = nearest(values[i]) | nearest(values[i + 16]) << 4;
        }
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let (d, zero) = (s.rows_f16(rows, at), s.splat(0.0));
        let (lo, hi) = levels(s, s.rows_quad(rows, at + 2));
        sink.take(lo, hi, [d; 2], [zero; 2]);
    }
}

fn distance(v: f32, code: u8) -> f32 {
    (v - f32::from(LEVELS[usize::from(code)])).abs()
}

/// The levels of low and high nibbles, as signed codes.
#[inline(always)]
pub(super) fn levels<S: Simd>(s: S, q: [S::V; 4]) -> ([S::V; 4], [S::V; 4]) {
    let mask = s.splat8(15);
    let lo = quad!(I => s.signed(s.lookup(&LEVELS, s.and(q[I], mask))));
    (lo, quad!(I => s.signed(s.lookup(&LEVELS, s.and(s.shr16(q[I], 4), mask)))))
}
