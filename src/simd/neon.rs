//! The vocabulary on AArch64: four lanes; with `DOT`, products by `sdot`; with `MM`, mat-mat by `smmla`.
//!
//! | word | instruction | Cortex-A72 | Cortex-A76 |
//! |---|---|---|---|
//! | `dot` (Neon) | smull, smlal, then pairwise sums | 1 per cycle | |
//! | `dot` (DotProd) | sdot | - | 2 per cycle |
//! | `dot_pair` (I8mm) | smmla: 2 rows x 2 columns x 8 | - | - (A710: 2 per cycle) |
//! | `lookup` | tbl | 3 / 2 | 2 / 2 |
//! | `transpose` | trn/zip | 3 / 2 | 2 / 2 |
//! | `f16_lanes` | xtn + fcvtl | 3 + 3 | 3 + 3 |
//!
//! `sdot` and `smmla` have no stable intrinsics: one instruction of inline assembly. Codes of at most six bits and signed codes are both signed
//! bytes here, so `sdot` takes all kinds. Without it products are added up in 16 bits while they fit, activations being at most 127:
//! two of signed codes (2 * 128 * 127 = 32512), four of 6 bits (4 * 63 * 127 = 32004), sixteen of 4 bits (16 * 15 * 127 = 30480).

use super::{I8, Plain, Rows, Simd, Task, U4, quad};
use std::arch::aarch64::*;

/// The token.
#[derive(Clone, Copy)]
pub struct Neon<const DOT: bool, const MM: bool>(());

// SAFETY: vectors of integers and floats have no invalid patterns.
unsafe impl Plain for uint8x16_t {}
// SAFETY: as above.
unsafe impl Plain for float32x4_t {}

/// # Safety
/// The CPU must have Neon.
#[target_feature(enable = "neon")]
pub unsafe fn run_neon<T: Task>(task: T) -> T::Out {
    task.run(Neon::<false, false>(()))
}

/// # Safety
/// The CPU must have Neon and `sdot`.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn run_dotprod<T: Task>(task: T) -> T::Out {
    task.run(Neon::<true, false>(()))
}

/// # Safety
/// The CPU must have Neon, `sdot` and the 8-bit matrix products.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub unsafe fn run_i8mm<T: Task>(task: T) -> T::Out {
    task.run(Neon::<true, true>(()))
}

/// Adds to every lane of `acc` the dot of the four signed bytes there in `w` and `a`.
///
/// # Safety
/// The CPU must have `sdot`.
#[inline(always)]
unsafe fn sdot(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: the caller's; the instruction touches nothing but its registers.
    unsafe {
        std::arch::asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b",
            acc = inout(vreg) acc, w = in(vreg) w, a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Adds to lane `2 i + j` of `acc` the dot of the eight signed bytes `i` of `w` with the eight `j` of `a`.
///
/// # Safety
/// The CPU must have the 8-bit matrix products.
#[inline(always)]
unsafe fn smmla(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: the caller's; the instruction touches nothing but its registers.
    unsafe {
        std::arch::asm!(
            ".arch_extension i8mm",
            "smmla {acc:v}.4s, {w:v}.16b, {a:v}.16b",
            acc = inout(vreg) acc, w = in(vreg) w, a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Eight bytes of `a`, then eight of `b`: the low halves (`zip1`) and the high ones (`zip2`).
#[inline(always)]
fn zip_eights(a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
    // SAFETY: Neon by the token.
    unsafe {
        let (a, b) = (vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b));
        [vreinterpretq_u8_u64(vzip1q_u64(a, b)), vreinterpretq_u8_u64(vzip2q_u64(a, b))]
    }
}

/// Products of the low eight bytes.
#[inline(always)]
fn mul_low(w: int8x16_t, a: int8x16_t) -> int16x8_t {
    // SAFETY: Neon by the token.
    unsafe { vmull_s8(vget_low_s8(w), vget_low_s8(a)) }
}

/// `acc` plus the products of the low eight bytes.
#[inline(always)]
fn add_low(acc: int16x8_t, w: int8x16_t, a: int8x16_t) -> int16x8_t {
    // SAFETY: Neon by the token.
    unsafe { vmlal_s8(acc, vget_low_s8(w), vget_low_s8(a)) }
}

/// The sum of each of four vectors, in order.
#[inline(always)]
fn sum_rows(p: [int32x4_t; 4]) -> uint8x16_t {
    // SAFETY: Neon by the token.
    unsafe { from32(vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3]))) }
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

impl<const DOT: bool, const MM: bool> Simd for Neon<DOT, MM> {
    type V = uint8x16_t;
    type F = float32x4_t;
    const LANES: usize = 4;
    const SIGNED_BIAS: i32 = 0;
    const TILE_PANELS: usize = 2;
    const PAIRS: bool = MM;
    const LOOKUP_BEATS_DOT: bool = !DOT;

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
        // SAFETY: token.
        let word = unsafe {
            let halves = vmovn_s32(s32(v));
            vget_lane_u32::<0>(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(halves, halves))))
        };
        for (o, b) in out[..4].iter_mut().zip(word.to_le_bytes()) {
            *o = b as i8;
        }
    }
    #[inline(always)]
    fn dot<const K: u8>(self, acc: uint8x16_t, w: &[uint8x16_t; 4], a: &[i8; 16]) -> uint8x16_t {
        // SAFETY: token.
        unsafe {
            let a = vreinterpretq_s32_s8(part(a));
            let a = [vdupq_laneq_s32::<0>(a), vdupq_laneq_s32::<1>(a), vdupq_laneq_s32::<2>(a), vdupq_laneq_s32::<3>(a)];
            let (w, a) = (quad!(I => s8(w[I])), quad!(I => vreinterpretq_s8_s32(a[I])));
            let acc = s32(acc);
            if DOT {
                return from32(sdot(sdot(sdot(sdot(acc, w[0], a[0]), w[1], a[1]), w[2], a[2]), w[3], a[3]));
            }
            // Rows 0 and 1 in the low sums, 2 and 3 in the high ones.
            let (low, high) = (mul_low(w[0], a[0]), vmull_high_s8(w[0], a[0]));
            let (low, high) = (add_low(low, w[1], a[1]), vmlal_high_s8(high, w[1], a[1]));
            if K == I8 {
                let (more_low, more_high) = (mul_low(w[2], a[2]), vmull_high_s8(w[2], a[2]));
                let (more_low, more_high) = (add_low(more_low, w[3], a[3]), vmlal_high_s8(more_high, w[3], a[3]));
                let (low, high) = (vpadalq_s16(vpaddlq_s16(low), more_low), vpadalq_s16(vpaddlq_s16(high), more_high));
                return from32(vaddq_s32(acc, vpaddq_s32(low, high)));
            }
            let (low, high) = (add_low(low, w[2], a[2]), vmlal_high_s8(high, w[2], a[2]));
            let (low, high) = (add_low(low, w[3], a[3]), vmlal_high_s8(high, w[3], a[3]));
            if K == U4 {
                return from32(vpadalq_s16(acc, vpaddq_s16(low, high)));
            }
            from32(vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))))
        }
    }
    #[inline(always)]
    fn dot_rows16<const K: u8>(self, w: [uint8x16_t; 4], a: &[i8; 16]) -> uint8x16_t {
        let a = part(a);
        // SAFETY: token.
        unsafe {
            if DOT {
                return sum_rows(quad!(I => sdot(vdupq_n_s32(0), s8(w[I]), a)));
            }
            let p = quad!(I => vmlal_high_s8(mul_low(s8(w[I]), a), s8(w[I]), a));
            if K == I8 {
                return sum_rows(quad!(I => vpaddlq_s16(p[I])));
            }
            let (p, q) = (vpaddq_s16(p[0], p[1]), vpaddq_s16(p[2], p[3]));
            from32(vpaddq_s32(vpaddlq_s16(p), vpaddlq_s16(q)))
        }
    }
    #[inline(always)]
    fn dot_rows32<const K: u8>(self, lo: [uint8x16_t; 4], hi: [uint8x16_t; 4], a: &[i8; 32]) -> uint8x16_t {
        let [a, b] = a.as_chunks::<16>().0 else { unreachable!() };
        let (a, b) = (part(a), part(b));
        // SAFETY: token.
        unsafe {
            if DOT {
                return sum_rows(quad!(I => sdot(sdot(vdupq_n_s32(0), s8(lo[I]), a), s8(hi[I]), b)));
            }
            let p = quad!(I => vmlal_high_s8(mul_low(s8(lo[I]), a), s8(lo[I]), a));
            if K == I8 {
                let q = quad!(I => vmlal_high_s8(mul_low(s8(hi[I]), b), s8(hi[I]), b));
                return sum_rows(quad!(I => vpadalq_s16(vpaddlq_s16(p[I]), q[I])));
            }
            let p = quad!(I => vmlal_high_s8(add_low(p[I], s8(hi[I]), b), s8(hi[I]), b));
            if K == U4 {
                let p = vpaddq_s16(vpaddq_s16(p[0], p[1]), vpaddq_s16(p[2], p[3]));
                return from32(vpaddlq_s16(p));
            }
            sum_rows(quad!(I => vpaddlq_s16(p[I])))
        }
    }
    /// With `MM`: eight codes of rows 0 and 1, the next eight, then rows 2 and 3.
    #[inline(always)]
    fn tile(self, q: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        if !MM {
            return self.transpose(q);
        }
        let ([a, b], [c, d]) = (zip_eights(q[0], q[1]), zip_eights(q[2], q[3]));
        [a, b, c, d]
    }
    /// With `MM`: eight of the one, eight of the other, and so on.
    #[inline(always)]
    fn arrange_pair(self, a: &mut [[i8; 32]; 2]) {
        if MM {
            let mut out = [[0; 8]; 8];
            for (column, a) in a.iter().enumerate() {
                for (i, eight) in a.as_chunks::<8>().0.iter().enumerate() {
                    out[2 * i + column] = *eight;
                }
            }
            a.as_flattened_mut().copy_from_slice(out.as_flattened());
        }
    }
    /// With `MM`: both columns of rows 0 and 1, then of rows 2 and 3.
    #[inline(always)]
    fn start_pair(self, start: [i32; 2]) -> [uint8x16_t; 2] {
        if !MM {
            return [self.splat32(start[0]), self.splat32(start[1])];
        }
        // SAFETY: token; the array holds two integers.
        let both = unsafe {
            let pair = vld1_s32(start.as_ptr());
            from32(vcombine_s32(pair, pair))
        };
        [both; 2]
    }
    #[inline(always)]
    fn dot_pair<const K: u8>(self, acc: [uint8x16_t; 2], w: &[uint8x16_t; 4], a: &[[i8; 32]; 2], half: usize) -> [uint8x16_t; 2] {
        if !MM {
            return super::dot_columns::<Self, K>(self, acc, w, a, half);
        }
        let a = &a.as_flattened().as_chunks::<16>().0[2 * half..2 * half + 2];
        let (a, b) = (part(&a[0]), part(&a[1]));
        // SAFETY: token.
        unsafe {
            [from32(smmla(smmla(s32(acc[0]), s8(w[0]), a), s8(w[1]), b)), from32(smmla(smmla(s32(acc[1]), s8(w[2]), a), s8(w[3]), b))]
        }
    }
    #[inline(always)]
    fn end_pair(self, acc: [uint8x16_t; 2]) -> [uint8x16_t; 2] {
        if !MM {
            return acc;
        }
        // SAFETY: token.
        unsafe { [from32(vuzp1q_s32(s32(acc[0]), s32(acc[1]))), from32(vuzp2q_s32(s32(acc[0]), s32(acc[1])))] }
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
    fn load_u8(self, v: &[u8]) -> uint8x16_t {
        let lanes = u32::from_le_bytes([v[0], v[1], v[2], v[3]]);
        // SAFETY: token.
        unsafe { vreinterpretq_u8_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(u64::from(lanes)))))) }
    }
    #[inline(always)]
    fn load_bytes(self, v: &[u8]) -> uint8x16_t {
        // SAFETY: token; the slice is checked to hold 16 bytes.
        unsafe { vld1q_u8(v[..16].as_ptr()) }
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
