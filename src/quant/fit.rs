//! Fitting scales to values when a block is made: least squares over a few starting points.

/// The value of the largest magnitude, with its sign; 0 for nothing.
pub(super) fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m })
}

/// Smallest and largest value.
pub(super) fn range(values: &[f32]) -> (f32, f32) {
    let first = values.first().copied().unwrap_or(0.0);
    values.iter().fold((first, first), |(lo, hi), v| (lo.min(*v), hi.max(*v)))
}

/// Scale and min (not negative) such that `scale * q - min` with q in `0..=max` is near the values.
pub(super) fn affine(values: &[f32], max: u8) -> (f32, f32) {
    let (lo, hi) = range(values);
    let lo = lo.min(0.0);
    if hi <= lo {
        return (0.0, -lo);
    }
    let top = f32::from(max);
    let mut best = ((hi - lo) / top, -lo);
    let mut least = affine_error(values, best, top);
    // Start from slightly other ranges: clipping the ends a little is often better.
    for step in 0..20 {
        let scale = (hi - lo) / (top - 1.0 + 0.1 * step as f32);
        let mut fit = (scale, -lo);
        for _ in 0..2 {
            fit = affine_refit(values, fit, top);
            let error = affine_error(values, fit, top);
            if error < least {
                (least, best) = (error, fit);
            }
        }
    }
    best
}

fn nearest(v: f32, (scale, min): (f32, f32), top: f32) -> f32 {
    ((v + min) / scale).round_ties_even().clamp(0.0, top)
}

fn affine_error(values: &[f32], fit: (f32, f32), top: f32) -> f32 {
    values.iter().map(|v| (fit.0 * nearest(*v, fit, top) - fit.1 - v).powi(2)).sum()
}

/// The least-squares line through (code, value) with the codes of `fit`.
fn affine_refit(values: &[f32], fit: (f32, f32), top: f32) -> (f32, f32) {
    let n = values.len() as f32;
    let (mut q1, mut q2, mut v1, mut qv) = (0.0, 0.0, 0.0, 0.0);
    for v in values {
        let q = nearest(*v, fit, top);
        (q1, q2, v1, qv) = (q1 + q, q2 + q * q, v1 + v, qv + q * v);
    }
    let det = n * q2 - q1 * q1;
    if det <= 0.0 {
        return fit;
    }
    let (scale, min) = ((n * qv - q1 * v1) / det, (q1 * qv - q2 * v1) / det);
    if min < 0.0 { (qv / q2, 0.0) } else { (scale, min) }
}

/// Scale such that `scale * q` with q in `-half..half` is near the values.
pub(super) fn symmetric(values: &[f32], half: i32) -> f32 {
    let top = extreme(values);
    if top == 0.0 {
        return 0.0;
    }
    let (low, high) = (-half as f32, (half - 1) as f32);
    let mut best = (f32::NEG_INFINITY, top / low);
    for step in -9..=9 {
        let inverse = (low + 0.1 * step as f32) / top;
        let (mut qv, mut q2) = (0.0, 0.0);
        for v in values {
            let q = (v * inverse).round_ties_even().clamp(low, high);
            (qv, q2) = (qv + q * v, q2 + q * q);
        }
        // The best scale for these codes is qv / q2 and explains qv^2 / q2 of the squares.
        if q2 > 0.0 && qv * qv / q2 > best.0 {
            best = (qv * qv / q2, qv / q2);
        }
    }
    best.1
}
