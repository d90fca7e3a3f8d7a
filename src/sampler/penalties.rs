//! Penalties on the tokens seen lately: repetition ([Keskar et al. 2019](https://arxiv.org/abs/1909.05858), with the sign rule that
//! makes a negative logit smaller too), frequency and presence (a count's and a fact's worth, subtracted).
//!
//! Invariants: the history holds at most `limit` tokens, oldest first; `counts` is all zero between calls.

use crate::error::{Result, try_grow};
use std::collections::VecDeque;

/// The tokens the penalties look back at.
#[derive(Clone, Debug)]
pub struct History {
    limit: usize,
    tokens: VecDeque<u32>,
    /// How often each id was seen. (n_vocab)
    counts: Vec<u32>,
}

impl History {
    pub fn new(limit: u32) -> History {
        History { limit: limit as usize, tokens: VecDeque::new(), counts: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Oldest first.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.tokens.iter().copied()
    }

    pub fn push(&mut self, token: u32) {
        if self.limit == 0 {
            return;
        }
        if self.tokens.len() >= self.limit {
            self.tokens.pop_front();
        }
        self.tokens.push_back(token);
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
    }

    /// Changes the logits of the tokens seen, each once. Two passes over the history and none over the vocabulary: the first counts,
    /// the second applies and takes the count away again. Ids outside the row are nobody's.
    pub fn penalise(&mut self, logits: &mut [f32], repetition: f32, presence: f32, frequency: f32) -> Result<()> {
        if self.tokens.is_empty() || (repetition == 1.0 && presence == 0.0 && frequency == 0.0) {
            return Ok(());
        }
        try_grow(&mut self.counts, "counts of tokens", logits.len())?;
        for &token in &self.tokens {
            if let Some(count) = self.counts.get_mut(token as usize) {
                *count += 1;
            }
        }
        for &token in &self.tokens {
            let Some(count) = self.counts.get_mut(token as usize) else { continue };
            let seen = std::mem::take(count);
            if seen == 0 {
                continue;
            }
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
                *logit -= seen as f32 * frequency + presence;
            }
        }
        Ok(())
    }
}
