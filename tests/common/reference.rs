//! The exact answer: a plain evaluation of a model, to hold the library against.
//!
//! Written from the block layouts and the papers, with its own decoding of weights and no call into the library beyond
//! reading the file. Weights are decoded to f32, products are summed in f32 over 256 elements and in f64 beyond, everything
//! else is f64; neither activations nor keys and values are rounded. Architectures: `llama` (dense),
//! `qwen2`, `qwen3`, `phi3`, `gemma` and `gemma3`.

use half::{bf16, f16};
use loci::gguf::{Gguf, TensorInfo, TensorType};
use std::f64::consts::PI;

/// Decodes whole blocks of type `ty` to f32.
pub fn decode(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    let block = block_decoder(ty);
    let mut out = vec![0f32; bytes.len() / ty.block_bytes() * ty.block_len()];
    for (src, dst) in bytes.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len())) {
        block(src, dst);
    }
    out
}

const IQ4: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn h(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Element `i` of 32 in 16 bytes: low nibbles first, then the high ones.
fn nibble(qs: &[u8], i: usize) -> i32 {
    ((qs[i % 16] >> (4 * (i / 16))) & 15) as i32
}

/// The fifth bit of element `i` of 32.
fn fifth(qh: &[u8], i: usize) -> i32 {
    ((qh[i / 8] >> (i % 8)) & 1) as i32 * 16
}

/// 6-bit scale and minimum number `j` of the 12 bytes that Q4_K and Q5_K share.
fn scale_min(s: &[u8], j: usize) -> (f32, f32) {
    let (sc, m) =
        if j < 4 { (s[j] & 63, s[j + 4] & 63) } else { ((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4)) };
    (sc.into(), m.into())
}

fn block_decoder(ty: TensorType) -> fn(&[u8], &mut [f32]) {
    fn each(out: &mut [f32], f: impl Fn(usize) -> f32) {
        out.iter_mut().enumerate().for_each(|(i, o)| *o = f(i));
    }
    match ty {
        TensorType::F32 => |b, out| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        TensorType::F16 => |b, out| out[0] = h(b, 0),
        TensorType::BF16 => |b, out| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        TensorType::Q4_0 => |b, out| each(out, |i| h(b, 0) * (nibble(&b[2..], i) - 8) as f32),
        TensorType::Q4_1 => |b, out| each(out, |i| h(b, 0) * nibble(&b[4..], i) as f32 + h(b, 2)),
        TensorType::Q5_0 => |b, out| each(out, |i| h(b, 0) * (nibble(&b[6..], i) + fifth(&b[2..], i) - 16) as f32),
        TensorType::Q5_1 => |b, out| each(out, |i| h(b, 0) * (nibble(&b[8..], i) + fifth(&b[4..], i)) as f32 + h(b, 2)),
        TensorType::Q8_0 => |b, out| each(out, |i| h(b, 0) * (b[2 + i] as i8) as f32),
        TensorType::Q2_K => |b, out| {
            let (d, dmin) = (h(b, 80), h(b, 82));
            each(out, |i| {
                let q = (b[16 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
                let s = b[i / 16];
                d * (s & 15) as f32 * q as f32 - dmin * (s >> 4) as f32
            });
        },
        TensorType::Q3_K => |b, out| {
            let (d, scales) = (h(b, 108), &b[96..108]);
            each(out, |i| {
                let low = (b[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32))) & 3;
                let high = (b[i % 32] >> (i / 32)) & 1;
                let j = i / 16;
                let s = ((scales[j % 8] >> (4 * (j / 8))) & 15) | (((scales[8 + j % 4] >> (2 * (j / 4))) & 3) << 4);
                d * (s as i32 - 32) as f32 * (low as i32 - if high == 0 { 4 } else { 0 }) as f32
            });
        },
        TensorType::Q4_K => |b, out| {
            let (d, dmin) = (h(b, 0), h(b, 2));
            each(out, |i| {
                let (sc, m) = scale_min(&b[4..16], i / 32);
                let q = (b[16 + i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2))) & 15;
                d * sc * q as f32 - dmin * m
            });
        },
        TensorType::Q5_K => |b, out| {
            let (d, dmin) = (h(b, 0), h(b, 2));
            each(out, |i| {
                let (sc, m) = scale_min(&b[4..16], i / 32);
                let q = ((b[48 + i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2))) & 15) + ((b[16 + i % 32] >> (i / 32)) & 1) * 16;
                d * sc * q as f32 - dmin * m
            });
        },
        TensorType::Q6_K => |b, out| {
            let d = h(b, 208);
            each(out, |i| {
                let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
                let low = (b[half * 64 + quarter % 2 * 32 + l] >> (4 * (quarter / 2))) & 15;
                let high = (b[128 + half * 32 + l] >> (2 * quarter)) & 3;
                d * (b[192 + i / 16] as i8) as f32 * ((low | (high << 4)) as i32 - 32) as f32
            });
        },
        TensorType::IQ4_NL => |b, out| each(out, |i| h(b, 0) * IQ4[nibble(&b[2..], i) as usize] as f32),
        TensorType::IQ4_XS => |b, out| {
            let (d, scales_h) = (h(b, 0), u16::from_le_bytes([b[2], b[3]]));
            each(out, |i| {
                let j = i / 32;
                let s = ((b[4 + j / 2] >> (4 * (j % 2))) & 15) as i32 | (((scales_h >> (2 * j)) & 3) << 4) as i32;
                d * (s - 32) as f32 * IQ4[nibble(&b[8 + 16 * j..], i % 32) as usize] as f32
            });
        },
        other => panic!("the reference does not decode {other}"),
    }
}

/// How rotary angles are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Position interpolation: positions divided by the factor.
    Linear(f64),
    /// YaRN (2309.00071).
    Yarn {
        /// Context length over the trained one.
        factor: f64,
        /// The trained context length.
        original: f64,
        /// Multiplies the paper's temperature.
        attn_factor: f64,
        /// Rotations above which a dimension is left alone.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated in full.
        beta_slow: f64,
    },
    /// Per-dimension factors from the file, short or long.
    LongRope {
        /// Multiplies sine and cosine.
        attn_factor: f64,
        /// Which of the two tensors.
        long: bool,
    },
}

/// A model under plain evaluation. Fields may be changed between evaluations.
pub struct Reference<'a> {
    gguf: &'a Gguf,
    /// The first of them or the third: scaled embeddings, a GELU gate.
    gemma: bool,
    gemma3: bool,
    /// Norms on q and k.
    qk_norm: bool,
    /// RoPE pairs `i` and `i + n / 2`, not `2 i` and `2 i + 1`.
    halves: bool,
    n_layer: usize,
    n_embd: usize,
    n_head: usize,
    n_head_kv: usize,
    key_length: usize,
    value_length: usize,
    eps: f64,
    n_rot: usize,
    /// `rope.freq_base`.
    pub freq_base: f64,
    freq_base_swa: f64,
    /// As the file says; replace it to ask for another.
    pub scaling: RopeScaling,
    window: usize,
    window_pattern: usize,
    softcap: f64,
    n_vocab: usize,
}

/// Logits of consecutive positions.
pub struct Logits {
    /// Entries of a row.
    pub n_vocab: usize,
    /// (positions, n_vocab)
    pub values: Vec<f32>,
}

impl Logits {
    /// The logits after position `i` (counted from the first one kept).
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.n_vocab..(i + 1) * self.n_vocab]
    }
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.n_vocab
    }
}

impl<'a> Reference<'a> {
    /// Reads the hyperparameters; `n_ctx` is the context size that a runtime would be asked for (LongRoPE looks at it; 0: the
    /// file's own).
    pub fn new(gguf: &'a Gguf, n_ctx: usize) -> Reference<'a> {
        let arch = gguf.str("general.architecture").unwrap().expect("general.architecture");
        assert!(["llama", "qwen2", "qwen3", "phi3", "gemma", "gemma3"].contains(&arch), "the reference does not know {arch}");
        let int = |key: &str| gguf.u64(&format!("{arch}.{key}")).unwrap().map(|v| v as usize);
        let num = |key: &str| gguf.value(&format!("{arch}.{key}")).map(|v| v.as_f64().expect("a number"));
        let need = |key: &str| int(key).unwrap_or_else(|| panic!("{arch}.{key} is missing"));
        let (n_embd, n_head) = (need("embedding_length"), need("attention.head_count"));
        let key_length = int("attention.key_length").unwrap_or(n_embd / n_head);
        let train = int("context_length").unwrap_or(0);
        let original = int("rope.scaling.original_context_length").unwrap_or(train);
        let factor = num("rope.scaling.factor").or(num("rope.scale_linear")).filter(|f| *f > 0.0).unwrap_or(1.0);
        let attn_factor = num("rope.scaling.attn_factor").unwrap_or(1.0);
        let longrope = RopeScaling::LongRope { attn_factor, long: (if n_ctx == 0 { train } else { n_ctx }) > original };
        let scaling = match gguf.str(&format!("{arch}.rope.scaling.type")).unwrap() {
            Some("none") => RopeScaling::None,
            Some("yarn") => RopeScaling::Yarn {
                factor,
                original: original as f64,
                attn_factor,
                beta_fast: num("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: num("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
            },
            Some("longrope") => longrope,
            Some("linear") | None if gguf.tensor("rope_factors_long.weight").is_some() => longrope,
            Some("linear") | None => RopeScaling::Linear(factor),
            Some(other) => panic!("the reference does not know rope scaling {other}"),
        };
        let gemma3 = arch == "gemma3";
        Reference {
            gguf,
            gemma: gemma3 || arch == "gemma",
            gemma3,
            qk_norm: gemma3 || arch == "qwen3",
            halves: arch != "llama",
            n_layer: need("block_count"),
            n_embd,
            n_head,
            n_head_kv: int("attention.head_count_kv").unwrap_or(n_head),
            key_length,
            value_length: int("attention.value_length").unwrap_or(n_embd / n_head),
            eps: num("attention.layer_norm_rms_epsilon").expect("epsilon"),
            n_rot: int("rope.dimension_count").unwrap_or(key_length),
            freq_base: num("rope.freq_base").unwrap_or(10000.0),
            freq_base_swa: num("rope.freq_base_swa").unwrap_or(10000.0),
            scaling,
            window: if gemma3 { int("attention.sliding_window").unwrap_or(0) } else { 0 },
            window_pattern: 6,
            softcap: num("final_logit_softcapping").filter(|_| gemma3).unwrap_or(0.0),
            n_vocab: gguf.tensor("token_embd.weight").expect("token_embd.weight").rows(),
        }
    }

    /// Logits after each of `ids` (positions 0, 1, ...; nothing is added in front).
    pub fn logits(&self, ids: &[u32]) -> Logits {
        self.logits_from(ids, 0)
    }

    /// As [`Reference::logits`], but only for the positions from `from` on (the output matrix is the largest of a small model).
    pub fn logits_from(&self, ids: &[u32], from: usize) -> Logits {
        let n = ids.len();
        let full = self.rope_table(n, self.freq_base, self.scaling, self.frequency_factors());
        let sliding = self.rope_table(n, self.freq_base_swa, RopeScaling::None, None);
        let embedding = self.need("token_embd.weight");
        let row_bytes = embedding.range.len() / embedding.rows();
        let bytes = self.gguf.bytes(embedding);
        let scale = if self.gemma { (self.n_embd as f64).sqrt() } else { 1.0 };
        let mut x: Vec<f64> = Vec::with_capacity(n * self.n_embd); // (n, n_embd)
        for &id in ids {
            let row = decode(embedding.ty, &bytes[id as usize * row_bytes..][..row_bytes]);
            x.extend(row.iter().map(|v| *v as f64 * scale));
        }
        for layer in 0..self.n_layer {
            let sees_window = self.window > 0 && layer % self.window_pattern < self.window_pattern - 1;
            let (table, window) = if sees_window { (&sliding, self.window) } else { (&full, usize::MAX) };
            let attention = self.attention(layer, &x, table, window);
            x.iter_mut().zip(attention).for_each(|(x, a)| *x += a);
            let ffn = self.ffn(layer, &x);
            x.iter_mut().zip(ffn).for_each(|(x, f)| *x += f);
        }
        let x = self.norm(&x[from * self.n_embd..], "output_norm.weight");
        let output = self.gguf.tensor("output.weight").unwrap_or(embedding);
        let mut values: Vec<f32> = self.product(&x, output).iter().map(|v| *v as f32).collect();
        if let Some(bias) = self.vector("output.bias") {
            values.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % bias.len()]);
        }
        if self.softcap > 0.0 {
            values.iter_mut().for_each(|v| *v = (self.softcap * (*v as f64 / self.softcap).tanh()) as f32);
        }
        Logits { n_vocab: self.n_vocab, values }
    }

    fn attention(&self, layer: usize, x: &[f64], table: &[(f64, f64)], window: usize) -> Vec<f64> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let n = x.len() / self.n_embd;
        let (dk, dv, heads, kv) = (self.key_length, self.value_length, self.n_head, self.n_head_kv);
        let normed = self.norm(x, &name("attn_norm.weight"));
        let projected = |part: &str, fused: &str, from: usize, len: usize| match self.gguf.tensor(&name(&format!("{fused}.weight"))) {
            None => self.linear(&normed, &name(part)),
            Some(whole) => {
                let rows = self.linear(&normed, &name(fused));
                rows.chunks_exact(whole.rows()).flat_map(|row| row[from..from + len].to_vec()).collect()
            }
        };
        let mut q = projected("attn_q", "attn_qkv", 0, heads * dk); // (n, heads, dk)
        let mut k = projected("attn_k", "attn_qkv", heads * dk, kv * dk); // (n, kv, dk)
        let v = projected("attn_v", "attn_qkv", (heads + kv) * dk, kv * dv); // (n, kv, dv)
        if self.qk_norm {
            q = self.norm(&q, &name("attn_q_norm.weight"));
            k = self.norm(&k, &name("attn_k_norm.weight"));
        }
        self.rotate(&mut q, heads, table);
        self.rotate(&mut k, kv, table);
        // gemma-3-27b (62 blocks) scales by its embedding's share, everybody else by the head size.
        let scale = 1.0 / (if self.gemma3 && self.n_layer == 62 { self.n_embd / heads } else { dk } as f64).sqrt();
        let mut out = vec![0f64; n * heads * dv];
        for i in 0..n {
            let first = (i + 1).saturating_sub(window);
            for head in 0..heads {
                let g = head / (heads / kv);
                let query = &q[(i * heads + head) * dk..][..dk];
                let mut scores: Vec<f64> =
                    (first..=i).map(|j| query.iter().zip(&k[(j * kv + g) * dk..][..dk]).map(|(a, b)| a * b).sum::<f64>() * scale).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                scores.iter_mut().for_each(|s| *s = (*s - max).exp());
                let sum: f64 = scores.iter().sum();
                let o = &mut out[(i * heads + head) * dv..][..dv];
                for (j, s) in (first..=i).zip(&scores) {
                    let value = &v[(j * kv + g) * dv..][..dv];
                    o.iter_mut().zip(value).for_each(|(o, v)| *o += s / sum * v);
                }
            }
        }
        let out = self.linear(&out, &name("attn_output"));
        if self.gemma3 { self.norm(&out, &name("post_attention_norm.weight")) } else { out }
    }

    fn ffn(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let normed = self.norm(x, &name("ffn_norm.weight"));
        let mut up = self.linear(&normed, &name("ffn_up"));
        let gate = if self.gguf.tensor(&name("ffn_gate.weight")).is_some() {
            self.linear(&normed, &name("ffn_gate"))
        } else {
            // Rows of the gate, then rows of up.
            let width = up.len() / (normed.len() / self.n_embd);
            let halves = |from: usize| up.chunks_exact(width).flat_map(|row| row[from..from + width / 2].to_vec()).collect::<Vec<_>>();
            let gate = halves(0);
            up = halves(width / 2);
            gate
        };
        for (u, g) in up.iter_mut().zip(gate) {
            *u *= if self.gemma {
                0.5 * g * (1.0 + ((2.0 / PI).sqrt() * g * (1.0 + 0.044715 * g * g)).tanh())
            } else {
                g / (1.0 + (-g).exp())
            };
        }
        let down = self.linear(&up, &name("ffn_down"));
        if self.gemma3 { self.norm(&down, &name("post_ffw_norm.weight")) } else { down }
    }

    /// RMSNorm over rows as long as the weight.
    fn norm(&self, x: &[f64], weight: &str) -> Vec<f64> {
        let w = self.vector(weight).unwrap_or_else(|| panic!("{weight} is missing"));
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(w.len()) {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / w.len() as f64;
            out.extend(row.iter().zip(&w).map(|(v, w)| v / (mean + self.eps).sqrt() * *w as f64));
        }
        out
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let mut y = self.product(x, self.need(&format!("{name}.weight")));
        if let Some(bias) = self.vector(&format!("{name}.bias")) {
            y.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % bias.len()] as f64);
        }
        y
    }

    /// `x` (n, cols) times the transpose of `w` (rows, cols): (n, rows).
    fn product(&self, x: &[f64], w: &TensorInfo) -> Vec<f64> {
        let (cols, rows) = (w.cols(), w.rows());
        let x: Vec<f32> = x.iter().map(|v| *v as f32).collect();
        let n = x.len() / cols;
        let bytes = self.gguf.bytes(w);
        let row_bytes = bytes.len() / rows;
        let mut transposed = vec![0f64; rows * n]; // (rows, n)
        let share = rows.div_ceil(std::thread::available_parallelism().map_or(1, |p| p.get()));
        std::thread::scope(|scope| {
            for (out, blocks) in transposed.chunks_mut(share * n).zip(bytes.chunks(share * row_bytes)) {
                let x = &x;
                scope.spawn(move || {
                    for (out, row) in out.chunks_exact_mut(n).zip(blocks.chunks_exact(row_bytes)) {
                        let row = decode(w.ty, row);
                        out.iter_mut().zip(x.chunks_exact(cols)).for_each(|(o, x)| *o = dot(&row, x));
                    }
                });
            }
        });
        (0..n).flat_map(|i| (0..rows).map(move |r| (i, r))).map(|(i, r)| transposed[r * n + i]).collect()
    }

    /// Turns the first `n_rot` elements of every head: neighbours in `llama`, halves in the others.
    fn rotate(&self, x: &mut [f64], heads: usize, table: &[(f64, f64)]) {
        let half = self.n_rot / 2;
        for (i, head) in x.chunks_exact_mut(self.key_length).enumerate() {
            let position = i / heads;
            for (j, (cos, sin)) in table[position * half..(position + 1) * half].iter().enumerate() {
                let (a, b) = if self.halves { (j, j + half) } else { (2 * j, 2 * j + 1) };
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
    }

    /// Cosine and sine, (positions, n_rot / 2).
    fn rope_table(&self, n: usize, base: f64, scaling: RopeScaling, factors: Option<Vec<f32>>) -> Vec<(f64, f64)> {
        let half = self.n_rot / 2;
        let frequency = |i: usize| {
            let plain = base.powf(-2.0 * i as f64 / self.n_rot as f64) / factors.as_ref().map_or(1.0, |f| f[i] as f64);
            match scaling {
                RopeScaling::None | RopeScaling::LongRope { .. } => plain,
                RopeScaling::Linear(factor) => plain / factor,
                RopeScaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                    let dim = |turns: f64| self.n_rot as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
                    let low = dim(beta_fast).floor().max(0.0);
                    let high = dim(beta_slow).ceil().min(self.n_rot as f64 - 1.0);
                    let keep = 1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    plain / factor * (1.0 - keep) + plain * keep
                }
            }
        };
        let magnitude = match scaling {
            RopeScaling::Yarn { factor, attn_factor, .. } => attn_factor * if factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 },
            RopeScaling::LongRope { attn_factor, .. } => attn_factor,
            _ => 1.0,
        };
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        let angle = |p: usize, f: &f64| ((p as f64 * f).cos() * magnitude, (p as f64 * f).sin() * magnitude);
        (0..n).flat_map(|p| frequencies.iter().map(move |f| angle(p, f))).collect()
    }

    fn frequency_factors(&self) -> Option<Vec<f32>> {
        match self.scaling {
            RopeScaling::LongRope { long: true, .. } => self.vector("rope_factors_long.weight"),
            RopeScaling::LongRope { long: false, .. } => self.vector("rope_factors_short.weight"),
            _ => self.vector("rope_freqs.weight"),
        }
    }

    fn need(&self, name: &str) -> &'a TensorInfo {
        self.gguf.tensor(name).unwrap_or_else(|| panic!("{name} is missing"))
    }

    fn vector(&self, name: &str) -> Option<Vec<f32>> {
        self.gguf.tensor(name).map(|t| decode(t.ty, &self.gguf.bytes(t)))
    }
}

/// f32 over chunks of 256 in 32 lanes, f64 over the chunks.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sum = 0f64;
    for (a, b) in a.chunks(256).zip(b.chunks(256)) {
        let mut lanes = [0f32; 32];
        let (a32, a_rest) = a.as_chunks::<32>();
        let (b32, b_rest) = b.as_chunks::<32>();
        for (a, b) in a32.iter().zip(b32) {
            for l in 0..32 {
                lanes[l] += a[l] * b[l];
            }
        }
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        for width in [16, 8, 4, 2, 1] {
            for l in 0..width {
                lanes[l] += lanes[l + width];
            }
        }
        sum += (lanes[0] + rest) as f64;
    }
    sum
}
