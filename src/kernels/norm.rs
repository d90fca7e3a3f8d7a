//! Root mean square normalisation (arXiv 1910.07467): `y = x / sqrt(mean(x^2) + eps) * weight`.

use super::vector::{LANES, load_up_to, sum_vectors};
use crate::simd::{Level, Simd, Task, dispatch};

/// Normalises every row of `weight.len()` elements of `x` into `out`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    debug_assert_eq!(x.len(), out.len());
    out.copy_from_slice(x);
    rms_norm_in_place(out, weight, eps);
}

/// As [`rms_norm`], in place.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    rms_norm_at(Level::detect(), x, weight, eps);
}

/// [`rms_norm_in_place`] at a level of one's choice.
pub fn rms_norm_at(level: Level, x: &mut [f32], weight: &[f32], eps: f32) {
    dispatch(level, RmsNorm { x, weight, eps });
}

struct RmsNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Task for RmsNorm<'_> {
    type Out = ();
    const PRODUCTS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        for x in self.x.chunks_exact_mut(width) {
            let scale = 1.0 / (sum_of_squares(s, x) / width as f32 + self.eps).sqrt();
            let (whole, rest) = x.split_at_mut(width - width % S::LANES);
            let factor = s.splat(scale);
            for (x, w) in whole.chunks_exact_mut(S::LANES).zip(self.weight.chunks_exact(S::LANES)) {
                s.store(s.mul(s.load(x), s.mul(factor, s.load(w))), x);
            }
            for (x, w) in rest.iter_mut().zip(&self.weight[whole.len()..]) {
                *x *= scale * w;
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(S::LANES)) {
            let x = s.load(x);
            *sum = s.fma(x, x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest.chunks(S::LANES)) {
        let x = load_up_to(s, x);
        *sum = s.fma(x, x, *sum);
    }
    sum_vectors(s, sums)
}
