//! The converter is exact: checkpoints made here, in Hugging Face's layout, give GGUF files whose metadata, weights, logits
//! and tokens are those of the checkpoint. Logits are held against a plain f64 evaluation of the original layout
//! (`rotate_half`, windows and memory as in arXiv 2307.03170), tokens against the tokenizers crate.
//!
//! Needs python3 with numpy: `LOCI_PYTHON`, or the virtual environment in build/python, or python3.
#![cfg(target_pointer_width = "64")]

mod common;
mod convert_common;

use common::{nmse, reference::decode};
use convert_common::{Checkpoint, TEXTS, byte_level_json, evaluate, llama, longllama, pieces, sentencepiece, tokenizer_json};
use half::{bf16, f16};
use loci::gguf::{Gguf, TensorType};
use loci::kv::{Codec, KvType};
use loci::model::{Model, ModelOptions};
use loci::session::{Overflow, Session, SessionOptions};
use loci::tokenizer::TokenKind;
use serde_json::{Value, json};
use std::f64::consts::PI;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

// ------------------------------------------------------------------ running the tool

/// `LOCI_PYTHON`, or the virtual environment in build/python, or python3.
fn python() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("build/python/bin/python3");
    let default = if own.is_file() { own } else { "python3".into() };
    std::env::var_os("LOCI_PYTHON").map_or(default, PathBuf::from)
}

fn convert(dir: &Path, out: &Path, args: &[&str]) -> Output {
    let python = python();
    let install = "the converter needs python3 with numpy: run `make test`, install python3-numpy, or name an interpreter in LOCI_PYTHON";
    let numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    assert!(numpy.as_ref().is_ok_and(|o| o.status.success()), "{}: {install}: {numpy:?}", python.display());
    let tool = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tools/convert_longllama.py");
    Command::new(python).arg(tool).arg(dir).arg(out).args(args).output().unwrap()
}

#[track_caller]
fn converted(dir: &Path, args: &[&str]) -> PathBuf {
    let out = dir.join("out.gguf");
    let run = convert(dir, &out, args);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    out
}

#[track_caller]
fn refused(dir: &Path, args: &[&str], words: &[&str]) {
    let out = dir.join("refused.gguf");
    let before = files(dir);
    let run = convert(dir, &out, args);
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(words.iter().all(|w| said.contains(w)) && !said.contains("Traceback"), "{words:?} in {said}");
    assert_eq!(files(dir), before, "something was left behind");
}

fn files(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

fn open(path: &Path) -> Arc<Model> {
    Model::open(path, &ModelOptions::default()).unwrap()
}

/// Logits of every token, by the reference's rules.
fn logits(model: &Arc<Model>, ids: &[u32]) -> Vec<f32> {
    let options = SessionOptions { kv_type: KvType::F32, overflow: Some(Overflow::DumpAll), threads: 1, ..SessionOptions::default() };
    let mut out = Vec::new();
    Session::new(model.clone(), options).unwrap().prefill_logits(ids, &mut |_, l| out.extend_from_slice(l)).unwrap();
    out
}

fn some_ids(n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 31 + i * 7 + 3) % vocab) as u32).collect()
}

/// A checkpoint directory with the SentencePiece vocabulary.
fn directory(checkpoint: &Checkpoint, sharded: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write(dir.path(), sharded);
    std::fs::write(dir.path().join("tokenizer.model"), sentencepiece(2)).unwrap();
    dir
}

// ------------------------------------------------------------------ the promises

#[test]
fn a_longllama_computes_what_its_checkpoint_does() {
    let vocab = pieces().len();
    for positionals in [true, false] {
        let checkpoint = longllama(vocab, positionals);
        let dir = directory(&checkpoint, true);
        let model = open(&converted(dir.path(), &["--type", "f32", "--name", "tiny"]));
        assert_eq!((model.architecture(), model.name(), model.memory_layers()), ("llama", "tiny", &[1][..]));
        let fot = model.hparams().fot.as_ref().unwrap();
        assert_eq!((fot.window_length, fot.last_context_length, fot.memory_positionals), (32, 12, positionals));
        assert_eq!((fot.memory_codec, fot.memory_top_k), (Codec::F32, 0));
        let h = model.hparams();
        assert_eq!((h.context_length, h.key_length, h.head_count_kv, h.feed_forward_length), (32, 20, 4, 96));
        assert_eq!((h.rope_freq_base, h.rms_epsilon), (5000.0, 1e-5));
        assert_eq!(model.weight_type(), "F32");

        let one = some_ids(12, vocab);
        let error = nmse(&logits(&model, &one), &evaluate(&checkpoint, &one, &[12]));
        assert!(error <= 1e-9, "one window: NMSE {error:e}");

        // 60 tokens: 48 go to memory in windows of 32 and 16, the last 12 stay.
        let ids = some_ids(60, vocab);
        let got = logits(&model, &ids);
        let long = nmse(&got, &evaluate(&checkpoint, &ids, &[32, 16, 12]));
        assert!(long <= 1e-9, "with memory: NMSE {long:e}");
        println!("positionals {positionals}: NMSE {error:.1e} in one window, {long:.1e} with memory");

        // What the comparisons above would miss, they would miss here: other positions give other logits.
        let mut other = longllama(vocab, !positionals);
        other.tensors = checkpoint.tensors.clone();
        let far = nmse(&got, &evaluate(&other, &ids, &[32, 16, 12]));
        assert!(far > 1e-3, "rotation in memory layers changes nothing: NMSE {far:e}");
    }
}

#[test]
fn a_plain_llama_computes_what_its_checkpoint_does() {
    let vocab = pieces().len() + 5;
    let checkpoint = llama(vocab);
    let dir = directory(&checkpoint, false);
    let model = open(&converted(dir.path(), &["--type", "f32"]));
    assert!(model.memory_layers().is_empty());
    assert_eq!((model.vocab_len(), model.context_length()), (vocab, 64));
    assert!(model.gguf().tensor("output.weight").is_none(), "the embedding is tied");
    assert_eq!(model.tokenizer().token_kind(vocab as u32 - 1), TokenKind::Unused);
    let ids = some_ids(40, vocab);
    let error = nmse(&logits(&model, &ids), &evaluate(&checkpoint, &ids, &[40]));
    assert!(error <= 1e-9, "NMSE {error:e}");
}

/// Hugging Face's Llama 3.1 scaling, from its definition by wavelengths.
#[test]
fn rope_scaling_comes_along() {
    let vocab = pieces().len();
    let mut checkpoint = llama(vocab);
    checkpoint.config["rope_scaling"] = json!({ "type": "linear", "factor": 4.0 });
    let dir = directory(&checkpoint, false);
    let model = open(&converted(dir.path(), &[]));
    assert_eq!(model.hparams().rope_scaling.kind, loci::model::RopeScalingKind::Linear);
    assert_eq!(model.hparams().rope_scaling.factor, 4.0);

    checkpoint.config["rope_scaling"] = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512 });
    checkpoint.write(dir.path(), false);
    let gguf = Gguf::open(&converted(dir.path(), &[])).unwrap();
    let tensor = gguf.tensor("rope_freqs.weight").unwrap();
    let got = decode(TensorType::F32, &gguf.bytes(tensor));
    assert_eq!(got.len(), 8);
    for (i, got) in got.iter().enumerate() {
        let frequency = 10_000f64.powf(-2.0 * i as f64 / 16.0);
        let wavelength = 2.0 * PI / frequency;
        let want = if wavelength < 512.0 / 4.0 {
            1.0
        } else if wavelength > 512.0 / 1.0 {
            8.0
        } else {
            let smooth = (512.0 / wavelength - 1.0) / (4.0 - 1.0);
            1.0 / ((1.0 - smooth) / 8.0 + smooth)
        };
        assert!((f64::from(*got) - want).abs() < 1e-5 * want, "pair {i}: {got}, not {want}");
    }

    checkpoint.config["rope_scaling"] = json!({ "type": "dynamic", "factor": 2.0 });
    checkpoint.write(dir.path(), false);
    refused(dir.path(), &[], &["config.json", "rope_scaling", "expected", "dynamic"]);
}

#[test]
fn every_output_type_rounds_as_it_should() {
    let checkpoint = llama(pieces().len());
    let dir = directory(&checkpoint, false);
    let exact = Gguf::open(&converted(dir.path(), &["--type", "f32"])).unwrap();
    for (ty, name) in [(TensorType::F16, "f16"), (TensorType::BF16, "bf16"), (TensorType::Q8_0, "q8_0")] {
        let out = dir.path().join(name);
        assert!(convert(dir.path(), &out, &["--type", name]).status.success());
        let gguf = Gguf::open(&out).unwrap();
        for tensor in gguf.tensors() {
            let original = exact.tensor(&tensor.name).unwrap();
            let want = decode(TensorType::F32, &exact.bytes(original));
            assert_eq!(tensor.ty, if original.dims.len() == 1 { TensorType::F32 } else { ty }, "{}", tensor.name);
            let got = decode(tensor.ty, &gguf.bytes(tensor));
            for (got, want) in got.chunks(32).zip(want.chunks(32)) {
                let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (g, w) in got.iter().zip(want) {
                    let good = match tensor.ty {
                        TensorType::F16 => *g == f16::from_f32(*w).to_f32(),
                        TensorType::BF16 => *g == bf16::from_f32(*w).to_f32(),
                        // Half a step, and the scale's rounding to f16.
                        TensorType::Q8_0 => (g - w).abs() <= largest / 254.0 + largest / 2048.0,
                        _ => g == w,
                    };
                    assert!(good, "{} as {name}: {g} for {w}", tensor.name);
                }
            }
        }
        open(&out);
    }
    // Without an option it is f16.
    assert_eq!(open(&converted(dir.path(), &[])).weight_type(), "F16");
}

#[track_caller]
fn same_tokens(model: &Model, oracle: &tokenizers::Tokenizer) {
    for text in TEXTS {
        let got = model.tokenizer().encode(text, false, false);
        assert_eq!(got, oracle.encode(*text, false).unwrap().get_ids(), "{text:?}");
        assert_eq!(String::from_utf8(model.tokenizer().decode(&got, false)).unwrap(), *text);
    }
}

#[test]
fn tokens_are_those_of_the_tokenizers_crate() {
    let checkpoint = longllama(pieces().len(), true);
    let dir = directory(&checkpoint, false);
    let oracle = tokenizers::Tokenizer::from_bytes(tokenizer_json().to_string()).unwrap();
    let check = |model: &Model| {
        same_tokens(model, &oracle);
        let t = model.tokenizer();
        assert_eq!((t.bos(), t.eos(), t.unk(), t.add_bos(), t.add_space_prefix()), (Some(1), Some(2), Some(0), true, true));
        let tab = t.vocab_len() as u32 - 1;
        let kinds = [(0, TokenKind::Unknown), (1, TokenKind::Control), (13, TokenKind::Byte), (259, TokenKind::Normal)];
        for (id, kind) in kinds.into_iter().chain([(tab, TokenKind::UserDefined)]) {
            assert_eq!(t.token_kind(id), kind, "{id}");
        }
        assert_eq!(t.encode("<|tab|>", false, false), [tab]);
    };
    check(&open(&converted(dir.path(), &[])));

    // The same from tokenizer.json, whose merges become scores; eos is found by tokenizer_config.json.
    std::fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer_json().to_string()).unwrap();
    let config = json!({ "eos_token": { "content": "</s>" }, "chat_template": "{{ messages }}" });
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let model = open(&converted(dir.path(), &[]));
    check(&model);
    assert_eq!(model.chat_template(), Some("{{ messages }}"));

    // A list of merges that no scores express.
    let mut json = tokenizer_json();
    json["model"]["merges"].as_array_mut().unwrap().retain(|m| m != "l l");
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    refused(dir.path(), &[], &["tokenizer.json", "'ll'", "tokenizer.model"]);
}

#[test]
fn byte_level_vocabularies_keep_their_merges() {
    let json = byte_level_json();
    let vocab = json["model"]["vocab"].as_object().unwrap().len() + 1;
    let dir = tempfile::tempdir().unwrap();
    llama(vocab).write(dir.path(), false);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    refused(dir.path(), &[], &["tokenizer.json", "--pre"]);
    let model = open(&converted(dir.path(), &["--pre", "gpt-2"]));
    assert_eq!(model.gguf().str("tokenizer.ggml.pre").unwrap(), Some("gpt-2"));
    same_tokens(&model, &tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap());
    let end = vocab as u32 - 1;
    assert_eq!(model.tokenizer().token_kind(end), TokenKind::Control);
    assert_eq!(model.tokenizer().encode("he<|endoftext|>", false, true), [256, end]);
}

#[test]
fn what_does_not_fit_is_named() {
    let vocab = pieces().len();
    let good = longllama(vocab, true);
    let dir = directory(&good, false);
    let path = dir.path();
    let with = |change: &dyn Fn(&mut Checkpoint)| {
        let mut c = Checkpoint { config: good.config.clone(), tensors: good.tensors.clone() };
        change(&mut c);
        c.write(path, false);
    };
    let k = "model.layers.2.self_attn.k_proj.weight";
    with(&|c| c.tensors.get_mut(k).unwrap().shape = vec![40, 160]);
    refused(path, &[], &["model.safetensors", k, "expected shape [80, 80]", "found shape [40, 160]"]);
    with(&|c| drop(c.tensors.remove(k)));
    refused(path, &[], &["model.safetensors", k, "expected shape [80, 80]", "found no such tensor"]);
    with(&|c| drop(c.tensors.insert("model.layers.3.mlp.up_proj.weight".into(), c.tensors[k].clone())));
    refused(path, &[], &["model.safetensors", "model.layers.3.mlp.up_proj.weight"]);
    with(&|c| c.tensors.get_mut(k).unwrap().values[7] = f32::NAN);
    refused(path, &[], &["model.safetensors", k, "expected finite numbers"]);
    with(&|c| {
        let head = c.tensors.get_mut("lm_head.weight").unwrap();
        (head.dtype, head.values[7]) = ("F32", 1e5);
    });
    refused(path, &["--type", "f16"], &["model.safetensors", "lm_head.weight", "fit f16"]);
    for (key, value, words) in [
        ("mem_layers", json!([1, 3]), ["mem_layers", "layers below 3", "[1, 3]"]),
        ("mem_dtype", json!("int8"), ["mem_dtype", "bfloat16", "int8"]),
        ("num_key_value_heads", json!(3), ["num_key_value_heads", "a divisor of 4", "3"]),
        ("hidden_size", Value::Null, ["hidden_size", "a whole number", "None"]),
        ("rope_scaling", json!({ "type": "linear", "factor": 2.0 }), ["rope_scaling", "none in a model with memory", "linear"]),
        ("vocab_size", json!(vocab - 1), ["model.embed_tokens.weight", "expected", "found"]),
        ("model_type", json!("mistral"), ["model_type", "longllama", "mistral"]),
    ] {
        with(&|c| c.config[key] = value.clone());
        refused(path, &[], &words);
    }

    with(&|_| {});
    std::fs::write(path.join("tokenizer.model"), sentencepiece(1)).unwrap();
    refused(path, &[], &["tokenizer.model", "model_type", "2 (BPE)"]);
    std::fs::write(path.join("tokenizer.model"), &sentencepiece(2)[..999]).unwrap();
    refused(path, &[], &["tokenizer.model", "bytes"]);
    std::fs::remove_file(path.join("tokenizer.model")).unwrap();
    refused(path, &[], &["neither tokenizer.model nor tokenizer.json"]);

    let whole = std::fs::read(path.join("model.safetensors")).unwrap();
    std::fs::write(path.join("model.safetensors"), &whole[..whole.len() - 1]).unwrap();
    refused(path, &[], &["model.safetensors", "expected", "bytes within"]);
    std::fs::write(path.join("model.safetensors"), &whole[..5]).unwrap();
    refused(path, &[], &["model.safetensors", "header length"]);
    std::fs::rename(path.join("model.safetensors"), path.join("pytorch_model.bin")).unwrap();
    refused(path, &[], &["pytorch_model.bin", "safetensors"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let dir = directory(&longllama(pieces().len(), true), true);
    let before = files(dir.path());
    let out = dir.path().join("out.gguf");
    let run = convert(dir.path(), &out, &["--dry-run", "--type", "q8_0"]);
    assert!(run.status.success(), "{run:?}");
    let said = String::from_utf8(run.stdout).unwrap();
    assert!(said.contains("llama.fot.memory_layers = [1]") && said.contains("blk.2.ffn_down.weight: q8_0 [80, 96]"), "{said}");
    // Rows of 80 have no blocks of 32.
    assert!(said.contains("blk.2.ffn_up.weight: f16 [96, 80]"), "{said}");
    assert_eq!(files(dir.path()), before);
}
