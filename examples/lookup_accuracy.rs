//! Measures how well a Focused Transformer looks things up: remembers a text in a file, opens it again, asks, and counts exact answers.
//!
//! `cargo run --release --example lookup_accuracy -- MODEL CASES MEMORY CODEC TOP_K...` with CASES.txt and CASES.tsv from
//! `tools/fot/cases.py`. CODEC is f32, f16, bf16, k8v4 or k4v4; an existing MEMORY is used as it is, whatever its codec. The questions are
//! asked once for each TOP_K, which gives a line of JSON that `tools/fot/plots.py` draws; 0 reads all of the memory.

use loci::memory::{Codec, Memory};
use loci::model::{Model, ModelOptions};
use loci::session::{Session, SessionOptions};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, cases, memory, codec, top_k @ ..] = &arguments[..] else {
        return Err("usage: lookup_accuracy MODEL CASES MEMORY CODEC TOP_K...".into());
    };
    let (model, memory) = (Model::open(model.as_ref(), &ModelOptions::default())?, Path::new(memory));
    if !memory.exists() {
        remember(&model, &std::fs::read_to_string(format!("{cases}.txt"))?, memory, codec)?;
    }
    let questions = std::fs::read_to_string(format!("{cases}.tsv"))?;
    for top_k in top_k {
        ask(&model, &questions, memory, top_k.parse()?)?;
    }
    Ok(())
}

fn remember(model: &Arc<Model>, text: &str, path: &Path, codec: &str) -> Outcome<()> {
    let mut geometry = model.memory_geometry();
    geometry.codec = Codec::from_name(codec).ok_or("CODEC is f32, f16, bf16, k8v4 or k4v4")?;
    let ids = model.tokenizer().encode(text, false, false);
    let memory = Arc::new(RwLock::new(Memory::create(path, geometry, model.fingerprint().clone())?));
    let mut session = Session::new(model.clone(), SessionOptions::default())?;
    let start = Instant::now();
    session.remember(&memory, &ids, None, &mut |_, _| ControlFlow::Continue(()))?;
    memory.write().map_err(|_| "a writer failed")?.commit()?;
    let seconds = start.elapsed().as_secs_f64();
    println!("remembered {} tokens as {codec}, {:.0} tokens/s", ids.len(), ids.len() as f64 / seconds);
    Ok(())
}

/// Asks every line of `questions`, a question and its answer with a tab between them; the model's best token counts.
fn ask(model: &Arc<Model>, questions: &str, path: &Path, top_k: usize) -> Outcome<()> {
    let mut session = Session::new(model.clone(), SessionOptions { memory_top_k: top_k, ..SessionOptions::default() })?;
    let memory = Memory::open_read_only(path, Some(model.fingerprint()))?;
    let (length, codec) = (memory.len(), memory.geometry().codec);
    session.attach_memory(Arc::new(RwLock::new(memory)))?;
    let (mut asked, mut right, start) = (0, 0, Instant::now());
    for line in questions.lines() {
        let (question, expected) = line.split_once('\t').ok_or("a line without a tab")?;
        session.reset();
        let mut ids = model.tokenizer().encode(&format!("Q: {question}\nA: "), false, false);
        let mut answer: Vec<u8> = Vec::new();
        while answer.len() < expected.len() {
            session.prefill(&ids, &mut |_, _| ControlFlow::Continue(()))?;
            let best = session.logits().ok_or("no logits")?.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |b| b.0 as u32);
            answer.extend(model.tokenizer().token_bytes(best).ok_or("no such token")?.iter());
            ids = vec![best];
        }
        asked += 1;
        right += usize::from(answer == expected.as_bytes());
    }
    let (seconds, resident) = (start.elapsed().as_secs_f64() / f64::from(asked.max(1)), session.stats().resident_bytes);
    println!(
        r#"{{"length": {length}, "codec": "{codec}", "top_k": {top_k}, "questions": {asked}, "right": {right}, "seconds_each": {seconds:.3}, "resident_mib": {}}}"#,
        resident >> 20
    );
    Ok(())
}
