//! Q3_K: 256 elements in 110 bytes: hmask[32], qs[64], scales[12], d. Per 128 elements 32 bytes of qs, two bits for each of
//! four 32s; bit j of hmask[i] is the third bit of element i of the j-th 32; per 16 elements a scale of six bits, 32 above its
//! value (four bits in scales[0..8], two in scales[8..12]); value = d * scale * (q - 4).

use super::{Block, Codes, Sink, f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U4, quad};

/// See the module.
pub struct Q3K;

impl Block for Q3K {
    const TYPE: TensorType = TensorType::Q3_K;
    const LEN: usize = 256;
    const BYTES: usize = 110;
    type Shape = Codes<U4, 4, true, false>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let (d, packed) = (f16(block, 108), &block[96..108]);
        for (e, o) in out.iter_mut().enumerate() {
            let n = e / 16;
            let scale = packed[n % 8] >> (4 * (n / 8)) & 15 | (packed[8 + n % 4] >> (2 * (n / 4)) & 3) << 4;
            let q = block[32 + 32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32)) & 3 | (block[e % 32] >> (e / 32) & 1) << 2;
            *o = d * f32::from(scale as i8 - 32) * f32::from(q as i8 - 4);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let (d, zero) = (s.rows_f16(rows, at + 108), s.splat(0.0));
        let (a, b, c) = (s.rows_u32(rows, at + 96), s.rows_u32(rows, at + 100), s.rows_u32(rows, at + 104));
        let (four, two, third) = (s.splat8(15), s.splat8(3), s.splat8(4));
        let six = |low: S::V, high: S::V| s.or(s.and(low, four), s.shl16(s.and(high, two), 4));
        // Word n holds the scales 4 n .. 4 n + 4.
        let words = [six(a, c), six(b, s.shr16(c, 2)), six(s.shr16(a, 4), s.shr16(c, 4)), six(s.shr16(b, 4), s.shr16(c, 6))];
        let (mut ha, mut hb) = (s.rows_quad(rows, at), s.rows_quad(rows, at + 16));
        for half in 0..2 {
            let (a, b) = (s.rows_quad(rows, at + 32 + 32 * half), s.rows_quad(rows, at + 48 + 32 * half));
            // Not a loop: the shifts and the byte of a scale are to be constants.
            quad!(J => {
                let word = words[2 * half + J / 2];
                let scale = |i: u32| s.mul(d, s.to_f(s.add32(s.byte_u(word, J as u32 % 2 * 2 + i), s.splat32(-32))));
                let to_third = |h| match J {
                    0 => s.shl16(h, 2),
                    1 => s.shl16(h, 1),
                    2 => h,
                    _ => s.shr16(h, 1),
                };
                let lo = quad!(I => s.or(s.and(s.shr16(a[I], 2 * J as u32), two), s.and(to_third(ha[I]), third)));
                let hi = quad!(I => s.or(s.and(s.shr16(b[I], 2 * J as u32), two), s.and(to_third(hb[I]), third)));
                sink.take(lo, hi, [scale(0), scale(1)], [zero; 2]);
            });
            (ha, hb) = (quad!(I => s.shr16(ha[I], 4)), quad!(I => s.shr16(hb[I], 4)));
        }
    }
}
