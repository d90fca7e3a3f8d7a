//! A model: a row of differences, its hyperparameters, its weights as views of the map, and the forward pass.
//!
//! Invariant: after [`Model::open`] has succeeded, a forward pass cannot fail on the model's account: metadata, tensor
//! shapes, types and the vocabulary were all checked at the door.

pub mod arch;
mod fingerprint;
pub mod forward;
mod fot;
mod gather;
mod hparams;
mod preselect;
pub mod recall;
mod rope;
pub mod scratch;
mod weights;

pub use fot::Fot;
pub use hparams::Hparams;
pub use rope::{RopeOverride, RopeScaling, RopeScalingKind, RotarySet};
pub use weights::Weights;

use crate::bytes::Map;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, keys};
use crate::memory::{Codec, Fingerprint, Geometry};
use crate::tokenizer::{Tokenizer, TokenizerOptions};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Pre-tokenizer to use in place of `tokenizer.ggml.pre`.
    pub pre_tokenizer: Option<String>,
}

/// An opened model: immutable, shareable between threads and sessions.
pub struct Model {
    gguf: Gguf,
    hparams: Hparams,
    weights: Weights,
    tokenizer: Tokenizer,
    /// Made when a memory asks for it: it reads all over the file.
    fingerprint: OnceLock<Fingerprint>,
    weight_type: &'static str,
    load_seconds: f64,
}

/// Tokens per block of memory.
pub const MEMORY_BLOCK_TOKENS: u32 = 32;

impl Model {
    /// Opens the GGUF file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] for a bad file, [`Error::Model`] where metadata and tensors do not fit together,
    /// [`Error::Unsupported`] for an architecture, tensor type or tokenizer this build does not know.
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Arc<Model>> {
        let start = Instant::now();
        Model::from_map(Map::open(path)?, options, start)
    }

    /// Opens a whole GGUF in memory.
    pub fn open_bytes(bytes: Vec<u8>, options: &ModelOptions) -> Result<Arc<Model>> {
        Model::from_map(Map::owned(bytes), options, Instant::now())
    }

    /// Opens `len` bytes from `offset` of an open file (Android assets, content providers). The file may be closed after.
    pub fn open_file(file: &File, offset: u64, len: u64, options: &ModelOptions) -> Result<Arc<Model>> {
        let start = Instant::now();
        let map = Map::of_file(file, offset, len).map_err(|source| Error::Io { what: "map the model".into(), source })?;
        Model::from_map(map, options, start)
    }

    fn from_map(map: Map, options: &ModelOptions, start: Instant) -> Result<Arc<Model>> {
        let gguf = Gguf::parse(Arc::new(map))?;
        // Opening reads norms and biases, a few kilobytes in every layer.
        let data = usize::try_from(gguf.data_offset()).unwrap_or(usize::MAX)..gguf.map().len();
        gguf.map().read_sparsely(data.clone());
        let hparams = Hparams::read(&gguf)?;
        let weights = Weights::bind(&gguf, &hparams)?;
        let tokenizer = Tokenizer::from_gguf(&gguf, &TokenizerOptions { pre: options.pre_tokenizer.clone() })?;
        if tokenizer.vocab_len() != weights.token_embd.rows() {
            return Err(Error::model(keys::TOKENIZER_TOKENS, format!("{} tokens", weights.token_embd.rows()), tokenizer.vocab_len()));
        }
        // The door closes here: scaling that needs a missing tensor must be found out now.
        RotarySet::new(&hparams, &weights.rope_factors, &RopeOverride::default(), hparams.context_length)?;
        gguf.map().read_whole(data);
        let weight_type = most_common_type(&gguf);
        let (fingerprint, load_seconds) = (OnceLock::new(), start.elapsed().as_secs_f64());
        Ok(Arc::new(Model { gguf, hparams, weights, tokenizer, fingerprint, weight_type, load_seconds }))
    }

    /// The file under the model.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Sizes and constants.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        self.hparams.arch.name
    }

    /// `general.name`, or the architecture.
    pub fn name(&self) -> &str {
        self.gguf.value(keys::NAME).and_then(|v| v.as_str()).unwrap_or(self.hparams.arch.name)
    }

    /// Tokens in the vocabulary.
    pub fn vocab_len(&self) -> usize {
        self.weights.token_embd.rows()
    }

    /// Trained context in tokens.
    pub fn context_length(&self) -> usize {
        self.hparams.context_length
    }

    /// Width of the residual stream.
    pub fn embedding_length(&self) -> usize {
        self.hparams.embedding_length
    }

    /// Layers.
    pub fn block_count(&self) -> usize {
        self.hparams.block_count
    }

    /// Elements of all tensors.
    pub fn parameter_count(&self) -> u64 {
        self.gguf.tensors().iter().map(|t| t.elements()).sum()
    }

    /// Bytes of all tensors in the file.
    pub fn weight_bytes(&self) -> u64 {
        self.gguf.tensors().iter().map(|t| t.range.len() as u64).sum()
    }

    /// The type that most weight bytes have, for example `Q4_1`.
    pub fn weight_type(&self) -> &str {
        self.weight_type
    }

    /// Memory layers of a Focused Transformer; empty for an ordinary model.
    pub fn memory_layers(&self) -> &[u32] {
        self.hparams.fot.as_ref().map_or(&[], |f| &f.memory_layers)
    }

    /// The source of the model's chat template, if the file has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.gguf.value(keys::CHAT_TEMPLATE).and_then(|v| v.as_str())
    }

    /// What identifies this model to a memory file.
    pub fn fingerprint(&self) -> &Fingerprint {
        self.fingerprint.get_or_init(|| fingerprint::of(&self.gguf, self.hparams.arch.name))
    }

    /// The shape of a memory for this model: FoT memory layers in the file's own precision, or all global layers in f16.
    pub fn memory_geometry(&self) -> Geometry {
        let h = &self.hparams;
        Geometry {
            layers: h.memory_layers.iter().map(|l| *l as u32).collect(),
            head_count_kv: h.head_count_kv as u32,
            key_length: h.key_length as u32,
            value_length: h.value_length as u32,
            block_tokens: MEMORY_BLOCK_TOKENS,
            codec: h.fot.as_ref().map_or(Codec::F16, |f| f.memory_codec.into()),
            sketched: self.sketched_layers(),
        }
    }

    /// The layers of which a memory keeps sketches: those in which single keys are looked for.
    fn sketched_layers(&self) -> Vec<u32> {
        let stored = &self.hparams.memory_layers;
        match &self.hparams.fot {
            Some(_) => stored.iter().map(|l| *l as u32).collect(),
            None => recall::searching_slots(&self.hparams).last().map(|slot| stored[*slot] as u32).into_iter().collect(),
        }
    }

    /// Lets go of the pages of the weights that are in RAM: they come back from the file as they are read again. For memory-pressure
    /// callbacks. Nothing happens for a model in memory.
    pub fn trim(&self) {
        self.gguf.map().let_go();
    }

    /// Seconds that opening took.
    pub fn load_seconds(&self) -> f64 {
        self.load_seconds
    }
}

fn most_common_type(gguf: &Gguf) -> &'static str {
    let mut bytes = std::collections::HashMap::new();
    for t in gguf.tensors() {
        *bytes.entry(t.ty).or_insert(0u64) += t.range.len() as u64;
    }
    bytes.into_iter().max_by_key(|(t, n)| (*n, t.id())).map_or("none", |(t, _)| t.name())
}
