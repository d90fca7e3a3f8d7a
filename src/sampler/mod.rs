//! From logits to a token: a chain of stages and a seeded random number generator.
//!
//! One call of [`Sampler::sample`] runs, always in this order,
//!
//! 1. logit bias: the given amount is added, `-inf` bans;
//! 2. penalties over the last `penalty_last_n` accepted tokens: repetition, then frequency and presence;
//! 3. top-k: the `k` largest logits stay;
//! 4. locally typical ([Meister et al. 2022](https://arxiv.org/abs/2202.00666)): the tokens whose surprise is nearest to the entropy;
//! 5. top-p, the nucleus ([Holtzman et al. 2019](https://arxiv.org/abs/1904.09751)): the most probable tokens that reach mass `p`;
//! 6. min-p ([Nguyen et al. 2024](https://arxiv.org/abs/2407.01082)): what is at least `min_p` times as probable as the best;
//! 7. temperature: logits are divided by it. It comes last, so the stages above see the model's own distribution;
//! 8. the draw.
//!
//! Each of 4, 5 and 6 works on the distribution that the stage before it left, renormalised. Temperature 0 is greedy: the largest
//! logit after 1 and 2, with no draw and the other stages skipped.
//!
//! Invariants: equal logits are ordered by id, lowest first, everywhere, so greedy and every truncation are deterministic; the same
//! options, seed and history give the same token on every machine whose `exp` agrees; a NaN logit counts as `-inf`, and a row with
//! nothing left is an error, never a panic; once the buffers have seen a row's length and a full history, nothing allocates.

mod logprob;
mod penalties;
mod rng;
mod stages;

pub use logprob::{log_probability, log_softmax, log_sum_exp, top_log_probabilities};
pub use rng::Rng;
pub use stages::Candidate;

use crate::error::{Error, Result, try_reserve};
use penalties::History;

/// What the chain does; see the [module](self) for the order of its stages.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits before the draw; 0 is greedy.
    pub temperature: f32,
    /// How many of the largest logits stay; 0 is off.
    pub top_k: u32,
    /// Mass of the nucleus, 0 to 1; 1 is off, 0 leaves one token.
    pub top_p: f32,
    /// Least probability relative to the most probable token, 0 to 1; 0 is off.
    pub min_p: f32,
    /// Mass of the locally typical set, 0 to 1; 1 is off, 0 leaves one token.
    pub typical_p: f32,
    /// Positive logits of tokens seen lately are divided by this, the others multiplied; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token seen lately; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a logit for every time the token was seen lately; 0 is off.
    pub frequency_penalty: f32,
    /// How many accepted tokens the penalties look back at; 0 switches them off.
    pub penalty_last_n: u32,
    /// Added to the logits of these ids; `-inf` bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Where the random numbers start. The library never picks one by itself.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// Temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties, seed 0: what most local runtimes start from.
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: 64,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Always the most probable token; no penalties, no bias.
    pub fn greedy() -> Self {
        SamplerOptions { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Self::default() }
    }

    /// Checks every field's range; the error names the field. NaN fits no range.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &'static str, ok: bool, expected: &str, value: f32| {
            if ok { Ok(()) } else { Err(Error::argument(name, expected, value)) }
        };
        let finite = "a finite number";
        let share = "a number from 0 to 1";
        check("temperature", self.temperature.is_finite() && self.temperature >= 0.0, "a finite number, 0 or more", self.temperature)?;
        check("top_p", (0.0..=1.0).contains(&self.top_p), share, self.top_p)?;
        check("min_p", (0.0..=1.0).contains(&self.min_p), share, self.min_p)?;
        check("typical_p", (0.0..=1.0).contains(&self.typical_p), share, self.typical_p)?;
        let repetition = self.repetition_penalty;
        check("repetition_penalty", repetition.is_finite() && repetition > 0.0, "a finite number above 0", repetition)?;
        check("presence_penalty", self.presence_penalty.is_finite(), finite, self.presence_penalty)?;
        check("frequency_penalty", self.frequency_penalty.is_finite(), finite, self.frequency_penalty)?;
        for &(_, bias) in &self.logit_bias {
            check("logit_bias", bias.is_finite() || bias == f32::NEG_INFINITY, "a finite number or -inf", bias)?;
        }
        Ok(())
    }
}

/// The chain with its state: the random numbers drawn so far and the tokens accepted lately.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: Rng,
    history: History,
    /// The row after bias and penalties. (n_vocab)
    logits: Vec<f32>,
    /// What is left of the row, stage by stage. (at most n_vocab)
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler that has seen nothing. Fails where [`SamplerOptions::validate`] does.
    pub fn new(options: SamplerOptions) -> Result<Sampler> {
        options.validate()?;
        let rng = Rng::new(options.seed);
        let history = History::new(options.penalty_last_n);
        Ok(Sampler { options, rng, history, logits: Vec::new(), candidates: Vec::new() })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Picks the next token of a row of logits (n_vocab). It is not remembered until [`Sampler::accept`] says so: a caller may drop it.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty row, a row in which everything is banned or NaN, and a `logit_bias` on an id outside the row.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.run(logits)?;
        let greedy = self.options.temperature == 0.0;
        let mut left = if greedy { 0.0 } else { self.rng.unit() };
        // Rounding may leave a rest above the last sum: then the last candidate that has any probability is meant.
        let mut drawn = None;
        for candidate in self.candidates.iter().filter(|c| c.probability > 0.0) {
            drawn = Some(candidate.id);
            if left < candidate.probability {
                break;
            }
            left -= candidate.probability;
        }
        drawn.ok_or_else(nothing_left)
    }

    /// The distribution that [`Sampler::sample`] would draw from, without drawing: what the stages left, with probabilities that sum
    /// to 1; one candidate when greedy. Errors as [`Sampler::sample`].
    pub fn candidates(&mut self, logits: &[f32]) -> Result<&[Candidate]> {
        self.run(logits)?;
        Ok(&self.candidates)
    }

    /// Remembers a token for the penalties: those sampled and kept, and those of the prompt if they are to count.
    pub fn accept(&mut self, token: u32) {
        self.history.push(token);
    }

    /// Back to how [`Sampler::new`] made it: the seed again, nothing accepted.
    pub fn reset(&mut self) {
        self.rng = Rng::new(self.options.seed);
        self.history.clear();
    }

    /// The text is `tokens` now, shorter than before: penalties look back at its end. The generator goes on as it was.
    pub fn rewind(&mut self, tokens: &[u32]) {
        self.history.clear();
        let last = tokens.len().saturating_sub(self.options.penalty_last_n as usize);
        tokens[last..].iter().for_each(|t| self.history.push(*t));
    }

    fn run(&mut self, row: &[f32]) -> Result<()> {
        let o = &self.options;
        if row.is_empty() {
            return Err(Error::argument("logits", "a row of at least one logit", "an empty row"));
        }
        self.logits.clear();
        try_reserve(&mut self.logits, CANDIDATES, row.len())?;
        self.logits.extend_from_slice(row);
        for &(id, bias) in &o.logit_bias {
            match self.logits.get_mut(id as usize) {
                Some(logit) => *logit += bias,
                None => return Err(Error::argument("logit_bias", format!("ids below {}", row.len()), id)),
            }
        }
        self.history.penalise(&mut self.logits, o.repetition_penalty, o.presence_penalty, o.frequency_penalty)?;

        let candidates = &mut self.candidates;
        let keep = if o.temperature == 0.0 { 1 } else { o.top_k };
        stages::top_k(candidates, &self.logits, keep)?;
        if candidates.is_empty() {
            return Err(nothing_left());
        }
        if o.temperature > 0.0 {
            if o.typical_p < 1.0 {
                stages::typical(candidates, o.typical_p.into());
            }
            if o.top_p < 1.0 {
                stages::top_p(candidates, o.top_p.into());
            }
            if o.min_p > 0.0 {
                stages::min_p(candidates, o.min_p.into());
            }
        }
        stages::softmax(candidates, if o.temperature == 0.0 { 1.0 } else { o.temperature.into() });
        Ok(())
    }

    /// The state as bytes, for a snapshot: a version, the generator, the history. Options are not in it.
    ///
    /// Layout, little endian: `u32` version 1, `u64` x 4 generator, `u32` count, `u32` x count tokens, oldest first.
    pub fn state(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + 32 + 4 + 4 * self.history.len());
        out.extend_from_slice(&STATE_VERSION.to_le_bytes());
        out.extend_from_slice(&self.rng.to_bytes());
        out.extend_from_slice(&(self.history.len() as u32).to_le_bytes());
        for token in self.history.tokens() {
            out.extend_from_slice(&token.to_le_bytes());
        }
        out
    }

    /// Takes the state of [`Sampler::state`]. A sampler with a shorter `penalty_last_n` keeps the newest tokens. On an error nothing
    /// changed.
    pub fn restore(&mut self, state: &[u8]) -> Result<()> {
        let bad = |offset: u64, field: &str, expected: String, found: String| Error::Format {
            file: "sampler state",
            offset,
            field: field.to_owned(),
            expected,
            found,
        };
        let Some((head, tokens)) = state.split_first_chunk::<40>() else {
            return Err(bad(0, "length", "at least 40 bytes".into(), state.len().to_string()));
        };
        let (words, _) = head.as_chunks::<4>();
        let version = u32::from_le_bytes(words[0]);
        if version != STATE_VERSION {
            return Err(bad(0, "version", STATE_VERSION.to_string(), version.to_string()));
        }
        let mut generator = [0; 32];
        generator.copy_from_slice(&head[4..36]);
        let count = u32::from_le_bytes(words[9]);
        if tokens.len() as u64 != u64::from(count) * 4 {
            return Err(bad(36, "count", format!("{} bytes of tokens", u64::from(count) * 4), tokens.len().to_string()));
        }
        self.rng =
            Rng::from_bytes(generator).ok_or_else(|| bad(4, "generator", "a state that is not all zero".into(), "all zero".into()))?;
        self.history.clear();
        for token in tokens.as_chunks::<4>().0 {
            self.history.push(u32::from_le_bytes(*token));
        }
        Ok(())
    }
}

/// Version of the bytes of [`Sampler::state`].
const STATE_VERSION: u32 = 1;
const CANDIDATES: &str = "candidates of the next token";

fn nothing_left() -> Error {
    Error::argument("logits", "at least one logit above -inf", "a row in which every token is banned or NaN")
}
