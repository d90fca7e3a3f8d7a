//! Memories of a session: attaching, what overflows from the window, and reading documents into a file.

use super::{Overflow, Progress, Session};
use crate::error::{Error, Result};
use crate::kernels::rotary::Turn;
use crate::memory::{LayerKv, Memory, Source};
use crate::model::Model;
use crate::model::forward::Outputs;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A memory that several sessions of a process may hold; reads share it, writes exclude.
pub type SharedMemory = Arc<RwLock<Memory>>;

/// A stretch of a memory that was read, with its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// Which attached memory (0 is the first attached).
    pub memory: usize,
    /// First token within it.
    pub first_token: u64,
    /// Tokens.
    pub len: u64,
    /// Label given when it was remembered (a file's name), if any.
    pub source: Option<String>,
    /// Share of the retrieval score, for ordering: larger was wanted more.
    pub score: f32,
}

/// Tokens of local context while a document is read into memory by an ordinary model.
const READING_WINDOW: usize = 2048;

/// Tokens of a document that are appended to a file between two commits: bounds the RAM they take meanwhile.
const TOKENS_BETWEEN_COMMITS: u64 = 4096;

/// A memory for reading. A writer that panicked cannot have left a half-published state: blocks are published whole.
pub(super) fn read(memory: &SharedMemory) -> RwLockReadGuard<'_, Memory> {
    memory.read().unwrap_or_else(|e| e.into_inner())
}

/// Several memories, locked for reading. One that is there twice is locked once, and all sessions lock in one order: otherwise
/// two of them, each waiting behind a writer for the memory that the other holds, would wait for ever.
pub(super) struct Readers<'a> {
    guards: Vec<RwLockReadGuard<'a, Memory>>,
    /// Which of the guards is that of each memory.
    own: Vec<usize>,
}

impl<'a> Readers<'a> {
    pub fn lock(memories: &'a [SharedMemory]) -> Readers<'a> {
        let mut order: Vec<&SharedMemory> = memories.iter().collect();
        order.sort_by_key(|m| Arc::as_ptr(m));
        order.dedup_by_key(|m| Arc::as_ptr(m));
        let own = memories.iter().map(|m| order.partition_point(|o| Arc::as_ptr(o) < Arc::as_ptr(m))).collect();
        Readers { guards: order.into_iter().map(read).collect(), own }
    }

    /// The memories, in the order in which they were given.
    pub fn list(&self) -> Vec<&Memory> {
        self.own.iter().map(|i| &*self.guards[*i]).collect()
    }
}

fn write(memory: &SharedMemory) -> RwLockWriteGuard<'_, Memory> {
    memory.write().unwrap_or_else(|e| e.into_inner())
}

impl Session {
    /// Attaches a memory to read from and returns its index among the attached ones.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if another model made it.
    pub fn attach_memory(&mut self, memory: SharedMemory) -> Result<usize> {
        self.check_memory(&read(&memory))?;
        self.attached.push(memory);
        self.recall.forget_choice();
        Ok(self.attached.len() - 1)
    }

    /// Detaches all attached memories.
    pub fn detach_memories(&mut self) {
        self.attached.clear();
        self.recall.forget_choice();
    }

    fn check_memory(&self, memory: &Memory) -> Result<()> {
        let (ours, theirs) = (self.model.fingerprint(), memory.fingerprint());
        if ours != theirs {
            return Err(Error::mismatch("the model that made the memory", ours, theirs));
        }
        let (mut ours, theirs) = (self.model.memory_geometry(), memory.geometry());
        ours.codec = theirs.codec;
        if ours != *theirs {
            return Err(Error::mismatch("the shape of the memory", format!("{ours:?}"), format!("{theirs:?}")));
        }
        Ok(())
    }

    /// The memories that the session reads: the attached ones, then its own.
    pub(super) fn memories(&self) -> impl Iterator<Item = &SharedMemory> {
        self.attached.iter().chain(&self.overflow)
    }

    /// Tokens in all memories that the session reads.
    pub(super) fn memory_len(&self) -> u64 {
        self.memories().map(|m| read(m).len()).sum()
    }

    /// True if what does not fit the window goes on rather than ending with an error.
    pub(super) fn overflows(&self) -> bool {
        self.options.overflow.is_some() || self.model.hparams().fot.is_some() || !self.attached.is_empty()
    }

    /// Gives the session's own overflow memory a certain encoding (the file's, or f16, unless told). Before the first token
    /// only.
    pub fn set_overflow_memory(&mut self, memory: SharedMemory) -> Result<()> {
        self.check_memory(&read(&memory))?;
        if !self.is_empty() {
            return Err(Error::argument("session", "an empty session", format!("{} tokens", self.len())));
        }
        self.overflow = Some(memory);
        Ok(())
    }

    /// The session's own memory of what left the local window, if anything has.
    pub fn overflow_memory(&self) -> Option<&SharedMemory> {
        self.overflow.as_ref()
    }

    /// Moves the `n` oldest entries of the window into the session's own memory.
    pub(super) fn evict(&mut self, n: usize) -> Result<()> {
        let memory = match &self.overflow {
            Some(m) => m.clone(),
            None => {
                let m = Memory::in_ram(self.model.memory_geometry(), self.model.fingerprint().clone())?;
                self.overflow.insert(Arc::new(RwLock::new(m))).clone()
            }
        };
        self.evict_into(&memory, n, None)
    }

    /// Moves the `n` oldest entries of the window into `memory`. On error the window is as before.
    fn evict_into(&mut self, memory: &SharedMemory, n: usize, reading: Option<&mut Reading<'_>>) -> Result<()> {
        let n = n.min(self.window.len());
        if n == 0 {
            return Ok(());
        }
        let oldest = self.tokens.len() - usize::from(self.pending) - self.window.len();
        let raw = self.raw_entries(n);
        let layers: Vec<LayerKv<'_>> = raw.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
        let tokens = &self.tokens[oldest..oldest + n];
        let source = reading.map(|r| r.source(&self.model, tokens));
        write(memory).append(tokens, source, &layers)?;
        let sinks = self.recall.sinks_wanted().min(n);
        if self.model.hparams().fot.is_none() && sinks > 0 {
            let h = self.model.hparams();
            let (key_row, value_row) = (h.head_count_kv * h.key_length, h.head_count_kv * h.value_length);
            self.recall.keep_sinks(sinks, raw.iter().map(|(k, v)| (&k[..sinks * key_row], &v[..sinks * value_row])));
        }
        self.window.evict(n);
        Ok(())
    }

    /// Unrotated keys and values of the `n` oldest entries, for each layer that a memory stores.
    fn raw_entries(&self, n: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
        let h = self.model.hparams();
        let rotated = h.fot.as_ref().is_none_or(|f| f.memory_positionals);
        h.memory_layers
            .iter()
            .map(|&l| {
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                self.window.entries(l, n, &mut keys, &mut values);
                if rotated {
                    self.rotary.global.turn(Turn::Back, self.window.first(), &mut keys, h.head_count_kv, h.key_length);
                }
                (keys, values)
            })
            .collect()
    }

    /// Reads `tokens` into `memory`: the keys and values of every token are appended. The session's own context is reset
    /// before and after; attached memories are not consulted. A memory on a file is committed every few thousand tokens, so
    /// that a document of any size takes little RAM; what follows the last of these commits is durable with the next one.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `progress` or a cancel handle said so: what was appended stays, and the memory's length tells
    /// how much that is.
    pub fn remember(&mut self, memory: &SharedMemory, tokens: &[u32], source: Option<&str>, progress: Progress<'_>) -> Result<()> {
        self.check_memory(&read(memory))?;
        self.check_tokens(tokens)?;
        self.reset();
        let attached = std::mem::take(&mut self.attached);
        let result = self.read_into(memory, tokens, source, progress);
        self.attached = attached;
        self.reset();
        result
    }

    fn read_into(&mut self, memory: &SharedMemory, tokens: &[u32], source: Option<&str>, progress: Progress<'_>) -> Result<()> {
        let is_fot = self.model.hparams().fot.is_some();
        let window = match &self.model.hparams().fot {
            Some(fot) => fot.window_length.min(self.window.capacity()),
            None => self.window.capacity().min(READING_WINDOW),
        };
        // A Focused Transformer was trained on whole windows; what an ordinary model reads keeps its recent context.
        let leaving = if is_fot { window } else { (window / 4).max(1) };
        // FoT windows read the memory made so far (its keys hold what their tokens read there).
        let visible = if is_fot { vec![memory.clone()] } else { Vec::new() };
        let mut reading = source.map(|label| Reading { label, at: 0 });
        let mut done = 0;
        while done < tokens.len() {
            if self.window.len() >= window {
                self.evict_into(memory, leaving, reading.as_mut())?;
                commit_if_large(memory)?;
            }
            let n = self.options.batch.min(tokens.len() - done).min(window - self.window.len());
            let start = std::time::Instant::now();
            let result = self.compute(&tokens[done..done + n], Outputs::Memory, &visible);
            if let Err(e) = result {
                self.cancel.clear();
                self.evict_into(memory, self.window.len(), reading.as_mut())?;
                return Err(e);
            }
            self.counters.prefill_tokens += n as u64;
            self.counters.prefill_seconds += start.elapsed().as_secs_f64();
            done += n;
            if progress(done, tokens.len()).is_break() {
                self.evict_into(memory, self.window.len(), reading.as_mut())?;
                return Err(Error::Cancelled);
            }
        }
        self.evict_into(memory, self.window.len(), reading.as_mut())
    }

    /// Which stored passages were read for the last tokens, most wanted first. Ordinary models only: a Focused Transformer
    /// reads all of its memory, or a choice per query and head.
    pub fn passages(&self) -> Vec<Passage> {
        let shared: Vec<_> = self.memories().cloned().collect();
        let readers = Readers::lock(&shared);
        let memories = readers.list();
        let sources: Vec<_> = memories.iter().map(|m| m.sources().unwrap_or_default()).collect();
        let source_at = |memory: usize, token: u64| {
            let span = sources[memory].iter().find(|s| s.tokens.contains(&token));
            span.map(|s| s.label.clone())
        };
        let mut passages: Vec<Passage> = Vec::new();
        for &(at, score) in self.recall.chosen() {
            let Some(memory) = memories.get(at.memory) else { continue };
            let Ok(block) = memory.block(at.block) else { continue };
            let source = source_at(at.memory, block.first_token);
            match passages.last_mut() {
                Some(p) if p.memory == at.memory && p.first_token + p.len == block.first_token && p.source == source => {
                    p.len += block.len as u64;
                    p.score = p.score.max(score);
                }
                _ => passages.push(Passage { memory: at.memory, first_token: block.first_token, len: block.len as u64, source, score }),
            }
        }
        passages.sort_by(|a, b| b.score.total_cmp(&a.score));
        passages
    }

    /// How a full window makes room.
    pub(super) fn overflow_rule(&self) -> Overflow {
        let quarter = (self.window.capacity() / 4).max(1);
        match self.options.overflow {
            None | Some(Overflow::Slide { block: 0 }) => Overflow::Slide { block: quarter },
            Some(rule) => rule,
        }
    }
}

fn commit_if_large(memory: &SharedMemory) -> Result<()> {
    let mut memory = write(memory);
    if memory.is_on_file() && memory.len() - memory.committed_len() >= TOKENS_BETWEEN_COMMITS {
        memory.commit()?;
    }
    Ok(())
}

/// A document on its way into a memory.
struct Reading<'a> {
    label: &'a str,
    /// Bytes of the document that have been stored.
    at: u64,
}

impl<'a> Reading<'a> {
    /// The source of the next tokens.
    fn source(&mut self, model: &Model, tokens: &[u32]) -> Source<'a> {
        let bytes: usize = tokens.iter().filter_map(|t| model.tokenizer().token_bytes(*t)).map(|b| b.len()).sum();
        let start = self.at;
        self.at += bytes as u64;
        Source { label: self.label, text: start..self.at }
    }
}
