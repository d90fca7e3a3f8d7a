//! Options: the C structs, their defaults, and what the engine takes.
#![allow(unsafe_code)]

use crate::args;
use crate::guard::guard;
use crate::status::{Fail, Outcome};
use crate::types::*;
use engine::kv::KvType;
use engine::memory::Codec;
use engine::model::{ModelOptions, RopeOverride, RopeScalingKind};
use engine::sampler::SamplerOptions;
use engine::session::{GenerateOptions, Overflow, SessionOptions};
use std::mem::size_of;
use std::ptr::null;

/// The negative number that stands for "as the file says".
const FILE: f32 = -1.0;

#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
fn default_model_options() -> loci_model_options {
    loci_model_options { struct_size: size_of::<loci_model_options>(), pre_tokenizer: null() }
}

#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
fn default_memory_options() -> loci_memory_options {
    loci_memory_options { struct_size: size_of::<loci_memory_options>(), codec: LOCI_MEMORY_DEFAULT, reserved: 0 }
}

#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
fn default_session_options() -> loci_session_options {
    let d = SessionOptions::default();
    loci_session_options {
        struct_size: size_of::<loci_session_options>(),
        context_length: c_count(d.context_length),
        batch: c_count(d.batch),
        threads: c_count(d.threads),
        kv_codec: match d.kv_type {
            KvType::F32 => LOCI_KV_F32,
            KvType::F16 => LOCI_KV_F16,
            KvType::Bf16 => LOCI_KV_BF16,
            KvType::Q8_0 => LOCI_KV_Q8_0,
            KvType::Q4 => LOCI_KV_Q4,
        },
        overflow: LOCI_OVERFLOW_DEFAULT,
        slide_block: 0,
        last_context_length: c_count(d.last_context_length),
        memory_top_k: c_count(d.memory_top_k),
        retrieved_blocks: c_count(d.retrieved_blocks),
        rope_scaling: LOCI_ROPE_FILE,
        rope_factor: FILE,
        rope_original_context_length: 0,
        rope_freq_base: FILE,
        rope_ext_factor: FILE,
        rope_attn_factor: FILE,
        rope_beta_fast: FILE,
        rope_beta_slow: FILE,
        reserved: 0,
        memory_budget_bytes: d.memory_budget_bytes as u64,
        reselect_tokens: c_count(d.reselect_tokens),
        reserved_more: 0,
    }
}

#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
fn default_sampler_options() -> loci_sampler_options {
    let d = SamplerOptions::default();
    loci_sampler_options {
        struct_size: size_of::<loci_sampler_options>(),
        seed: d.seed,
        logit_bias: null(),
        logit_bias_count: 0,
        temperature: d.temperature,
        top_k: d.top_k,
        top_p: d.top_p,
        min_p: d.min_p,
        typical_p: d.typical_p,
        repetition_penalty: d.repetition_penalty,
        presence_penalty: d.presence_penalty,
        frequency_penalty: d.frequency_penalty,
        penalty_last_n: d.penalty_last_n,
        reserved: 0,
    }
}

#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
fn default_generate_options() -> loci_generate_options {
    let d = GenerateOptions::default();
    loci_generate_options {
        struct_size: size_of::<loci_generate_options>(),
        stop: null(),
        stop_count: 0,
        max_tokens: c_count(d.max_tokens),
        ignore_eos: d.ignore_eos.into(),
        log_probabilities: d.log_probabilities.map_or(-1, |n| n.try_into().unwrap_or(i32::MAX)),
        reserved: 0,
    }
}

#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
fn c_count(n: usize) -> u32 {
    n.try_into().unwrap_or(u32::MAX)
}

fn reserved(value: u32) -> Outcome {
    if value == 0 { Ok(()) } else { Err(Fail::argument("reserved", "0", value)) }
}

/// The codec asked for, if one is.
///
/// # Safety
/// As [`args::options`].
pub unsafe fn memory_codec(pointer: *const loci_memory_options) -> Outcome<Option<Codec>> {
    // SAFETY: the caller's promise.
    let o = unsafe { args::options(pointer, default_memory_options())? };
    reserved(o.reserved)?;
    codec_of(o.codec)
}

/// The codec of a `loci_memory_codec`, unless it is the default.
pub fn codec_of(codec: i32) -> Outcome<Option<Codec>> {
    Ok(match codec {
        LOCI_MEMORY_DEFAULT => None,
        LOCI_MEMORY_F32 => Some(Codec::F32),
        LOCI_MEMORY_F16 => Some(Codec::F16),
        LOCI_MEMORY_BF16 => Some(Codec::Bf16),
        LOCI_MEMORY_K8V4 => Some(Codec::K8V4),
        LOCI_MEMORY_K4V4 => Some(Codec::K4V4),
        v => return Err(Fail::argument("codec", "a loci_memory_codec", v)),
    })
}

/// # Safety
/// As [`args::options`]; strings as the header says.
pub unsafe fn model_options(pointer: *const loci_model_options) -> Outcome<ModelOptions> {
    // SAFETY: the caller's promise.
    unsafe {
        let o = args::options(pointer, default_model_options())?;
        let pre_tokenizer = args::optional_string("pre_tokenizer", o.pre_tokenizer)?.map(str::to_owned);
        Ok(ModelOptions { pre_tokenizer })
    }
}

/// # Safety
/// As [`args::options`].
pub unsafe fn session_options(pointer: *const loci_session_options) -> Outcome<SessionOptions> {
    // SAFETY: the caller's promise.
    let o = unsafe { args::options(pointer, default_session_options())? };
    reserved(o.reserved)?;
    reserved(o.reserved_more)?;
    let kv_type = match o.kv_codec {
        LOCI_KV_F32 => KvType::F32,
        LOCI_KV_F16 => KvType::F16,
        LOCI_KV_BF16 => KvType::Bf16,
        LOCI_KV_Q8_0 => KvType::Q8_0,
        LOCI_KV_Q4 => KvType::Q4,
        v => return Err(Fail::argument("kv_codec", "a loci_kv_codec", v)),
    };
    let overflow = match o.overflow {
        LOCI_OVERFLOW_DEFAULT => None,
        LOCI_OVERFLOW_SLIDE => Some(Overflow::Slide { block: o.slide_block as usize }),
        LOCI_OVERFLOW_DUMP_ALL => Some(Overflow::DumpAll),
        v => return Err(Fail::argument("overflow", "a loci_overflow", v)),
    };
    let kind = match o.rope_scaling {
        LOCI_ROPE_FILE => None,
        LOCI_ROPE_NONE => Some(RopeScalingKind::None),
        LOCI_ROPE_LINEAR => Some(RopeScalingKind::Linear),
        LOCI_ROPE_NTK => Some(RopeScalingKind::Ntk),
        LOCI_ROPE_YARN => Some(RopeScalingKind::Yarn),
        LOCI_ROPE_LONGROPE => Some(RopeScalingKind::LongRope),
        v => return Err(Fail::argument("rope_scaling", "a loci_rope_scaling", v)),
    };
    let given = |name: &str, v: f32| {
        if v.is_nan() { Err(Fail::argument(name, "a number", v)) } else { Ok(Some(v).filter(|v| *v >= 0.0)) }
    };
    let rope = RopeOverride {
        kind,
        factor: given("rope_factor", o.rope_factor)?,
        original_context_length: Some(o.rope_original_context_length).filter(|n| *n > 0),
        freq_base: given("rope_freq_base", o.rope_freq_base)?,
        ext_factor: given("rope_ext_factor", o.rope_ext_factor)?,
        attn_factor: given("rope_attn_factor", o.rope_attn_factor)?,
        beta_fast: given("rope_beta_fast", o.rope_beta_fast)?,
        beta_slow: given("rope_beta_slow", o.rope_beta_slow)?,
    };
    Ok(SessionOptions {
        context_length: o.context_length as usize,
        batch: o.batch as usize,
        threads: o.threads as usize,
        kv_type,
        rope: Some(rope).filter(|r| *r != RopeOverride::default()),
        overflow,
        last_context_length: o.last_context_length as usize,
        memory_top_k: o.memory_top_k as usize,
        retrieved_blocks: o.retrieved_blocks as usize,
        memory_budget_bytes: usize::try_from(o.memory_budget_bytes).unwrap_or(usize::MAX),
        reselect_tokens: o.reselect_tokens as usize,
        search_layers: Vec::new(),
        sampler: SamplerOptions::default(),
    })
}

/// # Safety
/// As [`args::options`]; arrays as the header says.
pub unsafe fn sampler_options(pointer: *const loci_sampler_options) -> Outcome<SamplerOptions> {
    // SAFETY: the caller's promise.
    let (o, bias) = unsafe {
        let o = args::options(pointer, default_sampler_options())?;
        (o, args::slice("logit_bias", o.logit_bias, o.logit_bias_count)?)
    };
    reserved(o.reserved)?;
    let logit_bias = bias.iter().map(|b| match u32::try_from(b.token) {
        Ok(token) => Ok((token, b.bias)),
        Err(_) => Err(Fail::argument("logit_bias", "tokens of 0 and above", b.token)),
    });
    Ok(SamplerOptions {
        temperature: o.temperature,
        top_k: o.top_k,
        top_p: o.top_p,
        min_p: o.min_p,
        typical_p: o.typical_p,
        repetition_penalty: o.repetition_penalty,
        presence_penalty: o.presence_penalty,
        frequency_penalty: o.frequency_penalty,
        penalty_last_n: o.penalty_last_n,
        logit_bias: logit_bias.collect::<Outcome<_>>()?,
        seed: o.seed,
    })
}

/// # Safety
/// As [`args::options`]; arrays and strings as the header says.
pub unsafe fn generate_options(pointer: *const loci_generate_options) -> Outcome<GenerateOptions> {
    // SAFETY: the caller's promise.
    let (o, stop) = unsafe {
        let o = args::options(pointer, default_generate_options())?;
        let stop = args::slice("stop", o.stop, o.stop_count)?;
        (o, stop.iter().map(|s| args::string("stop", *s).map(str::to_owned)).collect::<Outcome<_>>()?)
    };
    reserved(o.reserved)?;
    let log_probabilities = match o.log_probabilities {
        -1 => None,
        n => Some(usize::try_from(n).map_err(|_| Fail::argument("log_probabilities", "-1, or 0 and above", n))?),
    };
    Ok(GenerateOptions {
        max_tokens: o.max_tokens as usize,
        stop,
        ignore_eos: args::boolean("ignore_eos", o.ignore_eos)?,
        log_probabilities,
    })
}

/// See the header.
///
/// # Safety
/// `options` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_model_options_init(options: *mut loci_model_options, struct_size: usize) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe { args::init(options, struct_size, default_model_options()) })
}

/// See the header.
///
/// # Safety
/// `options` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_memory_options_init(options: *mut loci_memory_options, struct_size: usize) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe { args::init(options, struct_size, default_memory_options()) })
}

/// See the header.
///
/// # Safety
/// `options` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_session_options_init(options: *mut loci_session_options, struct_size: usize) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe { args::init(options, struct_size, default_session_options()) })
}

/// See the header.
///
/// # Safety
/// `options` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_sampler_options_init(options: *mut loci_sampler_options, struct_size: usize) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe { args::init(options, struct_size, default_sampler_options()) })
}

/// See the header.
///
/// # Safety
/// `options` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn loci_generate_options_init(options: *mut loci_generate_options, struct_size: usize) -> i32 {
    // SAFETY: as the header demands of the caller.
    guard(|| unsafe { args::init(options, struct_size, default_generate_options()) })
}
