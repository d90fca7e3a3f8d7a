//! The Focused Transformer is exact: logits, states and memory contents against vectors made by the authors' code
//! (`tests/data/fot/README.md`), with the tolerances that its rounding to bf16 allows.

mod common;

use common::golden::{Golden, fot_a_pi4, rewrite};
use common::{argmax, max_abs_diff, rms_diff};
use loci::gguf::Gguf;
use loci::kv::{Codec, KvType};
use loci::memory::Memory;
use loci::model::{Model, ModelOptions};
use loci::session::{Overflow, ReferenceCall, Session, SessionOptions};
use std::path::Path;
use std::sync::{Arc, RwLock};

const VOCAB: usize = 512;

fn golden() -> Golden {
    Golden::open("fot")
}

fn open(path: &Path) -> Arc<Model> {
    Model::open(path, &ModelOptions::default()).unwrap()
}

fn without_memory_layers(path: &Path) -> Arc<Model> {
    let gguf = Gguf::open(path).unwrap();
    Model::open_bytes(rewrite(&gguf, &["llama.fot."], |_| {}), &ModelOptions::default()).unwrap()
}

/// The reference's rules: f32 local window, everything leaves when it is full, memory in `codec`.
fn session(model: &Arc<Model>, codec: Codec, threads: usize, batch: usize) -> Session {
    let options = SessionOptions { kv_type: KvType::F32, overflow: Some(Overflow::DumpAll), threads, batch, ..SessionOptions::default() };
    let mut session = Session::new(model.clone(), options).unwrap();
    let mut geometry = model.memory_geometry();
    geometry.codec = codec.into();
    let memory = Memory::in_ram(geometry, model.fingerprint().clone()).unwrap();
    session.set_overflow_memory(Arc::new(RwLock::new(memory))).unwrap();
    session
}

/// Logits of every token of one call of the reference.
fn call(session: &mut Session, ids: &[u32], keep_local: bool, last_context_length: usize) -> Vec<f32> {
    let mut out = vec![0.0; ids.len() * VOCAB];
    session
        .reference_call(ids, ReferenceCall { keep_local, last_context_length }, &mut |i, logits| {
            out[i * VOCAB..][..VOCAB].copy_from_slice(logits);
        })
        .unwrap();
    out
}

fn step(session: &mut Session, id: u32) -> Vec<f32> {
    call(session, &[id], true, 0)
}

fn rows(all: &[f32], wanted: &[usize]) -> Vec<f32> {
    wanted.iter().flat_map(|r| &all[r * VOCAB..][..VOCAB]).copied().collect()
}

fn state(session: &Session) -> [i64; 2] {
    let (local, memory) = session.state();
    [local as i64, memory as i64]
}

#[track_caller]
fn assert_close(name: &str, got: &[f32], want: &[f32], max: f64, rms: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    let (m, r) = (max_abs_diff(got, want), rms_diff(got, want));
    println!("{name}: max {m:.2e}, rms {r:.2e}");
    assert!(m < max && r < rms, "{name}: max {m:.3e} (bar {max:.0e}), rms {r:.3e} (bar {rms:.0e})");
}

/// Section 11 of the semantics: what f32 arithmetic, and a memory rounded to bf16, may deviate by.
const F32_MAX: f64 = 1e-3;
const BF16_MAX: f64 = 3e-2;
const BF16_RMS: f64 = 3e-3;

#[test]
fn without_memory_layers_it_is_a_llama() {
    let g = golden();
    let model = without_memory_layers(&g.path("fot_a.f16.gguf"));
    assert!(model.memory_layers().is_empty());
    let options = SessionOptions { kv_type: KvType::F32, ..SessionOptions::default() };
    let mut s = Session::new(model, options).unwrap();
    let ids = g.ids("plain.input_ids");
    let mut got = Vec::new();
    s.prefill_logits(&ids, &mut |_, l| got.extend_from_slice(l)).unwrap();
    assert_close("plain", &got, &g.f32("plain.logits").0, F32_MAX, F32_MAX);
}

#[test]
fn an_empty_memory_changes_nothing() {
    let g = golden();
    let model = open(&g.path("fot_a.f16.gguf"));
    let got = call(&mut session(&model, Codec::Bf16, 2, 256), &g.ids("onewindow.input_ids"), false, 64);
    assert_close("onewindow", &got, &g.f32("onewindow.logits").0, F32_MAX, F32_MAX);
}

#[test]
fn windows_of_a_long_input_read_the_memory_before_them() {
    let g = golden();
    let model = open(&g.path("fot_a.f16.gguf"));
    let ids = g.ids("windows.input_ids");
    let mut s = session(&model, Codec::Bf16, 2, 256);
    let got = call(&mut s, &ids, false, 0);
    assert_close("windows", &got, &g.f32("windows.logits").0, BF16_MAX, BF16_RMS);
    assert_eq!(state(&s), [0, g.int("windows.mem_len")]);
    for (slot, layer) in [1, 3].into_iter().enumerate() {
        let all: Vec<i64> = (0..300).collect();
        compare_memory(&s, &g, &format!("windows.bf16_mem_k_l{layer}"), slot, true, &all);
        compare_memory(&s, &g, &format!("windows.bf16_mem_v_l{layer}"), slot, false, &all);
    }
    let mut exact = session(&model, Codec::F32, 2, 256);
    let got = call(&mut exact, &ids, false, 0);
    let last = g.f32("windows.logits_memf32").0;
    assert_close("windows, f32 memory", &got[got.len() - last.len()..], &last, F32_MAX, F32_MAX);
}

/// Memory entries `tokens` of every head as bf16 bits: within a unit in the last place or two, and nearly all identical.
fn compare_memory(s: &Session, g: &Golden, name: &str, slot: usize, keys: bool, tokens: &[i64]) {
    let (want, shape) = g.u16(name);
    let (heads, d) = (shape[0], shape[2]);
    assert_eq!(shape[1], tokens.len());
    let memory = s.overflow_memory().expect("a memory").read().unwrap();
    let (mut same, mut worst) = (0usize, 0f32);
    let squares: f32 = want.iter().map(|b| f32::from_bits(u32::from(*b) << 16).powi(2)).sum();
    let typical = (squares / want.len() as f32).sqrt();
    for head in 0..heads {
        let all: Vec<[u8; 2]> = (0..memory.blocks())
            .flat_map(|b| {
                let rows = if keys { memory.keys(slot, head, b) } else { memory.values(slot, head, b) }.unwrap();
                rows.bytes.as_chunks::<2>().0.to_vec()
            })
            .collect();
        for (row, token) in tokens.iter().enumerate() {
            for i in 0..d {
                // Keys of the reference pair dimension i with i + d/2; the file pairs 2i with 2i + 1.
                let theirs = if keys { i / 2 + i % 2 * d / 2 } else { i };
                let want = want[(head * tokens.len() + row) * d + theirs];
                let got = u16::from_le_bytes(all[*token as usize * d + i]);
                same += usize::from(want == got);
                let (a, b) = (f32::from_bits(u32::from(want) << 16), f32::from_bits(u32::from(got) << 16));
                // Entries near 0 are sums that cancel: their last place is measured at a tenth of the typical entry.
                worst = worst.max((a - b).abs() / a.abs().max(b.abs()).max(typical / 10.0));
            }
        }
    }
    let share = same as f64 / want.len() as f64;
    println!("{name}: {:.2} % identical, worst {worst:.1e}", share * 100.0);
    assert!(share >= 0.98 && worst <= 1.0 / 64.0, "{name}: {share} identical, worst relative difference {worst}");
}

struct Generation {
    prefill: Vec<f32>,
    steps: Vec<f32>,
}

/// A prompt in one call, then the rest token by token; checks the state after each step.
fn generate(s: &mut Session, ids: &[u32], prompt: usize, states: &[i64]) -> Generation {
    let last = 16;
    let all = call(s, &ids[..prompt], true, last);
    let prefill = all[all.len() - last * VOCAB..].to_vec();
    let mut steps = Vec::new();
    for (i, id) in ids[prompt..].iter().enumerate() {
        assert_eq!(state(s), states[2 * i..][..2], "before step {i}");
        steps.extend(step(s, *id));
    }
    assert_eq!(state(s), states[states.len() - 2..]);
    Generation { prefill, steps }
}

fn as_rows(values: &[i64]) -> Vec<usize> {
    values.iter().map(|v| *v as usize).collect()
}

#[test]
fn generation_dumps_the_window_into_memory() {
    let g = golden();
    let model = open(&g.path("fot_a.f16.gguf"));
    let mut s = session(&model, Codec::Bf16, 2, 256);
    let prompt = g.int("gen_bf16.n_prompt") as usize;
    let got = generate(&mut s, &g.ids("gen_bf16.input_ids"), prompt, &g.i64("gen_bf16.state").0);
    assert_close("gen_bf16 prefill", &got.prefill, &g.f32("gen_bf16.prefill_logits_last_window").0, BF16_MAX, BF16_RMS);
    assert_close("gen_bf16 steps", &got.steps, &g.f32("gen_bf16.step_logits").0, BF16_MAX, BF16_RMS);
    for (slot, layer) in [1, 3].into_iter().enumerate() {
        for (kind, keys) in [("k", true), ("v", false)] {
            let name = format!("gen_bf16.bf16_mem_{kind}_l{layer}");
            compare_memory(&s, &g, &name, slot, keys, &g.i64(&format!("{name}_rows")).0);
        }
    }

    let mut s = session(&model, Codec::F32, 2, 256);
    let got = generate(&mut s, &g.ids("gen_f32.input_ids"), prompt, &g.i64("gen_f32.state").0);
    assert_close("gen_f32 prefill", &got.prefill, &g.f32("gen_f32.prefill_logits_last_window").0, F32_MAX, F32_MAX);
    let steps = rows(&got.steps, &as_rows(&g.i64("gen_f32.step_logits_rows").0));
    assert_close("gen_f32 steps", &steps, &g.f32("gen_f32.step_logits").0, F32_MAX, F32_MAX);
}

#[test]
fn grouped_queries_share_one_memory() {
    let g = golden();
    let path = g.path("fot_gqa.f16.gguf");
    let model = open(&path);
    let (ids, prompt, states) = (g.ids("gqa.input_ids"), g.int("gqa.n_prompt") as usize, g.i64("gqa.state").0);
    let got = generate(&mut session(&model, Codec::F32, 2, 256), &ids, prompt, &states);
    assert_close("gqa prefill", &got.prefill, &g.f32("gqa.prefill_logits_last_window_f32").0, F32_MAX, F32_MAX);
    let steps = rows(&got.steps, &as_rows(&g.i64("gqa.step_logits_f32_rows").0));
    assert_close("gqa steps", &steps, &g.f32("gqa.step_logits_f32").0, F32_MAX, F32_MAX);
    let got = generate(&mut session(&model, Codec::Bf16, 2, 256), &ids, prompt, &states);
    assert_close("gqa bf16 steps", &got.steps, &g.f32("gqa.step_logits_bf16").0, BF16_MAX, BF16_RMS);

    let mut plain = Session::new(without_memory_layers(&path), SessionOptions { kv_type: KvType::F32, ..Default::default() }).unwrap();
    let mut got = Vec::new();
    plain.prefill_logits(&ids[..64], &mut |_, l| got.extend_from_slice(l)).unwrap();
    let got = rows(&got, &as_rows(&g.i64("gqa.plain_logits_rows").0));
    assert_close("gqa plain", &got, &g.f32("gqa.plain_logits").0, F32_MAX, F32_MAX);
}

#[test]
fn every_way_of_cutting_an_input() {
    let g = golden();
    let model = open(&g.path("fot_a.f16.gguf"));
    let ids = g.ids("edge.input_ids");
    let check = |tag: &str, s: &Session, logits: &[f32]| {
        let want = g.f32(&format!("edge.{tag}_last_logits")).0;
        assert_close(tag, &logits[logits.len() - VOCAB..], &want, BF16_MAX, BF16_RMS);
        assert_eq!(state(s)[..], g.i64(&format!("edge.{tag}_state")).0, "{tag}");
        assert_eq!(logits.len() / VOCAB, g.int(&format!("edge.{tag}_n_logits")) as usize, "{tag}");
    };
    let fresh = || session(&model, Codec::Bf16, 2, 48);
    for (tag, n, c) in [
        ("e1_L100_lctx128", 100, 128),
        ("e2_L60_lctx16", 60, 16),
        ("e3_L144_lctx16", 144, 16),
        ("e3b_L192_lctx64", 192, 64),
        ("e7_L300_lctx1024", 300, 1024),
    ] {
        let mut s = fresh();
        let logits = call(&mut s, &ids[..n], true, c);
        check(tag, &s, &logits);
    }
    let mut s = fresh();
    let logits = call(&mut s, &ids[..150], true, 16);
    check("e4_0_L150", &s, &logits);
    let mut at = 150;
    for (i, q) in [40, 8, 1, 63, 20, 50].into_iter().enumerate() {
        let logits = call(&mut s, &ids[at..at + q], true, 64);
        check(&format!("e4_{}_add{q}", i + 1), &s, &logits);
        at += q;
    }
    let logits = call(&mut s, &ids[at..at + 87], true, 16);
    check("e5_add87_lctx16", &s, &logits);

    let mut s = fresh();
    let logits = call(&mut s, &ids[..130], false, 16);
    check("e6_doc130_nocache", &s, &logits);
    let logits = call(&mut s, &ids[130..230], false, 32);
    check("e6_doc100_nocache", &s, &logits);
    let logits = call(&mut s, &ids[230..250], true, 32);
    check("e6_ask20", &s, &logits);
}

#[test]
fn greedy_text_is_the_reference_s() {
    let g = golden();
    let model = open(&g.path("fot_a.f16.gguf"));
    let mut s = session(&model, Codec::F32, 2, 256);
    let mut logits = call(&mut s, &g.ids("greedy_f32.input_ids"), true, 16);
    let mut got = Vec::new();
    let want = g.ids("greedy_f32.generated");
    for _ in &want {
        let id = argmax(&logits[logits.len() - VOCAB..]) as u32;
        got.push(id);
        logits = step(&mut s, id);
    }
    assert_eq!(got, want);
}

#[test]
fn position_interpolation_is_linear_scaling() {
    let g = golden();
    let source = Gguf::open(&g.path("fot_a.f16.gguf")).unwrap();
    let ids = g.ids("pi4.input_ids");
    let run = |model: Arc<Model>, options: SessionOptions| {
        let mut s = Session::new(model, options).unwrap();
        let mut got = Vec::new();
        s.prefill_logits(&ids, &mut |_, l| got.extend_from_slice(l)).unwrap();
        got
    };
    let exact = SessionOptions { kv_type: KvType::F32, context_length: 256, ..SessionOptions::default() };
    let by_file = run(Model::open_bytes(fot_a_pi4(&source), &ModelOptions::default()).unwrap(), exact.clone());
    assert_close("pi4 first", &by_file[..16 * VOCAB], &g.f32("pi4.logits_first16").0, F32_MAX, F32_MAX);
    assert_close("pi4 last", &by_file[by_file.len() - 32 * VOCAB..], &g.f32("pi4.logits_last32").0, F32_MAX, F32_MAX);

    let wish = loci::model::RopeOverride { factor: Some(4.0), ..Default::default() };
    let by_option = run(without_memory_layers(&g.path("fot_a.f16.gguf")), SessionOptions { rope: Some(wish), ..exact });
    assert_eq!(by_file, by_option, "the user's option and the file's metadata say the same");
}

#[test]
fn the_bits_do_not_depend_on_threads_or_batches() {
    let g = golden();
    let model = open(&g.path("fot_a.f16.gguf"));
    let ids = &g.ids("windows.input_ids")[..200];
    let want = call(&mut session(&model, Codec::Bf16, 1, 256), ids, false, 16);
    for threads in [2, 3, 4] {
        let got = call(&mut session(&model, Codec::Bf16, threads, 256), ids, false, 16);
        assert!(got == want, "{threads} threads");
    }
    let got = call(&mut session(&model, Codec::Bf16, 2, 17), ids, false, 16);
    assert_close("batches of 17", &got, &want, 1e-4, 1e-5);
}

#[test]
fn top_k_of_everything_is_dense() {
    let g = golden();
    let model = open(&g.path("fot_a.f16.gguf"));
    let ids = g.ids("windows.input_ids");
    let with_top_k = |k: usize| {
        let options =
            SessionOptions { kv_type: KvType::F32, overflow: Some(Overflow::DumpAll), memory_top_k: k, ..SessionOptions::default() };
        call(&mut Session::new(model.clone(), options).unwrap(), &ids, false, 0)
    };
    let dense = with_top_k(0);
    assert!(with_top_k(300) == dense, "k >= N");
    let near = with_top_k(200);
    let far = with_top_k(4);
    let (near, far) = (rms_diff(&near, &dense), rms_diff(&far, &dense));
    assert!(near > 0.0 && near < far, "fewer keys, further from dense: {near} and {far}");
}
/// A trained model: its answers come out of a memory that was written, closed and opened again.
#[test]
fn the_dictionary_model_answers_from_a_reopened_memory() {
    let data = |file: &str| common::data("fot_dict").join(file);
    let model = open(&data("fot_dict.f16.gguf"));
    let dir = tempfile::tempdir().unwrap();
    let cases: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(data("dict_expected.json")).unwrap()).unwrap();
    let (mut asked, mut right) = (0, 0);
    for case in cases.as_array().unwrap() {
        let file = case["prompt"].as_str().unwrap();
        let text = std::fs::read_to_string(data(file)).unwrap();
        let path = dir.path().join(format!("{file}.lmem"));
        {
            let mut memory = Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap();
            memory.commit().unwrap();
            let memory = Arc::new(RwLock::new(memory));
            let mut s = Session::new(model.clone(), SessionOptions::default()).unwrap();
            let ids = model.tokenizer().encode(&text, false, false);
            assert_eq!(ids.len(), text.len(), "one byte, one token");
            s.remember(&memory, &ids, Some(file), &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
            memory.write().unwrap().commit().unwrap();
        }
        let memory = Memory::open_read_only(&path, Some(model.fingerprint())).unwrap();
        assert_eq!(memory.len(), text.len() as u64);
        let mut s = Session::new(model.clone(), SessionOptions::default()).unwrap();
        s.attach_memory(Arc::new(RwLock::new(memory))).unwrap();
        for query in case["queries"].as_array().unwrap() {
            let (q, expected) = (query["q"].as_str().unwrap(), query["expected"].as_str().unwrap());
            s.reset();
            s.prefill(&model.tokenizer().encode(q, false, false), &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
            let mut answer: Vec<u8> = Vec::new();
            for _ in 0..expected.len() {
                let id = argmax(s.logits().unwrap()) as u32;
                answer.extend(model.tokenizer().token_bytes(id).unwrap().iter());
                s.prefill(&[id], &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
            }
            asked += 1;
            right += usize::from(answer == expected.as_bytes());
        }
    }
    println!("{right} of {asked} right");
    assert_eq!((asked, right), (60, 60));
}
