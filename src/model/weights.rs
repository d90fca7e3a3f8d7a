//! Weights: tensor names bound to shaped views of the map, every shape checked here, so that the forward pass cannot meet
//! a wrong one. Norms and biases (a few kilobytes) are copied as f32; matrices stay where they are.

use super::hparams::Hparams;
use super::rope::FrequencyFactors;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, TensorInfo};
use crate::kernels::matmul::Matrix;
use crate::quant;

/// All weights of a model.
pub struct Weights {
    /// `(vocab, embedding)`
    pub token_embd: Matrix,
    /// `(embedding)`
    pub output_norm: Vec<f32>,
    /// `(vocab, embedding)`; the embedding itself where the file ties them.
    pub output: Matrix,
    /// `blk.N.*`
    pub layers: Vec<Layer>,
    /// Frequency factors for RoPE.
    pub rope_factors: FrequencyFactors,
}

/// The weights of one layer. What a family does not have is None.
pub struct Layer {
    /// `(embedding)`
    pub attn_norm: Vec<f32>,
    /// `(heads * key_length, embedding)`
    pub attn_q: Linear,
    /// `(heads_kv * key_length, embedding)`
    pub attn_k: Linear,
    /// `(heads_kv * value_length, embedding)`
    pub attn_v: Linear,
    /// `(embedding, heads * value_length)`
    pub attn_output: Linear,
    /// `(key_length)`
    pub attn_q_norm: Option<Vec<f32>>,
    /// `(key_length)`
    pub attn_k_norm: Option<Vec<f32>>,
    /// `(embedding)`
    pub post_attention_norm: Option<Vec<f32>>,
    /// `(embedding)`
    pub ffn_norm: Vec<f32>,
    /// `(feed_forward, embedding)`
    pub ffn_gate: Linear,
    /// `(feed_forward, embedding)`
    pub ffn_up: Linear,
    /// `(embedding, feed_forward)`
    pub ffn_down: Linear,
    /// `(embedding)`
    pub post_ffw_norm: Option<Vec<f32>>,
}

/// A matrix and, in some files, a bias.
pub struct Linear {
    /// The matrix.
    pub weight: Matrix,
    /// One per row.
    pub bias: Option<Vec<f32>>,
}

impl Weights {
    /// Binds and checks all tensors the family needs.
    pub fn bind(gguf: &Gguf, h: &Hparams) -> Result<Weights> {
        let b = Binder { gguf };
        let width = h.embedding_length;
        let embd = b.info("token_embd.weight")?;
        let vocab = embd.rows();
        let token_embd = b.matrix("token_embd.weight", vocab, width)?;
        let output = match gguf.tensor("output.weight") {
            Some(_) => b.matrix("output.weight", vocab, width)?,
            None => token_embd.clone(),
        };
        let pairs = h.rope_dimension_count / 2;
        let rope_factors = FrequencyFactors {
            always: b.rope_factors("rope_freqs.weight", pairs)?,
            short: b.rope_factors("rope_factors_short.weight", pairs)?,
            long: b.rope_factors("rope_factors_long.weight", pairs)?,
        };
        let layers = (0..h.block_count).map(|l| b.layer(l, h)).collect::<Result<_>>()?;
        Ok(Weights { token_embd, output_norm: b.vector("output_norm.weight", width)?, output, layers, rope_factors })
    }
}

struct Binder<'a> {
    gguf: &'a Gguf,
}

impl Binder<'_> {
    fn layer(&self, l: usize, h: &Hparams) -> Result<Layer> {
        let (width, ffn) = (h.embedding_length, h.feed_forward_length);
        let (q, k, v) = (h.head_count * h.key_length, h.head_count_kv * h.key_length, h.head_count_kv * h.value_length);
        let name = |n: &str| format!("blk.{l}.{n}");
        let linear = |n: &str, rows: usize, cols: usize| self.linear(&name(n), rows, cols);
        let norm = |n: &str, len: usize| self.vector(&name(&format!("{n}.weight")), len);
        let norm_if = |wanted: bool, n: &str, len: usize| if wanted { norm(n, len).map(Some) } else { Ok(None) };
        let fused = h.arch.fused;
        let [attn_q, attn_k, attn_v] = match fused {
            true => self.fused(&name("attn_qkv"), [q, k, v], width)?,
            false => [linear("attn_q", q, width)?, linear("attn_k", k, width)?, linear("attn_v", v, width)?],
        };
        let [ffn_gate, ffn_up] = match fused {
            true => self.fused(&name("ffn_up"), [ffn, ffn], width)?,
            false => [linear("ffn_gate", ffn, width)?, linear("ffn_up", ffn, width)?],
        };
        Ok(Layer {
            attn_norm: norm("attn_norm", width)?,
            attn_q,
            attn_k,
            attn_v,
            attn_output: linear("attn_output", width, h.head_count * h.value_length)?,
            attn_q_norm: norm_if(h.arch.qk_norm, "attn_q_norm", h.key_length)?,
            attn_k_norm: norm_if(h.arch.qk_norm, "attn_k_norm", h.key_length)?,
            post_attention_norm: norm_if(h.arch.post_norms, "post_attention_norm", width)?,
            ffn_norm: norm("ffn_norm", width)?,
            ffn_gate,
            ffn_up,
            ffn_down: linear("ffn_down", width, ffn)?,
            post_ffw_norm: norm_if(h.arch.post_norms, "post_ffw_norm", width)?,
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.gguf.tensor(name).ok_or_else(|| Error::model(name, "the tensor to be present", "no such tensor"))
    }

    fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        let bias = format!("{name}.bias");
        let bias = if self.gguf.tensor(&bias).is_some() { Some(self.vector(&bias, rows)?) } else { None };
        Ok(Linear { weight: self.matrix(&format!("{name}.weight"), rows, cols)?, bias })
    }

    /// Several matrices, and their biases, that the file has as one, row after row.
    fn fused<const N: usize>(&self, name: &str, rows: [usize; N], cols: usize) -> Result<[Linear; N]> {
        let all = self.linear(name, rows.iter().sum(), cols)?;
        let mut end = 0;
        Ok(rows.map(|n| {
            let range = end..end + n;
            end = range.end;
            Linear { weight: all.weight.row_range(range.clone()), bias: all.bias.as_ref().map(|bias| bias[range].to_vec()) }
        }))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let t = self.info(name)?;
        if t.dims != [cols as u64, rows as u64] {
            return Err(Error::model(name, format!("shape [{cols}, {rows}]"), format!("{:?}", t.dims)));
        }
        if !quant::is_supported(t.ty) {
            return Err(Error::Unsupported(format!("tensor type {} of {name}", t.ty)));
        }
        Matrix::new(t.ty, rows, cols, self.gguf.bytes(t))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let t = self.info(name)?;
        if t.dims.first() != Some(&(len as u64)) || t.elements() != len as u64 {
            return Err(Error::model(name, format!("shape [{len}]"), format!("{:?}", t.dims)));
        }
        if !quant::is_supported(t.ty) {
            return Err(Error::Unsupported(format!("tensor type {} of {name}", t.ty)));
        }
        let mut out = vec![0.0; len];
        quant::dequantise(t.ty, &self.gguf.bytes(t), &mut out)?;
        Ok(out)
    }

    fn rope_factors(&self, name: &str, pairs: usize) -> Result<Option<Vec<f32>>> {
        if self.gguf.tensor(name).is_none() {
            return Ok(None);
        }
        let factors = self.vector(name, pairs)?;
        match factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
            Some(bad) => Err(Error::model(name, "finite factors above 0", bad)),
            None => Ok(Some(factors)),
        }
    }
}
