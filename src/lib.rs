//! loci: an embedded runtime for language models on CPUs, with a memory on disk.
//!
//! ```no_run
//! use loci::model::{Model, ModelOptions};
//! use loci::session::{GenerateOptions, Session, SessionOptions};
//! use std::ops::ControlFlow::Continue;
//!
//! # fn main() -> loci::Result<()> {
//! let model = Model::open("model.gguf".as_ref(), &ModelOptions::default())?;
//! let mut session = Session::new(model.clone(), SessionOptions::default())?;
//! let prompt = model.tokenizer().encode("Once upon a time", true, false);
//! session.prefill(&prompt, &mut |_done, _total| Continue(()))?;
//! session.generate(GenerateOptions::default(), &mut |piece| {
//!     print!("{}", piece.text);
//!     Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/` has a conversation and a memory that outlives the process. Where things are, from the top:
//!
//! | room | what it holds |
//! |---|---|
//! | [`session`] | one timeline over a model: prefill, generation, memories, snapshots, figures |
//! | [`model`] | families as rows of differences, weights, position scaling, the forward pass, retrieval |
//! | [`memory`], [`kv`] | the memory file; the local window of keys and values |
//! | [`tokenizer`], [`sampler`] | text to tokens and chats to text; logits to a token |
//! | [`kernels`], [`quant`], [`simd`] | products and attention; weight formats; the words of an instruction set |
//! | [`gguf`], [`bytes`], [`threads`], [`mod@error`] | the model file; maps and storage; the team of threads; what can go wrong |
//!
//! An application needs [`model`], [`session`], [`memory`] and [`tokenizer`], which keep to semantic versioning. The rooms below are open
//! for tools and for the curious, and change as they must.
//!
//! What holds everywhere: the library prints nothing (it uses [`log`]) and never exits; `unsafe` stands in `bytes/map.rs`, `bytes/guard.rs`,
//! `threads.rs` and `simd/` alone; results are the same bits for any number of threads; files are untrusted, and what is wrong with one is an
//! [`Error`] that says where; what [`memory::Memory::commit`] has acknowledged survives a power cut.
#![deny(unsafe_code)]

pub mod bytes;
pub mod error;
pub mod gguf;
pub mod kernels;
pub mod kv;
pub mod memory;
pub mod model;
pub mod quant;
pub mod sampler;
pub mod session;
pub mod simd;
pub mod threads;
pub mod tokenizer;

pub use error::{Error, Result};
