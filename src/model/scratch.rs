//! Every buffer of a forward pass, with its shape. They grow to the largest batch seen and stay, so that a warm session
//! allocates nothing per token.

use crate::error::{Result, try_grow};
use crate::kernels::attention::KvSegment;
use crate::kernels::matmul::Activations;
use crate::model::hparams::Hparams;

/// Buffers of one session's forward pass; `n` is the batch.
#[derive(Default)]
pub struct Scratch {
    /// Residual stream, `(n, embedding)`.
    pub x: Vec<f32>,
    /// Normalised input of a sublayer, and a sublayer's output, `(n, embedding)`.
    pub h: Vec<f32>,
    /// Queries rotated to their place, `(n, heads, key_length)`.
    pub q: Vec<f32>,
    /// Queries rotated to their index in the window, for memory that lies at its first token.
    pub q_memory: Vec<f32>,
    /// Rotated keys, `(n, heads_kv, key_length)`.
    pub k: Vec<f32>,
    /// Values, `(n, heads_kv, value_length)`.
    pub v: Vec<f32>,
    /// Attention's output, `(n, heads, value_length)`.
    pub attended: Vec<f32>,
    /// `(n, feed_forward)`
    pub gate: Vec<f32>,
    /// `(n, feed_forward)`, for gates that are not computed in one piece.
    pub up: Vec<f32>,
    /// `(rows asked for, vocab)`
    pub logits: Vec<f32>,
    /// `(n, pairs)` of (cos, sin): global layers, sliding layers, and by index in the window.
    pub angles: Angles,
    /// What attention reads; empty between layers.
    pub segments: Vec<KvSegment<'static>>,
    /// Quantised input of the matrix at hand.
    pub activations: Activations,
}

/// Angles of a batch's tokens.
#[derive(Default)]
pub struct Angles {
    /// Global layers, by position.
    pub global: Vec<[f32; 2]>,
    /// Sliding layers, by position.
    pub sliding: Vec<[f32; 2]>,
    /// Global layers, by index in the local window.
    pub memory: Vec<[f32; 2]>,
}

impl Scratch {
    /// Floats of each buffer for a batch of `n` and `rows` rows of logits, in the order of the fields; `up` is not among them.
    fn lengths(h: &Hparams, n: usize, rows: usize, vocab: usize) -> [usize; 9] {
        let (width, queries, keys) = (n * h.embedding_length, n * h.head_count * h.key_length, n * h.head_count_kv * h.key_length);
        let (values, attended) = (n * h.head_count_kv * h.value_length, n * h.head_count * h.value_length);
        [width, width, queries, queries, keys, values, attended, n * h.feed_forward_length, rows * vocab]
    }

    /// Makes every buffer large enough for a batch of `n` and `rows` rows of logits.
    pub fn reserve(&mut self, h: &Hparams, n: usize, rows: usize, vocab: usize) -> Result<()> {
        let Scratch { x, h: normed, q, q_memory, k, v, attended, gate, logits, .. } = self;
        let buffers = [x, normed, q, q_memory, k, v, attended, gate, logits];
        buffers.into_iter().zip(Scratch::lengths(h, n, rows, vocab)).try_for_each(|(v, len)| try_grow(v, "scratch buffers", len))
    }

    /// Bytes that a batch of `n` tokens takes, all buffers together, with one row of logits.
    pub fn bytes_for(h: &Hparams, n: usize, vocab: usize) -> u64 {
        let widest = h.embedding_length.max(h.feed_forward_length).max(h.head_count * h.value_length);
        let angles = 3 * n * (h.key_length / 2) * 2;
        let floats = Scratch::lengths(h, n, 1, vocab).into_iter().chain([angles]).map(|len| len as u64).sum::<u64>();
        4 * floats + n as u64 * Activations::bytes_per_row(widest) as u64
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let floats = [&self.x, &self.h, &self.q, &self.q_memory, &self.k, &self.v, &self.attended, &self.gate, &self.up, &self.logits];
        floats.iter().map(|v| v.capacity() * 4).sum()
    }
}
