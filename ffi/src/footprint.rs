//! RAM: what a session will take, and giving it back. And embeddings, which take a session for a moment.
#![allow(unsafe_code)]

use crate::args::{self, Buffer, StructOut};
use crate::guard::guard;
use crate::model::ModelObject;
use crate::options::session_options;
use crate::registry;
use crate::session::{progress, with};
use crate::status::{Fail, Outcome};
use crate::types::*;
use engine::session::{Pooling, Session};
use std::ffi::c_void;
use std::mem::size_of;

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_estimate(
    model: *const loci_model,
    options: *const loci_session_options,
    with_memory: i32,
    out: *mut loci_estimate,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let m = registry::get::<ModelObject>(model)?;
        let out = StructOut::new("out", out)?;
        let with_memory = args::boolean("with_memory", with_memory)?;
        let e = Session::estimate(&m.model, &session_options(options)?, with_memory)?;
        out.write(loci_estimate {
            struct_size: size_of::<loci_estimate>(),
            file_bytes: e.file_bytes,
            model_bytes: e.model_bytes,
            context_bytes: e.context_bytes,
            scratch_bytes: e.scratch_bytes,
            memory_bytes: e.memory_bytes,
            total_bytes: e.total(),
        });
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_model_trim(model: *const loci_model) -> i32 {
    guard(|| {
        registry::get::<ModelObject>(model)?.model.trim();
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_trim(session: *mut loci_session) -> i32 {
    guard(|| {
        with(session, |s| {
            s.session.trim();
            Ok(())
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_embed(
    session: *mut loci_session,
    tokens: *const i32,
    count: usize,
    pooling: i32,
    progress_fn: loci_progress_fn,
    user: *mut c_void,
    values: *mut f32,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let out = Buffer::new(values, capacity, length)?;
        let pooling = pooling_of(pooling)?;
        let tokens = args::tokens(tokens, count)?;
        with(session, |s| {
            let width = s.session.model().embedding_length();
            if capacity < width {
                return out.must_hold(width);
            }
            out.write(&s.session.embed(tokens, pooling, &mut progress(progress_fn, user))?)
        })
    })
}

fn pooling_of(pooling: i32) -> Outcome<Pooling> {
    match pooling {
        LOCI_POOLING_MEAN => Ok(Pooling::Mean),
        LOCI_POOLING_LAST => Ok(Pooling::Last),
        _ => Err(Fail::argument("pooling", "LOCI_POOLING_MEAN or LOCI_POOLING_LAST", pooling)),
    }
}
