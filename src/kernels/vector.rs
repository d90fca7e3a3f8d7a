//! Small loops over f32 slices, and what several kernels say in the vocabulary; fixed order, so the same bits on every run
//! whatever the number of threads.

use crate::simd::Simd;

/// Sums run in this many lanes whatever the level has, so that all levels add in one order.
pub(super) const LANES: usize = 16;

/// The inner product of two slices of one length.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut acc = [0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            acc[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sum_lanes(acc) + rest
}

/// `acc += w * x`
#[inline]
pub fn add_scaled(acc: &mut [f32], w: f32, x: &[f32]) {
    for (a, x) in acc.iter_mut().zip(x) {
        *a += w * x;
    }
}

/// `acc += x`
#[inline]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub fn add(acc: &mut [f32], x: &[f32]) {
    for (a, x) in acc.iter_mut().zip(x) {
        *a += x;
    }
}

/// The first `S::LANES` elements at most of `x`, then zeros.
#[inline(always)]
pub(super) fn load_up_to<S: Simd>(s: S, x: &[f32]) -> S::F {
    let mut a = [0.0; LANES];
    a[..x.len()].copy_from_slice(x);
    s.load(&a)
}

/// Adds up what was summed in `LANES / S::LANES` vectors (the first of them; the others must be zero).
#[inline(always)]
pub(super) fn sum_vectors<S: Simd>(s: S, sums: [S::F; 4]) -> f32 {
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.chunks_exact_mut(S::LANES).zip(sums) {
        s.store(sum, lanes);
    }
    sum_lanes(lanes)
}

/// e^x in every lane, within 2 units in the last place from -87.3 to 88; 0 below -87.7, and e^88 above that.
/// (The polynomial of [`exp`]; not a number where `x` is not one.)
#[allow(clippy::excessive_precision)]
#[inline(always)]
pub(super) fn exp_vector<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.min(s.splat(88.0), s.max(s.splat(-88.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let whole = s.to_f(n);
    let r = s.fma(whole, s.splat(-0.693_359_4), x);
    let r = s.fma(whole, s.splat(2.121_944_4e-4), r);
    let p = s.fma(s.splat(1.987_569_1e-4), r, s.splat(1.398_199_9e-3));
    let p = s.fma(p, r, s.splat(8.333_452e-3));
    let p = s.fma(p, r, s.splat(4.166_579_6e-2));
    let p = s.fma(p, r, s.splat(1.666_666_5e-1));
    let p = s.fma(p, r, s.splat(5.000_000_1e-1));
    let y = s.add(s.fma(s.mul(p, r), r, r), s.splat(1.0));
    // 2^n; the exponent -127, of which there is no normal number, gives 0.
    s.mul(y, s.as_floats(s.shl32(s.add32(n, s.splat32(127)), 23)))
}

#[inline]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
fn sum_lanes(mut acc: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            acc[i] += acc[i + n];
        }
        n /= 2;
    }
    acc[0]
}

/// e^x in f32, within 2 units in the last place over the whole range; branch-free so that loops over it become vectors.
/// (Range reduction by ln 2 in two parts, then the degree-6 polynomial of Cody and Waite's scheme.)
#[allow(clippy::excessive_precision)]
#[inline]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub fn exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = clamped - n * LN2_HI - n * LN2_LO;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_1e-1;
    let y = p * r * r + r + 1.0;
    // 2^n in two halves, so that n = 128 does not overflow on the way.
    let half = (n * 0.5) as i32;
    let rest = n as i32 - half;
    let y = y * f32::from_bits(((half + 127) << 23) as u32) * f32::from_bits(((rest + 127) << 23) as u32);
    if x < -87.3 {
        0.0
    } else if x > 88.7 {
        f32::INFINITY
    } else {
        y
    }
}

#[cfg(test)]
mod tests {
    use super::LANES;
    use crate::simd::{Level, Simd, Task, dispatch};

    struct Exp<'a>(&'a mut [f32; LANES]);
    impl Task for Exp<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.0.chunks_exact_mut(S::LANES) {
                s.store(super::exp_vector(s, s.load(x)), x);
            }
        }
    }

    fn exp_at(level: Level, x: f32) -> f32 {
        let mut lanes = [x; LANES];
        dispatch(level, Exp(&mut lanes));
        lanes[LANES - 1]
    }

    #[test]
    fn exp_is_close_to_the_real_one() {
        for level in Level::available() {
            let mut x = -87.0f32;
            while x < 88.5 {
                let want = f64::from(x).exp();
                let got = f64::from(super::exp(x));
                assert!(((got - want) / want).abs() < 3e-7, "exp({x}) = {got}, expected {want}");
                let (got, want) = (f64::from(exp_at(level, x)), f64::from(x.min(88.0)).exp());
                assert!(((got - want) / want).abs() < 3e-7, "{level:?}: exp({x}) = {got}, expected {want}");
                x += 0.0137;
            }
            for (x, want) in [(0.0, 1.0), (-1000.0, 0.0), (f32::NEG_INFINITY, 0.0)] {
                assert_eq!((super::exp(x), exp_at(level, x)), (want, want));
            }
            assert_eq!(super::exp(1000.0), f32::INFINITY);
            assert!(exp_at(level, f32::INFINITY) > 1e38);
            assert!(exp_at(level, f32::NAN).is_nan());
        }
    }
}
