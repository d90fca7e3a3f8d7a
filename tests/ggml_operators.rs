//! The promise: the small operators agree with ggml's, at every level where they have levels.
//!
//! ggml here is that of May 2023; its silu and gelu go through tables of halves, so they agree to half precision.
#![cfg(target_pointer_width = "64")]

#[path = "common/ggml.rs"]
mod ggml;

use ggml::{Graph, Node};
use loci::kernels::activation::{Activation, gate_at};
use loci::kernels::attention::{Entries, KvSegment, Queries, QueryKind, Shape, Visibility, attention_at};
use loci::kernels::codec::Codec;
use loci::kernels::norm::rms_norm_at;
use loci::kernels::rotary::{PairLayout, Rotary};
use loci::simd::Level;
use loci::threads::Team;

fn floats(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    };
    (0..n).map(|_| next()).collect()
}

fn theirs(ne: &[usize], x: &[f32], operator: impl for<'a> Fn(&'a Graph, Node<'a>) -> Node<'a>) -> Vec<f32> {
    let graph = Graph::new(16 << 20);
    graph.compute(operator(&graph, graph.floats(ne, x)))
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32], absolute: f32, relative: f32, what: std::fmt::Arguments<'_>) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= absolute + relative * want.abs(), "{what}, output {i}: {got}, ggml {want}");
    }
}

#[test]
fn rms_norm() {
    for (width, rows, size) in [(1, 1, 1.0), (7, 3, 1e-3), (64, 2, 30.0), (100, 5, 1.0), (576, 4, 0.01), (640, 1, 100.0)] {
        let x = floats(width * rows, 1, size);
        let want = theirs(&[width, rows], &x, |g, x| g.rms_norm(x));
        for level in Level::available() {
            let mut got = x.clone();
            rms_norm_at(level, &mut got, &vec![1.0; width], 1e-6);
            assert_close(&got, &want, 0.0, 2e-6, format_args!("{level:?}, {rows} rows of {width}"));
            let weight = floats(width, 2, 2.0);
            let mut weighted = x.clone();
            rms_norm_at(level, &mut weighted, &weight, 1e-6);
            let want: Vec<f32> = want.iter().zip(weight.iter().cycle()).map(|(x, w)| x * w).collect();
            assert_close(&weighted, &want, 0.0, 2e-6, format_args!("{level:?}, {rows} weighted rows of {width}"));
        }
    }
}

#[test]
fn gates() {
    for n in [1, 5, 16, 33, 1000] {
        let (x, up) = (floats(n, 3, 8.0), floats(n, 4, 2.0));
        let silu = theirs(&[n], &x, |g, x| g.silu(x));
        let gelu = theirs(&[n], &x, |g, x| g.gelu(x));
        for level in Level::available() {
            for (activation, bent) in [(Activation::Silu, &silu), (Activation::GeluTanh, &gelu)] {
                let want: Vec<f32> = bent.iter().zip(&up).map(|(g, u)| g * u).collect();
                let mut got = x.clone();
                gate_at(level, activation, &mut got, &up);
                // Half an 11-bit unit of the table's argument, whose slope is at most 1.13, and as much of its result.
                assert_close(&got, &want, 2e-3 * 2.0, 1e-3, format_args!("{level:?}, {activation:?} of {n}"));
            }
        }
    }
}

#[test]
fn rope() {
    for (length, rotated, heads, tokens, past) in [(64, 64, 3, 5, 0), (32, 32, 4, 7, 100), (128, 128, 1, 2, 1000)] {
        let x = floats(length * heads * tokens, 5, 1.0);
        let frequencies: Vec<f64> = (0..rotated / 2).map(|i| 10000f64.powf(-2.0 * i as f64 / rotated as f64)).collect();
        for (layout, mode) in [(PairLayout::Adjacent, 0), (PairLayout::Halves, 2)] {
            let want = theirs(&[length, heads, tokens], &x, |g, x| g.rope(x, past, rotated, mode));
            let rotary = Rotary { frequencies: frequencies.clone(), magnitude: 1.0, layout };
            let mut got = x.clone();
            for (token, rows) in got.chunks_exact_mut(length * heads).enumerate() {
                let mut angles = Vec::new();
                rotary.angles(i64::from(past) + token as i64, &mut angles);
                rows.chunks_exact_mut(length).for_each(|head| rotary.rotate(head, &angles));
            }
            // Their angles are products of f32, off by about `pairs` roundings of the position.
            let far = (past as f32 + tokens as f32) * rotated as f32 * 6e-8;
            assert_close(&got, &want, 2e-6 + far, 0.0, format_args!("{layout:?}, {length} at {past}"));
        }
    }
}

/// Attention with unit vectors as values gives the softmax itself.
#[test]
fn softmax() {
    let team = Team::new(2).unwrap();
    for n in [1, 9, 64, 100, 700] {
        let scores = floats(n, 6, 12.0);
        let want = theirs(&[n], &scores, |g, x| g.soft_max(x));
        let encode = |values: &[f32]| {
            let mut bytes = Vec::new();
            Codec::F32.append(values, &mut bytes);
            bytes
        };
        let unit: Vec<f32> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
        let (keys, values) = (encode(&scores), encode(&unit));
        let segment = KvSegment {
            entries: Entries::Rows { codec: Codec::F32, keys: &keys, values: &values, key_stride: 1, value_stride: n },
            len: n,
            query: QueryKind::Local,
            visibility: Visibility::All,
        };
        let shape = Shape { tokens: 1, heads: 1, heads_kv: 1, key_length: 1, value_length: n, scale: 1.0, memory_top_k: 0 };
        for level in Level::available() {
            let mut got = vec![0.0; n];
            let queries = Queries { local: &[1.0], memory: &[] };
            team.pass(|pass| attention_at(level, pass, &shape, queries, &[segment], &mut got)).unwrap();
            // Theirs takes e^x from a table of halves.
            assert_close(&got, &want, 1e-6, 1e-2, format_args!("{level:?}, softmax of {n}"));
            assert!((got.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
