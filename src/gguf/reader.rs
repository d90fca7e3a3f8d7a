//! Opening a GGUF file: header, metadata, tensor directory; then typed look-ups whose errors name the key.

use super::value::{STRING_BYTES_MAX, read_string};
use super::{Array, TensorInfo, TensorType, Value, ValueType};
use crate::bytes::{Cursor, Map, MapSlice};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

const MAGIC: u32 = u32::from_le_bytes(*b"GGUF");
const ALIGNMENT_DEFAULT: u64 = 32;
const KEY_BYTES_MAX: usize = 65535;
const NAME_BYTES_MAX: usize = 64;
const DIMS_MAX: u32 = 4;
/// Real files have some dozens of keys, and some thousands of tensors at most; entries cost more memory than file.
const METADATA_MAX: usize = 1 << 16;
const TENSORS_MAX: usize = 1 << 18;
/// Keys and strings are copied out of the map: all of them together may have this many bytes.
const COPIED_BYTES_MAX: usize = 4 * STRING_BYTES_MAX;

/// A parsed GGUF file over its map.
pub struct Gguf {
    map: Arc<Map>,
    version: u32,
    alignment: u64,
    data_offset: u64,
    metadata: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Maps and parses the file at `path`.
    pub fn open(path: &Path) -> Result<Gguf> {
        Gguf::parse(Arc::new(Map::open(path)?))
    }

    /// Parses bytes that are mapped already.
    pub fn parse(map: Arc<Map>) -> Result<Gguf> {
        let bytes: &[u8] = &map;
        let mut c = Cursor::new("GGUF", bytes);
        let version = read_version(&mut c)?;
        // The least a tensor entry takes: name length, no name, dimension count, one dimension, type, offset.
        let tensor_count = read_count(&mut c, "tensor_count", 8 + 4 + 8 + 4 + 8, TENSORS_MAX)?;
        let metadata_count = read_count(&mut c, "metadata_kv_count", 8 + 4 + 1, METADATA_MAX)?;

        let mut metadata = Vec::new();
        let mut by_key = HashMap::new();
        let mut copied = 0;
        let mut alignment = ALIGNMENT_DEFAULT;
        for i in 0..metadata_count {
            let at = c.offset();
            let key = read_name(&mut c, "key of metadata entry", i, KEY_BYTES_MAX)?;
            let type_at = c.offset();
            let id = c.u32(&key)?;
            let ty = ValueType::from_id(id).ok_or_else(|| c.error_at(type_at, &key, "a value type id of 0 to 12", id))?;
            let value_at = c.offset();
            let value = Value::read(ty, &mut c, &map, &key, 0)?;
            copied += key.len() + value.as_str().map_or(0, str::len);
            if copied > COPIED_BYTES_MAX {
                return Err(c.error_at(value_at, &key, format!("at most {COPIED_BYTES_MAX} bytes of strings in all"), "more"));
            }
            if key == "general.alignment" {
                alignment = match value.as_u64() {
                    Some(a) if a.is_power_of_two() && (8..=1 << 20).contains(&a) => a,
                    _ => return Err(c.error_at(value_at, &key, "a power of two of 8 to 2^20", format!("{value:?}"))),
                };
            }
            if by_key.insert(key.clone(), i).is_some() {
                return Err(c.error_at(at, &key, "each key once", "the key a second time"));
            }
            metadata.push((key, value));
        }

        let mut tensors: Vec<TensorInfo> = Vec::new();
        let mut offsets = Vec::new();
        let mut by_name = HashMap::new();
        for i in 0..tensor_count {
            let (info, offset, at) = read_tensor(&mut c, i, alignment)?;
            if by_name.insert(info.name.clone(), i).is_some() {
                return Err(c.error_at(at, &info.name, "each tensor once", "the name a second time"));
            }
            offsets.push((offset, at));
            tensors.push(info);
        }

        let data_offset = c.offset().next_multiple_of(alignment);
        place_tensors(&c, &mut tensors, &offsets, data_offset, bytes.len() as u64)?;
        Ok(Gguf { version, alignment, data_offset, metadata, by_key, tensors, by_name, map })
    }

    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensors in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where tensor data begins.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// The map under it.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// All metadata in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The bytes of a tensor of this file.
    pub fn bytes(&self, tensor: &TensorInfo) -> MapSlice {
        MapSlice::new(self.map.clone(), tensor.range.clone())
    }

    /// A value by key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&i| &self.metadata[i].1)
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, get: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.value(key) {
            None => Ok(None),
            Some(v) => match get(v) {
                Some(t) => Ok(Some(t)),
                None => Err(Error::model(key, expected, format!("{v:?}"))),
            },
        }
    }

    /// An unsigned integer of any width; an error if the key holds something else.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an unsigned integer", Value::as_u64)
    }

    /// An unsigned integer that fits 32 bits.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an unsigned integer of 32 bits", |v| v.as_u64().and_then(|v| v.try_into().ok()))
    }

    /// A number that is finite as f32.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a finite number", |v| v.as_f64().map(|v| v as f32).filter(|v| v.is_finite()))
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", Value::as_bool)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array.
    pub fn array(&self, key: &str) -> Result<Option<&Array>> {
        self.typed(key, "an array", Value::as_array)
    }

    /// Turns an absent key into an error.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::model(key, "the key to be present", "no such key"))
    }
}

fn read_version(c: &mut Cursor<'_>) -> Result<u32> {
    let magic = c.u32("magic")?;
    if magic != MAGIC {
        let found = magic.to_le_bytes().escape_ascii().to_string();
        return Err(c.error_at(0, "magic", "\"GGUF\"", format!("\"{found}\"")));
    }
    let version = c.u32("version")?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(c.error_at(4, "version", "2 or 3", "1 (convert the file again with a tool of this decade)")),
        v if (1..16).contains(&v.swap_bytes()) => Err(c.error_at(4, "version", "a little-endian file", "a big-endian one")),
        v => Err(c.error_at(4, "version", "2 or 3", v)),
    }
}

/// A count of entries that take at least `bytes_each` bytes each.
fn read_count(c: &mut Cursor<'_>, field: &str, bytes_each: usize, max: usize) -> Result<usize> {
    let at = c.offset();
    match c.count(field, bytes_each)? {
        n if n > max => Err(c.error_at(at, field, format!("at most {max}"), n)),
        n => Ok(n),
    }
}

/// A key or a tensor's name. Control characters are refused here, so that names can be printed everywhere.
fn read_name(c: &mut Cursor<'_>, what: &str, i: usize, max: usize) -> Result<String> {
    let at = c.offset();
    let field = format!("{what} {i}");
    let name = read_string(c, &field, max)?;
    if name.is_empty() {
        return Err(c.error_at(at, &field, format!("1 to {max} bytes"), "an empty string"));
    }
    if let Some(found) = name.chars().find(|ch| ch.is_control()) {
        return Err(c.error_at(at, &field, "a name without control characters", format!("{found:?}")));
    }
    Ok(name)
}

/// One directory entry: the tensor (its range still unset), its offset within the data, and where the entry stands.
fn read_tensor(c: &mut Cursor<'_>, i: usize, alignment: u64) -> Result<(TensorInfo, u64, u64)> {
    let at = c.offset();
    let name = read_name(c, "name of tensor", i, NAME_BYTES_MAX)?;
    let dims_at = c.offset();
    let n_dims = c.u32(&name)?;
    if !(1..=DIMS_MAX).contains(&n_dims) {
        return Err(c.error_at(dims_at, &name, format!("1 to {DIMS_MAX} dimensions"), n_dims));
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    let mut elements: u64 = 1;
    for _ in 0..n_dims {
        let d_at = c.offset();
        let d = c.u64(&name)?;
        elements = match elements.checked_mul(d) {
            // `isize`, for `rows` and `cols` are `usize`, also where that has 32 bits.
            Some(e) if d > 0 && e <= isize::MAX as u64 => e,
            _ => return Err(c.error_at(d_at, &name, format!("dimensions above 0 with a product of at most {}", isize::MAX), d)),
        };
        dims.push(d);
    }
    let type_at = c.offset();
    let id = c.u32(&name)?;
    let ty = TensorType::from_id(id).ok_or_else(|| c.error_at(type_at, &name, "a known tensor type", TensorType::describe_id(id)))?;
    let row = dims[0];
    if !row.is_multiple_of(ty.block_len() as u64) {
        return Err(c.error_at(dims_at, &name, format!("rows that are a multiple of {} ({ty})", ty.block_len()), row));
    }
    let offset_at = c.offset();
    let offset = c.u64(&name)?;
    if !offset.is_multiple_of(alignment) {
        return Err(c.error_at(offset_at, &name, format!("an offset that is a multiple of {alignment}"), offset));
    }
    Ok((TensorInfo { name, ty, dims, range: 0..0 }, offset, at))
}

/// Checks that every tensor lies inside the file and overlaps no other, and sets the ranges.
fn place_tensors(c: &Cursor<'_>, tensors: &mut [TensorInfo], offsets: &[(u64, u64)], data_offset: u64, file_len: u64) -> Result<()> {
    for (t, &(offset, at)) in tensors.iter_mut().zip(offsets) {
        let blocks = t.elements() / t.ty.block_len() as u64;
        let end = blocks
            .checked_mul(t.ty.block_bytes() as u64)
            .and_then(|bytes| data_offset.checked_add(offset)?.checked_add(bytes))
            .filter(|end| *end <= file_len);
        let Some(end) = end else {
            let found = format!("{} {:?} at data offset {offset}", t.ty, t.dims);
            return Err(c.error_at(at, &t.name, format!("a tensor inside the file ({file_len} bytes)"), found));
        };
        t.range = (data_offset + offset) as usize..end as usize;
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| tensors[i].range.start);
    for pair in order.windows(2) {
        let (a, b) = (&tensors[pair[0]], &tensors[pair[1]]);
        if b.range.start < a.range.end {
            let expected = format!("data behind that of {} (from {})", a.name, a.range.end);
            return Err(c.error_at(offsets[pair[1]].1, &b.name, expected, b.range.start));
        }
    }
    Ok(())
}
