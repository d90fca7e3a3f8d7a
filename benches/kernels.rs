//! Matrix products of one thread beside ggml's, in one run and in turn: `cargo bench --bench kernels`.
//!
//! ggml here is the version of May 2023 that the `ggml-sys` crate carries, compiled for this machine, with the formats it had then in
//! its own layout. `n` is the number of activation rows: 1 is decode, 128 is prefill. A ratio above 1 means that loci is faster.
#![allow(unsafe_code)]

use loci::bytes::{Map, MapSlice};
use loci::gguf::TensorType::{self, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use loci::kernels::matmul::{Activations, Matrix, matmul};
use loci::threads::Team;
use std::sync::Arc;
use std::time::Instant;

/// (rows, cols) of the weights: a layer of a 135M and of a 1B model.
const SHAPES: [(usize, usize); 3] = [(1536, 576), (2048, 2048), (8192, 2048)];
const ROUNDS: usize = 7;

fn main() {
    // cargo test --benches only asks whether this builds and runs.
    let quick = std::env::args().any(|a| a == "--test") || !std::env::args().any(|a| a == "--bench");
    println!("{}, one thread, median of {ROUNDS} rounds", loci::simd::Level::detect().name());
    println!("| {:5} | {:11} | {:>3} | {:>10} | {:>10} | {:>5} |", "type", "rows x cols", "n", "loci us", "ggml us", "ratio");
    println!("|-------|-------------|----:|-----------:|-----------:|------:|");
    let ratios: Vec<f64> = [F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0]
        .into_iter()
        .flat_map(|ty| SHAPES.into_iter().take(if quick { 1 } else { 3 }).flat_map(move |shape| [1, 128].map(|n| (ty, shape, n))))
        .map(|(ty, (rows, cols), n)| compare(ty, rows, cols, n, if quick { 1 } else { ROUNDS }))
        .collect();
    let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
    println!("geometric mean of the ratios {mean:.2}");
}

fn compare(ty: TensorType, rows: usize, cols: usize, n: usize, rounds: usize) -> f64 {
    let values = numbers(rows * cols, 1);
    let x = numbers(n * cols, 2);
    let mut ours = Ours::new(ty, rows, cols, &values, n);
    let mut theirs = Theirs::new(ty, rows, cols, &values, &x, n);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    // The same arithmetic, or the times mean nothing: formats round the weights alike, and both round activations to 8 bits.
    ours.run(&x);
    theirs.run();
    let error: f64 = ours.out.iter().zip(theirs.out()).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = ours.out.iter().map(|a| f64::from(*a).powi(2)).sum();
    assert!(error <= 1e-3 * size, "{} {rows}x{cols}: the products differ: squared error {error}, of {size}", ty.name());
    for _ in 0..rounds {
        a.push(microseconds(|| ours.run(&x)));
        b.push(microseconds(|| theirs.run()));
    }
    let (a, b) = (median(a), median(b));
    println!("| {:5} | {:11} | {n:>3} | {a:>10.1} | {b:>10.1} | {:>5.2} |", ty.name(), format!("{rows} x {cols}"), b / a);
    b / a
}

/// Microseconds of one call, measured over at least 20 ms.
fn microseconds(mut f: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut calls = 0.0;
    while started.elapsed().as_millis() < 20 {
        f();
        calls += 1.0;
    }
    started.elapsed().as_secs_f64() * 1e6 / calls
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

/// Repeatable numbers between -1 and 1.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

struct Ours {
    team: Team,
    weights: Matrix,
    activations: Activations,
    cols: usize,
    out: Vec<f32>,
}

impl Ours {
    fn new(ty: TensorType, rows: usize, cols: usize, values: &[f32], n: usize) -> Ours {
        let mut bytes = Vec::new();
        loci::quant::quantise(ty, values, &mut bytes).expect("encode");
        let len = bytes.len();
        let weights = Matrix::new(ty, rows, cols, MapSlice::new(Arc::new(Map::owned(bytes)), 0..len)).expect("matrix");
        Ours { team: Team::new(1).expect("team"), weights, activations: Activations::new(), cols, out: vec![0.0; n * rows] }
    }

    /// Both sides quantise the activations within the measured time.
    fn run(&mut self, x: &[f32]) {
        let Ours { team, weights, activations, cols, out } = self;
        team.pass(|pass| {
            activations.load_for(pass, x, &[weights]).expect("memory");
            debug_assert_eq!(*cols, weights.cols());
            matmul(pass, weights, activations, out);
        });
    }
}

struct Theirs {
    context: *mut ggml_sys::ggml_context,
    graph: Box<ggml_sys::ggml_cgraph>,
    product: *mut ggml_sys::ggml_tensor,
    len: usize,
}

impl Theirs {
    fn new(ty: TensorType, rows: usize, cols: usize, values: &[f32], x: &[f32], n: usize) -> Theirs {
        let mem_size = rows * cols * 4 + (rows + cols) * n * 16 + (16 << 20);
        // SAFETY: the arena holds both operands, the product and ggml's own scratch (counted generously above); the tensors are
        // filled with exactly as many elements as they were made with, in the types they were made with; the context lives
        // until `drop`.
        unsafe {
            let context = ggml_sys::ggml_init(ggml_sys::ggml_init_params { mem_size, mem_buffer: std::ptr::null_mut(), no_alloc: false });
            assert!(!context.is_null(), "ggml_init");
            let a = ggml_sys::ggml_new_tensor_2d(context, ggml_type(ty), cols as i64, rows as i64);
            let b = ggml_sys::ggml_new_tensor_2d(context, ggml_sys::ggml_type_GGML_TYPE_F32, cols as i64, n as i64);
            let (from, to, count) = (values.as_ptr(), ggml_sys::ggml_get_data(a), (rows * cols) as i32);
            let mut histogram = [0i64; 16];
            match ty {
                Q4_0 => drop(ggml_sys::ggml_quantize_q4_0(from, to, count, cols as i32, histogram.as_mut_ptr())),
                Q4_1 => drop(ggml_sys::ggml_quantize_q4_1(from, to, count, cols as i32, histogram.as_mut_ptr())),
                Q5_0 => drop(ggml_sys::ggml_quantize_q5_0(from, to, count, cols as i32, histogram.as_mut_ptr())),
                Q5_1 => drop(ggml_sys::ggml_quantize_q5_1(from, to, count, cols as i32, histogram.as_mut_ptr())),
                Q8_0 => drop(ggml_sys::ggml_quantize_q8_0(from, to, count, cols as i32, histogram.as_mut_ptr())),
                _ => {
                    for (at, v) in values.iter().enumerate() {
                        to.cast::<u16>().add(at).write(half::f16::from_f32(*v).to_bits());
                    }
                }
            }
            std::ptr::copy_nonoverlapping(x.as_ptr(), ggml_sys::ggml_get_data_f32(b), x.len());
            let product = ggml_sys::ggml_mul_mat(context, a, b);
            let mut graph = Box::new(ggml_sys::ggml_build_forward(product));
            graph.n_threads = 1;
            Theirs { context, graph, product, len: n * rows }
        }
    }

    fn run(&mut self) {
        // SAFETY: graph and context were made together in `new`, and nothing else uses them.
        unsafe { ggml_sys::ggml_graph_compute(self.context, &mut *self.graph) }
    }

    fn out(&self) -> &[f32] {
        // SAFETY: the product of an (n, cols) and a (rows, cols) operand is f32 and (n, rows).
        unsafe { std::slice::from_raw_parts(ggml_sys::ggml_get_data_f32(self.product), self.len) }
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: made by ggml_init, freed once.
        unsafe { ggml_sys::ggml_free(self.context) }
    }
}

fn ggml_type(ty: TensorType) -> ggml_sys::ggml_type {
    match ty {
        Q4_0 => ggml_sys::ggml_type_GGML_TYPE_Q4_0,
        Q4_1 => ggml_sys::ggml_type_GGML_TYPE_Q4_1,
        Q5_0 => ggml_sys::ggml_type_GGML_TYPE_Q5_0,
        Q5_1 => ggml_sys::ggml_type_GGML_TYPE_Q5_1,
        Q8_0 => ggml_sys::ggml_type_GGML_TYPE_Q8_0,
        _ => ggml_sys::ggml_type_GGML_TYPE_F16,
    }
}
