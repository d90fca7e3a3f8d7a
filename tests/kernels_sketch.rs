//! The promise: sketches are what `docs/memory-format.md` says, every level estimates the same from them to the bit, and the estimates are
//! worth what two bits can be: right on average, and close enough that the best keys are among a few times as many candidates.

use loci::kernels::hadamard::hadamard;
use loci::kernels::sketch::{SketchQuery, best_of_blocks_at, bytes, encode, estimate_at, tile_bytes};
use loci::simd::Level;

struct Random(u64);

impl Random {
    fn float(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as f32 / (1u64 << 30) as f32 - 1.0
    }
    /// About normal.
    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (0..4).map(|_| self.float()).sum()).collect()
    }
}

/// What the sketch of key `key` says of element `i`, and its step, read as the format says.
fn level(sketches: &[u8], length: usize, key: usize, i: usize) -> (f64, f64) {
    let tile = &sketches[key / 16 * tile_bytes(length)..][..tile_bytes(length)];
    let byte = tile[i / 16 * 64 + 4 * (key % 16) + i % 4];
    let code = byte >> (i % 16 / 4 * 2) & 3;
    let steps = &tile[length.div_ceil(16) * 64..];
    let step = half::f16::from_le_bytes([steps[2 * (key % 16)], steps[2 * (key % 16) + 1]]);
    (f64::from(code) - 1.5, f64::from(step))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

struct Case {
    keys: Vec<f32>,
    mean: Vec<f32>,
    sketches: Vec<u8>,
}

fn case(length: usize, n: usize, random: &mut Random) -> Case {
    let keys = random.normals(n * length);
    let mean: Vec<f32> = random.normals(length).iter().map(|x| 3.0 * x).collect();
    let keys: Vec<f32> = keys.chunks(length).flat_map(|key| key.iter().zip(&mean).map(|(k, m)| k + m).collect::<Vec<_>>()).collect();
    // Not zeros before: nothing may be left of what was there.
    let mut sketches = vec![0xff; bytes(length, n)];
    encode(&mut keys.clone(), &mean, &mut sketches);
    Case { keys, mean, sketches }
}

#[test]
fn every_level_estimates_what_the_format_says() {
    let mut random = Random(1);
    for (length, n) in [(64, 32), (64, 1), (128, 17), (100, 33), (80, 20), (10, 8), (4, 3), (32, 100), (256, 16)] {
        let case = case(length, n, &mut random);
        for rows in 1..=5 {
            let queries: Vec<Vec<f32>> = (0..rows).map(|_| random.normals(length)).collect();
            let loaded: Vec<SketchQuery> = queries
                .iter()
                .map(|q| {
                    let mut loaded = SketchQuery::default();
                    assert!(loaded.load(q).unwrap());
                    loaded
                })
                .collect();
            let bases: Vec<f32> = queries.iter().map(|q| dot(q, &case.mean) as f32).collect();
            let width = n.next_multiple_of(16) + 16;
            let mut first: Option<Vec<u32>> = None;
            for level_of in Level::available() {
                let mut out = vec![f32::NAN; rows * width];
                estimate_at(level_of, &loaded, &bases, &case.sketches, &mut out, width);
                for (r, query) in queries.iter().enumerate() {
                    let mut rotated = query.clone();
                    hadamard(&mut rotated);
                    let most = f64::from(rotated.iter().fold(0f32, |m, x| m.max(x.abs())));
                    for key in 0..n {
                        let (mut expected, mut tolerance) = (f64::from(bases[r]), 1e-4);
                        for (i, q) in rotated.iter().enumerate() {
                            let (level, step) = level(&case.sketches, length, key, i);
                            expected += f64::from(*q) * level * step;
                            // The query is rounded to 8 bits.
                            tolerance += step * level.abs() * most / 254.0;
                        }
                        let found = f64::from(out[r * width + key]);
                        assert!(
                            (found - expected).abs() <= tolerance,
                            "{level_of:?}, {length}, row {r}, key {key}: {found}, not {expected}"
                        );
                    }
                }
                // Of the keys; beyond them levels may leave anything.
                let bits: Vec<u32> =
                    (0..rows).flat_map(|r| out[r * width..][..n].iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect();
                assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{level_of:?}, {length}, {rows} rows");
            }
        }
    }
}

/// Blocks of one tile and of several, filled and not.
#[test]
fn the_best_of_a_block_is_the_best_estimate_of_its_keys() {
    let mut random = Random(5);
    for (length, block_keys, n) in
        [(64, 32, 100), (64, 16, 16), (10, 20, 47), (128, 7, 3), (32, 48, 144), (64, 32, 65), (256, 64, 200), (272, 32, 64)]
    {
        let blocks: Vec<usize> = (0..n).step_by(block_keys).map(|first| block_keys.min(n - first)).collect();
        // What fills up a tile is estimated as zero, and would win where all keys are below.
        let sketches: Vec<u8> = blocks.iter().flat_map(|len| case(length, *len, &mut random).sketches).collect();
        for (rows, coarse) in (1..=9).flat_map(|rows| [(rows, false), (rows, true)]) {
            let loaded: Vec<SketchQuery> = (0..rows)
                .map(|_| {
                    let mut loaded = SketchQuery::default();
                    let query = random.normals(length);
                    assert!(if coarse { loaded.load_coarse(&query) } else { loaded.load(&query) }.unwrap());
                    loaded
                })
                .collect();
            let width = blocks.len() + 2;
            for level in Level::available() {
                let mut out = vec![f32::NAN; rows * width];
                best_of_blocks_at(level, &loaded, &sketches, block_keys, n, &mut out, width);
                let mut at = 0;
                for (block, len) in blocks.iter().enumerate() {
                    let tiles = &sketches[at..][..bytes(length, *len)];
                    at += tiles.len();
                    let mut estimates = vec![0.0; rows * 64];
                    estimate_at(level, &loaded, &vec![0.0; rows], tiles, &mut estimates, 64);
                    for row in 0..rows {
                        let expected = estimates[64 * row..][..*len].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                        assert_eq!(
                            out[row * width + block],
                            expected,
                            "{level:?}, {length}, {n} in {block_keys}, row {row}, block {block}"
                        );
                    }
                }
                assert!(out.chunks(width).all(|row| row[blocks.len()..].iter().all(|x| x.is_nan())), "nothing else is written");
            }
        }
    }
}

#[test]
fn a_key_that_is_its_mean_and_one_of_one_element_are_kept() {
    let mean = vec![2.0; 64];
    let mut keys = vec![2.0; 128];
    keys[64 + 5] = 10.0;
    let mut sketches = vec![0; bytes(64, 2)];
    encode(&mut keys, &mean, &mut sketches);
    assert!((0..64).all(|i| level(&sketches, 64, 0, i).1 == 0.0), "no distance, no step");
    // Rotated, one element is spread evenly: all of it is kept but for the rounding of the step.
    let mut back: Vec<f32> = (0..64).map(|i| (level(&sketches, 64, 1, i).0 * level(&sketches, 64, 1, i).1) as f32).collect();
    hadamard(&mut back);
    assert!((back[5] - 8.0).abs() < 0.01 && back.iter().enumerate().all(|(i, x)| i == 5 || x.abs() < 0.01), "{back:?}");
}

#[test]
fn a_query_that_is_not_a_number_is_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(!SketchQuery::default().load(&[1.0, bad, 0.0, 2.0]).unwrap());
        assert!(!SketchQuery::default().load_coarse(&[1.0, bad, 0.0, 2.0]).unwrap());
    }
}

#[test]
fn estimates_are_right_on_average_and_find_the_best() {
    estimates_are_right(false);
    estimates_are_right(true);
}

/// Of queries in 255 steps, or in 21.
fn estimates_are_right(coarse: bool) {
    let (mut random, length, n) = (Random(7), 64, 4096);
    let case = case(length, n, &mut random);
    let (mut errors, mut scores, mut bias, mut count) = (0.0, 0.0, 0.0, 0.0);
    for _ in 0..20 {
        let query = random.normals(length);
        let mut loaded = SketchQuery::default();
        assert!(if coarse { loaded.load_coarse(&query) } else { loaded.load(&query) }.unwrap());
        let base = dot(&query, &case.mean);
        let mut out = vec![0.0; n];
        estimate_at(Level::detect(), &[loaded], &[base as f32], &case.sketches, &mut out, n);
        let exact: Vec<f64> = case.keys.chunks(length).map(|key| dot(&query, key)).collect();
        for (found, exact) in out.iter().zip(&exact) {
            let error = f64::from(*found) - exact;
            // Right on average means that large scores are not drawn to the mean: the error does not go with the score.
            (errors, scores, bias) = (errors + error * error, scores + (exact - base).powi(2), bias + error * (exact - base));
            count += 1.0;
        }
        let best = |scores: &dyn Fn(usize) -> f64, k: usize| {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|a, b| scores(*b).total_cmp(&scores(*a)));
            order.truncate(k);
            order
        };
        let candidates = best(&|i| f64::from(out[i]), 8 * 16);
        let kept = best(&|i| exact[i], 16).iter().filter(|i| candidates.contains(i)).count();
        assert!(kept >= 15, "{kept} of the best 16 among 128 candidates of {n}");
    }
    // Four levels of a normal distribution lose 12 % of its variance; what makes up for it is that much noise more.
    let loss = (errors / scores).sqrt();
    assert!((0.25..0.42).contains(&loss), "relative error {loss} over {count} estimates");
    assert!((bias / scores).abs() < 0.02, "estimates are {} too large", bias / scores);
}
