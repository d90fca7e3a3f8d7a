//! Hyperparameters: what the metadata says about a model's shape, checked once, so that the rest can rely on it.

use super::arch::{self, Arch};
use super::fot::Fot;
use super::rope::RopeScaling;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, keys};
use crate::kernels::attention::Shape;

/// Sizes and constants of a model.
#[derive(Debug)]
pub struct Hparams {
    /// The family's row.
    pub arch: &'static Arch,
    /// Trained context.
    pub context_length: usize,
    /// Width of the residual stream.
    pub embedding_length: usize,
    /// Layers.
    pub block_count: usize,
    /// Width of the feed-forward network.
    pub feed_forward_length: usize,
    /// Query heads.
    pub head_count: usize,
    /// KV heads.
    pub head_count_kv: usize,
    /// Elements of a query or key.
    pub key_length: usize,
    /// Elements of a value.
    pub value_length: usize,
    /// What the product of a query and a key is multiplied by.
    pub attention_scale: f32,
    /// Dimensions of a head that RoPE rotates.
    pub rope_dimension_count: usize,
    /// Logits are bent to `c tanh(x / c)` with this c; 0 leaves them.
    pub final_logit_softcapping: f32,
    /// RMS norm epsilon.
    pub rms_epsilon: f32,
    /// RoPE base of global layers.
    pub rope_freq_base: f32,
    /// RoPE base of sliding layers.
    pub rope_freq_base_swa: f32,
    /// RoPE scaling of global layers.
    pub rope_scaling: RopeScaling,
    /// Sliding window per layer; 0 is global.
    pub sliding_window: Vec<usize>,
    /// Focused Transformer settings, if the file has them.
    pub fot: Option<Fot>,
    /// The layers that a memory of this model stores: FoT memory layers, or all global layers.
    pub memory_layers: Vec<usize>,
    /// The place of each layer among those.
    pub memory_slot: Vec<Option<usize>>,
}

/// Bounds on sizes: far above anything real, low enough that no product of two of them that is formed overflows, in 32 bits.
const BLOCKS_MAX: u32 = 4096;
const WIDTH_MAX: u32 = 1 << 20;
const HEADS_MAX: u32 = 1 << 14;
const HEAD_ELEMENTS_MAX: u32 = 1 << 24;
const CONTEXT_MAX: u32 = 1 << 30;

impl Hparams {
    /// Reads and checks the metadata.
    pub fn read(gguf: &Gguf) -> Result<Hparams> {
        let name = gguf.required(keys::ARCHITECTURE, gguf.str(keys::ARCHITECTURE)?)?;
        let arch = arch::find(name)?;
        let m = Metadata { gguf, prefix: arch.name };

        let block_count = m.size("block_count", BLOCKS_MAX)?;
        let embedding_length = m.size("embedding_length", WIDTH_MAX)?;
        let head_count = m.size("attention.head_count", HEADS_MAX)?;
        let head_count_kv = m.size_or("attention.head_count_kv", HEADS_MAX, head_count)?;
        if !head_count.is_multiple_of(head_count_kv) {
            return Err(Error::model(m.key("attention.head_count_kv"), format!("a divisor of head_count ({head_count})"), head_count_kv));
        }
        let key_length = match m.optional_size("attention.key_length", WIDTH_MAX)? {
            Some(n) => n,
            None if embedding_length.is_multiple_of(head_count) => embedding_length / head_count,
            None => return Err(Error::model(m.key("attention.head_count"), format!("a divisor of {embedding_length}"), head_count)),
        };
        let value_length = m.size_or("attention.value_length", WIDTH_MAX, key_length)?;
        // So that the product is none that 32 bits cannot count.
        if head_count as u64 * key_length.max(value_length) as u64 > u64::from(HEAD_ELEMENTS_MAX) {
            let expected = format!("at most {HEAD_ELEMENTS_MAX} elements in all of {head_count} heads");
            return Err(Error::model(m.key("attention.key_length"), expected, key_length.max(value_length)));
        }
        let rope_dimension_count = m.size_or("rope.dimension_count", WIDTH_MAX, key_length)?;
        if !rope_dimension_count.is_multiple_of(2) || rope_dimension_count > key_length {
            let expected = format!("an even number up to key_length ({key_length})");
            return Err(Error::model(m.key("rope.dimension_count"), expected, rope_dimension_count));
        }
        let context_length = m.size("context_length", CONTEXT_MAX)?;
        if let Some(experts) = m.gguf.u32(&m.key("expert_count"))?
            && experts > 0
        {
            return Err(Error::Unsupported(format!("{experts} experts ({})", m.key("expert_count"))));
        }
        let sliding_window = sliding_windows(&m, arch, block_count)?;
        let fot = Fot::read(gguf, arch.name, block_count, context_length)?;
        let memory_layers: Vec<usize> = (0..block_count)
            .filter(|l| match &fot {
                Some(fot) => fot.memory_layers.contains(&(*l as u32)),
                None => sliding_window[*l] == 0,
            })
            .collect();
        let memory_slot = (0..block_count).map(|l| memory_layers.binary_search(&l).ok()).collect();
        let query_length = if arch.wide_queries_at == Some(block_count) { embedding_length / head_count } else { key_length };
        Ok(Hparams {
            arch,
            context_length,
            embedding_length,
            block_count,
            feed_forward_length: m.size("feed_forward_length", WIDTH_MAX)?,
            head_count,
            head_count_kv,
            key_length,
            value_length,
            attention_scale: 1.0 / (query_length as f32).sqrt(),
            rope_dimension_count,
            final_logit_softcapping: m.positive("final_logit_softcapping", 0.0)?,
            rms_epsilon: m.epsilon("attention.layer_norm_rms_epsilon")?,
            rope_freq_base: m.positive("rope.freq_base", 10_000.0)?,
            rope_freq_base_swa: m.positive("rope.freq_base_swa", arch.sliding.as_ref().map_or(10_000.0, |s| s.freq_base))?,
            rope_scaling: RopeScaling::read(gguf, arch.name, context_length)?,
            sliding_window,
            fot,
            memory_layers,
            memory_slot,
        })
    }

    /// The Focused Transformer's settings if layer `l` is one of its memory layers.
    pub fn fot_layer(&self, l: usize) -> Option<&Fot> {
        self.fot.as_ref().filter(|_| self.memory_slot[l].is_some())
    }

    /// What attention is told of `tokens` tokens.
    pub fn attention_shape(&self, tokens: usize, memory_top_k: usize) -> Shape {
        Shape {
            tokens,
            heads: self.head_count,
            heads_kv: self.head_count_kv,
            key_length: self.key_length,
            value_length: self.value_length,
            scale: self.attention_scale,
            memory_top_k,
        }
    }

    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.head_count / self.head_count_kv
    }
}

fn sliding_windows(m: &Metadata<'_>, arch: &Arch, block_count: usize) -> Result<Vec<usize>> {
    let mut windows = vec![0; block_count];
    let Some(sliding) = &arch.sliding else { return Ok(windows) };
    let window = m.optional_size("attention.sliding_window", CONTEXT_MAX)?.unwrap_or(0);
    let key = m.key("attention.sliding_window_pattern");
    let is_sliding: Vec<bool> = match m.gguf.value(&key) {
        None => (0..block_count).map(|l| l % sliding.period < sliding.period - 1).collect(),
        Some(v) => match (v.as_u64(), v.as_array()) {
            (Some(0), _) => vec![false; block_count],
            (Some(period), _) => (0..block_count as u64).map(|l| l % period < period - 1).collect(),
            (_, Some(array)) => array.values().map(|v| v.as_bool().unwrap_or_else(|| v.as_u64().is_some_and(|v| v != 0))).collect(),
            _ => return Err(Error::model(key, "a number or an array of bools", format!("{v:?}"))),
        },
    };
    if is_sliding.len() != block_count {
        return Err(Error::model(key, format!("{block_count} entries"), is_sliding.len()));
    }
    for (w, s) in windows.iter_mut().zip(is_sliding) {
        *w = if s { window } else { 0 };
    }
    Ok(windows)
}

/// Look-ups of `{prefix}.{key}`.
pub(super) struct Metadata<'a> {
    pub gguf: &'a Gguf,
    pub prefix: &'static str,
}

impl Metadata<'_> {
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// A size of 1 to `max`. Some families give one number per layer: accepted if all are equal.
    pub fn optional_size(&self, key: &str, max: u32) -> Result<Option<usize>> {
        let key = self.key(key);
        let Some(value) = self.gguf.value(&key) else { return Ok(None) };
        let n = match value.as_array() {
            Some(array) => {
                let mut all = array.integers();
                let first = all.next().and_then(|n| u64::try_from(n).ok());
                if !all.all(|n| u64::try_from(n).ok() == first) {
                    return Err(Error::Unsupported(format!("{key} that differs from layer to layer")));
                }
                first
            }
            None => value.as_u64(),
        };
        match n {
            Some(n) if (1..=u64::from(max)).contains(&n) => Ok(Some(n as usize)),
            _ => Err(Error::model(key, format!("a whole number of 1 to {max}"), format!("{value:?}"))),
        }
    }

    pub fn size(&self, key: &str, max: u32) -> Result<usize> {
        self.gguf.required(&self.key(key), self.optional_size(key, max)?)
    }

    pub fn size_or(&self, key: &str, max: u32, default: usize) -> Result<usize> {
        Ok(self.optional_size(key, max)?.unwrap_or(default))
    }

    pub fn positive(&self, key: &str, default: f32) -> Result<f32> {
        let key = self.key(key);
        match self.gguf.f32(&key)? {
            None => Ok(default),
            Some(v) if v > 0.0 || v == default => Ok(v),
            Some(v) => Err(Error::model(key, "a number above 0", v)),
        }
    }

    fn epsilon(&self, key: &str) -> Result<f32> {
        let key = self.key(key);
        match self.gguf.required(&key, self.gguf.f32(&key)?)? {
            v if (0.0..1.0).contains(&v) => Ok(v),
            v => Err(Error::model(key, "a number of 0 to 1", v)),
        }
    }
}
