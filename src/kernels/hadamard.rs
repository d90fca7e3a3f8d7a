//! The Walsh-Hadamard rotation: each element becomes a sum of all of them with signs, so that a few large ones are spread evenly
//! (the idea of QuaRot, arXiv 2404.00456). Dot products stay what they were, and the rotation undoes itself.

/// Rotates pieces of the largest power of two that divides the length, in place.
#[inline]
pub fn hadamard(x: &mut [f32]) {
    let n = 1 << x.len().trailing_zeros().min(31);
    let scale = 1.0 / (n as f32).sqrt();
    for x in x.chunks_exact_mut(n) {
        let mut half = 1;
        if n >= 8 {
            // The first rounds lie within eight elements: whole vectors, where loops over one or two of them are none.
            x.as_chunks_mut().0.iter_mut().for_each(within_eight);
            half = 8;
        }
        while half < n {
            for pair in x.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Three rounds: of neighbours, of pairs, of fours.
#[inline(always)]
fn within_eight(x: &mut [f32; 8]) {
    let round = |x: [f32; 8], half: usize| {
        let mut y = [0.0; 8];
        for (i, y) in y.iter_mut().enumerate() {
            *y = if i & half == 0 { x[i] + x[i ^ half] } else { x[i ^ half] - x[i] };
        }
        y
    };
    *x = round(round(round(*x, 1), 2), 4);
}

#[cfg(test)]
mod tests {
    use super::hadamard;

    #[test]
    fn it_is_the_matrix_of_signs_and_undoes_itself() {
        for (length, n) in [(32, 32), (64, 64), (96, 32), (80, 16), (7, 1), (256, 256)] {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let mut y = x.clone();
            hadamard(&mut y);
            for (i, y) in y.iter().enumerate() {
                let piece = &x[i / n * n..][..n];
                let sign = |j: usize| if ((i % n) & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let want: f64 = piece.iter().enumerate().map(|(j, x)| f64::from(*x) * sign(j)).sum::<f64>() / (n as f64).sqrt();
                assert!((f64::from(*y) - want).abs() < 1e-3, "element {i} of {length}: {y}, expected {want}");
            }
            hadamard(&mut y);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-3), "{length}");
        }
    }
}
