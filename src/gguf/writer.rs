//! Writing GGUF version 3, little-endian: for tests, for the quantiser, and for conversions.

use super::{TensorType, ValueType};
use crate::error::{Error, Result};
use std::io::Write;

const ALIGNMENT: usize = 32;

/// Collects metadata and tensors, then writes the file in one go.
#[derive(Default)]
pub struct Writer {
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<(String, TensorType, Vec<u64>, Vec<u8>)>,
}

impl Writer {
    /// An empty file.
    pub fn new() -> Writer {
        Writer::default()
    }

    fn key(&mut self, key: &str, ty: ValueType) {
        self.metadata_count += 1;
        put_string(&mut self.metadata, key.as_bytes());
        self.metadata.extend((ty as u32).to_le_bytes());
    }

    /// Adds a value of any scalar type from its little-endian bytes.
    pub fn scalar(&mut self, key: &str, ty: ValueType, little_endian: &[u8]) -> &mut Self {
        debug_assert_eq!(little_endian.len(), ty.bytes_min());
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
        self.key(key, value.ty());
        put_value(&mut self.metadata, value);
        self
    }

    /// Adds a tensor; `dims` fastest first; `bytes` as they go into the file.
    pub fn tensor(&mut self, name: &str, ty: TensorType, dims: &[u64], bytes: Vec<u8>) -> &mut Self {
        self.tensors.push((name.into(), ty, dims.into(), bytes));
        self
    }

    /// Writes the file.
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        let io = |source| Error::Io { what: "write GGUF".into(), source };
        let mut head = Vec::new();
        head.extend(b"GGUF");
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend(self.metadata_count.to_le_bytes());
        head.extend(&self.metadata);
        let mut offset = 0u64;
        for (name, ty, dims, bytes) in &self.tensors {
            let expected = dims.iter().skip(1).try_fold(ty.row_bytes(dims[0] as usize).unwrap_or(0), |b, d| b.checked_mul(*d as usize));
            if expected != Some(bytes.len()) {
                return Err(Error::model(name.clone(), format!("{expected:?} bytes for {ty} {dims:?}"), bytes.len()));
            }
            put_string(&mut head, name.as_bytes());
            head.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| head.extend(d.to_le_bytes()));
            head.extend(ty.id().to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset = (offset + bytes.len() as u64).next_multiple_of(ALIGNMENT as u64);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&head).map_err(io)?;
        for (_, _, _, bytes) in &self.tensors {
            out.write_all(bytes).map_err(io)?;
            let pad = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
            out.write_all(&[0u8; ALIGNMENT][..pad]).map_err(io)?;
        }
        Ok(())
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
