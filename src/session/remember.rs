//! Reading documents into a memory, going on where a crash interrupted that, and computing again what a disk has damaged.
//!
//! A document is read in the same windows each time, and what is computed does not depend on threads or batches: so what is read again
//! from its beginning comes to the same bits.

use super::memories::{Take, read, write};
use super::{Progress, Session, SharedMemory};
use crate::error::{Error, Result};
use crate::memory::{Damage, LayerKv, Memory, Source, Unfinished};
use crate::model::Model;
use crate::model::forward::Outputs;
use crate::threads::Pass;
use std::ops::Range;
use std::sync::{Arc, RwLock};

/// Tokens of local context while a document is read into memory by an ordinary model.
const READING_WINDOW: usize = 2048;

/// Tokens of a document that are appended to a file between two commits: bounds the RAM they take meanwhile.
const TOKENS_BETWEEN_COMMITS: u64 = 4096;

/// What [`Session::repair`] has done.
#[derive(Debug, Default)]
pub struct Repair {
    /// Indices and tables of checksums that were made again from the keys.
    pub sections: usize,
    /// Blocks of a layer that were computed again, to the same bits.
    pub extents: usize,
    /// What stays damaged.
    pub lost: Vec<Damage>,
}

impl Session {
    /// Reads `tokens` into `memory`: the keys and values of every token are appended. The session's own context is reset
    /// before and after; attached memories are not consulted.
    ///
    /// A memory on a file first makes the tokens themselves durable, and is committed every few thousand tokens, so that a document
    /// of any size takes little RAM, and at the end. After a crash in between [`Session::resume`] goes on.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `progress` or a cancel handle said so: what was appended stays, and the memory's length tells
    /// how much that is.
    pub fn remember(&mut self, memory: &SharedMemory, tokens: &[u32], source: Option<&str>, progress: Progress<'_>) -> Result<()> {
        self.begin_call();
        self.check_memory(&read(memory))?;
        self.check_tokens(tokens)?;
        let is_logged = write(memory).begin(source, tokens)?;
        self.read_document(memory, tokens, 0, source, is_logged, progress)
    }

    /// Goes on with the document whose reading into `memory` a crash has interrupted, if there is one: true if so. At most the tokens
    /// since the last commit are computed again. An ordinary model first reads the window before them again, without what stood before
    /// that: what it remembers then is not the same to the bit, as it would be had it not been interrupted.
    ///
    /// # Errors
    /// As [`Session::remember`]; [`Error::Busy`] while the document is being read.
    pub fn resume(&mut self, memory: &SharedMemory, progress: Progress<'_>) -> Result<bool> {
        self.begin_call();
        self.check_memory(&read(memory))?;
        let (Unfinished { label, tokens, .. }, done) = {
            // Under one lock, so that of two who resume it only one does.
            let mut memory = write(memory);
            let Some(interrupted) = memory.interrupted()? else { return Ok(false) };
            self.check_tokens(&interrupted.0.tokens)?;
            memory.go_on();
            interrupted
        };
        self.read_document(memory, &tokens, done, label.as_deref(), true, progress)?;
        Ok(true)
    }

    /// Reads the tokens of a document from number `done` on.
    fn read_document(
        &mut self,
        memory: &SharedMemory,
        tokens: &[u32],
        done: usize,
        label: Option<&str>,
        is_logged: bool,
        progress: Progress<'_>,
    ) -> Result<()> {
        self.reset();
        let attached = std::mem::take(&mut self.attached);
        let mut begun = false;
        let mut at = text_bytes(&self.model, &tokens[..done], &mut begun);
        let mut take = |pass: &Pass<'_>, model: &Model, tokens: &[u32], layers: &[LayerKv<'_>]| {
            let start = at;
            at += text_bytes(model, tokens, &mut begun);
            let mut memory = write(memory);
            memory.append_on(pass, tokens, label.map(|label| Source { label, text: start..at }), layers)?;
            if memory.is_on_file() && memory.pending_len() >= TOKENS_BETWEEN_COMMITS {
                memory.commit()?;
            }
            Ok(())
        };
        // FoT windows read the memory made so far (its keys hold what their tokens read there).
        let visible = if self.model.hparams().fot.is_some() { vec![memory.clone()] } else { Vec::new() };
        let result = self.read_windows(tokens, done, &visible, &mut take, progress);
        self.attached = attached;
        self.reset();
        // Given up is finished too: it was the caller's wish, or will fail again.
        let finished = if is_logged { write(memory).finish() } else { Ok(()) };
        result.and(finished)
    }

    /// Computes `tokens` from number `done` on, and hands what leaves the window to `take`.
    fn read_windows(
        &mut self,
        tokens: &[u32],
        done: usize,
        visible: &[SharedMemory],
        take: Take<'_>,
        progress: Progress<'_>,
    ) -> Result<()> {
        let is_fot = self.model.hparams().fot.is_some();
        let window = match &self.model.hparams().fot {
            Some(fot) => fot.window_length.min(self.window.capacity()),
            None => self.window.capacity().min(READING_WINDOW),
        };
        // A Focused Transformer was trained on whole windows; what an ordinary model reads keeps its recent context.
        let leaving = if is_fot { window } else { (window / 4).max(1) };
        // Context that is there already is computed without being stored again.
        let mut skip = 0;
        let mut at = done;
        if !is_fot && done > 0 {
            skip = (window - leaving).min(done);
            at -= skip;
            // Those that come again anyway become sinks when they leave.
            let sinks = self.recall.sinks_wanted().min(at);
            if sinks > 0 {
                self.compute(&tokens[..sinks], Outputs::Memory, visible)?;
                self.evict_to(sinks, &mut |_, _, _, _| Ok(()))?;
            }
        }
        let mut take = |pass: &Pass<'_>, model: &Model, tokens: &[u32], layers: &[LayerKv<'_>]| {
            let from = skip.min(tokens.len());
            skip -= from;
            let rest: Vec<_> = layers
                .iter()
                .map(|l| LayerKv {
                    keys: &l.keys[l.keys.len() / tokens.len() * from..],
                    values: &l.values[l.values.len() / tokens.len() * from..],
                })
                .collect();
            if from < tokens.len() { take(pass, model, &tokens[from..], &rest) } else { Ok(()) }
        };
        while at < tokens.len() {
            if self.window.len() >= window {
                self.evict_to(leaving, &mut take)?;
            }
            let n = self.options.batch.min(tokens.len() - at).min(window - self.window.len());
            let start = std::time::Instant::now();
            let result = self.compute(&tokens[at..at + n], Outputs::Memory, visible);
            if let Err(e) = result {
                self.cancel.clear();
                self.evict_to(self.window.len(), &mut take)?;
                return Err(e);
            }
            self.counters.prefill_tokens += n as u64;
            self.counters.prefill_seconds += start.elapsed().as_secs_f64();
            at += n;
            if at > done && progress(at, tokens.len()).is_break() && at < tokens.len() {
                self.evict_to(self.window.len(), &mut take)?;
                return Err(Error::Cancelled);
            }
        }
        self.evict_to(self.window.len(), &mut take)
    }

    /// Brings back what [`Memory::verify`](crate::memory::Memory::verify) finds damaged in a memory that is open for writing: sections that
    /// follow from others, and, by reading their documents again, keys and values. Nothing is written that does not match the checksum
    /// of what was there; so a document that was read by another build, in another window or after a crash may stay damaged.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Io`]. What was brought back until then stays.
    pub fn repair(&mut self, memory: &SharedMemory, progress: Progress<'_>) -> Result<Repair> {
        self.begin_call();
        self.check_memory(&read(memory))?;
        let mut done = Repair { sections: heal_sections(memory)?, ..Repair::default() };
        done.lost = self.verify(memory)?;
        let documents = documents(memory)?;
        for document in documents {
            let mut wanted: Vec<(usize, Range<u64>)> = Vec::new();
            for damage in done.lost.iter().filter(|d| d.layer_slot.is_some()) {
                let span = read(memory).block(damage.blocks.start)?;
                let tokens = span.first_token..span.first_token + span.len as u64;
                if document.start <= tokens.start && tokens.end <= document.end {
                    wanted.push((damage.blocks.start, tokens));
                }
            }
            wanted.sort_by_key(|w| w.0);
            wanted.dedup_by_key(|w| w.0);
            if !wanted.is_empty() {
                self.repair_document(memory, document, &wanted, &mut done, progress)?;
            }
        }
        // What follows from keys follows from those that were brought back, too.
        if done.extents > 0 {
            let healed = heal_sections(memory)?;
            done.sections += healed;
            if healed > 0 {
                done.lost = self.verify(memory)?;
            }
        }
        Ok(done)
    }

    /// What is damaged. Through a handle of its own where there is a file: nobody waits for this one meanwhile.
    fn verify(&self, memory: &SharedMemory) -> Result<Vec<Damage>> {
        let going_on = |_, _| !self.cancel.is_cancelled();
        let own = read(memory).reopen()?;
        match own {
            Some(own) => own.verify(going_on),
            None => read(memory).verify(going_on),
        }
    }

    /// Reads a document again and heals the `wanted` blocks (with their tokens).
    fn repair_document(
        &mut self,
        memory: &SharedMemory,
        document: Range<u64>,
        wanted: &[(usize, Range<u64>)],
        done: &mut Repair,
        progress: Progress<'_>,
    ) -> Result<()> {
        if self.model.hparams().fot.is_some() && document.start > 0 {
            // Its keys hold what their tokens read in the memory as it was then, and we cannot show the memory as it was.
            return Ok(());
        }
        let end = wanted.last().map_or(document.start, |w| w.1.end);
        let (tokens, gaps) = read(memory).tokens_and_gaps(document.start..end)?;
        if !gaps.is_empty() {
            // What cannot be read cannot be computed again: its blocks stay among the lost.
            return Ok(());
        }
        self.check_tokens(&tokens)?;
        self.reset();
        let attached = std::mem::take(&mut self.attached);
        let (geometry, fingerprint) = {
            let memory = read(memory);
            (memory.geometry().clone(), memory.fingerprint().clone())
        };
        let again: SharedMemory = Arc::new(RwLock::new(Memory::in_ram(geometry, fingerprint)?));
        let visible = if self.model.hparams().fot.is_some() { vec![again.clone()] } else { Vec::new() };
        let mut at = document.start;
        let mut rows: Vec<Vec<(Vec<f32>, Vec<f32>)>> = wanted.iter().map(|_| Vec::new()).collect();
        let mut take = |pass: &Pass<'_>, _: &Model, tokens: &[u32], layers: &[LayerKv<'_>]| {
            let here = at..at + tokens.len() as u64;
            at = here.end;
            for ((block, span), rows) in wanted.iter().zip(&mut rows) {
                let part = span.start.max(here.start)..span.end.min(here.end);
                if part.is_empty() {
                    continue;
                }
                rows.resize_with(layers.len(), Default::default);
                let (from, to) = ((part.start - here.start) as usize, (part.end - here.start) as usize);
                for (rows, layer) in rows.iter_mut().zip(layers) {
                    let (k, v) = (layer.keys.len() / tokens.len(), layer.values.len() / tokens.len());
                    rows.0.extend(&layer.keys[from * k..to * k]);
                    rows.1.extend(&layer.values[from * v..to * v]);
                }
                if part.end == span.end {
                    let whole: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
                    heal(memory, *block, &whole, done)?;
                    rows.clear();
                }
            }
            if visible.is_empty() { Ok(()) } else { write(&again).append_on(pass, tokens, None, layers) }
        };
        let result = self.read_windows(&tokens, 0, &visible, &mut take, progress);
        self.attached = attached;
        self.reset();
        result
    }
}

/// Heals sections until there is no more that can be: each may be what another follows from.
fn heal_sections(memory: &SharedMemory) -> Result<usize> {
    let mut all = 0;
    loop {
        match write(memory).heal_sections()? {
            0 => return Ok(all),
            healed => all += healed,
        }
    }
}

/// Heals what is lost of a block, from its rows.
fn heal(memory: &SharedMemory, block: usize, rows: &[LayerKv<'_>], done: &mut Repair) -> Result<()> {
    let mut lost = Vec::new();
    for damage in std::mem::take(&mut done.lost) {
        match damage.layer_slot {
            Some(slot) if damage.blocks.start == block && write(memory).heal_extent(slot, block, rows)? => done.extents += 1,
            _ => lost.push(damage),
        }
    }
    done.lost = lost;
    Ok(())
}

/// The tokens of each document, from where its text begins: the spans of its commits, joined.
fn documents(memory: &SharedMemory) -> Result<Vec<Range<u64>>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    let mut last: Option<(String, u64)> = None;
    for span in read(memory).sources()? {
        match (out.last_mut(), &last) {
            (Some(tokens), Some((label, text))) if tokens.end == span.tokens.start && *label == span.label && *text == span.text.start => {
                tokens.end = span.tokens.end;
            }
            _ => out.push(span.tokens.clone()),
        }
        last = Some((span.label, span.text.end));
    }
    Ok(out)
}

/// Bytes of a document's text that these tokens of it are, without the space that encoding puts before the first (`begun` after it).
fn text_bytes(model: &Model, tokens: &[u32], begun: &mut bool) -> u64 {
    let tokenizer = model.tokenizer();
    let mut bytes = 0;
    for piece in tokens.iter().filter_map(|t| tokenizer.token_bytes(*t)).filter(|piece| !piece.is_empty()) {
        let invented = !std::mem::replace(begun, true) && tokenizer.adds_space_prefix() && piece[0] == b' ';
        bytes += (piece.len() - usize::from(invented)) as u64;
    }
    bytes
}
