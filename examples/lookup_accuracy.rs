//! Measures how well a Focused Transformer looks things up: remembers a text in a file, opens it again, asks, and counts exact answers.
//!
//! `cargo run --release --example lookup_accuracy -- MODEL CASES TOP_K [MEMORY]` with CASES.txt and CASES.tsv from `tools/fot/cases.py`;
//! TOP_K 0 reads all of the memory. An existing MEMORY is used as it is; otherwise the text is read into it (or into a temporary file).

use loci::memory::Memory;
use loci::model::{Model, ModelOptions};
use loci::session::{Session, SessionOptions};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, cases, top_k, rest @ ..] = &arguments[..] else {
        return Err("usage: lookup_accuracy MODEL CASES TOP_K [MEMORY]".into());
    };
    let temporary = PathBuf::from(format!("{cases}.{}.lmem", std::process::id()));
    let path = rest.first().map_or_else(|| temporary.clone(), PathBuf::from);
    let model = Model::open(model.as_ref(), &ModelOptions::default())?;
    let options = SessionOptions { memory_top_k: top_k.parse()?, ..SessionOptions::default() };
    let mut session = Session::new(model.clone(), options)?;
    if !path.exists() {
        let ids = model.tokenizer().encode(&std::fs::read_to_string(format!("{cases}.txt"))?, false, false);
        let memory = Arc::new(RwLock::new(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone())?));
        let start = Instant::now();
        session.remember(&memory, &ids, None, &mut |_, _| ControlFlow::Continue(()))?;
        memory.write().map_err(|_| "a writer failed")?.commit()?;
        let seconds = start.elapsed().as_secs_f64();
        println!("remembered {} tokens, {:.0} tokens/s", ids.len(), ids.len() as f64 / seconds);
    }
    session.attach_memory(Arc::new(RwLock::new(Memory::open_read_only(&path, Some(model.fingerprint()))?)))?;
    let (mut asked, mut right, start) = (0, 0, Instant::now());
    for line in std::fs::read_to_string(format!("{cases}.tsv"))?.lines() {
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
    let stats = session.stats();
    println!(
        "{right} of {asked} exact, top-k {top_k}; {:.2} s per question; RAM {} MiB",
        start.elapsed().as_secs_f64() / f64::from(asked.max(1)),
        stats.resident_bytes >> 20
    );
    if rest.is_empty() {
        std::fs::remove_file(&temporary)?;
    }
    Ok(())
}
