//! The one error type of the library.
//!
//! Every variant says what was being done and, where a file is to blame, at which byte offset, which field, what was
//! expected and what was found. Nothing here is ever swallowed into an `Option`: which field was bad must survive.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, precise enough to act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: `what` names the action and the path.
    #[error("{what}: {source}")]
    Io {
        /// The action and the path, for example `open model.gguf`.
        what: String,
        /// The system's own error.
        source: io::Error,
    },
    /// A file is not what it claims to be (not a GGUF, a bad header, an impossible count).
    #[error("bad {file} at offset {offset}: {field}: expected {expected}, found {found}")]
    Format {
        /// Kind of file: `GGUF`, `memory file` ...
        file: &'static str,
        /// Byte offset of the field.
        offset: u64,
        /// The field's name.
        field: String,
        /// What a good file has there.
        expected: String,
        /// What this file has there.
        found: String,
    },
    /// A file was right once and is damaged now (checksum, torn write, truncation).
    #[error("corrupt {file} at offset {offset}: {what}")]
    Corrupt {
        /// Kind of file.
        file: &'static str,
        /// Byte offset of the damage.
        offset: u64,
        /// What does not hold.
        what: String,
    },
    /// A well-formed request or file which this build cannot serve.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The metadata or the tensors of a model do not fit together.
    #[error("bad model: {field}: expected {expected}, found {found}")]
    Model {
        /// Metadata key or tensor name.
        field: String,
        /// What the architecture needs.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// Two things which do not belong together, for example a memory made by another model.
    #[error("mismatch: {what}: expected {expected}, found {found}")]
    Mismatch {
        /// What was compared.
        what: String,
        /// The one side.
        expected: String,
        /// The other side.
        found: String,
    },
    /// An argument outside its range.
    #[error("invalid argument {name}: expected {expected}, found {found}")]
    Argument {
        /// The argument's or option's name.
        name: &'static str,
        /// The accepted range.
        expected: String,
        /// The value given.
        found: String,
    },
    /// A capacity is exhausted (context window, memory budget).
    #[error("limit reached: {what}: at most {limit}, asked {asked}")]
    Limit {
        /// Which capacity.
        what: String,
        /// Its size.
        limit: u64,
        /// What was needed.
        asked: u64,
    },
    /// The allocator said no.
    #[error("out of memory: {}{what}", bytes_for(*bytes))]
    OutOfMemory {
        /// What the bytes were for.
        what: &'static str,
        /// How many; 0 if it was not one allocation that failed.
        bytes: u64,
    },
    /// The caller asked to stop; the object stays usable.
    #[error("cancelled")]
    Cancelled,
    /// Somebody else holds it: a second writer of a memory file, a session in use.
    #[error("busy: {0}")]
    Busy(String),
}

impl Error {
    /// An [`Error::Io`] that names the action and the path.
    pub fn io(action: &str, path: &Path, source: io::Error) -> Self {
        Error::Io { what: format!("{action} {}", path.display()), source }
    }

    /// An [`Error::Model`] from anything printable.
    pub fn model(field: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Error::Model { field: field.into(), expected: expected.to_string(), found: found.to_string() }
    }

    /// An [`Error::Argument`] from anything printable.
    pub fn argument(name: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Error::Argument { name, expected: expected.to_string(), found: found.to_string() }
    }

    /// An [`Error::Mismatch`] from anything printable.
    pub fn mismatch(what: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Error::Mismatch { what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }
}

fn bytes_for(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { format!("{bytes} bytes for ") }
}

/// Characters of a string from a file that an error repeats.
const QUOTED_CHARS_MAX: usize = 60;

/// A string from a file as an error may repeat it: in quotes, control characters escaped, cut to a decent length.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((cut, _)) => format!("{:?}... ({} bytes)", &text[..cut], text.len()),
        None => format!("{text:?}"),
    }
}

/// A zeroed vector, or [`Error::OutOfMemory`] where `vec![]` would abort the process.
pub fn try_zeroed<T: Clone + Default>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    try_grow(&mut v, what, len)?;
    Ok(v)
}

/// Grows `v` to `len` elements (new ones are the default), or says that the memory is not there.
pub fn try_grow<T: Clone + Default>(v: &mut Vec<T>, what: &'static str, len: usize) -> Result<()> {
    if len > v.len() {
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
        v.try_reserve_exact(len - v.len()).map_err(|_| Error::OutOfMemory { what, bytes })?;
        v.resize(len, T::default());
    }
    Ok(())
}

/// Room for so many more elements, or [`Error::OutOfMemory`].
pub fn try_reserve<T>(v: &mut Vec<T>, what: &'static str, more: usize) -> Result<()> {
    let bytes = (more as u64).saturating_mul(size_of::<T>() as u64);
    v.try_reserve(more).map_err(|_| Error::OutOfMemory { what, bytes })
}

/// An empty vector with room for `len` elements, or [`Error::OutOfMemory`].
pub fn try_with_capacity<T>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    try_reserve(&mut v, what, len)?;
    Ok(v)
}

/// [`Error::OutOfMemory`] if there are not `bytes` to be had now: asked before work that takes about so many in small parts.
pub fn check_room(what: &'static str, bytes: usize) -> Result<()> {
    try_with_capacity::<u8>(what, bytes).map(drop)
}

/// Whether small allocations come from a reserve by now: see [`check_memory`].
static MEMORY_IS_SHORT: AtomicBool = AtomicBool::new(false);

/// For an allocator that keeps a reserve for small allocations, as that of the C library does: says whether it lives from it.
pub fn set_memory_is_short(short: bool) {
    MEMORY_IS_SHORT.store(short, Relaxed);
}

/// What [`set_memory_is_short`] said last.
pub fn memory_is_short() -> bool {
    MEMORY_IS_SHORT.load(Relaxed)
}

/// [`Error::OutOfMemory`] while memory is short. Loops that allocate many small things for a user's data ask it as they go; without
/// such an allocator it always succeeds.
pub fn check_memory(what: &'static str) -> Result<()> {
    if memory_is_short() { Err(Error::OutOfMemory { what, bytes: 0 }) } else { Ok(()) }
}
