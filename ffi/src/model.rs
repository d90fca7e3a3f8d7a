//! Models: opening from a path, a descriptor or memory, and what is to be known about them.
#![allow(unsafe_code)]

use crate::args::{self, Buffer, Out};
use crate::guard::{guard, guard_always, guard_or};
use crate::options::model_options;
use crate::registry::{self, Entry, Object};
use crate::status::{Fail, Outcome, c_string};
use crate::types::*;
use engine::gguf::{Array, Value, ValueType};
use engine::model::Model;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::null;
use std::sync::{Arc, OnceLock};

/// What a `loci_model` stands for.
pub struct ModelObject {
    pub model: Arc<Model>,
    architecture: CString,
    name: CString,
    weight_type: CString,
    chat_template: Option<CString>,
    /// Made when first asked for: few programs list the keys.
    keys: OnceLock<Vec<CString>>,
}

impl ModelObject {
    fn new(model: Arc<Model>) -> ModelObject {
        let c = |s: &str| c_string(s.to_owned());
        ModelObject {
            architecture: c(model.architecture()),
            name: c(model.name()),
            weight_type: c(model.weight_type()),
            chat_template: model.chat_template().map(c),
            keys: OnceLock::new(),
            model,
        }
    }
}

impl Object for ModelObject {
    type Opaque = loci_model;
    const NAME: &'static str = "model";
    fn wrap(this: Arc<Self>) -> Entry {
        Entry::Model(this)
    }
    fn of(entry: &Entry) -> Option<&Arc<Self>> {
        if let Entry::Model(m) = entry { Some(m) } else { None }
    }
}

/// # Safety
/// `options` and `out` as the header says.
unsafe fn open(
    options: *const loci_model_options,
    out: *mut *mut loci_model,
    from: impl FnOnce(&engine::model::ModelOptions) -> Outcome<Arc<Model>>,
) -> Outcome {
    let out = Out::new("out", out)?;
    // SAFETY: the caller's promise.
    unsafe {
        let model = from(&model_options(options)?)?;
        log::info!(
            "opened {}: {}, {} tensor bytes, most of them {}",
            model.name(),
            model.architecture(),
            model.weight_bytes(),
            model.weight_type()
        );
        out.write(registry::insert(ModelObject::new(model)));
    }
    Ok(())
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_open(path: *const c_char, options: *const loci_model_options, out: *mut *mut loci_model) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe { open(options, out, |o| Ok(Model::open(args::path("path", path)?, o)?)) })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_open_fd(
    fd: c_int,
    offset: u64,
    length: u64,
    options: *const loci_model_options,
    out: *mut *mut loci_model,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        open(options, out, |o| {
            let file = duplicate(fd)?;
            let length = if length > 0 {
                length
            } else {
                let whole = file.metadata().map_err(|e| io("size of the file descriptor", e))?.len();
                whole.checked_sub(offset).ok_or_else(|| Fail::argument("offset", format!("at most {whole}"), offset))?
            };
            Ok(Model::open_file(&file, offset, length, o)?)
        })
    })
}

fn io(what: &str, source: std::io::Error) -> Fail {
    engine::Error::Io { what: what.to_owned(), source }.into()
}

#[cfg(unix)]
fn duplicate(fd: c_int) -> Outcome<std::fs::File> {
    if fd < 0 {
        return Err(Fail::argument("fd", "an open file descriptor", fd));
    }
    // SAFETY: not -1, and open while it is duplicated, as the header demands; if it is not, the system says so.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    Ok(fd.try_clone_to_owned().map_err(|e| io("duplicate the file descriptor", e))?.into())
}

#[cfg(not(unix))]
fn duplicate(_fd: c_int) -> Outcome<std::fs::File> {
    Err(Fail::new(LOCI_UNSUPPORTED, "unsupported: file descriptors on this system"))
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_open_memory(
    bytes: *const c_void,
    length: usize,
    options: *const loci_model_options,
    out: *mut *mut loci_model,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        open(options, out, |o| {
            let bytes = args::slice::<u8>("bytes", bytes.cast(), length)?;
            let mut copy = Vec::new();
            copy.try_reserve_exact(length).map_err(|_| engine::Error::OutOfMemory { what: "a model in memory", bytes: length as u64 })?;
            copy.extend_from_slice(bytes);
            Ok(Model::open_bytes(copy, o)?)
        })
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_model_retain(model: *mut loci_model) -> i32 {
    guard(|| registry::retain::<ModelObject>(model))
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_model_free(model: *mut loci_model) {
    guard_always(|| {
        drop(registry::release::<ModelObject>(model));
        Ok(())
    });
}

/// A figure or a pointer of a model; `otherwise` on a bad handle.
fn about<T>(model: *const loci_model, otherwise: T, look: impl FnOnce(&ModelObject) -> T) -> T {
    guard_or(otherwise, || Ok(look(&*registry::get::<ModelObject>(model)?)))
}

macro_rules! accessors {
    ($($name:ident -> $ty:ty, $otherwise:expr, |$m:ident| $look:expr;)*) => {
        $(
            /// See the header.
            #[unsafe(no_mangle)]
            pub extern "C" fn $name(model: *const loci_model) -> $ty {
                about(model, $otherwise, |$m| $look)
            }
        )*
    };
}

accessors! {
    loci_model_architecture -> *const c_char, null(), |m| m.architecture.as_ptr();
    loci_model_name -> *const c_char, null(), |m| m.name.as_ptr();
    loci_model_weight_type -> *const c_char, null(), |m| m.weight_type.as_ptr();
    loci_model_chat_template -> *const c_char, null(), |m| m.chat_template.as_ref().map_or(null(), |t| t.as_ptr());
    loci_model_context_length -> u64, 0, |m| m.model.context_length() as u64;
    loci_model_vocab_len -> u64, 0, |m| m.model.vocab_len() as u64;
    loci_model_embedding_length -> u64, 0, |m| m.model.embedding_length() as u64;
    loci_model_block_count -> u64, 0, |m| m.model.block_count() as u64;
    loci_model_parameter_count -> u64, 0, |m| m.model.parameter_count();
    loci_model_weight_bytes -> u64, 0, |m| m.model.weight_bytes();
    loci_model_memory_layer_count -> u64, 0, |m| m.model.memory_layers().len() as u64;
    loci_model_metadata_count -> u64, 0, |m| m.model.gguf().metadata().len() as u64;
    loci_model_bos -> i32, LOCI_NO_TOKEN, |m| c_token(m.model.tokenizer().bos());
    loci_model_eos -> i32, LOCI_NO_TOKEN, |m| c_token(m.model.tokenizer().eos());
}

/// A token as the header has it.
pub fn c_token(token: Option<u32>) -> i32 {
    token.and_then(|t| i32::try_from(t).ok()).unwrap_or(LOCI_NO_TOKEN)
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_model_metadata_key(model: *const loci_model, index: u64) -> *const c_char {
    about(model, null(), |m| {
        let keys = m.keys.get_or_init(|| m.model.gguf().metadata().iter().map(|(key, _)| c_string(key.clone())).collect());
        usize::try_from(index).ok().and_then(|i| keys.get(i)).map_or(null(), |key| key.as_ptr())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_metadata(
    model: *const loci_model,
    key: *const c_char,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let key = args::string("key", key)?;
        let buffer = Buffer::new(buffer, capacity, length)?;
        let value = m.model.gguf().value(key).ok_or_else(|| Fail::not_found("metadata key", key))?;
        let mut text = Vec::new();
        value_text(value, &mut text);
        buffer.write_text(&text)
    })
}

/// A metadata value as the header describes it.
fn value_text(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::String(s) => out.extend_from_slice(s.as_bytes()),
        Value::Array(a) => array_text(a, out),
        v => out.extend_from_slice(scalar_text(v).as_bytes()),
    }
}

fn scalar_text(value: &Value) -> String {
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::String(_) | Value::Array(_) => String::new(),
    }
}

fn array_text(array: &Array, out: &mut Vec<u8>) {
    let mut separator: &[u8] = b"";
    out.push(b'[');
    if array.ty == ValueType::String {
        for s in array.strings() {
            out.extend_from_slice(separator);
            separator = b", ";
            out.push(b'"');
            // A vocabulary may hold parts of characters.
            for &b in String::from_utf8_lossy(s).as_bytes() {
                match b {
                    b'"' | b'\\' => out.extend_from_slice(&[b'\\', b]),
                    0..0x20 => out.extend_from_slice(format!("\\u{b:04x}").as_bytes()),
                    _ => out.push(b),
                }
            }
            out.push(b'"');
        }
    } else {
        for value in array.values() {
            out.extend_from_slice(separator);
            separator = b", ";
            value_text(&value, out);
        }
    }
    out.push(b']');
}
