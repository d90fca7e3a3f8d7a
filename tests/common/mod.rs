//! What tests share: a plain evaluation to compare with, golden data, tiny models, and where real models lie.
#![allow(dead_code)]

pub mod golden;
pub mod native;
pub mod raw;
pub mod reference;
pub mod tiny;

use std::path::PathBuf;
use std::process::Command;

/// The path of a real model (`LOCI_MODELS_DIR`, or `models/` under the repository root). `make test` puts them there.
pub fn model(name: &str) -> PathBuf {
    let dir = std::env::var_os("LOCI_MODELS_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models"), PathBuf::from);
    let path = dir.join(name);
    assert!(path.is_file(), "{} is missing: run `make test`, which fetches the models (or set LOCI_MODELS_DIR)", path.display());
    path
}

/// SmolLM2-135M-Instruct, Q4_1: architecture `llama`.
pub fn smollm2() -> PathBuf {
    model("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// gemma-3-270m, Q4_K_M: architecture `gemma3`.
pub fn gemma3() -> PathBuf {
    model("gemma-3-270m-Q4_K_M.gguf")
}

/// A path below `tests/data`.
pub fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// This test program again, as a process of its own; under `LOCI_TEST_RUNNER` (an emulator and its options, split at spaces) where the
/// kernel does not know such programs.
pub fn this_program() -> Command {
    let program = std::env::current_exe().expect("the path of this test");
    let runner = std::env::var("LOCI_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(first) = words.next() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(words).arg(program);
    command
}

/// The largest absolute difference; NaN counts as infinite.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).abs()).fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

/// Root mean square of the difference.
pub fn rms_diff(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    (a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
}

/// Squared error over squared reference (`b` is the reference).
pub fn nmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let error: f64 = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    error / b.iter().map(|b| (*b as f64).powi(2)).sum::<f64>()
}

/// Kullback-Leibler divergence of softmax(`b`), the reference, from softmax(`a`), in nats.
pub fn kl(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let (la, lb) = (log_sum_exp(a), log_sum_exp(b));
    a.iter().zip(b).map(|(a, b)| (*b as f64 - lb).exp() * ((*b as f64 - lb) - (*a as f64 - la))).sum()
}

/// log(sum(exp(x))).
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    max + x.iter().map(|x| (*x as f64 - max).exp()).sum::<f64>().ln()
}

/// Index of the largest value, the first of equals.
pub fn argmax(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[best] {
            best = i;
        }
    }
    best
}
