//! Memories: their files, what sessions store in them and read from them.
#![allow(unsafe_code)]

use crate::args::{self, Out, StructOut};
use crate::guard::{guard, guard_always, in_callback};
use crate::model::ModelObject;
use crate::options::memory_codec;
use crate::registry::{self, Entry, Object};
use crate::session::{progress, with};
use crate::status::{Fail, Outcome, c_string};
use crate::text;
use crate::types::*;
use engine::memory::{Geometry, Memory, SourceSpan};
use engine::session::SharedMemory;
use std::ffi::{CString, c_char, c_void};
use std::mem::size_of;
use std::path::Path;
use std::ptr::null;
use std::sync::{Arc, Mutex, RwLock, TryLockError, TryLockResult};
use std::time::{Duration, Instant};

/// How long a call waits for a memory that another thread is using before it is busy. Nothing waits without end: the other may be a
/// callback that waits for us.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a `loci_memory` stands for.
pub struct MemoryObject {
    pub memory: SharedMemory,
    /// Sources as they were last counted, with their labels as C strings.
    pub sources: Mutex<Vec<(SourceSpan, CString)>>,
}

impl MemoryObject {
    /// Handles of the same memory share it.
    pub fn new(memory: SharedMemory) -> MemoryObject {
        MemoryObject { memory, sources: Mutex::default() }
    }
}

impl Object for MemoryObject {
    type Opaque = loci_memory;
    const NAME: &'static str = "memory";
    fn wrap(this: Arc<Self>) -> Entry {
        Entry::Memory(this)
    }
    fn of(entry: &Entry) -> Option<&Arc<Self>> {
        if let Entry::Memory(m) = entry { Some(m) } else { None }
    }
}

/// Takes a lock of the memory with patience, and with none on a thread that may hold it itself.
pub fn lock<G>(mut attempt: impl FnMut() -> TryLockResult<G>) -> Outcome<G> {
    let end = Instant::now() + if in_callback() { Duration::ZERO } else { PATIENCE };
    loop {
        match attempt() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(_)) => return Err(Fail::new(LOCI_POISONED, "the memory was left unusable by a bug: free it")),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                return Err(Fail::new(LOCI_BUSY, "busy: the memory is in another call"));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
}

pub fn read<T>(memory: *const loci_memory, look: impl FnOnce(&Memory) -> Outcome<T>) -> Outcome<T> {
    let object = registry::get::<MemoryObject>(memory)?;
    let guard = lock(|| object.memory.try_read())?;
    look(&guard)
}

/// # Safety
/// `out` as the header says.
unsafe fn open(out: *mut *mut loci_memory, from: impl FnOnce() -> Outcome<Memory>) -> Outcome {
    let out = Out::new("out", out)?;
    let handle = registry::insert(MemoryObject::new(Arc::new(RwLock::new(from()?))));
    // SAFETY: the caller's promise.
    unsafe { out.write(handle) };
    Ok(())
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_create(model: *const loci_model, path: *const c_char, out: *mut *mut loci_memory) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        open(out, || {
            let m = registry::get::<ModelObject>(model)?;
            let path = args::path("path", path)?;
            Ok(Memory::create(path, m.model.memory_geometry(), m.model.fingerprint().clone())?)
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_create_as(
    model: *const loci_model,
    path: *const c_char,
    options: *const loci_memory_options,
    out: *mut *mut loci_memory,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        open(out, || {
            let m = registry::get::<ModelObject>(model)?;
            let geometry = m.model.memory_geometry();
            let codec = memory_codec(options)?.unwrap_or(geometry.codec);
            let (geometry, fingerprint) = (Geometry { codec, ..geometry }, m.model.fingerprint().clone());
            if path.is_null() {
                return Ok(Memory::in_ram(geometry, fingerprint)?);
            }
            Ok(Memory::create(args::path("path", path)?, geometry, fingerprint)?)
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_in_ram(model: *const loci_model, out: *mut *mut loci_memory) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        open(out, || {
            let m = registry::get::<ModelObject>(model)?;
            Ok(Memory::in_ram(m.model.memory_geometry(), m.model.fingerprint().clone())?)
        })
    })
}

/// What [`Memory::open`] and [`Memory::open_read_only`] share.
///
/// # Safety
/// Pointers as the header says.
unsafe fn open_file(
    model: *const loci_model,
    path: *const c_char,
    out: *mut *mut loci_memory,
    from: impl FnOnce(&Path, Option<&engine::memory::Fingerprint>) -> engine::Result<Memory>,
) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        open(out, || {
            let m = if model.is_null() { None } else { Some(registry::get::<ModelObject>(model)?) };
            Ok(from(args::path("path", path)?, m.as_ref().map(|m| m.model.fingerprint()))?)
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_open(model: *const loci_model, path: *const c_char, out: *mut *mut loci_memory) -> i32 {
    // SAFETY: as the header demands of the caller.
    unsafe { open_file(model, path, out, Memory::open) }
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_open_read_only(model: *const loci_model, path: *const c_char, out: *mut *mut loci_memory) -> i32 {
    // SAFETY: as the header demands of the caller.
    unsafe { open_file(model, path, out, Memory::open_read_only) }
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_memory_free(memory: *mut loci_memory) {
    guard_always(|| {
        drop(registry::release::<MemoryObject>(memory));
        Ok(())
    });
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_memory_commit(memory: *mut loci_memory) -> i32 {
    guard(|| {
        let object = registry::get::<MemoryObject>(memory)?;
        let mut memory = lock(|| object.memory.try_write())?;
        Ok(memory.commit()?)
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_refresh(memory: *mut loci_memory, more: *mut i32) -> i32 {
    guard(|| {
        let object = registry::get::<MemoryObject>(memory)?;
        let found = lock(|| object.memory.try_write())?.refresh()?;
        if !more.is_null() {
            // SAFETY: not null, and good for writing as the header demands of the caller.
            unsafe { more.write_unaligned(found.into()) };
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_len(memory: *mut loci_memory, length: *mut u64) -> i32 {
    guard(|| {
        let out = Out::new("length", length)?;
        let length = read(memory, |m| Ok(m.len()))?;
        // SAFETY: as the header demands of the caller.
        unsafe { out.write(length) };
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_tokens(memory: *mut loci_memory, first: u64, count: usize, tokens: *mut i32) -> i32 {
    guard(|| {
        if count > 0 {
            args::not_null("tokens", tokens)?;
        }
        read(memory, |m| {
            let end = first.checked_add(count as u64).filter(|end| *end <= m.len());
            let end = end.ok_or_else(|| Fail::argument("first + count", format!("at most {}", m.len()), format!("{first} + {count}")))?;
            let found = m.tokens(first..end)?;
            // SAFETY: as the header demands of the caller; `found` has count elements, of the same layout.
            unsafe { tokens.cast::<u8>().copy_from_nonoverlapping(found.as_ptr().cast(), size_of_val(&found[..])) };
            Ok(())
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_stats_get(memory: *mut loci_memory, out: *mut loci_memory_stats) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let out = StructOut::new("out", out)?;
        let stats = read(memory, |m| {
            let stats = m.stats();
            Ok(loci_memory_stats {
                struct_size: size_of::<loci_memory_stats>(),
                tokens: m.len(),
                committed_tokens: m.committed_len(),
                file_bytes: stats.file_bytes,
                forgotten_tokens: stats.forgotten_tokens,
                dropped_blocks: stats.dropped_blocks as u64,
                damaged_sections: stats.damaged_sections as u64,
                damaged_pages: stats.damaged_pages as u64,
                lost_tokens: stats.lost_tokens,
            })
        })?;
        out.write(stats);
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_attach_memory(session: *mut loci_session, memory: *mut loci_memory, index: *mut u32) -> i32 {
    guard(|| {
        let object = registry::get::<MemoryObject>(memory)?;
        let attached = with(session, |s| Ok(s.session.attach_memory(object.memory.clone())?))?;
        if !index.is_null() {
            // SAFETY: not null, and good for writing as the header demands of the caller.
            unsafe { index.write_unaligned(attached.try_into().unwrap_or(u32::MAX)) };
        }
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_detach_memories(session: *mut loci_session) -> i32 {
    guard(|| {
        with(session, |s| {
            s.session.detach_memories();
            Ok(())
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_remember(
    session: *mut loci_session,
    memory: *mut loci_memory,
    tokens: *const i32,
    count: usize,
    source: *const c_char,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let object = registry::get::<MemoryObject>(memory)?;
        let tokens = args::tokens(tokens, count)?;
        let source = args::optional_string("source", source)?;
        with(session, |s| Ok(s.session.remember(&object.memory, tokens, source, &mut progress(progress_fn, user))?))
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_remember_text(
    session: *mut loci_session,
    memory: *mut loci_memory,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    source: *const c_char,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let object = registry::get::<MemoryObject>(memory)?;
        let source = args::optional_string("source", source)?;
        with(session, |s| {
            s.session.as_one_call(|session| {
                let tokens = text::tokenize(session.model(), text, text_len, flags)?;
                Ok(session.remember(&object.memory, &tokens, source, &mut progress(progress_fn, user))?)
            })
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_passages(session: *mut loci_session, count: *mut usize) -> i32 {
    guard(|| {
        let out = Out::new("count", count)?;
        let count = with(session, |s| {
            let passages = s.session.passages()?;
            s.passages = passages.into_iter().map(|p| (p.source.clone().map(c_string), p)).map(|(source, p)| (p, source)).collect();
            Ok(s.passages.len())
        })?;
        // SAFETY: as the header demands of the caller.
        unsafe { out.write(count) };
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_passage(session: *mut loci_session, index: usize, out: *mut loci_passage) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let out = StructOut::new("out", out)?;
        with(session, |s| {
            let (p, source) = s.passages.get(index).ok_or_else(|| Fail::not_found("passage", &index.to_string()))?;
            out.write(loci_passage {
                struct_size: size_of::<loci_passage>(),
                source: source.as_ref().map_or(null(), |s| s.as_ptr()),
                first_token: p.first_token,
                token_count: p.len,
                memory: p.memory.and_then(|m| m.try_into().ok()).unwrap_or(LOCI_MEMORY_OWN as u32),
                score: p.score,
            });
            Ok(())
        })
    })
}
