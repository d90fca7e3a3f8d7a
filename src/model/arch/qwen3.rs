//! Qwen 3 without experts: LLaMA with normalised queries and keys, heads of a length of their own, and RoPE over halves.

use super::{Arch, llama::LLAMA};
use crate::kernels::rotary::PairLayout;

pub(super) const QWEN3: Arch = Arch { name: "qwen3", pair_layout: PairLayout::Halves, qk_norm: true, ..LLAMA };
