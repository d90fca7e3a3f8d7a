//! Perplexity of a text's end, given what a mode has of the text before it.

use super::Mode;
use crate::Failure;
use loci::sampler::log_probability;
use loci::session::{Session, SharedMemory};

/// The text, cut for a mode. With memory and with the window only the same tokens are local, so that memory is the only difference.
pub struct Text<'a> {
    all: &'a [u32],
    local: usize,
    scored: usize,
    mode: Mode,
    fits: bool,
}

impl<'a> Text<'a> {
    pub fn new(session: &Session, all: &'a [u32], scored: usize, mode: Mode) -> Text<'a> {
        // What comes back from memory must fit, too.
        let room = session.context_length() - session.retrieval_tokens_max();
        let (local, fits) = match mode {
            Mode::Full => (all.len(), all.len() <= session.context_length()),
            Mode::Memory | Mode::Window => (all.len().min(room), true),
        };
        Text { all, local, scored: scored.min(local / 2), mode, fits }
    }

    /// Tokens before the local ones: what a memory may hold.
    pub fn before_window(&self) -> usize {
        self.all.len() - self.local
    }

    /// Negative log-likelihoods of the last tokens; None if the mode needs more room than the model has.
    pub fn score(&self, mut session: Session, memory: Option<SharedMemory>) -> Result<Option<Vec<f64>>, Failure> {
        if !self.fits {
            return Ok(None);
        }
        if let (Mode::Memory, Some(memory)) = (self.mode, memory) {
            session.attach_memory(memory)?;
        }
        let tokens = &self.all[self.before_window()..];
        let first = (self.local - self.scored).max(1);
        let (mut scored, mut bad) = (Vec::with_capacity(self.scored), None);
        // A batch chooses by its own last tokens what comes back: fed one by one, no token is judged by what comes after it.
        let step = if self.mode == Mode::Memory { 1 } else { self.local };
        let mut start = 0;
        while start < self.local {
            let end = if start + 1 < first { first } else { (start + step).min(self.local) };
            session.prefill_logits(&tokens[start..end], &mut |i, row| {
                let next = start + i + 1;
                if (first..self.local).contains(&next) {
                    match log_probability(row, tokens[next]) {
                        Ok(p) => scored.push(-p),
                        Err(e) => bad = Some(e),
                    }
                }
            })?;
            start = end;
        }
        match bad {
            Some(e) => Err(e.into()),
            None => Ok(Some(scored)),
        }
    }
}
