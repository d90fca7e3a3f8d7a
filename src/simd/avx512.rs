//! The vocabulary on x86-64 with AVX-512 F, BW, DQ, VL and VNNI: sixteen lanes.
//!
//! | word | instruction | Zen 4 latency / per cycle | Ice Lake and later |
//! |---|---|---|---|
//! | `dot` | vpdpbusd zmm, activations as an {1to16} memory operand | 4 / 1 | 5 / 1 |
//! | `rows16` | vinserti128 / vinserti64x4 from memory | 1 + load / 2 | 1 + load / 2 |
//! | `lookup` | vpshufb zmm | 1 / 1 | 1 / 1 |
//! | `spread_bits` | vpshufb + vptestmb + vpmovm2b | 1 + 5 + 1 | 1 + 3 + 3 |
//! | `transpose` | vpunpck{l,h}{dq,qdq} zmm | 1 / 1 | 1 / 1 |
//! | `dot_long` | vpdpbusd zmm, then vpunpck and vpaddd | 4 / 1 | 5 / 1 |
//! | `transpose_parts` | vshufi32x4 zmm | 3 / 1 | 3 / 1 |
//! | `shl16_halves` | vpsllvw zmm | 1 / 1 | 1 / 1 |
//! | `f16_lanes` | vpmovdw + vcvtph2ps zmm | 3 to 5 / 1 | 4 + 7 |
//! | `fma` | vfmadd231ps zmm | 4 / 1 | 4 / 1 to 2 |

use super::{Plain, Rows, Simd, Task, quad};
use std::arch::x86_64::*;

/// The token.
#[derive(Clone, Copy)]
pub struct Avx512(());

// SAFETY: vectors of integers and floats have no invalid patterns.
unsafe impl Plain for __m512i {}
// SAFETY: as above.
unsafe impl Plain for __m512 {}

/// # Safety
/// The CPU must have everything `Level::Avx512` asks for.
#[target_feature(enable = "avx2,fma,f16c,popcnt,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn run<T: Task>(task: T) -> T::Out {
    task.run(Avx512(()))
}

#[inline(always)]
fn group(a: &[i8; 16], j: usize) -> __m512i {
    let b = a.as_chunks::<4>().0[j].map(|v| v as u8);
    // SAFETY: AVX-512 by the token.
    unsafe { _mm512_set1_epi32(i32::from_le_bytes(b)) }
}

#[inline(always)]
fn part(a: &[i8; 16]) -> __m512i {
    // SAFETY: 16 bytes are readable; AVX-512 by the token.
    unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(a.as_ptr().cast())) }
}

/// `n[0]` in the first sixteen 16-bit elements, `n[1]` in the others.
#[inline(always)]
fn halves(n: [u16; 2]) -> __m512i {
    // SAFETY: AVX-512 by the token.
    unsafe { _mm512_inserti64x4::<1>(_mm512_set1_epi16(n[0] as i16), _mm256_set1_epi16(n[1] as i16)) }
}

/// Lane `4 l + i` is the sum of part `l` of vector `i`.
#[inline(always)]
fn sum_parts(q: [__m512i; 4]) -> __m512i {
    // SAFETY: AVX-512 by the token.
    unsafe {
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(q[0], q[1]), _mm512_unpackhi_epi32(q[0], q[1]));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(q[2], q[3]), _mm512_unpackhi_epi32(q[2], q[3]));
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    }
}

impl Simd for Avx512 {
    type V = __m512i;
    type F = __m512;
    const LANES: usize = 16;
    const SIGNED_BIAS: i32 = 128;
    const TILE_PANELS: usize = 3;
    const LONG: bool = true;

    #[inline(always)]
    fn splat8(self, v: u8) -> __m512i {
        // SAFETY: AVX-512 by the token, here and in every word below.
        unsafe { _mm512_set1_epi8(v as i8) }
    }
    #[inline(always)]
    fn splat32(self, v: i32) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn shr16(self, v: __m512i, n: u32) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_srl_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn shl16(self, v: __m512i, n: u32) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_sll_epi16(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn shr32(self, v: __m512i, n: u32) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_srl_epi32(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn shl32(self, v: __m512i, n: u32) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn sar32(self, v: __m512i, n: u32) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_sra_epi32(v, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    fn add32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], v: __m512i) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_shuffle_epi8(part(table), v) }
    }
    #[inline(always)]
    fn spread_bits(self, v: __m512i, at: usize) -> __m512i {
        // SAFETY: token.
        unsafe {
            let (lo, hi) = (at as i64 * 0x0101_0101_0101_0101, (at as i64 + 1) * 0x0101_0101_0101_0101);
            let bytes = _mm512_shuffle_epi8(v, _mm512_set_epi64(hi, lo, hi, lo, hi, lo, hi, lo));
            _mm512_movm_epi8(_mm512_test_epi8_mask(bytes, _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64)))
        }
    }
    #[inline(always)]
    fn transpose(self, q: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: token.
        unsafe {
            let (ab0, ab1) = (_mm512_unpacklo_epi32(q[0], q[1]), _mm512_unpackhi_epi32(q[0], q[1]));
            let (cd0, cd1) = (_mm512_unpacklo_epi32(q[2], q[3]), _mm512_unpackhi_epi32(q[2], q[3]));
            [
                _mm512_unpacklo_epi64(ab0, cd0),
                _mm512_unpackhi_epi64(ab0, cd0),
                _mm512_unpacklo_epi64(ab1, cd1),
                _mm512_unpackhi_epi64(ab1, cd1),
            ]
        }
    }
    #[inline(always)]
    fn signed(self, v: __m512i) -> __m512i {
        self.xor(v, self.splat8(128))
    }
    #[inline(always)]
    fn store_i8(self, v: __m512i, out: &mut [i8]) {
        // SAFETY: token; the slice is checked to hold 16 bytes.
        unsafe { _mm_storeu_si128(out[..16].as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)) }
    }
    #[inline(always)]
    fn dot<const K: u8>(self, acc: __m512i, w: &[__m512i; 4], a: &[i8; 16]) -> __m512i {
        // SAFETY: token.
        unsafe {
            let acc = _mm512_dpbusd_epi32(acc, w[0], group(a, 0));
            let acc = _mm512_dpbusd_epi32(acc, w[1], group(a, 1));
            let acc = _mm512_dpbusd_epi32(acc, w[2], group(a, 2));
            _mm512_dpbusd_epi32(acc, w[3], group(a, 3))
        }
    }
    #[inline(always)]
    fn dot_rows16<const K: u8>(self, w: [__m512i; 4], a: &[i8; 16]) -> __m512i {
        let a = part(a);
        // SAFETY: token.
        unsafe {
            let z = _mm512_setzero_si512();
            sum_parts(quad!(I => _mm512_dpbusd_epi32(z, w[I], a)))
        }
    }
    #[inline(always)]
    fn dot_rows32<const K: u8>(self, lo: [__m512i; 4], hi: [__m512i; 4], a: &[i8; 32]) -> __m512i {
        let [a, b] = a.as_chunks::<16>().0 else { unreachable!() };
        let (a, b) = (part(a), part(b));
        // SAFETY: token.
        unsafe {
            let z = _mm512_setzero_si512();
            sum_parts(quad!(I => _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(z, lo[I], a), hi[I], b)))
        }
    }
    #[inline(always)]
    fn load_twice(self, v: &[u8]) -> __m512i {
        // SAFETY: token; the slice is checked to hold 32 bytes.
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(v[..32].as_ptr().cast())) }
    }
    #[inline(always)]
    fn shl16_halves(self, v: __m512i, n: [u16; 2]) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_sllv_epi16(v, halves(n)) }
    }
    #[inline(always)]
    fn shr16_halves(self, v: __m512i, n: [u16; 2]) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_srlv_epi16(v, halves(n)) }
    }
    #[inline(always)]
    fn dot_long(self, w: [__m512i; 4], a: [&[i8; 32]; 2]) -> __m512i {
        // SAFETY: token; 32 bytes of each are readable.
        unsafe {
            let [a, b] = a.map(|a| _mm256_loadu_si256(a.as_ptr().cast()));
            let (a, z) = (_mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b), _mm512_setzero_si512());
            sum_parts(quad!(I => _mm512_dpbusd_epi32(z, w[I], a)))
        }
    }
    #[inline(always)]
    fn transpose_parts(self, q: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: token.
        unsafe {
            let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(q[0], q[1]), _mm512_shuffle_i32x4::<0x44>(q[2], q[3]));
            let (ef, gh) = (_mm512_shuffle_i32x4::<0xee>(q[0], q[1]), _mm512_shuffle_i32x4::<0xee>(q[2], q[3]));
            [
                _mm512_shuffle_i32x4::<0x88>(ab, cd),
                _mm512_shuffle_i32x4::<0xdd>(ab, cd),
                _mm512_shuffle_i32x4::<0x88>(ef, gh),
                _mm512_shuffle_i32x4::<0xdd>(ef, gh),
            ]
        }
    }
    #[inline(always)]
    fn rows16(self, rows: &Rows<'_>, i: usize, at: usize) -> __m512i {
        let (p, n) = (rows.at(i, 16, at, 16), 4 * rows.stride);
        // SAFETY: `at` checks that 16 bytes may be read in each of 16 rows; i < 4, so rows i, i + 4, i + 8, i + 12 are among them.
        unsafe {
            let q = |l: usize| _mm_loadu_si128(p.add(l * n).cast());
            let (a, b) = (
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(q(0)), q(1)),
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(q(2)), q(3)),
            );
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
        }
    }
    #[inline(always)]
    fn rows_u16(self, rows: &Rows<'_>, at: usize) -> __m512i {
        let (p, n) = (rows.at(0, 16, at, 2), rows.stride);
        // SAFETY: `at` checks that 2 bytes may be read in each of 16 rows.
        unsafe {
            let q = p.add(8 * n);
            let h = |p: *const u8, r: usize| i16::from_le_bytes(p.add(r * n).cast::<[u8; 2]>().read_unaligned());
            let a = _mm_setr_epi16(h(p, 0), h(p, 1), h(p, 2), h(p, 3), h(p, 4), h(p, 5), h(p, 6), h(p, 7));
            let b = _mm_setr_epi16(h(q, 0), h(q, 1), h(q, 2), h(q, 3), h(q, 4), h(q, 5), h(q, 6), h(q, 7));
            _mm512_cvtepu16_epi32(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b))
        }
    }
    #[inline(always)]
    fn rows_u32(self, rows: &Rows<'_>, at: usize) -> __m512i {
        let (p, n) = (rows.at(0, 16, at, 4), rows.stride);
        // SAFETY: `at` checks that 4 bytes may be read in each of 16 rows.
        unsafe {
            let q = p.add(8 * n);
            let h = |p: *const u8, r: usize| i32::from_le_bytes(p.add(r * n).cast::<[u8; 4]>().read_unaligned());
            let a = _mm256_setr_epi32(h(p, 0), h(p, 1), h(p, 2), h(p, 3), h(p, 4), h(p, 5), h(p, 6), h(p, 7));
            let b = _mm256_setr_epi32(h(q, 0), h(q, 1), h(q, 2), h(q, 3), h(q, 4), h(q, 5), h(q, 6), h(q, 7));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
        }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn load(self, v: &[f32]) -> __m512 {
        // SAFETY: token; the slice is checked to hold 16 floats.
        unsafe { _mm512_loadu_ps(v[..16].as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32]) {
        // SAFETY: token; the slice is checked to hold 16 floats.
        unsafe { _mm512_storeu_ps(out[..16].as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_f32(self, v: &[u8]) -> __m512 {
        // SAFETY: token; the slice is checked to hold 64 bytes.
        unsafe { _mm512_loadu_ps(v[..64].as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8]) -> __m512 {
        // SAFETY: token; the slice is checked to hold 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(v[..32].as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8]) -> __m512 {
        // SAFETY: token; the slice is checked to hold 32 bytes.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(v[..32].as_ptr().cast())))) }
    }
    #[inline(always)]
    fn load_u8(self, v: &[u8]) -> __m512i {
        // SAFETY: token; the slice is checked to hold 16 bytes.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(v[..16].as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bytes(self, v: &[u8]) -> __m512i {
        // SAFETY: token; the slice is checked to hold 64 bytes.
        unsafe { _mm512_loadu_si512(v[..64].as_ptr().cast()) }
    }
    #[inline(always)]
    fn f16_lanes(self, v: __m512i) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)) }
    }
    #[inline(always)]
    fn to_f(self, v: __m512i) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn round(self, v: __m512) -> __m512i {
        // SAFETY: token.
        unsafe { _mm512_cvtps_epi32(v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn as_floats(self, v: __m512i) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_castsi512_ps(v) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: token.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn most(self, v: __m512) -> f32 {
        // SAFETY: token.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn total(self, v: __m512i) -> i32 {
        // SAFETY: token.
        unsafe { _mm512_reduce_add_epi32(v) }
    }
}
