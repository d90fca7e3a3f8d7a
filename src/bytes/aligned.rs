//! Owned bytes that start at a multiple of 64, as a map of a file does: SIMD loads, and one cache line never shared by two runs.

use crate::error::{Result, try_zeroed};
use std::ops::{Deref, DerefMut};

/// Alignment of the first byte.
pub const ALIGNMENT: usize = 64;

/// A fixed number of bytes, zero at first. The alignment costs at most 63 spare bytes in front (and no `unsafe`).
pub struct AlignedBytes {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes, or [`crate::Error::OutOfMemory`] naming `what` they were for.
    pub fn zeroed(what: &'static str, len: usize) -> Result<AlignedBytes> {
        let buffer: Vec<u8> = try_zeroed(what, len.saturating_add(ALIGNMENT - 1))?;
        // The buffer never grows, so the address, and with it the offset, stays.
        let start = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT - 1);
        Ok(AlignedBytes { buffer, start, len })
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}
