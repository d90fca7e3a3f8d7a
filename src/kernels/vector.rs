//! Small loops over f32 slices, written so that the compiler turns them into vectors; fixed order, so the same bits on every
//! run whatever the number of threads.

const LANES: usize = 16;

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
pub fn add(acc: &mut [f32], x: &[f32]) {
    for (a, x) in acc.iter_mut().zip(x) {
        *a += x;
    }
}

/// The sum of squares.
#[inline]
pub fn sum_of_squares(x: &[f32]) -> f32 {
    dot(x, x)
}

#[inline]
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
    #[test]
    fn exp_is_close_to_the_real_one() {
        let mut x = -87.0f32;
        while x < 88.5 {
            let want = f64::from(x).exp();
            let got = f64::from(super::exp(x));
            assert!(((got - want) / want).abs() < 3e-7, "exp({x}) = {got}, expected {want}");
            x += 0.0137;
        }
        assert_eq!(super::exp(0.0), 1.0);
        assert_eq!(super::exp(-1000.0), 0.0);
        assert_eq!(super::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(super::exp(1000.0), f32::INFINITY);
    }
}
