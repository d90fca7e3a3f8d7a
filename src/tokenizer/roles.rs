//! Which token plays which part: beginning and end of sequence, end of turn, padding, the parts of fill-in-the-middle.
//!
//! Files name some by id; others are known by their texts alone, and many files call those normal tokens although they are
//! control tokens. Reference: the GGUF specification's tokenizer keys, and llama.cpp for the texts.

use super::vocabulary::{Vocabulary, attr};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use std::collections::BTreeSet;

const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
const END_OF_MESSAGE: &[&str] = &["<|eom_id|>"];
const FIM_PREFIX: &[&str] =
    &["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>"];
const FIM_SUFFIX: &[&str] =
    &["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>"];
const FIM_MIDDLE: &[&str] =
    &["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"];
const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REPOSITORY: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_SEPARATOR: &[&str] = &["<|file_sep|>"];
/// Texts that end a generation beside those of [`END_OF_TURN`] and [`END_OF_MESSAGE`].
const END_OF_GENERATION: &[&str] =
    &["<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "[EOS]", "<eos>", "<turn|>", "<|tool_response>", "[e~["];

/// The ids of the tokens that have a part.
#[derive(Default)]
pub(super) struct Roles {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub separator: Option<u32>,
    pub padding: Option<u32>,
    pub mask: Option<u32>,
    pub fim_prefix: Option<u32>,
    pub fim_suffix: Option<u32>,
    pub fim_middle: Option<u32>,
    pub end_of_generation: BTreeSet<u32>,
}

impl Roles {
    /// Reads the ids from the file and finds the rest by text, marking those tokens as control tokens in `vocabulary`.
    /// `sentencepiece` vocabularies have customary ids for BOS, EOS and unknown.
    pub fn from_gguf(gguf: &Gguf, vocabulary: &mut Vocabulary, sentencepiece: bool) -> Result<Roles> {
        let len = vocabulary.len();
        let id = |name: &str| special_id(gguf, name, len);
        let customary = |id: u32| Some(id).filter(|id| sentencepiece && (*id as usize) < len);
        let mut roles = Roles {
            bos: required_range(id("bos")?)?.or(customary(1)),
            eos: required_range(id("eos")?)?.or(customary(2)),
            eot: required_range(id("eot")?)?,
            eom: required_range(id("eom")?)?,
            unknown: optional_range(id("unknown")?).or(customary(0)),
            separator: optional_range(id("seperator")?),
            padding: optional_range(id("padding")?),
            mask: optional_range(id("mask")?),
            fim_prefix: optional_range(id("fim_pre")?).or(optional_range(id("prefix")?)),
            fim_suffix: optional_range(id("fim_suf")?).or(optional_range(id("suffix")?)),
            fim_middle: optional_range(id("fim_mid")?).or(optional_range(id("middle")?)),
            end_of_generation: BTreeSet::new(),
        };
        let mut fim_ends = [optional_range(id("fim_pad")?), optional_range(id("fim_rep")?), optional_range(id("fim_sep")?)];
        let [fim_pad, fim_repository, fim_separator] = &mut fim_ends;
        for (role, texts) in [
            (&mut roles.eot, END_OF_TURN),
            (&mut roles.eom, END_OF_MESSAGE),
            (&mut roles.fim_prefix, FIM_PREFIX),
            (&mut roles.fim_suffix, FIM_SUFFIX),
            (&mut roles.fim_middle, FIM_MIDDLE),
            (fim_pad, FIM_PAD),
            (fim_repository, FIM_REPOSITORY),
            (fim_separator, FIM_SEPARATOR),
        ] {
            if role.is_none() {
                *role = texts.iter().find_map(|text| vocabulary.find(text.as_bytes()));
                role.iter().for_each(|id| vocabulary.set_attr(*id, attr::CONTROL, 0));
            }
        }
        roles.end_of_generation.extend(fim_ends.into_iter().flatten());
        for text in END_OF_TURN.iter().chain(END_OF_MESSAGE).chain(END_OF_GENERATION) {
            if let Some(id) = vocabulary.find(text.as_bytes()) {
                vocabulary.set_attr(id, attr::CONTROL, 0);
                roles.end_of_generation.insert(id);
            }
        }
        // Elsewhere `</s>` may be a tag of HTML.
        roles.end_of_generation.extend(vocabulary.find(b"</s>").filter(|id| vocabulary.attr(*id) & attr::CONTROL != 0));
        roles.end_of_generation.extend([roles.eos, roles.eot, roles.eom].into_iter().flatten());
        roles.correct_channels(vocabulary);
        Ok(roles)
    }

    /// Models that answer in channels: the tokens around a channel are text to be seen, and `<|end|>` ends a channel only.
    fn correct_channels(&mut self, vocabulary: &mut Vocabulary) {
        const USER_DEFINED_ONLY: (u8, u8) = (attr::USER_DEFINED, !attr::USER_DEFINED);
        for text in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
            if let Some(id) = vocabulary.find(text.as_bytes()) {
                vocabulary.set_attr(id, USER_DEFINED_ONLY.0, USER_DEFINED_ONLY.1);
            }
        }
        let has = |text: &str| vocabulary.find(text.as_bytes()).is_some_and(|id| self.end_of_generation.contains(&id));
        let call = has("<|call|>") || has("<|calls|>");
        let channels = call && (has("<|return|>") || has("<|flush|>"));
        if let Some(end) = vocabulary.find(b"<|end|>").filter(|_| channels) {
            self.end_of_generation.remove(&end);
            vocabulary.set_attr(end, USER_DEFINED_ONLY.0, USER_DEFINED_ONLY.1);
        }
    }
}

/// An id from the file, and whether it names a token.
enum SpecialId {
    Absent,
    Good(u32),
    OutOfRange(Error),
}

fn special_id(gguf: &Gguf, name: &str, len: usize) -> Result<SpecialId> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(value) = gguf.value(&key) else { return Ok(SpecialId::Absent) };
    let Some(id) = value.as_i64() else { return Err(Error::model(key, "an integer", format!("{value:?}"))) };
    // -1 is how some files say that there is none.
    if id == -1 || id == i64::from(u32::MAX) {
        return Ok(SpecialId::Absent);
    }
    Ok(match u32::try_from(id).ok().filter(|id| (*id as usize) < len) {
        Some(id) => SpecialId::Good(id),
        None => SpecialId::OutOfRange(Error::model(key, format!("the id of one of {len} tokens"), id)),
    })
}

fn required_range(id: SpecialId) -> Result<Option<u32>> {
    match id {
        SpecialId::Absent => Ok(None),
        SpecialId::Good(id) => Ok(Some(id)),
        SpecialId::OutOfRange(e) => Err(e),
    }
}

/// For parts that text does not depend on: files with a padding token beyond the vocabulary are in use.
fn optional_range(id: SpecialId) -> Option<u32> {
    match id {
        SpecialId::Absent => None,
        SpecialId::Good(id) => Some(id),
        SpecialId::OutOfRange(e) => {
            log::warn!("ignored: {e}");
            None
        }
    }
}
