//! The C ABI of loci: guards, handles and error codes around the `loci` crate, and no logic. `include/loci.h` is its manual.
//!
//! The way in: an exported function (`base`, `model`, `text`, `session`, `generate`, `memory`) enters through [`guard`], looks its
//! handles up in the [`registry`], reads its arguments with [`args`], and turns what comes back into a status and this thread's
//! last error ([`status`]).
//!
//! Invariants:
//! - No pointer that C gives us as a handle is ever dereferenced: handles are numbers, looked up.
//! - No panic leaves an exported function, and a panic leaves what it worked on poisoned.
//! - A lock of a session is never waited for; a lock of a memory only for a moment, and not from a callback.
//! - Outputs are written last, after everything that can fail.
#![deny(unsafe_code)]

mod args;
mod base;
mod embed;
mod footprint;
mod generate;
mod guard;
mod logging;
mod memory;
mod model;
mod options;
mod registry;
mod reserve;
mod session;
mod snapshot;
mod status;
mod text;
mod types;
mod upkeep;
