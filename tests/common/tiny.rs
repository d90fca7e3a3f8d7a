//! Tiny models with random weights and a fixed seed, built in memory: `llama` and `gemma3`, any tensor type, a small SPM
//! vocabulary. They have the shape of real files and the size of a test.

use half::{bf16, f16};
use loci::gguf::{TensorType, ValueType, Writer};

/// SplitMix64: small, and the same everywhere.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Uniform below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// About normal, standard deviation 1 (sum of 12 uniforms).
    pub fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.uniform()).sum::<f64>() - 6.0) as f32
    }
}

/// What to build. Start from [`TinyOptions::default`] or [`TinyOptions::of_type`].
#[derive(Clone, Debug)]
pub struct TinyOptions {
    /// Seed of all weights.
    pub seed: u64,
    /// Type of the matrices (norms and biases are F32).
    pub ty: TensorType,
    /// Type of `output.weight` and `token_embd.weight`.
    pub ty_output: TensorType,
    /// `vocab_size`: at least [`VOCAB_MIN`].
    pub n_vocab: usize,
    /// `embedding_length`.
    pub n_embd: usize,
    /// `block_count`.
    pub n_layer: usize,
    /// `attention.head_count`.
    pub n_head: usize,
    /// `attention.head_count_kv`.
    pub n_head_kv: usize,
    /// `attention.key_length` and `value_length`; written only if it is not `n_embd / n_head`.
    pub head_dim: usize,
    /// `feed_forward_length`.
    pub n_ff: usize,
    /// `context_length`.
    pub n_ctx: usize,
    /// No `output.weight`: the embedding serves.
    pub tied: bool,
    /// Biases on q, k, v and, but for qwen2, attention output.
    pub biases: bool,
    /// A `rope_freqs.weight` tensor, as Llama 3 has it.
    pub rope_freqs: bool,
    /// `rope.scaling.type` and `.factor`, with an original context of `n_ctx / factor`.
    pub rope_scaling: Option<(&'static str, f32)>,
    /// `fot.memory_layers` (llama only); the window is `n_ctx`.
    pub memory_layers: Vec<u32>,
    /// `attention.sliding_window` (gemma3 only).
    pub sliding_window: usize,
    /// Keys to leave out and to add, after everything else.
    pub drop_keys: Vec<String>,
    /// Added last.
    pub add: Option<fn(&mut Writer)>,
}

impl Default for TinyOptions {
    fn default() -> Self {
        TinyOptions {
            seed: 1,
            ty: TensorType::F32,
            ty_output: TensorType::F32,
            n_vocab: VOCAB_MIN,
            n_embd: 64,
            n_layer: 2,
            n_head: 4,
            n_head_kv: 2,
            head_dim: 16,
            n_ff: 96,
            n_ctx: 128,
            tied: false,
            biases: false,
            rope_freqs: false,
            rope_scaling: None,
            memory_layers: Vec::new(),
            sliding_window: 16,
            drop_keys: Vec::new(),
            add: None,
        }
    }
}

impl TinyOptions {
    /// All matrices of this type, with dimensions that its blocks divide.
    pub fn of_type(ty: TensorType) -> TinyOptions {
        let base = TinyOptions { ty, ty_output: ty, ..Default::default() };
        if ty.block_len() > 32 { TinyOptions { n_embd: 256, head_dim: 64, n_ff: 512, ..base } } else { base }
    }
}

/// The least vocabulary: `<unk> <s> </s>`, 256 bytes, and [`PIECES`].
pub const VOCAB_MIN: usize = 3 + 256 + PIECES.len();

/// Pieces after the byte tokens, best score first; merges among them are consistent with their scores.
pub const PIECES: [&str; 29] = [
    "\u{2581}t",
    "he",
    "\u{2581}a",
    "in",
    "\u{2581}the",
    "er",
    "on",
    "\u{2581}s",
    "re",
    "\u{2581}",
    "e",
    "t",
    "a",
    "o",
    "i",
    "n",
    "s",
    "h",
    "r",
    "d",
    "l",
    "u",
    "c",
    "m",
    "w",
    "f",
    "g",
    "y",
    "p",
];

/// A llama as a GGUF file.
pub fn llama(o: TinyOptions) -> Vec<u8> {
    build("llama", &o)
}

/// A gemma3 as a GGUF file: always tied, four norms a layer, norms on q and k, sliding windows in 5 of 6 layers.
pub fn gemma3(o: TinyOptions) -> Vec<u8> {
    build("gemma3", &TinyOptions { tied: true, biases: false, memory_layers: Vec::new(), ..o })
}

/// A qwen2 as a GGUF file: biases on q, k and v.
pub fn qwen2(o: TinyOptions) -> Vec<u8> {
    build("qwen2", &TinyOptions { biases: true, memory_layers: Vec::new(), ..o })
}

/// A qwen3 as a GGUF file: norms on q and k.
pub fn qwen3(o: TinyOptions) -> Vec<u8> {
    build("qwen3", &TinyOptions { biases: false, memory_layers: Vec::new(), ..o })
}

/// A phi3 as a GGUF file: q, k and v in one tensor, gate and up in another; RoPE over three quarters of a head.
pub fn phi3(o: TinyOptions) -> Vec<u8> {
    build("phi3", &TinyOptions { biases: false, memory_layers: Vec::new(), ..o })
}

/// A gemma as a GGUF file: always tied.
pub fn gemma(o: TinyOptions) -> Vec<u8> {
    build("gemma", &TinyOptions { tied: true, biases: false, memory_layers: Vec::new(), ..o })
}

fn build(arch: &str, o: &TinyOptions) -> Vec<u8> {
    let gemma = arch == "gemma3";
    let mut w = Writer::new();
    let keep = |key: &str| !o.drop_keys.iter().any(|d| d == key);
    let ints = [
        ("vocab_size", o.n_vocab),
        ("context_length", o.n_ctx),
        ("embedding_length", o.n_embd),
        ("block_count", o.n_layer),
        ("feed_forward_length", o.n_ff),
        ("attention.head_count", o.n_head),
        ("attention.head_count_kv", o.n_head_kv),
        ("rope.dimension_count", if arch == "phi3" { o.head_dim / 4 * 3 } else { o.head_dim }),
    ];
    if keep("general.architecture") {
        w.str("general.architecture", arch);
    }
    w.str("general.name", "tiny");
    for (key, value) in ints {
        let key = format!("{arch}.{key}");
        if keep(&key) {
            w.u32(&key, value as u32);
        }
    }
    if gemma || o.head_dim * o.n_head != o.n_embd {
        w.u32(&format!("{arch}.attention.key_length"), o.head_dim as u32);
        w.u32(&format!("{arch}.attention.value_length"), o.head_dim as u32);
    }
    for (key, value) in [("attention.layer_norm_rms_epsilon", 1e-6), ("rope.freq_base", if gemma { 1e6 } else { 1e4 })] {
        let key = format!("{arch}.{key}");
        if keep(&key) {
            w.f32(&key, value);
        }
    }
    if gemma {
        w.u32("gemma3.attention.sliding_window", o.sliding_window as u32);
    }
    if let Some((ty, factor)) = o.rope_scaling {
        w.str(&format!("{arch}.rope.scaling.type"), ty).f32(&format!("{arch}.rope.scaling.factor"), factor);
        w.u32(&format!("{arch}.rope.scaling.original_context_length"), (o.n_ctx as f32 / factor) as u32);
    }
    if !o.memory_layers.is_empty() {
        w.u32s("llama.fot.memory_layers", &o.memory_layers).u32("llama.fot.window_length", o.n_ctx as u32);
        w.u32("llama.fot.last_context_length", (o.n_ctx / 4) as u32);
    }
    vocabulary(&mut w, o.n_vocab, &keep);
    tensors(&mut w, arch, o);
    if let Some(add) = o.add {
        add(&mut w);
    }
    w.to_bytes().expect("a tiny model is well-formed")
}

fn vocabulary(w: &mut Writer, n_vocab: usize, keep: &impl Fn(&str) -> bool) {
    assert!(n_vocab >= VOCAB_MIN, "a tiny vocabulary has at least {VOCAB_MIN} tokens");
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(PIECES.map(String::from));
    tokens.extend((VOCAB_MIN..n_vocab).map(|i| format!("<extra_{i}>")));
    // unknown 2, control 3, byte 6, normal 1, unused 5
    let types: Vec<i32> = (0..n_vocab)
        .map(|i| {
            [2, 3, 3].get(i).copied().unwrap_or(if i < 259 {
                6
            } else if i < VOCAB_MIN {
                1
            } else {
                5
            })
        })
        .collect();
    let scores: Vec<f32> = (0..n_vocab).map(|i| if i < 259 { 0.0 } else { 258.0 - i as f32 }).collect();
    if keep("tokenizer.ggml.model") {
        w.str("tokenizer.ggml.model", "llama");
    }
    if keep("tokenizer.ggml.tokens") {
        w.strings("tokenizer.ggml.tokens", &tokens);
    }
    if keep("tokenizer.ggml.scores") {
        w.f32s("tokenizer.ggml.scores", &scores);
    }
    if keep("tokenizer.ggml.token_type") {
        w.i32s("tokenizer.ggml.token_type", &types);
    }
    w.u32("tokenizer.ggml.unknown_token_id", 0).u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
    w.bool("tokenizer.ggml.add_bos_token", true).bool("tokenizer.ggml.add_eos_token", false);
}

fn tensors(w: &mut Writer, arch: &str, o: &TinyOptions) {
    let (gemma, gemma3) = (arch.starts_with("gemma"), arch == "gemma3");
    let mut rng = Rng(o.seed);
    let (kv, q) = (o.n_head_kv * o.head_dim, o.n_head * o.head_dim);
    let mut matrix = |w: &mut Writer, name: &str, ty: TensorType, cols: usize, rows: usize, std: f32| {
        w.tensor(name, ty, &[cols as u64, rows as u64], random_blocks(ty, cols * rows, std, &mut rng));
    };
    // A residual stream of about unit size, so that every layer matters.
    let embedding_std = if gemma { 1.0 / (o.n_embd as f32).sqrt() } else { 1.0 };
    matrix(w, "token_embd.weight", o.ty_output, o.n_embd, o.n_vocab, embedding_std);
    if !o.tied {
        matrix(w, "output.weight", o.ty_output, o.n_embd, o.n_vocab, 2.0 / (o.n_embd as f32).sqrt());
    }
    for layer in 0..o.n_layer {
        let mut shapes = match arch {
            "phi3" => vec![("attn_qkv", o.n_embd, q + 2 * kv), ("ffn_up", o.n_embd, 2 * o.n_ff)],
            _ => {
                let attention = [("attn_q", o.n_embd, q), ("attn_k", o.n_embd, kv), ("attn_v", o.n_embd, kv)];
                [attention.as_slice(), &[("ffn_gate", o.n_embd, o.n_ff), ("ffn_up", o.n_embd, o.n_ff)]].concat()
            }
        };
        shapes.extend([("attn_output", q, o.n_embd), ("ffn_down", o.n_ff, o.n_embd)]);
        for (name, cols, rows) in shapes {
            matrix(w, &format!("blk.{layer}.{name}.weight"), o.ty, cols, rows, 1.0 / (cols as f32).sqrt());
        }
    }
    let mut vector = |w: &mut Writer, name: &str, len: usize, mean: f32, std: f32| {
        let bytes = (0..len).flat_map(|_| (mean + std * rng.normal()).to_le_bytes()).collect();
        w.tensor(name, TensorType::F32, &[len as u64], bytes);
    };
    for layer in 0..o.n_layer {
        let mut norms = vec![("attn_norm", o.n_embd), ("ffn_norm", o.n_embd)];
        if gemma3 {
            norms.extend([("post_attention_norm", o.n_embd), ("post_ffw_norm", o.n_embd)]);
        }
        if gemma3 || arch == "qwen3" {
            norms.extend([("attn_q_norm", o.head_dim), ("attn_k_norm", o.head_dim)]);
        }
        for (name, len) in norms {
            vector(w, &format!("blk.{layer}.{name}.weight"), len, 1.0, 0.1);
        }
        if o.biases {
            let all = [("attn_q", q), ("attn_k", kv), ("attn_v", kv), ("attn_output", o.n_embd)];
            for (name, len) in &all[..if arch == "qwen2" { 3 } else { 4 }] {
                let len = *len;
                vector(w, &format!("blk.{layer}.{name}.bias"), len, 0.0, 0.2);
            }
        }
    }
    vector(w, "output_norm.weight", o.n_embd, 1.0, 0.1);
    if o.rope_freqs {
        let factors: Vec<u8> = (0..o.head_dim / 2).flat_map(|i| (1.0 + i as f32 * 0.75).to_le_bytes()).collect();
        w.tensor("rope_freqs.weight", TensorType::F32, &[o.head_dim as u64 / 2], factors);
    }
}

/// `len` random elements of type `ty` with a standard deviation of about `std` and a mean of about 0.
///
/// Blocks are random bytes (every pattern of quants and sub-scales is a valid one) under scales that give the wanted size.
/// Types without a rule below get random bytes all through: they can be parsed, not computed with.
pub fn random_blocks(ty: TensorType, len: usize, std: f32, rng: &mut Rng) -> Vec<u8> {
    use TensorType::*;
    assert!(len.is_multiple_of(ty.block_len()), "{len} elements of {ty}");
    if [F32, F16, BF16].contains(&ty) {
        return (0..len)
            .flat_map(|_| {
                let v = std * rng.normal();
                match ty {
                    F32 => v.to_le_bytes().to_vec(),
                    F16 => f16::from_f32(v).to_le_bytes().to_vec(),
                    _ => bf16::from_f32(v).to_le_bytes().to_vec(),
                }
            })
            .collect();
    }
    // (where d stands, size of random values in units of d, where the minimum stands, minimum in units of d)
    let (d_at, size, m) = match ty {
        Q4_0 => (0, 4.6, None),
        Q4_1 => (0, 4.6, Some((2, -7.5))),
        Q5_0 => (0, 9.2, None),
        Q5_1 => (0, 9.2, Some((2, -15.5))),
        Q8_0 => (0, 74.0, None),
        Q2_K => (80, 12.0, Some((82, 1.5))),
        Q3_K => (108, 43.0, None),
        Q4_K => (0, 256.0, Some((2, 7.5))),
        Q5_K => (0, 530.0, Some((2, 15.5))),
        Q6_K => (208, 1370.0, None),
        IQ4_NL => (0, 69.0, None),
        IQ4_XS => (0, 1280.0, None),
        IQ2_XXS | IQ2_XS | IQ2_S => (0, 100.0, None),
        IQ3_XXS | IQ3_S => (0, 200.0, None),
        IQ1_S => (0, 6.0, None),
        TQ1_0 => (52, 0.8, None),
        TQ2_0 => (64, 0.8, None),
        _ => (usize::MAX, 1.0, None),
    };
    let mut out = Vec::with_capacity(len / ty.block_len() * ty.block_bytes());
    for _ in 0..len / ty.block_len() {
        let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| rng.next() as u8).collect();
        if d_at != usize::MAX {
            let d = std / size * (0.75 + 0.5 * rng.uniform() as f32);
            block[d_at..d_at + 2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            if let Some((at, times)) = m {
                block[at..at + 2].copy_from_slice(&f16::from_f32(d * times).to_le_bytes());
            }
        }
        out.extend(block);
    }
    out
}

/// `n` token ids of the vocabulary, BOS first.
pub fn ids(n: usize, n_vocab: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed ^ 0x1d5);
    (0..n).map(|i| if i == 0 { 1 } else { (3 + rng.below(n_vocab - 3)) as u32 }).collect()
}

/// A value type's bytes, for tests that write a key with the wrong one.
pub fn sample_scalar(ty: ValueType) -> Vec<u8> {
    vec![1; ty.bytes_min()]
}
