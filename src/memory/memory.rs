//! The handle on a memory: open, append, commit, follow a writer. `reader.rs` reads through it, `documents.rs` keeps whole documents with it.
//!
//! Invariants: blocks are numbered once and for all when their first token comes; all are full but the last one of each commit and
//! the very last; a block is either committed (read from the file) or pending (in RAM), and both are read through one face.

use super::form::Form;
use super::format::{LABEL_BYTES_MAX, SEGMENT_TOKENS_MAX};
use super::index::LayerIndex;
use super::log::TokenLog;
use super::page::{Block, Scratch, check_rows};
use super::records::TokenRanges;
use super::store::Store;
use super::view::{Access, LayerKv, Source, SourceSpan, Stats};
use super::{Fingerprint, Geometry};
use crate::bytes::{FileStorage, Storage};
use crate::error::{Error, Result, try_reserve};
use crate::threads::{Pass, alone};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};

/// What is appended but not committed. `Block`s are all full but the last.
#[derive(Default)]
pub(super) struct Pending {
    pub blocks: Vec<Block>,
    pub tokens: Vec<u32>,
    pub spans: Vec<SourceSpan>,
}

/// A memory: see the module. Reading takes `&self` and can be done from many threads.
pub struct Memory {
    pub(super) geometry: Geometry,
    pub(super) fingerprint: Fingerprint,
    pub(super) store: Option<Store>,
    pub(super) pending: Pending,
    /// One for each layer slot, loaded when first asked for.
    pub(super) index: Vec<OnceLock<LayerIndex>>,
    /// Of a memory without a file; the others are in the store.
    pub(super) forgotten: TokenRanges,
    /// What this handle alone leaves out.
    pub(super) left_out: TokenRanges,
    /// Blocks that were found damaged when they were to be read, and are not read any more.
    pub(super) dropped: Mutex<BTreeSet<usize>>,
    /// The same, to be asked without a lock.
    pub(super) dropped_count: AtomicUsize,
    /// Of a memory that is written: the document being read into it.
    pub(super) log: Option<TokenLog>,
    path: Option<PathBuf>,
}

impl Memory {
    /// A memory that never touches a disk; [`Memory::commit`] does nothing.
    pub fn in_ram(geometry: Geometry, fingerprint: Fingerprint) -> Result<Memory> {
        geometry.validate()?;
        fingerprint.validate()?;
        Ok(Memory::new(geometry, fingerprint, None))
    }

    /// Creates a new file, durably, and opens it for writing; fails if there is one already. An empty one is taken: that is what a process
    /// that was killed here leaves.
    pub fn create(path: &Path, geometry: Geometry, fingerprint: Fingerprint) -> Result<Memory> {
        geometry.validate()?;
        fingerprint.validate()?;
        let file = FileStorage::create(path).or_else(|e| match FileStorage::open_to_write(path) {
            Ok(left) if left.file().metadata().is_ok_and(|m| m.is_file() && m.len() == 0) => Ok(left),
            _ => Err(e),
        })?;
        Memory::create_in(file, geometry, fingerprint)
    }

    /// The same in a new, empty file.
    pub(super) fn create_in(file: FileStorage, geometry: Geometry, fingerprint: Fingerprint) -> Result<Memory> {
        let path = FileStorage::real_path(file.path());
        // Without the lock it is not ours to remove.
        file.try_lock()?;
        let made = file.sync_directory().and_then(|()| Memory::create_on(Box::new(file), geometry, fingerprint));
        if made.is_err() {
            // It is ours, and nothing was promised about it.
            let _ = std::fs::remove_file(&path);
        }
        let mut memory = made?;
        (memory.log, memory.path) = (Some(TokenLog::beside(&path)), Some(path));
        Ok(memory)
    }

    /// Opens a file for appending. [`Error::Busy`] while another handle has it, [`Error::Mismatch`] if it was made with another
    /// model than the expected one.
    pub fn open(path: &Path, expected: Option<&Fingerprint>) -> Result<Memory> {
        // Whichever name it is opened by, the log stands beside the file.
        let path = FileStorage::real_path(path);
        let file = FileStorage::open_to_write(&path)?;
        let mut memory = Memory::open_on(Box::new(file), expected, Access::Write)?;
        (memory.log, memory.path) = (Some(TokenLog::beside(&path)), Some(path));
        Ok(memory)
    }

    /// Opens a file for reading, beside a writer or on read-only media; takes no lock. See [`Memory::refresh`].
    pub fn open_read_only(path: &Path, expected: Option<&Fingerprint>) -> Result<Memory> {
        let path = FileStorage::real_path(path);
        let mut memory = Memory::open_on(Box::new(FileStorage::open_read_only(&path)?), expected, Access::Read)?;
        memory.path = Some(path);
        Ok(memory)
    }

    /// Another handle on the same file, for reading what is durable: work that takes long need not hold this one. `None` if it was not
    /// opened by a path.
    pub fn reopen(&self) -> Result<Option<Memory>> {
        self.path().map(|path| Memory::open_read_only(path, Some(&self.fingerprint))).transpose()
    }

    /// [`Memory::create`] on any empty storage; that there is one writer is the caller's care.
    pub fn create_on(storage: Box<dyn Storage>, geometry: Geometry, fingerprint: Fingerprint) -> Result<Memory> {
        geometry.validate()?;
        fingerprint.validate()?;
        let store = Store::create(storage, geometry.clone(), fingerprint.clone())?;
        Ok(Memory::new(geometry, fingerprint, Some(store)))
    }

    /// [`Memory::open`] on any storage; that there is one writer is the caller's care.
    pub fn open_on(storage: Box<dyn Storage>, expected: Option<&Fingerprint>, access: Access) -> Result<Memory> {
        let store = Store::open(storage, expected, access)?;
        Ok(Memory::new(store.geometry().clone(), store.fingerprint().clone(), Some(store)))
    }

    fn new(geometry: Geometry, fingerprint: Fingerprint, store: Option<Store>) -> Memory {
        let index = geometry.layers.iter().map(|_| OnceLock::new()).collect();
        Memory {
            geometry,
            fingerprint,
            store,
            pending: Pending::default(),
            index,
            forgotten: TokenRanges::default(),
            left_out: TokenRanges::default(),
            dropped: Mutex::default(),
            dropped_count: AtomicUsize::new(0),
            log: None,
            path: None,
        }
    }

    /// What no other memory file has; `None` without a file.
    pub fn uuid(&self) -> Option<&[u8; 16]> {
        self.store.as_ref().map(Store::uuid)
    }

    /// Where the file stands, links followed; `None` without a file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(super) fn pending(&self) -> &Pending {
        &self.pending
    }

    /// What a memory without a file is to hold.
    pub(super) fn set_pending(&mut self, pending: Pending, forgotten: &[Range<u64>]) {
        self.pending = pending;
        forgotten.iter().for_each(|range| self.forgotten.insert(range.clone()));
    }

    /// The shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The model it belongs to.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Tokens, committed or not.
    pub fn len(&self) -> u64 {
        self.committed_len() + self.pending.tokens.len() as u64
    }

    /// True without a single token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Durable tokens.
    pub fn committed_len(&self) -> u64 {
        self.store.as_ref().map_or(0, |s| s.tip().tokens)
    }

    /// How its index keeps mean keys.
    pub(super) fn form(&self) -> Form {
        self.store.as_ref().map_or(Form::RAM, Store::form)
    }

    pub(super) fn committed_blocks(&self) -> usize {
        self.store.as_ref().map_or(0, Store::blocks)
    }

    /// Appends tokens with the keys and values of every layer slot. They can be read at once; they are durable after
    /// [`Memory::commit`]. Either all are appended or, with an error, none.
    ///
    /// # Errors
    /// [`Error::Argument`] for a wrong shape or for a number that is not finite in the codec, [`Error::Limit`] with more than a
    /// million tokens not committed, [`Error::OutOfMemory`], and [`Error::Io`] after a failed sync.
    pub fn append(&mut self, tokens: &[u32], source: Option<Source<'_>>, keys_values: &[LayerKv<'_>]) -> Result<()> {
        alone(|pass| self.append_on(pass, tokens, source, keys_values))
    }

    /// [`Memory::append`] with a team's help: what is kept is the same.
    pub fn append_on(&mut self, pass: &Pass<'_>, tokens: &[u32], source: Option<Source<'_>>, keys_values: &[LayerKv<'_>]) -> Result<()> {
        let (geometry, form, block_len) = (&self.geometry, self.form(), self.geometry.block_len());
        if let Some(store) = &self.store {
            store.writable()?;
            let asked = (self.pending.tokens.len() + tokens.len()) as u64;
            if asked > u64::from(SEGMENT_TOKENS_MAX) {
                return Err(Error::Limit { what: "tokens before a commit".into(), limit: SEGMENT_TOKENS_MAX.into(), asked });
            }
        }
        check_rows(geometry, tokens.len(), keys_values)?;
        if let Some(source) = &source
            && (source.label.len() > LABEL_BYTES_MAX || source.text.start > source.text.end)
        {
            let found = format!("{} bytes, text {:?}", source.label.len(), source.text);
            return Err(Error::argument("source", format!("a label of at most {LABEL_BYTES_MAX} bytes and a range"), found));
        }
        if tokens.is_empty() {
            return Ok(());
        }

        // Everything that can fail comes first.
        let pending = &mut self.pending;
        let first = pending.tokens.len() / block_len; // the first block that changes
        let blocks = (pending.tokens.len() + tokens.len()).div_ceil(block_len);
        let new = blocks - pending.blocks.len();
        let mut fresh = Vec::new();
        try_reserve(&mut fresh, "memory blocks", new)?;
        for _ in 0..new {
            fresh.push(Block::new(geometry, form)?);
        }
        try_reserve(&mut pending.blocks, "memory blocks", new)?;
        try_reserve(&mut pending.tokens, "memory tokens", tokens.len())?;
        try_reserve(&mut pending.spans, "memory sources", 1)?;
        for index in self.index.iter_mut().filter_map(OnceLock::get_mut) {
            index.reserve(geometry, new)?;
        }
        let mut scratch = Scratch::of_layers(geometry, form)?;

        let first_token = self.store.as_ref().map_or(0, |s| s.tip().tokens) + pending.tokens.len() as u64;
        let committed_blocks = self.store.as_ref().map_or(0, Store::blocks);
        pending.blocks.append(&mut fresh);
        pending.tokens.extend(tokens);
        if let Some(source) = source {
            note_source(&mut pending.spans, source, first_token..first_token + tokens.len() as u64);
        }
        let mut from = 0;
        for block in &mut pending.blocks[first..] {
            let count = (block_len - block.len).min(tokens.len() - from);
            block.push(pass, geometry, keys_values, from, count);
            block.summarise(pass, geometry, &mut scratch);
            from += count;
        }
        for (slot, index) in self.index.iter_mut().enumerate() {
            if let Some(index) = index.get_mut() {
                index.truncate(geometry, committed_blocks + first);
                pending.blocks[first..].iter().for_each(|b| index.push(geometry, form, slot, b));
            }
        }
        Ok(())
    }

    /// Makes everything appended so far durable: returns after the system has said so. Closes the last block even if it is not
    /// full, so commit groups of appends, not single tokens.
    ///
    /// # Errors
    /// [`Error::Io`]. If the disk was full or refused a write the call can be repeated; after a failed sync this handle only reads,
    /// and what was not committed is lost with it.
    pub fn commit(&mut self) -> Result<()> {
        let Some(store) = &mut self.store else { return Ok(()) };
        if self.pending.tokens.is_empty() {
            return Ok(());
        }
        store.commit(&self.pending.blocks, &self.pending.tokens, &self.pending.spans)?;
        self.pending = Pending::default();
        Ok(())
    }

    /// For a handle opened read-only: takes up what a writer has committed since. True if there was something.
    pub fn refresh(&mut self) -> Result<bool> {
        let Some(store) = &mut self.store else { return Ok(false) };
        let segments = store.segments.len();
        let result = store.refresh();
        for (slot, index) in self.index.iter_mut().enumerate() {
            if let Some(loaded) = index.get_mut()
                && loaded.load(&self.geometry, store, slot, segments).is_err()
            {
                index.take(); // half loaded; the next question for it says what is wrong
            }
        }
        result
    }

    /// For a handle opened read-only: shows the memory as it was after the last commit with at most so many tokens in all.
    /// [`Memory::refresh`] brings back what came later.
    ///
    /// # Errors
    /// [`Error::Argument`] if the handle is open for writing or lies in RAM.
    pub fn rewind(&mut self, tokens: u64) -> Result<()> {
        match &mut self.store {
            Some(store) if store.writable().is_err() => store.rewind(tokens)?,
            _ => return Err(Error::argument("memory", "a memory file opened read-only", "one that is written")),
        }
        self.index.iter_mut().for_each(|index| drop(index.take()));
        Ok(())
    }

    /// True if it lies in a file, false if only in RAM.
    pub fn is_on_file(&self) -> bool {
        self.store.is_some()
    }

    /// Number of blocks, committed or not.
    pub fn blocks(&self) -> usize {
        self.committed_blocks() + self.pending.blocks.len()
    }

    pub(super) fn forgotten(&self) -> &TokenRanges {
        self.store.as_ref().map_or(&self.forgotten, |s| &s.forgotten)
    }

    /// Tokens that are appended but not durable.
    pub fn pending_len(&self) -> u64 {
        self.pending.tokens.len() as u64
    }

    /// Sizes.
    pub fn stats(&self) -> Stats {
        let index = self.index.iter().filter_map(OnceLock::get).map(|i| 4 * (i.means.len() + i.radii.len()) as u64).sum::<u64>();
        let mut stats = Stats { tokens: self.len(), blocks: self.blocks(), ..Stats::default() };
        stats.ram_bytes = index + self.pending.blocks.iter().map(Block::resident_bytes).sum::<u64>();
        if let Some(store) = &self.store {
            (stats.committed_tokens, stats.commits, stats.file_bytes) = (store.tip().tokens, store.tip().sequence, store.tip().end);
            (stats.mapped_bytes, stats.maps) = store.maps.mapped();
            stats.damaged_sections = store.damaged_sections.load(Relaxed);
            stats.damaged_pages = store.damaged_pages.len();
            stats.lost_tokens = store.segments.iter().filter(|s| s.lost).map(|s| u64::from(s.header.token_count)).sum();
        }
        stats.forgotten_tokens = self.forgotten().tokens();
        stats.dropped_blocks = self.dropped_count.load(Relaxed);
        stats
    }
}

/// Adds a span, or lengthens the last one if this goes on where it ended.
fn note_source(spans: &mut Vec<SourceSpan>, source: Source<'_>, tokens: Range<u64>) {
    if let Some(last) = spans.last_mut()
        && last.label == source.label
        && last.tokens.end == tokens.start
        && last.text.end == source.text.start
    {
        (last.tokens.end, last.text.end) = (tokens.end, source.text.end);
        return;
    }
    spans.push(SourceSpan { label: source.label.to_owned(), tokens, text: source.text });
}
