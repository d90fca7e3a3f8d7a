//! Feeding tokens: prefill in batches, the windows of a Focused Transformer, and what happens when the local window is full.

use super::memories::Readers;
use super::{Overflow, Progress, Session, SharedMemory};
use crate::error::{Error, Result, try_reserve};
use crate::model::Fot;
use crate::model::forward::{Context, Outputs, forward};
use std::ops::{ControlFlow, Range};
use std::time::Instant;

/// One call of the FoT reference (its `forward` with a whole input).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceCall {
    /// The reference's `use_cache`: the last window stays local; otherwise it goes to memory too.
    pub keep_local: bool,
    /// Tokens of the input that form the last window; 0 takes the model's.
    pub last_context_length: usize,
}

impl Session {
    /// Computes `tokens` after what is there; the logits of the last one are then in [`Session::logits`].
    ///
    /// `progress` is told after each batch. On [`Error::Cancelled`] the tokens computed so far stay: see [`Session::len`].
    ///
    /// # Errors
    /// [`Error::Limit`], before anything is computed, if the window is too small and nothing may overflow.
    pub fn prefill(&mut self, tokens: &[u32], progress: Progress<'_>) -> Result<()> {
        self.timed_prefill(tokens, &mut Outputs::Last, progress)
    }

    /// As [`Session::prefill`], handing out the logits of every position as (index in `tokens`, logits).
    pub fn prefill_logits(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.timed_prefill(tokens, &mut Outputs::Each(each), &mut |_, _| ControlFlow::Continue(()))
    }

    /// Makes `tokens` the whole text: what the session holds of it already is not computed again.
    pub fn prefill_prompt(&mut self, tokens: &[u32], progress: Progress<'_>) -> Result<()> {
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // The last token is computed in any case: its logits are wanted.
        let common = common.min(tokens.len().saturating_sub(1));
        if self.truncate(common).is_err() {
            self.reset();
        }
        let reused = self.len();
        self.counters.reused_tokens += reused as u64;
        self.prefill(&tokens[reused..], progress)
    }

    fn timed_prefill(&mut self, tokens: &[u32], outputs: &mut Outputs<'_>, progress: Progress<'_>) -> Result<()> {
        self.generation = None;
        self.begin_call();
        self.check_tokens(tokens)?;
        self.compute_pending()?;
        let start = Instant::now();
        let before = self.len();
        self.counters.before_prompt = (self.memory_bytes_read(), self.counters.decode_tokens);
        let reference = matches!(self.options.overflow, Some(Overflow::DumpAll)) && self.model.hparams().fot.is_some();
        let result = if reference {
            let call = ReferenceCall { keep_local: true, last_context_length: self.options.last_context_length };
            self.reference_windows(tokens, call, outputs, progress)
        } else {
            self.feed(tokens, true, outputs, progress)
        };
        self.counters.prefill_tokens += (self.len() - before) as u64;
        self.counters.prefill_seconds += start.elapsed().as_secs_f64();
        if !tokens.is_empty() {
            self.counters.prompt_seconds = start.elapsed().as_secs_f64();
        }
        tokens[..self.len() - before].iter().for_each(|t| self.sampler.accept(*t));
        if matches!(result, Err(Error::Cancelled)) {
            self.cancel.clear();
        }
        result
    }

    pub(super) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.model.vocab_len();
        match tokens.iter().find(|t| **t as usize >= vocab) {
            Some(t) => Err(Error::argument("token", format!("ids below {vocab}"), t)),
            None => Ok(()),
        }
    }

    /// Appends `tokens` in batches; a full window makes room as the session's options say. With `survey`, each batch of an
    /// ordinary model's text first chooses what comes back from memory.
    pub(super) fn feed(&mut self, tokens: &[u32], survey: bool, outputs: &mut Outputs<'_>, progress: Progress<'_>) -> Result<()> {
        let capacity = self.window.capacity();
        if !self.overflows() && self.window.len() + tokens.len() > capacity {
            let asked = (self.window.len() + tokens.len()) as u64;
            return Err(Error::Limit { what: "context window (tokens)".into(), limit: capacity as u64, asked });
        }
        let room = self.local_room();
        let mut done = 0;
        while done < tokens.len() {
            if self.window.len() >= room {
                let n = match self.overflow_rule() {
                    Overflow::DumpAll => self.window.len(),
                    Overflow::Slide { block } => block.max(self.window.len() + 1 - room),
                };
                self.evict(n)?;
            }
            let n = self.options.batch.min(tokens.len() - done).min(room - self.window.len());
            self.feed_batch(tokens, done..done + n, survey, outputs)?;
            done += n;
            if progress(done, tokens.len()).is_break() && done < tokens.len() {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    }

    /// Tokens that the local window may hold: with retrieval, the trained context is shared with what comes back.
    fn local_room(&self) -> usize {
        let capacity = self.window.capacity();
        if let (Overflow::DumpAll, Some(fot)) = (self.overflow_rule(), &self.model.hparams().fot) {
            // A last window may have been longer than that; what follows it goes by the model's length.
            return fot.window_length.min(capacity);
        }
        if self.model.hparams().fot.is_none() && self.overflows() {
            capacity.saturating_sub(self.recall.tokens_max()).max(1)
        } else {
            capacity
        }
    }

    fn feed_batch(&mut self, tokens: &[u32], batch: Range<usize>, survey: bool, outputs: &mut Outputs<'_>) -> Result<()> {
        let memories: Vec<_> = self.memories().cloned().collect();
        let (start, is_last) = (batch.start, batch.end == tokens.len());
        let tokens = &tokens[batch];
        if !memories.is_empty() && self.model.hparams().fot.is_none() {
            self.bring_back(&memories)?;
            match survey {
                true => self.survey(tokens, &memories)?,
                false => self.follow(&memories)?,
            }
            self.recall.set_noting(!survey);
        }
        match outputs {
            Outputs::Each(each) => self.compute(tokens, Outputs::Each(&mut |i, logits| each(start + i, logits)), &memories),
            Outputs::Last if is_last => self.compute(tokens, Outputs::Last, &memories),
            _ => self.compute(tokens, Outputs::None, &memories),
        }
    }

    /// Lets a batch of an ordinary model's text choose what comes back from memory: computes it once without keeping anything.
    fn survey(&mut self, tokens: &[u32], memories: &[SharedMemory]) -> Result<()> {
        let (window, text) = (self.window.len(), self.tokens.len());
        // Nothing to choose from needs no queries.
        if Readers::lock(memories).list().iter().any(|m| m.blocks() > 0) {
            self.recall.set_noting(true);
            self.recall.look_ahead(&Readers::lock(memories).list());
            self.compute(tokens, Outputs::Queries, memories)?;
            self.window.truncate(window);
            self.tokens.truncate(text);
        }
        let readers = Readers::lock(memories);
        let memories = readers.list();
        let h = self.model.hparams();
        self.team.pass(|pass| self.recall.choose(pass, h, &memories))
    }

    /// After a snapshot was loaded: reads again what it had chosen.
    fn bring_back(&mut self, memories: &[SharedMemory]) -> Result<()> {
        let readers = Readers::lock(memories);
        let (memories, h) = (readers.list(), self.model.hparams());
        self.team.pass(|pass| self.recall.bring_back(pass, h, &memories))
    }

    /// Lets an answer choose again what comes back, when it is time to.
    fn follow(&mut self, memories: &[SharedMemory]) -> Result<()> {
        let readers = Readers::lock(memories);
        let memories = readers.list();
        let h = self.model.hparams();
        self.team.pass(|pass| self.recall.follow(pass, h, &memories))
    }

    /// One forward pass, appended to the window, and the rest after it.
    pub(super) fn compute(&mut self, tokens: &[u32], outputs: Outputs<'_>, memories: &[SharedMemory]) -> Result<()> {
        let start = Instant::now();
        let result = self.pass(tokens, outputs, memories);
        self.pace.rest(start.elapsed(), &self.cancel);
        result
    }

    fn pass(&mut self, tokens: &[u32], outputs: Outputs<'_>, memories: &[SharedMemory]) -> Result<()> {
        try_reserve(&mut self.tokens, "the tokens of a session", tokens.len())?;
        let readers = Readers::lock(memories);
        let memories = readers.list();
        memories.iter().try_for_each(|m| m.check_length())?;
        let retrieves = self.model.hparams().fot.is_none() && (!memories.is_empty() || self.recall.has_sinks());
        let has_logits = matches!(outputs, Outputs::Last);
        let mut context = Context {
            rotary: &self.rotary,
            window: &mut self.window,
            scratch: &mut self.scratch,
            memories: &memories,
            recall: retrieves.then_some(&mut self.recall),
            memory_top_k: self.options.memory_top_k,
            memory_bytes_read: &mut self.counters.memory_bytes_read,
            cancel: self.cancel.flag(),
        };
        let (h, w) = (self.model.hparams(), self.model.weights());
        self.team.pass(|pass| forward(h, w, pass, &mut context, tokens, outputs))?;
        self.has_logits = has_logits;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// A call of the FoT reference with its splitting of the input into windows (sections 3 to 5 of its semantics): all but
    /// the last `last_context_length` tokens go through in windows of the model's length, each into memory; then the last
    /// window. Hands out the logits of every token.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model is no Focused Transformer; [`Error::Argument`] for `keep_local = false` while
    /// tokens are local.
    pub fn reference_call(&mut self, tokens: &[u32], call: ReferenceCall, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.generation = None;
        self.begin_call();
        self.check_tokens(tokens)?;
        self.compute_pending()?;
        self.reference_windows(tokens, call, &mut Outputs::Each(each), &mut |_, _| ControlFlow::Continue(()))
    }

    fn reference_windows(&mut self, tokens: &[u32], call: ReferenceCall, outputs: &mut Outputs<'_>, progress: Progress<'_>) -> Result<()> {
        let Some(fot) = &self.model.hparams().fot else {
            return Err(Error::Unsupported("windows of a Focused Transformer on an ordinary model".into()));
        };
        if !call.keep_local && !self.window.is_empty() {
            return Err(Error::argument("keep_local", "true while tokens are local", "false"));
        }
        let length = fot.window_length;
        let last = last_window(fot, call.last_context_length);
        let prefix = tokens.len().saturating_sub(last);
        self.window.raise_capacity(self.reference_capacity(call.last_context_length));
        let mut start = 0;
        while start < tokens.len() {
            let end = if start < prefix { (start + length).min(prefix) } else { tokens.len() };
            let keep_local = call.keep_local && (start >= prefix || !self.window.is_empty());
            self.reference_window(tokens, start..end, length, keep_local, outputs)?;
            start = end;
            if progress(start, tokens.len()).is_break() && start < tokens.len() {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    }

    /// Tokens that windows of the reference may take: it does not bound its last one by the window length. 0 for ordinary models.
    pub(super) fn reference_capacity(&self, last_context_length: usize) -> usize {
        self.model.hparams().fot.as_ref().map_or(0, |fot| fot.window_length.max(last_window(fot, last_context_length)))
    }

    /// One window: makes room by dumping everything if it must, computes, and moves to memory what is not to stay.
    fn reference_window(
        &mut self,
        tokens: &[u32],
        range: Range<usize>,
        length: usize,
        keep_local: bool,
        outputs: &mut Outputs<'_>,
    ) -> Result<()> {
        if keep_local && !self.window.is_empty() && self.window.len() + range.len() > length {
            self.evict(self.window.len())?;
        }
        let mut at = range.start;
        while at < range.end {
            let n = self.options.batch.min(range.end - at);
            // A Focused Transformer reads memory by its own rule.
            self.feed_batch(tokens, at..at + n, false, outputs)?;
            at += n;
        }
        if !keep_local {
            self.evict(self.window.len())?;
        }
        Ok(())
    }
}

/// Tokens of the last window of a call, if so many are asked for; 0 takes the model's.
fn last_window(fot: &Fot, asked: usize) -> usize {
    if asked == 0 { fot.last_context_length } else { asked }
}
