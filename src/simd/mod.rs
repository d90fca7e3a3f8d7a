//! The words a CPU can say: one trait, one file per instruction set, dispatch at run time.
//!
//! A value of a type that implements [`Simd`] is a token: holding it proves that the CPU has the instructions, because only
//! [`dispatch`] makes one, after [`Level::detect`] or [`Level::available`] has looked. Kernels are generic over the token and
//! run inside a function compiled with the instruction set's target features; everything on the way is `#[inline(always)]`.
//!
//! The weight words look at a matrix as *groups of rows*: `LANES` rows at a time, one row per 32-bit lane. A vector of bytes
//! is `LANES / 4` parts of 16 bytes; in a quad `[V; 4]`, part `l` of vector `i` belongs to row `4 l + i` of the group.
//! [`Simd::transpose`] turns such a quad (16 consecutive bytes of every row) into four vectors of 32-bit lanes, vector `j`
//! holding bytes `4 j .. 4 j + 4` of every row, rows in order. Header words, scales and codes of all formats are read this way.
//!
//! Invariants: integer words are exact and equal on every level; float words round to nearest, and `fma` is fused on every
//! level but `Portable`, so that every level but `Portable` gives the same bits.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::marker::PhantomData;
use std::sync::OnceLock;

/// What a code vector holds: unsigned codes of at most 4 bits.
pub const U4: u8 = 0;
/// Unsigned codes of at most 6 bits.
pub const U6: u8 = 1;
/// Signed 8-bit codes, passed through [`Simd::signed`].
pub const I8: u8 = 2;

/// `[f(0), f(1), f(2), f(3)]` without a closure, which the compiler might not inline into a target-feature function.
macro_rules! quad {
    ($i:ident => $e:expr) => {
        [{ const $i: usize = 0; $e }, { const $i: usize = 1; $e }, { const $i: usize = 2; $e }, { const $i: usize = 3; $e }]
    };
}
pub(crate) use quad;

/// Types for which any bit pattern is a value.
///
/// # Safety
/// No padding, no invalid patterns, no drop.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: an array of plain values is plain.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
// SAFETY: integers and floats have no invalid patterns.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}

/// `LANES` consecutive rows of a matrix of bytes, read in place.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    base: *const u8,
    stride: usize,
    lanes: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Rows<'a> {
    /// Rows `first .. first + lanes` of the matrix `bytes`, each `stride` bytes long.
    ///
    /// # Panics
    /// If they do not lie inside `bytes`.
    #[inline(always)]
    pub fn new(bytes: &'a [u8], stride: usize, first: usize, lanes: usize) -> Rows<'a> {
        let end = first.checked_add(lanes).and_then(|n| n.checked_mul(stride));
        assert!(end.is_some_and(|e| e <= bytes.len()), "rows {first}+{lanes} outside the matrix");
        // SAFETY: first * stride <= end <= len.
        Rows { base: unsafe { bytes.as_ptr().add(first * stride) }, stride, lanes, bytes: PhantomData }
    }

    /// Address of byte `at` of row `row`, one of the first four, from which `len` bytes may be read, as from the same row of each four up
    /// to `rows`.
    #[inline(always)]
    fn at(&self, row: usize, rows: usize, at: usize, len: usize) -> *const u8 {
        // Only the place changes in a loop; the rest is known before it, or when this is compiled.
        assert!(row < 4 && 4 <= rows && rows <= self.lanes && len <= self.stride, "no such rows");
        assert!(at <= self.stride - len, "read outside the row");
        // SAFETY: row < rows <= lanes and at + len <= stride, so the bytes lie inside the rows checked in `new`.
        unsafe { self.base.add(row * self.stride + at) }
    }

    /// Bytes `at .. at + len` of row `row`.
    ///
    /// # Panics
    /// If there are not that many.
    #[inline(always)]
    pub fn row(&self, row: usize, at: usize, len: usize) -> &'a [u8] {
        assert!(row < self.lanes && len <= self.stride && at <= self.stride - len, "read outside the row");
        // SAFETY: row < lanes and at + len <= stride, so the bytes lie inside the rows checked in `new`, which live for 'a.
        unsafe { std::slice::from_raw_parts(self.base.add(row * self.stride + at), len) }
    }

    /// Asks the second-level cache for `len` bytes that will be wanted when this many more have been used up: one and a half times
    /// these rows, or `AHEAD` where they are short, for memory answers no faster then. (The first level would not hold two groups of
    /// long rows.) `from` is what has been asked for so far. A hint: nothing need be there.
    #[inline(always)]
    pub fn prefetch_following(&self, from: usize, len: usize) {
        const AHEAD: usize = 10 << 10;
        prefetch_at(self.base.wrapping_add((self.lanes * self.stride * 3 / 2).max(AHEAD) + from), len);
    }
}

/// Asks the second-level cache for bytes `from .. from + len`, as far as there are any.
#[inline(always)]
pub fn prefetch<T: Plain>(values: &[T], from: usize, len: usize) {
    if from < size_of_val(values) {
        prefetch_at(values.as_ptr().cast::<u8>().wrapping_add(from), len);
    }
}

/// Asks the second-level cache for the `len` bytes that lie `ahead` bytes behind the beginning of `values`. A hint: nothing need be there.
#[inline(always)]
pub fn prefetch_ahead<T>(values: &[T], ahead: usize, len: usize) {
    prefetch_at(values.as_ptr().cast::<u8>().wrapping_add(ahead), len);
}

#[inline(always)]
fn prefetch_at(start: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..len).step_by(64) {
        // SAFETY: prefetching any address is allowed (SSE is part of x86-64).
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(start.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, len);
}

/// The vocabulary. `V` is a vector of bytes or of 32-bit integers as the word says; `F` a vector of `f32`.
///
/// Shift counts must be below the width of what is shifted.
#[allow(missing_docs)]
pub trait Simd: Copy + Send + Sync + 'static {
    /// Integers: `4 * LANES` bytes.
    type V: Plain;
    /// `LANES` floats.
    type F: Plain;
    /// 32-bit lanes of a vector; a multiple of 4, at most 16.
    const LANES: usize;
    /// What [`Simd::signed`] adds to signed codes (the dot word wants unsigned ones); kernels take it off the sum.
    const SIGNED_BIAS: i32;
    /// How many panels of four activation rows a mat-mat tile should take.
    const TILE_PANELS: usize;
    /// Whether mat-mat multiplies with the four columns of a panel by [`Simd::dot_panel`].
    const PANELS: bool = false;
    /// Rows of queries that attention takes at once, 1 to 4. There is code for each number up to it.
    const QUERY_ROWS: usize = 4;
    /// Whether the words for pairs of columns are faster than two products.
    const PAIRS: bool = false;
    /// Whether [`Simd::lookup`] of the products of two small codes is faster than [`Simd::dot`]: where no instruction adds four products of bytes.
    const LOOKUP_BEATS_DOT: bool = false;
    /// Whether a vector holds 64 bytes and the words for long pieces of rows are there.
    const LONG: bool = false;

    // --- bytes and integers
    fn splat8(self, v: u8) -> Self::V;
    fn splat32(self, v: i32) -> Self::V;
    fn and(self, a: Self::V, b: Self::V) -> Self::V;
    fn or(self, a: Self::V, b: Self::V) -> Self::V;
    fn xor(self, a: Self::V, b: Self::V) -> Self::V;
    /// Shift in 16-bit elements (bytes leak into their neighbours: mask afterwards).
    fn shr16(self, v: Self::V, n: u32) -> Self::V;
    fn shl16(self, v: Self::V, n: u32) -> Self::V;
    /// Shifts of 32-bit elements: logical right, left, arithmetic right.
    fn shr32(self, v: Self::V, n: u32) -> Self::V;
    fn shl32(self, v: Self::V, n: u32) -> Self::V;
    fn sar32(self, v: Self::V, n: u32) -> Self::V;
    fn add32(self, a: Self::V, b: Self::V) -> Self::V;
    /// `table[v & 15]` for every byte (bytes must be below 16).
    fn lookup(self, table: &[i8; 16], v: Self::V) -> Self::V;
    /// Byte `e` of every 16-byte part becomes 255 if bit `e` of the little-endian u16 at byte `at` of that part is set, else 0.
    fn spread_bits(self, v: Self::V, at: usize) -> Self::V;
    /// See the module: a quad of row bytes to four vectors of row lanes.
    fn transpose(self, q: [Self::V; 4]) -> [Self::V; 4];
    /// Signed codes as the dot word of kind [`I8`] wants them: each plus `SIGNED_BIAS`.
    fn signed(self, v: Self::V) -> Self::V;
    /// The first `LANES` integers of `v` as bytes (they must fit).
    fn store_i8(self, v: Self::V, out: &mut [i8]);

    // --- products of weight codes (kind `K`) with activations
    /// Transposed form: lane `r` of `acc` plus the dot of row `r`'s 16 codes with `a`.
    fn dot<const K: u8>(self, acc: Self::V, w: &[Self::V; 4], a: &[i8; 16]) -> Self::V;
    /// Row form, 16 codes a row: lane `r` is the dot of row `r` with `a`.
    fn dot_rows16<const K: u8>(self, w: [Self::V; 4], a: &[i8; 16]) -> Self::V;
    /// Row form, 32 codes a row: `lo` are the first 16.
    fn dot_rows32<const K: u8>(self, lo: [Self::V; 4], hi: [Self::V; 4], a: &[i8; 32]) -> Self::V;

    /// Transposed form, four columns: lane `r` of vector `c` is `start[c]` plus the dot of row `r` with column `c` over the elements
    /// `4 FROM .. 4 TO` of a block (both even). Where `PANELS`.
    fn dot_panel<const K: u8, const FROM: usize, const TO: usize>(
        self,
        _start: [i32; 4],
        _w: &[[Self::V; 4]; 2],
        _a: &[[i8; 32]; 4],
    ) -> [Self::V; 4] {
        unreachable!("PANELS is false")
    }

    // --- the same for two activation rows (columns) at a time, each word in a form of the level's own
    /// A quad of row bytes as the words below want it, and [`Simd::dot`] where `PAIRS` is false.
    #[inline(always)]
    fn tile(self, q: [Self::V; 4]) -> [Self::V; 4] {
        self.transpose(q)
    }
    /// Puts a block of two columns in order for [`Simd::dot_pair`].
    #[inline(always)]
    fn arrange_pair(self, a: &mut [[i8; 32]; 2]) {
        let _ = a;
    }
    /// Accumulators that start from an integer for each column.
    #[inline(always)]
    fn start_pair(self, start: [i32; 2]) -> [Self::V; 2] {
        [self.splat32(start[0]), self.splat32(start[1])]
    }
    /// Adds the dots of every row's 16 codes with half `half` of both columns.
    #[inline(always)]
    fn dot_pair<const K: u8>(self, acc: [Self::V; 2], w: &[Self::V; 4], a: &[[i8; 32]; 2], half: usize) -> [Self::V; 2] {
        dot_columns::<Self, K>(self, acc, w, a, half)
    }
    /// The accumulators by column: lane `r` is row `r`'s.
    #[inline(always)]
    fn end_pair(self, acc: [Self::V; 2]) -> [Self::V; 2] {
        acc
    }

    // --- 64 bytes of one row at a time, where `LONG`
    /// 32 bytes, twice.
    fn load_twice(self, _v: &[u8]) -> Self::V {
        unreachable!("LONG is false")
    }
    /// [`Simd::shl16`] by `n[0]` in the first half of the vector, by `n[1]` in the second.
    fn shl16_halves(self, _v: Self::V, _n: [u16; 2]) -> Self::V {
        unreachable!("LONG is false")
    }
    /// [`Simd::shr16`] likewise.
    fn shr16_halves(self, _v: Self::V, _n: [u16; 2]) -> Self::V {
        unreachable!("LONG is false")
    }
    /// Four rows of 64 codes: lane `4 l + i` is the dot of part `l` of `w[i]` with part `l` of the activations.
    fn dot_long(self, _w: [Self::V; 4], _a: [&[i8; 32]; 2]) -> Self::V {
        unreachable!("LONG is false")
    }
    /// Part `i` of vector `l` is part `l` of `q[i]`.
    fn transpose_parts(self, _q: [Self::V; 4]) -> [Self::V; 4] {
        unreachable!("LONG is false")
    }

    // --- reads from a group of rows
    /// 16 bytes at byte `at` of the rows `4 l + i`.
    fn rows16(self, rows: &Rows<'_>, i: usize, at: usize) -> Self::V;
    /// The u16 at byte `at` of every row, one per lane.
    fn rows_u16(self, rows: &Rows<'_>, at: usize) -> Self::V;
    /// The u32 at byte `at` of every row, one per lane.
    fn rows_u32(self, rows: &Rows<'_>, at: usize) -> Self::V;

    // --- floats
    fn splat(self, v: f32) -> Self::F;
    fn load(self, v: &[f32]) -> Self::F;
    fn store(self, v: Self::F, out: &mut [f32]);
    /// `LANES` little-endian f32 from bytes.
    fn load_f32(self, v: &[u8]) -> Self::F;
    /// `LANES` little-endian f16 from bytes.
    fn load_f16(self, v: &[u8]) -> Self::F;
    /// `LANES` little-endian bf16 from bytes.
    fn load_bf16(self, v: &[u8]) -> Self::F;
    /// `LANES` bytes, one per 32-bit lane.
    fn load_u8(self, v: &[u8]) -> Self::V;
    /// `4 * LANES` bytes as they lie.
    fn load_bytes(self, v: &[u8]) -> Self::V;
    /// The f16 in the low half of every 32-bit lane (the high half must be zero).
    fn f16_lanes(self, v: Self::V) -> Self::F;
    fn to_f(self, v: Self::V) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, v: Self::F) -> Self::V;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// Not a number where `b` is not one (where only `a` is, that depends on the level).
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// As for `max`.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// The floats whose bits the 32-bit lanes are.
    fn as_floats(self, v: Self::V) -> Self::F;

    // --- made of the above
    /// The lanes of `v` in an array (the first `LANES` of 16).
    #[inline(always)]
    fn to_array(self, v: Self::F) -> [f32; 16] {
        let mut a = [0.0; 16];
        self.store(v, &mut a);
        a
    }
    /// Sum of the lanes, halves first: lanes `i` and `i + LANES / 2` are added, and so on.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let mut a = self.to_array(v);
        let mut n = Self::LANES / 2;
        while n > 0 {
            for i in 0..n {
                a[i] += a[i + n];
            }
            n /= 2;
        }
        a[0]
    }
    /// The largest lane.
    #[inline(always)]
    fn most(self, v: Self::F) -> f32 {
        let mut a = self.to_array(v);
        let mut n = Self::LANES / 2;
        while n > 0 {
            for i in 0..n {
                a[i] = if a[i + n] > a[i] { a[i + n] } else { a[i] };
            }
            n /= 2;
        }
        a[0]
    }
    /// Sum of the integer lanes, which must be below 2^24 in all partial sums.
    #[inline(always)]
    fn total(self, v: Self::V) -> i32 {
        self.sum(self.to_f(v)) as i32
    }
    /// The f16 at byte `at` of every row.
    #[inline(always)]
    fn rows_f16(self, rows: &Rows<'_>, at: usize) -> Self::F {
        self.f16_lanes(self.rows_u16(rows, at))
    }
    /// A quad: 16 bytes at byte `at` of every row.
    #[inline(always)]
    fn rows_quad(self, rows: &Rows<'_>, at: usize) -> [Self::V; 4] {
        quad!(I => self.rows16(rows, I, at))
    }
    /// Byte `j` of every lane, unsigned.
    #[inline(always)]
    fn byte_u(self, v: Self::V, j: u32) -> Self::V {
        self.and(self.shr32(v, 8 * j), self.splat32(255))
    }
    /// Byte `j` of every lane, signed.
    #[inline(always)]
    fn byte_i(self, v: Self::V, j: u32) -> Self::V {
        self.sar32(self.shl32(v, 24 - 8 * j), 24)
    }
}

/// Two columns one by one.
#[inline(always)]
fn dot_columns<S: Simd, const K: u8>(s: S, acc: [S::V; 2], w: &[S::V; 4], a: &[[i8; 32]; 2], half: usize) -> [S::V; 2] {
    let (x, y) = (a[0].as_chunks::<16>().0, a[1].as_chunks::<16>().0);
    [s.dot::<K>(acc[0], w, &x[half]), s.dot::<K>(acc[1], w, &y[half])]
}

/// A computation that is generic over the vocabulary. Its `run` must be `#[inline(always)]`.
pub trait Task {
    /// What it gives.
    type Out;
    /// Whether it multiplies codes, or lays them out for who does. Levels that differ in nothing else share the code of tasks without.
    const PRODUCTS: bool = true;
    /// Does it.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// An instruction set level that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Plain Rust.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AVX2 and AVX-VNNI.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// AArch64's own vectors.
    Neon,
    /// Neon and `sdot`.
    DotProd,
    /// `sdot` and the 8-bit matrix products.
    I8mm,
}

impl Level {
    const ALL: [Level; 7] = [Level::Portable, Level::Avx2, Level::AvxVnni, Level::Avx512, Level::Neon, Level::DotProd, Level::I8mm];

    /// The name that `LOCI_SIMD` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::AvxVnni => "avxvnni",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
            Level::DotProd => "dotprod",
            Level::I8mm => "i8mm",
        }
    }

    /// True if this CPU can run it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("popcnt")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2");
            match self {
                Level::Portable => true,
                Level::Avx2 => avx2,
                Level::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
                Level::Avx512 => {
                    avx2 && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512vnni")
                }
                _ => false,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            match self {
                Level::Portable => true,
                Level::Neon => is_aarch64_feature_detected!("neon"),
                Level::DotProd => is_aarch64_feature_detected!("dotprod"),
                Level::I8mm => is_aarch64_feature_detected!("dotprod") && is_aarch64_feature_detected!("i8mm"),
                _ => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Level::Portable
        }
    }

    /// Every level this CPU can run, lowest first.
    pub fn available() -> Vec<Level> {
        Level::ALL.into_iter().filter(|l| l.is_available()).collect()
    }

    /// The level to compute with: the highest available, or a lower one if `LOCI_SIMD` asks for it. Looked up once.
    pub fn detect() -> Level {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let available = Level::available();
            let best = available.last().copied().unwrap_or(Level::Portable);
            match std::env::var("LOCI_SIMD") {
                Ok(asked) => Level::choose(&available, &asked).unwrap_or_else(|| {
                    log::warn!("LOCI_SIMD={asked} is not a level of this CPU; using {}", best.name());
                    best
                }),
                Err(_) => best,
            }
        })
    }

    fn choose(available: &[Level], asked: &str) -> Option<Level> {
        available.iter().copied().find(|l| l.name().eq_ignore_ascii_case(asked.trim()))
    }
}

/// Runs `task` with the words of `level`.
///
/// # Panics
/// If this CPU does not have `level`.
pub fn dispatch<T: Task>(level: Level, task: T) -> T::Out {
    // The check is a load and a bit test: std caches the features.
    assert!(level.is_available(), "{level:?} is not available on this CPU");
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features were checked above.
        Level::AvxVnni if T::PRODUCTS => unsafe { avx2::run_avxvnni(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features were checked above.
        Level::Avx2 | Level::AvxVnni => unsafe { avx2::run_avx2(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features were checked above.
        Level::Avx512 => unsafe { avx512::run(task) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the features were checked above.
        Level::DotProd if T::PRODUCTS => unsafe { neon::run_dotprod(task) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the features were checked above.
        Level::I8mm if T::PRODUCTS => unsafe { neon::run_i8mm(task) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the features were checked above; the higher levels have Neon.
        Level::Neon | Level::DotProd | Level::I8mm => unsafe { neon::run_neon(task) },
        _ => task.run(portable::Portable(())),
    }
}

/// A buffer that is reused for vectors of any level: it grows, never shrinks, and hands out aligned slices.
#[derive(Default)]
pub struct Scratch {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Scratch {
    /// An empty one.
    pub const fn new() -> Scratch {
        Scratch { lines: Vec::new() }
    }

    /// Two slices of `a` and `b` elements; what they hold is whatever was there before.
    pub fn two<A: Plain, B: Plain>(&mut self, a: usize, b: usize) -> (&mut [A], &mut [B]) {
        const { assert!(align_of::<A>() <= 64 && align_of::<B>() <= 64) };
        let (la, lb) = ((a * size_of::<A>()).div_ceil(64), (b * size_of::<B>()).div_ceil(64));
        if self.lines.len() < la + lb {
            self.lines.resize(la + lb, Line([0; 64]));
        }
        let (first, second) = self.lines.split_at_mut(la);
        // SAFETY: `Plain` types take any bit pattern, the lines are initialised, aligned to 64 and long enough, and the two
        // parts are disjoint and borrowed mutably from `self`.
        unsafe {
            (std::slice::from_raw_parts_mut(first.as_mut_ptr().cast(), a), std::slice::from_raw_parts_mut(second.as_mut_ptr().cast(), b))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_levels_of_this_cpu_can_be_chosen() {
        let all = Level::available();
        assert_eq!(all[0], Level::Portable);
        assert_eq!(Level::choose(&all, " PORTABLE "), Some(Level::Portable));
        assert_eq!(Level::choose(&all, "sse9"), None);
        assert_eq!(Level::choose(&[Level::Portable], "avx2"), None);
    }

    /// Every word whose meaning is not plain from its name, against plain code.
    struct Words;
    impl Task for Words {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let stride = 61;
            let bytes: Vec<u8> = (0..stride * (S::LANES + 2)).map(|i| (i as u32).wrapping_mul(2654435761).to_be_bytes()[0]).collect();
            let rows = Rows::new(&bytes, stride, 1, S::LANES);
            let row = |r: usize, at: usize| &bytes[(r + 1) * stride + at..];
            let lanes = |v: S::V| {
                // Exact: values below 2^24 only.
                s.to_array(s.to_f(v))
            };
            let at = 7;
            let quad = s.rows_quad(&rows, at);
            for (j, v) in s.transpose(quad).into_iter().enumerate() {
                for b in 0..4 {
                    let (u, i) = (lanes(s.byte_u(v, b)), lanes(s.byte_i(v, b)));
                    for r in 0..S::LANES {
                        let want = row(r, at + 4 * j + b as usize)[0];
                        assert_eq!((u[r], i[r]), (f32::from(want), f32::from(want as i8)), "row {r} byte {b} of {j}");
                    }
                }
            }
            let halves = lanes(s.rows_u16(&rows, 3));
            let words = lanes(s.shr32(s.rows_u32(&rows, 3), 8));
            for r in 0..S::LANES {
                assert_eq!(halves[r], f32::from(u16::from_le_bytes([row(r, 3)[0], row(r, 3)[1]])));
                assert_eq!(words[r], (u32::from_le_bytes(row(r, 3)[..4].try_into().unwrap()) >> 8) as f32);
            }
            let spread = s.transpose(quad!(I => s.spread_bits(quad[I], 5)));
            for r in 0..S::LANES {
                let bits = u16::from_le_bytes([row(r, at + 5)[0], row(r, at + 5)[1]]);
                for e in 0..16 {
                    let got = lanes(s.byte_u(spread[e / 4], e as u32 % 4))[r];
                    assert_eq!(got, if bits >> e & 1 == 1 { 255.0 } else { 0.0 });
                }
            }
            let table: [i8; 16] = std::array::from_fn(|i| (i as i8 - 8) * 15);
            let looked = s.transpose(quad!(I => s.lookup(&table, s.and(quad[I], s.splat8(15)))));
            for r in 0..S::LANES {
                for e in 0..16 {
                    let got = lanes(s.byte_i(looked[e / 4], e as u32 % 4))[r];
                    assert_eq!(got, f32::from(table[usize::from(row(r, at + e)[0] & 15)]));
                }
            }
            // Extremes of the activations and of the codes.
            let a: [i8; 32] = std::array::from_fn(|i| [127, -127, 127, 90, -3, -127, 1, 127][i % 8 * (i + 3) % 8]);
            let (a0, a1): (&[i8; 16], &[i8; 16]) = (a[..16].try_into().unwrap(), a[16..].try_into().unwrap());
            let hi = s.rows_quad(&rows, at + 16);
            let code = |r: usize, e: usize| row(r, at + e)[0];
            let dots = |f: &dyn Fn(u8) -> i32, r: usize, n: usize| (0..n).map(|e| f(code(r, e)) * i32::from(a[e])).sum::<i32>();
            let mask = |m: u8, q: [S::V; 4]| quad!(I => s.and(q[I], s.splat8(m)));
            let signed = |q: [S::V; 4]| quad!(I => s.signed(q[I]));
            let bias: i32 = a.iter().map(|v| i32::from(*v)).sum::<i32>() * S::SIGNED_BIAS;
            let bias16: i32 = a0.iter().map(|v| i32::from(*v)).sum::<i32>() * S::SIGNED_BIAS;
            let start = s.splat32(5);
            let (l4, h4, l6, h6, l8, h8) = (mask(15, quad), mask(15, hi), mask(63, quad), mask(63, hi), signed(quad), signed(hi));
            let got = [
                (lanes(s.dot_rows32::<U4>(l4, h4, &a)), 15, 32, 0),
                (lanes(s.dot_rows32::<U6>(l6, h6, &a)), 63, 32, 0),
                (lanes(s.dot_rows32::<I8>(l8, h8, &a)), 255, 32, bias),
                (lanes(s.dot_rows16::<U4>(l4, a0)), 15, 16, 0),
                (lanes(s.dot_rows16::<U6>(l6, a0)), 63, 16, 0),
                (lanes(s.dot_rows16::<I8>(l8, a0)), 255, 16, bias16),
                (lanes(s.dot::<U4>(s.dot::<U4>(start, &s.transpose(l4), a0), &s.transpose(h4), a1)), 15, 32, 5),
                (lanes(s.dot::<U6>(s.dot::<U6>(start, &s.transpose(l6), a0), &s.transpose(h6), a1)), 63, 32, 5),
                (lanes(s.dot::<I8>(s.dot::<I8>(start, &s.transpose(l8), a0), &s.transpose(h8), a1)), 255, 32, bias + 5),
            ];
            for (i, (lanes, m, n, extra)) in got.into_iter().enumerate() {
                for (r, lane) in lanes.iter().enumerate().take(S::LANES) {
                    let f: &dyn Fn(u8) -> i32 = if m == 255 { &|v| i32::from(v as i8) } else { &|v| i32::from(v & m) };
                    assert_eq!(*lane, (dots(f, r, n) + extra) as f32, "dot {i}, row {r}");
                }
            }
            // Two columns, starting from 5 and -7: 32 codes a row, then the second half alone.
            let b: [i8; 32] = std::array::from_fn(|i| a[31 - i].wrapping_add(i as i8).max(-127));
            let mut pair = [a, b];
            s.arrange_pair(&mut pair);
            let column = |r: usize, m: u8, x: &[i8; 32], from: usize| {
                let value = |e: usize| if m == 255 { i32::from(code(r, e) as i8) + S::SIGNED_BIAS } else { i32::from(code(r, e) & m) };
                (from..32).map(|e| value(e) * i32::from(x[e])).sum::<i32>()
            };
            let tiles = |lo, hi| [s.tile(lo), s.tile(hi)];
            let (t4, t6, t8) = (tiles(l4, h4), tiles(l6, h6), tiles(l8, h8));
            let start = || s.start_pair([5, -7]);
            let got = [
                (s.dot_pair::<U4>(s.dot_pair::<U4>(start(), &t4[0], &pair, 0), &t4[1], &pair, 1), 15, 0),
                (s.dot_pair::<U6>(s.dot_pair::<U6>(start(), &t6[0], &pair, 0), &t6[1], &pair, 1), 63, 0),
                (s.dot_pair::<I8>(s.dot_pair::<I8>(start(), &t8[0], &pair, 0), &t8[1], &pair, 1), 255, 0),
                (s.dot_pair::<U4>(start(), &t4[1], &pair, 1), 15, 16),
                (s.dot_pair::<U6>(start(), &t6[1], &pair, 1), 63, 16),
                (s.dot_pair::<I8>(start(), &t8[1], &pair, 1), 255, 16),
            ];
            for (acc, m, from) in got {
                let [x, y] = s.end_pair(acc).map(lanes);
                for r in 0..S::LANES {
                    let want = (column(r, m, &a, from) + 5, column(r, m, &b, from) - 7);
                    assert_eq!((x[r], y[r]), (want.0 as f32, want.1 as f32), "pair, codes up to {m} from {from}, row {r}");
                }
            }
            if S::PANELS {
                // Four columns: the whole block and its halves, at the extremes of both.
                let columns = [a, b, [127; 32], [-127; 32]];
                let start = [5, -7, 0, 1 << 20];
                let (l4, l6, l8) = (tiles(mask(15, quad), mask(15, hi)), tiles(mask(63, quad), mask(63, hi)), t8);
                let most = [[s.splat8(15); 4]; 2];
                let got = [
                    (s.dot_panel::<U4, 0, 8>(start, &l4, &columns), 15, 0..32),
                    (s.dot_panel::<U6, 0, 8>(start, &l6, &columns), 63, 0..32),
                    (s.dot_panel::<I8, 0, 8>(start, &l8, &columns), 255, 0..32),
                    (s.dot_panel::<U4, 0, 4>(start, &l4, &columns), 15, 0..16),
                    (s.dot_panel::<U6, 4, 8>(start, &l6, &columns), 63, 16..32),
                    (s.dot_panel::<I8, 4, 8>(start, &l8, &columns), 255, 16..32),
                ];
                for (dots, m, elements) in got {
                    for ((dots, x), start) in dots.map(lanes).iter().zip(&columns).zip(start) {
                        for (r, dot) in dots.iter().enumerate().take(S::LANES) {
                            let want = column(r, m, x, elements.start) - column(r, m, x, elements.end) + start;
                            assert_eq!(*dot, want as f32, "panel, codes up to {m} of {elements:?}, row {r}");
                        }
                    }
                }
                let dots = s.dot_panel::<U4, 0, 8>(start, &most, &columns);
                assert_eq!(lanes(dots[2])[..S::LANES], [(32 * 15 * 127) as f32; 16][..S::LANES], "the largest sums");
                assert_eq!(lanes(dots[3])[0], (-32 * 15 * 127 + (1 << 20)) as f32, "the least");
            }
            if S::LONG {
                // Four rows of 64 bytes that begin at bytes 0, 1, 2 and 3.
                let long = quad!(I => s.load_bytes(&bytes[I..]));
                let codes = mask(63, long);
                let dots = lanes(s.dot_long(codes, [&a, &b]));
                let across = s.transpose_parts(long);
                for r in 0..4 {
                    for part in 0..4 {
                        let x = if part < 2 { &a } else { &b };
                        let want: i32 = (0..16).map(|e| i32::from(bytes[r + 16 * part + e] & 63) * i32::from(x[part % 2 * 16 + e])).sum();
                        assert_eq!(dots[4 * part + r], want as f32, "long dot of row {r}, part {part}");
                        for e in 0..16 {
                            let got = lanes(s.byte_u(across[part], e as u32 % 4))[4 * r + e / 4];
                            assert_eq!(got, f32::from(bytes[r + 16 * part + e]), "part {part} of row {r}");
                        }
                    }
                }
                let twice = s.load_twice(&bytes);
                let (left, right) = (s.shl16_halves(twice, [3, 5]), s.shr16_halves(twice, [2, 7]));
                for e in 0..32 {
                    let v = u16::from_le_bytes([bytes[2 * e % 32], bytes[2 * e % 32 + 1]]);
                    let (low, high) = (2 * e as u32 % 4, (2 * e as u32 + 1) % 4);
                    let at = |v: S::V| lanes(s.byte_u(v, low))[e / 2] + 256.0 * lanes(s.byte_u(v, high))[e / 2];
                    assert_eq!((at(left), at(right)), (f32::from(v << [3, 5][e / 16]), f32::from(v >> [2, 7][e / 16])), "word {e}");
                }
            }
            let halves: Vec<u8> = (0..S::LANES).flat_map(|i| half::f16::from_f32(i as f32 * 0.37 - 2.0).to_le_bytes()).collect();
            let brains: Vec<u8> = (0..S::LANES).flat_map(|i| half::bf16::from_f32(i as f32 * 0.37 - 2.0).to_le_bytes()).collect();
            let (h, b) = (s.to_array(s.load_f16(&halves)), s.to_array(s.load_bf16(&brains)));
            for r in 0..S::LANES {
                assert_eq!(h[r], half::f16::from_f32(r as f32 * 0.37 - 2.0).to_f32());
                assert_eq!(b[r], half::bf16::from_f32(r as f32 * 0.37 - 2.0).to_f32());
            }
            let (widened, whole) = (lanes(s.load_u8(&bytes[5..])), s.load_bytes(&bytes[5..]));
            for r in 0..S::LANES {
                assert_eq!(widened[r], f32::from(bytes[5 + r]));
                for b in 0..4 {
                    assert_eq!(lanes(s.byte_u(whole, b))[r], f32::from(bytes[5 + 4 * r + b as usize]));
                }
            }
            for first in (0..=u16::MAX).step_by(S::LANES) {
                let halves: Vec<u8> = (0..S::LANES as u16).flat_map(|i| (first + i).to_le_bytes()).collect();
                let got = s.to_array(s.load_f16(&halves));
                for (i, got) in got.iter().enumerate().take(S::LANES) {
                    let bits = first + i as u16;
                    let want = half::f16::from_bits(bits).to_f32();
                    assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "half {bits:x}");
                }
            }
            let f: Vec<f32> = (0..S::LANES).map(|i| i as f32 * 7.5 - 44.0).collect();
            let mut rounded = [0i8; 16];
            s.store_i8(s.round(s.load(&f)), &mut rounded);
            for r in 0..S::LANES {
                assert_eq!(rounded[r], f[r].round_ties_even() as i8);
            }
            assert_eq!(s.sum(s.load(&f)), f.iter().sum::<f32>());
            assert_eq!(s.most(s.load(&f)), f[S::LANES - 1]);
            assert_eq!(s.total(s.round(s.load(&f))), f.iter().map(|f| f.round_ties_even() as i32).sum::<i32>());
            let bits = s.to_array(s.as_floats(s.splat32(0x4049_0fdb)));
            let quotients = s.to_array(s.div(s.load(&f), s.splat(3.0)));
            let (least, most) = (s.to_array(s.min(s.splat(5.0), s.load(&f))), s.to_array(s.max(s.splat(5.0), s.load(&f))));
            for r in 0..S::LANES {
                assert_eq!((bits[r], quotients[r]), (std::f32::consts::PI, f[r] / 3.0));
                assert_eq!((least[r], most[r]), (f[r].min(5.0), f[r].max(5.0)));
            }
            let nan = s.to_array(s.max(s.splat(5.0), s.min(s.splat(5.0), s.splat(f32::NAN))));
            assert!(nan[0].is_nan(), "the second operand is kept");
        }
    }

    #[test]
    fn words_mean_the_same_on_every_level() {
        for level in Level::available() {
            dispatch(level, Words);
        }
    }

    #[test]
    #[should_panic(expected = "outside the matrix")]
    fn rows_outside_the_matrix_are_refused() {
        Rows::new(&[0; 100], 30, 1, 4);
    }
}
