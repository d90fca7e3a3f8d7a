//! Phi 3, 3.5 and 4 (mini): LLaMA whose queries, keys and values are one tensor, gate and up another; RoPE over halves, in some over a part of
//! the head, with LongRoPE's factors. Their files name a sliding window that, as elsewhere, is not applied.

use super::{Arch, llama::LLAMA};
use crate::kernels::rotary::PairLayout;

pub(super) const PHI3: Arch = Arch { name: "phi3", pair_layout: PairLayout::Halves, fused: true, ..LLAMA };
