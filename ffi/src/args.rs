//! Arguments as C gives them: pointers, lengths, versioned structs, sized buffers. Everything is checked that can be.
#![allow(unsafe_code)]

use crate::status::{Fail, Outcome};
use crate::types::{LOCI_BUFFER_TOO_SMALL, LOCI_NUL_TERMINATED, Versioned};
use std::ffi::{CStr, c_char};
use std::mem::{align_of, size_of};

/// A versioned struct is never larger than this; a larger `struct_size` is garbage, and not followed.
const STRUCT_BYTES_MAX: usize = 4096;

/// Refuses NULL.
pub fn not_null<T>(name: &str, pointer: *const T) -> Outcome {
    if pointer.is_null() { Err(Fail::argument(name, "a pointer", "NULL")) } else { Ok(()) }
}

/// A place for a result.
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Refuses NULL.
    pub fn new(name: &str, pointer: *mut T) -> Outcome<Out<T>> {
        not_null(name, pointer)?;
        Ok(Out(pointer))
    }

    /// # Safety
    /// The pointer is good for writing a `T`.
    pub unsafe fn write(self, value: T) {
        // SAFETY: the caller's promise; alignment is not assumed.
        unsafe { self.0.write_unaligned(value) }
    }
}

/// An array of the caller's. NULL is an empty one.
///
/// # Safety
/// `pointer` is NULL or good for reading `len` elements during `'a`.
pub unsafe fn slice<'a, T>(name: &str, pointer: *const T, len: usize) -> Outcome<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    not_null(name, pointer)?;
    if !pointer.is_aligned() {
        return Err(Fail::argument(name, format!("a pointer aligned to {}", align_of::<T>()), format!("{pointer:p}")));
    }
    if len > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Fail::argument(name, "a length that fits the address space", len));
    }
    // SAFETY: not null, aligned, of a possible length, and readable as the caller promises.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// Text with a length, or up to its NUL.
///
/// # Safety
/// As [`slice`]; with `LOCI_NUL_TERMINATED` there is a NUL.
pub unsafe fn text_bytes<'a>(name: &str, pointer: *const c_char, len: usize) -> Outcome<&'a [u8]> {
    if len == LOCI_NUL_TERMINATED {
        not_null(name, pointer)?;
        // SAFETY: not null, NUL-terminated as the caller promises.
        return Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes());
    }
    // SAFETY: the caller's promise.
    unsafe { slice(name, pointer.cast(), len) }
}

/// A NUL-terminated UTF-8 string.
///
/// # Safety
/// NULL or NUL-terminated, and unchanged during `'a`.
pub unsafe fn string<'a>(name: &str, pointer: *const c_char) -> Outcome<&'a str> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { text_bytes(name, pointer, LOCI_NUL_TERMINATED)? };
    utf8(name, bytes)
}

/// A NUL-terminated UTF-8 string, or none where the pointer is NULL.
///
/// # Safety
/// As [`string`].
pub unsafe fn optional_string<'a>(name: &str, pointer: *const c_char) -> Outcome<Option<&'a str>> {
    // SAFETY: the caller's promise.
    if pointer.is_null() { Ok(None) } else { unsafe { string(name, pointer) }.map(Some) }
}

/// The bytes as text, or where they stop being UTF-8.
pub fn utf8<'a>(name: &str, bytes: &'a [u8]) -> Outcome<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| Fail::argument(name, "UTF-8", format!("an invalid byte at {}", e.valid_up_to())))
}

/// A path: its bytes on Unix, UTF-8 elsewhere.
///
/// # Safety
/// As [`string`].
pub unsafe fn path<'a>(name: &str, pointer: *const c_char) -> Outcome<&'a std::path::Path> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: the caller's promise.
        let bytes = unsafe { text_bytes(name, pointer, LOCI_NUL_TERMINATED)? };
        Ok(std::path::Path::new(std::ffi::OsStr::from_bytes(bytes)))
    }
    #[cfg(not(unix))]
    {
        // SAFETY: the caller's promise.
        unsafe { string(name, pointer) }.map(std::path::Path::new)
    }
}

/// Tokens; a negative one becomes an id that no vocabulary has.
///
/// # Safety
/// As [`slice`].
pub unsafe fn tokens<'a>(pointer: *const i32, count: usize) -> Outcome<&'a [u32]> {
    // SAFETY: the caller's promise; i32 and u32 have one layout.
    unsafe { slice("tokens", pointer.cast(), count) }
}

/// 0 or 1.
pub fn boolean(name: &str, value: i32) -> Outcome<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Fail::argument(name, "0 or 1", value)),
    }
}

/// Refuses flags outside `known`.
pub fn flags(value: u32, known: i32) -> Outcome<u32> {
    let unknown = value & !(known as u32);
    if unknown == 0 { Ok(value) } else { Err(Fail::argument("flags", format!("bits of {known:#x}"), format!("{value:#x}"))) }
}

/// A buffer of the caller's for a result of any length.
pub struct Buffer<T> {
    data: *mut T,
    capacity: usize,
    length: *mut usize,
}

impl<T: Copy> Buffer<T> {
    /// Refuses a NULL length, and a NULL buffer with a capacity.
    pub fn new(data: *mut T, capacity: usize, length: *mut usize) -> Outcome<Buffer<T>> {
        not_null("length", length)?;
        if capacity > 0 {
            not_null("buffer", data)?;
        }
        Ok(Buffer { data, capacity, length })
    }

    /// Writes `values` and how many they are; if they do not fit, only how many.
    ///
    /// # Safety
    /// `data` is good for writing `capacity` elements, `length` for one.
    pub unsafe fn write(self, values: &[T]) -> Outcome {
        // SAFETY: the caller's promise.
        unsafe { self.write_with(values, &[]) }
    }

    /// Refuses, and writes how many there will be, if `len` elements do not fit: for what takes long to make.
    ///
    /// # Safety
    /// `length` is good for writing.
    pub unsafe fn must_hold(&self, len: usize) -> Outcome {
        // SAFETY: the caller's promise.
        unsafe { self.note(len, 0) }
    }

    /// Writes the length of `len` elements, and refuses if they do not fit with `end` more behind them.
    ///
    /// # Safety
    /// `length` is good for writing.
    unsafe fn note(&self, len: usize, end: usize) -> Outcome {
        // SAFETY: the caller's promise; alignment is not assumed.
        unsafe { self.length.write_unaligned(len) };
        if len + end <= self.capacity {
            return Ok(());
        }
        let what = format!("a buffer of {} elements, found {}", len + end, self.capacity);
        Err(Fail { name: Some("capacity".into()), ..Fail::new(LOCI_BUFFER_TOO_SMALL, format!("buffer too small: expected {what}")) })
    }

    /// # Safety
    /// As [`Buffer::write`].
    unsafe fn write_with(self, values: &[T], end: &[T]) -> Outcome {
        // SAFETY: length is good for writing; what is written to data is at most capacity elements, as `note` has found. Bytes are
        // copied, so no alignment is assumed.
        unsafe {
            self.note(values.len(), end.len())?;
            let to = self.data.cast::<u8>();
            to.copy_from_nonoverlapping(values.as_ptr().cast(), size_of_val(values));
            to.add(size_of_val(values)).copy_from_nonoverlapping(end.as_ptr().cast(), size_of_val(end));
        }
        Ok(())
    }
}

impl Buffer<c_char> {
    /// Writes text and a NUL; the length does not count the NUL.
    ///
    /// # Safety
    /// As [`Buffer::write`].
    pub unsafe fn write_text(self, text: &[u8]) -> Outcome {
        let bytes = Buffer { data: self.data.cast::<u8>(), capacity: self.capacity, length: self.length };
        // SAFETY: the caller's promise.
        unsafe { bytes.write_with(text, b"\0") }
    }
}

/// Checks a `struct_size`: it must cover more than itself (a pointer's size is a mistake), end where a field ends, and not be absurd.
fn check_struct_size<T: Versioned>(size: usize) -> Outcome {
    let ends_a_field = T::FIELDS.iter().skip(1).any(|f| f.offset + f.size == size);
    if ends_a_field || (size > size_of::<T>() && size <= STRUCT_BYTES_MAX) {
        return Ok(());
    }
    Err(Fail::argument("struct_size", format!("sizeof({}), which is {} here", T::NAME, size_of::<T>()), size))
}

/// Reads an options struct over `defaults`: what an older caller's struct does not have keeps its default, what a newer caller's has
/// beyond ours must be zero.
///
/// # Safety
/// `pointer` is NULL, or good for reading a `size_t` and then as many bytes as it says.
pub unsafe fn options<T: Versioned>(pointer: *const T, mut defaults: T) -> Outcome<T> {
    if pointer.is_null() {
        return Ok(defaults);
    }
    // SAFETY: the struct starts with its size.
    let size = unsafe { pointer.cast::<usize>().read_unaligned() };
    check_struct_size::<T>(size)?;
    let known = size.min(size_of::<T>());
    // SAFETY: the caller has `size` bytes there; any bits are a valid T (Versioned), and `defaults` has room for `known`.
    unsafe {
        (&raw mut defaults).cast::<u8>().copy_from_nonoverlapping(pointer.cast(), known);
        for i in known..size {
            let byte = pointer.cast::<u8>().add(i).read();
            if byte != 0 {
                let what = format!("0 in what {} has beyond {known} bytes (the library is older)", T::NAME);
                return Err(Fail::argument("struct_size", what, format!("{byte} at byte {i}")));
            }
        }
    }
    Ok(defaults)
}

/// Fills a caller's struct with `value`, as far as it reaches; what it has beyond ours becomes zero.
///
/// # Safety
/// `pointer` is good for writing `size` bytes.
pub unsafe fn init<T: Versioned>(pointer: *mut T, size: usize, value: T) -> Outcome {
    not_null("options", pointer)?;
    check_struct_size::<T>(size)?;
    // SAFETY: size bytes are there.
    unsafe {
        fill(pointer, size, value);
    }
    Ok(())
}

/// # Safety
/// `pointer` is good for writing `size` bytes.
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
unsafe fn fill<T: Versioned>(pointer: *mut T, size: usize, value: T) {
    let known = size.min(size_of::<T>());
    // SAFETY: the caller has `size` bytes there, and `known` are of `value`.
    unsafe {
        let to = pointer.cast::<u8>();
        to.copy_from_nonoverlapping((&raw const value).cast(), known);
        to.add(known).write_bytes(0, size - known);
        pointer.cast::<usize>().write_unaligned(size);
    }
}

/// A versioned struct of the caller's for a result.
pub struct StructOut<T> {
    pointer: *mut T,
    size: usize,
}

impl<T: Versioned> StructOut<T> {
    /// Refuses NULL and an impossible `struct_size`.
    ///
    /// # Safety
    /// `pointer` is NULL, or good for reading a `size_t` and writing as many bytes as it says.
    pub unsafe fn new(name: &str, pointer: *mut T) -> Outcome<StructOut<T>> {
        not_null(name, pointer)?;
        // SAFETY: the struct starts with its size.
        let size = unsafe { pointer.cast::<usize>().read_unaligned() };
        check_struct_size::<T>(size)?;
        Ok(StructOut { pointer, size })
    }

    /// # Safety
    /// As for [`StructOut::new`], still.
    pub unsafe fn write(self, value: T) {
        // SAFETY: the caller's promise.
        unsafe { fill(self.pointer, self.size, value) }
    }
}
