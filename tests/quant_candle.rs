//! The promise: blocks mean here what they mean to candle, and ours are as near to what they stand for.
#![cfg(target_pointer_width = "64")]

use candle_core::quantized::k_quants::{self, GgmlType};
use loci::gguf::TensorType::{self, *};
use loci::quant;

const N: usize = 512;

/// Values and blocks of one format by candle.
fn candle<T: GgmlType>(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut blocks = vec![T::zeros(); values.len() / T::BLCK_SIZE];
    T::from_float(values, &mut blocks);
    let mut decoded = vec![0.0; values.len()];
    T::to_float(&blocks, &mut decoded);
    // SAFETY: candle's blocks are `repr(C)` without padding; their size is asserted below against ours.
    let bytes = unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast::<u8>(), size_of_val(&blocks[..])) };
    (bytes.to_vec(), decoded)
}

type Candle = fn(&[f32]) -> (Vec<u8>, Vec<f32>);
const CANDLE: [(TensorType, Candle); 10] = [
    (Q4_0, candle::<k_quants::BlockQ4_0>),
    (Q4_1, candle::<k_quants::BlockQ4_1>),
    (Q5_0, candle::<k_quants::BlockQ5_0>),
    (Q5_1, candle::<k_quants::BlockQ5_1>),
    (Q8_0, candle::<k_quants::BlockQ8_0>),
    (Q2_K, candle::<k_quants::BlockQ2K>),
    (Q3_K, candle::<k_quants::BlockQ3K>),
    (Q4_K, candle::<k_quants::BlockQ4K>),
    (Q5_K, candle::<k_quants::BlockQ5K>),
    (Q6_K, candle::<k_quants::BlockQ6K>),
];

/// Gaussian-like values, as weights are: sums of a few uniform ones, rows of different size.
fn values(rows: usize) -> Vec<f32> {
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..rows * N).map(|i| (0..6).map(|_| uniform()).sum::<f32>() * 0.05 * (1 + i / N % 5) as f32).collect()
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn candle_reads_the_same_values_and_our_blocks_are_as_near() {
    let values = values(20);
    for (ty, candle) in CANDLE {
        let (bytes, theirs) = candle(&values);
        assert_eq!(Some(bytes.len()), ty.row_bytes(values.len()));
        let mut read = vec![0.0; values.len()];
        quant::dequantise(ty, &bytes, &mut read).unwrap();
        let most = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(read.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 1e-6 * most), "{ty}");
        let mut ours = Vec::new();
        if quant::quantise(ty, &values, &mut ours).is_ok() {
            assert_eq!(ours.len(), bytes.len());
            quant::dequantise(ty, &ours, &mut read).unwrap();
            let (our, their) = (squares(&read, &values), squares(&theirs, &values));
            println!("{ty}: squared error {our:.4e}, candle {their:.4e}");
            assert!(our <= 1.05 * their, "{ty}: squared error {our}, candle {their}");
        }
    }
}
