//! loci: an embedded runtime for language models on CPUs, with a memory on disk.
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
