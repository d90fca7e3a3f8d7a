//! What identifies a model to a memory file: keys and values of another model, or of the same one quantised differently,
//! would be noise.
//!
//! Reading every weight would make opening slow, so the hash covers the tensor directory (names, types, shapes), the
//! metadata that shapes the computation, the vocabulary, and samples of each tensor's bytes.

use crate::gguf::Gguf;
use crate::memory::Fingerprint;

/// Places of each tensor that are sampled, evenly spread, and the bytes at each.
const SAMPLES: usize = 4;
const SAMPLE_BYTES: usize = 64;

/// The fingerprint of a parsed model.
pub fn of(gguf: &Gguf, architecture: &str) -> Fingerprint {
    let mut hash = Hash256::new();
    let prefix = format!("{architecture}.");
    for (key, value) in gguf.metadata() {
        let is_vocabulary = ["tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"].contains(&key.as_str());
        if key.starts_with(&prefix) || is_vocabulary {
            hash.add(key.as_bytes());
            match value.as_array() {
                Some(array) => hash.add(array.bytes()),
                None => hash.add(format!("{value:?}").as_bytes()),
            }
        }
    }
    for t in gguf.tensors() {
        hash.add(t.name.as_bytes());
        hash.add(&t.ty.id().to_le_bytes());
        t.dims.iter().for_each(|d| hash.add(&d.to_le_bytes()));
        let bytes = gguf.bytes(t);
        for i in 0..SAMPLES {
            let at = bytes.len() / SAMPLES * i;
            hash.add(&bytes[at..bytes.len().min(at + SAMPLE_BYTES)]);
        }
    }
    Fingerprint { architecture: architecture.into(), hash: hash.finish() }
}

/// Four independent 64-bit multiply-and-rotate streams: enough to tell models apart, not a defence against forgery.
struct Hash256([u64; 4]);

const MULTIPLIERS: [u64; 4] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x27d4_eb2f_1656_67c5];

impl Hash256 {
    fn new() -> Hash256 {
        Hash256(MULTIPLIERS)
    }

    /// Adds a field, its length first, so that no two sequences of fields read the same.
    fn add(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    fn word(&mut self, w: u64) {
        for (lane, m) in self.0.iter_mut().zip(MULTIPLIERS) {
            *lane = (*lane ^ w).wrapping_mul(m).rotate_left(29) ^ (*lane >> 32);
        }
    }

    fn finish(mut self) -> [u8; 32] {
        for _ in 0..4 {
            let mixed = self.0.iter().fold(0u64, |a, l| a.rotate_left(17) ^ l);
            self.word(mixed);
        }
        let mut out = [0; 32];
        for (o, lane) in out.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *o = lane.to_le_bytes();
        }
        out
    }
}
