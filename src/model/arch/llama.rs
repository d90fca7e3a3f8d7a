//! LLaMA and everything that GGUF files call so: SmolLM2, Llama 2 and 3, OpenLLaMA, LongLLaMA, Mistral, TinyLlama.
//! Optional biases, `rope_freqs` and grouped queries are read from the file.

use super::Arch;
use crate::kernels::activation::Activation;
use crate::kernels::rotary::PairLayout;

pub(super) const LLAMA: Arch = Arch {
    name: "llama",
    pair_layout: PairLayout::Adjacent,
    fused: false,
    activation: Activation::Silu,
    scale_embedding: false,
    qk_norm: false,
    post_norms: false,
    wide_queries_at: None,
    sliding: None,
};
