//! A session: one mutable timeline over an immutable model. Prefill, decode, memory, sampling, cancellation, figures.
//!
//! Invariants: a session is used by one caller at a time (`&mut self`); after an error or a cancellation it is usable and
//! says exactly how many tokens it holds ([`Session::len`]); `tokens()[..len()]` is what the model has seen since the last
//! reset, in order.

mod embed;
mod feed;
mod footprint;
mod generate;
mod memories;
mod options;
mod pace;
mod remember;
mod snapshot;
mod stats;

pub use embed::Pooling;
pub use feed::ReferenceCall;
pub use footprint::Estimate;
pub use generate::{Finish, GenerateOptions, Piece};
pub use memories::{Passage, SharedMemory};
pub use remember::Repair;
pub use stats::SessionStats;

use crate::error::{Error, Result};
use crate::kv::{KvType, LayerShape, Window};
use crate::model::recall::{Recall, RecallOptions, searching_slots};
use crate::model::scratch::Scratch;
use crate::model::{Hparams, Model, RopeOverride, RotarySet};
use crate::sampler::{Sampler, SamplerOptions};
use crate::threads::{Team, default_threads};
use generate::Generation;
use pace::Pace;
use stats::Counters;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What happens when the local window of a Focused Transformer is full (spec of the reference: dump; ours: slide).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The reference's rule: all local entries leave, the next token is alone locally.
    DumpAll,
    /// The oldest entries leave in blocks of this many tokens; what is being read is not cut. The default (W / 4).
    Slide {
        /// Tokens that leave at once; 0 takes a quarter of the window.
        block: usize,
    },
}

/// How the local context, its precision and the memory are set up.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens of local context; 0 takes the model's trained length (at most 8192 unless asked for more), FoT models their window.
    pub context_length: usize,
    /// Tokens computed at once in prefill.
    pub batch: usize,
    /// Threads; 0 takes one per big core this process may use.
    pub threads: usize,
    /// What the local window keeps keys and values as. The quantised types want head sizes that are multiples of 32.
    pub kv_type: KvType,
    /// RoPE scaling in place of what the file says.
    pub rope: Option<RopeOverride>,
    /// What to do when the local window is full. None: FoT models and sessions with a memory slide, others end with
    /// [`crate::Error::Limit`].
    pub overflow: Option<Overflow>,
    /// FoT with [`Overflow::DumpAll`]: tokens of a prompt that stay local (the reference's `last_context_length`); 0 takes
    /// the file's.
    pub last_context_length: usize,
    /// FoT: keys that each query and head reads from memory; 0 reads all (dense).
    pub memory_top_k: usize,
    /// Ordinary models: blocks that come back from memory per layer; 0 takes a default that fits the window.
    pub retrieved_blocks: usize,
    /// Ordinary models: bytes of RAM that retrieval may take (its index, the blocks that came back); 0 takes 96 MiB.
    pub memory_budget_bytes: usize,
    /// Ordinary models: layers whose queries search the memory, ascending; empty takes the middle ones.
    pub search_layers: Vec<u32>,
    /// Ordinary models: tokens of an answer after which it chooses again what it reads; 0 never.
    pub reselect_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            context_length: 0,
            batch: 512,
            threads: 0,
            kv_type: KvType::F16,
            rope: None,
            overflow: None,
            last_context_length: 0,
            memory_top_k: 0,
            retrieved_blocks: 0,
            memory_budget_bytes: 0,
            search_layers: Vec::new(),
            reselect_tokens: RESELECT_TOKENS_DEFAULT,
            sampler: SamplerOptions::default(),
        }
    }
}

/// Cancels a session's work from any thread. Clone freely.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    /// What a layer looks at.
    cancelled: AtomicBool,
    /// Never taken back.
    ended: AtomicBool,
}

impl CancelHandle {
    fn flag(&self) -> &AtomicBool {
        &self.0.cancelled
    }

    fn clear(&self) {
        self.take();
    }

    fn is_cancelled(&self) -> bool {
        self.flag().load(Ordering::Relaxed)
    }

    /// Takes a cancellation that has come in, if one has; for good, none is taken back.
    fn take(&self) -> bool {
        // In this order, and the other way round in `end`: whichever comes first, the flag is up afterwards.
        let cancelled = self.flag().swap(false, Ordering::SeqCst);
        let ended = self.0.ended.load(Ordering::SeqCst);
        if ended {
            self.cancel();
        }
        cancelled || ended
    }

    /// As [`CancelHandle::cancel`], for good: every later call ends as soon as it has begun.
    pub fn end(&self) {
        self.0.ended.store(true, Ordering::SeqCst);
        self.flag().store(true, Ordering::SeqCst);
    }

    /// The work in progress stops within one layer; the next call, or [`Session::as_one_call`], starts afresh.
    pub fn cancel(&self) {
        self.flag().store(true, Ordering::Relaxed);
    }
}

/// Reports progress as (tokens done, tokens in all); [`ControlFlow::Break`] cancels.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

/// The local context of an ordinary model where nobody says, even if it was trained for more.
const CONTEXT_DEFAULT_MAX: usize = 8192;
/// Blocks of memory that come back per layer where nobody says.
const RETRIEVED_BLOCKS_DEFAULT: usize = 8;
/// Bytes for retrieval where nobody says.
const MEMORY_BUDGET_DEFAULT: usize = 96 << 20;
/// Tokens of an answer after which it chooses again.
const RESELECT_TOKENS_DEFAULT: usize = 32;

/// See the module.
pub struct Session {
    model: Arc<Model>,
    options: SessionOptions,
    team: Team,
    rotary: RotarySet,
    window: Window,
    scratch: Scratch,
    /// Ordinary models: retrieval and attention sinks.
    recall: Recall,
    /// Attached by the user, read only.
    attached: Vec<SharedMemory>,
    /// The session's own: what left the local window.
    overflow: Option<SharedMemory>,
    tokens: Vec<u32>,
    /// The last of `tokens` was sampled and is not computed yet.
    pending: bool,
    has_logits: bool,
    sampler: Sampler,
    generation: Option<Generation>,
    cancel: CancelHandle,
    /// Inside [`Session::as_one_call`].
    in_call: bool,
    pace: Pace,
    counters: Counters,
}

impl Session {
    /// A session of `model`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an option outside its range, [`Error::Model`] if the RoPE scaling asked for needs tensors
    /// that the file does not have, [`Error::Unsupported`] if the window's type does not suit the head size.
    pub fn new(model: Arc<Model>, options: SessionOptions) -> Result<Session> {
        let h = model.hparams();
        check(&options, h.context_length)?;
        options.kv_type.check(h.key_length)?;
        options.kv_type.check(h.value_length)?;
        let threads = if options.threads == 0 { default_threads() } else { options.threads };
        let context = context_length(&options, h);
        let window = Window::new(layer_shapes(h), options.kv_type, context);
        let rotary = RotarySet::new(h, &model.weights().rope_factors, options.rope.as_ref().unwrap_or(&RopeOverride::default()), context)?;
        let recall = Recall::new(h.memory_layers.len(), context, recall_options(&options, h, context)?);
        Ok(Session {
            team: Team::new(threads)?,
            rotary,
            window,
            recall,
            sampler: Sampler::new(options.sampler.clone())?,
            scratch: Scratch::default(),
            attached: Vec::new(),
            overflow: None,
            tokens: Vec::new(),
            pending: false,
            has_logits: false,
            generation: None,
            cancel: CancelHandle::default(),
            in_call: false,
            pace: Pace::default(),
            counters: Counters::default(),
            options,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The options it was made with, later changes included.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Tokens seen since the last reset, in order.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens seen since the last reset.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Most tokens the local window may hold.
    pub fn context_length(&self) -> usize {
        self.window.capacity()
    }

    /// Most tokens of the trained context that attention sinks and retrieved blocks take from the local window.
    pub fn retrieval_tokens_max(&self) -> usize {
        if self.model.hparams().fot.is_some() { 0 } else { self.recall.tokens_max() }
    }

    /// (tokens in the local window, tokens in all memories that it reads)
    pub fn state(&self) -> (usize, u64) {
        (self.window.len(), self.memory_len())
    }

    /// Forgets the local context and what overflowed from it. Attached memories stay attached.
    pub fn reset(&mut self) {
        self.window.clear();
        self.recall.clear(self.attached.len());
        self.overflow = None;
        self.tokens.clear();
        self.pending = false;
        self.has_logits = false;
        self.generation = None;
        self.sampler.reset();
    }

    /// Goes back to the first `len` tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are fewer tokens, or if token `len` has left the local window already.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let gone = self.tokens.len() - usize::from(self.pending) - self.window.len();
        if len > self.tokens.len() || len < gone {
            return Err(Error::argument("len", format!("{gone} to {}", self.tokens.len()), len));
        }
        if len == self.tokens.len() {
            return Ok(());
        }
        self.window.truncate(len - gone);
        self.tokens.truncate(len);
        self.sampler.rewind(&self.tokens);
        self.pending = false;
        self.has_logits = false;
        self.generation = None;
        Ok(())
    }

    /// Whether a generation was started and has not finished.
    pub fn is_generating(&self) -> bool {
        self.generation.is_some()
    }

    /// Logits after the last token, one per vocabulary entry; None before the first token and while one is being added.
    pub fn logits(&self) -> Option<&[f32]> {
        Some(&self.scratch.logits[self.logits_row()?])
    }

    /// Where the logits of the last token stand in the scratch buffer.
    fn logits_row(&self) -> Option<std::ops::Range<usize>> {
        (self.has_logits && !self.pending).then(|| 0..self.model.vocab_len())
    }

    /// Natural-log probability of `token` as the next one.
    pub fn log_probability(&self, token: u32) -> Option<f32> {
        crate::sampler::log_probability(self.logits()?, token).ok().map(|p| p as f32)
    }

    /// Changes how tokens are chosen, from the next one on.
    pub fn set_sampler(&mut self, options: SamplerOptions) -> Result<()> {
        self.sampler = Sampler::new(options.clone())?;
        self.sampler.rewind(&self.tokens);
        self.options.sampler = options;
        Ok(())
    }

    /// Changes the number of threads; 0 takes one per big core this process may use. Results do not depend on it.
    pub fn set_threads(&mut self, threads: usize) -> Result<()> {
        self.team = Team::new(if threads == 0 { default_threads() } else { threads })?;
        self.options.threads = threads;
        Ok(())
    }

    /// Work of several steps that a cancellation ends as it would one: what comes in during any of them is not forgotten when the next
    /// one begins.
    pub fn as_one_call<T>(&mut self, work: impl FnOnce(&mut Session) -> T) -> T {
        self.begin_call();
        let outer = std::mem::replace(&mut self.in_call, true);
        let done = work(self);
        self.in_call = outer;
        done
    }

    /// At the beginning of each call that can be cancelled: what came in before was meant for another.
    fn begin_call(&self) {
        if !self.in_call {
            self.cancel.clear();
        }
    }

    /// A handle that cancels this session's work from any thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }
}

/// Tokens of local context.
fn context_length(options: &SessionOptions, h: &Hparams) -> usize {
    match (options.context_length, &h.fot) {
        (0, Some(fot)) => fot.window_length,
        (0, None) => h.context_length.min(CONTEXT_DEFAULT_MAX),
        (n, _) => n,
    }
}

fn layer_shapes(h: &Hparams) -> Vec<LayerShape> {
    let shape = |l: usize| LayerShape {
        heads_kv: h.head_count_kv,
        key_length: h.key_length,
        value_length: h.value_length,
        sliding_window: h.sliding_window[l],
    };
    (0..h.block_count).map(shape).collect()
}

fn recall_options(options: &SessionOptions, h: &Hparams, context: usize) -> Result<RecallOptions> {
    let searching = match options.search_layers.as_slice() {
        [] => searching_slots(h),
        layers => layers
            .iter()
            .map(|l| h.memory_layers.binary_search(&(*l as usize)))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::argument("search_layers", format!("layers among {:?}", h.memory_layers), format!("{layers:?}")))?,
    };
    if !searching.is_sorted_by(|a, b| a < b) {
        return Err(Error::argument("search_layers", "layers in ascending order", format!("{:?}", options.search_layers)));
    }
    Ok(RecallOptions {
        blocks_max: retrieved_blocks(options, context),
        searching,
        budget_bytes: if options.memory_budget_bytes == 0 { MEMORY_BUDGET_DEFAULT } else { options.memory_budget_bytes },
        reselect_tokens: options.reselect_tokens,
    })
}

fn retrieved_blocks(options: &SessionOptions, context: usize) -> usize {
    let block = crate::model::MEMORY_BLOCK_TOKENS as usize;
    let fits = context / 4 / block;
    let most = (context / 2 / block).saturating_sub(1);
    if options.retrieved_blocks == 0 { fits.min(RETRIEVED_BLOCKS_DEFAULT) } else { options.retrieved_blocks.min(most) }
}

fn check(o: &SessionOptions, trained: usize) -> Result<()> {
    let context_max = trained.max(1 << 20) * 64;
    let checks = [
        ("context_length", o.context_length, 0, context_max),
        ("batch", o.batch, 1, 1 << 16),
        ("threads", o.threads, 0, crate::threads::THREADS_MAX),
        ("last_context_length", o.last_context_length, 0, context_max),
        ("memory_top_k", o.memory_top_k, 0, 1 << 24),
        ("retrieved_blocks", o.retrieved_blocks, 0, 1 << 16),
    ];
    for (name, value, min, max) in checks {
        if !(min..=max).contains(&value) {
            return Err(Error::argument(name, format!("{min} to {max}"), value));
        }
    }
    Ok(())
}
