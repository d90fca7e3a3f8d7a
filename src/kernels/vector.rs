//! Small loops over f32 slices, and what several kernels say in the vocabulary; fixed order, so the same bits on every run
//! whatever the number of threads.

use crate::simd::{Level, Simd, Task, dispatch};

/// Sums run in this many lanes whatever the level has, so that all levels add in one order.
pub(super) const LANES: usize = 16;

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

/// ln 2 in two parts, the first of which has few enough bits that its products with small integers are exact.
#[allow(clippy::excessive_precision)]
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, highest power first (Cody and Waite's scheme).
#[allow(clippy::excessive_precision)]
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_1e-1];

/// e^x in every lane, within 2 units in the last place from -87.3 to 88; 0 below -87.7, and e^88 above that.
/// (The polynomial of [`exp`]; not a number where `x` is not one.)
#[inline(always)]
pub(super) fn exp_vector<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.min(s.splat(88.0), s.max(s.splat(-88.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let whole = s.to_f(n);
    let r = s.fma(whole, s.splat(-LN2[0]), x);
    let r = s.fma(whole, s.splat(-LN2[1]), r);
    let mut p = s.splat(EXP[0]);
    for c in &EXP[1..] {
        p = s.fma(p, r, s.splat(*c));
    }
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

/// Turns logits into the squares of their shares of a softmax, in place. All zeros where no logit is above negative infinity.
pub fn square_shares(logits: &mut [f32]) {
    square_shares_at(Level::detect(), logits);
}

/// [`square_shares`] on a given level.
pub fn square_shares_at(level: Level, logits: &mut [f32]) {
    dispatch(level, SquareShares(logits));
}

/// e^(x - max) in place of every x, and added to the sums.
#[inline(always)]
fn add_exps<S: Simd>(s: S, x: &mut [f32; LANES], max: S::F, sums: &mut [S::F; 4]) {
    for (x, sum) in x.chunks_exact_mut(S::LANES).zip(sums) {
        let y = exp_vector(s, s.sub(s.load(x), max));
        *sum = s.add(*sum, y);
        s.store(y, x);
    }
}

struct SquareShares<'a>(&'a mut [f32]);

impl Task for SquareShares<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let max = self.0.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return self.0.fill(0.0);
        }
        let (max, mut sums) = (s.splat(max), [s.splat(0.0); 4]);
        let (chunks, rest) = self.0.as_chunks_mut();
        for chunk in chunks {
            add_exps(s, chunk, max, &mut sums);
        }
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        add_exps(s, &mut last, max, &mut sums);
        rest.copy_from_slice(&last[..rest.len()]);
        let inverse = 1.0 / sum_vectors(s, sums);
        self.0.iter_mut().for_each(|x| *x = (*x * inverse) * (*x * inverse));
    }
}

/// e^x in f32, within 2 units in the last place over the whole range; branch-free so that loops over it become vectors.
/// (Range reduction by ln 2 in two parts, then a polynomial of degree 7.)
#[inline]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = clamped - n * LN2[0] - n * LN2[1];
    let mut p = EXP[0];
    for c in &EXP[1..] {
        p = p * r + c;
    }
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
