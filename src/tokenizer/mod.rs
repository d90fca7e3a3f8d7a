//! Text to token ids and back, from GGUF metadata alone.
//!
//! [`Tokenizer::from_gguf`] reads the vocabulary and picks the encoder that `tokenizer.ggml.model` names: byte-level BPE
//! (`gpt2`, with the splitter of `tokenizer.ggml.pre`), SentencePiece-style BPE (`llama`), or BPE over plain text (`gemma4`).
//! Special tokens are cut out of the text first (`special.rs`), the rest is encoded stretch by stretch.
//!
//! Invariants: encoding accepts any bytes and never fails; ids that come out are below [`Tokenizer::vocab_len`]; for a
//! byte-level vocabulary that has all 256 bytes, decoding an encoding gives the text back, byte for byte.

mod bpe;
#[cfg(feature = "chat")]
pub mod chat;
mod pretokenize;
mod roles;
mod special;
mod spm;
mod stream;
mod table;
mod unicode;
mod unicode_tables;
mod vocabulary;

pub use stream::Utf8Stream;
pub use vocabulary::TokenKind;

use crate::error::{Error, Result, quoted};
use crate::gguf::{Gguf, keys};
use bpe::Bpe;
use pretokenize::PreTokenizer;
use roles::Roles;
use special::{Fragment, Specials};
use spm::Spm;
use std::borrow::Cow;
use vocabulary::{Vocabulary, attr};

/// Longest stretch of text that is encoded as one; positions within it are 32-bit.
const STRETCH_BYTES_MAX: usize = 1 << 30;

/// What to do other than the file says.
#[derive(Clone, Debug, Default)]
pub struct TokenizerOptions {
    /// The pre-tokenizer of a byte-level BPE, instead of `tokenizer.ggml.pre`.
    pub pre: Option<String>,
}

/// A vocabulary and its encoder. Immutable.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    roles: Roles,
    specials: Specials,
    encoder: Encoder,
    add_bos: bool,
    add_eos: bool,
    add_sep: bool,
    add_space_prefix: bool,
}

enum Encoder {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

impl Tokenizer {
    /// Bytes that the vocabulary and the encoder's tables take, about.
    pub fn heap_bytes(&self) -> usize {
        let encoder = match &self.encoder {
            Encoder::Bpe(bpe) => bpe.heap_bytes(),
            Encoder::Spm(_) => 0,
        };
        self.vocabulary.heap_bytes() + encoder
    }

    /// Reads the tokenizer of a model. Errors name the metadata key that is missing, of the wrong kind, or names a tokenizer
    /// that is not known.
    pub fn from_gguf(gguf: &Gguf, options: &TokenizerOptions) -> Result<Tokenizer> {
        let model = gguf.required(keys::TOKENIZER_MODEL, gguf.str(keys::TOKENIZER_MODEL)?)?;
        let pre = match model {
            "gpt2" => Some(pre_tokenizer(gguf, options)?),
            "gemma4" => Some(PreTokenizer::newlines()),
            "llama" => None,
            _ => {
                let what = format!(
                    "{} {}: only gpt2 (byte-level BPE), llama (SentencePiece) and gemma4 are",
                    keys::TOKENIZER_MODEL,
                    quoted(model)
                );
                return Err(Error::Unsupported(what));
            }
        };
        let mut vocabulary = Vocabulary::from_gguf(gguf)?;
        let roles = Roles::from_gguf(gguf, &mut vocabulary, pre.is_none())?;
        set_strips(gguf, &mut vocabulary)?;
        let flag = |name: &str, default| gguf.bool(&format!("tokenizer.ggml.{name}")).map(|v| v.unwrap_or(default));
        let (add_bos, add_space_prefix) = (pre.is_none_or(|pre| pre.add_bos), pre.is_none());
        let encoder = match pre {
            Some(pre) => Encoder::Bpe(Box::new(Bpe::from_gguf(gguf, &vocabulary, pre, model == "gpt2")?)),
            None => Encoder::Spm(Box::new(Spm::new(&vocabulary, roles.unknown))),
        };
        Ok(Tokenizer {
            add_bos: flag("add_bos_token", add_bos)? || model == "gemma4",
            add_eos: flag("add_eos_token", false)?,
            add_sep: flag("add_sep_token", false)?,
            add_space_prefix: flag("add_space_prefix", add_space_prefix)? && add_space_prefix,
            specials: Specials::new(&vocabulary),
            vocabulary,
            roles,
            encoder,
        })
    }

    /// Bytes that making ids of a text of so many bytes takes at most, about, the ids included.
    pub fn encoding_bytes(&self, text: usize) -> usize {
        let stretch = match &self.encoder {
            Encoder::Bpe(_) => 0,
            Encoder::Spm(_) => text.min(STRETCH_BYTES_MAX).saturating_mul(Spm::BYTES_EACH),
        };
        text.saturating_mul(size_of::<u32>()).saturating_add(stretch)
    }

    /// The ids of `text`. With `add_special`, BOS and EOS stand around them as the file asks for (a BOS the text itself begins
    /// with stays, so there are two then); with `parse_special`, control tokens in the text become their ids.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        self.encode_bytes(text.as_bytes(), add_special, parse_special)
    }

    /// The same for bytes that need not be UTF-8.
    pub fn encode_bytes(&self, text: &[u8], add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.roles.bos.filter(|_| add_special && self.add_bos));
        let mut after_special = true;
        let mut escaped = Vec::new();
        for fragment in self.specials.partition(&self.vocabulary, text, parse_special) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Fragment::Text(range) => {
                    for stretch in text[range].chunks(STRETCH_BYTES_MAX) {
                        self.encode_stretch(stretch, after_special, &mut escaped, &mut ids);
                        after_special = false;
                    }
                }
            }
        }
        if let Some(bos) = self.roles.bos
            && add_special
            && self.add_bos
            && ids.get(1) == Some(&bos)
        {
            log::warn!("the text begins with BOS and the model adds another: the prompt begins with two");
        }
        ids.extend(self.roles.eos.filter(|_| add_special && self.add_eos));
        ids
    }

    fn encode_stretch(&self, text: &[u8], after_special: bool, escaped: &mut Vec<u8>, ids: &mut Vec<u32>) {
        match &self.encoder {
            Encoder::Bpe(bpe) if bpe.byte_level => bpe.encode(&self.vocabulary, text, ids),
            encoder => {
                escaped.clear();
                if self.add_space_prefix && after_special {
                    escaped.extend_from_slice(spm::SPACE);
                }
                spm::escape_spaces(text, escaped);
                match encoder {
                    Encoder::Bpe(bpe) => bpe.encode(&self.vocabulary, escaped, ids),
                    Encoder::Spm(spm) => spm.encode(&self.vocabulary, escaped, ids),
                }
            }
        }
    }

    /// Bytes that [`Tokenizer::decode`] takes at most: a token's text is never shorter than what it stands for.
    pub fn decoding_bytes(&self, ids: &[u32]) -> usize {
        ids.iter().filter(|id| (**id as usize) < self.vocabulary.len()).map(|id| self.vocabulary.text(*id).len()).sum()
    }

    /// The bytes of a sequence; control tokens and the unknown token are left out unless `special`. Where encoding prefixes a
    /// space, one space at the very beginning is taken away again. Spaces before punctuation stay as they are.
    pub fn decode(&self, ids: &[u32], special: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.decoding_bytes(ids));
        for (i, id) in ids.iter().enumerate() {
            let piece = self.piece(*id, special).unwrap_or_default();
            let prefix: &[u8] = if i == 0 && self.add_space_prefix { b" " } else { b"" };
            out.extend_from_slice(piece.strip_prefix(prefix).unwrap_or(&piece));
        }
        out
    }

    /// What one token adds to the text, which may be a part of a character; nothing for control tokens. `None` if `id` is no
    /// token.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.piece(id, false)
    }

    fn piece(&self, id: u32, special: bool) -> Option<Cow<'_, [u8]>> {
        if id as usize >= self.vocabulary.len() {
            return None;
        }
        let (text, attrs) = (self.vocabulary.text(id), self.vocabulary.attr(id));
        let byte_level = matches!(&self.encoder, Encoder::Bpe(bpe) if bpe.byte_level);
        Some(if attrs & (attr::CONTROL | attr::UNKNOWN) != 0 {
            if special { text.into() } else { Cow::default() }
        } else if attrs & attr::USER_DEFINED != 0 {
            text.into()
        } else if attrs & attr::NORMAL != 0 && byte_level {
            // A text out of its alphabet stands for itself.
            bpe::bytes_of_letters(text).map_or(text.into(), Cow::from)
        } else if attrs & attr::NORMAL != 0 {
            spm::unescape_spaces(text).into()
        } else if attrs & attr::BYTE != 0 {
            byte_of(text).map_or(text.into(), |b| vec![b].into())
        } else {
            Cow::default()
        })
    }

    /// The text of a token as it stands in the file; `None` if `id` is no token or its text is not UTF-8.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        if id as usize >= self.vocabulary.len() {
            return None;
        }
        std::str::from_utf8(self.vocabulary.text(id)).ok()
    }

    /// The token with this text, as it stands in the file.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocabulary.find(text.as_bytes())
    }

    /// What a token is for; `Unused` for an id that is none.
    pub fn token_kind(&self, id: u32) -> TokenKind {
        let attrs = self.vocabulary.attr(id);
        let kinds = [
            (attr::CONTROL, TokenKind::Control),
            (attr::UNKNOWN, TokenKind::Unknown),
            (attr::USER_DEFINED, TokenKind::UserDefined),
            (attr::BYTE, TokenKind::Byte),
            (attr::NORMAL, TokenKind::Normal),
        ];
        kinds.into_iter().find(|(bit, _)| attrs & bit != 0).map_or(TokenKind::Unused, |(_, kind)| kind)
    }

    /// Number of tokens.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }

    /// Whether generation stops behind this token: EOS, end of turn, end of message, and what models use for these.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.roles.end_of_generation.contains(&id)
    }

    /// All tokens that generation stops behind, in rising order.
    pub fn end_of_generation(&self) -> impl Iterator<Item = u32> + '_ {
        self.roles.end_of_generation.iter().copied()
    }

    /// Whether encoding puts a space before the text, which its first token then has and the text has not.
    pub fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// End of turn.
    pub fn eot(&self) -> Option<u32> {
        self.roles.eot
    }

    /// End of message: the model waits for the answer of a tool.
    pub fn eom(&self) -> Option<u32> {
        self.roles.eom
    }

    /// Stands for what has no token.
    pub fn unk(&self) -> Option<u32> {
        self.roles.unknown
    }

    /// Separator.
    pub fn sep(&self) -> Option<u32> {
        self.roles.separator
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.roles.padding
    }

    /// A masked token.
    pub fn mask(&self) -> Option<u32> {
        self.roles.mask
    }

    /// Fill in the middle: what stands before the prefix, the suffix and the middle.
    pub fn fill_in_the_middle(&self) -> Option<[u32; 3]> {
        Some([self.roles.fim_prefix?, self.roles.fim_suffix?, self.roles.fim_middle?])
    }

    /// Whether `encode` with `add_special` puts BOS first.
    pub fn add_bos(&self) -> bool {
        self.add_bos && self.roles.bos.is_some()
    }

    /// Whether `encode` with `add_special` puts EOS last.
    pub fn add_eos(&self) -> bool {
        self.add_eos && self.roles.eos.is_some()
    }

    /// Whether the file wants a separator between two texts.
    pub fn add_sep(&self) -> bool {
        self.add_sep
    }

    /// Whether encoding puts a space before the text.
    pub fn add_space_prefix(&self) -> bool {
        self.add_space_prefix
    }
}

fn pre_tokenizer(gguf: &Gguf, options: &TokenizerOptions) -> Result<PreTokenizer> {
    let name = match &options.pre {
        Some(name) => name,
        None => match gguf.str(keys::TOKENIZER_PRE)? {
            Some(name) if !name.is_empty() => name,
            _ => {
                log::warn!("no {}: the default pre-tokenizer may not be the one the model was trained with", keys::TOKENIZER_PRE);
                "default"
            }
        },
    };
    PreTokenizer::by_name(name).ok_or_else(|| {
        let key = keys::TOKENIZER_PRE;
        Error::Unsupported(format!("{key} {}; if it splits text as a known one does, name that one to override it", quoted(name)))
    })
}

/// White space around some tokens, which files do not speak of: known by the names of the models.
fn set_strips(gguf: &Gguf, vocabulary: &mut Vocabulary) -> Result<()> {
    let lower = |key| gguf.str(key).map(|s| s.unwrap_or("").to_ascii_lowercase());
    let (name, pre, architecture) = (lower(keys::NAME)?, lower(keys::TOKENIZER_PRE)?, lower(keys::ARCHITECTURE)?);
    let contains = |s: &str, parts: &[&str]| parts.iter().any(|part| s.contains(part));
    let mut set = |text: &str, set, clear| {
        if let Some(id) = vocabulary.find(text.as_bytes()) {
            vocabulary.set_attr(id, set, clear);
        }
    };
    if contains(&pre, &["jina-v2-de", "jina-v2-es", "jina-v2-code"]) || contains(&architecture, &["nomic-bert-moe", "jina-bert-v3"]) {
        set("<mask>", attr::STRIP_LEFT, 0);
    } else if contains(&name, &["phi-3", "phi3"]) {
        let special = attr::CONTROL | attr::USER_DEFINED | attr::UNKNOWN;
        for id in vocabulary.ids().filter(|id| vocabulary.attr(*id) & special != 0).collect::<Vec<_>>() {
            vocabulary.set_attr(id, attr::STRIP_RIGHT, 0);
        }
        for text in ["<unk>", "<s>", "<|endoftext|>"] {
            if let Some(id) = vocabulary.find(text.as_bytes()) {
                vocabulary.set_attr(id, 0, attr::STRIP_RIGHT);
            }
        }
    } else if contains(&name, &["modern-bert"]) {
        set("[MASK]", attr::STRIP_LEFT, 0);
    }
    Ok(())
}

/// The byte of a text such as `<0x0A>`.
fn byte_of(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    u8::from_str_radix(std::str::from_utf8(digits).ok().filter(|d| d.len() == 2)?, 16).ok()
}
