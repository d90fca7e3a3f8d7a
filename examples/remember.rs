//! Reads a text into a memory on disk, and asks about it: `cargo run --release --example remember -- model.gguf log.txt "Who came?"`
//!
//! The memory file stays: run it again without the text, from another process, and the answer comes from the file.

use loci::memory::Memory;
use loci::model::{Model, ModelOptions};
use loci::session::{GenerateOptions, Session, SessionOptions};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, RwLock};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, text, question] = &arguments[..] else {
        return Err("usage: remember MODEL TEXT QUESTION".into());
    };
    let model = Model::open(Path::new(path), &ModelOptions::default())?;
    let mut session = Session::new(model.clone(), SessionOptions::default())?;
    let file = format!("{text}.lmem");

    let memory = if Path::new(&file).exists() {
        Memory::open(Path::new(&file), Some(model.fingerprint()))?
    } else {
        Memory::create(Path::new(&file), model.memory_geometry(), model.fingerprint().clone())?
    };
    let memory = Arc::new(RwLock::new(memory));
    if memory.read().map_err(|_| "poisoned")?.is_empty() {
        let tokens = model.tokenizer().encode(&std::fs::read_to_string(text)?, true, false);
        session.remember(&memory, &tokens, Some(text), &mut |done, total| {
            eprint!("\r{done} of {total} tokens");
            ControlFlow::Continue(())
        })?;
        memory.write().map_err(|_| "poisoned")?.commit()?;
        eprintln!();
    }

    session.attach_memory(memory)?;
    let tokens = model.tokenizer().encode(question, true, false);
    session.prefill(&tokens, &mut |_, _| ControlFlow::Continue(()))?;
    session.generate(GenerateOptions::default(), &mut |piece| {
        print!("{}", piece.text);
        ControlFlow::Continue(())
    })?;
    println!();
    for passage in session.passages()?.iter().take(3) {
        println!("read tokens {} to {} of {:?}", passage.first_token, passage.first_token + passage.len, passage.source);
    }
    Ok(())
}
