//! A reader over untrusted little-endian bytes. It cannot run past the end, and every failure names the offset, the
//! field, what was expected and what was there.

use crate::error::{Error, Result};

/// Characters of a field's name that an error repeats.
const FIELD_CHARS_MAX: usize = 120;

/// Position in a byte slice; all multi-byte values are little-endian.
#[derive(Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    base: u64,
    file: &'static str,
}

impl<'a> Cursor<'a> {
    /// Starts at byte 0 of `bytes`; `file` is the kind of file that errors will name.
    pub fn new(file: &'static str, bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0, base: 0, file }
    }

    /// Starts at byte 0 of `bytes`, which lie at `base` in their file: errors and [`Cursor::offset`] count from the file's start.
    pub fn with_base(file: &'static str, bytes: &'a [u8], base: u64) -> Self {
        Cursor { bytes, at: 0, base, file }
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Bytes from here to the end.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An [`Error::Format`] at the present offset.
    pub fn error(&self, field: &str, expected: impl ToString, found: impl ToString) -> Error {
        self.error_at(self.offset(), field, expected, found)
    }

    /// An [`Error::Format`] at a given offset.
    pub fn error_at(&self, offset: u64, field: &str, expected: impl ToString, found: impl ToString) -> Error {
        // A name may come from the file and be of any length.
        let field = match field.char_indices().nth(FIELD_CHARS_MAX) {
            Some((cut, _)) => format!("{}...", &field[..cut]),
            None => field.into(),
        };
        Error::Format { file: self.file, offset, field, expected: expected.to_string(), found: found.to_string() }
    }

    /// The next `len` bytes, borrowed from the file itself.
    #[inline]
    pub fn take(&mut self, field: &str, len: usize) -> Result<&'a [u8]> {
        if len > self.remaining() {
            return Err(self.too_short(field, len));
        }
        let out = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(out)
    }

    /// A fixed number of bytes as an array.
    #[inline]
    pub fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(field, N)?);
        Ok(out)
    }

    /// An unsigned byte.
    pub fn u8(&mut self, field: &str) -> Result<u8> {
        Ok(self.array::<1>(field)?[0])
    }

    /// A 32-bit unsigned integer.
    pub fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// A 64-bit unsigned integer.
    #[inline]
    pub fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A 64-bit count of things which take at least `bytes_each` bytes each: refused, before anything is allocated, if the
    /// rest of the file could not hold them.
    #[inline]
    pub fn count(&mut self, field: &str, bytes_each: usize) -> Result<usize> {
        let offset = self.offset();
        let n = self.u64(field)?;
        let most = (self.remaining() / bytes_each.max(1)) as u64;
        if n > most {
            return Err(self.too_many(offset, field, most, n));
        }
        Ok(n as usize)
    }

    // Out of the way of loops over hundreds of thousands of strings.
    #[cold]
    fn too_short(&self, field: &str, len: usize) -> Error {
        self.error(field, format!("{len} bytes"), format!("{} bytes to the end of the file", self.remaining()))
    }

    #[cold]
    fn too_many(&self, offset: u64, field: &str, most: u64, n: u64) -> Error {
        self.error_at(offset, field, format!("at most {most} (what the rest of the file could hold)"), n)
    }
}
