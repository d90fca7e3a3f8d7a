//! Following the chain of commits, and going on behind a page of it that is damaged.
//!
//! Strictly: header and commit page of the next commit, each compared with what must stand there. Around damage, but only up to a point that
//! a superblock vouches for, where damage cannot be a torn tail: the commit page follows from the header; the header from the
//! commit page and the sections, and the commit's hash says whether that is what it was. What does not follow is lost, up to the next
//! page of the chain that is found, or to the point itself; the tokens in between keep their numbers and cannot be read.
//!
//! Invariants: nothing is written here. Every page up to a durable point was written by a commit of the chain, so that a page with its
//! uuid and checksum is one of the chain; and whoever follows arrives at that very point, hash and all, or refuses the file.

use super::format::{CommitOf, CommitPage, Layout, PAGE, SEGMENT_TOKENS_MAX, SPANS_BYTES_MAX, Section, SegmentHeader, Tip};
use super::geometry::PAGE_BYTES;
use super::segment::{corrupt, not_truncated, read};
use super::superblock::Superblock;
use super::trail::{Step, Trail};
use crate::bytes::Storage;
use crate::error::{Error, Result, try_zeroed};

/// Bytes that are searched at a time.
const STRETCH_BYTES: u64 = 1 << 20;

/// A commit, or what stands in the place of lost ones.
pub struct Link {
    pub header: SegmentHeader,
    pub layout: Layout,
    /// The chain behind it.
    pub tip: Tip,
    pub damage: Option<PageDamage>,
}

impl Link {
    /// True if it stands in the place of lost ones.
    pub fn is_lost(&self) -> bool {
        self.damage.as_ref().is_some_and(|d| d.mend.is_none())
    }

    /// Leads the trail on.
    pub fn extend(&self, trail: &mut Trail) {
        if self.is_lost() { trail.clear() } else { trail.push(Step::of(&self.header)) }
    }
}

/// A page of the chain that is damaged.
pub struct PageDamage {
    pub error: Error,
    /// Where it stands, and what stood there; none if that is lost, and the commit, or several, with it.
    pub mend: Option<(u64, Vec<u8>)>,
}

/// The chain of a file.
#[derive(Clone, Copy)]
pub struct Chain<'a> {
    pub storage: &'a dyn Storage,
    pub superblock: &'a Superblock,
}

impl Chain<'_> {
    /// The commit after `before`, in a file of `len` bytes. `trail`: what is known of the commits up to there.
    pub fn next(&self, before: &Tip, trail: &Trail, len: u64) -> Result<Link> {
        let (header, layout, header_page) = self.header_after(before, len)?;
        let mut commit_page = [0; PAGE_BYTES];
        let page_at = before.end + layout.segment_bytes;
        read(self.storage, &mut commit_page, page_at)?;
        let tip = CommitPage::check(&commit_page, &header_page, &layout, header.token_count, &self.superblock.uuid, before)?;
        trail.compare(&commit_page, page_at, &header)?;
        Ok(Link { header, layout, tip, damage: None })
    }

    fn header_after(&self, before: &Tip, len: u64) -> Result<(SegmentHeader, Layout, [u8; PAGE_BYTES])> {
        let sequence = before.sequence.saturating_add(1);
        let room = len.saturating_sub(before.end);
        if room < 2 * PAGE {
            return Err(corrupt(before.end, format!("commit {sequence} is missing: {room} bytes to the end of the file")));
        }
        let mut page = [0; PAGE_BYTES];
        read(self.storage, &mut page, before.end)?;
        let (header, layout) = SegmentHeader::parse(&page, self.superblock, before)?;
        if layout.segment_bytes + PAGE > room {
            let what = format!("segment {sequence} takes {} bytes, the file has {room}", layout.segment_bytes + PAGE);
            return Err(corrupt(before.end, what));
        }
        Ok((header, layout, page))
    }

    /// The commit after `before`, which is one up to the `durable` point; if its pages are damaged, what can be had of it and those
    /// behind it. An error if what is there cannot be of the chain that leads to that point.
    pub fn next_to(&self, before: &Tip, trail: &Trail, durable: &Tip, len: u64) -> Result<Link> {
        let error = match self.next(before, trail, len) {
            Err(error @ (Error::Corrupt { .. } | Error::Format { .. })) if before.sequence < durable.sequence => error,
            next => return next,
        };
        not_truncated(self.storage, durable.end)?;
        if let Ok((header, layout, page)) = self.header_after(before, durable.end) {
            let (commit_page, tip) = CommitPage::encode(&header, &page, &layout, &self.superblock.uuid, before, trail);
            let mend = Some((before.end + layout.segment_bytes, commit_page));
            return Ok(Link { header, layout, tip, damage: Some(PageDamage { error, mend }) });
        }
        let mark = self.landmark(before, durable)?;
        if let Some(mark) = mark.filter(|m| m.is_next_of(before))
            && let Some((header, layout, page)) = self.header_of(before, &mark)?
        {
            let mend = Some((before.end, page));
            return Ok(Link { header, layout, tip: mark.tip, damage: Some(PageDamage { error, mend }) });
        }
        let tip = mark.map_or(*durable, |m| m.tip);
        // A token takes its id at least: what a file says costs no more room than the file has.
        let (tokens, bytes) = (tip.tokens.saturating_sub(before.tokens), tip.end.saturating_sub(before.end));
        match u32::try_from(tokens) {
            Ok(token_count) if tip.tokens >= before.tokens && tip.end > before.end && tokens.saturating_mul(4) <= bytes => {
                let layout = Layout::new(&self.superblock.geometry, self.superblock.form(), token_count, 0);
                let (sequence, first_token) = (tip.sequence, before.tokens);
                let header = SegmentHeader { sequence, first_token, token_count, spans_bytes: 0, crcs: [0; 4], forgotten: Vec::new() };
                Ok(Link { header, layout, tip, damage: Some(PageDamage { error, mend: None }) })
            }
            _ => Err(error),
        }
    }

    /// The first page behind `before` that says where in the chain it stands.
    fn landmark(&self, before: &Tip, durable: &Tip) -> Result<Option<Landmark>> {
        let mut at = before.end + PAGE;
        let mut bytes: Vec<u8> = try_zeroed("reading a memory file", STRETCH_BYTES.min(durable.end.saturating_sub(at)) as usize)?;
        while at < durable.end {
            let stretch = &mut bytes[..STRETCH_BYTES.min(durable.end - at) as usize];
            read(self.storage, stretch, at)?;
            for (i, page) in stretch.chunks_exact(PAGE_BYTES).enumerate() {
                let mark = Landmark::read(page, at + i as u64 * PAGE, &self.superblock.uuid);
                if let Some(mark) = mark.filter(|m| m.lies_between(before, durable)) {
                    return Ok(Some(mark));
                }
            }
            at += stretch.len() as u64;
        }
        Ok(None)
    }

    /// The header that the commit page `mark` was made for, if it follows from what is there.
    fn header_of(&self, before: &Tip, mark: &Landmark) -> Result<Option<(SegmentHeader, Layout, Vec<u8>)>> {
        let Some(CommitOf { segment_bytes, .. }) = mark.commit else { return Ok(None) };
        let (geometry, form) = (&self.superblock.geometry, self.superblock.form());
        let Ok(token_count @ 1..=SEGMENT_TOKENS_MAX) = u32::try_from(mark.tip.tokens - before.tokens) else { return Ok(None) };
        let layout_with =
            |spans_bytes: u32| Some(Layout::new(geometry, form, token_count, spans_bytes)).filter(|l| l.segment_bytes <= segment_bytes);
        let Some(spans_at) = layout_with(0).map(|l| l.sections[Section::Spans as usize].0) else { return Ok(None) };
        let Some(spans_bytes) = self.spans_bytes(before.end + spans_at, before.end + segment_bytes)? else { return Ok(None) };
        let Some(layout) = layout_with(spans_bytes) else { return Ok(None) };
        let mut crcs = [0; 4];
        for (crc, (at, len)) in crcs.iter_mut().zip(layout.sections) {
            let mut bytes: Vec<u8> = try_zeroed("a section of a memory file", len as usize)?;
            read(self.storage, &mut bytes, before.end + at)?;
            *crc = crc32c::crc32c(&bytes);
        }
        let (sequence, first_token) = (mark.tip.sequence, before.tokens);
        let header = SegmentHeader { sequence, first_token, token_count, spans_bytes, crcs, forgotten: Vec::new() };
        let page = header.encode(&layout, &self.superblock.uuid, before.hash);
        let tip = CommitPage::tip(&page, &layout, token_count, before);
        Ok((tip == mark.tip).then_some((header, layout, page)))
    }

    /// How long the source spans from `start` on are, by what they say themselves; none if they reach behind `end`.
    fn spans_bytes(&self, start: u64, end: u64) -> Result<Option<u32>> {
        let end = end.min(start + u64::from(SPANS_BYTES_MAX));
        let word = |at: u64| -> Result<Option<u64>> {
            let mut word = [0; 8];
            if at + 8 > end {
                return Ok(None);
            }
            read(self.storage, &mut word, at)?;
            Ok(Some(u64::from_le_bytes(word)))
        };
        let Some(count) = word(start)? else { return Ok(None) };
        let mut at = start + 8;
        for _ in 0..count {
            // Four numbers, the length of the label, the label.
            match word(at + 32)? {
                Some(label) if label <= end - at => at += 40 + label,
                _ => return Ok(None),
            }
        }
        Ok(u32::try_from(at - start).ok().filter(|_| at <= end))
    }
}

/// What a page says of where in the chain it stands.
#[derive(Clone, Copy)]
struct Landmark {
    /// The chain behind a commit page, or before a header.
    tip: Tip,
    /// Of a commit page.
    commit: Option<CommitOf>,
}

impl Landmark {
    fn read(page: &[u8], at: u64, uuid: &[u8; 16]) -> Option<Landmark> {
        let behind = || CommitPage::place(page, at, uuid).map(|(tip, commit)| Landmark { tip, commit: Some(commit) });
        behind().or_else(|| SegmentHeader::place(page, at, uuid).map(|tip| Landmark { tip, commit: None }))
    }

    fn lies_between(&self, before: &Tip, durable: &Tip) -> bool {
        let t = &self.tip;
        let inside = (before.sequence + 1..=durable.sequence).contains(&t.sequence) && (before.tokens..=durable.tokens).contains(&t.tokens);
        inside && t.end <= durable.end && (t.sequence < durable.sequence || t == durable)
    }

    /// True for the commit page of the segment that begins where `before` ends.
    fn is_next_of(&self, before: &Tip) -> bool {
        self.commit.is_some_and(|c| {
            let ends = before.end.checked_add(c.segment_bytes).and_then(|end| end.checked_add(PAGE));
            (c.segment_offset, c.previous_hash, ends) == (before.end, before.hash, Some(self.tip.end))
                && self.tip.sequence == before.sequence + 1
        })
    }
}
