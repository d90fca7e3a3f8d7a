//! The door of every exported function: no panic passes it, and none is printed.
//!
//! A panic becomes `LOCI_PANIC`. The locks that guard what the call worked on are poisoned by the unwinding itself, and answer
//! `LOCI_POISONED` afterwards.

use crate::status::{Fail, Outcome};
use crate::types::{LOCI_OK, LOCI_PANIC};
use engine::error::check_memory;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// What the last panic of this thread said, until a guard takes it.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
    /// How many callbacks of the caller are running on this thread.
    static CALLBACKS: Cell<u32> = const { Cell::new(0) };
}

/// In place of the standard hook, which prints.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let text = info.to_string();
            log::error!("panic: {text}");
            let _ = SAID.try_with(|said| {
                if let Ok(mut said) = said.try_borrow_mut() {
                    *said = Some(text);
                }
            });
        }));
    });
}

fn caught(payload: Box<dyn std::any::Any + Send>) -> Fail {
    // A payload may panic when it is dropped; a leak after a bug is the lesser evil.
    std::mem::forget(payload);
    let said = SAID.try_with(|said| said.try_borrow_mut().ok().and_then(|mut s| s.take())).ok().flatten();
    Fail::new(LOCI_PANIC, format!("a bug in loci: {}", said.as_deref().unwrap_or("a panic in another thread")))
}

/// Runs `body` and answers its status. Refused while the allocator lives from its reserve, which is for what has begun.
pub fn guard(body: impl FnOnce() -> Outcome) -> i32 {
    guard_always(|| check_memory("a call").map_err(Fail::from).and_then(|()| body()))
}

/// As [`guard`], for what stops, gives back or explains: never refused.
pub fn guard_always(body: impl FnOnce() -> Outcome) -> i32 {
    match run(body) {
        Ok(()) => LOCI_OK,
        Err(fail) => fail.report(),
    }
}

/// Runs `body` and answers its value, or `otherwise`.
pub fn guard_or<T>(otherwise: T, body: impl FnOnce() -> Outcome<T>) -> T {
    run(body).unwrap_or_else(|fail| {
        fail.report();
        otherwise
    })
}

fn run<T>(body: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    silence();
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(caught(payload)))
}

/// Marks that a callback of the caller runs on this thread, for [`in_callback`].
pub fn callback<T>(call: impl FnOnce() -> T) -> T {
    CALLBACKS.with(|c| c.set(c.get() + 1));
    let result = call();
    CALLBACKS.with(|c| c.set(c.get() - 1));
    result
}

/// Whether this thread is inside a callback: then nothing may wait for a lock that the call around it holds.
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub fn in_callback() -> bool {
    CALLBACKS.try_with(Cell::get).unwrap_or(0) > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::loci_last_error;
    use crate::types::{LOCI_INVALID_ARGUMENT, LOCI_OK};
    use std::ffi::CStr;

    #[test]
    #[allow(unsafe_code)]
    fn a_panic_is_a_status_and_leaves_the_lock_poisoned() {
        let lock = std::sync::Mutex::new(0);
        let status = guard(|| {
            let _held = lock.lock();
            let nothing: Option<i32> = std::hint::black_box(None);
            nothing.expect("something that is not there");
            Ok(())
        });
        assert_eq!(status, LOCI_PANIC);
        assert!(lock.is_poisoned());
        // SAFETY: static or valid until this thread's next failure.
        let said = unsafe { CStr::from_ptr(loci_last_error()) }.to_str().expect("UTF-8");
        assert!(said.contains("something that is not there"), "{said}");
        assert_eq!(guard_or(7, || panic!("again")), 7);
        assert_eq!(guard(|| Err(Fail::argument("x", "1", "2"))), LOCI_INVALID_ARGUMENT);
        assert_eq!(guard(|| Ok(())), LOCI_OK);
    }
}
