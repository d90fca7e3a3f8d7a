//! The promise of a snapshot: the session that is loaded goes on as the one that was saved would have, to the bit, whatever it holds;
//! and a file that is not what it was is refused, never believed.

mod common;

use common::tiny::{self, TinyOptions};
use loci::Error;
use loci::kv::KvType;
use loci::memory::Memory;
use loci::model::{Model, ModelOptions, RopeOverride, RopeScalingKind};
use loci::sampler::SamplerOptions;
use loci::session::{GenerateOptions, Overflow, Session, SessionOptions, SharedMemory};
use std::ops::ControlFlow::Continue;
use std::path::Path;
use std::sync::{Arc, RwLock};

fn model(memory_layers: Vec<u32>) -> Arc<Model> {
    let options = TinyOptions { n_layer: 3, head_dim: 32, memory_layers, ..TinyOptions::default() };
    Model::open_bytes(tiny::llama(options), &ModelOptions::default()).unwrap()
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    tiny::ids(n, tiny::VOCAB_MIN, seed)
}

fn memory(model: &Arc<Model>, path: Option<&Path>, seed: u64) -> SharedMemory {
    let (geometry, fingerprint) = (model.memory_geometry(), model.fingerprint().clone());
    let memory = match path {
        Some(path) => Memory::create(path, geometry, fingerprint),
        None => Memory::in_ram(geometry, fingerprint),
    };
    let memory = Arc::new(RwLock::new(memory.unwrap()));
    Session::new(model.clone(), options()).unwrap().remember(&memory, &ids(333, seed), Some("book"), &mut |_, _| Continue(())).unwrap();
    memory
}

fn options() -> SessionOptions {
    SessionOptions { threads: 2, batch: 16, context_length: 96, overflow: Some(Overflow::Slide { block: 0 }), ..SessionOptions::default() }
}

fn sampled() -> SamplerOptions {
    SamplerOptions { temperature: 1.3, top_k: 0, top_p: 0.98, min_p: 0.0, repetition_penalty: 1.1, seed: 77, ..SamplerOptions::default() }
}

/// The next `n` tokens, and the bits of the logits behind each.
fn next(s: &mut Session, n: usize) -> Vec<(u32, Vec<u32>)> {
    let options = GenerateOptions { ignore_eos: true, max_tokens: n, ..GenerateOptions::default() };
    s.start(options).unwrap();
    let mut out = Vec::new();
    while out.len() < n {
        let bits = s.logits().map_or(Vec::new(), |l| l.iter().map(|x| x.to_bits()).collect());
        out.push((s.next().unwrap().token.unwrap(), bits));
    }
    out
}

#[test]
fn the_next_64_tokens_are_those_without_the_interruption() {
    let dir = tempfile::tempdir().unwrap();
    for (i, layers) in [vec![], vec![0, 2]].into_iter().enumerate() {
        let model = model(layers);
        let on_file = memory(&model, Some(&dir.path().join(format!("book{i}.lmem"))), 1);
        let in_ram = memory(&model, None, 2);
        for (j, kv_type) in KvType::ALL.into_iter().enumerate() {
            for (k, sampler) in [SamplerOptions::greedy(), sampled()].into_iter().enumerate() {
                let rope = RopeOverride { kind: Some(RopeScalingKind::Linear), factor: Some(1.5), ..RopeOverride::default() };
                let rope = (j == 1).then_some(rope);
                let mut s = Session::new(model.clone(), SessionOptions { kv_type, sampler, rope, ..options() }).unwrap();
                s.attach_memory(on_file.clone()).unwrap();
                s.attach_memory(in_ram.clone()).unwrap();
                // Long enough for the window to overflow, so that the session has a memory of its own; then a question.
                s.prefill(&ids(300, 3), &mut |_, _| Continue(())).unwrap();
                s.prefill(&ids(333, 1)[100..117], &mut |_, _| Continue(())).unwrap();
                // In the middle of an answer, or before it.
                if k == 1 {
                    next(&mut s, 5);
                }
                let path = dir.path().join("session");
                s.save(&path).unwrap();
                // A second time in its place; and a session is not changed by being saved.
                s.save(&path).unwrap();
                let mut loaded = Session::load(model.clone(), &path, &[]).unwrap();
                assert_eq!((loaded.tokens(), loaded.state(), loaded.logits()), (s.tokens(), s.state(), s.logits()));
                assert_eq!(format!("{:?}", loaded.options()), format!("{:?}", s.options()));
                assert_eq!(loaded.passages().unwrap(), s.passages().unwrap());
                let (want, got) = (next(&mut s, 64), next(&mut loaded, 64));
                assert!(want == got, "{kv_type:?}, sampler {k}, layers {:?}", model.memory_layers());
                // On and on: text, an overflowing window, the history of the sampler.
                s.prefill(&ids(90, 5), &mut |_, _| Continue(())).unwrap();
                loaded.prefill(&ids(90, 5), &mut |_, _| Continue(())).unwrap();
                assert!(next(&mut s, 20) == next(&mut loaded, 20));
            }
        }
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "two memories and a snapshot: {left:?}");
}

#[test]
fn an_empty_session_and_one_without_memories_are_saved_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let model = model(vec![]);
    let plain = SessionOptions { threads: 1, sampler: sampled(), ..SessionOptions::default() };
    let mut s = Session::new(model.clone(), plain).unwrap();
    s.save(&path).unwrap();
    let mut loaded = Session::load(model.clone(), &path, &[]).unwrap();
    assert!(loaded.is_empty() && loaded.logits().is_none());
    for s in [&mut s, &mut loaded] {
        s.prefill(&ids(20, 1), &mut |_, _| Continue(())).unwrap();
    }
    assert!(next(&mut s, 10) == next(&mut loaded, 10));
}

fn saved(model: &Arc<Model>, dir: &Path) -> std::path::PathBuf {
    let (book, path) = (dir.join("book.lmem"), dir.join("session"));
    let memory = memory(model, Some(&book), 1);
    let mut s = Session::new(model.clone(), SessionOptions { context_length: 64, ..options() }).unwrap();
    s.attach_memory(memory).unwrap();
    s.prefill(&ids(120, 3), &mut |_, _| Continue(())).unwrap();
    s.save(&path).unwrap();
    path
}

#[test]
fn a_flipped_bit_or_a_cut_is_refused_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(vec![]);
    let path = saved(&model, dir.path());
    let good = std::fs::read(&path).unwrap();
    let bad_path = dir.path().join("bad");
    let load = |bytes: &[u8]| {
        std::fs::write(&bad_path, bytes).unwrap();
        Session::load(model.clone(), &bad_path, &[]).map(|_| ())
    };
    load(&good).unwrap();
    let step = (good.len() / 400).max(1);
    let places = (0..good.len()).filter(|at| *at < 300 || *at + 200 > good.len() || at % step == 0);
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        match load(&bad) {
            Err(Error::Corrupt { .. } | Error::Format { .. }) => {}
            Err(Error::Unsupported(_)) if (8..16).contains(&at) => {}
            other => panic!("byte {at}: {other:?}"),
        }
        if at % 3 == 0 {
            assert!(matches!(load(&good[..at]), Err(Error::Corrupt { .. } | Error::Format { .. } | Error::Io { .. })), "cut at {at}");
        }
    }
    assert!(load(&[&good[..], b"more"].concat()).is_err());
}

#[test]
fn no_field_can_make_it_panic_or_allocate_without_bound() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(vec![]);
    let good = std::fs::read(saved(&model, dir.path())).unwrap();
    let bad_path = dir.path().join("bad");
    let body = good.len() - 12;
    let mut loaded = 0;
    let step = (body / 200).max(1);
    for at in (16..body - 8).filter(|at| *at < 420 || *at + 300 > body || at % step == 0) {
        for word in [0u64, 7, 1 << 40, u64::MAX] {
            let mut bad = good.clone();
            bad[at..at + 8].copy_from_slice(&word.to_le_bytes());
            let crc = crc32c::crc32c(&bad[..body]);
            bad[body + 8..].copy_from_slice(&crc.to_le_bytes());
            std::fs::write(&bad_path, &bad).unwrap();
            if let Ok(mut s) = Session::load(model.clone(), &bad_path, &[]) {
                loaded += 1;
                if loaded % 16 == 0 {
                    let _ = s.prefill(&[1], &mut |_, _| Continue(()));
                }
            }
        }
    }
    assert!(loaded > 100, "{loaded}");
}

#[test]
fn no_layer_may_hold_less_than_its_window() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(vec![]);
    let good = std::fs::read(saved(&model, dir.path())).unwrap();
    let bad_path = dir.path().join("bad");
    let body = good.len() - 12;
    let word = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    // Whatever may be a layer of the window: its tokens, its bytes, its tiles of sixteen tokens.
    let is_layer = |at: usize| {
        let (tokens, bytes) = (word(at), word(at + 8));
        (1..=64).contains(&tokens) && bytes >= 1024 && bytes.is_multiple_of(tokens.div_ceil(16)) && bytes <= body - at - 16
    };
    let mut refused = 0;
    for at in (16..body - 16).filter(|at| is_layer(*at)) {
        let (tokens, bytes) = (word(at), word(at + 8));
        for less in [0, 1, tokens / 2, tokens - 1] {
            let kept = bytes / tokens.div_ceil(16) * less.div_ceil(16);
            let mut bad = good[..at].to_vec();
            bad.extend([less, kept].iter().flat_map(|x| (*x as u64).to_le_bytes()));
            bad.extend(&good[at + 16..at + 16 + kept]);
            bad.extend(&good[at + 16 + bytes..body]);
            let (len, crc) = (bad.len() as u64, crc32c::crc32c(&bad));
            bad.extend(len.to_le_bytes());
            bad.extend(crc.to_le_bytes());
            std::fs::write(&bad_path, &bad).unwrap();
            match Session::load(model.clone(), &bad_path, &[]) {
                Err(_) => refused += 1,
                // It was no layer. More than the window holds: what is in it leaves.
                Ok(mut s) => drop(s.prefill(&ids(70, 8), &mut |_, _| Continue(()))),
            }
        }
    }
    assert!(refused >= 3 * 4, "three layers: {refused} refused");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(vec![]);
    let path = saved(&model, dir.path());
    let other = Model::open_bytes(
        tiny::llama(TinyOptions { seed: 2, n_layer: 3, head_dim: 32, ..TinyOptions::default() }),
        &ModelOptions::default(),
    );
    assert!(matches!(Session::load(other.unwrap(), &path, &[]), Err(Error::Mismatch { .. })));
    // The memory is gone, or another one stands there; the right one may be given.
    let (book, away) = (dir.path().join("book.lmem"), dir.path().join("away.lmem"));
    std::fs::rename(&book, &away).unwrap();
    assert!(matches!(Session::load(model.clone(), &path, &[]), Err(Error::Io { .. })));
    let other = memory(&model, Some(&book), 2);
    assert!(matches!(Session::load(model.clone(), &path, &[]), Err(Error::Mismatch { .. })));
    let right = Arc::new(RwLock::new(Memory::open_read_only(&away, None).unwrap()));
    let s = Session::load(model.clone(), &path, &[other.clone(), right.clone()]).unwrap();
    assert_eq!(s.state().1, right.read().unwrap().len() + s.overflow_memory().unwrap().read().unwrap().len());
    // Tokens that are not committed would be lost with the process.
    let mut s = Session::new(model.clone(), options()).unwrap();
    s.attach_memory(other.clone()).unwrap();
    let g = model.memory_geometry();
    let rows = vec![0.0; (g.head_count_kv * g.key_length) as usize];
    let layers = vec![loci::memory::LayerKv { keys: &rows, values: &rows }; g.layers.len()];
    other.write().unwrap().append(&[1], None, &layers).unwrap();
    assert!(matches!(s.save(&path), Err(Error::Argument { .. })));
    other.write().unwrap().commit().unwrap();
    s.save(&path).unwrap();
}

/// Prefill by the reference's rule takes windows longer than the context that was asked for.
#[test]
fn a_window_that_the_reference_made_longer_is_loaded_again() {
    let model = model(vec![0, 2]);
    let dump = SessionOptions { overflow: Some(Overflow::DumpAll), last_context_length: 200, ..options() };
    let mut s = Session::new(model, dump).unwrap();
    s.prefill(&ids(10, 1), &mut |_, _| Continue(())).unwrap();
    let mut twin = s.fork().unwrap();
    assert!(next(&mut twin, 20) == next(&mut s, 20));
}

#[test]
fn two_do_not_save_to_one_place_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.locis");
    let mut s = Session::new(model(vec![]), options()).unwrap();
    s.prefill(&ids(10, 1), &mut |_, _| Continue(())).unwrap();
    s.save(&path).unwrap();
    let (whole, new) = (std::fs::read(&path).unwrap(), dir.path().join("chat.locis.saving"));
    // Somebody else's, who is at it.
    let other = loci::bytes::FileStorage::create_alone(&new, &path).unwrap();
    s.prefill(&ids(10, 2), &mut |_, _| Continue(())).unwrap();
    assert!(matches!(s.save(&path), Err(Error::Busy(_))));
    assert!(std::fs::read(&path).unwrap() == whole && new.exists());
    // Who is gone has left it behind.
    drop(other);
    s.save(&path).unwrap();
    assert!(std::fs::read(&path).unwrap() != whole && !new.exists());
}

#[test]
fn a_fork_goes_on_by_itself() {
    for layers in [vec![], vec![0, 2]] {
        let model = model(layers);
        let in_ram = memory(&model, None, 2);
        for sampler in [SamplerOptions::greedy(), sampled()] {
            let mut s = Session::new(model.clone(), SessionOptions { sampler, ..options() }).unwrap();
            s.attach_memory(in_ram.clone()).unwrap();
            s.prefill(&ids(300, 3), &mut |_, _| Continue(())).unwrap();
            next(&mut s, 3);
            let (mut twin, mut other) = (s.fork().unwrap(), s.fork().unwrap());
            // The other one reads something else, overflowing again: the first two do not notice.
            other.prefill(&ids(200, 9), &mut |_, _| Continue(())).unwrap();
            assert_eq!(other.len(), s.len() + 200);
            let ours = next(&mut s, 40);
            assert!(next(&mut twin, 40) == ours, "the fork goes on otherwise");
            assert_eq!(twin.tokens(), s.tokens());
            assert_eq!(twin.state(), s.state());
        }
        // Shared, not copied: two sessions and two forks hold it no longer.
        assert_eq!(Arc::strong_count(&in_ram), 1);
    }
}
