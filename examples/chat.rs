//! A conversation, one line per turn: `cargo run --release --example chat -- model.gguf`
//!
//! Every turn hands the whole conversation to `prefill_prompt`, which computes only what the session does not hold yet.

use loci::model::{Model, ModelOptions};
use loci::session::{GenerateOptions, Session, SessionOptions};
use loci::tokenizer::chat::{ChatTemplate, Message, RenderOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: chat MODEL")?;
    let model = Model::open(Path::new(&path), &ModelOptions::default())?;
    let tokenizer = model.tokenizer();
    let source = model.chat_template().ok_or("the model has no chat template")?;
    let template = ChatTemplate::of_model(source, tokenizer)?;
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let mut session = Session::new(model.clone(), SessionOptions::default())?;
    let mut messages = Vec::new();
    for line in std::io::stdin().lines() {
        messages.push(Message { role: "user".into(), content: line? });
        let tokens = tokenizer.encode(&template.render(&messages, &options)?, false, true);
        session.prefill_prompt(&tokens, &mut |_, _| ControlFlow::Continue(()))?;
        let mut answer = String::new();
        session.generate(GenerateOptions::default(), &mut |piece| {
            answer.push_str(&piece.text);
            print!("{}", piece.text);
            match std::io::stdout().flush() {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        println!();
        messages.push(Message { role: "assistant".into(), content: answer });
    }
    Ok(())
}
