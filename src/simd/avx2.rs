//! The vocabulary on x86-64 with AVX2, FMA and F16C; with `VNNI`, products in one instruction (AVX-VNNI).
//!
//! | word | instruction | Zen 3+ latency / per cycle | Golden Cove |
//! |---|---|---|---|
//! | `dot` (AVX2) | vpmaddubsw + vpaddw + vpmaddwd | 3+1+3 / 2 | 5+1+5 / 2 |
//! | `dot_panel` (AVX2) | vpmaddubsw + vpaddw, or + vpmaddwd + vpaddd | 3+1 / 2 | 5+1 / 2 |
//! | `dot` (VNNI) | vpdpbusd ymm | 4 / 2 | 5 / 2 |
//! | `lookup`, `spread_bits` | vpshufb | 1 / 2 | 1 / 2 |
//! | `transpose` | vpunpck{l,h}{dq,qdq} | 1 / 2 | 1 / 2 |
//! | `f16_lanes` | vpackusdw + vpermq + vcvtph2ps | 3 to 7 / 1 | 7 / 1 |
//! | `fma` | vfmadd231ps | 4 / 2 | 4 / 2 |
//!
//! vpmaddubsw saturates at 16 bits: two products of 6-bit codes with 127 stay below (2 * 63 * 127 = 16002), and so do two such
//! sums; four-bit codes leave room for eight. Signed codes go in as |w| * (a with w's sign): 2 * 128 * 127 = 32512.

use super::{I8, Plain, Rows, Simd, Task, U4, quad};
use std::arch::x86_64::*;

/// The token.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>(());

// SAFETY: vectors of integers and floats have no invalid patterns.
unsafe impl Plain for __m256i {}
// SAFETY: as above.
unsafe impl Plain for __m256 {}

/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c,popcnt,bmi1,bmi2")]
pub unsafe fn run_avx2<T: Task>(task: T) -> T::Out {
    task.run(Avx2::<false>(()))
}

/// # Safety
/// The CPU must have AVX2, FMA, F16C and AVX-VNNI.
#[target_feature(enable = "avx2,fma,f16c,popcnt,bmi1,bmi2,avxvnni")]
pub unsafe fn run_avxvnni<T: Task>(task: T) -> T::Out {
    task.run(Avx2::<true>(()))
}

/// Elements `4 j .. 4 j + 4` of a column, for every lane.
#[inline(always)]
fn group<const N: usize>(a: &[i8; N], j: usize) -> __m256i {
    let b = a.as_chunks::<4>().0[j].map(|v| v as u8);
    // SAFETY: AVX2 by the token.
    unsafe { _mm256_set1_epi32(i32::from_le_bytes(b)) }
}

#[inline(always)]
fn part(a: &[i8; 16]) -> __m256i {
    // SAFETY: 16 bytes are readable; AVX2 by the token.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(a.as_ptr().cast())) }
}

/// Sums of two (signed) products, as i16.
#[inline(always)]
fn pairs<const K: u8>(w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: AVX2 by the token.
    unsafe { if K == I8 { _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)) } else { _mm256_maddubs_epi16(w, a) } }
}

#[inline(always)]
fn widen(v: __m256i) -> __m256i {
    // SAFETY: AVX2 by the token.
    unsafe { _mm256_madd_epi16(v, _mm256_set1_epi16(1)) }
}

/// Has all four sums be complete here. Else the compiler adds up one column after the other, keeps the codes of a group in registers meanwhile
/// and has none left to multiply in: 1.1 times the time for 6-bit codes, 1.2 for 4-bit and 1.3 for 8-bit ones (Zen 3).
#[target_feature(enable = "avx2")]
#[inline]
fn pin(sums: [__m256i; 4]) -> [__m256i; 4] {
    let [mut a, mut b, mut c, mut d] = sums;
    // SAFETY: there is no instruction in it.
    unsafe {
        std::arch::asm!(
            "/* {} {} {} {} */",
            inlateout(ymm_reg) a,
            inlateout(ymm_reg) b,
            inlateout(ymm_reg) c,
            inlateout(ymm_reg) d,
            options(nomem, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// Lane `4 l + i` is the sum of part `l` of vector `i`.
#[inline(always)]
fn sum_parts(q: [__m256i; 4]) -> __m256i {
    // SAFETY: AVX2 by the token.
    unsafe {
        let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(q[0], q[1]), _mm256_unpackhi_epi32(q[0], q[1]));
        let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(q[2], q[3]), _mm256_unpackhi_epi32(q[2], q[3]));
        _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd))
    }
}

/// As [`sum_parts`] of the widened sums, for sums of 16 bits of which two may be added in as many.
#[inline(always)]
fn sum_pairs(p: [__m256i; 4]) -> __m256i {
    // SAFETY: AVX2 by the token.
    unsafe {
        let ab = widen(_mm256_add_epi16(_mm256_unpacklo_epi64(p[0], p[1]), _mm256_unpackhi_epi64(p[0], p[1])));
        let cd = widen(_mm256_add_epi16(_mm256_unpacklo_epi64(p[2], p[3]), _mm256_unpackhi_epi64(p[2], p[3])));
        let (ab, cd) = (_mm256_castsi256_ps(ab), _mm256_castsi256_ps(cd));
        let (even, odd) = (_mm256_shuffle_ps::<0x88>(ab, cd), _mm256_shuffle_ps::<0xdd>(ab, cd));
        _mm256_add_epi32(_mm256_castps_si256(even), _mm256_castps_si256(odd))
    }
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type V = __m256i;
    type F = __m256;
    const LANES: usize = 8;
    const SIGNED_BIAS: i32 = if VNNI { 128 } else { 0 };
    const TILE_PANELS: usize = 1;
    const PANELS: bool = true;
    const LOOKUP_BEATS_DOT: bool = !VNNI;

    #[inline(always)]
    fn splat8(self, v: u8) -> __m256i {
        // SAFETY: AVX2 by the token, here and in every word below.
        unsafe { _mm256_set1_epi8(v as i8) }
    }
    #[inline(always)]
    fn splat32(self, v: i32) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_set1_epi32(v) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    fn shr16(self, v: __m256i, n: u32) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_srl_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn shl16(self, v: __m256i, n: u32) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_sll_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn shr32(self, v: __m256i, n: u32) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_srl_epi32(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn shl32(self, v: __m256i, n: u32) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_sll_epi32(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn sar32(self, v: __m256i, n: u32) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_sra_epi32(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn add32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], v: __m256i) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_shuffle_epi8(part(table), v) }
    }
    #[inline(always)]
    fn spread_bits(self, v: __m256i, at: usize) -> __m256i {
        // SAFETY: token.
        unsafe {
            let (lo, hi) = (at as i64 * 0x0101_0101_0101_0101, (at as i64 + 1) * 0x0101_0101_0101_0101);
            let bytes = _mm256_shuffle_epi8(v, _mm256_set_epi64x(hi, lo, hi, lo));
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit)
        }
    }
    #[inline(always)]
    fn transpose(self, q: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: token.
        unsafe {
            let (ab0, ab1) = (_mm256_unpacklo_epi32(q[0], q[1]), _mm256_unpackhi_epi32(q[0], q[1]));
            let (cd0, cd1) = (_mm256_unpacklo_epi32(q[2], q[3]), _mm256_unpackhi_epi32(q[2], q[3]));
            [
                _mm256_unpacklo_epi64(ab0, cd0),
                _mm256_unpackhi_epi64(ab0, cd0),
                _mm256_unpacklo_epi64(ab1, cd1),
                _mm256_unpackhi_epi64(ab1, cd1),
            ]
        }
    }
    #[inline(always)]
    fn signed(self, v: __m256i) -> __m256i {
        if VNNI { self.xor(v, self.splat8(128)) } else { v }
    }
    #[inline(always)]
    fn store_i8(self, v: __m256i, out: &mut [i8]) {
        // SAFETY: token; the slice is checked to hold 8 bytes.
        unsafe {
            let h = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(out[..8].as_mut_ptr().cast(), _mm_packs_epi16(h, h));
        }
    }
    #[inline(always)]
    fn dot<const K: u8>(self, acc: __m256i, w: &[__m256i; 4], a: &[i8; 16]) -> __m256i {
        // SAFETY: token.
        unsafe {
            if VNNI {
                let acc = _mm256_dpbusd_avx_epi32(acc, w[0], group(a, 0));
                let acc = _mm256_dpbusd_avx_epi32(acc, w[1], group(a, 1));
                let acc = _mm256_dpbusd_avx_epi32(acc, w[2], group(a, 2));
                return _mm256_dpbusd_avx_epi32(acc, w[3], group(a, 3));
            }
            let (p0, p1) = (pairs::<K>(w[0], group(a, 0)), pairs::<K>(w[1], group(a, 1)));
            let (p2, p3) = (pairs::<K>(w[2], group(a, 2)), pairs::<K>(w[3], group(a, 3)));
            if K == I8 {
                let (s, t) = (_mm256_add_epi32(widen(p0), widen(p1)), _mm256_add_epi32(widen(p2), widen(p3)));
                return _mm256_add_epi32(acc, _mm256_add_epi32(s, t));
            }
            let (s, t) = (_mm256_add_epi16(p0, p1), _mm256_add_epi16(p2, p3));
            if K == U4 {
                _mm256_add_epi32(acc, widen(_mm256_add_epi16(s, t)))
            } else {
                _mm256_add_epi32(acc, _mm256_add_epi32(widen(s), widen(t)))
            }
        }
    }
    #[inline(always)]
    fn dot_panel<const K: u8, const FROM: usize, const TO: usize>(
        self,
        start: [i32; 4],
        w: &[[__m256i; 4]; 2],
        a: &[[i8; 32]; 4],
    ) -> [__m256i; 4] {
        let start = quad!(C => self.splat32(start[C]));
        let zero = self.splat32(0);
        // Eight times two products of 4-bit codes stay below 2^15 (8 * 2 * 15 * 127).
        let narrow = K == U4 && !VNNI;
        let mut sums = if narrow { [zero; 4] } else { start };
        // SAFETY: token.
        unsafe {
            let mut j = FROM;
            while j < TO {
                let v = w[j / 4][j % 4];
                if VNNI {
                    sums = quad!(C => _mm256_dpbusd_avx_epi32(sums[C], v, group(&a[C], j)));
                } else if narrow {
                    sums = quad!(C => _mm256_add_epi16(sums[C], pairs::<K>(v, group(&a[C], j))));
                } else if K == I8 {
                    sums = quad!(C => _mm256_add_epi32(sums[C], widen(pairs::<K>(v, group(&a[C], j)))));
                } else {
                    j += 1;
                    let u = w[j / 4][j % 4];
                    let p = quad!(C => _mm256_add_epi16(pairs::<K>(v, group(&a[C], j - 1)), pairs::<K>(u, group(&a[C], j))));
                    sums = quad!(C => _mm256_add_epi32(sums[C], widen(p[C])));
                }
                sums = pin(sums);
                j += 1;
            }
            if narrow { quad!(C => _mm256_add_epi32(start[C], widen(sums[C]))) } else { sums }
        }
    }
    #[inline(always)]
    fn dot_rows16<const K: u8>(self, w: [__m256i; 4], a: &[i8; 16]) -> __m256i {
        let a = part(a);
        // SAFETY: token.
        unsafe {
            if VNNI {
                let z = _mm256_setzero_si256();
                return sum_parts(w.map(|w| _mm256_dpbusd_avx_epi32(z, w, a)));
            }
            if K != I8 {
                // Twice two products of 6-bit codes stay below 2^15 (2 * 2 * 63 * 127).
                return sum_pairs([pairs::<K>(w[0], a), pairs::<K>(w[1], a), pairs::<K>(w[2], a), pairs::<K>(w[3], a)]);
            }
            sum_parts([widen(pairs::<K>(w[0], a)), widen(pairs::<K>(w[1], a)), widen(pairs::<K>(w[2], a)), widen(pairs::<K>(w[3], a))])
        }
    }
    #[inline(always)]
    fn dot_rows32<const K: u8>(self, lo: [__m256i; 4], hi: [__m256i; 4], a: &[i8; 32]) -> __m256i {
        let [a, b] = a.as_chunks::<16>().0 else { unreachable!() };
        let (a, b) = (part(a), part(b));
        // SAFETY: token.
        unsafe {
            let z = _mm256_setzero_si256();
            let mut p = [z; 4];
            let mut i = 0;
            while i < 4 {
                p[i] = if VNNI {
                    _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(z, lo[i], a), hi[i], b)
                } else if K == I8 {
                    _mm256_add_epi32(widen(pairs::<K>(lo[i], a)), widen(pairs::<K>(hi[i], b)))
                } else {
                    let both = _mm256_add_epi16(pairs::<K>(lo[i], a), pairs::<K>(hi[i], b));
                    if K == U4 { both } else { widen(both) }
                };
                i += 1;
            }
            // Of 4-bit codes twice that fits, too.
            if K == U4 && !VNNI { sum_pairs(p) } else { sum_parts(p) }
        }
    }
    #[inline(always)]
    fn rows16(self, rows: &Rows<'_>, i: usize, at: usize) -> __m256i {
        let p = rows.at(i, 8, at, 16);
        // SAFETY: `at` checks that 16 bytes may be read in each of 8 rows; i < 4, so rows i and i + 4 are among them.
        unsafe {
            let (a, b) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(4 * rows.stride).cast()));
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b)
        }
    }
    #[inline(always)]
    fn rows_u16(self, rows: &Rows<'_>, at: usize) -> __m256i {
        let (p, n) = (rows.at(0, 8, at, 2), rows.stride);
        // SAFETY: `at` checks that 2 bytes may be read in each of 8 rows.
        unsafe {
            let h = |r: usize| i16::from_le_bytes(p.add(r * n).cast::<[u8; 2]>().read_unaligned());
            _mm256_cvtepu16_epi32(_mm_setr_epi16(h(0), h(1), h(2), h(3), h(4), h(5), h(6), h(7)))
        }
    }
    #[inline(always)]
    fn rows_u32(self, rows: &Rows<'_>, at: usize) -> __m256i {
        let (p, n) = (rows.at(0, 8, at, 4), rows.stride);
        // SAFETY: `at` checks that 4 bytes may be read in each of 8 rows.
        unsafe {
            let h = |r: usize| i32::from_le_bytes(p.add(r * n).cast::<[u8; 4]>().read_unaligned());
            _mm256_setr_epi32(h(0), h(1), h(2), h(3), h(4), h(5), h(6), h(7))
        }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_set1_ps(v) }
    }
    #[inline(always)]
    fn load(self, v: &[f32]) -> __m256 {
        // SAFETY: token; the slice is checked to hold 8 floats.
        unsafe { _mm256_loadu_ps(v[..8].as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m256, out: &mut [f32]) {
        // SAFETY: token; the slice is checked to hold 8 floats.
        unsafe { _mm256_storeu_ps(out[..8].as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_f32(self, v: &[u8]) -> __m256 {
        // SAFETY: token; the slice is checked to hold 32 bytes.
        unsafe { _mm256_loadu_ps(v[..32].as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8]) -> __m256 {
        // SAFETY: token; the slice is checked to hold 16 bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(v[..16].as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8]) -> __m256 {
        // SAFETY: token; the slice is checked to hold 16 bytes.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(v[..16].as_ptr().cast())))) }
    }
    #[inline(always)]
    fn load_u8(self, v: &[u8]) -> __m256i {
        // SAFETY: token; the slice is checked to hold 8 bytes.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(v[..8].as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bytes(self, v: &[u8]) -> __m256i {
        // SAFETY: token; the slice is checked to hold 32 bytes.
        unsafe { _mm256_loadu_si256(v[..32].as_ptr().cast()) }
    }
    #[inline(always)]
    fn f16_lanes(self, v: __m256i) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v))) }
    }
    #[inline(always)]
    fn to_f(self, v: __m256i) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn round(self, v: __m256) -> __m256i {
        // SAFETY: token.
        unsafe { _mm256_cvtps_epi32(v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn as_floats(self, v: __m256i) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_castsi256_ps(v) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: token.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn most(self, v: __m256) -> f32 {
        // SAFETY: token.
        unsafe {
            let m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
            _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)))
        }
    }
    #[inline(always)]
    fn total(self, v: __m256i) -> i32 {
        // SAFETY: token.
        unsafe {
            let t = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let t = _mm_add_epi32(t, _mm_unpackhi_epi64(t, t));
            _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32::<1>(t)))
        }
    }
}
