//! Metadata values. Scalars are decoded; arrays stay where they are in the file and are read through iterators, so that a
//! vocabulary of a quarter of a million strings costs nothing until somebody asks.

use crate::bytes::{Cursor, Map};
use crate::error::{Result, quoted};
use std::ops::Range;
use std::sync::Arc;

/// The type id of a metadata value, as in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this id in the file.
    pub fn from_id(id: u32) -> Option<ValueType> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64].into_iter().find(|t| *t as u32 == id)
    }

    /// True for numbers and booleans.
    pub fn is_scalar(self) -> bool {
        !matches!(self, ValueType::String | ValueType::Array)
    }

    /// Bytes of a scalar; the least number of bytes for a string or an array.
    pub fn bytes_min(self) -> usize {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            U64 | I64 | F64 | String => 8,
            Array => 12,
        }
    }

    /// The name in lower case, as the specification writes it.
    pub fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "uint8",
            I8 => "int8",
            U16 => "uint16",
            I16 => "int16",
            U32 => "uint32",
            I32 => "int32",
            F32 => "float32",
            Bool => "bool",
            String => "string",
            Array => "array",
            U64 => "uint64",
            I64 => "int64",
            F64 => "float64",
        }
    }
}

/// A metadata value.
#[derive(Clone)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// Its type.
    pub fn ty(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// Any integer type, if it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// Any integer type.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::I8(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::I64(v) => Some(v),
            _ => self.as_u64().and_then(|v| v.try_into().ok()),
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => self.as_i64().map(|v| v as f64),
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(v) = self { Some(*v) } else { None }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(v) = self { Some(v) } else { None }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Value::Array(v) = self { Some(v) } else { None }
    }

    pub(super) fn read(ty: ValueType, c: &mut Cursor<'_>, map: &Arc<Map>, field: &str, depth: usize) -> Result<Value> {
        Ok(match ty {
            ValueType::U8 => Value::U8(c.u8(field)?),
            ValueType::I8 => Value::I8(c.u8(field)? as i8),
            ValueType::U16 => Value::U16(u16::from_le_bytes(c.array(field)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(c.array(field)?)),
            ValueType::U32 => Value::U32(c.u32(field)?),
            ValueType::I32 => Value::I32(c.u32(field)? as i32),
            ValueType::F32 => Value::F32(f32::from_bits(c.u32(field)?)),
            ValueType::Bool => match c.u8(field)? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                v => return Err(c.error_at(c.offset() - 1, field, "a bool (0 or 1)", v)),
            },
            ValueType::String => Value::String(read_string(c, field, STRING_BYTES_MAX)?),
            ValueType::Array => Value::Array(Array::read(c, map, field, depth)?),
            ValueType::U64 => Value::U64(c.u64(field)?),
            ValueType::I64 => Value::I64(c.u64(field)? as i64),
            ValueType::F64 => Value::F64(f64::from_bits(c.u64(field)?)),
        })
    }
}

/// The type's name and the value, cut to a length that fits an error.
impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.ty().name();
        match self {
            Value::U8(v) => write!(f, "{name} {v}"),
            Value::I8(v) => write!(f, "{name} {v}"),
            Value::U16(v) => write!(f, "{name} {v}"),
            Value::I16(v) => write!(f, "{name} {v}"),
            Value::U32(v) => write!(f, "{name} {v}"),
            Value::I32(v) => write!(f, "{name} {v}"),
            Value::F32(v) => write!(f, "{name} {v}"),
            Value::Bool(v) => write!(f, "{name} {v}"),
            Value::U64(v) => write!(f, "{name} {v}"),
            Value::I64(v) => write!(f, "{name} {v}"),
            Value::F64(v) => write!(f, "{name} {v}"),
            Value::Array(v) => write!(f, "{v:?}"),
            Value::String(v) => write!(f, "{name} {}", quoted(v)),
        }
    }
}

/// The longest string. Chat templates and embedded tokenizers stay below a tenth of it.
pub(super) const STRING_BYTES_MAX: usize = 64 << 20;

/// A length-prefixed string of at most `max` bytes that must be UTF-8.
pub(super) fn read_string(c: &mut Cursor<'_>, field: &str, max: usize) -> Result<String> {
    let at = c.offset();
    let len = c.count(field, 1)?;
    if len > max {
        return Err(c.error_at(at, field, format!("a string of at most {max} bytes"), format!("{len} bytes")));
    }
    let bytes = c.take(field, len)?;
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|e| c.error_at(at + 8 + e.valid_up_to() as u64, field, "UTF-8", "an invalid byte sequence"))
}

/// How deep arrays may be nested. Nothing real goes past 2; the bound keeps hostile files off the stack.
const DEPTH_MAX: usize = 8;

/// An array of values of one type, read in place.
#[derive(Clone)]
pub struct Array {
    /// Type of the elements.
    pub ty: ValueType,
    /// Number of elements.
    pub len: usize,
    map: Arc<Map>,
    range: Range<usize>,
    depth: usize,
}

impl Array {
    /// Reads the header and walks the elements once, so that later iteration cannot fail.
    fn read(c: &mut Cursor<'_>, map: &Arc<Map>, field: &str, depth: usize) -> Result<Array> {
        if depth >= DEPTH_MAX {
            return Err(c.error(field, format!("arrays nested at most {DEPTH_MAX} deep"), "a deeper one"));
        }
        let at = c.offset();
        let id = c.u32(field)?;
        let ty = ValueType::from_id(id).ok_or_else(|| c.error_at(at, field, "an element type id of 0 to 12", id))?;
        let len = c.count(field, ty.bytes_min())?;
        let start = c.offset() as usize;
        match ty {
            ValueType::String => {
                for _ in 0..len {
                    let at = c.offset();
                    let n = c.count(field, 1)?;
                    if n > STRING_BYTES_MAX {
                        return Err(c.error_at(at, field, format!("strings of at most {STRING_BYTES_MAX} bytes"), format!("{n} bytes")));
                    }
                    c.take(field, n)?;
                }
            }
            ValueType::Array => {
                for _ in 0..len {
                    Array::read(c, map, field, depth + 1)?;
                }
            }
            _ => {
                let bytes = c.take(field, len * ty.bytes_min())?;
                if ty == ValueType::Bool
                    && let Some(i) = bytes.iter().position(|b| *b > 1)
                {
                    return Err(c.error_at((start + i) as u64, field, "bools (0 or 1)", bytes[i]));
                }
            }
        }
        Ok(Array { ty, len, map: map.clone(), range: start..c.offset() as usize, depth })
    }

    fn cursor(&self) -> Cursor<'_> {
        Cursor::new("GGUF", &self.map[self.range.clone()])
    }

    /// The elements as they stand in the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// The elements, decoded one at a time. In strings that are not UTF-8 (vocabularies hold such) the wrong bytes are
    /// replaced by U+FFFD; [`Array::strings`] gives the bytes themselves.
    pub fn values(&self) -> impl Iterator<Item = Value> + '_ {
        let mut c = self.cursor();
        // `read` has walked these bytes already: nothing ends the iteration early.
        (0..self.len).map_while(move |_| self.next_value(&mut c))
    }

    fn next_value(&self, c: &mut Cursor<'_>) -> Option<Value> {
        if self.ty == ValueType::Array {
            let id = c.u32("").ok()?;
            let ty = ValueType::from_id(id)?;
            let len = c.count("", ty.bytes_min()).ok()?;
            let start = self.range.start + c.offset() as usize;
            let mut inner = Array { ty, len, map: self.map.clone(), range: start..self.range.end, depth: self.depth + 1 };
            let used = inner.bytes_used()?;
            inner.range.end = start + used;
            c.take("", used).ok()?;
            return Some(Value::Array(inner));
        }
        if self.ty == ValueType::String {
            let len = c.count("", 1).ok()?;
            return Some(Value::String(String::from_utf8_lossy(c.take("", len).ok()?).into_owned()));
        }
        Value::read(self.ty, c, &self.map, "", self.depth + 1).ok()
    }

    fn bytes_used(&self) -> Option<usize> {
        let mut c = self.cursor();
        match self.ty {
            ValueType::String => {
                for _ in 0..self.len {
                    let n = c.count("", 1).ok()?;
                    c.take("", n).ok()?;
                }
            }
            ValueType::Array => {
                for _ in 0..self.len {
                    self.next_value(&mut c)?;
                }
            }
            ty => {
                c.take("", self.len * ty.bytes_min()).ok()?;
            }
        }
        Some(c.offset() as usize)
    }

    /// The bytes of each string; empty for arrays of another type.
    pub fn strings(&self) -> impl Iterator<Item = &[u8]> + '_ {
        let mut c = self.cursor();
        let n = if self.ty == ValueType::String { self.len } else { 0 };
        (0..n).map_while(move |_| {
            let len = c.count("", 1).ok()?;
            c.take("", len).ok()
        })
    }

    /// Numbers as f64; none for arrays of another type.
    pub fn numbers(&self) -> impl Iterator<Item = f64> + '_ {
        self.scalars().map_while(|v| v.as_f64())
    }

    /// Integers; none for arrays of another type.
    pub fn integers(&self) -> impl Iterator<Item = i64> + '_ {
        self.scalars().map_while(|v| v.as_i64())
    }

    /// The elements of an array of numbers. Vocabularies have two such arrays of hundreds of thousands: no cursor, no errors.
    fn scalars(&self) -> impl Iterator<Item = Value> + '_ {
        self.bytes().chunks_exact(self.ty.bytes_min()).map_while(|b| {
            Some(match self.ty {
                ValueType::U8 => Value::U8(b[0]),
                ValueType::I8 => Value::I8(b[0] as i8),
                ValueType::U16 => Value::U16(u16::from_le_bytes(b.try_into().ok()?)),
                ValueType::I16 => Value::I16(i16::from_le_bytes(b.try_into().ok()?)),
                ValueType::U32 => Value::U32(u32::from_le_bytes(b.try_into().ok()?)),
                ValueType::I32 => Value::I32(i32::from_le_bytes(b.try_into().ok()?)),
                ValueType::F32 => Value::F32(f32::from_le_bytes(b.try_into().ok()?)),
                ValueType::U64 => Value::U64(u64::from_le_bytes(b.try_into().ok()?)),
                ValueType::I64 => Value::I64(i64::from_le_bytes(b.try_into().ok()?)),
                ValueType::F64 => Value::F64(f64::from_le_bytes(b.try_into().ok()?)),
                ValueType::Bool | ValueType::String | ValueType::Array => return None,
            })
        })
    }
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}; {}]", self.ty.name(), self.len)
    }
}
