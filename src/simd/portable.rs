//! The vocabulary in plain Rust: four lanes, the yardstick for the other files and the floor for every other CPU.
//!
//! Lanes are spelled out: the compiler does not reliably inline the closures of `array::map`.

use super::{I8, Plain, Rows, Simd};

/// A function that is long when it is compiled: called where every CPU in use has a higher level, so that its code is there once; inlined
/// where this level is all there is.
macro_rules! outlined {
    ($($function:tt)*) => {
        #[cfg_attr(any(target_arch = "x86_64", target_arch = "aarch64"), inline(never))]
        #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), inline(always))]
        $($function)*
    };
}

/// The token; needs nothing of the CPU.
#[derive(Clone, Copy)]
pub struct Portable(pub(super) ());

/// 16 bytes, or four little-endian 32-bit integers.
#[derive(Clone, Copy)]
pub struct Bytes([u8; 16]);

// SAFETY: sixteen bytes.
unsafe impl Plain for Bytes {}

impl Bytes {
    #[inline(always)]
    fn words(self) -> [u32; 4] {
        let b = self.0.as_chunks::<4>().0;
        lanes(|i| u32::from_le_bytes(b[i]))
    }
    #[inline(always)]
    fn of_words(w: [u32; 4]) -> Bytes {
        let mut b = [0; 16];
        for (b, w) in b.as_chunks_mut::<4>().0.iter_mut().zip(w) {
            *b = w.to_le_bytes();
        }
        Bytes(b)
    }
    #[inline(always)]
    fn map(self, f: impl Fn(u32) -> u32) -> Bytes {
        let w = self.words();
        Bytes::of_words(lanes(|i| f(w[i])))
    }
    #[inline(always)]
    fn halves(self, f: impl Fn(u16) -> u16) -> Bytes {
        let mut b = self.0;
        for h in b.as_chunks_mut::<2>().0 {
            *h = f(u16::from_le_bytes(*h)).to_le_bytes();
        }
        Bytes(b)
    }
}

#[inline(always)]
fn lanes<T>(f: impl Fn(usize) -> T) -> [T; 4] {
    [f(0), f(1), f(2), f(3)]
}

outlined! {
    /// Exact: the exponent is moved by a multiplication, which takes care of subnormal halves too.
    fn half_to_f(h: u32) -> f32 {
        const TWO_TO_112: f32 = f32::from_bits(239 << 23);
        let finite = (f32::from_bits((h & 0x7fff) << 13) * TWO_TO_112).to_bits();
        let other = 0x7f80_0000 | (h & 0x03ff) << 13;
        f32::from_bits((h & 0x8000) << 16 | if h & 0x7c00 == 0x7c00 { other } else { finite })
    }
}

#[inline(always)]
fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[inline(always)]
fn code<const K: u8>(v: u8) -> i32 {
    if K == I8 { i32::from(v as i8) } else { i32::from(v) }
}

#[inline(always)]
fn dot16<const K: u8>(w: Bytes, a: &[i8]) -> i32 {
    w.0.iter().zip(a).map(|(w, a)| code::<K>(*w) * i32::from(*a)).sum()
}

impl Simd for Portable {
    type V = Bytes;
    type F = [f32; 4];
    const LANES: usize = 4;
    /// Where every CPU in use has a higher level, that code is not worth its size.
    const QUERY_ROWS: usize = if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) { 1 } else { 4 };
    const SIGNED_BIAS: i32 = 0;
    const TILE_PANELS: usize = 1;

    #[inline(always)]
    fn splat8(self, v: u8) -> Bytes {
        Bytes([v; 16])
    }
    #[inline(always)]
    fn splat32(self, v: i32) -> Bytes {
        Bytes::of_words([v as u32; 4])
    }
    #[inline(always)]
    fn and(self, a: Bytes, b: Bytes) -> Bytes {
        Bytes((u128::from_ne_bytes(a.0) & u128::from_ne_bytes(b.0)).to_ne_bytes())
    }
    #[inline(always)]
    fn or(self, a: Bytes, b: Bytes) -> Bytes {
        Bytes((u128::from_ne_bytes(a.0) | u128::from_ne_bytes(b.0)).to_ne_bytes())
    }
    #[inline(always)]
    fn xor(self, a: Bytes, b: Bytes) -> Bytes {
        Bytes((u128::from_ne_bytes(a.0) ^ u128::from_ne_bytes(b.0)).to_ne_bytes())
    }
    #[inline(always)]
    fn shr16(self, v: Bytes, n: u32) -> Bytes {
        v.halves(|h| h >> n)
    }
    #[inline(always)]
    fn shl16(self, v: Bytes, n: u32) -> Bytes {
        v.halves(|h| h << n)
    }
    #[inline(always)]
    fn shr32(self, v: Bytes, n: u32) -> Bytes {
        v.map(|w| w >> n)
    }
    #[inline(always)]
    fn shl32(self, v: Bytes, n: u32) -> Bytes {
        v.map(|w| w << n)
    }
    #[inline(always)]
    fn sar32(self, v: Bytes, n: u32) -> Bytes {
        v.map(|w| (w as i32 >> n) as u32)
    }
    #[inline(always)]
    fn add32(self, a: Bytes, b: Bytes) -> Bytes {
        let (a, b) = (a.words(), b.words());
        Bytes::of_words([a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1]), a[2].wrapping_add(b[2]), a[3].wrapping_add(b[3])])
    }
    outlined! {
        fn lookup(self, table: &[i8; 16], v: Bytes) -> Bytes {
            Bytes(v.0.map(|i| table[usize::from(i & 15)] as u8))
        }
    }
    outlined! {
        fn spread_bits(self, v: Bytes, at: usize) -> Bytes {
            let bits = u16::from_le_bytes([v.0[at], v.0[at + 1]]);
            let mut out = [0; 16];
            for (e, o) in out.iter_mut().enumerate() {
                *o = if bits >> e & 1 == 1 { 255 } else { 0 };
            }
            Bytes(out)
        }
    }
    outlined! {
        fn transpose(self, q: [Bytes; 4]) -> [Bytes; 4] {
            let q = [q[0].words(), q[1].words(), q[2].words(), q[3].words()];
            lanes(|j| Bytes::of_words([q[0][j], q[1][j], q[2][j], q[3][j]]))
        }
    }
    #[inline(always)]
    fn signed(self, v: Bytes) -> Bytes {
        v
    }
    #[inline(always)]
    fn store_i8(self, v: Bytes, out: &mut [i8]) {
        for (o, w) in out[..4].iter_mut().zip(v.words()) {
            *o = w as i8;
        }
    }
    outlined! {
        fn dot<const K: u8>(self, acc: Bytes, w: &[Bytes; 4], a: &[i8; 16]) -> Bytes {
            let acc = acc.words();
            let mut sums = lanes(|r| acc[r] as i32);
            for (w, a) in w.iter().zip(a.as_chunks::<4>().0) {
                for (sum, codes) in sums.iter_mut().zip(w.0.as_chunks::<4>().0) {
                    *sum += codes.iter().zip(a).map(|(c, a)| code::<K>(*c) * i32::from(*a)).sum::<i32>();
                }
            }
            Bytes::of_words(lanes(|r| sums[r] as u32))
        }
    }
    outlined! {
        fn dot_rows16<const K: u8>(self, w: [Bytes; 4], a: &[i8; 16]) -> Bytes {
            Bytes::of_words(lanes(|r| dot16::<K>(w[r], a) as u32))
        }
    }
    outlined! {
        fn dot_rows32<const K: u8>(self, lo: [Bytes; 4], hi: [Bytes; 4], a: &[i8; 32]) -> Bytes {
            let (a, b) = a.split_at(16);
            Bytes::of_words(lanes(|i| (dot16::<K>(lo[i], a) + dot16::<K>(hi[i], b)) as u32))
        }
    }
    #[inline(always)]
    fn rows16(self, rows: &Rows<'_>, i: usize, at: usize) -> Bytes {
        // SAFETY: `at` checks that 16 bytes may be read.
        Bytes(unsafe { rows.at(i, 4, at, 16).cast::<[u8; 16]>().read_unaligned() })
    }
    #[inline(always)]
    fn rows_u16(self, rows: &Rows<'_>, at: usize) -> Bytes {
        // SAFETY: `at` checks that 2 bytes may be read.
        Bytes::of_words(lanes(|r| u32::from(u16::from_le_bytes(unsafe { rows.at(r, 4, at, 2).cast::<[u8; 2]>().read_unaligned() }))))
    }
    #[inline(always)]
    fn rows_u32(self, rows: &Rows<'_>, at: usize) -> Bytes {
        // SAFETY: `at` checks that 4 bytes may be read.
        Bytes::of_words(lanes(|r| u32::from_le_bytes(unsafe { rows.at(r, 4, at, 4).cast::<[u8; 4]>().read_unaligned() })))
    }
    #[inline(always)]
    fn splat(self, v: f32) -> [f32; 4] {
        [v; 4]
    }
    #[inline(always)]
    fn load(self, v: &[f32]) -> [f32; 4] {
        [v[0], v[1], v[2], v[3]]
    }
    #[inline(always)]
    fn store(self, v: [f32; 4], out: &mut [f32]) {
        out[..4].copy_from_slice(&v);
    }
    #[inline(always)]
    fn load_f32(self, v: &[u8]) -> [f32; 4] {
        let v = v.as_chunks::<4>().0;
        lanes(|i| f32::from_le_bytes(v[i]))
    }
    #[inline(always)]
    fn load_f16(self, v: &[u8]) -> [f32; 4] {
        let v = v.as_chunks::<2>().0;
        lanes(|i| half_to_f(u32::from(u16::from_le_bytes(v[i]))))
    }
    #[inline(always)]
    fn load_bf16(self, v: &[u8]) -> [f32; 4] {
        let v = v.as_chunks::<2>().0;
        lanes(|i| f32::from_bits(u32::from(u16::from_le_bytes(v[i])) << 16))
    }
    #[inline(always)]
    fn load_u8(self, v: &[u8]) -> Bytes {
        Bytes::of_words(lanes(|i| u32::from(v[i])))
    }
    #[inline(always)]
    fn load_bytes(self, v: &[u8]) -> Bytes {
        let mut b = [0; 16];
        b.copy_from_slice(&v[..16]);
        Bytes(b)
    }
    #[inline(always)]
    fn f16_lanes(self, v: Bytes) -> [f32; 4] {
        let w = v.words();
        lanes(|i| half_to_f(w[i]))
    }
    #[inline(always)]
    fn to_f(self, v: Bytes) -> [f32; 4] {
        let w = v.words();
        lanes(|i| w[i] as i32 as f32)
    }
    #[inline(always)]
    fn round(self, v: [f32; 4]) -> Bytes {
        Bytes::of_words(lanes(|i| v[i].round_ties_even() as i32 as u32))
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a * b)
    }
    /// Two roundings: a fused one is a library call where the CPU has no instruction for it.
    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1], a[2] * b[2] + c[2], a[3] * b[3] + c[3]]
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn as_floats(self, v: Bytes) -> [f32; 4] {
        let w = v.words();
        lanes(|i| f32::from_bits(w[i]))
    }
    #[inline(always)]
    fn abs(self, a: [f32; 4]) -> [f32; 4] {
        lanes(|i| a[i].abs())
    }
}
