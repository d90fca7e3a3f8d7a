//! Checkpoints in Hugging Face's layout, made up on the spot, with their plain evaluation and tokenizers.

use half::{bf16, f16};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

// ------------------------------------------------------------------ a checkpoint

/// A tensor as the checkpoint stores it: values after rounding to its dtype.
#[derive(Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub dtype: &'static str,
    pub values: Vec<f32>,
}

/// config.json and the weights.
pub struct Checkpoint {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
}

struct Random(u64);

impl Random {
    /// Uniform, mean 0, variance 1.
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * 3f32.sqrt()
    }
}

impl Checkpoint {
    /// Random weights for a configuration; dtypes take turns.
    fn random(config: Value) -> Checkpoint {
        let n = |key: &str| config[key].as_u64().unwrap() as usize;
        let (width, ffn, heads, vocab) = (n("hidden_size"), n("intermediate_size"), n("num_attention_heads"), n("vocab_size"));
        let head = width / heads;
        let (q, kv) = (heads * head, config["num_key_value_heads"].as_u64().map_or(heads, |n| n as usize) * head);
        let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![vocab, width]), ("model.norm.weight".into(), vec![width])];
        if config["tie_word_embeddings"] != true {
            shapes.push(("lm_head.weight".into(), vec![vocab, width]));
        }
        for l in 0..n("num_hidden_layers") {
            for (name, shape) in [
                ("input_layernorm", vec![width]),
                ("post_attention_layernorm", vec![width]),
                ("self_attn.q_proj", vec![q, width]),
                ("self_attn.k_proj", vec![kv, width]),
                ("self_attn.v_proj", vec![kv, width]),
                ("self_attn.o_proj", vec![width, q]),
                ("mlp.gate_proj", vec![ffn, width]),
                ("mlp.up_proj", vec![ffn, width]),
                ("mlp.down_proj", vec![width, ffn]),
            ] {
                shapes.push((format!("model.layers.{l}.{name}.weight"), shape));
            }
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let tensors = shapes.into_iter().enumerate().map(|(i, (name, shape))| {
            let dtype = ["F32", "BF16", "F16"][i % 3];
            let scale = if name.contains("embed") { 1.0 } else { 1.5 / (*shape.last().unwrap() as f32).sqrt() };
            let values = (0..shape.iter().product()).map(|_| {
                let v = if shape.len() == 1 { 1.0 + 0.2 * random.next() } else { scale * random.next() };
                match dtype {
                    "BF16" => bf16::from_f32(v).to_f32(),
                    "F16" => f16::from_f32(v).to_f32(),
                    _ => v,
                }
            });
            (name, Tensor { values: values.collect(), shape, dtype })
        });
        Checkpoint { tensors: tensors.collect(), config }
    }

    /// Writes config.json and the weights, in one file or two with an index.
    pub fn write(&self, dir: &Path, sharded: bool) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        if !sharded {
            return write_safetensors(&dir.join("model.safetensors"), self.tensors.iter());
        }
        let mut map = serde_json::Map::new();
        for (shard, file) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].into_iter().enumerate() {
            let part = || self.tensors.iter().enumerate().filter(move |(i, _)| i % 2 == shard).map(|(_, t)| t);
            write_safetensors(&dir.join(file), part());
            map.extend(part().map(|(name, _)| (name.clone(), json!(file))));
        }
        std::fs::write(dir.join("model.safetensors.index.json"), json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    }

    fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }
}

fn write_safetensors<'a>(path: &Path, tensors: impl Iterator<Item = (&'a String, &'a Tensor)>) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    for (name, t) in tensors {
        let start = data.len();
        for v in &t.values {
            match t.dtype {
                "BF16" => data.extend(bf16::from_f32(*v).to_le_bytes()),
                "F16" => data.extend(f16::from_f32(*v).to_le_bytes()),
                _ => data.extend(v.to_le_bytes()),
            }
        }
        header.insert(name.clone(), json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [start, data.len()] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

/// A LongLLaMA with a head of 20 dimensions and rows that no block of 32 divides.
pub fn longllama(vocab: usize, positionals: bool) -> Checkpoint {
    Checkpoint::random(json!({
        "architectures": ["LongLlamaForCausalLM"], "model_type": "longllama", "hidden_act": "silu",
        "hidden_size": 80, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": vocab,
        "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "rope_scaling": null, "max_position_embeddings": 32,
        "mem_layers": [1], "mem_positionals": positionals, "mem_dtype": "float32", "last_context_length": 12,
        "mem_attention_grouping": null, "torch_attention": false, "tie_word_embeddings": false,
    }))
}

/// A plain LLaMA with grouped queries, tied embeddings and no tokenizer roles of its own.
pub fn llama(vocab: usize) -> Checkpoint {
    Checkpoint::random(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": vocab, "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "tie_word_embeddings": true,
    }))
}

// ------------------------------------------------------------------ its plain evaluation

type KeyValue = (Vec<f64>, Vec<f64>);

/// Logits of all tokens, the input being cut into windows of these lengths: each goes into the memory of the memory layers after it is read.
pub fn evaluate(c: &Checkpoint, ids: &[u32], windows: &[usize]) -> Vec<f32> {
    let (heads, width) = (c.size("num_attention_heads"), c.size("hidden_size"));
    let d = width / heads;
    let heads_kv = c.config["num_key_value_heads"].as_u64().map_or(heads, |n| n as usize);
    let is_memory = |l: usize| c.config["mem_layers"].as_array().is_some_and(|a| a.contains(&json!(l)));
    let theta = c.config["rope_theta"].as_f64().unwrap_or(10_000.0);
    let mut memory: BTreeMap<usize, Vec<KeyValue>> = BTreeMap::new();
    let mut out = Vec::new();
    let mut rest = ids;
    for window in windows {
        let (ids, after) = rest.split_at(*window);
        rest = after;
        let embedding = &c.tensors["model.embed_tokens.weight"].values;
        let mut x: Vec<Vec<f64>> =
            ids.iter().map(|id| embedding[*id as usize * width..][..width].iter().map(|v| *v as f64).collect()).collect();
        for l in 0..c.size("num_hidden_layers") {
            let w = |name: &str| &c.tensors[&format!("model.layers.{l}.{name}.weight")];
            let h: Vec<_> = x.iter().map(|x| rms_norm(c, x, w("input_layernorm"))).collect();
            let project = |name: &str| -> Vec<Vec<f64>> { h.iter().map(|h| times(w(name), h)).collect() };
            let (mut q, raw_k, v) = (project("self_attn.q_proj"), project("self_attn.k_proj"), project("self_attn.v_proj"));
            let mut k = raw_k.clone();
            if !is_memory(l) || c.config["mem_positionals"] == true {
                for (position, (q, k)) in q.iter_mut().zip(&mut k).enumerate() {
                    q.chunks_mut(d).chain(k.chunks_mut(d)).for_each(|head| rotate_half(head, position, theta));
                }
            }
            let entries = memory.entry(l).or_default();
            for i in 0..ids.len() {
                let mut attended = vec![0.0; width];
                for head in 0..heads {
                    let kv = head / (heads / heads_kv) * d;
                    let seen = (0..=i).map(|j| (&k[j], &v[j])).chain(entries.iter().map(|(k, v)| (k, v)));
                    let scored: Vec<(f64, &[f64])> =
                        seen.map(|(k, v)| (dot(&q[i][head * d..][..d], &k[kv..][..d]) / (d as f64).sqrt(), &v[kv..][..d])).collect();
                    let max = scored.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scored.iter().map(|s| (s.0 - max).exp()).sum();
                    for (score, value) in scored {
                        let weight = (score - max).exp() / sum;
                        attended[head * d..][..d].iter_mut().zip(value).for_each(|(a, v)| *a += weight * v);
                    }
                }
                add(&mut x[i], &times(w("self_attn.o_proj"), &attended));
            }
            if is_memory(l) {
                entries.extend(raw_k.into_iter().zip(v));
            }
            for x in &mut x {
                let h = rms_norm(c, x, w("post_attention_layernorm"));
                let (gate, up) = (times(w("mlp.gate_proj"), &h), times(w("mlp.up_proj"), &h));
                let h: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(x, &times(w("mlp.down_proj"), &h));
            }
        }
        let head = c.tensors.get("lm_head.weight").unwrap_or(&c.tensors["model.embed_tokens.weight"]);
        for x in &x {
            out.extend(times(head, &rms_norm(c, x, &c.tensors["model.norm.weight"])).iter().map(|v| *v as f32));
        }
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn times(w: &Tensor, x: &[f64]) -> Vec<f64> {
    w.values.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| *w as f64 * x).sum()).collect()
}

fn rms_norm(c: &Checkpoint, x: &[f64], w: &Tensor) -> Vec<f64> {
    let scale = (dot(x, x) / x.len() as f64 + c.config["rms_norm_eps"].as_f64().unwrap()).sqrt().recip();
    x.iter().zip(&w.values).map(|(x, w)| x * scale * *w as f64).collect()
}

/// Hugging Face's pairs: dimension i with i + d/2.
fn rotate_half(head: &mut [f64], position: usize, theta: f64) {
    let d = head.len();
    for i in 0..d / 2 {
        let (sin, cos) = (position as f64 * theta.powf(-2.0 * i as f64 / d as f64)).sin_cos();
        let (a, b) = (head[i], head[i + d / 2]);
        head[i] = a * cos - b * sin;
        head[i + d / 2] = b * cos + a * sin;
    }
}

// ------------------------------------------------------------------ its tokenizer

const SPACE: &str = "\u{2581}";
const MERGES: &[[&str; 2]] =
    &[["▁", "t"], ["h", "e"], ["▁t", "he"], ["▁", "a"], ["i", "n"], ["in", "g"], ["▁", "▁"], ["r", "ing"], ["▁", "ring"], ["l", "l"]];
const LETTERS: &[&str] = &[SPACE, "e", "t", "a", "o", "n", "h", "i", "s", "r", "l", "g", "w", "d", "c", "é"];
/// Texts that both tokenizers are asked for.
pub const TEXTS: &[&str] = &[
    "the thing in a ring",
    "hello  world",
    "  two spaces first",
    "a tail ",
    "line\nbreak\tand tab",
    "é ü 日本 \u{1F600}",
    "tthehe ringing allll the  ",
    "",
];

/// (text, score, type) of every piece, in SentencePiece's order.
pub fn pieces() -> Vec<(String, f32, u8)> {
    let mut all = vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    all.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), 0.0, 6)));
    all.extend(MERGES.iter().enumerate().map(|(i, pair)| (pair.concat(), -(i as f32), 1)));
    all.extend(LETTERS.iter().enumerate().map(|(i, c)| (c.to_string(), -((MERGES.len() + i) as f32), 1)));
    all.push(("<|tab|>".into(), 0.0, 4));
    all
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 128 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

fn message(field: u64, body: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | 2, out);
    varint(body.len() as u64, out);
    out.extend(body);
}

fn numbers(fields: &[(u64, i64)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (field, value) in fields {
        varint(field << 3, &mut out);
        varint(*value as u64, &mut out);
    }
    out
}

/// A SentencePiece model of type `kind` (2 is BPE).
pub fn sentencepiece(kind: i64) -> Vec<u8> {
    let mut out = Vec::new();
    for (text, score, ty) in pieces() {
        let mut piece = Vec::new();
        message(1, text.as_bytes(), &mut piece);
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        if ty != 1 {
            piece.extend(numbers(&[(3, ty.into())]));
        }
        message(1, &piece, &mut out);
    }
    message(2, &numbers(&[(3, kind), (35, 1), (40, 0), (41, 1), (42, 2), (43, -1)]), &mut out);
    message(3, &numbers(&[(3, 1), (4, 0), (5, 1)]), &mut out);
    out
}

/// The same vocabulary as tokenizer.json has it.
pub fn tokenizer_json() -> Value {
    let all = pieces();
    let vocab: serde_json::Map<_, _> = all.iter().enumerate().map(|(id, p)| (p.0.clone(), json!(id))).collect();
    let added = |id: usize, special: bool| {
        json!({ "id": id, "content": all[id].0, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, true), added(1, true), added(2, true), added(all.len() - 1, false)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": SPACE }, { "type": "Replace", "pattern": { "String": " " }, "content": SPACE }] },
        "pre_tokenizer": null,
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": null,
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
            "merges": MERGES.iter().map(|m| m.join(" ")).collect::<Vec<_>>() },
    })
}

/// A byte-level vocabulary as GPT-2 has it: a letter for each byte, merges, one special token.
pub fn byte_level_json() -> Value {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|b| !printable(b)).enumerate().map(|(i, b)| (b, char::from_u32(256 + i as u32).unwrap()));
    let letters: BTreeMap<u8, char> = (0..=255u8).filter(printable).map(|b| (b, b as char)).chain(others).collect();
    let merges = ["h e", "Ġ t", "Ġt he", "i n", "in g", "l l", "r ing"];
    let tokens = letters.values().map(char::to_string).chain(merges.iter().map(|m| m.replace(' ', "")));
    let vocab: serde_json::Map<_, _> = tokens.enumerate().map(|(id, t)| (t, json!(id))).collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{ "id": vocab.len(), "content": "<|endoftext|>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false }],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
            // The newer way to write merges.
            "merges": merges.iter().map(|m| m.split(' ').collect::<Vec<_>>()).collect::<Vec<_>>() },
    })
}
