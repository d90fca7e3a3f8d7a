//! Completes a prompt: `cargo run --release --example generate -- model.gguf "Once upon a time"`

use loci::model::{Model, ModelOptions};
use loci::session::{GenerateOptions, Session, SessionOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("usage: generate MODEL PROMPT".into());
    };
    let model = Model::open(Path::new(&path), &ModelOptions::default())?;
    let mut session = Session::new(model.clone(), SessionOptions::default())?;
    let tokens = model.tokenizer().encode(&prompt, true, false);
    session.prefill(&tokens, &mut |_, _| ControlFlow::Continue(()))?;
    session.generate(GenerateOptions::default(), &mut |piece| {
        print!("{}", piece.text);
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    println!();
    Ok(())
}
