//! Gemma (the first): scaled embeddings, a GELU gate, RoPE over halves, tied output. Norm weights in the file include their +1.

use super::{Arch, llama::LLAMA};
use crate::kernels::activation::Activation;
use crate::kernels::rotary::PairLayout;

pub(super) const GEMMA: Arch =
    Arch { name: "gemma", pair_layout: PairLayout::Halves, activation: Activation::GeluTanh, scale_embedding: true, ..LLAMA };
