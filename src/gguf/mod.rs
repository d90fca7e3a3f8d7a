//! The GGUF file format: metadata and tensors, nothing about models.
//!
//! Reference: the GGUF specification (versions 2 and 3, little-endian). Reading walks the map once, checks every length
//! against the bytes that remain before anything is allocated, and keeps arrays and tensors as ranges of the map.

pub mod keys;
mod reader;
mod tensor;
mod types;
mod value;
mod writer;

pub use reader::Gguf;
pub use tensor::TensorInfo;
pub use types::TensorType;
pub use value::{Array, Value, ValueType};
pub use writer::Writer;
