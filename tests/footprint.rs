//! RAM is what was foretold, and what is given back is had again. Embeddings are the states that the logits are made of.
#![allow(clippy::unwrap_used)]

mod common;

use common::reference::{Reference, decode};
use common::tiny::{self, TinyOptions};
use loci::gguf::TensorType;
use loci::kv::KvType;
use loci::model::{Model, ModelOptions};
use loci::session::{Pooling, Session, SessionOptions};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

fn options(batch: usize) -> SessionOptions {
    SessionOptions { batch, threads: 2, kv_type: KvType::F32, ..SessionOptions::default() }
}

fn tiny_model() -> Arc<Model> {
    Model::open_bytes(tiny::llama(TinyOptions::of_type(TensorType::F32)), &ModelOptions::default()).unwrap()
}

fn embed(session: &mut Session, ids: &[u32], pooling: Pooling) -> Vec<f32> {
    session.embed(ids, pooling, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

/// The output matrix times a pooled state is the pooled logits, up to the length that the state was brought to.
#[test]
fn embeddings_are_the_states_behind_the_logits() {
    let model = tiny_model();
    let ids: Vec<u32> = (0..37).map(|i| 3 + i * 11 % 200).collect();
    let logits = Reference::new(model.gguf(), 0).logits(&ids);
    let named = |name: &str| model.gguf().tensors().iter().find(|t| t.name == name);
    let output = named("output.weight").or_else(|| named("token_embd.weight")).unwrap();
    let matrix = decode(output.ty, &model.gguf().map()[output.range.clone()]);
    let vocab = model.vocab_len();
    let mean: Vec<f32> = (0..vocab).map(|v| (0..ids.len()).map(|i| logits.row(i)[v]).sum::<f32>() / ids.len() as f32).collect();
    for (pooling, expected) in [(Pooling::Last, logits.row(ids.len() - 1)), (Pooling::Mean, &mean[..])] {
        for batch in [5, 64] {
            let mut session = Session::new(model.clone(), options(batch)).unwrap();
            let state = embed(&mut session, &ids, pooling);
            let norm: f32 = state.iter().map(|v| v * v).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{norm}");
            let made: Vec<f32> = matrix.chunks_exact(state.len()).map(|w| w.iter().zip(&state).map(|(a, b)| a * b).sum()).collect();
            let scale = made.iter().zip(expected).map(|(a, b)| a * b).sum::<f32>() / made.iter().map(|v| v * v).sum::<f32>();
            assert!(scale > 0.0);
            let scaled: Vec<f32> = made.iter().map(|v| v * scale).collect();
            let error = common::nmse(&scaled, expected);
            assert!(error < 1e-9, "{pooling:?}, batch {batch}: {error}");
        }
    }
}

#[test]
fn embedding_refuses_what_does_not_fit_and_leaves_an_empty_session() {
    let model = tiny_model();
    let mut session = Session::new(model, SessionOptions { context_length: 32, ..options(8) }).unwrap();
    let ids: Vec<u32> = (3..43).collect();
    let go = &mut |_: usize, _: usize| ControlFlow::Continue(());
    assert!(session.embed(&[], Pooling::Mean, go).is_err());
    let error = session.embed(&ids, Pooling::Mean, go).unwrap_err().to_string();
    assert!(error.contains("32") && error.contains("40"), "{error}");
    let stopped = session.embed(&ids[..32], Pooling::Mean, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(loci::Error::Cancelled)), "{stopped:?}");
    assert!(session.is_empty() && session.logits().is_none());
    assert_eq!(embed(&mut session, &ids[..32], Pooling::Mean).len(), session.model().embedding_length());
}

#[test]
fn a_trimmed_session_goes_on_as_if_nothing_had_been() {
    let model = tiny_model();
    let ids: Vec<u32> = (3..83).collect();
    let go = &mut |_: usize, _: usize| ControlFlow::Continue(());
    let mut plain = Session::new(model.clone(), options(64)).unwrap();
    plain.prefill(&ids, go).unwrap();
    let mut trimmed = Session::new(model.clone(), options(64)).unwrap();
    for ids in ids.chunks(27) {
        trimmed.prefill(ids, go).unwrap();
        let (before, logits) = (trimmed.stats().anonymous_bytes, trimmed.logits().map(<[f32]>::to_vec));
        trimmed.trim();
        model.trim();
        assert!(trimmed.stats().anonymous_bytes < before);
        assert_eq!(trimmed.logits().map(<[f32]>::to_vec), logits);
    }
    assert_eq!(trimmed.logits(), plain.logits());
}

/// `loci estimate --measure` as JSON, of a real model.
fn measured(model: &Path, context: &str, kv: &str) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loci"));
    let out = command.args(["estimate", "--measure", "--json", "-t", "2", "-c", context, "--kv", kv, "-m"]).arg(model).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn the_peak_is_within_five_percent_of_the_estimate() {
    for (model, context, kv) in [
        (common::smollm2(), "512", "f16"),
        (common::smollm2(), "2048", "f16"),
        (common::smollm2(), "2048", "q8_0"),
        (common::gemma3(), "256", "f16"),
        (common::gemma3(), "1024", "f16"),
    ] {
        let e = measured(&model, context, kv);
        let ratio = e["measured_peak_bytes"].as_f64().unwrap() / e["total_bytes"].as_f64().unwrap();
        assert!((0.95..1.05).contains(&ratio), "{} with {context} tokens in {kv}: {ratio}: {e}", model.display());
    }
}
