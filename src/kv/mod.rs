//! The local context: keys and values of the last tokens, as segments that attention reads.

mod window;

pub use crate::kernels::codec::Codec;
pub use crate::kernels::tiles::KvType;
pub use window::{LayerShape, Window};
