//! The forward pass against a plain evaluation of the dequantised weights that shares no code with it
//! (`tests/common/reference.rs`, itself held against PyTorch): tiny models of every shape and type, and the real ones.

mod common;

use common::golden::rewrite;
use common::reference::{Reference, RopeScaling};
use common::tiny::{self, TinyOptions};
use common::{argmax, kl, nmse};
use loci::bytes::Map;
use loci::gguf::{Gguf, TensorType};
use loci::kv::KvType;
use loci::model::{Model, ModelOptions, RopeOverride, RopeScalingKind};
use loci::session::{Session, SessionOptions};
use std::sync::Arc;

fn open(bytes: Vec<u8>) -> Arc<Model> {
    Model::open_bytes(bytes, &ModelOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn logits(model: &Arc<Model>, ids: &[u32], options: SessionOptions) -> Vec<f32> {
    let mut s = Session::new(model.clone(), options).unwrap();
    let mut out = Vec::new();
    s.prefill_logits(ids, &mut |_, l| out.extend_from_slice(l)).unwrap();
    out
}

fn exact_options() -> SessionOptions {
    SessionOptions { kv_type: KvType::F32, batch: 7, threads: 2, ..SessionOptions::default() }
}

#[track_caller]
fn check(name: &str, bytes: Vec<u8>, options: SessionOptions, bar: f64) {
    let model = open(bytes);
    let ids = tiny::ids(100, model.vocab_len(), 5);
    let got = logits(&model, &ids, options.clone());
    let want = Reference::new(model.gguf(), options.context_length).logits(&ids);
    let e = nmse(&got, &want.values);
    println!("{name}: NMSE {e:.1e}");
    assert!(e < bar, "{name}: NMSE {e:.2e}, bar {bar:.0e}");
}

#[test]
fn llama_in_every_shape() {
    let base = TinyOptions::default;
    let cases = [
        ("plain", base()),
        ("one head each", TinyOptions { n_head: 4, n_head_kv: 4, ..base() }),
        ("one KV head", TinyOptions { n_head_kv: 1, ..base() }),
        ("tied", TinyOptions { tied: true, ..base() }),
        ("biases", TinyOptions { biases: true, ..base() }),
        ("rope_freqs", TinyOptions { rope_freqs: true, ..base() }),
        ("head size not n_embd / n_head", TinyOptions { head_dim: 24, ..base() }),
        ("head size 100", TinyOptions { head_dim: 100, ..base() }),
        ("linear", TinyOptions { rope_scaling: Some(("linear", 4.0)), ..base() }),
        ("yarn", TinyOptions { rope_scaling: Some(("yarn", 4.0)), ..base() }),
        ("none", TinyOptions { rope_scaling: Some(("none", 4.0)), ..base() }),
    ];
    for (name, o) in cases {
        check(name, tiny::llama(o), exact_options(), 1e-9);
    }
}

/// LongRoPE takes one set of factors or the other by the size of the session's context.
#[test]
fn longrope_chooses_by_context() {
    let source = Gguf::parse(Arc::new(Map::owned(tiny::llama(TinyOptions::default())))).unwrap();
    let bytes = |v: [f32; 8]| v.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>();
    let file = rewrite(&source, &["llama.rope.scaling"], |w| {
        w.str("llama.rope.scaling.type", "longrope").f32("llama.rope.scaling.attn_factor", 1.19);
        w.u32("llama.rope.scaling.original_context_length", 105);
        w.tensor("rope_factors_long.weight", TensorType::F32, &[8], bytes([1.0, 1.5, 2.0, 3.0, 5.0, 9.0, 14.0, 20.0]));
        w.tensor("rope_factors_short.weight", TensorType::F32, &[8], bytes([1.0, 1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.7]));
    });
    for context_length in [100, 128] {
        check("longrope", file.clone(), SessionOptions { context_length, ..exact_options() }, 1e-9);
    }
    let ids = tiny::ids(100, tiny::VOCAB_MIN, 5);
    let model = open(file);
    let short = logits(&model, &ids, SessionOptions { context_length: 100, ..exact_options() });
    assert!(nmse(&short, &logits(&model, &ids, exact_options())) > 1e-6, "the sets differ");
}

#[test]
fn gemma3_in_its_shapes() {
    let base = || TinyOptions { n_layer: 7, ..TinyOptions::default() };
    let cases = [
        ("plain", base()),
        ("narrow window", TinyOptions { sliding_window: 3, ..base() }),
        ("one KV head", TinyOptions { n_head_kv: 1, head_dim: 32, ..base() }),
        // The size whose queries have another scale.
        ("as many layers as 27B", TinyOptions { n_layer: 62, ..base() }),
        ("linear, global layers only", TinyOptions { rope_scaling: Some(("linear", 8.0)), ..base() }),
    ];
    for (name, o) in cases {
        check(name, tiny::gemma3(o), exact_options(), 1e-8);
    }
}

#[test]
fn other_families_in_their_shapes() {
    let base = TinyOptions::default;
    let cases = [
        ("plain", base()),
        ("tied", TinyOptions { tied: true, ..base() }),
        ("one KV head", TinyOptions { n_head_kv: 1, ..base() }),
        ("head size not n_embd / n_head", TinyOptions { head_dim: 32, ..base() }),
        ("yarn", TinyOptions { rope_scaling: Some(("yarn", 4.0)), ..base() }),
    ];
    for (name, o) in cases {
        check(&format!("qwen2, {name}"), tiny::qwen2(o.clone()), exact_options(), 1e-9);
        check(&format!("qwen3, {name}"), tiny::qwen3(o.clone()), exact_options(), 1e-9);
        check(&format!("phi3, {name}"), tiny::phi3(o.clone()), exact_options(), 1e-9);
        check(&format!("gemma, {name}"), tiny::gemma(o), exact_options(), 1e-8);
    }
}

/// Float weights are multiplied with exact activations; block formats with activations in 8 bits, whose noise is bounded.
#[test]
fn every_weight_type() {
    use TensorType::*;
    let float = [(F32, 1e-9), (F16, 1e-9), (BF16, 1e-9)];
    let blocks = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS].map(|t| (t, 2e-3));
    for (ty, bar) in float.into_iter().chain(blocks) {
        check(ty.name(), tiny::llama(TinyOptions::of_type(ty)), exact_options(), bar);
    }
}

#[test]
fn a_user_s_rope_scaling_is_the_file_s() {
    let ids = tiny::ids(60, tiny::VOCAB_MIN, 9);
    let plain = open(tiny::llama(TinyOptions::default()));
    for (kind, name) in [(RopeScalingKind::Linear, "linear"), (RopeScalingKind::Yarn, "yarn")] {
        let file = open(tiny::llama(TinyOptions { rope_scaling: Some((name, 4.0)), ..TinyOptions::default() }));
        let wish = RopeOverride { kind: Some(kind), factor: Some(4.0), original_context_length: Some(32), ..Default::default() };
        let by_option = logits(&plain, &ids, SessionOptions { rope: Some(wish), ..exact_options() });
        assert_eq!(by_option, logits(&file, &ids, exact_options()), "{name}");
    }
    // NTK-aware scaling is a larger base: base * factor^(d / (d - 2)), d = 16.
    let ntk = RopeOverride { kind: Some(RopeScalingKind::Ntk), factor: Some(4.0), ..Default::default() };
    let ntk = logits(&plain, &ids, SessionOptions { rope: Some(ntk), ..exact_options() });
    let mut reference = Reference::new(plain.gguf(), 0);
    reference.freq_base *= 4f64.powf(16.0 / 14.0);
    assert_eq!(reference.scaling, RopeScaling::Linear(1.0));
    assert!(nmse(&ntk, &reference.logits(&ids).values) < 1e-9);
}

/// f16 keys and values cost less than the bar that an f32 model has with them.
#[test]
fn f16_window() {
    let o = SessionOptions { kv_type: KvType::F16, ..exact_options() };
    check("llama", tiny::llama(TinyOptions::default()), o.clone(), 1e-5);
    check("gemma3", tiny::gemma3(TinyOptions { n_layer: 6, ..TinyOptions::default() }), o, 1e-5);
}

const TEXT: &str = "The harbour had been quiet for most of the winter, and the keeper of the light wrote in his log that \
nothing worth a sentence had happened since the new year. He wrote it every evening all the same, because the rules said that a \
log must be kept, and because the writing made the evenings shorter. On the ninth of March a boat came in that he did not know. \
It was painted green, it carried no name, and the two people in it asked for water, for bread, and for the way to the old \
observatory on the hill. He told them that the path was steep and that nobody had lived there for twenty years. They thanked \
him, paid with coins that he had to look at twice, and left before it was dark. In the night he saw a lamp in the tower, and \
in the morning the boat was gone. He wrote that down too, with the hour and the direction of the wind, and he drew the coin.";

/// The bars of a quantised model with f16 keys and values, as perfect arithmetic would see it.
#[track_caller]
fn check_real(path: std::path::PathBuf, kl_bar: f64, top1_bar: f64) {
    let model = Model::open(&path, &ModelOptions::default()).unwrap();
    let ids = model.tokenizer().encode(TEXT, true, false);
    let ids = &ids[..ids.len().min(160)];
    let got = logits(&model, ids, SessionOptions::default());
    let want = Reference::new(&Gguf::open(&path).unwrap(), 0).logits(ids);
    let vocab = model.vocab_len();
    let (mut sum, mut same) = (0.0, 0);
    for (i, got) in got.chunks_exact(vocab).enumerate() {
        sum += kl(got, want.row(i));
        same += usize::from(argmax(got) == argmax(want.row(i)));
    }
    let (kl, top1) = (sum / ids.len() as f64, same as f64 / ids.len() as f64);
    println!("{}: {} tokens, KL {kl:.5}, top-1 {:.1} %", model.name(), ids.len(), top1 * 100.0);
    assert!(kl <= kl_bar && top1 >= top1_bar, "KL {kl:.5} (bar {kl_bar}), top-1 {top1:.3} (bar {top1_bar})");
}

#[test]
fn smollm2_is_close_to_exact() {
    check_real(common::smollm2(), 0.0065, 0.94);
}

#[test]
fn gemma3_is_close_to_exact() {
    check_real(common::gemma3(), 0.012, 0.92);
}
