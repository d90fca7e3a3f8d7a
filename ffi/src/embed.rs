//! Embeddings: the session is taken for one text.
#![allow(unsafe_code)]

use crate::args::{self, Buffer};
use crate::guard::guard;
use crate::session::{progress, with};
use crate::status::{Fail, Outcome};
use crate::types::*;
use engine::session::Pooling;
use std::ffi::c_void;

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
