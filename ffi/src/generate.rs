//! Generation, pushed to a callback or pulled step by step.
#![allow(unsafe_code)]

use crate::args::{Out, StructOut};
use crate::guard::{callback, guard};
use crate::model::c_token;
use crate::options::generate_options;
use crate::session::with;
use crate::status::{Fail, Outcome};
use crate::types::*;
use engine::session::{Finish, Piece, Session};
use std::ffi::c_void;
use std::mem::size_of;
use std::ops::ControlFlow;
use std::ptr::null;

fn c_finish(finish: Finish) -> i32 {
    match finish {
        Finish::Eos => LOCI_FINISH_EOS,
        Finish::Stop => LOCI_FINISH_STOP,
        Finish::Length => LOCI_FINISH_LENGTH,
        Finish::Cancelled => LOCI_FINISH_CANCELLED,
        Finish::Callback => LOCI_FINISH_CALLBACK,
    }
}

/// A generation goes on from a token.
fn not_empty(session: &Session) -> Outcome {
    if session.is_empty() { Err(Fail::new(LOCI_STATE, "nothing to go on from: prefill first")) } else { Ok(()) }
}

/// What the engine says of a session that is not where the call wants it.
fn state(e: engine::Error) -> Fail {
    match e {
        engine::Error::Argument { name: "generation" | "prefill", .. } => Fail { status: LOCI_STATE, ..e.into() },
        e => e.into(),
    }
}

/// The piece as the header has it; it points into `text` and `alternatives`, which are overwritten.
fn c_piece(piece: &Piece, text: &mut Vec<u8>, alternatives: &mut Vec<loci_alternative>) -> loci_piece {
    text.clear();
    text.extend_from_slice(piece.text.as_bytes());
    text.push(0);
    alternatives.clear();
    alternatives.extend(piece.alternatives.iter().map(|&(t, log_probability)| loci_alternative { token: t as i32, log_probability }));
    loci_piece {
        struct_size: size_of::<loci_piece>(),
        text: text.as_ptr().cast(),
        text_len: piece.text.len(),
        alternatives: if alternatives.is_empty() { null() } else { alternatives.as_ptr() },
        alternative_count: alternatives.len(),
        token: c_token(piece.token),
        log_probability: piece.log_probability.unwrap_or(0.0),
        finish: piece.finish.map_or(LOCI_FINISH_NONE, c_finish),
        reserved: 0,
    }
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_generate(
    session: *mut loci_session,
    options: *const loci_generate_options,
    function: loci_piece_fn,
    user: *mut c_void,
    finish: *mut i32,
) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let options = generate_options(options)?;
        let out = Out::new("finish", finish)?;
        let reason = with(session, |s| {
            not_empty(&s.session)?;
            // Until it is known better, the panic of a bug included.
            s.finish = LOCI_FINISH_ERROR;
            let (text, alternatives) = (&mut s.text, &mut s.alternatives);
            let reason = s.session.generate(options, &mut |piece| {
                let Some(function) = function else { return ControlFlow::Continue(()) };
                let piece = c_piece(piece, text, alternatives);
                match callback(|| function(user, &piece)) {
                    0 => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            });
            let reason = reason.map_err(state)?;
            s.finish = c_finish(reason);
            Ok(s.finish)
        })?;
        out.write(reason);
        Ok(())
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_start(session: *mut loci_session, options: *const loci_generate_options) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let options = generate_options(options)?;
        with(session, |s| {
            not_empty(&s.session)?;
            s.finish = LOCI_FINISH_ERROR;
            s.session.start(options).map_err(state)?;
            s.finish = LOCI_FINISH_NONE;
            Ok(())
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_next(session: *mut loci_session, piece: *mut loci_piece) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe {
        let out = StructOut::new("piece", piece)?;
        with(session, |s| {
            if s.session.is_generating() {
                s.finish = LOCI_FINISH_ERROR;
            }
            let next = s.session.next().map_err(state)?;
            let piece = c_piece(&next, &mut s.text, &mut s.alternatives);
            s.finish = piece.finish;
            out.write(piece);
            Ok(())
        })
    })
}

/// See the header.
///
/// # Safety
/// Pointers as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_finish(session: *mut loci_session, out: *mut i32) -> i32 {
    guard(|| {
        let out = Out::new("out", out)?;
        let finish = with(session, |s| Ok(s.finish))?;
        // SAFETY: as the header demands of the caller.
        unsafe { out.write(finish) };
        Ok(())
    })
}
