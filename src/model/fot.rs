//! Metadata of the Focused Transformer (arXiv 2307.03170), `{arch}.fot.*`. A file that has it is a plain LLaMA in every
//! tensor; the keys say which layers have memory and how the reference sets up its windows.

use crate::error::{Error, Result, quoted};
use crate::gguf::Gguf;
use crate::kernels::codec::Codec;

/// Settings of a Focused Transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Fot {
    /// 0-based layers with memory, strictly increasing, at least one.
    pub memory_layers: Vec<u32>,
    /// False: no RoPE at all in memory layers, not even among local tokens.
    pub memory_positionals: bool,
    /// Length of the local window (W).
    pub window_length: usize,
    /// Tokens of an input kept out of memory (C).
    pub last_context_length: usize,
    /// What the reference stores keys and values as.
    pub memory_codec: Codec,
    /// Keys read per query and head; 0 is all.
    pub memory_top_k: usize,
}

impl Fot {
    /// Reads the keys; None if the file has no memory layers.
    pub fn read(gguf: &Gguf, prefix: &str, block_count: usize, context_length: usize) -> Result<Option<Fot>> {
        let key = |k: &str| format!("{prefix}.fot.{k}");
        let layers_key = key("memory_layers");
        let Some(array) = gguf.array(&layers_key)? else { return Ok(None) };
        if array.len == 0 {
            return Ok(None);
        }
        let layers: Vec<i64> = array.integers().collect();
        let ordered = layers.windows(2).all(|w| w[0] < w[1]);
        let inside = layers.iter().all(|l| (0..block_count as i64).contains(l));
        if layers.len() != array.len || !ordered || !inside {
            let expected = format!("strictly increasing layers below {block_count}");
            return Err(Error::model(layers_key, expected, format!("{layers:?}")));
        }
        let window_length = gguf.u32(&key("window_length"))?.map_or(context_length, |w| w as usize);
        if !(2..=1 << 24).contains(&window_length) {
            return Err(Error::model(key("window_length"), "2 to 2^24", window_length));
        }
        let last_context_length = gguf.u32(&key("last_context_length"))?.map_or(window_length.min(1024), |c| c as usize);
        if last_context_length == 0 {
            return Err(Error::model(key("last_context_length"), "1 or more", 0));
        }
        let dtype = gguf.str(&key("memory_dtype"))?.unwrap_or("bf16");
        let dtype = dtype.strip_prefix("torch.").unwrap_or(dtype);
        let long_name = match dtype {
            "bfloat16" => "bf16",
            "float16" => "f16",
            "float32" => "f32",
            other => other,
        };
        let memory_codec =
            Codec::from_name(long_name).ok_or_else(|| Error::model(key("memory_dtype"), "f32, f16 or bf16", quoted(dtype)))?;
        Ok(Some(Fot {
            memory_layers: layers.iter().map(|l| *l as u32).collect(),
            memory_positionals: gguf.bool(&key("memory_positionals"))?.unwrap_or(true),
            window_length,
            last_context_length,
            memory_codec,
            memory_top_k: gguf.u32(&key("memory_top_k"))?.unwrap_or(0) as usize,
        }))
    }
}
