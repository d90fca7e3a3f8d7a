//! The vocabulary on AArch64: four lanes; with `DOT`, products by `sdot`.
//!
//! | word | instruction | Cortex-A72 | Cortex-A76 |
//! |---|---|---|---|
//! | `dot` (Neon) | smull + smull2 + addp + sadalp | 4 a dword of codes | |
//! | `dot` (DotProd) | sdot by element | - | 3 / 2 per cycle |
//! | `lookup` | tbl | 3 / 2 | 2 / 2 |
//! | `transpose` | trn/zip | 3 / 2 | 2 / 2 |
//! | `f16_lanes` | xtn + fcvtl | 3 + 3 | 3 + 3 |
//!
//! `sdot` has no stable intrinsic: one instruction of inline assembly. Codes of at most six bits and signed codes are both
//! signed bytes here, so all kinds share one product. Without `sdot` two products of signed bytes (2 * 128 * 127 = 32512) fit
//! the 16 bits in which neighbours are added.

use super::{Plain, Rows, Simd, Task, quad};
use std::arch::aarch64::*;

/// The token.
#[derive(Clone, Copy)]
pub struct Neon<const DOT: bool>(());

// SAFETY: vectors of integers and floats have no invalid patterns.
unsafe impl Plain for uint8x16_t {}
// SAFETY: as above.
unsafe impl Plain for float32x4_t {}

/// # Safety
/// The CPU must have Neon.
#[target_feature(enable = "neon")]
pub unsafe fn run_neon<T: Task>(task: T) -> T::Out {
    task.run(Neon::<false>(()))
}

/// # Safety
/// The CPU must have Neon and `sdot`.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn run_dotprod<T: Task>(task: T) -> T::Out {
    task.run(Neon::<true>(()))
}

/// Adds to every lane of `acc` the dot of the four signed bytes there in `w` and `a`.
#[inline(always)]
fn dot4<const DOT: bool>(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: Neon by the token, and `sdot` where `DOT` says so.
    unsafe {
        if DOT {
            let mut acc = acc;
            std::arch::asm!(
                ".arch_extension dotprod",
                "sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b",
                acc = inout(vreg) acc, w = in(vreg) w, a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags)
            );
            acc
        } else {
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
            let high = vmull_high_s8(w, a);
            vpadalq_s16(acc, vpaddq_s16(low, high))
        }
    }
}

#[inline(always)]
fn s8(v: uint8x16_t) -> int8x16_t {
    // SAFETY: Neon by the token.
    unsafe { vreinterpretq_s8_u8(v) }
}

#[inline(always)]
fn s32(v: uint8x16_t) -> int32x4_t {
    // SAFETY: Neon by the token.
    unsafe { vreinterpretq_s32_u8(v) }
}

#[inline(always)]
fn from32(v: int32x4_t) -> uint8x16_t {
    // SAFETY: Neon by the token.
    unsafe { vreinterpretq_u8_s32(v) }
}

/// Sixteen activations.
#[inline(always)]
fn part(a: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 bytes are readable; Neon by the token.
    unsafe { vld1q_s8(a.as_ptr()) }
}

/// Four halves to four floats.
#[inline(always)]
fn half_to_f(v: uint16x4_t) -> float32x4_t {
    // SAFETY: Neon by the token; the conversion is base ARMv8.0.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(v)) }
}

impl<const DOT: bool> Simd for Neon<DOT> {
    type V = uint8x16_t;
    type F = float32x4_t;
    const LANES: usize = 4;
    const SIGNED_BIAS: i32 = 0;
    const TILE_PANELS: usize = 2;

    #[inline(always)]
    fn splat8(self, v: u8) -> uint8x16_t {
        // SAFETY: Neon by the token, here and in every word below.
        unsafe { vdupq_n_u8(v) }
    }
    #[inline(always)]
    fn splat32(self, v: i32) -> uint8x16_t {
        // SAFETY: token.
        unsafe { from32(vdupq_n_s32(v)) }
    }
    #[inline(always)]
    fn and(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: token.
        unsafe { vandq_u8(a, b) }
    }
    #[inline(always)]
    fn or(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: token.
        unsafe { vorrq_u8(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: token.
        unsafe { veorq_u8(a, b) }
    }
    #[inline(always)]
    fn shr16(self, v: uint8x16_t, n: u32) -> uint8x16_t {
        // SAFETY: token.
        unsafe { vreinterpretq_u8_u16(vshlq_u16(vreinterpretq_u16_u8(v), vdupq_n_s16(-(n as i16)))) }
    }
    #[inline(always)]
    fn shl16(self, v: uint8x16_t, n: u32) -> uint8x16_t {
        // SAFETY: token.
        unsafe { vreinterpretq_u8_u16(vshlq_u16(vreinterpretq_u16_u8(v), vdupq_n_s16(n as i16))) }
    }
    #[inline(always)]
    fn shr32(self, v: uint8x16_t, n: u32) -> uint8x16_t {
        // SAFETY: token.
        unsafe { vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-(n as i32)))) }
    }
    #[inline(always)]
    fn shl32(self, v: uint8x16_t, n: u32) -> uint8x16_t {
        // SAFETY: token.
        unsafe { vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(n as i32))) }
    }
    #[inline(always)]
    fn sar32(self, v: uint8x16_t, n: u32) -> uint8x16_t {
        // SAFETY: token.
        unsafe { from32(vshlq_s32(s32(v), vdupq_n_s32(-(n as i32)))) }
    }
    #[inline(always)]
    fn add32(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: token.
        unsafe { from32(vaddq_s32(s32(a), s32(b))) }
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], v: uint8x16_t) -> uint8x16_t {
        // SAFETY: token.
        unsafe { vqtbl1q_u8(vreinterpretq_u8_s8(part(table)), v) }
    }
    #[inline(always)]
    fn spread_bits(self, v: uint8x16_t, at: usize) -> uint8x16_t {
        // SAFETY: token; the arrays hold 16 bytes.
        unsafe {
            let bytes = vqtbl1q_u8(v, vcombine_u8(vdup_n_u8(at as u8), vdup_n_u8(at as u8 + 1)));
            let bits: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
            vtstq_u8(bytes, vld1q_u8(bits.as_ptr()))
        }
    }
    #[inline(always)]
    fn transpose(self, q: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        // SAFETY: token.
        unsafe {
            let (a, b, c, d) = (s32(q[0]), s32(q[1]), s32(q[2]), s32(q[3]));
            let (ab0, ab1) = (vreinterpretq_s64_s32(vzip1q_s32(a, b)), vreinterpretq_s64_s32(vzip2q_s32(a, b)));
            let (cd0, cd1) = (vreinterpretq_s64_s32(vzip1q_s32(c, d)), vreinterpretq_s64_s32(vzip2q_s32(c, d)));
            [
                vreinterpretq_u8_s64(vzip1q_s64(ab0, cd0)),
                vreinterpretq_u8_s64(vzip2q_s64(ab0, cd0)),
                vreinterpretq_u8_s64(vzip1q_s64(ab1, cd1)),
                vreinterpretq_u8_s64(vzip2q_s64(ab1, cd1)),
            ]
        }
    }
    #[inline(always)]
    fn signed(self, v: uint8x16_t) -> uint8x16_t {
        v
    }
    #[inline(always)]
    fn store_i8(self, v: uint8x16_t, out: &mut [i8]) {
        // SAFETY: token; the array holds four integers.
        let mut words = [0i32; 4];
        unsafe { vst1q_s32(words.as_mut_ptr(), s32(v)) };
        for (o, w) in out[..4].iter_mut().zip(words) {
            *o = w as i8;
        }
    }
    #[inline(always)]
    fn dot<const K: u8>(self, acc: uint8x16_t, w: &[uint8x16_t; 4], a: &[i8; 16]) -> uint8x16_t {
        // SAFETY: token.
        unsafe {
            let a = vreinterpretq_s32_s8(part(a));
            let acc = dot4::<DOT>(s32(acc), s8(w[0]), vreinterpretq_s8_s32(vdupq_laneq_s32::<0>(a)));
            let acc = dot4::<DOT>(acc, s8(w[1]), vreinterpretq_s8_s32(vdupq_laneq_s32::<1>(a)));
            let acc = dot4::<DOT>(acc, s8(w[2]), vreinterpretq_s8_s32(vdupq_laneq_s32::<2>(a)));
            from32(dot4::<DOT>(acc, s8(w[3]), vreinterpretq_s8_s32(vdupq_laneq_s32::<3>(a))))
        }
    }
    #[inline(always)]
    fn dot_rows16<const K: u8>(self, w: [uint8x16_t; 4], a: &[i8; 16]) -> uint8x16_t {
        let a = part(a);
        // SAFETY: token.
        unsafe {
            let p = quad!(I => dot4::<DOT>(vdupq_n_s32(0), s8(w[I]), a));
            from32(vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3])))
        }
    }
    #[inline(always)]
    fn dot_rows32<const K: u8>(self, lo: [uint8x16_t; 4], hi: [uint8x16_t; 4], a: &[i8; 32]) -> uint8x16_t {
        let [a, b] = a.as_chunks::<16>().0 else { unreachable!() };
        let (a, b) = (part(a), part(b));
        // SAFETY: token.
        unsafe {
            let p = quad!(I => dot4::<DOT>(dot4::<DOT>(vdupq_n_s32(0), s8(lo[I]), a), s8(hi[I]), b));
            from32(vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3])))
        }
    }
    #[inline(always)]
    fn rows16(self, rows: &Rows<'_>, i: usize, at: usize) -> uint8x16_t {
        // SAFETY: token; `at` checks that 16 bytes may be read.
        unsafe { vld1q_u8(rows.at(i, 4, at, 16)) }
    }
    #[inline(always)]
    fn rows_u16(self, rows: &Rows<'_>, at: usize) -> uint8x16_t {
        let (p, n) = (rows.at(0, 4, at, 2), rows.stride);
        // SAFETY: `at` checks that 2 bytes may be read in each of 4 rows; the array holds four integers.
        unsafe {
            let h = |r: usize| u32::from(u16::from_le_bytes(p.add(r * n).cast::<[u8; 2]>().read_unaligned()));
            vreinterpretq_u8_u32(vld1q_u32([h(0), h(1), h(2), h(3)].as_ptr()))
        }
    }
    #[inline(always)]
    fn rows_u32(self, rows: &Rows<'_>, at: usize) -> uint8x16_t {
        let (p, n) = (rows.at(0, 4, at, 4), rows.stride);
        // SAFETY: `at` checks that 4 bytes may be read in each of 4 rows; the array holds four integers.
        unsafe {
            let h = |r: usize| u32::from_le_bytes(p.add(r * n).cast::<[u8; 4]>().read_unaligned());
            vreinterpretq_u8_u32(vld1q_u32([h(0), h(1), h(2), h(3)].as_ptr()))
        }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> float32x4_t {
        // SAFETY: token.
        unsafe { vdupq_n_f32(v) }
    }
    #[inline(always)]
    fn load(self, v: &[f32]) -> float32x4_t {
        // SAFETY: token; the slice is checked to hold 4 floats.
        unsafe { vld1q_f32(v[..4].as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: float32x4_t, out: &mut [f32]) {
        // SAFETY: token; the slice is checked to hold 4 floats.
        unsafe { vst1q_f32(out[..4].as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_f32(self, v: &[u8]) -> float32x4_t {
        // SAFETY: token; the slice is checked to hold 16 bytes.
        unsafe { vreinterpretq_f32_u8(vld1q_u8(v[..16].as_ptr())) }
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8]) -> float32x4_t {
        // SAFETY: token; the slice is checked to hold 8 bytes.
        unsafe { half_to_f(vreinterpret_u16_u8(vld1_u8(v[..8].as_ptr()))) }
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8]) -> float32x4_t {
        // SAFETY: token; the slice is checked to hold 8 bytes.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(v[..8].as_ptr())))) }
    }
    #[inline(always)]
    fn f16_lanes(self, v: uint8x16_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { half_to_f(vmovn_u32(vreinterpretq_u32_u8(v))) }
    }
    #[inline(always)]
    fn to_f(self, v: uint8x16_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vcvtq_f32_s32(s32(v)) }
    }
    #[inline(always)]
    fn round(self, v: float32x4_t) -> uint8x16_t {
        // SAFETY: token.
        unsafe { from32(vcvtnq_s32_f32(v)) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn as_floats(self, v: uint8x16_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vreinterpretq_f32_u8(v) }
    }
    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: token.
        unsafe { vabsq_f32(a) }
    }
}
