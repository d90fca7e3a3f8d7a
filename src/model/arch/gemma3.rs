//! Gemma 3 (text): five sliding layers to one global one, two RoPE bases, normalised queries and keys, norms after
//! attention and feed-forward too, scaled embeddings, tied output. Norm weights in the file include their +1.

use super::{Arch, Sliding, gemma::GEMMA};

pub(super) const GEMMA3: Arch = Arch {
    name: "gemma3",
    qk_norm: true,
    post_norms: true,
    // 27B.
    wide_queries_at: Some(62),
    sliding: Some(Sliding { period: 6, freq_base: 10_000.0 }),
    ..GEMMA
};
