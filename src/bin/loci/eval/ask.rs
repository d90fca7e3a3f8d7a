//! One question: the prompt, the answer, and which of the passages that were read hold what was asked for.

use super::Mode;
use super::tasks::{Item, Task};
use crate::{Failure, prompt};
use loci::model::Model;
use loci::session::{GenerateOptions, Session};
use std::ops::ControlFlow;

/// Tokens of an answer.
const ANSWER_TOKENS: usize = 24;
/// Tokens that a template adds at most.
const TEMPLATE_TOKENS: usize = 64;

pub struct Answer {
    pub text: String,
    pub first_token_seconds: f64,
    pub memory_bytes_read: u64,
    pub tokens: u64,
}

/// Puts questions the way the model wants them.
pub struct Asker<'a> {
    model: &'a Model,
    chat: Option<prompt::Chat<'a>>,
}

impl<'a> Asker<'a> {
    pub fn new(model: &'a Model) -> Result<Asker<'a>, Failure> {
        let chat = model.chat_template().map(|_| prompt::Chat::new(model)).transpose()?;
        Ok(Asker { model, chat })
    }

    fn prompt(&self, before: &str, item: &Item) -> Result<Vec<u32>, Failure> {
        let question = if before.is_empty() { item.question.clone() } else { format!("{before}\n\n{}", item.question) };
        let tokenizer = self.model.tokenizer();
        let mut tokens = match &self.chat {
            Some(chat) => chat.tokens(&[prompt::message("user", &question)])?,
            None => tokenizer.encode(&format!("{question}\n"), true, false),
        };
        tokens.extend(tokenizer.encode(&item.begin, false, false));
        Ok(tokens)
    }

    /// Asks for `item`; `text` is what goes into the prompt. None if that does not fit the model.
    pub fn ask(&self, session: &mut Session, item: &Item, text: &[u32], mode: Mode) -> Result<Option<Answer>, Failure> {
        let context = session.context_length();
        let room = context.saturating_sub(self.prompt("", item)?.len() + ANSWER_TOKENS + TEMPLATE_TOKENS);
        let in_prompt = match mode {
            Mode::Memory => 0,
            Mode::Full if text.len() > room => return Ok(None),
            Mode::Full => text.len(),
            Mode::Window => text.len().min(room),
        };
        let shown = self.model.tokenizer().decode(&text[text.len() - in_prompt..], true);
        let tokens = self.prompt(&String::from_utf8_lossy(&shown), item)?;
        if tokens.len() + ANSWER_TOKENS > context {
            return Ok(None);
        }
        if mode == Mode::Memory {
            session.reset();
        }
        let before = session.stats();
        session.prefill_prompt(&tokens, &mut |_, _| ControlFlow::Continue(()))?;
        let mut answer = String::new();
        let options = GenerateOptions { max_tokens: ANSWER_TOKENS, ..GenerateOptions::default() };
        let stop = item.task != Task::Cwe && item.task != Task::Vt;
        session.generate(options, &mut |piece| {
            answer.push_str(&piece.text);
            // What decides is in the first line.
            if stop && answer.trim_start().contains('\n') { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let after = session.stats();
        Ok(Some(Answer {
            text: answer,
            first_token_seconds: after.first_token_seconds,
            memory_bytes_read: after.memory_bytes_read - before.memory_bytes_read,
            tokens: (after.decode_tokens - before.decode_tokens).max(1),
        }))
    }
}

/// The place, among the passages that were read, of the one that holds what decides: the last token of the item, before the end of the
/// line.
pub fn found(session: &Session, item: &Item) -> loci::Result<Option<usize>> {
    let holds = |p: &loci::session::Passage| (p.first_token..p.first_token + p.len).contains(&item.end().saturating_sub(2));
    Ok(session.passages()?.iter().position(holds))
}
