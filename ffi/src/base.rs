//! Version, features, and the line for bug reports.
#![allow(unsafe_code)]

use crate::guard::guard_or;
use crate::status::c_string;
use std::ffi::{CString, c_char};
use std::sync::OnceLock;

const fn number(text: &str) -> u32 {
    let (bytes, mut value, mut i) = (text.as_bytes(), 0, 0);
    while i < bytes.len() {
        value = value * 10 + (bytes[i] - b'0') as u32;
        i += 1;
    }
    value
}

const VERSION_NUMBER: u32 = number(env!("CARGO_PKG_VERSION_MAJOR")) * 1_000_000
    + number(env!("CARGO_PKG_VERSION_MINOR")) * 1000
    + number(env!("CARGO_PKG_VERSION_PATCH"));

/// See the header.
#[unsafe(no_mangle)]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub extern "C" fn loci_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// See the header.
#[unsafe(no_mangle)]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub extern "C" fn loci_version_number() -> u32 {
    VERSION_NUMBER
}

/// See the header.
#[unsafe(no_mangle)]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
pub extern "C" fn loci_features() -> *const c_char {
    if cfg!(feature = "chat") { c"chat".as_ptr() } else { c"".as_ptr() }
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_system_info() -> *const c_char {
    static INFO: OnceLock<CString> = OnceLock::new();
    guard_or(c"".as_ptr(), || {
        Ok(INFO
            .get_or_init(|| {
                c_string(format!(
                    "loci {}; {}-{}; {:?}; {} threads; features {}",
                    env!("CARGO_PKG_VERSION"),
                    std::env::consts::ARCH,
                    std::env::consts::OS,
                    engine::simd::Level::detect(),
                    engine::threads::default_threads(),
                    if cfg!(feature = "chat") { "chat" } else { "none" },
                ))
            })
            .as_ptr())
    })
}

/// What `make prove` expects the linker to refuse.
#[cfg(feature = "prove-no-panic-bad")]
#[unsafe(no_mangle)]
#[no_panic::no_panic]
pub extern "C" fn loci_prove_that_proofs_can_fail(i: usize) -> u8 {
    env!("CARGO_PKG_VERSION").as_bytes()[i]
}
