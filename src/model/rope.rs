//! RoPE scaling: from metadata or a user's wish to a frequency per pair and a magnitude.
//!
//! Position interpolation (arXiv 2306.15595), NTK-aware scaling, YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753) and
//! Llama 3's frequency factors all change nothing but these, so `kernels::rotary` need not know them.

use super::hparams::{Hparams, Metadata};
use crate::error::{Error, Result, quoted};
use crate::gguf::Gguf;
use crate::kernels::rotary::Rotary;
use std::f64::consts::PI;

/// The kinds of RoPE scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeScalingKind {
    /// Positions as they are.
    None,
    /// Position interpolation: positions divided by the factor.
    Linear,
    /// NTK-aware: the base grows so that low frequencies are interpolated and high ones are not.
    Ntk,
    /// YaRN: interpolated and extrapolated frequencies mixed by a ramp, and a warmer softmax.
    Yarn,
    /// LongRoPE: a factor per frequency from the file, one set for short and one for long contexts.
    LongRope,
}

/// RoPE scaling of a model or a session.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeScaling {
    /// Which kind.
    pub kind: RopeScalingKind,
    /// Context extension factor.
    pub factor: f32,
    /// Context the unscaled model was trained for.
    pub original_context_length: usize,
    /// YaRN: how much of the extrapolated frequency the ramp mixes in, 1 by default.
    pub ext_factor: f32,
    /// YaRN and LongRoPE: further factor on the magnitude; None leaves it to the kind.
    pub attn_factor: Option<f32>,
    /// YaRN: rotations in the original context above which a frequency is left alone.
    pub beta_fast: f32,
    /// YaRN: rotations below which a frequency is fully interpolated.
    pub beta_slow: f32,
}

/// RoPE scaling asked for by the user in place of what the file says. Fields left None keep the file's value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeOverride {
    /// Which scaling.
    pub kind: Option<RopeScalingKind>,
    /// Context extension factor (above 1 stretches).
    pub factor: Option<f32>,
    /// Trained context of the unscaled model (YaRN, LongRoPE).
    pub original_context_length: Option<u32>,
    /// Base of the frequencies.
    pub freq_base: Option<f32>,
    /// YaRN: extrapolation mix, 1 by default.
    pub ext_factor: Option<f32>,
    /// YaRN, LongRoPE: further factor on the magnitude.
    pub attn_factor: Option<f32>,
    /// YaRN: 32 by default.
    pub beta_fast: Option<f32>,
    /// YaRN: 1 by default.
    pub beta_slow: Option<f32>,
}

impl RopeScalingKind {
    /// The kind with this name (`none`, `linear`, `ntk`, `yarn`, `longrope`).
    pub fn from_name(name: &str) -> Option<RopeScalingKind> {
        Some(match name {
            "none" => RopeScalingKind::None,
            "linear" => RopeScalingKind::Linear,
            "ntk" => RopeScalingKind::Ntk,
            "yarn" => RopeScalingKind::Yarn,
            "longrope" => RopeScalingKind::LongRope,
            _ => return None,
        })
    }
}

impl RopeScaling {
    /// Reads `{prefix}.rope.scaling.*` and the older `{prefix}.rope.scale_linear`.
    pub fn read(gguf: &Gguf, prefix: &'static str, context_length: usize) -> Result<RopeScaling> {
        let m = Metadata { gguf, prefix };
        let old = gguf.f32(&m.key("rope.scale_linear"))?;
        let factor_key = m.key("rope.scaling.factor");
        let factor = gguf.f32(&factor_key)?.or(old).filter(|f| *f != 0.0);
        if let Some(f) = factor
            && f <= 0.0
        {
            return Err(Error::model(factor_key, "a number above 0", f));
        }
        let kind_key = m.key("rope.scaling.type");
        let kind = match gguf.str(&kind_key)? {
            // A factor without a type is a linear one.
            None if factor.is_some() => RopeScalingKind::Linear,
            None => RopeScalingKind::None,
            Some(name) => RopeScalingKind::from_name(name)
                .ok_or_else(|| Error::model(kind_key, "none, linear, ntk, yarn or longrope", quoted(name)))?,
        };
        let number = |key: &str, default: f32| -> Result<f32> { Ok(gguf.f32(&m.key(key))?.unwrap_or(default)) };
        let attn_factor = match gguf.f32(&m.key("rope.scaling.attn_factor"))? {
            Some(f) => Some(f),
            None => gguf.f32(&m.key("rope.scaling.yarn_attn_factor"))?,
        };
        Ok(RopeScaling {
            kind,
            factor: factor.unwrap_or(1.0),
            original_context_length: m.size_or("rope.scaling.original_context_length", 1 << 30, context_length)?,
            ext_factor: number("rope.scaling.yarn_ext_factor", 1.0)?,
            attn_factor,
            beta_fast: m.positive("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: m.positive("rope.scaling.yarn_beta_slow", 1.0)?,
        })
    }

    /// With the user's wishes applied.
    pub fn with(&self, o: &RopeOverride) -> Result<RopeScaling> {
        for (name, v) in [("rope factor", o.factor), ("rope beta_fast", o.beta_fast), ("rope beta_slow", o.beta_slow)] {
            if let Some(v) = v
                && !(v.is_finite() && v > 0.0)
            {
                return Err(Error::argument(name, "a finite number above 0", v));
            }
        }
        for (name, v) in [("rope ext_factor", o.ext_factor), ("rope attn_factor", o.attn_factor)] {
            if let Some(v) = v.filter(|v| !v.is_finite()) {
                return Err(Error::argument(name, "a finite number", v));
            }
        }
        let mut s = self.clone();
        s.kind = o.kind.unwrap_or(s.kind);
        s.factor = o.factor.unwrap_or(s.factor);
        if o.kind.is_none() && o.factor.is_some() && s.kind == RopeScalingKind::None {
            s.kind = RopeScalingKind::Linear;
        }
        s.original_context_length = o.original_context_length.map_or(s.original_context_length, |n| n as usize);
        s.ext_factor = o.ext_factor.unwrap_or(s.ext_factor);
        s.attn_factor = o.attn_factor.or(s.attn_factor);
        s.beta_fast = o.beta_fast.unwrap_or(s.beta_fast);
        s.beta_slow = o.beta_slow.unwrap_or(s.beta_slow);
        Ok(s)
    }
}

/// Divisors of the frequencies that a file brings as tensors.
#[derive(Debug, Default)]
pub struct FrequencyFactors {
    /// `rope_freqs.weight` (Llama 3): always applied.
    pub always: Option<Vec<f32>>,
    /// `rope_factors_short.weight` (LongRoPE).
    pub short: Option<Vec<f32>>,
    /// `rope_factors_long.weight` (LongRoPE).
    pub long: Option<Vec<f32>>,
}

/// The rotary embeddings of a session.
#[derive(Debug)]
pub struct RotarySet {
    /// For layers that see everything.
    pub global: Rotary,
    /// For sliding-window layers, which no scaling touches.
    pub sliding: Rotary,
}

impl RotarySet {
    /// For a session of `context` tokens.
    pub fn new(h: &Hparams, factors: &FrequencyFactors, wish: &RopeOverride, context: usize) -> Result<RotarySet> {
        let mut scaling = h.rope_scaling.with(wish)?;
        if wish.kind.is_none() && factors.long.is_some() {
            // Some converters write the factors and name no type.
            scaling.kind = RopeScalingKind::LongRope;
        }
        let base = wish.freq_base.unwrap_or(h.rope_freq_base);
        if !(base.is_finite() && base > 0.0) {
            return Err(Error::argument("rope freq_base", "a finite number above 0", base));
        }
        let dims = h.rope_dimension_count;
        let layout = h.arch.pair_layout;
        let (mut frequencies, magnitude) = scaled_frequencies(&scaling, base, dims, factors, context)?;
        if let Some(f) = &factors.always {
            divide(&mut frequencies, f);
        }
        let sliding = plain_frequencies(f64::from(h.rope_freq_base_swa), dims);
        Ok(RotarySet {
            global: Rotary { frequencies, magnitude, layout },
            sliding: Rotary { frequencies: sliding, magnitude: 1.0, layout },
        })
    }
}

fn plain_frequencies(base: f64, dims: usize) -> Vec<f64> {
    (0..dims / 2).map(|i| base.powf(-2.0 * i as f64 / dims as f64)).collect()
}

fn divide(frequencies: &mut [f64], factors: &[f32]) {
    for (f, by) in frequencies.iter_mut().zip(factors) {
        *f /= f64::from(*by);
    }
}

fn scaled_frequencies(s: &RopeScaling, base: f32, dims: usize, factors: &FrequencyFactors, context: usize) -> Result<(Vec<f64>, f32)> {
    let base = f64::from(base);
    let factor = f64::from(s.factor);
    let mut frequencies = plain_frequencies(base, dims);
    match s.kind {
        RopeScalingKind::None => Ok((frequencies, 1.0)),
        RopeScalingKind::Linear => {
            frequencies.iter_mut().for_each(|f| *f /= factor);
            Ok((frequencies, 1.0))
        }
        RopeScalingKind::Ntk => {
            let d = dims as f64;
            // With two dimensions there is one frequency, 1, and no base can change it.
            let stretched = if dims > 2 { base * factor.powf(d / (d - 2.0)) } else { base };
            Ok((plain_frequencies(stretched, dims), 1.0))
        }
        RopeScalingKind::Yarn => {
            let ramp = YarnRamp::new(s, base, dims);
            for (i, f) in frequencies.iter_mut().enumerate() {
                let mix = ramp.extrapolated(i) * f64::from(s.ext_factor);
                *f = *f / factor * (1.0 - mix) + *f * mix;
            }
            // Section 3.4: the softmax's temperature as a factor on queries and keys.
            let warmth = if s.ext_factor != 0.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 };
            Ok((frequencies, warmth as f32 * s.attn_factor.unwrap_or(1.0)))
        }
        RopeScalingKind::LongRope => {
            let is_long = context > s.original_context_length;
            let (name, set) =
                if is_long { ("rope_factors_long.weight", &factors.long) } else { ("rope_factors_short.weight", &factors.short) };
            let set = set.as_ref().ok_or_else(|| Error::model(name, "the tensor to be present for LongRoPE", "no such tensor"))?;
            divide(&mut frequencies, set);
            Ok((frequencies, s.attn_factor.unwrap_or_else(|| longrope_magnitude(s, context))))
        }
    }
}

/// Section 3.2 of YaRN: which pairs turn fast enough in the trained context to be left alone.
struct YarnRamp {
    low: f64,
    high: f64,
}

impl YarnRamp {
    fn new(s: &RopeScaling, base: f64, dims: usize) -> YarnRamp {
        // The (fractional) pair that makes `rotations` turns in the original context.
        let pair = |rotations: f32| {
            let turns = s.original_context_length as f64 / (f64::from(rotations) * 2.0 * PI);
            dims as f64 * turns.ln() / (2.0 * base.ln())
        };
        YarnRamp { low: pair(s.beta_fast).floor().max(0.0), high: pair(s.beta_slow).ceil().min(dims as f64 - 1.0) }
    }

    /// 1 for fast pairs (extrapolate), 0 for slow ones (interpolate).
    fn extrapolated(&self, pair: usize) -> f64 {
        1.0 - ((pair as f64 - self.low) / (self.high - self.low).max(0.001)).clamp(0.0, 1.0)
    }
}

/// LongRoPE's own magnitude where the file gives none: `sqrt(1 + ln(scale) / ln(original))`.
fn longrope_magnitude(s: &RopeScaling, context: usize) -> f32 {
    let original = s.original_context_length.max(2) as f64;
    let scale = context as f64 / original;
    if scale <= 1.0 { 1.0 } else { (1.0 + scale.ln() / original.ln()).sqrt() as f32 }
}
