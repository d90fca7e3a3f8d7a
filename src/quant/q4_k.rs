//! Q4_K: 256 elements in 144 bytes: d, dmin, scales[12], qs[128]. Per 64 elements 32 bytes, low nibbles first; per 32 elements
//! a scale and a min of six bits; value = d * scale * q - dmin * min.

use super::{Block, Codes, Sink, code, f16, fit, inverse, put_f16};
use crate::gguf::TensorType;
use crate::simd::{Rows, Simd, U4, quad};

/// See the module.
pub struct Q4K;

impl Block for Q4K {
    const TYPE: TensorType = TensorType::Q4_K;
    const LEN: usize = 256;
    const BYTES: usize = 144;
    type Shape = Codes<U4, 0, false, true>;

    fn decode(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (f16(block, 0), f16(block, 2));
        for (j, out) in out.chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_min(&block[4..16], j);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            for (i, o) in out.iter_mut().enumerate() {
                *o = scale * f32::from(block[16 + 32 * (j / 2) + i] >> (4 * (j % 2)) & 15) - min;
            }
        }
    }

    fn encode(values: &[f32], block: &mut [u8]) -> bool {
        let codes = encode_scales(values, 15, block);
        for (j, codes) in codes.chunks_exact(32).enumerate() {
            for (i, c) in codes.iter().enumerate() {
                let byte = &mut block[16 + 32 * (j / 2) + i];
                *byte = if j % 2 == 0 { *c } else { *byte | c << 4 };
            }
        }
        true
    }

    #[inline(always)]
    fn unpack<S: Simd, K: Sink<S>>(s: S, rows: &Rows<'_>, at: usize, sink: &mut K) {
        let head = Head::read(s, rows, at);
        let mask = s.splat8(15);
        for j in 0..4 {
            let (a, b) = (s.rows_quad(rows, at + 16 + 32 * j), s.rows_quad(rows, at + 32 + 32 * j));
            let (scale, shift) = head.get(s, 2 * j);
            sink.take(quad!(I => s.and(a[I], mask)), quad!(I => s.and(b[I], mask)), [scale; 2], [shift; 2]);
            let (scale, shift) = head.get(s, 2 * j + 1);
            let lo = quad!(I => s.and(s.shr16(a[I], 4), mask));
            sink.take(lo, quad!(I => s.and(s.shr16(b[I], 4), mask)), [scale; 2], [shift; 2]);
        }
    }
}

/// Scale and min number `j` of the twelve packed bytes.
pub(super) fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// Fits scales and mins of eight times 32 values, writes the first 16 bytes of the block, and gives back the codes.
pub(super) fn encode_scales(values: &[f32], max: u8, block: &mut [u8]) -> [u8; 256] {
    let mut fits = [(0.0, 0.0); 8];
    for (fit, values) in fits.iter_mut().zip(values.chunks_exact(32)) {
        *fit = fit::affine(values, max);
    }
    let top = fits.iter().fold((0f32, 0f32), |t, f| (t.0.max(f.0), t.1.max(f.1)));
    let (d, dmin) = (put_f16(block, 0, top.0 / 63.0), put_f16(block, 2, top.1 / 63.0));
    let (id, idmin) = (inverse(d), inverse(dmin));
    let mut codes = [0; 256];
    for (j, (values, codes)) in values.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        let (scale, min) = (code(fits[j].0 * id, 63), code(fits[j].1 * idmin, 63));
        let packed = &mut block[4..16];
        if j < 4 {
            (packed[j], packed[j + 4]) = (scale, min);
        } else {
            packed[j + 4] = scale & 15 | min << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= min >> 4 << 6;
        }
        let (iscale, min) = (inverse(d * f32::from(scale)), dmin * f32::from(min));
        for (c, v) in codes.iter_mut().zip(values) {
            *c = code((v + min) * iscale, max);
        }
    }
    codes
}

/// The first 16 bytes of a block, for `LANES` rows: eight scales and mins, a byte each in two vectors of lanes.
pub(super) struct Head<S: Simd> {
    d: S::F,
    minus_dmin: S::F,
    scales: [S::V; 2],
    mins: [S::V; 2],
}

impl<S: Simd> Head<S> {
    #[inline(always)]
    pub(super) fn read(s: S, rows: &Rows<'_>, at: usize) -> Head<S> {
        let [dm, a, b, c] = s.transpose(s.rows_quad(rows, at));
        let (six, four, two) = (s.splat8(63), s.splat8(15), s.splat8(3));
        let high = |v: S::V| s.shl16(s.and(s.shr16(v, 6), two), 4);
        Head {
            d: s.f16_lanes(s.and(dm, s.splat32(0xffff))),
            minus_dmin: s.sub(s.splat(0.0), s.f16_lanes(s.shr32(dm, 16))),
            scales: [s.and(a, six), s.or(s.and(c, four), high(a))],
            mins: [s.and(b, six), s.or(s.and(s.shr16(c, 4), four), high(b))],
        }
    }

    /// Scale and shift number `j`.
    #[inline(always)]
    pub(super) fn get(&self, s: S, j: usize) -> (S::F, S::F) {
        let byte = |v: S::V| s.to_f(s.byte_u(v, j as u32 % 4));
        (s.mul(self.d, byte(self.scales[j / 4])), s.mul(self.minus_dmin, byte(self.mins[j / 4])))
    }
}
