//! Looking after memories: what a memory's tokens are of, forgetting, verifying, compacting, resuming, repairing.
#![allow(unsafe_code)]

use crate::args::{self, Out, StructOut};
use crate::guard::{callback, guard};
use crate::memory::{MemoryObject, lock, read};
use crate::options::codec_of;
use crate::registry;
use crate::session::{progress, with};
use crate::status::{Fail, c_string};
use crate::types::*;
use engine::memory::{CompactOptions, Memory};
use std::ffi::{c_char, c_void};
use std::mem::size_of;
use std::ops::ControlFlow;

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_sources(memory: *mut loci_memory, count: *mut usize) -> i32 {
    guard(|| {
        let out = Out::new("count", count)?;
        let sources = read(memory, |m| Ok(m.sources()?))?;
        let object = registry::get::<MemoryObject>(memory)?;
        let mut kept = object.sources.lock().unwrap_or_else(|e| e.into_inner());
        *kept = sources.into_iter().map(|s| (s.label.clone(), s)).map(|(label, s)| (s, c_string(label))).collect();
        // SAFETY: as the header demands of the caller.
        unsafe { out.write(kept.len()) };
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_source(memory: *mut loci_memory, index: usize, out: *mut loci_source) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let out = StructOut::new("out", out)?;
        let object = registry::get::<MemoryObject>(memory)?;
        let kept = object.sources.lock().unwrap_or_else(|e| e.into_inner());
        let (span, label) = kept.get(index).ok_or_else(|| Fail::not_found("source", &index.to_string()))?;
        out.write(loci_source {
            struct_size: size_of::<loci_source>(),
            label: label.as_ptr(),
            first_token: span.tokens.start,
            token_count: span.tokens.end - span.tokens.start,
            text_start: span.text.start,
            text_end: span.text.end,
        });
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_forget(memory: *mut loci_memory, source: *const c_char, tokens: *mut u64) -> i32 {
    guard(|| {
        // SAFETY: as the header demands of the caller.
        let label = unsafe { args::string("source", source)? };
        let object = registry::get::<MemoryObject>(memory)?;
        let forgotten = lock(|| object.memory.try_write())?.forget(label)?;
        if !tokens.is_null() {
            // SAFETY: not null, and good for writing as the header demands of the caller.
            unsafe { tokens.write_unaligned(forgotten) };
        }
        Ok(())
    })
}

/// The caller's progress callback, where the engine wants to hear whether to go on.
///
/// # Safety
/// `function` may be called with `user` while the result lives.
unsafe fn going_on(function: loci_progress_fn, user: *mut c_void) -> impl FnMut(u64, u64) -> bool {
    // SAFETY: the caller's promise.
    move |done, total| function.is_none_or(|function| callback(|| unsafe { function(user, done, total) }) == 0)
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_verify(
    memory: *mut loci_memory,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
    damaged: *mut u64,
) -> i32 {
    guard(|| {
        let out = Out::new("damaged", damaged)?;
        // Not under the lock of the memory: it takes long, and the caller's function may want the memory.
        let found = match read(memory, |m| Ok(m.reopen()?))? {
            // SAFETY: as the header demands of the caller.
            Some(own) => own.verify(unsafe { going_on(progress_fn, user) })?,
            None => Vec::new(),
        };
        // SAFETY: as the header demands of the caller.
        unsafe { out.write(found.len() as u64) };
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_compact_options_init(options: *mut loci_compact_options, struct_size: usize) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe { args::init(options, struct_size, default_compact_options()) })
}

fn default_compact_options() -> loci_compact_options {
    loci_compact_options { struct_size: size_of::<loci_compact_options>(), codec: LOCI_MEMORY_DEFAULT, drop_damaged: 0 }
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_compact(
    path: *const c_char,
    options: *const loci_compact_options,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let o = args::options(options, default_compact_options())?;
        let drop_damaged = args::boolean("drop_damaged", o.drop_damaged)?;
        let options = CompactOptions { codec: codec_of(o.codec)?, drop_damaged, ..CompactOptions::default() };
        Memory::compact(args::path("path", path)?, None, options, going_on(progress_fn, user))?;
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_resume(
    session: *mut loci_session,
    memory: *mut loci_memory,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
    resumed: *mut i32,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let object = registry::get::<MemoryObject>(memory)?;
        let found = with(session, |s| Ok(s.session.resume(&object.memory, &mut progress(progress_fn, user))?))?;
        if !resumed.is_null() {
            resumed.write_unaligned(found.into());
        }
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_repair(
    session: *mut loci_session,
    memory: *mut loci_memory,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
    lost: *mut u64,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let out = Out::new("lost", lost)?;
        let object = registry::get::<MemoryObject>(memory)?;
        let mut report = progress(progress_fn, user);
        let mut report = |done: usize, total: usize| -> ControlFlow<()> { report(done, total) };
        let done = with(session, |s| Ok(s.session.repair(&object.memory, &mut report)?))?;
        out.write(done.lost.len() as u64);
        Ok(())
    })
}
