//! One product again and again, for counting instructions (`make aarch64-cost`): `cost FORMAT ROWS COLS N CALLS`, one thread.
//!
//! The weights are random bytes with finite scales: what they are does not change what is executed. The activations are quantised
//! once, before the calls, so that the difference between two runs with different `CALLS` is the product alone.

use loci::bytes::{Map, MapSlice};
use loci::gguf::TensorType;
use loci::kernels::matmul::{Activations, Matrix, matmul};
use loci::threads::Team;
use std::sync::Arc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let [format, numbers @ ..] = &arguments[..] else { return println!("usage: cost FORMAT ROWS COLS N CALLS") };
    let numbers: Vec<usize> = numbers.iter().map(|a| a.parse().expect("a number")).collect();
    let &[rows, cols, n, calls] = &numbers[..] else { return println!("usage: cost FORMAT ROWS COLS N CALLS") };
    let ty = TensorType::from_name(format).expect("a format");
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as u32
    };
    let mut bytes = Vec::new();
    let values: Vec<f32> = (0..rows * cols).map(|_| random() as f32 / (1u32 << 23) as f32 - 1.0).collect();
    if loci::quant::quantise(ty, &values, &mut bytes).is_err() {
        // Bytes below 64: no f16 or f32 made of them is infinite.
        bytes = (0..rows * ty.row_bytes(cols).expect("whole blocks")).map(|_| (random() >> 18) as u8).collect();
    }
    let len = bytes.len();
    let w = Matrix::new(ty, rows, cols, MapSlice::new(Arc::new(Map::owned(bytes)), 0..len)).expect("a matrix");
    let x: Vec<f32> = (0..n * cols).map(|_| random() as f32 / (1u32 << 23) as f32 - 1.0).collect();
    let mut out = vec![0.0; n * rows];
    let mut activations = Activations::new();
    let mut sum = 0.0;
    Team::new(1).expect("a team").pass(|pass| {
        activations.load_for(pass, &x, &[&w]).expect("memory");
        for call in 0..calls {
            matmul(pass, &w, &activations, &mut out);
            sum += out[call % out.len()];
        }
    });
    println!("{sum}");
}
