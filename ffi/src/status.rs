//! Failures: the code a function returns, and the sentence and parts that this thread's last error keeps.
#![allow(unsafe_code)]

use crate::args;
use crate::guard::guard_always;
use crate::types::*;
use engine::Error;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::ptr::null;

/// What an exported function answers when it does not succeed.
#[derive(Debug)]
pub struct Fail {
    pub status: i32,
    pub message: String,
    pub name: Option<String>,
    pub expected: Option<String>,
    pub found: Option<String>,
    pub offset: Option<u64>,
}

/// `Result` with a [`Fail`].
pub type Outcome<T = ()> = Result<T, Fail>;

impl Fail {
    /// A failure that has nothing to say but its sentence.
    pub fn new(status: i32, message: impl Into<String>) -> Fail {
        Fail { status, message: message.into(), name: None, expected: None, found: None, offset: None }
    }

    /// `LOCI_INVALID_ARGUMENT` with its parts.
    pub fn argument(name: &str, expected: impl ToString, found: impl ToString) -> Fail {
        let (expected, found) = (expected.to_string(), found.to_string());
        let message = format!("invalid argument {name}: expected {expected}, found {found}");
        Fail { name: Some(name.into()), expected: Some(expected), found: Some(found), ..Fail::new(LOCI_INVALID_ARGUMENT, message) }
    }

    /// `LOCI_NOT_FOUND`: `what` is not there.
    pub fn not_found(what: &str, name: &str) -> Fail {
        Fail { name: Some(name.into()), ..Fail::new(LOCI_NOT_FOUND, format!("no {what} {name:?}")) }
    }

    /// Keeps it as this thread's last error and answers its code.
    pub fn report(self) -> i32 {
        let status = self.status;
        let last = Last {
            status,
            message: Some(c_string(self.message)),
            name: self.name.map(c_string),
            expected: self.expected.map(c_string),
            found: self.found.map(c_string),
            offset: self.offset,
        };
        // A thread that is ending has no last error any more; the code still says what happened.
        let _ = LAST.try_with(|l| *l.borrow_mut() = last);
        status
    }
}

impl From<Error> for Fail {
    fn from(e: Error) -> Fail {
        let message = e.to_string();
        let fail = |status| Fail::new(status, message.clone());
        match e {
            Error::Io { what, source } => Fail { name: Some(what), found: Some(source.to_string()), ..fail(LOCI_IO) },
            Error::Format { offset, field, expected, found, .. } => {
                Fail { name: Some(field), expected: Some(expected), found: Some(found), offset: Some(offset), ..fail(LOCI_FORMAT) }
            }
            Error::Corrupt { file, offset, what } => {
                Fail { name: Some(file.into()), found: Some(what), offset: Some(offset), ..fail(LOCI_CORRUPT) }
            }
            Error::Unsupported(what) => Fail { found: Some(what), ..fail(LOCI_UNSUPPORTED) },
            Error::Model { field, expected, found } => {
                Fail { name: Some(field), expected: Some(expected), found: Some(found), ..fail(LOCI_BAD_MODEL) }
            }
            Error::Mismatch { what, expected, found } => {
                Fail { name: Some(what), expected: Some(expected), found: Some(found), ..fail(LOCI_MISMATCH) }
            }
            Error::Argument { name, expected, found } => {
                Fail { name: Some(name.into()), expected: Some(expected), found: Some(found), ..fail(LOCI_INVALID_ARGUMENT) }
            }
            Error::Limit { what, limit, asked } => {
                Fail { name: Some(what), expected: Some(format!("at most {limit}")), found: Some(asked.to_string()), ..fail(LOCI_LIMIT) }
            }
            Error::OutOfMemory { what, bytes } => {
                Fail { name: Some(what.into()), found: Some(format!("{bytes} bytes")), ..fail(LOCI_NOMEM) }
            }
            Error::Cancelled => fail(LOCI_CANCELLED),
            Error::Busy(what) => Fail { name: Some(what), ..fail(LOCI_BUSY) },
            _ => fail(LOCI_INTERNAL),
        }
    }
}

/// The last failure of a thread.
struct Last {
    status: i32,
    message: Option<CString>,
    name: Option<CString>,
    expected: Option<CString>,
    found: Option<CString>,
    offset: Option<u64>,
}

thread_local! {
    static LAST: RefCell<Last> =
        const { RefCell::new(Last { status: LOCI_OK, message: None, name: None, expected: None, found: None, offset: None }) };
}

/// A C string; a NUL within becomes U+FFFD.
pub fn c_string(text: String) -> CString {
    let clean = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    CString::new(clean).unwrap_or_default()
}

fn name_in(table: &[(&'static CStr, i32)], value: i32) -> *const c_char {
    table.iter().find(|(_, v)| *v == value).map_or(c"unknown", |(name, _)| *name).as_ptr()
}

/// See the header.
#[unsafe(no_mangle)]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub extern "C" fn loci_status_name(status: i32) -> *const c_char {
    name_in(STATUSES, status)
}

/// See the header.
#[unsafe(no_mangle)]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub extern "C" fn loci_finish_name(finish: i32) -> *const c_char {
    name_in(FINISHES, finish)
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_last_error() -> *const c_char {
    LAST.try_with(|l| l.borrow().message.as_ref().map(|m| m.as_ptr())).ok().flatten().unwrap_or(c"".as_ptr())
}

/// See the header.
///
/// # Safety
/// `out` is NULL or points to a struct of `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_last_error_details(out: *mut loci_error) -> i32 {
    guard_always(|| {
        let text = |s: &Option<CString>| s.as_ref().map_or(null(), |s| s.as_ptr());
        let details = LAST.try_with(|l| {
            let l = l.borrow();
            loci_error {
                struct_size: size_of::<loci_error>(),
                message: l.message.as_ref().map_or(c"".as_ptr(), |m| m.as_ptr()),
                name: text(&l.name),
                expected: text(&l.expected),
                found: text(&l.found),
                offset: l.offset.unwrap_or(0),
                status: l.status,
                has_offset: l.offset.is_some().into(),
            }
        });
        let details = details.map_err(|_| Fail::new(LOCI_STATE, "this thread is ending"))?;
        // SAFETY: as the header demands of the caller.
        unsafe { args::StructOut::new("out", out)?.write(details) };
        Ok(())
    })
}
