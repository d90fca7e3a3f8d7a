//! The Focused Transformer of `models/` does what its card says: it looks things up in a memory file of 65,536 tokens, and its quantised
//! files answer as the one they were made from. The text and the phrasings of the questions (`tests/data/fot_model`, written by
//! `tools/fot/cases.py`) were not in its training.

mod common;

use common::{argmax, kl};
use loci::memory::{Codec, Geometry, LayerKv, Memory, Side};
use loci::model::{Model, ModelOptions};
use loci::session::{Session, SessionOptions, SharedMemory};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

fn shipped(ty: &str) -> Arc<Model> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("models/loci-fot-1m.{ty}.gguf"));
    Model::open(&path, &ModelOptions::default()).expect("a model of the repository")
}

fn text() -> String {
    std::fs::read_to_string(common::data("fot_model/log_65536.txt")).expect("read the text")
}

/// Questions and their answers.
fn questions() -> Vec<(String, String)> {
    let lines = std::fs::read_to_string(common::data("fot_model/log_65536.tsv")).expect("read the questions");
    lines.lines().map(|l| l.split_once('\t').expect("question, tab, answer")).map(|(q, a)| (q.to_string(), a.to_string())).collect()
}

fn silent(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A model and its memory file of the text: written, closed, and opened again, once for all tests.
fn remembered(ty: &'static str) -> (Arc<Model>, SharedMemory) {
    type Made = (tempfile::TempDir, Arc<Model>, SharedMemory);
    static MADE: [(&str, OnceLock<Made>); 3] = [("F16", OnceLock::new()), ("Q8_0", OnceLock::new()), ("Q4_0", OnceLock::new())];
    let made = &MADE.iter().find(|(name, _)| *name == ty).expect("a type that is shipped").1;
    let (_, model, memory) = made.get_or_init(|| {
        let model = shipped(ty);
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log.lmem");
        let ids = model.tokenizer().encode(&text(), false, false);
        assert_eq!(ids.len(), 65536, "one byte, one token");
        {
            let memory =
                Arc::new(RwLock::new(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).expect("create")));
            let mut session = Session::new(model.clone(), SessionOptions::default()).expect("session");
            session.remember(&memory, &ids, Some("log"), &mut silent).expect("remember");
            memory.write().expect("lock").commit().expect("commit");
        }
        let memory = Memory::open_read_only(&path, Some(model.fingerprint())).expect("open again");
        assert_eq!(memory.len(), 65536);
        (dir, model, Arc::new(RwLock::new(memory)))
    });
    (model.clone(), memory.clone())
}

/// A session that reads the memory.
fn reading(ty: &'static str, options: SessionOptions) -> Session {
    let (model, memory) = remembered(ty);
    let mut session = Session::new(model, options).expect("session");
    session.attach_memory(memory).expect("attach");
    session
}

/// The most probable answer: what comes before the end of the line.
fn answer(session: &mut Session, question: &str) -> String {
    let model = session.model().clone();
    session.reset();
    session.prefill(&model.tokenizer().encode(&format!("Q: {question}\nA: "), false, false), &mut silent).expect("prefill");
    let mut answer = Vec::new();
    while answer.len() < 12 {
        let id = argmax(session.logits().expect("logits")) as u32;
        answer.extend(model.tokenizer().token_bytes(id).expect("a byte").iter());
        if answer.ends_with(b"\n") {
            break;
        }
        session.prefill(&[id], &mut silent).expect("prefill");
    }
    String::from_utf8_lossy(&answer).trim_end().to_string()
}

fn right(session: &mut Session, questions: &[(String, String)]) -> usize {
    let wrong: Vec<_> = questions.iter().map(|(q, a)| (q, a, answer(session, q))).filter(|(_, a, found)| *a != found).collect();
    println!("wrong: {wrong:?}");
    questions.len() - wrong.len()
}

#[test]
fn looks_up_codes_and_the_pass_key_in_65536_tokens_of_a_file() {
    let (mut session, asked) = (reading("Q8_0", SessionOptions::default()), questions());
    let found = right(&mut session, &asked);
    println!("{found} of {} exact", asked.len());
    assert!(found * 100 >= asked.len() * 99, "{found} of {} right", asked.len());
    // The answers come from the memory: without it they are guesses.
    session.detach_memories();
    let guessed = right(&mut session, &asked[..20]);
    assert!(guessed <= 1, "{guessed} of 20 right without memory");
}

#[test]
fn the_best_128_entries_answer_like_all() {
    let mut session = reading("Q8_0", SessionOptions { memory_top_k: 128, ..SessionOptions::default() });
    let asked = &questions()[..20];
    let found = right(&mut session, asked);
    println!("{found} of {} exact", asked.len());
    assert!(found + 1 >= asked.len(), "{found} of {} right", asked.len());
}

/// A file of another shape that holds what `from` holds.
fn copied(from: &Memory, geometry: &Geometry, path: &Path) -> SharedMemory {
    let mut to = Memory::create(path, geometry.clone(), from.fingerprint().clone()).expect("create");
    let heads = geometry.head_count_kv as usize;
    for block in 0..from.blocks() {
        let span = from.block(block).expect("block");
        let rows = |side: Side, length: u32| -> Vec<f32> {
            let length = length as usize;
            let (mut out, mut of_head) = (vec![0.0; span.len * heads * length], vec![0.0; span.len * length]);
            for head in 0..heads {
                from.rows(side, 0, head, block).expect("rows").decode(&mut of_head);
                for (token, row) in of_head.chunks(length).enumerate() {
                    out[(token * heads + head) * length..][..length].copy_from_slice(row);
                }
            }
            out
        };
        let ids = from.tokens(span.first_token..span.first_token + span.len as u64).expect("ids");
        let layer = LayerKv { keys: &rows(Side::Keys, geometry.key_length), values: &rows(Side::Values, geometry.value_length) };
        to.append(&ids, None, &[layer]).expect("append");
        // Segments of several sizes.
        if block % 700 == 20 {
            to.commit().expect("commit");
        }
    }
    to.commit().expect("commit");
    drop(to);
    Arc::new(RwLock::new(Memory::open_read_only(path, Some(from.fingerprint())).expect("open")))
}

/// Candidates found by sketches, beside the best 128 of all keys.
#[test]
fn sketches_find_what_counts_and_little_else_is_read() {
    let (model, memory) = remembered("Q8_0");
    let dir = tempfile::tempdir().expect("temporary directory");
    for codec in [Codec::F16, Codec::K4V4] {
        let session = |sketches: bool, threads: usize| {
            let from = memory.read().expect("lock");
            let path = dir.path().join(format!("{codec}-{sketches}-{threads}.lmem"));
            let sketched = if sketches { from.geometry().layers.clone() } else { Vec::new() };
            let copy = copied(&from, &Geometry { codec, sketched, ..from.geometry().clone() }, &path);
            let sketched: usize = copy.read().expect("lock").sketches(0, 0).expect("sketches").iter().map(|s| s.blocks.len()).sum();
            assert_eq!(sketched, if sketches { from.blocks() } else { 0 });
            let options = SessionOptions { memory_top_k: 128, threads, ..SessionOptions::default() };
            let mut session = Session::new(model.clone(), options).expect("session");
            session.attach_memory(copy).expect("attach");
            session
        };
        let mut sessions = [session(false, 1), session(true, 1), session(true, 3)];
        for (question, value) in questions().iter().take(12) {
            let mut next = model.tokenizer().encode(&format!("Q: {question}\nA: "), false, false);
            sessions.iter_mut().for_each(Session::reset);
            for digit in model.tokenizer().encode(value, false, false) {
                sessions.iter_mut().for_each(|s| s.prefill(&next, &mut silent).expect("prefill"));
                let [exact, sketched, by_three] = sessions.each_ref().map(|s| s.logits().expect("logits"));
                assert!(kl(sketched, exact) < 1e-4, "{codec}, {question}: KL {}", kl(sketched, exact));
                assert_eq!(sketched, by_three, "the same for any number of threads");
                next = vec![digit];
            }
        }
        let [exact, sketched, _] = sessions.each_ref().map(|s| s.stats().memory_bytes_read);
        println!("{codec}: {sketched} bytes read with sketches, {exact} without");
        assert!(
            sketched * if codec == Codec::F16 { 6 } else { 2 } < exact,
            "{codec}: {sketched} bytes read with sketches, {exact} without"
        );
    }
}

/// Mean KL divergence from the F16 file's distribution over the digits of answers, and how many of these have the same best token.
fn divergence(ty: &'static str) -> (f64, f64) {
    let mut both = [reading("F16", SessionOptions::default()), reading(ty, SessionOptions::default())];
    let tokenizer = both[0].model().clone();
    let (mut sum, mut same, mut count) = (0.0, 0, 0);
    for (question, value) in questions().iter().take(12) {
        let mut next = tokenizer.tokenizer().encode(&format!("Q: {question}\nA: "), false, false);
        both.iter_mut().for_each(Session::reset);
        for digit in tokenizer.tokenizer().encode(value, false, false) {
            for session in &mut both {
                session.prefill(&next, &mut silent).expect("prefill");
            }
            let [exact, rounded] = &both;
            let (exact, rounded) = (exact.logits().expect("logits"), rounded.logits().expect("logits"));
            sum += kl(rounded, exact);
            same += u32::from(argmax(rounded) == argmax(exact));
            count += 1;
            next = vec![digit];
        }
    }
    (sum / f64::from(count), f64::from(same) / f64::from(count))
}

#[test]
fn quantised_files_are_close_to_the_one_they_come_from() {
    let ((q8, same8), (q4, same4)) = (divergence("Q8_0"), divergence("Q4_0"));
    println!("mean KL divergence Q8_0 {q8:.2e}, Q4_0 {q4:.2e}; same best token {same8:.3}, {same4:.3}");
    assert!(q8 < 1e-2 && same8 >= 0.99, "Q8_0 {q8:.2e}, {same8}");
    assert!(q4 < 0.1 && same4 >= 0.95, "Q4_0 {q4:.2e}, {same4}");
}
