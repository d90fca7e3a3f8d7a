//! Generation: sample, compute, hand out whole UTF-8, stop at the right place.

use super::{Progress, Session};
use crate::error::{Error, Result};
use crate::model::forward::Outputs;
use crate::sampler;
use crate::tokenizer::Utf8Stream;
use std::ops::ControlFlow;
use std::time::Instant;

/// Why a generation ended. Exactly one per generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model produced an end-of-generation token.
    Eos,
    /// A stop string appeared.
    Stop,
    /// `max_tokens` was reached, or the window is full and there is nowhere to put it.
    Length,
    /// Somebody called [`CancelHandle::cancel`](super::CancelHandle::cancel).
    Cancelled,
    /// The callback asked to stop.
    Callback,
}

/// What to generate, and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// At most so many tokens.
    pub max_tokens: usize,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on past end-of-generation tokens (benchmarks).
    pub ignore_eos: bool,
    /// Also compute the log-probability of each chosen token and of this many best alternatives; None: not at all.
    pub log_probabilities: Option<usize>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { max_tokens: 256, stop: Vec::new(), ignore_eos: false, log_probabilities: None }
    }
}

/// One step of a generation, as [`Session::next`] returns it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text that became certain with this step: whole UTF-8 only, may be empty.
    pub text: String,
    /// The token chosen in this step; None where only held-back text is flushed at the end.
    pub token: Option<u32>,
    /// Its natural-log probability, if asked for.
    pub log_probability: Option<f32>,
    /// The best alternatives, best first, if asked for.
    pub alternatives: Vec<(u32, f32)>,
    /// Set on the last piece of a generation.
    pub finish: Option<Finish>,
}

/// A generation in progress.
pub(super) struct Generation {
    options: GenerateOptions,
    produced: usize,
    utf8: Utf8Stream,
    /// Text that may turn out to be the beginning of a stop string.
    held: String,
    started: Instant,
}

impl Session {
    /// Samples from the logits. Nothing is computed: the caller decides whether to [`Session::prefill`] the token.
    ///
    /// # Errors
    /// [`Error::Argument`] before the first token, and after a prefill that did not run to its end.
    pub fn sample(&mut self) -> Result<u32> {
        self.compute_pending()?;
        let Some(row) = self.logits_row() else { return Err(no_logits()) };
        self.sampler.sample(&self.scratch.logits[row])
    }

    /// Starts a generation from the present position; then call [`Session::next`] until a piece has `finish`.
    pub fn start(&mut self, options: GenerateOptions) -> Result<()> {
        if options.stop.iter().any(|s| s.is_empty()) {
            return Err(Error::argument("stop", "strings of at least one byte", "an empty string"));
        }
        if !self.has_logits && !self.pending {
            return Err(no_logits());
        }
        self.begin_call();
        let (utf8, held) = (Utf8Stream::new(), String::new());
        self.generation = Some(Generation { options, produced: 0, utf8, held, started: Instant::now() });
        Ok(())
    }

    /// The next piece of the generation: samples a token and turns it into text.
    ///
    /// # Errors
    /// [`Error::Argument`] if no generation is running. After any error the generation is over.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Piece> {
        let Some(mut g) = self.generation.take() else {
            return Err(Error::argument("generation", "one that was started and has not finished", "none"));
        };
        let piece = self.step(&mut g)?;
        if piece.finish.is_none() {
            self.generation = Some(g);
        }
        Ok(piece)
    }

    /// [`Session::start`], then [`Session::next`] to the end, handing each piece to `each`; Break ends it with
    /// [`Finish::Callback`].
    pub fn generate(&mut self, options: GenerateOptions, each: &mut dyn FnMut(&Piece) -> ControlFlow<()>) -> Result<Finish> {
        self.start(options)?;
        loop {
            let piece = self.next()?;
            if each(&piece).is_break() && piece.finish.is_none() {
                self.generation = None;
                return Ok(Finish::Callback);
            }
            if let Some(finish) = piece.finish {
                return Ok(finish);
            }
        }
    }

    fn step(&mut self, g: &mut Generation) -> Result<Piece> {
        if self.cancel.take() {
            return Ok(g.end(Piece::default(), Finish::Cancelled));
        }
        match self.compute_pending() {
            Ok(()) => {}
            Err(Error::Cancelled) => {
                self.cancel.clear();
                return Ok(g.end(Piece::default(), Finish::Cancelled));
            }
            // The window is full and nothing slides: the text ends here.
            Err(Error::Limit { .. }) => return Ok(g.end(Piece::default(), Finish::Length)),
            Err(e) => return Err(e),
        }
        if g.produced == g.options.max_tokens {
            return Ok(g.end(Piece::default(), Finish::Length));
        }
        let token = self.sample()?;
        let mut piece = Piece { token: Some(token), ..Piece::default() };
        if let (Some(n), Some(logits)) = (g.options.log_probabilities, self.logits()) {
            piece.log_probability = Some(sampler::log_probability(logits, token)? as f32);
            piece.alternatives = sampler::top_log_probabilities(logits, n)?.into_iter().map(|(t, p)| (t, p as f32)).collect();
        }
        if g.produced == 0 {
            let prompt = std::mem::take(&mut self.counters.prompt_seconds);
            self.counters.first_token_seconds = g.started.elapsed().as_secs_f64() + prompt;
        }
        g.produced += 1;
        if self.model.tokenizer().is_end_of_generation(token) && !g.options.ignore_eos {
            return Ok(g.end(piece, Finish::Eos));
        }
        self.sampler.accept(token);
        self.tokens.push(token);
        self.pending = true;
        let bytes = self.model.tokenizer().token_bytes(token).unwrap_or_default();
        g.held.push_str(&g.utf8.push(&bytes));
        if let Some(at) = g.options.stop.iter().filter_map(|s| g.held.find(s.as_str())).min() {
            g.held.truncate(at);
            piece.text = std::mem::take(&mut g.held);
            piece.finish = Some(Finish::Stop);
            return Ok(piece);
        }
        let keep = g.options.stop.iter().map(|s| begins_at_the_end(&g.held, s)).max().unwrap_or(0);
        let rest = g.held.split_off(g.held.len() - keep);
        piece.text = std::mem::replace(&mut g.held, rest);
        if g.produced == g.options.max_tokens {
            return Ok(g.end(piece, Finish::Length));
        }
        Ok(piece)
    }

    /// Computes the token that was sampled last, if that has not happened yet.
    pub(super) fn compute_pending(&mut self) -> Result<()> {
        if !self.pending {
            return Ok(());
        }
        let Some(token) = self.tokens.pop() else { return Ok(()) };
        self.pending = false;
        let start = Instant::now();
        let nothing: Progress<'_> = &mut |_, _| ControlFlow::Continue(());
        // A token of the answer reads what its prompt has chosen.
        let result = self.feed(&[token], false, &mut Outputs::Last, nothing);
        match result {
            Ok(()) => {
                self.counters.decode_tokens += 1;
                self.counters.decode_seconds += start.elapsed().as_secs_f64();
            }
            // It was handed out already: it stays the next token to compute.
            Err(_) => {
                self.tokens.push(token);
                self.pending = true;
            }
        }
        result
    }
}

impl Generation {
    /// Finishes with all the text that was held back.
    fn end(&mut self, mut piece: Piece, finish: Finish) -> Piece {
        piece.text.push_str(&std::mem::take(&mut self.held));
        piece.text.push_str(&self.utf8.flush());
        piece.finish = Some(finish);
        piece
    }
}

fn no_logits() -> Error {
    Error::argument("prefill", "one that ran to its end", "none")
}

/// Length of the longest end of `text` that `stop` begins with (less than the whole of `stop`).
fn begins_at_the_end(text: &str, stop: &str) -> usize {
    let most = stop.len().saturating_sub(1).min(text.len());
    (1..=most).rev().find(|n| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n])).unwrap_or(0)
}
