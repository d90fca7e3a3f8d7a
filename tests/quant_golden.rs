//! The promise: blocks mean here what they mean elsewhere.
//!
//! `data/quants` holds, per type, 16 rows of 512 as blocks (ordinary rows, and rows of extreme or random bytes), their values
//! and their dots with `acts.f32` as another implementation computed them, and the exact dots. A second witness for the block
//! formats is candle (`quant_candle`).

use loci::bytes::{Map, MapSlice};
use loci::gguf::TensorType::{self, *};
use loci::kernels::matmul::{Activations, Matrix, matmul};
use loci::quant;
use loci::simd::Level;
use loci::threads::Team;
use std::path::PathBuf;
use std::sync::Arc;

const TYPES: [TensorType; 14] = [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS];
const N: usize = 512;

fn read(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/quants").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(name: &str) -> Vec<f32> {
    read(name).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn numbers(v: &serde_json::Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn decoded_values_are_those_of_others() {
    for ty in TYPES {
        let (blocks, want) = (read(&format!("{ty}.blk")), floats(&format!("{ty}.f32")));
        let mut got = vec![0.0; want.len()];
        quant::dequantise(ty, &blocks, &mut got).unwrap();
        for (row, (got, want)) in got.chunks(N).zip(want.chunks(N)).enumerate() {
            let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                assert!((g - w).abs() <= 2e-6 * most, "{ty} row {row} element {i}: {g}, expected {w}");
            }
        }
    }
}

#[test]
fn dots_are_within_the_bars_on_every_level_and_nearer_than_others() {
    let index: serde_json::Value = serde_json::from_slice(&read("index.json")).unwrap();
    let acts = floats("acts.f32");
    let team = Team::new(1).unwrap();
    for ty in TYPES {
        let entry = &index["types"][ty.name()];
        let (exact, theirs, norms) = (numbers(&entry["exact_dot"]), numbers(&entry["llamacpp_dot"]), numbers(&entry["norm"]));
        let bytes = read(&format!("{ty}.blk"));
        let (rows, len) = (exact.len(), bytes.len());
        let w = Matrix::new(ty, rows, N, MapSlice::new(Arc::new(Map::owned(bytes)), 0..len)).unwrap();
        // Float weights multiply exact activations; the others have 8 bits per activation, which shows most where a row of
        // random bytes has a few huge scales.
        let bar = |row: usize| match ty.block_len() {
            1 => 1e-6,
            256 if row >= 8 => 3e-3,
            _ => 1.2e-3,
        };
        for level in Level::available() {
            let mut activations = Activations::with_level(level);
            let mut out = vec![0.0; rows * rows];
            team.pass(|pass| {
                activations.load(pass, &acts, N).expect("memory");
                matmul(pass, &w, &activations, &mut out);
            });
            let (mut ours_squared, mut theirs_squared) = (0.0, 0.0);
            for r in 0..rows {
                let (got, size) = (f64::from(out[r * rows + r]), norms[r].max(1e-30));
                let error = (got - exact[r]) / size;
                assert!(error.abs() <= bar(r), "{ty} {level:?} row {r}: {got}, exact {}, error {error:.1e}", exact[r]);
                (ours_squared, theirs_squared) = (ours_squared + error * error, theirs_squared + ((theirs[r] - exact[r]) / size).powi(2));
            }
            println!("{ty} {level:?}: rms error {:.2e}, theirs {:.2e}", (ours_squared / 16.0f64).sqrt(), (theirs_squared / 16.0f64).sqrt());
            assert!(ours_squared <= theirs_squared * 1.1, "{ty} {level:?}: {ours_squared:.1e}, theirs {theirs_squared:.1e}");
        }
    }
}

#[test]
fn what_is_written_is_read_back() {
    for ty in TYPES.into_iter().chain([F32]) {
        let mut bytes = Vec::new();
        for special in [0.0, 1.0, -3.5, f32::MAX, f32::MIN_POSITIVE, f32::NAN, f32::INFINITY] {
            bytes.clear();
            if quant::quantise(ty, &[special; 256], &mut bytes).is_err() {
                assert!(matches!(ty, Q2_K | Q3_K | IQ4_XS), "{ty} cannot be written");
                continue;
            }
            let mut back = [7.0; 256];
            quant::dequantise(ty, &bytes, &mut back).unwrap();
            if special == 0.0 || (1.0..=3.5).contains(&special.abs()) {
                assert!(back.iter().all(|v| (v - special).abs() <= 0.03 * special.abs()), "{ty}: {special} came back as {}", back[0]);
            }
        }
    }
}
