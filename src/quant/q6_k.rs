//! Q6_K: 256 elements in 210 bytes: ql[128], qh[64], i8 scales[16], d. Per 128 elements 64 bytes of ql (low nibbles are the
//! first 64 elements, high nibbles the second) and 32 bytes of qh (two bits for each of four 32s); a scale per 16 elements;
//! value = d * scale * (q - 32).

use super::{Block, Codes, LongSink, Sink, code, f16, fit, inverse, put_f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U6, quad};

/// See the module.
pub struct Q6K;

const QH: usize = 128;
const SCALES: usize = 192;
const D: usize = 208;

impl Block for Q6K {
    const TYPE: TensorType = TensorType::Q6_K;
    const LEN: usize = 256;
    const BYTES: usize = 210;
    type Shape = Codes<U6, 32, true, false>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let d = f16(block, D);
        for (e, o) in out.iter_mut().enumerate() {
            let (ql, qh) = place(e);
            let q = block[ql.0] >> ql.1 & 15 | (block[qh.0] >> qh.1 & 3) << 4;
            *o = d * f32::from(block[SCALES + e / 16] as i8) * f32::from(q as i8 - 32);
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        let mut fits = [0f32; 16];
        for (fit, values) in fits.iter_mut().zip(values.chunks_exact(16)) {
            *fit = fit::symmetric(values, 32);
        }
        // The largest scale takes the code -128: one more than +127 can say.
        let d = put_f16(block, D, fit::extreme(&fits) / -128.0);
        for (e, v) in values.iter().enumerate() {
            let scale = (fits[e / 16] * inverse(d)).round_ties_even().clamp(-128.0, 127.0) as i8;
            block[SCALES + e / 16] = scale as u8;
            let q = code(v * inverse(d * f32::from(scale)) + 32.0, 63);
            let (ql, qh) = place(e);
            block[ql.0] |= (q & 15) << ql.1;
            block[qh.0] |= (q >> 4) << qh.1;
        }
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let (scales, zero) = (Scales::read(s, rows, at), s.splat(0.0));
        let (nibble, top) = (s.splat8(15), s.splat8(48));
        for half in 0..2 {
            let (ql, qh) = (at + 64 * half, at + QH + 32 * half);
            let h = [s.rows_quad(rows, qh), s.rows_quad(rows, qh + 16)];
            let q = [[s.rows_quad(rows, ql), s.rows_quad(rows, ql + 16)], [s.rows_quad(rows, ql + 32), s.rows_quad(rows, ql + 48)]];
            // Not a loop: the shifts are to be constants.
            quad!(J => {
                let spread = |v: S::V| match J {
                    0 => s.shl16(v, 4),
                    1 => s.shl16(v, 2),
                    2 => v,
                    _ => s.shr16(v, 2),
                };
                let two = |v: S::V| s.and(spread(v), top);
                let four = |v: S::V| s.and(if J < 2 { v } else { s.shr16(v, 4) }, nibble);
                let [a, b] = q[J % 2];
                let lo = quad!(I => s.or(four(a[I]), two(h[0][I])));
                let hi = quad!(I => s.or(four(b[I]), two(h[1][I])));
                sink.take(lo, hi, scales.get(s, 4 * half + J), [zero; 2]);
            });
        }
    }

    const LONG: bool = true;

    #[inline(always)]
    fn unpack_long<S: Simd, K: LongSink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let scales = Scales::read(s, rows, at);
        for half in 0..2 {
            let (ql, qh) = (at + 64 * half, at + QH + 32 * half);
            let dots = quad!(G => {
                let codes = quad!(I => long_codes(s, rows, 4 * G + I, ql, qh));
                sink.dots(quad!(I => codes[I][0]), quad!(I => codes[I][1]))
            });
            sink.join(dots, quad!(J => scales.get(s, 4 * half + J)));
        }
    }
}

/// The codes of 128 elements of a row.
#[inline(always)]
fn long_codes<S: Simd>(s: S, rows: &Rows<'_>, row: usize, ql: usize, qh: usize) -> [S::V; 2] {
    let (nibble, top) = (s.splat8(15), s.splat8(48));
    let (l, h) = (s.load_bytes(rows.row(row, ql, 64)), s.load_twice(rows.row(row, qh, 32)));
    let first = s.or(s.and(l, nibble), s.and(s.shl16_halves(h, [4, 2]), top));
    [first, s.or(s.and(s.shr16(l, 4), nibble), s.and(s.shr16_halves(h, [0, 2]), top))]
}

/// The scales of a block of `LANES` rows.
struct Scales<S: Simd> {
    d: S::F,
    bytes: [S::V; 4],
}

impl<S: Simd> Scales<S> {
    #[inline(always)]
    fn read(s: S, rows: &Rows<'_>, at: usize) -> Scales<S> {
        Scales { d: s.rows_f16(rows, at + D), bytes: s.transpose(s.rows_quad(rows, at + SCALES)) }
    }

    /// Those of both halves of the 32 elements number `j`.
    #[inline(always)]
    fn get(&self, s: S, j: usize) -> [S::F; 2] {
        let scale = |i: u32| s.mul(self.d, s.to_f(s.byte_i(self.bytes[j / 2], j as u32 % 2 * 2 + i)));
        [scale(0), scale(1)]
    }
}

/// Byte and shift of the low four and of the high two bits of element `e`.
fn place(e: usize) -> ((usize, usize), (usize, usize)) {
    let (half, j, i) = (e / 128, e % 128 / 32, e % 32);
    ((64 * half + 32 * (j % 2) + i, 4 * (j / 2)), (QH + 32 * half + i, 2 * j))
}
