//! A tensor's entry in the file's directory.

use super::TensorType;
use std::ops::Range;

/// Name, type, shape and place of a tensor. The range was checked against the file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// For example `blk.0.attn_q.weight`.
    pub name: String,
    /// Encoding of the elements.
    pub ty: TensorType,
    /// Dimensions, fastest first: a matrix of `rows x cols` has `[cols, rows]`.
    pub dims: Vec<u64>,
    /// Bytes in the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Elements of a row (the first dimension).
    pub fn cols(&self) -> usize {
        self.dims.first().copied().unwrap_or(1) as usize
    }

    /// Rows (the product of the other dimensions).
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).product::<u64>() as usize
    }

    /// Elements in all.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}
