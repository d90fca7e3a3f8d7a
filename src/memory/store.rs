//! The file behind a memory: superblocks, the commit chain, recovery, commits. The chain is the truth; a superblock only says
//! how long it must be at least.
//!
//! Order of a commit: segment, commit page, one sync, and then (not synced) one superblock. Whatever a crash leaves behind the
//! last commit that verifies is ignored, and overwritten by the next one; recovery itself writes nothing.

use super::chain::{Link, PageDamage};
use super::form::Form;
use super::format::{self, CommitPage, Layout, PAGE, Section, SegmentHeader, Tip};
use super::geometry::{PAGE_BYTES, Side};
use super::maps::Maps;
use super::page::{Block, RunScratch};
use super::records::{RECORDS_MAX, TokenRanges};
use super::segment::{Segment, file_len, not_truncated};
use super::superblock::{FEATURES_OF_NEW, RECORDS, Superblock, read_superblocks};
use super::trail::Trail;
use super::{Access, Fingerprint, Geometry, SourceSpan};
use crate::bytes::Storage;
use crate::error::{Error, Result, try_reserve, try_with_capacity};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The committed part of a memory.
pub struct Store {
    pub(super) storage: Box<dyn Storage>,
    pub(super) superblock: Superblock,
    /// Which of the two copies is written next: never the only one that is known to be durable.
    pub(super) slot: u64,
    pub(super) tip: Tip,
    /// The commits before the tip.
    pub(super) trail: Trail,
    pub(super) segments: Vec<Segment>,
    pub(super) maps: Maps,
    /// Tokens that are not to be read any more.
    pub(super) forgotten: TokenRanges,
    pub(super) access: Access,
    /// Sections of token ids or sources that were found damaged.
    pub(super) damaged_sections: AtomicUsize,
    /// Pages of the chain that were found damaged when it was followed.
    pub(super) damaged_pages: Vec<PageDamage>,
    /// Set by a failed commit page or sync: what is on the disk is unknown from then on.
    poisoned: bool,
}

fn write(storage: &mut dyn Storage, bytes: &[u8], offset: u64) -> Result<()> {
    let what = || format!("write {} bytes to the memory file at offset {offset}", bytes.len());
    storage.write_all_at(bytes, offset).map_err(|source| Error::Io { what: what(), source })
}

/// Sixteen bytes that no other file has: the standard library's random state, the time, the process.
fn random_uuid() -> [u8; 16] {
    use std::hash::{BuildHasher, RandomState};
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut uuid = [0; 16];
    for half in uuid.as_chunks_mut::<8>().0 {
        *half = RandomState::new().hash_one((now, std::process::id())).to_le_bytes();
    }
    uuid
}

impl Store {
    /// Writes an empty memory to an empty storage, durably.
    pub fn create(mut storage: Box<dyn Storage>, geometry: Geometry, fingerprint: Fingerprint) -> Result<Store> {
        if file_len(&*storage)? != 0 {
            return Err(Error::argument("storage", "an empty storage", "one with data in it"));
        }
        let uuid = random_uuid();
        let tip = Tip::start(&uuid);
        let mut superblock =
            Superblock { compat: 0, ro_compat: 0, incompat: FEATURES_OF_NEW, uuid, fingerprint, geometry, generation: 1, durable: tip };
        write(&mut *storage, &superblock.encode(), PAGE)?;
        superblock.generation = 2;
        write(&mut *storage, &superblock.encode(), 0)?;
        storage.sync().map_err(|source| Error::Io { what: "sync the new memory file".into(), source })?;
        Ok(Store::at_start(storage, superblock, 1, Access::Write))
    }

    /// Opens and recovers: finds the newest valid superblock, then follows the chain (`follow.rs`). Writes nothing. Reads keys and values only
    /// of commits that no superblock vouches for (at most two, and only after a crash).
    pub fn open(storage: Box<dyn Storage>, expected: Option<&Fingerprint>, access: Access) -> Result<Store> {
        let (superblock, slot) = read_superblocks(&*storage)?;
        if let Some(expected) = expected
            && *expected != superblock.fingerprint
        {
            return Err(Error::mismatch("the model that this memory was made with", expected, &superblock.fingerprint));
        }
        if access == Access::Write && superblock.ro_compat != 0 {
            let flags = superblock.ro_compat;
            return Err(Error::Unsupported(format!("writing a memory file with features {flags:#x}; it can be opened read-only")));
        }
        let durable = superblock.durable;
        let mut store = Store::at_start(storage, superblock, slot, access);
        store.follow(&durable, true)?;
        Ok(store)
    }

    /// Before the first commit of the chain.
    fn at_start(storage: Box<dyn Storage>, superblock: Superblock, slot: u64, access: Access) -> Store {
        let tip = Tip::start(&superblock.uuid);
        let (trail, segments, maps, forgotten, damaged_sections, damaged_pages) = Default::default();
        let poisoned = false;
        Store { storage, superblock, slot, tip, trail, segments, maps, forgotten, access, damaged_sections, damaged_pages, poisoned }
    }

    /// What no other file has.
    pub fn uuid(&self) -> &[u8; 16] {
        &self.superblock.uuid
    }

    /// The shape.
    pub fn geometry(&self) -> &Geometry {
        &self.superblock.geometry
    }

    /// The model.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.superblock.fingerprint
    }

    /// How its indices keep mean keys.
    pub fn form(&self) -> Form {
        self.superblock.form()
    }

    /// The end of the chain.
    pub fn tip(&self) -> &Tip {
        &self.tip
    }

    /// Committed blocks.
    pub fn blocks(&self) -> usize {
        self.segments.last().map_or(0, |s| s.first_block + s.layout.blocks)
    }

    /// The segment of a committed block.
    pub fn segment_of_block(&self, block: usize) -> Option<&Segment> {
        self.segments.get(self.segments.partition_point(|s| s.first_block <= block).checked_sub(1)?)
    }

    /// A section of a segment, checked.
    pub fn section(&self, segment: &Segment, section: Section) -> Result<&[u8]> {
        segment.section(&self.maps, &*self.storage, section)
    }

    /// What was read of a section, or what is wrong if the section is damaged, which is counted and said in the log once. Other errors
    /// stay errors.
    pub fn or_skip<T>(&self, segment: &Segment, section: Section, read: Result<T>) -> Result<Result<T>> {
        match read {
            Err(e @ (Error::Corrupt { .. } | Error::Format { .. })) if not_truncated(&*self.storage, self.tip.end).is_ok() => {
                if segment.note_damage(section) {
                    log::warn!("{section:?} of segment {} of a memory are damaged and left out: {e}", segment.header.sequence);
                    self.damaged_sections.fetch_add(1, Relaxed);
                }
                Ok(Err(e))
            }
            read => read.map(Ok),
        }
    }

    /// Asks the system to read these bytes ahead; only a hint.
    pub fn will_need(&self, offset: u64, len: u64) {
        if !self.storage.will_need(offset, len) {
            self.maps.will_need(offset, len);
        }
    }

    /// An error if this handle may not write (any more).
    pub fn writable(&self) -> Result<()> {
        if self.access == Access::Read {
            return Err(Error::argument("memory", "a memory opened for writing", "one opened read-only"));
        }
        if self.poisoned {
            let source = io::Error::other("an earlier commit failed so that it is unknown what is on the disk; open the memory again");
            return Err(Error::Io { what: "write the memory file".into(), source });
        }
        Ok(())
    }

    /// Writes blocks (all full but the last), their tokens and sources as one segment, then its commit page, then syncs. An error
    /// before the commit page leaves the handle as it was: the same commit can be tried again, for example when the disk has room
    /// again. After an error from there on the handle no longer writes.
    pub fn commit(&mut self, blocks: &[Block], tokens: &[u32], spans: &[SourceSpan]) -> Result<()> {
        self.writable()?;
        let (geometry, form, before) = (&self.superblock.geometry, self.form(), self.tip);
        let spans = format::encode_spans(spans, before.tokens)?;
        let (token_count, spans_bytes) = (tokens.len() as u32, spans.len() as u32);
        let layout = Layout::new(geometry, form, token_count, spans_bytes);
        let last = blocks.last().map_or(0, |b| b.len);
        if blocks.len() != layout.blocks || last != layout.last_len || token_count > format::SEGMENT_TOKENS_MAX {
            let found = format!("{} blocks, {last} tokens in the last", blocks.len());
            return Err(Error::argument("blocks", format!("the blocks of {token_count} tokens"), found));
        }

        let mut packed = Vec::new();
        let mut crcs = try_with_capacity("checksums of a memory", layout.sections[Section::ExtentCrcs as usize].1 as usize)?;
        for slot in 0..geometry.layer_count() {
            for block in blocks {
                let extent = extent_of(block, geometry, slot, &mut packed)?;
                crcs.extend(crc32c::crc32c(extent).to_le_bytes());
            }
        }
        let mut token_bytes = try_with_capacity("token ids", 4 * tokens.len())?;
        token_bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        let mut scratch = RunScratch::new(geometry)?;
        let index = form.build(geometry, tokens.len(), |[slot, head, block], row, sketches| {
            let block = &blocks[block];
            let (mean, radius) = block.summary(geometry, slot, head);
            row.copy_from_slice(mean);
            scratch.sketch(geometry, form, block.run(geometry, slot, Side::Keys, head), block.len, mean, sketches)?;
            Ok(radius)
        })?;
        let sections = [token_bytes, spans, index, crcs];
        let section_crcs = std::array::from_fn(|i| crc32c::crc32c(&sections[i]));
        let header = SegmentHeader {
            sequence: before.sequence + 1,
            first_token: before.tokens,
            token_count,
            spans_bytes,
            crcs: section_crcs,
            forgotten: Vec::new(),
        };
        self.append(header, layout, &sections, blocks)
    }

    /// Makes it durable that these tokens, which are committed, are forgotten: in segments without tokens, whose header pages say so.
    pub fn forget(&mut self, ranges: &[Range<u64>]) -> Result<()> {
        self.writable()?;
        self.enable(RECORDS)?;
        for ranges in ranges.chunks(RECORDS_MAX) {
            let (sequence, first_token) = (self.tip.sequence + 1, self.tip.tokens);
            let (crcs, forgotten) = ([crc32c::crc32c(&[]); 4], ranges.to_vec());
            let header = SegmentHeader { sequence, first_token, token_count: 0, spans_bytes: 0, crcs, forgotten };
            let layout = Layout::new(&self.superblock.geometry, self.form(), 0, 0);
            self.append(header, layout, &[const { Vec::new() }; 4], &[])?;
        }
        Ok(())
    }

    /// Sets an incompatible feature, durably and in both superblocks, before anything is written that needs it: a program that does
    /// not know it shall not take what it cannot read for a torn tail.
    fn enable(&mut self, feature: u64) -> Result<()> {
        if self.superblock.incompat & feature != 0 {
            return Ok(());
        }
        // The last commits may be those of a process that was killed before its sync: they were found in the system's memory.
        let synced = self.storage.sync().map_err(|source| Error::Io { what: "sync the memory file".into(), source });
        self.poisoned |= synced.is_err();
        synced?;
        let mut superblock = self.superblock.clone();
        superblock.incompat |= feature;
        superblock.durable = self.tip;
        for slot in [self.slot, 1 - self.slot] {
            superblock.generation = superblock.generation.saturating_add(1);
            let written = write(&mut *self.storage, &superblock.encode(), slot * PAGE)
                .and_then(|()| self.storage.sync().map_err(|source| Error::Io { what: "sync the memory file".into(), source }));
            // Which of the copies are good is unknown then.
            self.poisoned |= written.is_err();
            written?;
        }
        self.superblock = superblock;
        Ok(())
    }

    /// Writes a segment and its commit page, syncs, and takes it in.
    fn append(&mut self, header: SegmentHeader, layout: Layout, sections: &[Vec<u8>; 4], blocks: &[Block]) -> Result<()> {
        self.reserve_segment()?;
        let (geometry, before) = (&self.superblock.geometry, self.tip);
        let header_page = header.encode(&layout, &self.superblock.uuid, before.hash);
        let (commit_page, tip) = CommitPage::encode(&header, &header_page, &layout, &self.superblock.uuid, &before, &self.trail);
        // If the disk is full it shall say so before anything is written.
        let reserved = self.storage.reserve(before.end, tip.end - before.end);
        reserved.map_err(|source| Error::Io { what: "reserve space for the memory file".into(), source })?;

        let mut front = header_page;
        let more = layout.extents_at as usize - front.len();
        try_reserve(&mut front, "the sections of a memory", more)?;
        for ((at, len), bytes) in layout.sections.iter().zip(sections) {
            debug_assert_eq!(*len, bytes.len() as u64);
            front.resize(*at as usize, 0);
            front.extend(bytes);
        }
        front.resize(layout.extents_at as usize, 0);
        write(&mut *self.storage, &front, before.end)?;
        let mut packed = Vec::new();
        for slot in 0..geometry.layer_count() {
            for (i, block) in blocks.iter().enumerate() {
                let extent = extent_of(block, geometry, slot, &mut packed)?;
                write(&mut *self.storage, extent, before.end + layout.extent(slot, i).0)?;
            }
        }
        let commit_at = before.end + layout.segment_bytes;
        // What an earlier attempt may have left behind the extents.
        let rest = (layout.segment_bytes - layout.extents_end) as usize;
        if rest > 0 {
            write(&mut *self.storage, &[0; PAGE_BYTES][..rest], before.end + layout.extents_end)?;
        }
        if let Err(e) = write(&mut *self.storage, &commit_page, commit_at)
            .and_then(|()| self.storage.sync().map_err(|source| Error::Io { what: "sync the memory file".into(), source }))
        {
            // The commit was not acknowledged, and the system may hold pages for written that are not: nobody who opens the file
            // before it has left the system's memory shall take it for a commit.
            self.poisoned = true;
            let _ = self.storage.write_all_at(&[0; PAGE_BYTES], commit_at);
            return Err(e);
        }
        self.take_in(Link { header, layout, tip, damage: None });
        self.maps.extend(before.end, tip.end - before.end);
        self.publish();
        Ok(())
    }

    /// Reserves space for so many more bytes of segments, if the system can: a document that does not fit is noticed before it is read.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        let reserved = self.storage.reserve(self.tip.end, bytes);
        reserved.map_err(|source| Error::Io { what: format!("reserve {bytes} bytes for the memory file"), source })
    }

    /// Gives back what [`Store::reserve`] has and nothing was written to.
    pub fn release(&mut self) {
        if let Err(e) = self.storage.release() {
            log::debug!("space reserved for the memory file stays reserved: {e}");
        }
    }

    /// Writes a damaged extent anew if `bytes` are what it held: what was acknowledged is not changed, it is brought back.
    pub fn heal(&mut self, offset: u64, bytes: &[u8], recorded: u32) -> Result<bool> {
        self.writable()?;
        if crc32c::crc32c(bytes) != recorded {
            return Ok(false);
        }
        write(&mut *self.storage, bytes, offset)?;
        self.storage.sync().map_err(|source| Error::Io { what: "sync the memory file".into(), source })?;
        Ok(true)
    }

    /// Looks at every page of the chain, and writes those damaged ones anew whose bytes follow from the rest. How many.
    pub fn heal_pages(&mut self) -> Result<usize> {
        let (mut mends, mut left) = (Vec::new(), Vec::new());
        self.walk(&mut |link| {
            match link.damage {
                Some(PageDamage { mend: Some(mend), .. }) => mends.push(mend),
                Some(lost) => left.push(lost),
                None => {}
            }
            Ok(())
        })?;
        for (offset, page) in &mends {
            self.writable()?;
            write(&mut *self.storage, page, *offset)?;
            self.storage.sync().map_err(|source| Error::Io { what: "sync the memory file".into(), source })?;
        }
        self.damaged_pages = left;
        Ok(mends.len())
    }

    /// Rewrites the older superblock with the present tip, which is durable. If that fails the commit stands all the same, and
    /// the next one writes the same copy, because the other is the only one known to be good.
    fn publish(&mut self) {
        let mut superblock = self.superblock.clone();
        superblock.generation = superblock.generation.saturating_add(1);
        superblock.durable = self.tip;
        match write(&mut *self.storage, &superblock.encode(), self.slot * PAGE) {
            Ok(()) => {
                self.superblock = superblock;
                self.slot = 1 - self.slot;
            }
            Err(e) => log::warn!("commit {} is durable, but its superblock is not: {e}", self.tip.sequence),
        }
    }
}

/// The extent as it goes to the file: the block's own bytes if it is full, else packed.
fn extent_of<'a>(block: &'a Block, geometry: &Geometry, slot: usize, packed: &'a mut Vec<u8>) -> Result<&'a [u8]> {
    if block.len == geometry.block_len() {
        return Ok(block.extent(geometry, slot));
    }
    block.pack(geometry, slot, packed)?;
    Ok(packed)
}
