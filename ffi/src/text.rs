//! Text to tokens and back, and conversations to text.
#![allow(unsafe_code)]

use crate::args::{self, Buffer, Out};
use crate::guard::{guard, guard_or};
use crate::model::ModelObject;
use crate::registry;
use crate::status::{Fail, Outcome};
use crate::types::*;
use engine::model::Model;
use std::ffi::{c_char, c_void};

/// Tokens of a text under `LOCI_ADD_SPECIAL` and `LOCI_PARSE_SPECIAL`.
///
/// # Safety
/// As [`args::text_bytes`].
pub unsafe fn tokenize(model: &Model, text: *const c_char, len: usize, flags: u32) -> Outcome<Vec<u32>> {
    let flags = args::flags(flags, LOCI_ADD_SPECIAL | LOCI_PARSE_SPECIAL)? as i32;
    // SAFETY: the caller's promise.
    let text = unsafe { args::text_bytes("text", text, len)? };
    // An id for three bytes, growing by doubling, and the same again at the time of a copy.
    engine::error::check_room("the tokens of a text", model.tokenizer().encoding_bytes(text.len()))?;
    Ok(model.tokenizer().encode_bytes(text, flags & LOCI_ADD_SPECIAL != 0, flags & LOCI_PARSE_SPECIAL != 0))
}

/// Refuses a token outside the vocabulary.
fn known(model: &Model, tokens: &[u32]) -> Outcome {
    let vocab = model.tokenizer().vocab_len();
    match tokens.iter().find(|t| **t as usize >= vocab) {
        None => Ok(()),
        Some(t) => Err(Fail::argument("tokens", format!("0 to {}", vocab.saturating_sub(1)), *t as i32)),
    }
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_tokenize(
    model: *const loci_model,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    tokens: *mut i32,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let buffer = Buffer::new(tokens.cast::<u32>(), capacity, count)?;
        buffer.write(&tokenize(&m.model, text, text_len, flags)?)
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_detokenize(
    model: *const loci_model,
    tokens: *const i32,
    count: usize,
    flags: u32,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let tokens = args::tokens(tokens, count)?;
        let special = args::flags(flags, LOCI_PRINT_SPECIAL)? != 0;
        let buffer = Buffer::new(buffer, capacity, length)?;
        known(&m.model, tokens)?;
        // The bytes, and as text: three for each that is none.
        engine::error::check_room("the text of tokens", m.model.tokenizer().decoding_bytes(tokens).saturating_mul(4))?;
        let bytes = m.model.tokenizer().decode(tokens, special);
        buffer.write_text(String::from_utf8_lossy(&bytes).as_bytes())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_token_bytes(
    model: *const loci_model,
    token: i32,
    buffer: *mut c_void,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let buffer = Buffer::new(buffer.cast::<u8>(), capacity, length)?;
        known(&m.model, &[token as u32])?;
        buffer.write(&m.model.tokenizer().token_bytes(token as u32).unwrap_or_default())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_token_id(model: *const loci_model, text: *const c_char, out: *mut i32) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let text = args::string("text", text)?;
        let out = Out::new("out", out)?;
        let token = m.model.tokenizer().token_id(text).ok_or_else(|| Fail::not_found("token", text))?;
        out.write(token as i32);
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_model_is_end_of_generation(model: *const loci_model, token: i32) -> i32 {
    guard_or(0, || {
        let m = registry::get::<ModelObject>(model)?;
        known(&m.model, &[token as u32])?;
        Ok(m.model.tokenizer().is_end_of_generation(token as u32).into())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_chat_render(
    model: *const loci_model,
    roles: *const *const c_char,
    contents: *const *const c_char,
    count: usize,
    add_generation_prompt: i32,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let roles = args::slice("roles", roles, count)?;
        let contents = args::slice("contents", contents, count)?;
        let add_generation_prompt = args::boolean("add_generation_prompt", add_generation_prompt)?;
        let buffer = Buffer::new(buffer, capacity, length)?;
        let messages = roles
            .iter()
            .zip(contents)
            .map(|(role, content)| Ok((args::string("roles", *role)?.to_owned(), args::string("contents", *content)?.to_owned())));
        let messages = messages.collect::<Outcome<Vec<_>>>()?;
        buffer.write_text(render(&m.model, messages, add_generation_prompt)?.as_bytes())
    })
}

#[cfg(feature = "chat")]
fn render(model: &Model, messages: Vec<(String, String)>, add_generation_prompt: bool) -> Outcome<String> {
    use engine::tokenizer::chat::{ChatTemplate, Message, RenderOptions};
    let source = model.chat_template().ok_or_else(|| Fail::not_found("chat template in", model.name()))?;
    let template = ChatTemplate::of_model(source, model.tokenizer())?;
    let messages: Vec<Message> = messages.into_iter().map(|(role, content)| Message { role, content }).collect();
    Ok(template.render(&messages, &RenderOptions { add_generation_prompt, ..Default::default() })?)
}

#[cfg(not(feature = "chat"))]
fn render(_: &Model, _: Vec<(String, String)>, _: bool) -> Outcome<String> {
    Err(Fail::new(LOCI_UNSUPPORTED, "unsupported: this build is without chat templates"))
}
