//! What the tokenizer tests share: random texts, small vocabularies as GGUF, and the `tokenizers` crate over the same ones.

use loci::bytes::Map;
use loci::gguf::{Gguf, Writer};
use serde_json::{Map as Object, Value, json};
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer as Oracle;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// A character, often from where scripts are dense.
    pub fn char(&mut self) -> char {
        loop {
            let c = match self.below(4) {
                0 => self.below(0x80),
                1 => self.below(0x600),
                2 => self.below(0x1_0000),
                _ => self.below(0x3_2000),
            };
            if let Some(c) = char::from_u32(c as u32) {
                return c;
            }
        }
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The file as parsed.
pub fn gguf_of(w: &Writer) -> Gguf {
    Gguf::parse(Arc::new(Map::owned(w.to_bytes().unwrap()))).unwrap()
}

/// A model that `make test` fetches.
pub fn model(name: &str) -> Gguf {
    let dir = std::env::var_os("LOCI_MODELS_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models"), Into::into);
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run `make test`, which fetches it", path.display());
    Gguf::open(&path).unwrap()
}

pub fn strings(gguf: &Gguf, key: &str) -> Vec<String> {
    gguf.array(key).unwrap().unwrap().strings().map(|s| String::from_utf8(s.to_vec()).unwrap()).collect()
}

/// GPT-2's character for each byte, from its description: printable ones stand for themselves, the others follow from U+0100.
pub fn byte_letters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|b| {
        let c = char::from(b as u8);
        if c.is_ascii_graphic() || (b > 0xA0 && b != 0xAD) {
            c
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap()
        }
    })
}

/// A byte-level BPE vocabulary of normal tokens.
pub fn byte_level(tokens: &[String], merges: &[(String, String)], pre: &str) -> Writer {
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", pre).strings("tokenizer.ggml.tokens", tokens);
    w.strings("tokenizer.ggml.merges", &merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>());
    w.i32s("tokenizer.ggml.token_type", &vec![1; tokens.len()]);
    w
}

fn oracle(
    tokens: &[String],
    merges: &[(String, String)],
    normalizer: Value,
    pre: Value,
    ignore_merges: bool,
    byte_fallback: bool,
) -> Oracle {
    let vocab: Object<String, Value> = tokens.iter().zip(0u32..).map(|(t, id)| (t.clone(), id.into())).collect();
    let config = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre,
        "post_processor": null, "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": byte_fallback, "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
        },
    });
    Oracle::from_bytes(serde_json::to_vec(&config).unwrap()).unwrap()
}

/// The crate's BPE whose pre-tokenizer ends with the byte-level alphabet.
pub fn crate_bpe(tokens: &[String], merges: &[(String, String)], pre: Value, ignore_merges: bool) -> Oracle {
    oracle(tokens, merges, Value::Null, pre, ignore_merges, false)
}

/// The crate's BPE over plain text, with `<0xXX>` for what has no token.
pub fn crate_plain_bpe(tokens: &[String], merges: &[(String, String)], normalizer: Value, pre: Value) -> Oracle {
    oracle(tokens, merges, normalizer, pre, false, true)
}

pub fn crate_ids(oracle: &Oracle, text: &str) -> Vec<u32> {
    oracle.encode(text, false).unwrap().get_ids().to_vec()
}
