//! Sessions: one call at a time each, checked by a lock that is never waited for.
#![allow(unsafe_code)]

use crate::args::{self, Buffer, Out, StructOut};
use crate::guard::{callback, guard, guard_always};
use crate::model::ModelObject;
use crate::options::{sampler_options, session_options};
use crate::registry::{self, Entry, Object};
use crate::status::{Fail, Outcome};
use crate::text;
use crate::types::*;
use engine::session::{CancelHandle, Passage, Progress, Session};
use std::ffi::{CString, c_char, c_void};
use std::mem::size_of;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, TryLockError};

/// What a `loci_session` stands for.
pub struct SessionObject {
    cancel: CancelHandle,
    slot: Mutex<Slot>,
}

/// The session, and what pointers handed out for it point to.
pub struct Slot {
    pub session: Session,
    /// Why the last generation ended.
    pub finish: i32,
    /// Text of the last piece, with a NUL.
    pub text: Vec<u8>,
    pub alternatives: Vec<loci_alternative>,
    /// Passages as they were last counted, with their sources as C strings.
    pub passages: Vec<(Passage, Option<CString>)>,
}

impl SessionObject {
    /// Nothing handed out, nothing finished.
    pub fn new(session: Session) -> SessionObject {
        let cancel = session.cancel_handle();
        let slot = Slot { session, finish: LOCI_FINISH_NONE, text: Vec::new(), alternatives: Vec::new(), passages: Vec::new() };
        SessionObject { cancel, slot: Mutex::new(slot) }
    }
}

impl Object for SessionObject {
    type Opaque = loci_session;
    const NAME: &'static str = "session";
    fn wrap(this: Arc<Self>) -> Entry {
        Entry::Session(this)
    }
    fn of(entry: &Entry) -> Option<&Arc<Self>> {
        if let Entry::Session(s) = entry { Some(s) } else { None }
    }
}

/// Does `work` with the session, alone: a second call at the same time, from any thread or from a callback, is busy.
pub fn with<T>(session: *const loci_session, work: impl FnOnce(&mut Slot) -> Outcome<T>) -> Outcome<T> {
    alone(&registry::get::<SessionObject>(session)?.slot, work)
}

/// A panic in `work` poisons the lock as it unwinds.
fn alone<S, T>(slot: &Mutex<S>, work: impl FnOnce(&mut S) -> Outcome<T>) -> Outcome<T> {
    match slot.try_lock() {
        Ok(mut slot) => work(&mut slot),
        Err(TryLockError::WouldBlock) => Err(Fail::new(LOCI_BUSY, "busy: the session is in another call")),
        Err(TryLockError::Poisoned(_)) => Err(Fail::new(LOCI_POISONED, "the session was left unusable by a bug: free it")),
    }
}

/// The caller's progress callback as the engine wants it.
///
/// # Safety
/// `function` may be called with `user` while the result lives.
pub unsafe fn progress(function: loci_progress_fn, user: *mut c_void) -> impl FnMut(usize, usize) -> ControlFlow<()> {
    move |done, total| match function {
        // SAFETY: the caller's promise.
        Some(function) if callback(|| unsafe { function(user, done as u64, total as u64) }) != 0 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_new(
    model: *mut loci_model,
    options: *const loci_session_options,
    out: *mut *mut loci_session,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let out = Out::new("out", out)?;
        let session = Session::new(m.model.clone(), session_options(options)?)?;
        out.write(registry::insert(SessionObject::new(session)));
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_free(session: *mut loci_session) {
    guard_always(|| {
        if let Some(object) = registry::release::<SessionObject>(session) {
            // A call in progress ends soon, also one that is only about to begin, and drops the session when it does.
            object.cancel.end();
        }
        Ok(())
    });
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_cancel(session: *mut loci_session) -> i32 {
    guard_always(|| {
        registry::get::<SessionObject>(session)?.cancel.cancel();
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_reset(session: *mut loci_session) -> i32 {
    guard(|| {
        with(session, |s| {
            s.session.reset();
            Ok(())
        })
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_truncate(session: *mut loci_session, length: usize) -> i32 {
    guard(|| with(session, |s| Ok(s.session.truncate(length)?)))
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_len(session: *mut loci_session, length: *mut usize) -> i32 {
    guard(|| {
        let out = Out::new("length", length)?;
        let length = with(session, |s| Ok(s.session.len()))?;
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
pub unsafe extern "C" fn loci_session_tokens(session: *mut loci_session, tokens: *mut i32, capacity: usize, count: *mut usize) -> i32 {
    guard(|| {
        let buffer = Buffer::new(tokens.cast::<u32>(), capacity, count)?;
        // SAFETY: as the header demands of the caller.
        with(session, |s| unsafe { buffer.write(s.session.tokens()) })
    })
}

/// How tokens enter a session: after what is there, or as the whole text.
type Feed = fn(&mut Session, &[u32], Progress<'_>) -> engine::Result<()>;

/// # Safety
/// Pointers as the header says for token lists and progress callbacks.
unsafe fn feed_tokens(
    feed: Feed,
    session: *mut loci_session,
    tokens: *const i32,
    count: usize,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        let tokens = args::tokens(tokens, count)?;
        with(session, |s| Ok(feed(&mut s.session, tokens, &mut progress(progress_fn, user))?))
    })
}

/// # Safety
/// Pointers as the header says for texts and progress callbacks.
unsafe fn feed_text(
    feed: Feed,
    session: *mut loci_session,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        with(session, |s| {
            s.session.as_one_call(|session| {
                let tokens = text::tokenize(session.model(), text, text_len, flags)?;
                Ok(feed(session, &tokens, &mut progress(progress_fn, user))?)
            })
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_prefill(
    session: *mut loci_session,
    tokens: *const i32,
    count: usize,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    unsafe { feed_tokens(Session::prefill, session, tokens, count, progress_fn, user) }
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_prefill_text(
    session: *mut loci_session,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    unsafe { feed_text(Session::prefill, session, text, text_len, flags, progress_fn, user) }
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_prompt(
    session: *mut loci_session,
    tokens: *const i32,
    count: usize,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    unsafe { feed_tokens(Session::prefill_prompt, session, tokens, count, progress_fn, user) }
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_prompt_text(
    session: *mut loci_session,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    unsafe { feed_text(Session::prefill_prompt, session, text, text_len, flags, progress_fn, user) }
}

/// Logits after the last token. A generation leaves its last token chosen but not computed: then that is done first.
fn logits(s: &mut Slot) -> Outcome<&[f32]> {
    let nothing: &mut dyn FnMut(usize, usize) -> ControlFlow<()> = &mut |_, _| ControlFlow::Continue(());
    if s.session.logits().is_none() && !s.session.is_generating() {
        s.session.prefill(&[], nothing)?;
    }
    s.session.logits().ok_or_else(|| Fail::new(LOCI_STATE, "no logits here: prefill first"))
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_logits(session: *mut loci_session, out: *mut *const f32, count: *mut usize) -> i32 {
    guard(|| {
        let (out, out_count) = (Out::new("logits", out)?, Out::new("count", count)?);
        with(session, |s| {
            let logits = logits(s)?;
            // SAFETY: as the header demands of the caller.
            unsafe {
                out.write(logits.as_ptr());
                out_count.write(logits.len());
            }
            Ok(())
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_log_probability(session: *mut loci_session, token: i32, out: *mut f32) -> i32 {
    guard(|| {
        let out = Out::new("out", out)?;
        let value = with(session, |s| {
            let logits = logits(s)?;
            match u32::try_from(token).ok().filter(|t| (*t as usize) < logits.len()) {
                Some(token) => Ok(engine::sampler::log_probability(logits, token)? as f32),
                None => Err(Fail::argument("token", format!("0 to {}", logits.len().saturating_sub(1)), token)),
            }
        })?;
        // SAFETY: as the header demands of the caller.
        unsafe { out.write(value) };
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_sample(session: *mut loci_session, out: *mut i32) -> i32 {
    guard(|| {
        let out = Out::new("out", out)?;
        let token = with(session, |s| {
            logits(s)?;
            Ok(s.session.sample()?)
        })?;
        // SAFETY: as the header demands of the caller.
        unsafe { out.write(token as i32) };
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_set_sampler(session: *mut loci_session, options: *const loci_sampler_options) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let options = sampler_options(options)?;
        with(session, |s| Ok(s.session.set_sampler(options)?))
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_set_threads(session: *mut loci_session, threads: u32) -> i32 {
    guard(|| with(session, |s| Ok(s.session.set_threads(threads as usize)?)))
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_set_duty(session: *mut loci_session, percent: u32) -> i32 {
    guard(|| with(session, |s| Ok(s.session.set_duty(percent)?)))
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_stats_get(session: *mut loci_session, out: *mut loci_session_stats) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let out = StructOut::new("out", out)?;
        let s = with(session, |s| Ok(s.session.stats()))?;
        out.write(loci_session_stats {
            struct_size: size_of::<loci_session_stats>(),
            load_seconds: s.load_seconds,
            first_token_seconds: s.first_token_seconds,
            prefill_tokens: s.prefill_tokens,
            prefill_seconds: s.prefill_seconds,
            decode_tokens: s.decode_tokens,
            decode_seconds: s.decode_seconds,
            reused_tokens: s.reused_tokens,
            local_tokens: s.local_tokens,
            memory_tokens: s.memory_tokens,
            mapped_bytes: s.mapped_bytes,
            anonymous_bytes: s.anonymous_bytes,
            resident_bytes: s.resident_bytes,
            memory_bytes_read: s.memory_bytes_read,
            memory_bytes_per_token: s.memory_bytes_per_token,
            memory_held_bytes: s.memory_held_bytes,
            memory_blocks_read: s.memory_blocks_read,
            memory_block_hits: s.memory_block_hits,
            memory_blocks_damaged: s.memory_blocks_damaged,
            memory_choices: s.memory_choices,
            memory_unread_share: s.memory_unread_share,
            resting_seconds: s.resting_seconds,
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_caller_is_busy_and_a_panic_poisons() {
        let slot = Mutex::new(1);
        let nested = guard(|| alone(&slot, |_| alone(&slot, |_| Ok(()))));
        assert_eq!(nested, LOCI_BUSY);
        let add = |n: &mut i32| {
            *n += 1;
            Ok(())
        };
        assert_eq!(guard(|| alone(&slot, add)), LOCI_OK);
        assert_eq!(guard(|| alone(&slot, |n| if *n == 2 { panic!("a bug") } else { Ok(()) })), LOCI_PANIC);
        assert_eq!(guard(|| alone(&slot, add)), LOCI_POISONED);
    }
}
