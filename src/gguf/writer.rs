//! Writing GGUF version 3, little-endian: for tests, for the quantiser, and for conversions.

use super::{TensorType, ValueType};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::io::Write;

const ALIGNMENT_DEFAULT: u64 = 32;

/// Collects metadata and tensors, then writes the file in one go. What cannot be written well (a key twice, a scalar of the
/// wrong size, a tensor whose bytes do not fit its shape) is refused by [`Writer::write`].
#[derive(Default)]
pub struct Writer {
    metadata: Vec<u8>,
    keys: HashSet<String>,
    /// `general.alignment`, if it was added.
    alignment: Option<u64>,
    fault: Option<Error>,
    tensors: Vec<(String, TensorType, Vec<u64>, Vec<u8>)>,
}

impl Writer {
    /// An empty file.
    pub fn new() -> Writer {
        Writer::default()
    }

    fn key(&mut self, key: &str, ty: ValueType) {
        if key.is_empty() || !self.keys.insert(key.into()) {
            self.refuse(key, "each key once, and none empty", "it again, or an empty one");
        }
        put_string(&mut self.metadata, key.as_bytes());
        self.metadata.extend((ty as u32).to_le_bytes());
    }

    /// Keeps the first fault for [`Writer::write`] to return.
    fn refuse(&mut self, field: &str, expected: impl ToString, found: impl ToString) {
        self.fault.get_or_insert_with(|| Error::model(field, expected, found));
    }

    /// Adds a value of any scalar type from its little-endian bytes.
    pub fn scalar(&mut self, key: &str, ty: ValueType, little_endian: &[u8]) -> &mut Self {
        if !ty.is_scalar() || little_endian.len() != ty.bytes_min() {
            self.refuse(key, format!("the bytes of one {}", ty.name()), format!("{} bytes", little_endian.len()));
        }
        if key == "general.alignment" {
            let mut wide = [0; 8];
            little_endian.iter().zip(&mut wide).for_each(|(from, to)| *to = *from);
            self.align(u64::from_le_bytes(wide));
        }
        self.key(key, ty);
        self.metadata.extend(little_endian);
        self
    }

    /// Adds a `uint32`.
    pub fn u32(&mut self, key: &str, v: u32) -> &mut Self {
        self.scalar(key, ValueType::U32, &v.to_le_bytes())
    }

    /// Adds a `float32`.
    pub fn f32(&mut self, key: &str, v: f32) -> &mut Self {
        self.scalar(key, ValueType::F32, &v.to_le_bytes())
    }

    /// Adds a `bool`.
    pub fn bool(&mut self, key: &str, v: bool) -> &mut Self {
        self.scalar(key, ValueType::Bool, &[v.into()])
    }

    /// Adds a string.
    pub fn str(&mut self, key: &str, v: &str) -> &mut Self {
        self.key(key, ValueType::String);
        put_string(&mut self.metadata, v.as_bytes());
        self
    }

    /// Adds an array of strings.
    pub fn strings<S: AsRef<[u8]>>(&mut self, key: &str, v: &[S]) -> &mut Self {
        self.array_header(key, ValueType::String, v.len());
        for s in v {
            put_string(&mut self.metadata, s.as_ref());
        }
        self
    }

    /// Adds an array of scalars from their little-endian bytes.
    pub fn array(&mut self, key: &str, ty: ValueType, little_endian: &[u8]) -> &mut Self {
        if !ty.is_scalar() || !little_endian.len().is_multiple_of(ty.bytes_min()) {
            self.refuse(key, format!("the bytes of whole {}s", ty.name()), format!("{} bytes", little_endian.len()));
        }
        self.array_header(key, ty, little_endian.len() / ty.bytes_min());
        self.metadata.extend(little_endian);
        self
    }

    /// Adds an array of `uint32`.
    pub fn u32s(&mut self, key: &str, v: &[u32]) -> &mut Self {
        self.array(key, ValueType::U32, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Adds an array of `int32`.
    pub fn i32s(&mut self, key: &str, v: &[i32]) -> &mut Self {
        self.array(key, ValueType::I32, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Adds an array of `float32`.
    pub fn f32s(&mut self, key: &str, v: &[f32]) -> &mut Self {
        self.array(key, ValueType::F32, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    fn array_header(&mut self, key: &str, ty: ValueType, len: usize) {
        self.key(key, ValueType::Array);
        self.metadata.extend((ty as u32).to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }

    /// Copies metadata `key` of another file as it stands.
    pub fn copy(&mut self, key: &str, value: &super::Value) -> &mut Self {
        if key == "general.alignment" {
            self.align(value.as_u64().unwrap_or(0));
        }
        self.key(key, value.ty());
        put_value(&mut self.metadata, value);
        self
    }

    /// From here on the file has another alignment of tensors than the usual 32.
    fn align(&mut self, alignment: u64) {
        if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
            self.refuse("general.alignment", "a power of two of 8 to 2^20", alignment);
        }
        self.alignment = Some(alignment);
    }

    /// Adds a tensor; `dims` fastest first; `bytes` as they go into the file.
    pub fn tensor(&mut self, name: &str, ty: TensorType, dims: &[u64], bytes: Vec<u8>) -> &mut Self {
        self.tensors.push((name.into(), ty, dims.into(), bytes));
        self
    }

    /// Writes the file.
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        let io = |source| Error::Io { what: "write GGUF".into(), source };
        let head = self.head()?;
        out.write_all(&head).map_err(io)?;
        for (_, _, _, bytes) in &self.tensors {
            out.write_all(bytes).map_err(io)?;
            out.write_all(&vec![0; self.padded(bytes.len()) - bytes.len()]).map_err(io)?;
        }
        Ok(())
    }

    /// Everything before the tensors' data.
    fn head(&self) -> Result<Vec<u8>> {
        if let Some(Error::Model { field, expected, found }) = &self.fault {
            return Err(Error::model(field.clone(), expected, found));
        }
        let mut head = Vec::new();
        head.extend(b"GGUF");
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.keys.len() as u64).to_le_bytes());
        head.extend(&self.metadata);
        let mut offset = 0;
        let mut names = HashSet::new();
        for (name, ty, dims, bytes) in &self.tensors {
            if !(1..=64).contains(&name.len()) || !names.insert(name) {
                return Err(Error::model(
                    name.clone(),
                    "each tensor once, by a name of 1 to 64 bytes",
                    format!("{} bytes, or it again", name.len()),
                ));
            }
            let row = dims.first().and_then(|d| ty.row_bytes(*d as usize));
            let expected = row.and_then(|row| dims[1..].iter().try_fold(row, |b, d| b.checked_mul(*d as usize)));
            if expected != Some(bytes.len()) || bytes.is_empty() || dims.len() > 4 {
                let expected = format!("{ty} {dims:?}: 1 to 4 dimensions and {expected:?} bytes");
                return Err(Error::model(name.clone(), expected, bytes.len()));
            }
            put_string(&mut head, name.as_bytes());
            head.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| head.extend(d.to_le_bytes()));
            head.extend(ty.id().to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            offset += self.padded(bytes.len());
        }
        head.resize(self.padded(head.len()), 0);
        Ok(head)
    }

    fn padded(&self, bytes: usize) -> usize {
        bytes.next_multiple_of(self.alignment.unwrap_or(ALIGNMENT_DEFAULT) as usize)
    }

    /// The file as bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.write(&mut out)?;
        Ok(out)
    }
}

fn put_string(out: &mut Vec<u8>, s: &[u8]) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s);
}

fn put_value(out: &mut Vec<u8>, value: &super::Value) {
    use super::Value::*;
    match value {
        U8(v) => out.push(*v),
        I8(v) => out.push(*v as u8),
        U16(v) => out.extend(v.to_le_bytes()),
        I16(v) => out.extend(v.to_le_bytes()),
        U32(v) => out.extend(v.to_le_bytes()),
        I32(v) => out.extend(v.to_le_bytes()),
        F32(v) => out.extend(v.to_le_bytes()),
        Bool(v) => out.push((*v).into()),
        String(v) => put_string(out, v.as_bytes()),
        U64(v) => out.extend(v.to_le_bytes()),
        I64(v) => out.extend(v.to_le_bytes()),
        F64(v) => out.extend(v.to_le_bytes()),
        Array(a) => {
            out.extend((a.ty as u32).to_le_bytes());
            out.extend((a.len as u64).to_le_bytes());
            a.strings().for_each(|s| put_string(out, s));
            if a.ty != ValueType::String {
                a.values().for_each(|v| put_value(out, &v));
            }
        }
    }
}
