//! The promise: operators agree with ggml's.
//!
//! ggml here is that of May 2023: before GGUF's blocks and the K formats, but its arithmetic is the field's.
#![cfg(target_pointer_width = "64")]

#[path = "common/ggml.rs"]
mod ggml;

use ggml::Graph;
use loci::bytes::{Map, MapSlice};
use loci::gguf::TensorType;
use loci::kernels::matmul::{Activations, Matrix, matmul};
use loci::quant;
use loci::simd::Level;
use loci::threads::Team;
use std::sync::Arc;

fn floats(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn norm(v: &[f32]) -> f32 {
    v.iter().map(|v| v * v).sum::<f32>().sqrt()
}

#[test]
fn matrix_products() {
    let types = [
        (TensorType::F32, ggml::F32),
        (TensorType::F16, ggml::F16),
        (TensorType::Q4_0, ggml::Q4_0),
        (TensorType::Q4_1, ggml::Q4_1),
        (TensorType::Q5_0, ggml::Q5_0),
        (TensorType::Q5_1, ggml::Q5_1),
        (TensorType::Q8_0, ggml::Q8_0),
    ];
    let team = Team::new(2).unwrap();
    for (ty, theirs) in types {
        for (rows, cols, n) in [(1, 64, 1), (40, 128, 1), (33, 256, 3), (50, 576, 20)] {
            let mut blocks = Vec::new();
            quant::quantise(ty, &floats(rows * cols, 3), &mut blocks).unwrap();
            let w = Matrix::new(ty, rows, cols, MapSlice::new(Arc::new(Map::owned(blocks.clone())), 0..blocks.len())).unwrap();
            let mut decoded = vec![0.0; rows * cols];
            quant::dequantise(ty, &blocks, &mut decoded).unwrap();
            // Whole numbers with 127 in every block: what either side does to activations leaves them as they are.
            let x: Vec<f32> =
                floats(n * cols, 4).iter().enumerate().map(|(i, v)| if i % 32 == 9 { -127.0 } else { (v * 126.0).round() }).collect();
            let graph = Graph::new(16 << 20);
            let bytes = if ty.block_len() == 1 { blocks } else { ggml::old_blocks(theirs, &blocks) };
            let product = graph.mul_mat(graph.raw(theirs, &[cols, rows], &bytes), graph.floats(&[cols, n], &x));
            let want = graph.compute(product);
            for level in Level::available() {
                let mut activations = Activations::with_level(level);
                let mut got = vec![0.0; n * rows];
                team.pass(|pass| {
                    activations.load(pass, &x, cols).expect("memory");
                    matmul(pass, &w, &activations, &mut got);
                });
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let size = norm(&decoded[i % rows * cols..][..cols]) * norm(&x[i / rows * cols..][..cols]);
                    assert!((got - want).abs() <= 1e-5 * size, "{ty} {rows}x{cols} n={n} {level:?} output {i}: {got}, ggml {want}");
                }
            }
        }
    }
}
