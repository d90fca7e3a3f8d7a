//! The options of a session as bytes, for its snapshot: fields in a fixed order, little-endian; later versions append.

use super::{Overflow, SessionOptions};
use crate::bytes::Cursor;
use crate::error::Result;
use crate::kv::KvType;
use crate::model::{RopeOverride, RopeScalingKind};
use crate::sampler::SamplerOptions;

const ROPE_KINDS: [RopeScalingKind; 5] =
    [RopeScalingKind::None, RopeScalingKind::Linear, RopeScalingKind::Ntk, RopeScalingKind::Yarn, RopeScalingKind::LongRope];
/// Where nothing is said.
const NONE: u32 = u32::MAX;

/// Kinds of overflow.
const SLIDE: u32 = 0;
const DUMP_ALL: u32 = 1;

fn put(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
}

/// An optional number: whether it is there, and its bits.
fn put_option(out: &mut Vec<u8>, bits: Option<u32>) {
    put(out, &[u32::from(bits.is_some()), bits.unwrap_or(0)]);
}

fn position<T: PartialEq>(all: &[T], x: &T) -> u32 {
    all.iter().position(|a| a == x).map_or(NONE, |i| i as u32)
}

/// See the module.
pub fn write_options(o: &SessionOptions) -> Vec<u8> {
    let mut out = Vec::new();
    for n in [o.context_length, o.batch, o.threads, o.last_context_length, o.memory_top_k, o.retrieved_blocks] {
        out.extend((n as u64).to_le_bytes());
    }
    let (kind, block) = match o.overflow {
        None => (NONE, 0),
        Some(Overflow::Slide { block }) => (SLIDE, block as u64),
        Some(Overflow::DumpAll) => (DUMP_ALL, 0),
    };
    put(&mut out, &[position(&KvType::ALL, &o.kv_type), kind]);
    out.extend(block.to_le_bytes());
    put(&mut out, &[u32::from(o.rope.is_some())]);
    let r = o.rope.clone().unwrap_or_default();
    put_option(&mut out, r.kind.map(|kind| position(&ROPE_KINDS, &kind)));
    put_option(&mut out, r.original_context_length);
    for x in [r.factor, r.freq_base, r.ext_factor, r.attn_factor, r.beta_fast, r.beta_slow] {
        put_option(&mut out, x.map(f32::to_bits));
    }
    let s = &o.sampler;
    out.extend(s.seed.to_le_bytes());
    for x in [s.temperature, s.top_p, s.min_p, s.typical_p, s.repetition_penalty, s.presence_penalty, s.frequency_penalty] {
        put(&mut out, &[x.to_bits()]);
    }
    put(&mut out, &[s.top_k, s.penalty_last_n]);
    out.extend((s.logit_bias.len() as u64).to_le_bytes());
    s.logit_bias.iter().for_each(|(token, bias)| put(&mut out, &[*token, bias.to_bits()]));
    for n in [o.memory_budget_bytes, o.reselect_tokens, o.search_layers.len()] {
        out.extend((n as u64).to_le_bytes());
    }
    put(&mut out, &o.search_layers);
    out
}

/// The options in `c`; a session checks their ranges.
pub fn read_options(c: &mut Cursor<'_>) -> Result<SessionOptions> {
    let mut size = |name: &str| Ok::<usize, crate::Error>(usize::try_from(c.u64(name)?).unwrap_or(usize::MAX));
    let (context_length, batch, threads) = (size("context_length")?, size("batch")?, size("threads")?);
    let (last_context_length, memory_top_k) = (size("last_context_length")?, size("memory_top_k")?);
    let retrieved_blocks = size("retrieved_blocks")?;
    let at = c.offset();
    let kv = c.u32("kv_type")?;
    let Some(kv_type) = KvType::ALL.get(kv as usize).copied() else {
        return Err(c.error_at(at, "kv_type", "0 to 4", kv));
    };
    let at = c.offset();
    let (kind, block) = (c.u32("overflow")?, c.u64("overflow.block")?);
    let overflow = match kind {
        NONE => None,
        SLIDE => Some(Overflow::Slide { block: block as usize }),
        DUMP_ALL => Some(Overflow::DumpAll),
        n => return Err(c.error_at(at, "overflow", "0, 1 or none", n)),
    };
    let has_rope = c.u32("rope")? != 0;
    let mut option = |name: &str| -> Result<Option<u32>> {
        let (has, bits) = (c.u32(name)?, c.u32(name)?);
        Ok((has != 0).then_some(bits))
    };
    let kind = option("rope.kind")?.and_then(|kind| ROPE_KINDS.get(kind as usize).copied());
    let original_context_length = option("rope.original_context_length")?;
    let mut float = |name: &str| Ok::<_, crate::Error>(option(name)?.map(f32::from_bits));
    let rope = RopeOverride {
        kind,
        factor: float("rope.factor")?,
        original_context_length,
        freq_base: float("rope.freq_base")?,
        ext_factor: float("rope.ext_factor")?,
        attn_factor: float("rope.attn_factor")?,
        beta_fast: float("rope.beta_fast")?,
        beta_slow: float("rope.beta_slow")?,
    };
    let seed = c.u64("seed")?;
    let mut float = |name: &str| Ok::<f32, crate::Error>(f32::from_bits(c.u32(name)?));
    let (temperature, top_p, min_p, typical_p) = (float("temperature")?, float("top_p")?, float("min_p")?, float("typical_p")?);
    let (repetition_penalty, presence_penalty) = (float("repetition_penalty")?, float("presence_penalty")?);
    let frequency_penalty = float("frequency_penalty")?;
    let (top_k, penalty_last_n) = (c.u32("top_k")?, c.u32("penalty_last_n")?);
    let mut logit_bias = Vec::new();
    for _ in 0..c.count("logit_bias", 8)? {
        logit_bias.push((c.u32("logit_bias.token")?, f32::from_bits(c.u32("logit_bias")?)));
    }
    let mut size = |name: &str| Ok::<usize, crate::Error>(usize::try_from(c.u64(name)?).unwrap_or(usize::MAX));
    let (memory_budget_bytes, reselect_tokens) = (size("memory_budget_bytes")?, size("reselect_tokens")?);
    let mut search_layers = Vec::new();
    for _ in 0..c.count("search_layers", 4)? {
        search_layers.push(c.u32("search_layers")?);
    }
    let sampler = SamplerOptions {
        temperature,
        top_k,
        top_p,
        min_p,
        typical_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        penalty_last_n,
        logit_bias,
        seed,
    };
    Ok(SessionOptions {
        context_length,
        batch,
        threads,
        kv_type,
        rope: has_rope.then_some(rope),
        overflow,
        last_context_length,
        memory_top_k,
        retrieved_blocks,
        memory_budget_bytes,
        search_layers,
        reselect_tokens,
        sampler,
    })
}
