//! Options that several verbs share, and what they mean to the library.

use crate::failure::Failure;
use clap::{Args, ValueEnum};
use loci::kv::KvType;
use loci::model::{Model, ModelOptions, RopeOverride, RopeScalingKind};
use loci::sampler::SamplerOptions;
use loci::session::{GenerateOptions, Overflow, Session, SessionOptions};
use std::path::PathBuf;
use std::sync::Arc;

/// Which model.
#[derive(Args)]
pub struct ModelArgs {
    /// The model, a GGUF file
    #[arg(short, long, value_name = "GGUF")]
    pub model: PathBuf,
    /// Pre-tokenizer in place of the file's `tokenizer.ggml.pre`
    #[arg(long, value_name = "NAME")]
    pub pre: Option<String>,
}

impl ModelArgs {
    pub fn open(&self) -> Result<Arc<Model>, Failure> {
        Ok(Model::open(&self.model, &ModelOptions { pre_tokenizer: self.pre.clone() })?)
    }
}

/// How a session computes.
#[derive(Args)]
pub struct SessionArgs {
    /// Tokens of local context; 0 takes the model's own (at most 8192)
    #[arg(short, long, value_name = "TOKENS", default_value_t = 0)]
    pub ctx: usize,
    /// Threads; 0 takes one per big core
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Percent of the time that it works, for devices that get hot: it rests after each pass
    #[arg(long, value_name = "PERCENT", default_value_t = 100)]
    pub duty: u32,
    /// Tokens computed at once in prefill
    #[arg(short, long, value_name = "TOKENS", default_value_t = SessionOptions::default().batch)]
    pub batch: usize,
    /// Encoding of the local keys and values: f32, f16, bf16, q8_0 or q4
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type)]
    pub kv: KvType,
    /// When the window is full: `slide` (the oldest quarter leaves), `slide=BLOCK` (BLOCK tokens), or `dump` (all leave)
    #[arg(long, value_name = "HOW", value_parser = overflow)]
    pub overflow: Option<Overflow>,
    /// Focused Transformer with `--overflow dump`: tokens of a prompt that stay local; 0 takes the file's
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub last_context_length: usize,
    /// Focused Transformer: memory keys read by each query and head; 0 reads all
    #[arg(long, value_name = "KEYS", default_value_t = 0)]
    pub memory_top_k: usize,
    /// Ordinary models: blocks that come back from memory; 0 takes a default that fits the window
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    pub retrieved_blocks: usize,
    /// Ordinary models: layers whose queries search the memory; without it the middle ones
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub search_layers: Vec<u32>,
    /// Ordinary models: MiB of RAM for retrieval; 0 takes 96
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    pub memory_budget: usize,
    /// Ordinary models: tokens of an answer after which it chooses again what it reads; 0: never
    #[arg(long, value_name = "TOKENS", default_value_t = SessionOptions::default().reselect_tokens)]
    pub reselect: usize,
    #[command(flatten)]
    pub rope: RopeArgs,
}

impl SessionArgs {
    /// A session with `options`, which come from [`SessionArgs::options`], at the pace asked for.
    pub fn start(&self, model: Arc<Model>, options: SessionOptions) -> Result<Session, Failure> {
        let mut session = Session::new(model, options)?;
        session.set_duty(self.duty)?;
        Ok(session)
    }

    pub fn options(&self) -> SessionOptions {
        SessionOptions {
            context_length: self.ctx,
            batch: self.batch,
            threads: self.threads,
            kv_type: self.kv,
            rope: self.rope.over(),
            overflow: self.overflow,
            last_context_length: self.last_context_length,
            memory_top_k: self.memory_top_k,
            retrieved_blocks: self.retrieved_blocks,
            memory_budget_bytes: self.memory_budget << 20,
            search_layers: self.search_layers.clone(),
            reselect_tokens: self.reselect,
            ..SessionOptions::default()
        }
    }
}

fn kv_type(name: &str) -> Result<KvType, String> {
    KvType::from_name(name).ok_or_else(|| "expected f32, f16, bf16, q8_0 or q4".to_string())
}

fn overflow(text: &str) -> Result<Overflow, String> {
    match (text, text.strip_prefix("slide=")) {
        ("dump", _) => Ok(Overflow::DumpAll),
        // Block 0 leaves the size to the session: a quarter of the window.
        ("slide", _) => Ok(Overflow::Slide { block: 0 }),
        (_, Some(block)) => {
            let block = block.parse().ok().filter(|&b| b > 0).ok_or("the block must be a positive number")?;
            Ok(Overflow::Slide { block })
        }
        _ => Err("expected slide, slide=BLOCK or dump".into()),
    }
}

/// RoPE scaling in place of what the file says.
#[derive(Args)]
#[command(next_help_heading = "RoPE, in place of what the file says")]
pub struct RopeArgs {
    /// Kind of scaling
    #[arg(long, value_enum)]
    rope_scaling: Option<RopeKind>,
    /// Context extension factor, above 1 stretches
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    rope_scale: Option<f32>,
    /// Base of the frequencies
    #[arg(long, value_name = "BASE", allow_negative_numbers = true)]
    rope_freq_base: Option<f32>,
    /// Trained context of the unscaled model
    #[arg(long, value_name = "TOKENS")]
    yarn_orig_ctx: Option<u32>,
    /// YaRN: extrapolation mix
    #[arg(long, value_name = "MIX", allow_negative_numbers = true)]
    yarn_ext_factor: Option<f32>,
    /// YaRN, LongRoPE: further factor on the magnitude
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    yarn_attn_factor: Option<f32>,
    /// YaRN: fast beta
    #[arg(long, value_name = "BETA", allow_negative_numbers = true)]
    yarn_beta_fast: Option<f32>,
    /// YaRN: slow beta
    #[arg(long, value_name = "BETA", allow_negative_numbers = true)]
    yarn_beta_slow: Option<f32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum RopeKind {
    None,
    Linear,
    Ntk,
    Yarn,
    Longrope,
}

impl RopeArgs {
    fn over(&self) -> Option<RopeOverride> {
        let kind = self.rope_scaling.map(|kind| match kind {
            RopeKind::None => RopeScalingKind::None,
            RopeKind::Linear => RopeScalingKind::Linear,
            RopeKind::Ntk => RopeScalingKind::Ntk,
            RopeKind::Yarn => RopeScalingKind::Yarn,
            RopeKind::Longrope => RopeScalingKind::LongRope,
        });
        let over = RopeOverride {
            kind,
            factor: self.rope_scale,
            original_context_length: self.yarn_orig_ctx,
            freq_base: self.rope_freq_base,
            ext_factor: self.yarn_ext_factor,
            attn_factor: self.yarn_attn_factor,
            beta_fast: self.yarn_beta_fast,
            beta_slow: self.yarn_beta_slow,
        };
        (over != RopeOverride::default()).then_some(over)
    }
}

/// How tokens are chosen.
#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplerArgs {
    /// Temperature; 0 always takes the most probable token
    #[arg(long, value_name = "T", default_value_t = SamplerOptions::default().temperature, allow_negative_numbers = true)]
    temp: f32,
    /// Only the K most probable tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = SamplerOptions::default().top_k)]
    top_k: u32,
    /// Only the most probable tokens that reach mass P; 1 is off
    #[arg(long, value_name = "P", default_value_t = SamplerOptions::default().top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// Only tokens at least P times as probable as the best; 0 is off
    #[arg(long, value_name = "P", default_value_t = SamplerOptions::default().min_p, allow_negative_numbers = true)]
    min_p: f32,
    /// Locally typical sampling; 1 is off
    #[arg(long, value_name = "P", default_value_t = SamplerOptions::default().typical_p, allow_negative_numbers = true)]
    typical_p: f32,
    /// Penalty on tokens seen lately; 1 is off
    #[arg(long, value_name = "X", default_value_t = SamplerOptions::default().repetition_penalty, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Subtracted once from tokens seen lately
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtracted for every time a token was seen lately
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// How many tokens the penalties look back at
    #[arg(long, value_name = "N", default_value_t = SamplerOptions::default().penalty_last_n)]
    repeat_last_n: u32,
    /// Added to a token's logit: ID=BIAS, `-inf` bans; may be repeated
    #[arg(long, value_name = "ID=BIAS", value_parser = bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    /// Where the random numbers start; without it the clock decides
    #[arg(long)]
    seed: Option<u64>,
}

impl SamplerArgs {
    pub fn options(&self) -> Result<SamplerOptions, Failure> {
        let options = SamplerOptions {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_last_n: self.repeat_last_n,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(clock_seed),
        };
        options.validate()?;
        Ok(options)
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let expected = || format!("expected ID=BIAS, found {text:?}");
    let (id, bias) = text.split_once('=').ok_or_else(expected)?;
    Ok((id.trim().parse().map_err(|_| expected())?, bias.trim().parse().map_err(|_| expected())?))
}

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}

/// How an answer is made: what `run`, `chat` and `recall` share.
#[derive(Args)]
pub struct AnswerArgs {
    #[command(flatten)]
    sampler: SamplerArgs,
    #[command(flatten)]
    pub length: LengthArgs,
    #[command(flatten)]
    pub session: SessionArgs,
}

impl AnswerArgs {
    /// Options of the session, the sampler's checked: call it before the model is opened.
    pub fn session_options(&self) -> Result<SessionOptions, Failure> {
        Ok(SessionOptions { sampler: self.sampler.options()?, ..self.session.options() })
    }
}

/// When an answer ends.
#[derive(Args)]
#[command(next_help_heading = "Length")]
pub struct LengthArgs {
    /// At most N tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = GenerateOptions::default().max_tokens)]
    pub max_tokens: usize,
    /// Text that ends the answer and is not part of it; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on past end-of-generation tokens
    #[arg(long)]
    pub ignore_eos: bool,
}

impl LengthArgs {
    pub fn options(&self) -> GenerateOptions {
        GenerateOptions { max_tokens: self.max_tokens, stop: self.stop.clone(), ignore_eos: self.ignore_eos, ..GenerateOptions::default() }
    }
}
