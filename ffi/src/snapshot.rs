//! Sessions kept in files, and copied.
#![allow(unsafe_code)]

use crate::args::{self, Out};
use crate::guard::guard;
use crate::memory::MemoryObject;
use crate::model::ModelObject;
use crate::registry;
use crate::session::{SessionObject, with};
use crate::status::Outcome;
use crate::types::*;
use engine::session::{Session, SharedMemory};
use std::ffi::c_char;

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_save(session: *mut loci_session, path: *const c_char) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let path = args::path("path", path)?;
        with(session, |s| Ok(s.session.save(path)?))
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_load(
    model: *mut loci_model,
    path: *const c_char,
    memories: *const *mut loci_memory,
    count: usize,
    out: *mut *mut loci_session,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let out = Out::new("out", out)?;
        let path = args::path("path", path)?;
        let given = args::slice("memories", memories, count)?.iter();
        let given: Vec<SharedMemory> = given.map(|m| Ok(registry::get::<MemoryObject>(*m)?.memory.clone())).collect::<Outcome<_>>()?;
        let session = Session::load(m.model.clone(), path, &given)?;
        out.write(registry::insert(SessionObject::new(session)));
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_fork(session: *mut loci_session, out: *mut *mut loci_session) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let out = Out::new("out", out)?;
        let forked = with(session, |s| Ok(s.session.fork()?))?;
        out.write(registry::insert(SessionObject::new(forked)));
        Ok(())
    })
}
