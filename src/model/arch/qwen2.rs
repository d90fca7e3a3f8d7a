//! Qwen 2 and 2.5, and what was made of them (DeepSeek-R1-Distill-Qwen): LLaMA with biases on queries, keys and values, which the file
//! brings, and RoPE over halves.

use super::{Arch, llama::LLAMA};
use crate::kernels::rotary::PairLayout;

pub(super) const QWEN2: Arch = Arch { name: "qwen2", pair_layout: PairLayout::Halves, ..LLAMA };
