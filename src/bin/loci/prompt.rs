//! What goes into a model: texts and ids from arguments and files, conversations through the model's chat template.

use crate::failure::Failure;
use loci::model::Model;
use loci::tokenizer::chat::{ChatTemplate, Message, RenderOptions};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// The bytes of a file, or of stdin for `-`.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(|e| Failure::failed(format!("read stdin: {e}")))?;
        return Ok(bytes);
    }
    std::fs::read(path).map_err(|e| Failure::io("read", path, e))
}

/// A file that must be UTF-8.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(path)?)
        .map_err(|e| Failure::failed(format!("read {}: not UTF-8 at byte {}", path.display(), e.utf8_error().valid_up_to())))
}

/// A file that must be JSON.
pub fn read_json(path: &Path) -> Result<Value, Failure> {
    serde_json::from_slice(&read(path)?).map_err(|e| Failure::failed(format!("read {}: not JSON: {e}", path.display())))
}

/// Token ids: `1,2,3`, or a file with a JSON array of them.
pub fn ids(source: &str) -> Result<Vec<u32>, Failure> {
    let listed = source.chars().all(|c| c.is_ascii_digit() || c == ',' || c.is_whitespace());
    if listed && source.chars().any(|c| c.is_ascii_digit()) {
        return source
            .split(',')
            .filter(|part| !part.trim().is_empty())
            .map(|part| part.trim().parse().map_err(|_| Failure::usage(format!("--ids: expected a token id, found {part:?}"))))
            .collect();
    }
    ids_of_json(&read_json(Path::new(source))?, source)
}

/// An array of token ids in JSON.
pub fn ids_of_json(value: &Value, source: &str) -> Result<Vec<u32>, Failure> {
    let bad = |found: &Value| Failure::failed(format!("{source}: expected an array of token ids, found {found}"));
    let items = value.as_array().ok_or_else(|| bad(value))?;
    items.iter().map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| bad(item))).collect()
}

/// Fails unless every id is below the model's number of tokens.
pub fn check_ids(vocab_len: usize, ids: &[u32]) -> Result<(), Failure> {
    match ids.iter().find(|&&id| id as usize >= vocab_len) {
        Some(id) => Err(Failure::usage(format!("token id {id}: the model has {vocab_len} tokens"))),
        None => Ok(()),
    }
}

/// A model's chat template, ready to render.
pub struct Chat<'a> {
    model: &'a Model,
    template: ChatTemplate,
}

impl<'a> Chat<'a> {
    /// The template in the model's file.
    pub fn new(model: &'a Model) -> Result<Chat<'a>, Failure> {
        let source = model.chat_template().ok_or_else(|| {
            Failure::failed(format!("{} has no chat template (tokenizer.chat_template); `loci run` completes plain text", model.name()))
        })?;
        Ok(Chat { model, template: ChatTemplate::of_model(source, model.tokenizer())? })
    }

    /// The conversation as tokens, ready for the model's answer.
    pub fn tokens(&self, messages: &[Message]) -> Result<Vec<u32>, Failure> {
        let text = self.template.render(messages, &RenderOptions { add_generation_prompt: true, ..RenderOptions::default() })?;
        Ok(self.model.tokenizer().encode(&text, false, true))
    }
}

/// A message of a conversation.
pub fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}
