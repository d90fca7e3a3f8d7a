//! Q5_0: 32 elements in 22 bytes: d, qh[4], qs[16]. Nibbles as in Q4_0, bit i of qh is the fifth bit of element i;
//! value = d * (q - 16).

use super::{Block, Codes, Sink, code, f16, inverse, put_f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U6, quad};

/// See the module.
pub struct Q5_0;

impl Block for Q5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    const LEN: usize = 32;
    const BYTES: usize = 22;
    type Shape = Codes<U6, 16, false, false>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let d = f16(block, 0);
        for (i, o) in out.iter_mut().enumerate() {
            *o = d * f32::from(five_bits(&block[2..6], &block[6..], i) as i8 - 16);
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        let d = put_f16(block, 0, super::fit::extreme(values) / -16.0);
        let id = inverse(d);
        let (head, qs) = block.split_at_mut(6);
        put_five_bits(&mut head[2..], qs, |i| code(values[i] * id + 16.0, 31));
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let head = s.rows_quad(rows, at);
        let d = s.f16_lanes(s.and(s.transpose(head)[0], s.splat32(0xffff)));
        let (q, mask, fifth, zero) = (s.rows_quad(rows, at + 6), s.splat8(15), s.splat8(16), s.splat(0.0));
        let lo = quad!(I => s.or(s.and(q[I], mask), s.and(s.spread_bits(head[I], 2), fifth)));
        let hi = quad!(I => s.or(s.and(s.shr16(q[I], 4), mask), s.and(s.spread_bits(head[I], 4), fifth)));
        sink.take(lo, hi, [d; 2], [zero; 2]);
    }
}

/// Code `i` of a block with nibbles `qs` and fifth bits `qh`.
pub(super) fn five_bits(qh: &[u8], qs: &[u8], i: usize) -> u8 {
    let nibble = if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 };
    nibble | (qh[i / 8] >> (i % 8) & 1) << 4
}

/// Stores 32 codes of five bits.
pub(super) fn put_five_bits(qh: &mut [u8], qs: &mut [u8], code: impl Fn(usize) -> u8) {
    let mut bits = 0u32;
    for (i, q) in qs.iter_mut().enumerate() {
        let (lo, hi) = (code(i), code(i + 16));
        *q = (lo & 15) | (hi & 15) << 4;
        bits |= u32::from(lo >> 4) << i | u32::from(hi >> 4) << (i + 16);
    }
    qh.copy_from_slice(&bits.to_le_bytes());
}
