//! Memories of a session: attaching, what overflows from the window, and which passages were read.

use super::{Overflow, Session};
use crate::error::{Error, Result};
use crate::kernels::rotary::Turn;
use crate::memory::{LayerKv, Memory};
use crate::model::Model;
use crate::threads::Pass;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A memory that several sessions of a process may hold; reads share it, writes exclude.
pub type SharedMemory = Arc<RwLock<Memory>>;

/// A stretch of a memory that was read, with its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// Which attached memory (0 is the first attached); `None`: what left the session's own window.
    pub memory: Option<usize>,
    /// First token within it.
    pub first_token: u64,
    /// Tokens.
    pub len: u64,
    /// Label given when it was remembered (a file's name), if any.
    pub source: Option<String>,
    /// Share of the retrieval score, for ordering: larger was wanted more.
    pub score: f32,
}

/// What becomes of entries that leave the window: given the team, told the model, their tokens, and keys and values of each stored layer.
pub(super) type Take<'a> = &'a mut dyn FnMut(&Pass<'_>, &Model, &[u32], &[LayerKv<'_>]) -> Result<()>;

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

pub(super) fn write(memory: &SharedMemory) -> RwLockWriteGuard<'_, Memory> {
    memory.write().unwrap_or_else(|e| e.into_inner())
}

impl Session {
    /// Attaches a memory to read from and returns its index among the attached ones.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if another model made it.
    pub fn attach_memory(&mut self, memory: SharedMemory) -> Result<usize> {
        self.check_memory(&read(&memory))?;
        self.recall.memories_changed(self.attached.len());
        self.attached.push(memory);
        Ok(self.attached.len() - 1)
    }

    /// Detaches all attached memories.
    pub fn detach_memories(&mut self) {
        self.attached.clear();
        self.recall.memories_changed(0);
    }

    pub(super) fn check_memory(&self, memory: &Memory) -> Result<()> {
        let (ours, theirs) = (self.model.fingerprint(), memory.fingerprint());
        if ours != theirs {
            return Err(Error::mismatch("the model that made the memory", ours, theirs));
        }
        let (mut ours, theirs) = (self.model.memory_geometry(), memory.geometry());
        // What a file may differ in.
        (ours.codec, ours.sketched) = (theirs.codec, theirs.sketched.clone());
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
        if self.model.hparams().memory_layers.is_empty() {
            // Nothing of it would be stored.
            self.window.evict(n.min(self.window.len()));
            return Ok(());
        }
        let memory = match &self.overflow {
            Some(m) => m.clone(),
            None => {
                let m = Memory::in_ram(self.model.memory_geometry(), self.model.fingerprint().clone())?;
                self.overflow.insert(Arc::new(RwLock::new(m))).clone()
            }
        };
        self.evict_into(&memory, n)
    }

    /// Moves the `n` oldest entries of the window into `memory`. On error the window is as before.
    fn evict_into(&mut self, memory: &SharedMemory, n: usize) -> Result<()> {
        self.evict_to(n, &mut |pass, _, tokens, layers| write(memory).append_on(pass, tokens, None, layers))
    }

    /// Hands the `n` oldest entries of the window to `take`, with the model and their tokens, and drops them.
    pub(super) fn evict_to(&mut self, n: usize, take: Take<'_>) -> Result<()> {
        let n = n.min(self.window.len());
        if n == 0 {
            return Ok(());
        }
        let oldest = self.tokens.len() - usize::from(self.pending) - self.window.len();
        let raw = self.team.pass(|pass| self.raw_entries(pass, n))?;
        let layers: Vec<LayerKv<'_>> = raw.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
        let h = self.model.hparams();
        let sinks = if h.fot.is_none() { self.recall.sinks_wanted().min(n) } else { 0 };
        // Nothing may fail once the entries are taken: they would be taken again.
        if sinks > 0 {
            self.recall.reserve_sinks(h, sinks)?;
        }
        self.team.pass(|pass| take(pass, &self.model, &self.tokens[oldest..oldest + n], &layers))?;
        if sinks > 0 {
            let (key_row, value_row) = (h.head_count_kv * h.key_length, h.head_count_kv * h.value_length);
            self.recall.keep_sinks(sinks, raw.iter().map(|(k, v)| (&k[..sinks * key_row], &v[..sinks * value_row])));
        }
        self.window.evict(n);
        Ok(())
    }

    /// Unrotated keys and values of the `n` oldest entries, for each layer that a memory stores.
    fn raw_entries(&self, pass: &Pass<'_>, n: usize) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let h = self.model.hparams();
        let rotated = h.fot.as_ref().is_none_or(|f| f.memory_positionals);
        let mut read: Vec<Result<(Vec<f32>, Vec<f32>)>> = h.memory_layers.iter().map(|_| Ok(Default::default())).collect();
        pass.for_each_chunk(&mut read, 1, |slot, read| {
            for read in read {
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                *read = self.window.entries(h.memory_layers[slot], n, &mut keys, &mut values).map(|()| {
                    if rotated {
                        self.rotary.global.turn(Turn::Back, self.window.first(), &mut keys, h.head_count_kv, h.key_length);
                    }
                    (keys, values)
                });
            }
        });
        read.into_iter().collect()
    }

    /// Which stored passages were read for the last tokens, most wanted first. Ordinary models only: a Focused Transformer
    /// reads all of its memory, or a choice per query and head.
    ///
    /// # Errors
    /// [`Error::Io`] if a memory's list of sources cannot be read; where it is damaged, passages are without.
    pub fn passages(&self) -> Result<Vec<Passage>> {
        let shared: Vec<_> = self.memories().cloned().collect();
        let readers = Readers::lock(&shared);
        let memories = readers.list();
        let sources: Vec<_> = memories.iter().map(|m| m.sources()).collect::<Result<_>>()?;
        let source_at = |memory: usize, token: u64| {
            let span = sources[memory].iter().find(|s| s.tokens.contains(&token));
            span.map(|s| s.label.clone())
        };
        let number = |memory: usize| (memory < self.attached.len()).then_some(memory);
        let mut passages: Vec<Passage> = Vec::new();
        for &(at, score) in self.recall.chosen() {
            let Some(memory) = memories.get(at.memory) else { continue };
            let block = memory.block(at.block)?;
            let source = source_at(at.memory, block.first_token);
            match passages.last_mut() {
                Some(p) if p.memory == number(at.memory) && p.first_token + p.len == block.first_token && p.source == source => {
                    p.len += block.len as u64;
                    p.score = p.score.max(score);
                }
                _ => {
                    let (memory, first_token, len) = (number(at.memory), block.first_token, block.len as u64);
                    passages.push(Passage { memory, first_token, len, source, score });
                }
            }
        }
        passages.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(passages)
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
