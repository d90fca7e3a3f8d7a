//! RAM: what a session will take, and giving it back.
#![allow(unsafe_code)]

use crate::args::{self, StructOut};
use crate::guard::{guard, guard_always};
use crate::model::ModelObject;
use crate::options::session_options;
use crate::registry;
use crate::session::with;
use crate::types::*;
use engine::session::Session;
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
    guard_always(|| {
        registry::get::<ModelObject>(model)?.model.trim();
        Ok(())
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn loci_session_trim(session: *mut loci_session) -> i32 {
    guard_always(|| {
        with(session, |s| {
            s.session.trim();
            Ok(())
        })
    })
}
