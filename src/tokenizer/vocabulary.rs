//! The tokens of a model: their texts as in the file, their kinds, their scores, and the way back from text to id.
//!
//! Invariants: ids are `0..len`, no text stands twice, every array has one entry for each token.

use super::table::{Hasher, IndexTable};
use crate::error::{Error, Result, quoted, try_reserve, try_with_capacity};
use crate::gguf::{Array, Gguf, ValueType, keys};

const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";

/// Special tokens are looked for at every byte of a text: their length bounds what that costs.
const SPECIAL_BYTES_MAX: usize = 1024;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for text the vocabulary has no token for.
    Unknown,
    /// Structure, not text: beginning of sequence, end of turn ... Matched in text only on request.
    Control,
    /// Text that is matched before everything else.
    UserDefined,
    /// A hole in the vocabulary.
    Unused,
    /// One byte (`<0x0A>`).
    Byte,
}

/// What is known of a token, as bits: a token may be marked control on top of what the file says.
pub(super) mod attr {
    pub const NORMAL: u8 = 1;
    pub const UNKNOWN: u8 = 2;
    pub const CONTROL: u8 = 4;
    pub const USER_DEFINED: u8 = 8;
    pub const UNUSED: u8 = 16;
    pub const BYTE: u8 = 32;
    /// White space before the token goes when the token is matched.
    pub const STRIP_LEFT: u8 = 64;
    /// The same for white space behind it.
    pub const STRIP_RIGHT: u8 = 128;
}

/// All tokens of a model.
pub(super) struct Vocabulary {
    texts: Vec<u8>,
    /// Where each token's text ends in `texts`.
    ends: Vec<u32>,
    attrs: Vec<u8>,
    /// Empty where the file has none.
    scores: Vec<f32>,
    ids: IndexTable,
    hasher: Hasher,
    text_bytes_max: usize,
}

impl Vocabulary {
    /// Bytes that it takes.
    pub fn heap_bytes(&self) -> usize {
        self.texts.capacity() + 4 * (self.ends.capacity() + self.scores.capacity()) + self.attrs.capacity() + self.ids.heap_bytes()
    }

    /// Reads `tokenizer.ggml.{tokens,token_type,scores}`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Vocabulary> {
        let tokens = string_array(gguf, keys::TOKENIZER_TOKENS)?;
        let tokens = gguf.required(keys::TOKENIZER_TOKENS, tokens)?;
        if tokens.len == 0 {
            return Err(Error::model(keys::TOKENIZER_TOKENS, "at least one token", "none"));
        }
        let mut texts = try_with_capacity("the vocabulary", tokens.bytes().len())?;
        let mut ends = try_with_capacity("the vocabulary", tokens.len)?;
        let mut text_bytes_max = 0;
        for (id, text) in tokens.strings().enumerate() {
            let start = texts.len();
            match text {
                // The name llama.cpp gives such a token: it must have one that text does not contain by accident.
                [] => texts.extend(format!("[EMPTY_{id}]").as_bytes()),
                _ => texts.extend_from_slice(text),
            }
            text_bytes_max = text_bytes_max.max(texts.len() - start);
            let end = u32::try_from(texts.len()).map_err(|_| Error::model(keys::TOKENIZER_TOKENS, "less than 4 GiB of text", "more"))?;
            ends.push(end);
        }
        if u32::try_from(ends.len()).is_err() || ends.len() != tokens.len {
            return Err(Error::model(keys::TOKENIZER_TOKENS, "less than 2^32 tokens", tokens.len));
        }

        let mut attrs = try_with_capacity("the vocabulary", ends.len())?;
        match per_token(gguf, TOKEN_TYPES, ends.len(), is_integer, "integers")? {
            None => attrs.resize(ends.len(), attr::NORMAL),
            Some(types) => attrs.extend(types.integers().map(attr_of_type)),
        }
        let mut scores: Vec<f32> = Vec::new();
        if let Some(given) = per_token(gguf, SCORES, ends.len(), |ty| is_integer(ty) || ty == ValueType::F32, "numbers")? {
            try_reserve(&mut scores, "the vocabulary", ends.len())?;
            // `+ 0.0` makes a negative zero positive: they are to compare equal.
            scores.extend(given.numbers().map(|s| s as f32 + 0.0));
        }
        if let Some(id) = scores.iter().position(|s| s.is_nan()) {
            return Err(Error::model(SCORES, "numbers", format!("NaN for token {id}")));
        }

        let ids = IndexTable::with_capacity(0)?;
        let mut vocabulary = Vocabulary { texts, ends, attrs, scores, ids, hasher: Hasher::new(), text_bytes_max };
        let special = attr::CONTROL | attr::USER_DEFINED | attr::UNKNOWN;
        let too_long = |id: &u32| vocabulary.attr(*id) & special != 0 && vocabulary.text(*id).len() > SPECIAL_BYTES_MAX;
        if let Some(id) = vocabulary.ids().find(too_long) {
            let expected = format!("special tokens of at most {SPECIAL_BYTES_MAX} bytes");
            return Err(Error::model(keys::TOKENIZER_TOKENS, expected, format!("{} in token {id}", vocabulary.text(id).len())));
        }
        vocabulary.index()?;
        Ok(vocabulary)
    }

    fn index(&mut self) -> Result<()> {
        let mut ids = IndexTable::with_capacity(self.len())?;
        for id in 0..self.len() as u32 {
            let text = self.text(id);
            if let Some(first) = ids.insert(self.hasher.bytes(text), id, |other| self.text(other) == text) {
                let found = format!("{} as token {first} and as token {id}", quoted(&String::from_utf8_lossy(text)));
                return Err(Error::model(keys::TOKENIZER_TOKENS, "each token once", found));
            }
        }
        self.ids = ids;
        Ok(())
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text of a token as in the file; empty for an id that is none.
    #[inline]
    pub fn text(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends.get(id - 1).copied().unwrap_or(0) };
        let end = self.ends.get(id).copied().unwrap_or(start);
        &self.texts[start as usize..end as usize]
    }

    /// The token with this text.
    #[inline]
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.text_bytes_max {
            return None;
        }
        self.ids.find(self.hasher.bytes(text), |id| self.text(id) == text)
    }

    /// The bits of a token; none for an id that is none.
    pub fn attr(&self, id: u32) -> u8 {
        self.attrs.get(id as usize).copied().unwrap_or(0)
    }

    /// Sets and clears bits of a token.
    pub fn set_attr(&mut self, id: u32, set: u8, clear: u8) {
        if let Some(a) = self.attrs.get_mut(id as usize) {
            *a = *a & !clear | set;
        }
    }

    /// The score of a token, 0 where the file has none.
    pub fn score(&self, id: u32) -> f32 {
        self.scores.get(id as usize).copied().unwrap_or(0.0)
    }

    /// All ids.
    pub fn ids(&self) -> std::ops::Range<u32> {
        0..self.len() as u32
    }
}

fn attr_of_type(ty: i64) -> u8 {
    match ty {
        1 => attr::NORMAL,
        2 => attr::UNKNOWN,
        3 => attr::CONTROL,
        4 => attr::USER_DEFINED,
        5 => attr::UNUSED,
        6 => attr::BYTE,
        _ => 0,
    }
}

fn is_integer(ty: ValueType) -> bool {
    use ValueType::*;
    matches!(ty, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// An array of strings, if the key is there.
pub(super) fn string_array<'a>(gguf: &'a Gguf, key: &str) -> Result<Option<&'a Array>> {
    match gguf.array(key)? {
        Some(a) if a.ty != ValueType::String => Err(Error::model(key, "an array of strings", format!("{a:?}"))),
        a => Ok(a),
    }
}

/// An array with one element for each token, if the key is there.
fn per_token<'a>(gguf: &'a Gguf, key: &str, tokens: usize, good: fn(ValueType) -> bool, what: &str) -> Result<Option<&'a Array>> {
    match gguf.array(key)? {
        Some(a) if !good(a.ty) => Err(Error::model(key, format!("an array of {what}"), format!("{a:?}"))),
        Some(a) if a.len != tokens => Err(Error::model(key, format!("one element for each of {tokens} tokens"), a.len)),
        a => Ok(a),
    }
}
