//! A committed segment and the ways to read it: through a map, each part checked against its CRC32C when it is first touched;
//! or through plain reads, all of it, for recovery and for `verify` (and in parts, for a search: `scan.rs`).

use super::format::{FILE, Layout, SECTIONS, Section, SegmentHeader};
use super::maps::Maps;
use super::sketches::Groups;
use super::{Damage, Geometry};
use crate::bytes::Storage;
use crate::error::{Error, Result, try_zeroed};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Bytes read at a time where nothing is kept.
const CHUNK_BYTES: usize = 1 << 20;

/// A segment whose commit page is valid.
pub struct Segment {
    /// Its first byte in the file.
    pub offset: u64,
    /// Index of its first block in the memory.
    pub first_block: usize,
    /// What its header says.
    pub header: SegmentHeader,
    /// Where its parts lie.
    pub layout: Layout,
    /// Stands in the place of commits that are lost: it has numbers for their tokens, and nothing of it can be read.
    pub lost: bool,
    /// A bit for each section that was found right.
    sections_checked: AtomicU8,
    /// A bit for each section that was found damaged.
    sections_damaged: AtomicU8,
    /// A bit for each extent that was found right; made at the first touch.
    extents_checked: OnceLock<Vec<AtomicU64>>,
    /// What is known of its sketches.
    pub(super) groups: Groups,
}

/// [`Error::Corrupt`] of a memory file.
pub fn corrupt(offset: u64, what: String) -> Error {
    Error::Corrupt { file: FILE, offset, what }
}

pub fn check_crc(offset: u64, what: impl FnOnce() -> String, recorded: u32, computed: u32) -> Result<()> {
    if recorded == computed {
        return Ok(());
    }
    Err(corrupt(offset, format!("{}: CRC32C {computed:08x} where {recorded:08x} is recorded", what())))
}

impl Segment {
    /// A segment at `offset`, nothing of it checked but its header; or what stands for lost ones.
    pub fn new(offset: u64, first_block: usize, header: SegmentHeader, layout: Layout, lost: bool) -> Segment {
        let (sections_checked, sections_damaged, extents_checked, groups) = Default::default();
        Segment { offset, first_block, header, layout, lost, sections_checked, sections_damaged, extents_checked, groups }
    }

    /// Its blocks.
    pub fn blocks(&self) -> Range<usize> {
        self.first_block..self.first_block + self.layout.blocks
    }

    /// Its tokens.
    pub fn tokens(&self) -> Range<u64> {
        self.header.first_token..self.header.first_token + u64::from(self.header.token_count)
    }

    /// [`Error::Corrupt`] if it stands in the place of lost commits.
    pub fn not_lost(&self) -> Result<()> {
        if !self.lost {
            return Ok(());
        }
        let (tokens, sequence) = (self.tokens(), self.header.sequence);
        Err(corrupt(self.offset, format!("tokens {tokens:?} are lost: pages of their commit, {sequence} or before, are damaged")))
    }

    /// The section is damaged; true if nobody has noted that before.
    pub fn note_damage(&self, section: Section) -> bool {
        let bit = 1 << section as u8;
        self.sections_damaged.fetch_or(bit, Relaxed) & bit == 0
    }

    /// The byte after its last extent.
    fn end(&self) -> u64 {
        self.offset + self.layout.segment_bytes
    }

    pub fn extent_name(&self, geometry: &Geometry, slot: usize, block: usize) -> String {
        let layer = geometry.layers.get(slot).copied().unwrap_or_default();
        format!("block {} of layer {layer}", self.first_block + block)
    }

    /// The bytes of a section, in place.
    pub fn section<'a>(&self, maps: &'a Maps, storage: &dyn Storage, section: Section) -> Result<&'a [u8]> {
        self.not_lost()?;
        let (at, len) = self.layout.sections[section as usize];
        let checked = self.is_checked(section);
        if !checked {
            not_truncated(storage, self.end())?;
        }
        let bytes = maps.bytes(storage, self.offset + at, len)?;
        if !checked {
            self.check_section(section, bytes)?;
        }
        Ok(bytes)
    }

    /// A copy of a section, compared with its checksum, and not through a map: a file that is cut short meanwhile is an error.
    pub fn read_section(&self, storage: &dyn Storage, section: Section) -> Result<Vec<u8>> {
        self.not_lost()?;
        not_truncated(storage, self.end())?;
        let (at, len) = self.layout.sections[section as usize];
        let mut bytes = try_zeroed("a section of a memory file", len as usize)?;
        read(storage, &mut bytes, self.offset + at)?;
        self.check_section(section, &bytes)?;
        Ok(bytes)
    }

    /// True if the section was found right.
    pub fn is_checked(&self, section: Section) -> bool {
        self.sections_checked.load(Relaxed) & (1 << section as u8) != 0
    }

    /// Compares the bytes of a section with its checksum, and notes it if they are right.
    pub fn check_section(&self, section: Section, bytes: &[u8]) -> Result<()> {
        let (at, recorded) = (self.offset + self.layout.sections[section as usize].0, self.header.crcs[section as usize]);
        check_crc(at, || format!("{section:?} of segment {}", self.header.sequence), recorded, crc32c::crc32c(bytes))?;
        self.sections_checked.fetch_or(1 << section as u8, Relaxed);
        Ok(())
    }

    /// The bytes of an extent, in place. `block` counts from the segment's first.
    pub fn extent<'a>(&self, maps: &'a Maps, storage: &dyn Storage, geometry: &Geometry, slot: usize, block: usize) -> Result<&'a [u8]> {
        self.not_lost()?;
        let i = slot * self.layout.blocks + block;
        let bits = match self.extents_checked.get() {
            Some(bits) => bits,
            None => self.new_bits(geometry)?,
        };
        let (word, bit) = (&bits[i / 64], 1 << (i % 64));
        let (at, len) = self.layout.extent(slot, block);
        if word.load(Relaxed) & bit != 0 {
            return maps.bytes(storage, self.offset + at, len as u64);
        }
        not_truncated(storage, self.end())?;
        let recorded = recorded_crc(self.section(maps, storage, Section::ExtentCrcs)?, i);
        let bytes = maps.bytes(storage, self.offset + at, len as u64)?;
        check_crc(self.offset + at, || self.extent_name(geometry, slot, block), recorded, crc32c::crc32c(bytes))?;
        word.fetch_or(bit, Relaxed);
        Ok(bytes)
    }

    /// True if the extent was found right.
    pub fn is_extent_checked(&self, slot: usize, block: usize) -> bool {
        let i = slot * self.layout.blocks + block;
        self.extents_checked.get().and_then(|bits| bits.get(i / 64)).is_some_and(|word| word.load(Relaxed) & (1 << (i % 64)) != 0)
    }

    fn new_bits(&self, geometry: &Geometry) -> Result<&Vec<AtomicU64>> {
        let words = (geometry.layer_count() * self.layout.blocks).div_ceil(64);
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).map_err(|_| Error::OutOfMemory { what: "a segment's bitmap", bytes: 8 * words as u64 })?;
        bits.resize_with(words, AtomicU64::default);
        // Of two threads that come here at once one wins; both go on with the winner's.
        Ok(self.extents_checked.get_or_init(|| bits))
    }

    /// Reads all of it with plain reads and hands each damage to `found`; `progress` gets the bytes read and says whether to go on.
    /// The first error is an input error or a cancellation, never a damage. What stands for lost ones is a damage of the chain, not of its own.
    pub fn scrub(
        &self,
        storage: &dyn Storage,
        geometry: &Geometry,
        found: &mut dyn FnMut(Damage),
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        if self.lost {
            return Ok(());
        }
        let mut chunk: Vec<u8> = try_zeroed("reading a memory file", CHUNK_BYTES)?;
        let mut crc_of = |offset: u64, len: u64| -> Result<u32> {
            let (mut crc, mut done) = (0, 0);
            while done < len {
                let n = (len - done).min(CHUNK_BYTES as u64) as usize;
                read(storage, &mut chunk[..n], offset + done)?;
                crc = crc32c::crc32c_append(crc, &chunk[..n]);
                done += n as u64;
                if !progress(n as u64) {
                    return Err(Error::Cancelled);
                }
            }
            Ok(crc)
        };
        for section in SECTIONS {
            let (at, len) = self.layout.sections[section as usize];
            let what = || format!("{section:?} of segment {}", self.header.sequence);
            let computed = crc_of(self.offset + at, len)?;
            if let Err(error) = check_crc(self.offset + at, what, self.header.crcs[section as usize], computed) {
                found(Damage { blocks: self.blocks(), layer_slot: None, error });
                if section == Section::ExtentCrcs {
                    return Ok(()); // nothing left to compare the extents with
                }
            }
        }
        let (at, len) = self.layout.sections[Section::ExtentCrcs as usize];
        let mut table: Vec<u8> = try_zeroed("a segment's CRCs", len as usize)?;
        read(storage, &mut table, self.offset + at)?;
        for slot in 0..geometry.layer_count() {
            for block in 0..self.layout.blocks {
                let (at, len) = self.layout.extent(slot, block);
                let computed = crc_of(self.offset + at, len as u64)?;
                let recorded = recorded_crc(&table, slot * self.layout.blocks + block);
                if let Err(error) = check_crc(self.offset + at, || self.extent_name(geometry, slot, block), recorded, computed) {
                    let block = self.first_block + block;
                    found(Damage { blocks: block..block + 1, layer_slot: Some(slot), error });
                }
            }
        }
        Ok(())
    }
}

/// Entry `i` of the table of CRCs, whose length follows from the layout.
pub fn recorded_crc(table: &[u8], i: usize) -> u32 {
    table.as_chunks().0.get(i).map_or(0, |b| u32::from_le_bytes(*b))
}

/// A plain read whose error names the offset.
pub fn read(storage: &dyn Storage, buf: &mut [u8], offset: u64) -> Result<()> {
    let what = || format!("read {} bytes of the memory file at offset {offset}", buf.len());
    let what = what();
    storage.read_exact_at(buf, offset).map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => corrupt(offset, "the file ends here: it was truncated".into()),
        _ => Error::Io { what, source },
    })
}

/// Present length of the file.
pub fn file_len(storage: &dyn Storage) -> Result<u64> {
    storage.len().map_err(|source| Error::Io { what: "ask for the memory file's length".into(), source })
}

/// [`Error::Corrupt`] if the file no longer reaches `end`: touching a map behind its end would kill the process.
pub fn not_truncated(storage: &dyn Storage, end: u64) -> Result<()> {
    let len = file_len(storage)?;
    if len < end { Err(corrupt(len, format!("the file was truncated: it ends here, committed data reach to {end}"))) } else { Ok(()) }
}
