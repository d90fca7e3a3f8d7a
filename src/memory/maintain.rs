//! Looking after a memory file: verify, heal, compact.
//!
//! Healing brings back what a damaged part held, and nothing else: the index and the table of checksums follow from the keys, an extent
//! from whoever can compute its rows again; what does not match the recorded checksum is not written.

use super::form::Form;
use super::format::Section;
use super::geometry::Side;
use super::page::{Block, RunScratch};
use super::segment::{Segment, file_len, not_truncated, recorded_crc};
use super::{Codec, Damage, Fingerprint, Geometry, LayerKv, Memory, Source, SourceSpan};
use crate::bytes::FileStorage;
use crate::error::{Error, Result, try_zeroed};
use crate::threads::alone;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Tokens of a compacted memory between two commits.
const COMPACT_TOKENS: u64 = 4096;

/// What [`Memory::compact`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Tokens before.
    pub tokens_before: u64,
    /// Tokens in the new file.
    pub tokens: u64,
    /// Bytes of the file before.
    pub bytes_before: u64,
    /// Bytes of the new file.
    pub bytes: u64,
    /// Blocks left out because they were damaged.
    pub dropped_blocks: usize,
    /// Blocks kept without their sources because those were damaged.
    pub unlabelled_blocks: usize,
}

/// How to compact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactOptions {
    /// Another codec for the new file.
    pub codec: Option<Codec>,
    /// Other layers of which the new file keeps sketches ([`Geometry::sketched`]).
    pub sketched: Option<Vec<u32>>,
    /// Leave damaged blocks out, and damaged sources; otherwise they are an error.
    pub drop_damaged: bool,
}

impl Memory {
    /// Reads everything that is committed and has a checksum, and compares the two: the pages of the chain, sections, extents. A single
    /// bad copy of the superblock is none of it: a crash may leave that, and the next commit mends it. `progress` is told the bytes read and the bytes in all, and
    /// returns false to stop ([`Error::Cancelled`]). An empty list means that all is well.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64) -> bool) -> Result<Vec<Damage>> {
        let mut damages = Vec::new();
        let Some(store) = &self.store else { return Ok(damages) };
        not_truncated(&*store.storage, store.tip().end)?;
        let (mut done, total) = (0, store.tip().end.min(file_len(&*store.storage)?));
        let mut step = |bytes: u64| {
            done += bytes;
            progress(done.min(total), total)
        };
        store.scrub_pages(&mut |d| damages.push(d), &mut step)?;
        for segment in &store.segments {
            segment.scrub(&*store.storage, &self.geometry().clone(), &mut |d| damages.push(d), &mut step)?;
        }
        Ok(damages)
    }

    /// Writes an extent that [`Memory::verify`] found damaged anew, from the rows of the block's tokens in all layer slots: see
    /// [`Memory::append`]. True if they encode to what the checksum was made of; otherwise nothing is written.
    pub fn heal_extent(&mut self, layer_slot: usize, block: usize, rows: &[LayerKv<'_>]) -> Result<bool> {
        let geometry = self.geometry().clone();
        let len = self.block(block)?.len;
        super::page::check_rows(&geometry, len, rows)?;
        let mut made = Block::new(&geometry, self.form())?;
        alone(|pass| made.push(pass, &geometry, rows, 0, len));
        let mut bytes = Vec::new();
        made.pack(&geometry, layer_slot, &mut bytes)?;
        let Some(store) = &mut self.store else { return Ok(false) };
        let Some(segment) = store.segment_of_block(block) else { return Ok(false) };
        let block = block - segment.first_block;
        let (at, _) = segment.layout.extent(layer_slot, block);
        let recorded = recorded_crc(store.section(segment, Section::ExtentCrcs)?, layer_slot * segment.layout.blocks + block);
        let offset = segment.offset + at;
        let healed = store.heal(offset, &bytes, recorded)?;
        if healed {
            self.read_again();
        }
        Ok(healed)
    }

    /// Brings back damaged indices and tables of checksums, which follow from the keys, and pages of the chain, which follow from each other
    /// and the sections. The number of those that were healed.
    pub fn heal_sections(&mut self) -> Result<usize> {
        let (geometry, form) = (self.geometry().clone(), self.form());
        let Some(store) = &mut self.store else { return Ok(0) };
        let mut healed = store.heal_pages()?;
        for i in 0..store.segments.len() {
            for section in [Section::ExtentCrcs, Section::Index] {
                let segment = &store.segments[i];
                if segment.lost {
                    break;
                }
                let (at, len) = segment.layout.sections[section as usize];
                let mut found: Vec<u8> = try_zeroed("a section of a memory file", len as usize)?;
                super::segment::read(&*store.storage, &mut found, segment.offset + at)?;
                let recorded = segment.header.crcs[section as usize];
                if crc32c::crc32c(&found) == recorded {
                    continue;
                }
                let bytes = match section {
                    Section::ExtentCrcs => extent_crcs(segment, &geometry, &*store.storage)?,
                    _ => index(segment, &geometry, form, &*store.storage)?,
                };
                let offset = segment.offset + at;
                if store.heal(offset, &bytes, recorded)? {
                    store.segments[i].groups = Default::default();
                    healed += 1;
                }
            }
        }
        Ok(healed)
    }

    /// Writes a memory file anew without what was forgotten, its commits joined, and puts it in the place of the old one: at every
    /// moment, and after a crash at any moment, the path names the old file or the whole new one. Readers that have the old file open
    /// go on reading it until they open the path again. The new file has the permissions of the old one; a symbolic link to it stays one.
    /// `progress` is told the tokens done and in all, and returns false to stop.
    ///
    /// # Errors
    /// As [`Memory::open`]; [`Error::Corrupt`] at a damaged block, unless those are to be left out.
    pub fn compact(
        path: &Path,
        expected: Option<&Fingerprint>,
        options: CompactOptions,
        mut progress: impl FnMut(u64, u64) -> bool,
    ) -> Result<Compaction> {
        let path = &FileStorage::real_path(path);
        let old = Memory::open(path, expected)?;
        if old.unfinished()?.is_some() {
            return Err(Error::argument("memory", "one without an unfinished document", "one whose reading is to be resumed first"));
        }
        let mut done = Compaction { tokens_before: old.len(), bytes_before: old.stats().file_bytes, ..Compaction::default() };
        let new_path = beside(path);
        // Nobody else compacts: the old file is locked. So one that is there is what a crash left.
        match std::fs::remove_file(&new_path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &new_path, e)),
            _ => {}
        }
        let Geometry { codec, sketched, .. } = old.geometry().clone();
        let (codec, sketched) = (options.codec.unwrap_or(codec), options.sketched.unwrap_or(sketched));
        let geometry = Geometry { codec, sketched, ..old.geometry().clone() };
        let made = FileStorage::create_like(&new_path, path).and_then(|file| {
            let mut new = Memory::create_in(file, geometry, old.fingerprint().clone())?;
            copy(&old, &mut new, options.drop_damaged, &mut done, &mut progress)?;
            (done.tokens, done.bytes) = (new.len(), new.stats().file_bytes);
            Ok(())
        });
        let put = made.and_then(|()| {
            std::fs::rename(&new_path, path).map_err(|e| Error::io("rename", &new_path, e))?;
            FileStorage::sync_directory_of(path)
        });
        if put.is_err() {
            let _ = std::fs::remove_file(&new_path);
        }
        put.map(|()| done)
    }
}

/// Where a compacted file is written before it takes the place of the one at `path`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".compact");
    name.into()
}

fn extent_crcs(segment: &Segment, geometry: &Geometry, storage: &dyn crate::bytes::Storage) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for slot in 0..geometry.layer_count() {
        for block in 0..segment.layout.blocks {
            let (at, len) = segment.layout.extent(slot, block);
            let mut bytes: Vec<u8> = try_zeroed("an extent of a memory file", len)?;
            super::segment::read(storage, &mut bytes, segment.offset + at)?;
            out.extend(crc32c::crc32c(&bytes).to_le_bytes());
        }
    }
    Ok(out)
}

fn index(segment: &Segment, geometry: &Geometry, form: Form, storage: &dyn crate::bytes::Storage) -> Result<Vec<u8>> {
    let mut scratch = RunScratch::new(geometry)?;
    let mut bytes: Vec<u8> = Vec::new();
    form.build(geometry, segment.header.token_count as usize, |[slot, head, block], row, sketches| {
        let (at, len) = segment.layout.extent(slot, block);
        bytes.clear();
        crate::error::try_grow(&mut bytes, "an extent of a memory file", len)?;
        super::segment::read(storage, &mut bytes, segment.offset + at)?;
        let tokens = if block + 1 == segment.layout.blocks { segment.layout.last_len } else { geometry.block_len() };
        let run = &bytes[geometry.run_offset(Side::Keys, head, tokens)..][..geometry.run_bytes(Side::Keys, tokens)];
        let radius = scratch.summarise(geometry, form, run, tokens, row);
        scratch.sketch(geometry, form, run, tokens, row, sketches)?;
        Ok(radius)
    })
}

/// Copies what is to stay, source by source, so that documents do not share blocks.
fn copy(
    old: &Memory,
    new: &mut Memory,
    drop_damaged: bool,
    done: &mut Compaction,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let (spans, mut unlabelled) = old.sources_and_gaps()?;
    if !drop_damaged && let Some((_, damage)) = unlabelled.pop() {
        return Err(damage);
    }
    let mut last: Option<&str> = None;
    for block in 0..old.blocks() {
        let span = old.block(block)?;
        let tokens = span.first_token..span.first_token + span.len as u64;
        if !old.is_readable(block) {
            continue;
        }
        let lost_pages = Memory::lost_pages(&[old]);
        let mut read = rows_of(old, block, span.len).and_then(|rows| Ok(Some((old.tokens(tokens.clone())?, rows))));
        read = read.and_then(|read| Memory::check_unlost(&[old], lost_pages).map(|()| read));
        if drop_damaged {
            read = old.or_drop(block, read).map(Option::flatten);
        }
        let Some((ids, rows)) = read? else {
            done.dropped_blocks += 1;
            continue;
        };
        done.unlabelled_blocks += usize::from(unlabelled.iter().any(|gap| gap.0.contains(&tokens.start)));
        for (part, source) in cut(&spans, tokens.clone()) {
            let label = source.as_ref().map(|s| s.label);
            if last != label || new.pending_len() >= COMPACT_TOKENS {
                new.commit()?;
            }
            last = label;
            let g = old.geometry();
            let at = (part.start - tokens.start) as usize..(part.end - tokens.start) as usize;
            let of = |side: Side| at.start * g.heads() * g.length(side)..at.end * g.heads() * g.length(side);
            let layers: Vec<_> = rows.iter().map(|(k, v)| LayerKv { keys: &k[of(Side::Keys)], values: &v[of(Side::Values)] }).collect();
            new.append(&ids[at], source, &layers)?;
        }
        if !progress(tokens.end, old.len()) {
            return Err(Error::Cancelled);
        }
    }
    new.commit()
}

/// Keys and values of a block, `(token, head, length)`, for each layer slot.
fn rows_of(memory: &Memory, block: usize, len: usize) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
    let g = memory.geometry();
    let side = |slot: usize, side: Side| -> Result<Vec<f32>> {
        let (heads, length) = (g.heads(), g.length(side));
        let mut out: Vec<f32> = try_zeroed("the rows of a memory block", len * heads * length)?;
        let mut of_head: Vec<f32> = try_zeroed("the rows of a memory block", len * length)?;
        for head in 0..heads {
            memory.rows(side, slot, head, block)?.decode(&mut of_head);
            for (row, out) in of_head.chunks_exact(length).zip(out.chunks_exact_mut(heads * length)) {
                out[head * length..][..length].copy_from_slice(row);
            }
        }
        Ok(out)
    };
    (0..g.layer_count()).map(|slot| Ok((side(slot, Side::Keys)?, side(slot, Side::Values)?))).collect()
}

/// Cuts a range of tokens where sources begin and end. The text of a part of a span is its share of the span's, to the token.
fn cut(spans: &[SourceSpan], tokens: Range<u64>) -> Vec<(Range<u64>, Option<Source<'_>>)> {
    let mut out = Vec::new();
    let mut at = tokens.start;
    let from = spans.partition_point(|s| s.tokens.end <= tokens.start);
    for span in spans[from..].iter().take_while(|s| s.tokens.start < tokens.end) {
        let part = span.tokens.start.max(at)..span.tokens.end.min(tokens.end);
        if at < part.start {
            out.push((at..part.start, None));
        }
        let (n, bytes) = (span.tokens.end - span.tokens.start, span.text.end.saturating_sub(span.text.start));
        let byte = |token: u64| span.text.start + (u128::from(bytes) * u128::from(token - span.tokens.start) / u128::from(n.max(1))) as u64;
        at = part.end;
        out.push((part.clone(), Some(Source { label: &span.label, text: byte(part.start)..byte(part.end) })));
    }
    if at < tokens.end {
        out.push((at..tokens.end, None));
    }
    out
}
