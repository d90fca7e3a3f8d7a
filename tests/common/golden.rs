//! Golden data: little-endian arrays in one `arrays.bin`, and an `index.json` that gives element type, shape and offset of each.
//! `tests/data/fot/README.md` says where they come from.

use half::f16;
use loci::gguf::{Gguf, Writer};
use std::path::PathBuf;

/// One directory of golden arrays.
pub struct Golden {
    dir: PathBuf,
    index: serde_json::Value,
    bytes: Vec<u8>,
}

impl Golden {
    /// The directory `tests/data/NAME`.
    pub fn open(name: &str) -> Golden {
        let dir = super::data(name);
        let text = std::fs::read_to_string(dir.join("index.json")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let bytes = std::fs::read(dir.join("arrays.bin")).expect("arrays.bin");
        Golden { index: serde_json::from_str(&text).expect("index.json"), dir, bytes }
    }

    /// A file of the directory, for example a model.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Names of all arrays.
    pub fn names(&self) -> Vec<&str> {
        self.index["arrays"].as_object().expect("arrays").keys().map(String::as_str).collect()
    }

    fn raw(&self, name: &str) -> (&[u8], &str, Vec<usize>) {
        let entry = self.index["arrays"].get(name).unwrap_or_else(|| panic!("no array {name} in {}", self.dir.display()));
        let shape: Vec<usize> = entry["shape"].as_array().expect("shape").iter().map(|d| d.as_u64().expect("dim") as usize).collect();
        let dtype = entry["dtype"].as_str().expect("dtype");
        let each = match dtype {
            "f16" | "u16" => 2,
            "f32" => 4,
            "i64" => 8,
            other => panic!("{name} has dtype {other}"),
        };
        let offset = entry["offset"].as_u64().expect("offset") as usize;
        (&self.bytes[offset..offset + each * shape.iter().product::<usize>()], dtype, shape)
    }

    /// Floats (stored as f32, or as f16 where the comparison is coarser than that) and their shape.
    pub fn f32(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let (bytes, dtype, shape) = self.raw(name);
        let values = match dtype {
            "f32" => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            "f16" => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            other => panic!("{name} holds {other}, not floats"),
        };
        (values, shape)
    }

    /// 16-bit patterns (bf16 of memory entries) and their shape.
    pub fn u16(&self, name: &str) -> (Vec<u16>, Vec<usize>) {
        let (bytes, dtype, shape) = self.raw(name);
        assert_eq!(dtype, "u16", "{name}");
        (bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect(), shape)
    }

    /// Integers and their shape.
    pub fn i64(&self, name: &str) -> (Vec<i64>, Vec<usize>) {
        let (bytes, dtype, shape) = self.raw(name);
        assert_eq!(dtype, "i64", "{name}");
        (bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(), shape)
    }

    /// Token ids.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.i64(name).0.into_iter().map(|v| v.try_into().expect("a token id")).collect()
    }

    /// A single integer.
    pub fn int(&self, name: &str) -> i64 {
        self.i64(name).0[0]
    }
}

/// Copies `source` without the keys that start with one of `dropped`, with whatever `add` adds.
pub fn rewrite(source: &Gguf, dropped: &[&str], add: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new();
    for (key, value) in source.metadata() {
        if !dropped.iter().any(|d| key.starts_with(d)) {
            writer.copy(key, value);
        }
    }
    add(&mut writer);
    for t in source.tensors() {
        writer.tensor(&t.name, t.ty, &t.dims, source.bytes(t).to_vec());
    }
    writer.to_bytes().expect("a file that was readable")
}

/// `fot_a` as the ordinary llama of the `pi4` vectors: linear RoPE scaling by 4, no memory layers, the same weights.
pub fn fot_a_pi4(fot_a: &Gguf) -> Vec<u8> {
    rewrite(fot_a, &["llama.fot.", "llama.context_length"], |w| {
        w.u32("llama.context_length", 256).str("llama.rope.scaling.type", "linear");
        w.f32("llama.rope.scaling.factor", 4.0).u32("llama.rope.scaling.original_context_length", 64);
    })
}
