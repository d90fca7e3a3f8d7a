//! The pages of a memory file, byte for byte: segment header, commit page, source spans. See `docs/memory-format.md`; the superblock is
//! in `superblock.rs`, what follows a header's own fields where there are no tokens in `records.rs`.
//!
//! Each page carries a CRC32C over itself in its last four bytes, so that a torn write is seen. What is parsed here is compared
//! with what must stand there: the geometry and the number of tokens determine every other length.

use super::form::Form;
use super::geometry::PAGE_BYTES;
use super::superblock::{RECORDS, Superblock};
use super::trail::{Step, Trail};
use super::{Geometry, SourceSpan, records};
use crate::bytes::Cursor;
use crate::error::{Error, Result};
use std::ops::Range;

/// What errors call this kind of file.
pub const FILE: &str = "memory file";
/// [`PAGE_BYTES`] as an offset.
pub const PAGE: u64 = PAGE_BYTES as u64;
/// Where the first segment stands: after the two superblocks.
pub const FIRST_SEGMENT: u64 = 2 * PAGE;
/// Tokens in one segment at most.
pub const SEGMENT_TOKENS_MAX: u32 = 1 << 20;
/// Bytes of a source's label at most.
pub const LABEL_BYTES_MAX: usize = 4096;

const SEGMENT_MAGIC: [u8; 8] = *b"LOCISEG\n";
const COMMIT_MAGIC: [u8; 8] = *b"LOCICMT\n";
/// Bytes of the source spans of a segment at most.
pub const SPANS_BYTES_MAX: u32 = 256 << 20;
/// Sections start at multiples of this many bytes.
const SECTION_ALIGNMENT: u64 = 64;

/// A point of the commit chain: everything up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Number of commits.
    pub sequence: u64,
    /// Offset of the byte after the last commit page: where the next segment goes.
    pub end: u64,
    /// Tokens in all commits.
    pub tokens: u64,
    /// Chain hash of the last commit.
    pub hash: u64,
}

impl Tip {
    /// The chain of a file with these superblocks, before its first commit. The identity of the file is what the chain starts with.
    pub fn start(uuid: &[u8; 16]) -> Tip {
        Tip { sequence: 0, end: FIRST_SEGMENT, tokens: 0, hash: fnv1a(&[uuid]) }
    }
}

/// FNV-1a, 64 bits, over the parts one after the other. It tells a segment of another history from its own; against bit rot
/// there are the CRCs, against forgery there is nothing.
fn fnv1a(parts: &[&[u8]]) -> u64 {
    parts.iter().flat_map(|p| p.iter()).fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// Pads to a page and closes it with its CRC.
pub fn seal(mut body: Vec<u8>) -> Vec<u8> {
    body.resize(PAGE_BYTES - 4, 0);
    let crc = crc32c::crc32c(&body);
    body.extend(crc.to_le_bytes());
    body
}

/// The cursor over a page whose magic and CRC are right.
pub fn unseal<'a>(page: &'a [u8], offset: u64, what: &str, magic: [u8; 8]) -> Result<Cursor<'a>> {
    let mut c = Cursor::with_base(FILE, page, offset);
    let found: [u8; 8] = c.array("magic")?;
    let Some((body, crc)) = page.split_last_chunk::<4>().filter(|_| page.len() == PAGE_BYTES) else {
        return Err(Error::Corrupt { file: FILE, offset, what: format!("{what}: not a whole page") });
    };
    let (expected, computed) = (u32::from_le_bytes(*crc), crc32c::crc32c(body));
    if found != magic || expected != computed {
        let what = format!("{what}: magic {found:02x?}, CRC32C {computed:08x} where {expected:08x} is recorded");
        return Err(Error::Corrupt { file: FILE, offset, what });
    }
    Ok(c)
}

/// Compares a field with the only value it can have.
fn expect<T: PartialEq + std::fmt::Debug>(c: &Cursor, offset: u64, field: &str, expected: T, found: T) -> Result<()> {
    if expected != found { Err(c.error_at(offset, field, format!("{expected:?}"), format!("{found:?}"))) } else { Ok(()) }
}

fn expect_u64(c: &mut Cursor, field: &str, expected: u64) -> Result<()> {
    let offset = c.offset();
    let found = c.u64(field)?;
    expect(c, offset, field, expected, found)
}

pub fn expect_u32(c: &mut Cursor, field: &str, expected: u32) -> Result<()> {
    let offset = c.offset();
    let found = c.u32(field)?;
    expect(c, offset, field, expected, found)
}

/// What a segment's header says beyond what follows from the geometry and the commit before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The commit it belongs to, from 1.
    pub sequence: u64,
    /// Index of its first token in the memory.
    pub first_token: u64,
    /// Tokens in it; 0 if it has records in place of tokens.
    pub token_count: u32,
    /// Bytes of the source spans.
    pub spans_bytes: u32,
    /// CRC32C of the sections, in the order of [`Section`].
    pub crcs: [u32; 4],
    /// Its records: tokens to be forgotten.
    pub forgotten: Vec<Range<u64>>,
}

/// The parts of a segment between its header and its extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// A u32 for each token.
    Tokens = 0,
    /// Where they came from.
    Spans = 1,
    /// Mean keys and radii: see [`Form`].
    Index = 2,
    /// CRC32C of each extent, `[layer slot][block]`.
    ExtentCrcs = 3,
}

/// The sections in the order of the file.
pub const SECTIONS: [Section; 4] = [Section::Tokens, Section::Spans, Section::Index, Section::ExtentCrcs];

impl SegmentHeader {
    /// The page.
    pub fn encode(&self, layout: &Layout, uuid: &[u8; 16], previous_hash: u64) -> Vec<u8> {
        let mut p = Vec::with_capacity(PAGE_BYTES);
        p.extend(SEGMENT_MAGIC);
        p.extend(uuid);
        for x in [self.sequence, previous_hash, self.first_token, layout.segment_bytes, layout.extents_at] {
            p.extend(x.to_le_bytes());
        }
        for x in [self.token_count, layout.blocks as u32, self.spans_bytes].into_iter().chain(self.crcs) {
            p.extend(x.to_le_bytes());
        }
        if self.token_count == 0 {
            records::encode(&self.forgotten, &mut p);
        }
        seal(p)
    }

    /// The chain before the segment whose header page this is, of the file with this uuid; it stands at offset `at`.
    pub fn place(page: &[u8], at: u64, uuid: &[u8; 16]) -> Option<Tip> {
        let mut c = unseal(page, at, "segment header", SEGMENT_MAGIC).ok().filter(|_| page[8..24] == *uuid)?;
        c.take("uuid", uuid.len()).ok()?;
        let mut field = || c.u64("field").ok();
        let (sequence, hash, tokens) = (field()?.checked_sub(1)?, field()?, field()?);
        Some(Tip { sequence, end: at, tokens, hash })
    }

    /// Parses the page that must hold the segment after `tip`, in a file with this head; only one that says so has records.
    pub fn parse(page: &[u8], superblock: &Superblock, tip: &Tip) -> Result<(SegmentHeader, Layout)> {
        let (geometry, uuid, has_records) = (&superblock.geometry, &superblock.uuid, superblock.incompat & RECORDS != 0);
        let mut c = unseal(page, tip.end, "segment header", SEGMENT_MAGIC)?;
        let at = c.offset();
        let found: [u8; 16] = c.array("uuid")?;
        expect(&c, at, "uuid", *uuid, found)?;
        // A hint may claim any sequence: no addition may overflow on a file's word.
        let Some(sequence) = tip.sequence.checked_add(1) else {
            return Err(c.error("sequence", "a number that can be counted up", tip.sequence));
        };
        expect_u64(&mut c, "sequence", sequence)?;
        expect_u64(&mut c, "previous_hash", tip.hash)?;
        expect_u64(&mut c, "first_token", tip.tokens)?;
        let (segment_bytes, extents_at) = (c.u64("segment_bytes")?, c.u64("extents_at")?);
        let at = c.offset();
        let token_count = c.u32("token_count")?;
        if !(u32::from(!has_records)..=SEGMENT_TOKENS_MAX).contains(&token_count) {
            return Err(c.error_at(at, "token_count", format!("1 to {SEGMENT_TOKENS_MAX}"), token_count));
        }
        let block_count = c.u32("block_count")?;
        let spans_bytes = c.u32("spans_bytes")?;
        if spans_bytes > if token_count == 0 { 0 } else { SPANS_BYTES_MAX } {
            return Err(c.error_at(at, "spans_bytes", format!("at most {SPANS_BYTES_MAX}"), spans_bytes));
        }
        let mut crcs = [0; 4];
        for crc in &mut crcs {
            *crc = c.u32("section CRC")?;
        }
        let forgotten = if token_count == 0 { records::parse(&mut c, tip.tokens)? } else { Vec::new() };
        let layout = Layout::new(geometry, superblock.form(), token_count, spans_bytes);
        expect(&c, at, "block_count", layout.blocks as u32, block_count)?;
        expect(&c, at, "segment_bytes", layout.segment_bytes, segment_bytes)?;
        expect(&c, at, "extents_at", layout.extents_at, extents_at)?;
        Ok((SegmentHeader { sequence, first_token: tip.tokens, token_count, spans_bytes, crcs, forgotten }, layout))
    }
}

/// Where everything lies in a segment, from its first byte. Follows from the geometry and two lengths; all sums fit, because
/// [`Geometry::check`] and the caps above bound every factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Blocks, all full but perhaps the last.
    pub blocks: usize,
    /// Tokens in the last block.
    pub last_len: usize,
    /// Start and length of each section.
    pub sections: [(u64, u64); 4],
    /// Start of the first extent.
    pub extents_at: u64,
    /// The byte after the last extent.
    pub extents_end: u64,
    /// Header, sections and extents, in whole pages; the commit page follows.
    pub segment_bytes: u64,
    full_extent: u64,
    last_extent: u64,
}

impl Layout {
    /// The layout of a segment of `token_count` tokens.
    pub fn new(geometry: &Geometry, form: Form, token_count: u32, spans_bytes: u32) -> Layout {
        let block_len = geometry.block_len();
        let tokens = token_count as usize;
        let blocks = tokens.div_ceil(block_len);
        let full_blocks = blocks.saturating_sub(1);
        let last_len = tokens - full_blocks * block_len;
        let layers = geometry.layer_count() as u64;
        let lens = [4 * tokens as u64, u64::from(spans_bytes), form.section_bytes(geometry, tokens), layers * blocks as u64 * 4];
        let mut at = PAGE;
        let sections = lens.map(|len| {
            let section = (at, len);
            at = (at + len).next_multiple_of(SECTION_ALIGNMENT);
            section
        });
        let extents_at = at.next_multiple_of(PAGE);
        let (full_extent, last_extent) = (form.extent_bytes(geometry, block_len) as u64, form.extent_bytes(geometry, last_len) as u64);
        let extents_end = extents_at + layers * (full_blocks as u64 * full_extent + last_extent);
        let segment_bytes = extents_end.next_multiple_of(PAGE);
        Layout { blocks, last_len, sections, extents_at, extents_end, segment_bytes, full_extent, last_extent }
    }

    /// Start and length of an extent: layer by layer, within a layer block by block, so that a pass over one layer reads forward.
    pub fn extent(&self, layer_slot: usize, block: usize) -> (u64, usize) {
        let full_blocks = self.blocks as u64 - 1;
        let at =
            self.extents_at + layer_slot as u64 * (full_blocks * self.full_extent + self.last_extent) + block as u64 * self.full_extent;
        (at, if block as u64 == full_blocks { self.last_extent } else { self.full_extent } as usize)
    }
}

/// The page that makes a segment count: written after it, and only believed together with it.
pub struct CommitPage;

/// What a commit page says of its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitOf {
    /// Where the segment begins.
    pub segment_offset: u64,
    /// Its length.
    pub segment_bytes: u64,
    /// Hash of the commit before.
    pub previous_hash: u64,
}

impl CommitPage {
    /// The page, and the chain's new tip. `page` is the segment's whole header page, `trail` what was committed before it.
    pub fn encode(header: &SegmentHeader, page: &[u8], layout: &Layout, uuid: &[u8; 16], before: &Tip, trail: &Trail) -> (Vec<u8>, Tip) {
        let tip = CommitPage::tip(page, layout, header.token_count, before);
        let mut p = Vec::with_capacity(PAGE_BYTES);
        p.extend(COMMIT_MAGIC);
        p.extend(uuid);
        for x in [tip.sequence, before.end, layout.segment_bytes, tip.tokens, before.hash, tip.hash] {
            p.extend(x.to_le_bytes());
        }
        trail.encode(Step::of(header), &mut p);
        (seal(p), tip)
    }

    /// Compares the page with the one that must stand there, and returns the chain's new tip.
    pub fn check(page: &[u8], header: &[u8], layout: &Layout, token_count: u32, uuid: &[u8; 16], before: &Tip) -> Result<Tip> {
        let mut c = unseal(page, before.end + layout.segment_bytes, "commit page", COMMIT_MAGIC)?;
        let at = c.offset();
        let found: [u8; 16] = c.array("uuid")?;
        expect(&c, at, "uuid", *uuid, found)?;
        let tip = CommitPage::tip(header, layout, token_count, before);
        expect_u64(&mut c, "sequence", tip.sequence)?;
        expect_u64(&mut c, "segment_offset", before.end)?;
        expect_u64(&mut c, "segment_bytes", layout.segment_bytes)?;
        expect_u64(&mut c, "tokens", tip.tokens)?;
        expect_u64(&mut c, "previous_hash", before.hash)?;
        expect_u64(&mut c, "hash", tip.hash)?;
        Ok(tip)
    }

    /// The chain behind the commit whose page this is, of the file with this uuid, and what it says of it; it stands at offset `at`.
    pub fn place(page: &[u8], at: u64, uuid: &[u8; 16]) -> Option<(Tip, CommitOf)> {
        let mut c = unseal(page, at, "commit page", COMMIT_MAGIC).ok().filter(|_| page[8..24] == *uuid)?;
        c.take("uuid", uuid.len()).ok()?;
        let mut field = || c.u64("field").ok();
        let (sequence, segment_offset, segment_bytes) = (field()?, field()?, field()?);
        let (tokens, previous_hash, hash) = (field()?, field()?, field()?);
        Some((Tip { sequence, end: at + PAGE, tokens, hash }, CommitOf { segment_offset, segment_bytes, previous_hash }))
    }

    /// The chain's tip behind the commit whose header page this is.
    pub fn tip(header: &[u8], layout: &Layout, token_count: u32, before: &Tip) -> Tip {
        Tip {
            sequence: before.sequence + 1,
            end: before.end + layout.segment_bytes + PAGE,
            tokens: before.tokens + u64::from(token_count),
            hash: fnv1a(&[&before.hash.to_le_bytes(), header]),
        }
    }
}

/// The source spans of a segment, as bytes. `first_token` is the segment's.
pub fn encode_spans(spans: &[SourceSpan], first_token: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    out.extend((spans.len() as u64).to_le_bytes());
    for span in spans {
        let relative = [span.tokens.start - first_token, span.tokens.end - first_token];
        for x in relative.into_iter().chain([span.text.start, span.text.end, span.label.len() as u64]) {
            out.extend(x.to_le_bytes());
        }
        out.extend(span.label.as_bytes());
    }
    if out.len() > SPANS_BYTES_MAX as usize {
        let limit = u64::from(SPANS_BYTES_MAX);
        return Err(Error::Limit { what: "source spans of one commit, bytes".into(), limit, asked: out.len() as u64 });
    }
    Ok(out)
}

/// Parses the source spans of a segment and gives each to `each`: in the order of their tokens, none of which is in two of them.
pub fn parse_spans(bytes: &[u8], offset: u64, header: &SegmentHeader, mut each: impl FnMut(SourceSpan)) -> Result<()> {
    let mut c = Cursor::with_base(FILE, bytes, offset);
    let count = c.count("source span count", 40)?;
    let mut last = 0;
    for _ in 0..count {
        let at = c.offset();
        let (start, end) = (c.u64("span.tokens.start")?, c.u64("span.tokens.end")?);
        if start < last || start >= end || end > u64::from(header.token_count) {
            let expected = format!("a range within tokens {last} to {}", header.token_count);
            return Err(c.error_at(at, "span.tokens", expected, format!("{start}..{end}")));
        }
        last = end;
        let at = c.offset();
        let text = c.u64("span.text.start")?..c.u64("span.text.end")?;
        if text.start > text.end {
            return Err(c.error_at(at, "span.text", "a range", format!("{text:?}")));
        }
        let len = c.count("span.label length", 1)?;
        let at = c.offset();
        let label = match std::str::from_utf8(c.take("span.label", len)?) {
            Ok(label) if len <= LABEL_BYTES_MAX => label.to_owned(),
            _ => return Err(c.error_at(at, "span.label", format!("at most {LABEL_BYTES_MAX} bytes of UTF-8"), format!("{len} bytes"))),
        };
        each(SourceSpan { label, tokens: header.first_token + start..header.first_token + end, text });
    }
    Ok(())
}
