//! The plain evaluation that other tests compare with is itself held against vectors made by others: LLaMA as PyTorch
//! computes it (with and without position interpolation), and the grouped-query model.

mod common;

use common::golden::{self, Golden};
use common::reference::{Reference, RopeScaling, decode};
use common::{max_abs_diff, tiny};
use loci::bytes::Map;
use loci::gguf::{Gguf, TensorType};
use std::sync::Arc;

fn parse(bytes: Vec<u8>) -> Gguf {
    Gguf::parse(Arc::new(Map::owned(bytes))).expect("a good file")
}

/// The rows of `logits` from `first` on, side by side with the golden ones.
fn worst(ours: &[f32], golden: &[f32]) -> f64 {
    assert!(!golden.is_empty());
    max_abs_diff(ours, golden)
}

#[test]
fn plain_llama_is_what_pytorch_computes() {
    let g = Golden::open("fot");
    let gguf = Gguf::open(&g.path("fot_a.f16.gguf")).unwrap();
    let ours = Reference::new(&gguf, 0).logits(&g.ids("plain.input_ids"));
    let (golden, shape) = g.f32("plain.logits");
    assert_eq!(shape, [ours.len(), ours.n_vocab]);
    let d = worst(&ours.values, &golden);
    assert!(d < 1e-4, "{d}");
}

#[test]
fn position_interpolation_is_what_pytorch_computes() {
    let g = Golden::open("fot");
    let gguf = parse(golden::fot_a_pi4(&Gguf::open(&g.path("fot_a.f16.gguf")).unwrap()));
    let mut reference = Reference::new(&gguf, 0);
    assert_eq!(reference.scaling, RopeScaling::Linear(4.0));
    let ids = g.ids("pi4.input_ids");
    let ours = reference.logits(&ids);
    let (first, last) = (g.f32("pi4.logits_first16").0, g.f32("pi4.logits_last32").0);
    let d = worst(&ours.values[..first.len()], &first).max(worst(&ours.values[ours.values.len() - last.len()..], &last));
    assert!(d < 1e-4, "{d}");
    // The vectors can tell: without the scaling the answer is another.
    reference.scaling = RopeScaling::None;
    let unscaled = reference.logits_from(&ids, ids.len() - 32);
    assert!(worst(&unscaled.values, &last) > 0.1);
}

#[test]
fn grouped_queries_share_their_keys_in_order() {
    let g = Golden::open("fot");
    let gguf = Gguf::open(&g.path("fot_gqa.f16.gguf")).unwrap();
    let ids = g.ids("gqa.input_ids");
    let ours = Reference::new(&gguf, 0).logits(&ids[..64]);
    let (golden, _) = g.f32("gqa.plain_logits");
    let rows = g.i64("gqa.plain_logits_rows").0;
    assert_eq!(rows.len() * ours.n_vocab, golden.len());
    for (row, golden) in rows.iter().zip(golden.chunks_exact(ours.n_vocab)) {
        let d = worst(ours.row(*row as usize), golden);
        assert!(d < 1e-4, "position {row}: {d}");
    }
}

/// Random tiny models are of use only if their logits are finite and depend on what came before.
#[test]
fn tiny_models_of_every_decodable_type_have_live_logits() {
    use TensorType::*;
    for ty in [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS] {
        let mut rng = tiny::Rng(9);
        let values = decode(ty, &tiny::random_blocks(ty, 65536, 0.5, &mut rng));
        let mean = values.iter().sum::<f32>() / 65536.0;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 65536.0).sqrt();
        assert!(mean.abs() < 0.1 && (0.3..0.8).contains(&std), "{ty}: mean {mean}, standard deviation {std}");
        for build in [tiny::llama, tiny::gemma3] {
            let o = tiny::TinyOptions::of_type(ty);
            let gguf = parse(build(o.clone()));
            let reference = Reference::new(&gguf, 0);
            let mut ids = tiny::ids(12, o.n_vocab, 3);
            let a = reference.logits(&ids);
            ids[4] = 7;
            let b = reference.logits(&ids);
            assert!(a.values.iter().all(|v| v.is_finite()), "{ty}");
            assert_eq!(max_abs_diff(a.row(3), b.row(3)), 0.0, "{ty}: the past saw the future");
            assert!(max_abs_diff(a.row(11), b.row(11)) > 1e-2, "{ty}: the past does not matter");
        }
    }
}
