//! The handle on a memory: append, commit, read.
//!
//! Invariants: blocks are numbered once and for all when their first token comes; all are full but the last one of each commit and
//! the very last; a block is either committed (read from the file) or pending (in RAM), and both are read through one face.

use super::format::{LABEL_BYTES_MAX, SEGMENT_TOKENS_MAX, Section, parse_spans};
use super::geometry::Side;
use super::index::{LayerIndex, reserve};
use super::log::{TokenLog, Unfinished};
use super::page::{Block, check_rows};
use super::records::TokenRanges;
use super::segment::not_truncated;
use super::store::Store;
use super::view::{Access, BlockSpan, BlockView, LayerKv, Source, SourceSpan, Stats};
use super::{Fingerprint, Geometry};
use crate::bytes::{FileStorage, Storage};
use crate::error::{Error, Result, try_zeroed};
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
    geometry: Geometry,
    fingerprint: Fingerprint,
    pub(super) store: Option<Store>,
    pending: Pending,
    /// One for each layer slot, loaded when first asked for.
    index: Vec<OnceLock<LayerIndex>>,
    /// Of a memory without a file; the others are in the store.
    forgotten: TokenRanges,
    /// Blocks that were found damaged when they were to be read, and are not read any more.
    dropped: Mutex<BTreeSet<usize>>,
    /// The same, to be asked without a lock.
    dropped_count: AtomicUsize,
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

    /// Creates a new file, durably, and opens it for writing; fails if there is one already.
    pub fn create(path: &Path, geometry: Geometry, fingerprint: Fingerprint) -> Result<Memory> {
        geometry.validate()?;
        fingerprint.validate()?;
        let file = FileStorage::create(path)?;
        let made =
            file.try_lock().and_then(|()| file.sync_directory()).and_then(|()| Memory::create_on(Box::new(file), geometry, fingerprint));
        if made.is_err() {
            // It is ours, and nothing was promised about it.
            let _ = std::fs::remove_file(path);
        }
        let mut memory = made?;
        (memory.log, memory.path) = (Some(TokenLog::beside(path)), Some(path.into()));
        Ok(memory)
    }

    /// Opens a file for appending. [`Error::Busy`] while another handle has it, [`Error::Mismatch`] if it was made with another
    /// model than the expected one.
    pub fn open(path: &Path, expected: Option<&Fingerprint>) -> Result<Memory> {
        let file = FileStorage::open_to_write(path)?;
        let mut memory = Memory::open_on(Box::new(file), expected, Access::Write)?;
        (memory.log, memory.path) = (Some(TokenLog::beside(path)), Some(path.into()));
        Ok(memory)
    }

    /// Opens a file for reading, beside a writer or on read-only media; takes no lock. See [`Memory::refresh`].
    pub fn open_read_only(path: &Path, expected: Option<&Fingerprint>) -> Result<Memory> {
        let mut memory = Memory::open_on(Box::new(FileStorage::open_read_only(path)?), expected, Access::Read)?;
        memory.path = Some(path.into());
        Ok(memory)
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

    /// Where it was opened or created; `None` without a file.
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

    fn committed_blocks(&self) -> usize {
        self.store.as_ref().map_or(0, Store::blocks)
    }

    /// Appends tokens with the keys and values of every layer slot. They can be read at once; they are durable after
    /// [`Memory::commit`]. Either all are appended or, with an error, none.
    ///
    /// # Errors
    /// [`Error::Argument`] for a wrong shape or for a number that is not finite in the codec, [`Error::Limit`] with more than a
    /// million tokens not committed, [`Error::OutOfMemory`], and [`Error::Io`] after a failed sync.
    pub fn append(&mut self, tokens: &[u32], source: Option<Source<'_>>, keys_values: &[LayerKv<'_>]) -> Result<()> {
        let (geometry, block_len) = (&self.geometry, self.geometry.block_len());
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
        reserve(&mut fresh, "memory blocks", new)?;
        for _ in 0..new {
            fresh.push(Block::new(geometry)?);
        }
        reserve(&mut pending.blocks, "memory blocks", new)?;
        reserve(&mut pending.tokens, "memory tokens", tokens.len())?;
        reserve(&mut pending.spans, "memory sources", 1)?;
        for index in self.index.iter_mut().filter_map(OnceLock::get_mut) {
            index.reserve(geometry, new)?;
        }
        let mut scratch: Vec<f32> = try_zeroed("a memory block's index", block_len * geometry.length(Side::Keys))?;
        let mut sums: Vec<f64> = try_zeroed("a memory block's index", geometry.length(Side::Keys))?;

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
            block.push(geometry, keys_values, from, count);
            block.summarise(geometry, &mut scratch, &mut sums);
            from += count;
        }
        for (slot, index) in self.index.iter_mut().enumerate() {
            if let Some(index) = index.get_mut() {
                index.truncate(geometry, committed_blocks + first);
                pending.blocks[first..].iter().for_each(|b| index.push(geometry, slot, b));
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

    /// The ids of a range of tokens.
    pub fn tokens(&self, range: Range<u64>) -> Result<Vec<u32>> {
        if range.start > range.end || range.end > self.len() {
            return Err(Error::argument("range", format!("a range within {} tokens", self.len()), format!("{range:?}")));
        }
        let mut out = Vec::new();
        reserve(&mut out, "token ids", (range.end - range.start) as usize)?;
        // The part of the range that lies in `len` tokens from `first` on, counted from `first`.
        let part = |first: u64, len: u64| {
            range.start.clamp(first, first + len) as usize - first as usize..range.end.clamp(first, first + len) as usize - first as usize
        };
        if let Some(store) = &self.store {
            let from = store.segments.partition_point(|s| s.header.first_token + u64::from(s.header.token_count) <= range.start);
            for segment in store.segments.iter().skip(from).take_while(|s| s.header.first_token < range.end) {
                let ids = store.section(segment, Section::Tokens)?.as_chunks().0;
                let part = part(segment.header.first_token, segment.header.token_count.into());
                out.extend(ids[part].iter().map(|b| u32::from_le_bytes(*b)));
            }
        }
        out.extend(&self.pending.tokens[part(self.committed_len(), self.pending.tokens.len() as u64)]);
        Ok(out)
    }

    /// Where the tokens come from, in the order of the tokens. Tokens without a source, and forgotten ones, are in none of the spans.
    pub fn sources(&self) -> Result<Vec<SourceSpan>> {
        let mut out: Vec<SourceSpan> = Vec::new();
        if let Some(store) = &self.store {
            for segment in &store.segments {
                let at = segment.offset + segment.layout.sections[Section::Spans as usize].0;
                parse_spans(store.section(segment, Section::Spans)?, at, &segment.header, |span| out.push(span))?;
            }
        }
        out.extend(self.pending.spans.iter().cloned());
        out.retain(|span| !self.forgotten().covers(&span.tokens));
        Ok(out)
    }

    /// True if it lies in a file, false if only in RAM.
    pub fn is_on_file(&self) -> bool {
        self.store.is_some()
    }

    /// Number of blocks, committed or not.
    pub fn blocks(&self) -> usize {
        self.committed_blocks() + self.pending.blocks.len()
    }

    /// The tokens of a block.
    pub fn block(&self, block: usize) -> Result<BlockSpan> {
        if let Some(pending) = self.pending_block(block)? {
            let first_token = self.committed_len() + ((block - self.committed_blocks()) * self.geometry.block_len()) as u64;
            return Ok(BlockSpan { first_token, len: pending.len });
        }
        let (_, segment) = self.committed_block(block)?;
        let i = block - segment.first_block;
        let first_token = segment.header.first_token + (i * self.geometry.block_len()) as u64;
        let len = if i + 1 == segment.layout.blocks { segment.layout.last_len } else { self.geometry.block_len() };
        Ok(BlockSpan { first_token, len })
    }

    /// `None` if the block is committed; an error if there is no such block.
    fn pending_block(&self, block: usize) -> Result<Option<&Block>> {
        let Some(i) = block.checked_sub(self.committed_blocks()) else { return Ok(None) };
        match self.pending.blocks.get(i) {
            Some(block) => Ok(Some(block)),
            None => Err(Error::argument("block", format!("below {}", self.blocks()), block)),
        }
    }

    fn committed_block(&self, block: usize) -> Result<(&Store, &super::segment::Segment)> {
        let found = self.store.as_ref().and_then(|store| Some((store, store.segment_of_block(block)?)));
        found.ok_or_else(|| Error::argument("block", format!("below {}", self.blocks()), block))
    }

    /// The keys or the values of one head in one block, in place. A committed block is compared with its checksum when it is first
    /// touched.
    ///
    /// # Errors
    /// [`Error::Argument`] for a slot, head or block that is not there; [`Error::Corrupt`] with the offset if this block of this
    /// layer is damaged (others stay readable).
    pub fn rows(&self, side: Side, layer_slot: usize, head: usize, block: usize) -> Result<BlockView<'_>> {
        let geometry = &self.geometry;
        self.check_layer_slot(layer_slot)?;
        if head >= geometry.heads() {
            return Err(Error::argument("head", format!("below {}", geometry.heads()), head));
        }
        let (codec, length) = (geometry.codec, geometry.length(side));
        if let Some(pending) = self.pending_block(block)? {
            return Ok(BlockView { bytes: pending.run(geometry, layer_slot, side, head), codec, side, len: pending.len, length });
        }
        let (store, segment) = self.committed_block(block)?;
        let len = self.block(block)?.len;
        let extent = segment.extent(&store.maps, &*store.storage, geometry, layer_slot, block - segment.first_block)?;
        let bytes = &extent[geometry.run_offset(side, head, len)..][..geometry.run_bytes(side, len)];
        Ok(BlockView { bytes, codec, side, len, length })
    }

    /// The unrotated keys of one head in one block: see [`Memory::rows`].
    pub fn keys(&self, layer_slot: usize, head: usize, block: usize) -> Result<BlockView<'_>> {
        self.rows(Side::Keys, layer_slot, head, block)
    }

    /// The values of one head in one block: see [`Memory::rows`].
    pub fn values(&self, layer_slot: usize, head: usize, block: usize) -> Result<BlockView<'_>> {
        self.rows(Side::Values, layer_slot, head, block)
    }

    /// Asks the system to read a block of a layer slot ahead. Only a hint: it returns at once and never fails.
    pub fn prefetch(&self, layer_slot: usize, block: usize) {
        if layer_slot < self.geometry.layer_count()
            && let Some(store) = &self.store
            && block < store.blocks()
            && let Some(segment) = store.segment_of_block(block)
        {
            let (at, len) = segment.layout.extent(layer_slot, block - segment.first_block);
            store.maps.will_need(segment.offset + at, len as u64);
        }
    }

    /// True if the block is to be read: none of its tokens is forgotten, and it was not found damaged.
    pub fn is_readable(&self, block: usize) -> bool {
        let forgotten = self.forgotten();
        if !forgotten.is_empty()
            && let Ok(span) = self.block(block)
            && forgotten.meets(&(span.first_token..span.first_token + span.len as u64))
        {
            return false;
        }
        self.dropped_count.load(Relaxed) == 0 || !self.dropped.lock().unwrap_or_else(|e| e.into_inner()).contains(&block)
    }

    /// What was being read of `block`, or `None` if it turned out damaged: then it is not read any more, which the log and
    /// [`Stats::dropped_blocks`] say. Other errors stay errors.
    pub fn or_drop<T>(&self, block: usize, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(e @ Error::Corrupt { .. }) if self.store.as_ref().is_some_and(|s| not_truncated(&*s.storage, s.tip().end).is_ok()) => {
                let mut dropped = self.dropped.lock().unwrap_or_else(|e| e.into_inner());
                if dropped.insert(block) {
                    log::warn!("block {block} of a memory is damaged and not read any more: {e}");
                    self.dropped_count.store(dropped.len(), Relaxed);
                }
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Blocks that were found damaged are looked at again.
    pub(super) fn read_again(&mut self) {
        self.dropped.get_mut().unwrap_or_else(|e| e.into_inner()).clear();
        self.dropped_count.store(0, Relaxed);
    }

    /// [`Error::Corrupt`] if somebody has cut the file short: what is mapped must not be touched then. To be asked before a round of
    /// reading.
    pub fn check_length(&self) -> Result<()> {
        self.store.as_ref().map_or(Ok(()), |s| not_truncated(&*s.storage, s.tip().end))
    }

    pub(super) fn forgotten(&self) -> &TokenRanges {
        self.store.as_ref().map_or(&self.forgotten, |s| &s.forgotten)
    }

    /// Forgets what was remembered under this label: its blocks are not read any more, durably, and [`Memory::compact`] leaves them
    /// out. A block that also holds tokens of another source goes with them; documents that a session reads into a file do not share
    /// blocks. Commits what is pending first. Returns the number of tokens.
    pub fn forget(&mut self, label: &str) -> Result<u64> {
        self.commit()?;
        let mut ranges = TokenRanges::default();
        self.sources()?.into_iter().filter(|s| s.label == label).for_each(|s| ranges.insert(s.tokens));
        let before = self.forgotten().tokens();
        match &mut self.store {
            Some(store) if ranges.tokens() > 0 => store.forget(&ranges.iter().cloned().collect::<Vec<_>>())?,
            Some(store) => store.writable()?,
            None => ranges.iter().for_each(|r| self.forgotten.insert(r.clone())),
        }
        Ok(self.forgotten().tokens() - before)
    }

    /// Keeps the token log on a storage of its own, as [`Memory::open`] keeps it beside the file.
    pub fn with_log_on(mut self, storage: Box<dyn Storage>) -> Memory {
        self.log = Some(TokenLog::on(storage));
        self
    }

    /// Begins a document: commits what is pending, so that documents do not share blocks, then makes the document's `tokens` durable in
    /// the token log, before anything is computed of them, and reserves the space that they will take. After a crash
    /// [`Memory::unfinished`] has them. False, and nothing done, without a file, and while another document is being read into this
    /// handle: the log has one at a time, and documents that mix are durable with their commits only.
    ///
    /// # Errors
    /// [`Error::Io`], for a full disk too.
    pub fn begin(&mut self, label: Option<&str>, tokens: &[u32]) -> Result<bool> {
        if self.log.as_ref().is_none_or(|log| log.active) {
            return Ok(false);
        }
        self.commit()?;
        let first_token = self.len();
        let (Some(log), Some(store)) = (&mut self.log, &mut self.store) else { return Ok(false) };
        store.writable()?;
        let row = self.geometry.extent_bytes(self.geometry.block_len()).div_ceil(self.geometry.block_len());
        store.reserve((row * self.geometry.layer_count()) as u64 * tokens.len() as u64)?;
        log.write(store.uuid(), &Unfinished { label: label.map(str::to_owned), tokens: tokens.to_vec(), first_token })?;
        log.active = true;
        Ok(true)
    }

    /// Goes on with the document that [`Memory::unfinished`] has.
    pub fn go_on(&mut self) {
        if let Some(log) = &mut self.log {
            log.active = true;
        }
    }

    /// Ends the document that the log has: commits what is pending, then clears the log.
    pub fn finish(&mut self) -> Result<()> {
        self.commit()?;
        self.log.as_mut().map_or(Ok(()), TokenLog::clear)
    }

    /// The document that a crash has interrupted, if any, of which [`Memory::len`] less its first token are there. Also while it is
    /// being read by this handle.
    pub fn unfinished(&self) -> Result<Option<Unfinished>> {
        let (Some(log), Some(store)) = (&self.log, &self.store) else { return Ok(None) };
        let Some(document) = log.read(store.uuid())? else { return Ok(None) };
        let (len, count) = (store.tip().tokens, document.tokens.len() as u64);
        let Some(done) = len.checked_sub(document.first_token).filter(|done| *done < count) else { return Ok(None) };
        // What is there must be its beginning; otherwise the log is left over from another time.
        let is_its_own = self.tokens(document.first_token..len)? == document.tokens[..done as usize];
        Ok(is_its_own.then_some(document))
    }

    /// Tokens that are appended but not durable.
    pub fn pending_len(&self) -> u64 {
        self.pending.tokens.len() as u64
    }

    fn check_layer_slot(&self, layer_slot: usize) -> Result<()> {
        if layer_slot >= self.geometry.layer_count() {
            return Err(Error::argument("layer_slot", format!("below {}", self.geometry.layer_count()), layer_slot));
        }
        Ok(())
    }

    fn layer_index(&self, layer_slot: usize) -> Result<&LayerIndex> {
        self.check_layer_slot(layer_slot)?;
        let cell = &self.index[layer_slot];
        if let Some(index) = cell.get() {
            return Ok(index);
        }
        let mut index = LayerIndex::default();
        if let Some(store) = &self.store {
            index.load(&self.geometry, store, layer_slot, 0)?;
        }
        index.reserve(&self.geometry, self.pending.blocks.len())?;
        self.pending.blocks.iter().for_each(|b| index.push(&self.geometry, layer_slot, b));
        Ok(cell.get_or_init(|| index))
    }

    /// The mean of the stored keys of each block and head, `(block, head, key_length)`. The first call for a layer slot reads the
    /// index of all its blocks from the file (never keys or values); later calls return what is kept up to date.
    pub fn mean_keys(&self, layer_slot: usize) -> Result<&[f32]> {
        Ok(&self.layer_index(layer_slot)?.means)
    }

    /// Hands out the mean keys of `blocks`, `(block, head, key_length)`, some blocks at a time, in order; nothing of them is kept, and
    /// `each` may change them. What comes from a file is *not* compared with its checksum, which covers all layers: it may be
    /// anything, as a summary that only proposes may.
    pub fn scan_mean_keys(&self, layer_slot: usize, blocks: Range<usize>, each: &mut dyn FnMut(&mut [f32])) -> Result<()> {
        self.check_layer_slot(layer_slot)?;
        let width = self.geometry.heads() * self.geometry.length(Side::Keys);
        let mut floats = Vec::new();
        if let Some(store) = &self.store {
            let from = store.segments.partition_point(|s| s.first_block + s.layout.blocks <= blocks.start);
            for segment in store.segments.iter().skip(from).take_while(|s| s.first_block < blocks.end) {
                let (first, last) = (blocks.start.max(segment.first_block), blocks.end.min(segment.first_block + segment.layout.blocks));
                let bytes = store.means(segment, layer_slot, first - segment.first_block..last - segment.first_block)?;
                floats.clear();
                floats.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
                each(&mut floats);
            }
        }
        let committed = self.committed_blocks();
        for block in blocks.start.max(committed)..blocks.end {
            if let Some(pending) = self.pending_block(block)? {
                floats.clear();
                floats.extend_from_slice(pending.means(&self.geometry, layer_slot));
                each(&mut floats);
            }
        }
        debug_assert!(floats.len().is_multiple_of(width));
        Ok(())
    }

    /// How far from its mean a key of a block and head is at most, `(block, head)`: `q·mean + |q|·radius` bounds every score.
    pub fn radii(&self, layer_slot: usize) -> Result<&[f32]> {
        Ok(&self.layer_index(layer_slot)?.radii)
    }

    /// Sizes.
    pub fn stats(&self) -> Stats {
        let index = self.index.iter().filter_map(OnceLock::get).map(|i| 4 * (i.means.len() + i.radii.len()) as u64).sum::<u64>();
        let mut stats = Stats { tokens: self.len(), blocks: self.blocks(), ..Stats::default() };
        stats.ram_bytes = index + self.pending.blocks.iter().map(Block::resident_bytes).sum::<u64>();
        if let Some(store) = &self.store {
            (stats.committed_tokens, stats.commits, stats.file_bytes) = (store.tip().tokens, store.tip().sequence, store.tip().end);
            (stats.mapped_bytes, stats.maps) = store.maps.mapped();
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
