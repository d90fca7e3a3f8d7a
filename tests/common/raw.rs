//! A GGUF file taken apart into its fields, so that a test can put back a file with any of them wrong.
//!
//! Written from the specification, apart from the library's reader and writer: it believes nothing and checks nothing.

/// Value type ids.
pub const U8: u32 = 0;
pub const I8: u32 = 1;
pub const U16: u32 = 2;
pub const I16: u32 = 3;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;
pub const I64: u32 = 11;
pub const F64: u32 = 12;

/// A file in pieces.
#[derive(Clone)]
pub struct Raw {
    pub magic: [u8; 4],
    pub version: u32,
    /// What the header says, if not the truth.
    pub tensor_count: Option<u64>,
    pub metadata_count: Option<u64>,
    pub metadata: Vec<Entry>,
    pub tensors: Vec<Tensor>,
    /// What the writer pads to.
    pub alignment: usize,
    /// All tensors' bytes, padded.
    pub data: Vec<u8>,
}

/// A metadata entry with its value as bytes.
#[derive(Clone)]
pub struct Entry {
    pub key: Vec<u8>,
    pub ty: u32,
    pub value: Vec<u8>,
}

/// A tensor's directory entry.
#[derive(Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    /// What the entry says, if not the number of `dims`.
    pub n_dims: Option<u32>,
    pub dims: Vec<u64>,
    pub ty: u32,
    pub offset: u64,
}

impl Raw {
    /// A file with nothing in it.
    pub fn empty() -> Raw {
        Raw {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            metadata_count: None,
            metadata: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        }
    }

    /// Takes a good file apart.
    pub fn of(bytes: &[u8]) -> Raw {
        let mut r = Reader { bytes, at: 0 };
        let mut raw = Raw::empty();
        raw.magic = r.take(4).try_into().unwrap();
        raw.version = r.u32();
        let (tensors, metadata) = (r.u64(), r.u64());
        for _ in 0..metadata {
            let key = r.string().to_vec();
            let ty = r.u32();
            let start = r.at;
            r.skip_value(ty);
            raw.metadata.push(Entry { key, ty, value: bytes[start..r.at].to_vec() });
        }
        for _ in 0..tensors {
            let name = r.string().to_vec();
            let dims = (0..r.u32()).map(|_| r.u64()).collect();
            let ty = r.u32();
            raw.tensors.push(Tensor { name, n_dims: None, dims, ty, offset: r.u64() });
        }
        raw.data = bytes[r.at.next_multiple_of(raw.alignment)..].to_vec();
        raw
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_and_bounds().0
    }

    /// The file, and every offset where one field ends and the next begins.
    pub fn bytes_and_bounds(&self) -> (Vec<u8>, Vec<usize>) {
        let mut out = self.magic.to_vec();
        let mut bounds = vec![0, 4];
        let mut put = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.extend(bytes);
            bounds.push(out.len());
        };
        put(&mut out, &self.version.to_le_bytes());
        put(&mut out, &self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        put(&mut out, &self.metadata_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for e in &self.metadata {
            put(&mut out, &(e.key.len() as u64).to_le_bytes());
            put(&mut out, &e.key);
            put(&mut out, &e.ty.to_le_bytes());
            put(&mut out, &e.value);
        }
        for t in &self.tensors {
            put(&mut out, &(t.name.len() as u64).to_le_bytes());
            put(&mut out, &t.name);
            put(&mut out, &t.n_dims.unwrap_or(t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| put(&mut out, &d.to_le_bytes()));
            put(&mut out, &t.ty.to_le_bytes());
            put(&mut out, &t.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        bounds.push(out.len());
        bounds.extend(self.tensors.iter().map(|t| (out.len() as u64).saturating_add(t.offset) as usize));
        out.extend(&self.data);
        (out, bounds)
    }

    /// Offset of the tensors' data.
    pub fn data_offset(&self) -> usize {
        self.bytes().len() - self.data.len()
    }

    /// The same file with one key set to something else (added if it is not there).
    pub fn with(&self, key: &str, ty: u32, value: Vec<u8>) -> Raw {
        let mut raw = self.clone();
        match raw.metadata.iter_mut().find(|e| e.key == key.as_bytes()) {
            Some(e) => (e.ty, e.value) = (ty, value),
            None => raw.metadata.push(Entry { key: key.into(), ty, value }),
        }
        raw
    }

    /// The same file without one key.
    pub fn without(&self, key: &str) -> Raw {
        let mut raw = self.clone();
        raw.metadata.retain(|e| e.key != key.as_bytes());
        raw
    }

    /// The same file with one tensor's entry changed.
    pub fn with_tensor(&self, i: usize, change: impl FnOnce(&mut Tensor)) -> Raw {
        let mut raw = self.clone();
        change(&mut raw.tensors[i]);
        raw
    }
}

/// A string as a value.
pub fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let s = s.as_ref();
    [&(s.len() as u64).to_le_bytes()[..], s].concat()
}

/// An array as a value: element type, count as claimed, elements as bytes.
pub fn array(ty: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

/// An array of strings as a value.
pub fn strings<S: AsRef<[u8]>>(v: &[S]) -> Vec<u8> {
    array(STRING, v.len() as u64, &v.iter().flat_map(string).collect::<Vec<u8>>())
}

/// Bytes of a scalar of this type.
pub fn width(ty: u32) -> usize {
    match ty {
        U8 | I8 | BOOL => 1,
        U16 | I16 => 2,
        U32 | I32 | F32 => 4,
        U64 | I64 | F64 => 8,
        other => panic!("type {other} is no scalar"),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        self.at += n;
        &self.bytes[self.at - n..self.at]
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }
    fn string(&mut self) -> &'a [u8] {
        let n = self.u64() as usize;
        self.take(n)
    }
    fn skip_value(&mut self, ty: u32) {
        match ty {
            STRING => drop(self.string()),
            ARRAY => {
                let (ty, n) = (self.u32(), self.u64());
                (0..n).for_each(|_| self.skip_value(ty));
            }
            scalar => drop(self.take(width(scalar))),
        }
    }
}
