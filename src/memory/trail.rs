//! The trail: every commit page says what the last commits were, itself first, so that opening goes back from the end in strides, a page
//! for every [`STEPS_MAX`] commits, in place of two pages for each. What is near the end of a file, and what the system has read with it,
//! is then all that a cold start waits for.
//!
//! Invariants: the trail repeats what headers say and is never needed: a page without one (of a program that knew none) is passed by its
//! header, and whatever does not fit together sends the reader back to the start of the chain. Whoever walks the chain page by page
//! compares the two.

use super::chain::{Chain, Link};
use super::format::{CommitPage, FIRST_SEGMENT, Layout, PAGE, SEGMENT_TOKENS_MAX, SPANS_BYTES_MAX, SegmentHeader, Tip};
use super::geometry::PAGE_BYTES;
use super::segment::{corrupt, read};
use super::superblock::RECORDS;
use crate::bytes::Cursor;
use crate::error::{Error, Result, try_reserve};
use std::collections::VecDeque;

/// Commits of which one page tells.
pub const STEPS_MAX: usize = 160;
/// Where a commit page has its trail, behind its own fields.
pub const TRAIL_AT: usize = 72;

/// What a header says of its commit that follows from nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Tokens; 0 where there are records, which stand on the header page alone.
    pub token_count: u32,
    /// Bytes of the source spans.
    pub spans_bytes: u32,
    /// CRC32C of the sections.
    pub crcs: [u32; 4],
}

impl Step {
    /// What `header` says.
    pub fn of(header: &SegmentHeader) -> Step {
        Step { token_count: header.token_count, spans_bytes: header.spans_bytes, crcs: header.crcs }
    }
}

/// The last commits up to a point of the chain.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// The oldest first.
    steps: VecDeque<Step>,
}

impl Trail {
    /// One commit further; the oldest one may be dropped.
    pub fn push(&mut self, step: Step) {
        // One less than a page has: its own comes first there.
        if self.steps.len() + 1 == STEPS_MAX {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    /// Nothing is known of the commits up to here.
    pub fn clear(&mut self) {
        self.steps.clear();
    }

    /// What the commit page of `own` says, these being the commits before it: u32 number of steps, u32 zero; for each, the newest first, u32
    /// tokens, u32 bytes of the source spans, u32 x 4 CRCs.
    pub fn encode(&self, own: Step, page: &mut Vec<u8>) {
        debug_assert_eq!(page.len(), TRAIL_AT);
        page.extend((self.steps.len() as u32 + 1).to_le_bytes());
        page.extend(0u32.to_le_bytes());
        for step in std::iter::once(&own).chain(self.steps.iter().rev()) {
            let words = [step.token_count, step.spans_bytes].into_iter().chain(step.crcs);
            page.extend(words.flat_map(u32::to_le_bytes));
        }
    }

    /// The commit page at `at`, of `own` behind these commits, says nothing else of them. It may say less, and more than is known here.
    pub fn compare(&self, page: &[u8], at: u64, own: &SegmentHeader) -> Result<()> {
        let (said, newest) = (steps_of(page, at)?, Step::of(own));
        let known = std::iter::once(&newest).chain(self.steps.iter().rev());
        if said.len() as u64 > own.sequence || said.iter().zip(known).any(|(said, known)| said != known) {
            return Err(corrupt(at, "what the commit page says of the commits before it is not what they are".into()));
        }
        Ok(())
    }
}

/// What a commit page says of the last commits, the newest first; none if it was written without a trail.
fn steps_of(page: &[u8], at: u64) -> Result<Vec<Step>> {
    let mut c = Cursor::with_base(super::format::FILE, page, at);
    c.take("commit page", TRAIL_AT)?;
    let (count_at, count) = (c.offset(), c.u32("step count")?);
    if count as usize > STEPS_MAX {
        return Err(c.error_at(count_at, "step count", format!("at most {STEPS_MAX}"), count));
    }
    c.u32("zero")?;
    let mut out = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (token_count, spans_bytes) = (c.u32("step.tokens")?, c.u32("step.spans_bytes")?);
        let mut crcs = [0; 4];
        for crc in &mut crcs {
            *crc = c.u32("step.crc")?;
        }
        out.push(Step { token_count, spans_bytes, crcs });
    }
    Ok(out)
}

impl Chain<'_> {
    /// The commits from the first one to `durable`, a point that a superblock vouches for; `None` if something on the way back is not as
    /// it must be, which whoever goes forward finds out more about.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::OutOfMemory`].
    pub fn back_from(&self, durable: &Tip) -> Result<Option<Vec<Step>>> {
        match self.strides(durable) {
            Ok(steps) => Ok(Some(steps)),
            Err(Error::Corrupt { .. } | Error::Format { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn strides(&self, durable: &Tip) -> Result<Vec<Step>> {
        let (mut out, mut at): (Vec<Step>, Tip) = (Vec::new(), *durable);
        // Where pages were met that say nothing, which a longer way around them has to pass.
        let mut passing = u64::MAX;
        while at.sequence > 0 {
            let found = self.steps_to(&at, out.is_empty().then_some(durable.hash)).and_then(|steps| {
                let start = steps.iter().try_fold(at, |at, step| self.before(&at, step))?;
                Ok((steps, start))
            });
            match (found, out.last()) {
                (Ok((steps, start)), _) if start.sequence < passing => {
                    passing = u64::MAX;
                    try_reserve(&mut out, "the list of commits", steps.len())?;
                    out.extend(steps);
                    at = start;
                }
                // The page before that one, a commit nearer to the end, tells of it too.
                (Ok(_) | Err(Error::Corrupt { .. } | Error::Format { .. }), Some(step))
                    if at.sequence < passing.saturating_add(STEPS_MAX as u64) =>
                {
                    passing = passing.min(at.sequence);
                    at = Tip {
                        sequence: at.sequence + 1,
                        end: at.end + self.bytes_of(step),
                        tokens: at.tokens + u64::from(step.token_count),
                        hash: 0,
                    };
                    out.pop();
                }
                (Ok(_), _) => return Err(corrupt(at.end, "no page tells of the commits before it".into())),
                (Err(e), _) => return Err(e),
            }
        }
        if (at.end, at.tokens) != (FIRST_SEGMENT, 0) {
            return Err(corrupt(at.end, "the first commit elsewhere than at the start".into()));
        }
        out.reverse();
        Ok(out)
    }

    /// What the commit page that ends at `at` tells of the last commits, the newest, its own, first. Of its hash something is known at the end alone;
    /// each page vouches for what it says with its checksum.
    fn steps_to(&self, at: &Tip, hash: Option<u64>) -> Result<Vec<Step>> {
        let amiss = |at: u64, what: &str| corrupt(at, what.into());
        let Some(page_at) = at.end.checked_sub(PAGE).filter(|at| *at > FIRST_SEGMENT) else {
            return Err(amiss(at.end, "commits before the first"));
        };
        let mut page = [0; PAGE_BYTES];
        read(self.storage, &mut page, page_at)?;
        let Some((tip, of)) = CommitPage::place(&page, page_at, &self.superblock.uuid) else {
            return Err(amiss(page_at, "no commit page"));
        };
        if (tip.sequence, tip.end, tip.tokens) != (at.sequence, at.end, at.tokens) || hash.is_some_and(|hash| hash != tip.hash) {
            return Err(amiss(page_at, "a commit page of another place"));
        }
        let mut steps = steps_of(&page, page_at)?;
        if steps.is_empty() {
            let before = Tip { sequence: tip.sequence - 1, end: of.segment_offset, tokens: 0, hash: of.previous_hash };
            steps.push(self.step_by_header(before, &page, page_at)?);
        }
        Ok(steps)
    }

    /// Where the chain was before `step` took it to `at`; its hash is not known.
    fn before(&self, at: &Tip, step: &Step) -> Result<Tip> {
        let of_tokens = (u32::from(self.superblock.incompat & RECORDS == 0)..=SEGMENT_TOKENS_MAX).contains(&step.token_count);
        if !of_tokens || step.spans_bytes > if step.token_count == 0 { 0 } else { SPANS_BYTES_MAX } {
            return Err(corrupt(at.end, "a commit that cannot be".into()));
        }
        let end = at.end.checked_sub(self.bytes_of(step)).filter(|end| *end >= FIRST_SEGMENT);
        match (at.sequence.checked_sub(1), end, at.tokens.checked_sub(step.token_count.into())) {
            (Some(sequence), Some(end), Some(tokens)) => Ok(Tip { sequence, end, tokens, hash: 0 }),
            _ => Err(corrupt(at.end, "more than there can be before it".into())),
        }
    }

    /// Bytes of the commit `step`, its pages included.
    fn bytes_of(&self, step: &Step) -> u64 {
        Layout::new(&self.superblock.geometry, self.superblock.form(), step.token_count, step.spans_bytes).segment_bytes + PAGE
    }

    /// The commit behind `before` that `step` tells of; `None` if it has records and their page is not what must stand there. Its tip has no hash.
    pub fn link_of(&self, before: &Tip, step: Step) -> Result<Option<Link>> {
        let Step { token_count, spans_bytes, crcs } = step;
        let layout = Layout::new(&self.superblock.geometry, self.superblock.form(), token_count, spans_bytes);
        let (sequence, first_token) = (before.sequence + 1, before.tokens);
        let tip = Tip { sequence, end: before.end + layout.segment_bytes + PAGE, tokens: first_token + u64::from(token_count), hash: 0 };
        let mut header = SegmentHeader { sequence, first_token, token_count, spans_bytes, crcs, forgotten: Vec::new() };
        if token_count == 0 {
            match self.header_alone(before.end) {
                Ok((found, ..)) if (found.sequence, found.first_token, Step::of(&found)) == (sequence, first_token, step) => header = found,
                Ok(_) | Err(Error::Corrupt { .. } | Error::Format { .. }) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(Link { header, layout, tip, damage: None }))
    }

    /// The chain's hash at a point, which its commit page has; `None` if that is not there.
    pub fn hash_at(&self, tip: &Tip) -> Result<Option<u64>> {
        if tip.sequence == 0 {
            return Ok(Some(Tip::start(&self.superblock.uuid).hash));
        }
        let (mut page, at) = ([0; PAGE_BYTES], tip.end - PAGE);
        read(self.storage, &mut page, at)?;
        let found = CommitPage::place(&page, at, &self.superblock.uuid).map(|(found, _)| found);
        Ok(found.filter(|f| (f.sequence, f.tokens) == (tip.sequence, tip.tokens)).map(|f| f.hash))
    }

    /// The commit of the page `commit_page`, by its header; `before` lacks the tokens before it, which the header says.
    fn step_by_header(&self, before: Tip, commit_page: &[u8], page_at: u64) -> Result<Step> {
        let (header, layout, page) = self.header_alone(before.end)?;
        let before = Tip { tokens: header.first_token, ..before };
        CommitPage::check(commit_page, &page, &layout, header.token_count, &self.superblock.uuid, &before)?;
        if before.end + layout.segment_bytes != page_at {
            return Err(corrupt(page_at, "a commit page of another header".into()));
        }
        Ok(Step::of(&header))
    }

    /// The header at `at`, if its page is whole and of this file, compared with nothing before it.
    pub fn header_alone(&self, at: u64) -> Result<(SegmentHeader, Layout, [u8; PAGE_BYTES])> {
        let mut page = [0; PAGE_BYTES];
        read(self.storage, &mut page, at)?;
        let Some(before) = SegmentHeader::place(&page, at, &self.superblock.uuid) else {
            return Err(corrupt(at, "no segment header".into()));
        };
        let (header, layout) = SegmentHeader::parse(&page, self.superblock, &before)?;
        Ok((header, layout, page))
    }
}
