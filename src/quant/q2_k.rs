//! Q2_K: 256 elements in 84 bytes: scales[16], qs[64], d, dmin. Per 128 elements 32 bytes, two bits for each of four 32s; per
//! 16 elements a byte with a scale (low four bits) and a min (high four); value = d * scale * q - dmin * min.

use super::{Block, Codes, Sink, f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U4, quad};

/// See the module.
pub struct Q2K;

impl Block for Q2K {
    const TYPE: TensorType = TensorType::Q2_K;
    const LEN: usize = 256;
    const BYTES: usize = 84;
    type Shape = Codes<U4, 0, true, true>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (f16(block, 80), f16(block, 82));
        for (e, o) in out.iter_mut().enumerate() {
            let scale = block[e / 16];
            let q = block[16 + 32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32)) & 3;
            *o = d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let dm = s.rows_u32(rows, at + 80);
        let d = s.f16_lanes(s.and(dm, s.splat32(0xffff)));
        let minus_dmin = s.sub(s.splat(0.0), s.f16_lanes(s.shr32(dm, 16)));
        let packed = s.transpose(s.rows_quad(rows, at));
        let (four, two) = (s.splat8(15), s.splat8(3));
        for half in 0..2 {
            let (a, b) = (s.rows_quad(rows, at + 16 + 32 * half), s.rows_quad(rows, at + 32 + 32 * half));
            // Not a loop: the shifts and the byte of a scale are to be constants.
            quad!(J => {
                let word = packed[2 * half + J / 2];
                let (scales, mins) = (s.and(word, four), s.and(s.shr16(word, 4), four));
                let scale = |i: u32| s.mul(d, s.to_f(s.byte_u(scales, J as u32 % 2 * 2 + i)));
                let shift = |i: u32| s.mul(minus_dmin, s.to_f(s.byte_u(mins, J as u32 % 2 * 2 + i)));
                let lo = quad!(I => s.and(s.shr16(a[I], 2 * J as u32), two));
                let hi = quad!(I => s.and(s.shr16(b[I], 2 * J as u32), two));
                sink.take(lo, hi, [scale(0), scale(1)], [shift(0), shift(1)]);
            });
        }
    }
}
