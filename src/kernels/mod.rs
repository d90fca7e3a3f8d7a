//! The mathematics over rows: matrix products, attention, norms, rotary positions, activations.

pub mod activation;
pub mod attention;
pub mod codec;
pub mod hadamard;
pub mod matmul;
pub mod norm;
pub mod probe;
pub mod rotary;
pub mod sketch;
pub mod tiles;
pub mod vector;
