//! The promise: every level, every format, every shape and every team computes the same products, and they are the right ones.
//!
//! The yardstick is a plain f64 evaluation of the decoded weights (`quant_golden` holds the decoders against others). With
//! activations that eight bits represent exactly nothing but rounding of the final sums may differ.

use loci::bytes::{Map, MapSlice};
use loci::gguf::TensorType::{self, *};
use loci::kernels::matmul::{Activations, Matrix, matmul, matmul_many};
use loci::quant;
use loci::simd::Level;
use loci::threads::Team;
use std::sync::Arc;

const BLOCKS: [TensorType; 12] = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS];
const FLOATS: [TensorType; 3] = [F32, F16, BF16];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// Random weights: encoded from values where there is an encoder, else random bytes with sensible f16 scales.
fn weights(ty: TensorType, n: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    if quant::quantise(ty, &random.floats(n), &mut bytes).is_ok() {
        return bytes;
    }
    let scales: &[usize] = match ty {
        Q2_K => &[80, 82],
        Q3_K => &[108],
        IQ4_XS => &[0],
        _ => panic!("{ty} has no encoder"),
    };
    bytes = (0..ty.row_bytes(n).unwrap()).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for at in scales {
            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(random.float() * 0.01).to_le_bytes());
        }
    }
    bytes
}

fn matrix(ty: TensorType, rows: usize, cols: usize, random: &mut Random) -> (Matrix, Vec<f32>) {
    let bytes = weights(ty, rows * cols, random);
    let mut values = vec![0.0; rows * cols];
    quant::dequantise(ty, &bytes, &mut values).unwrap();
    // An odd start: blocks in a map are not aligned.
    let map = Arc::new(Map::owned([&[0u8][..], &bytes].concat()));
    (Matrix::new(ty, rows, cols, MapSlice::new(map, 1..bytes.len() + 1)).unwrap(), values)
}

/// Activations that quantise to themselves: whole numbers with 127 in every 32.
fn whole(n: usize, random: &mut Random) -> Vec<f32> {
    (0..n).map(|i| if i % 32 == 5 { 127.0 } else { (random.next() % 255) as f32 - 127.0 }).collect()
}

fn exact(values: &[f32], x: &[f32], rows: usize, cols: usize) -> (Vec<f64>, Vec<f64>) {
    let mut dots = Vec::new();
    let mut sizes = Vec::new();
    for x in x.chunks_exact(cols) {
        for w in values.chunks_exact(cols).take(rows) {
            dots.push(w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum());
            let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            sizes.push(norm(w) * norm(x));
        }
    }
    (dots, sizes)
}

fn product(level: Level, team: &Team, w: &Matrix, x: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    let mut activations = Activations::with_level(level);
    team.pass(|pass| {
        activations.load(pass, x, w.cols()).expect("memory");
        matmul(pass, w, &activations, &mut out);
    });
    out
}

/// (rows, columns in blocks of the format, activation rows)
const SHAPES: [(usize, usize, usize); 16] = [
    (1, 1, 1),
    (1, 2, 3),
    (3, 1, 2),
    (5, 3, 1),
    (15, 2, 4),
    (16, 1, 5),
    (17, 2, 1),
    (31, 3, 12),
    (32, 1, 13),
    (33, 2, 16),
    (47, 1, 24),
    (64, 2, 29),
    (65, 1, 70),
    (100, 5, 7),
    (257, 2, 1),
    (130, 3, 33),
];

#[test]
fn every_level_computes_exact_products_of_exact_activations() {
    let mut random = Random(1);
    let team = Team::new(1).unwrap();
    for ty in BLOCKS.into_iter().chain(FLOATS) {
        for (rows, blocks, n) in SHAPES {
            let cols = blocks * if FLOATS.contains(&ty) { 37 } else { ty.block_len() };
            let (w, values) = matrix(ty, rows, cols, &mut random);
            let x = whole(n * cols, &mut random);
            let (dots, sizes) = exact(&values, &x, rows, cols);
            for level in Level::available() {
                let out = product(level, &team, &w, &x);
                for (i, ((got, want), size)) in out.iter().zip(&dots).zip(&sizes).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= 2e-6 * size, "{ty} {rows}x{cols} n={n} {level:?} output {i}: {got}, exact {want}, norms {size}");
                }
            }
        }
    }
}

#[test]
fn eight_bits_of_activation_cost_little() {
    let mut random = Random(2);
    let team = Team::new(1).unwrap();
    for ty in BLOCKS {
        let (rows, cols, n) = (40, 512, 6);
        let (w, values) = matrix(ty, rows, cols, &mut random);
        let x = random.floats(n * cols);
        let (dots, sizes) = exact(&values, &x, rows, cols);
        for level in Level::available() {
            let out = product(level, &team, &w, &x);
            for ((got, want), size) in out.iter().zip(&dots).zip(&sizes) {
                assert!((f64::from(*got) - want).abs() <= 1.2e-3 * size, "{ty} {level:?}: {got}, exact {want}, norms {size}");
            }
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_the_team_the_batch_or_the_level() {
    let mut random = Random(3);
    let teams: Vec<Team> = (1..=4).map(|n| Team::new(n).unwrap()).collect();
    for ty in BLOCKS.into_iter().chain(FLOATS) {
        let (rows, cols, n) = (201, 768, 22);
        let (w, _) = matrix(ty, rows, cols, &mut random);
        let x = random.floats(n * cols);
        let mut first: Option<Vec<f32>> = None;
        for level in Level::available() {
            let all = product(level, &teams[0], &w, &x);
            for team in &teams[1..] {
                assert_eq!(all, product(level, team, &w, &x), "{ty} {level:?}, {} threads", team.threads());
            }
            for (i, x) in x.chunks_exact(cols).enumerate() {
                assert_eq!(all[i * rows..][..rows], product(level, &teams[1], &w, x), "{ty} {level:?}, row {i} alone");
            }
            // Plain Rust rounds a multiply-add twice, and float weights are summed in as many parts as there are lanes.
            if level != Level::Portable && !FLOATS.contains(&ty) {
                let first = first.get_or_insert_with(|| all.clone());
                assert_eq!(*first, all, "{ty} {level:?}");
            }
        }
    }
}

#[test]
fn views_and_several_matrices_at_once_are_the_same_products() {
    let mut random = Random(4);
    let team = Team::new(2).unwrap();
    for n in [1, 9] {
        let (w, _) = matrix(Q4_0, 90, 64, &mut random);
        let (v, _) = matrix(F16, 33, 64, &mut random);
        let x = random.floats(n * 64);
        let level = Level::detect();
        let (whole, other) = (product(level, &team, &w, &x), product(level, &team, &v, &x));
        let (a, b) = (w.row_range(0..37), w.row_range(37..90));
        let (mut out_a, mut out_b, mut out_v) = (vec![0.0; n * 37], vec![0.0; n * 53], vec![0.0; n * 33]);
        let mut activations = Activations::new();
        team.pass(|pass| {
            activations.load_for(pass, &x, &[&a, &b, &v]).expect("memory");
            matmul_many(pass, [(&a, &mut out_a), (&b, &mut out_b), (&v, &mut out_v)], &activations);
        });
        assert_eq!(out_v, other);
        for i in 0..n {
            assert_eq!(whole[i * 90..][..37], out_a[i * 37..][..37]);
            assert_eq!(whole[i * 90 + 37..][..53], out_b[i * 53..][..53]);
        }
        let mut row = vec![0.0; 64];
        b.row(2, &mut row);
        let mut same = vec![0.0; 64];
        w.row(39, &mut same);
        assert_eq!(row, same);
    }
}

#[test]
fn any_bytes_are_weights() {
    let mut random = Random(5);
    let team = Team::new(1).unwrap();
    for ty in BLOCKS.into_iter().chain(FLOATS) {
        let (rows, cols) = (19, 512);
        let bytes: Vec<u8> = (0..ty.row_bytes(rows * cols).unwrap()).map(|_| random.next() as u8).collect();
        let mut values = vec![0.0; rows * cols];
        quant::dequantise(ty, &bytes, &mut values).unwrap();
        let len = bytes.len();
        let w = Matrix::new(ty, rows, cols, MapSlice::new(Arc::new(Map::owned(bytes)), 0..len)).unwrap();
        let x = random.floats(5 * cols);
        for level in Level::available() {
            let out = product(level, &team, &w, &x);
            for (r, w) in values.chunks_exact(cols).enumerate() {
                // A row without a number in it must not yield one silently.
                if w.iter().any(|v| v.is_nan()) {
                    assert!((0..5).all(|i| !out[i * rows + r].is_finite()), "{ty} {level:?} row {r}");
                }
            }
        }
    }
}

#[test]
fn wrong_sizes_are_refused() {
    let slice = |n: usize| MapSlice::new(Arc::new(Map::owned(vec![0; n])), 0..n);
    assert!(Matrix::new(Q4_0, 2, 64, slice(72)).is_ok());
    for (ty, rows, cols, bytes) in [(Q4_0, 2, 64, 71), (Q4_0, 2, 63, 72), (Q4_0, 0, 64, 0), (Q8_1, 1, 32, 36), (F32, usize::MAX, 8, 32)] {
        assert!(Matrix::new(ty, rows, cols, slice(bytes)).is_err(), "{ty} {rows} x {cols} in {bytes} bytes");
    }
    assert!(quant::dequantise(Q4_K, &[0; 144], &mut [0.0; 255]).is_err());
    assert!(quant::dequantise(IQ1_S, &[0; 50], &mut [0.0; 256]).is_err());
    let mut out = vec![7];
    assert!(quant::quantise(Q4_K, &[0.0; 100], &mut out).is_err());
    assert!(quant::quantise(Q2_K, &[0.0; 256], &mut out).is_err());
    assert_eq!(out, [7]);
}
