//! The model families, one row of differences each. What every family shares is in `weights`, `block` and `forward`; what
//! differs is a field here. Adding a family that differs in no new way is adding a row.

mod gemma;
mod gemma3;
mod llama;
mod phi3;
mod qwen2;
mod qwen3;

use crate::error::{Error, Result, quoted};
use crate::kernels::activation::Activation;
use crate::kernels::rotary::PairLayout;

/// How a family differs from plain LLaMA.
#[derive(Debug)]
pub struct Arch {
    /// `general.architecture`, also the prefix of its metadata keys.
    pub name: &'static str,
    /// Which dimensions RoPE pairs.
    pub pair_layout: PairLayout,
    /// `attn_qkv` holds the rows of queries, keys and values, `ffn_up` those of gate and up.
    pub fused: bool,
    /// The gate of the feed-forward network.
    pub activation: Activation,
    /// Embeddings are multiplied by the square root of their length.
    pub scale_embedding: bool,
    /// Queries and keys are RMS-normalised per head before RoPE.
    pub qk_norm: bool,
    /// Attention and feed-forward outputs are RMS-normalised before they are added.
    pub post_norms: bool,
    /// The model of so many layers divides queries by the root of `embedding_length / head_count` instead of that of their own length,
    /// of which its file says nothing.
    pub wide_queries_at: Option<usize>,
    /// Some layers see only a sliding window.
    pub sliding: Option<Sliding>,
}

/// The pattern of sliding-window layers.
#[derive(Debug)]
pub struct Sliding {
    /// Every so many layers, the last one is global; the others slide. The file may say otherwise.
    pub period: usize,
    /// RoPE base of sliding layers, which no scaling touches, unless the file has another.
    pub freq_base: f32,
}

/// All rows.
pub const ROWS: &[&Arch] = &[&llama::LLAMA, &qwen2::QWEN2, &qwen3::QWEN3, &phi3::PHI3, &gemma::GEMMA, &gemma3::GEMMA3];

/// The row of an architecture.
pub fn find(name: &str) -> Result<&'static Arch> {
    ROWS.iter().copied().find(|a| a.name == name).ok_or_else(|| {
        let known: Vec<_> = ROWS.iter().map(|a| a.name).collect();
        Error::Unsupported(format!("model architecture {} (this build knows {})", quoted(name), known.join(", ")))
    })
}
