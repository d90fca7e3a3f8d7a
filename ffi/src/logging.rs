//! The log: whatever the library has to say goes to one callback, or nowhere.
#![allow(unsafe_code)]

use crate::guard::{callback, guard};
use crate::status::{Fail, c_string};
use crate::types::*;
use log::{LevelFilter, Log, Metadata, Record};
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::{Once, PoisonError, RwLock};

/// Where messages go. The pointer is kept as a number: it is only handed back.
struct Sink {
    function: unsafe extern "C" fn(*mut c_void, i32, *const c_char, *const c_char),
    user: usize,
}

/// Read while a callback runs, written when it is changed: so `loci_log_set` returns when the old callback has.
static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// A callback runs on this thread.
    static SPEAKING: Cell<bool> = const { Cell::new(false) };
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) || SPEAKING.try_with(|s| s.replace(true)).unwrap_or(true) {
            return;
        }
        {
            let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(sink) = &*sink {
                let target = c_string(record.target().to_owned());
                let message = c_string(record.args().to_string());
                let user = std::ptr::with_exposed_provenance_mut(sink.user);
                // SAFETY: the function that the caller gave, called as the header says.
                callback(|| unsafe { (sink.function)(user, record.level() as i32, target.as_ptr(), message.as_ptr()) });
            }
        }
        let _ = SPEAKING.try_with(|s| s.set(false));
    }

    fn flush(&self) {}
}

/// See the header.
///
/// # Safety
/// `function` may be called with `user` from any thread until it is replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_log_set(level: i32, function: loci_log_fn, user: *mut c_void) -> i32 {
    guard(|| {
        let filter = match level {
            LOCI_LOG_OFF => LevelFilter::Off,
            LOCI_LOG_ERROR => LevelFilter::Error,
            LOCI_LOG_WARN => LevelFilter::Warn,
            LOCI_LOG_INFO => LevelFilter::Info,
            LOCI_LOG_DEBUG => LevelFilter::Debug,
            LOCI_LOG_TRACE => LevelFilter::Trace,
            _ => return Err(Fail::argument("level", "a loci_log_level", level)),
        };
        if SPEAKING.with(Cell::get) {
            return Err(Fail::new(LOCI_BUSY, "the log cannot be changed from its own callback"));
        }
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // Refused only if a program that contains this library statically has set a logger of its own: then that one is asked.
            let _ = log::set_logger(&Logger);
        });
        let mut sink = SINK.write().unwrap_or_else(PoisonError::into_inner);
        *sink = function.filter(|_| filter != LevelFilter::Off).map(|function| Sink { function, user: user.expose_provenance() });
        log::set_max_level(if sink.is_some() { filter } else { LevelFilter::Off });
        Ok(())
    })
}
