//! How a store comes to know its commits: when it is opened, when a writer beside it has gone on, when it is wound back; and every page of
//! them looked at again. By the trail from the end (`trail.rs`) where that leads to the start, else page by page (`chain.rs`).
//!
//! Invariants: nothing is written here. Up to the point that a superblock vouches for, what is wrong is damage; behind it, a torn tail.

use super::chain::{Chain, Link, PageDamage};
use super::format::{FIRST_SEGMENT, PAGE, Tip};
use super::maps::Maps;
use super::segment::{Segment, corrupt, file_len, not_truncated};
use super::store::Store;
use super::superblock::read_superblocks;
use super::trail::Trail;
use super::{Access, Damage};
use crate::error::{Error, Result, try_reserve};

impl Store {
    /// Follows the chain from the present tip to `durable`, around what is damaged; and then, if `further`, as far as commits verify in
    /// full, where a defect is a torn tail.
    pub(super) fn follow(&mut self, durable: &Tip, further: bool) -> Result<()> {
        not_truncated(&*self.storage, durable.end)?;
        let len = file_len(&*self.storage)?;
        let from = self.tip.end;
        let followed = self.follow_to(durable, further, len);
        // After an error too: what was taken in until then is there, and the next round goes on behind it.
        self.maps.extend(from, self.tip.end - from);
        followed
    }

    fn follow_to(&mut self, durable: &Tip, further: bool, len: u64) -> Result<()> {
        if self.tip.sequence == 0 {
            self.stride_to(durable, u64::MAX)?;
        }
        loop {
            if self.tip.sequence == durable.sequence && self.tip != *durable {
                let what = format!("the superblock records {durable:?}, the commit chain arrives at {:?}", self.tip);
                return Err(corrupt(self.tip.end, what));
            }
            let vouched = self.tip.sequence < durable.sequence;
            if !vouched && !further {
                break;
            }
            let link = if vouched { self.chain().next_to(&self.tip, &self.trail, durable, len) } else { self.next_in_full(len) };
            match link {
                Ok(link) => {
                    if let Some(damage) = &link.damage {
                        let tokens = self.tip.tokens..link.tip.tokens;
                        match damage.mend {
                            Some(_) => log::warn!("what a page of a memory held follows from the rest: {}", damage.error),
                            None => log::warn!("tokens {tokens:?} of a memory are lost, or what was forgotten: {}", damage.error),
                        }
                    }
                    self.reserve_segment()?;
                    self.take_in(link);
                }
                Err(e) if vouched || !matches!(e, Error::Corrupt { .. } | Error::Format { .. }) => return Err(e),
                Err(e) => {
                    if len > self.tip.end {
                        log::debug!("memory file: {} bytes behind commit {} are not a commit: {e}", len - self.tip.end, self.tip.sequence);
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// From the start of the chain to the last commit up to `durable` with at most `tokens` tokens in all, by what the pages at the end say.
    /// False, and still at the start, if they do not say it.
    fn stride_to(&mut self, durable: &Tip, tokens: u64) -> Result<bool> {
        let start = self.tip;
        let Some(steps) = self.chain().back_from(durable)? else { return Ok(false) };
        for step in steps {
            if self.tip.tokens + u64::from(step.token_count) > tokens {
                break;
            }
            let Some(link) = self.chain().link_of(&self.tip, step)? else { return Ok(self.back_at(start)) };
            self.reserve_segment()?;
            self.take_in(link);
        }
        let hash = if self.tip.sequence == durable.sequence { Some(durable.hash) } else { self.chain().hash_at(&self.tip)? };
        match hash {
            Some(hash) => self.tip.hash = hash,
            None => return Ok(self.back_at(start)),
        }
        Ok(true)
    }

    /// False, at the start of the chain.
    fn back_at(&mut self, start: Tip) -> bool {
        self.tip = start;
        self.trail.clear();
        self.segments.clear();
        self.damaged_pages.clear();
        false
    }

    pub(super) fn chain(&self) -> Chain<'_> {
        Chain { storage: &*self.storage, superblock: &self.superblock }
    }

    /// The next commit of the chain: its tokens, or what its records say.
    pub(super) fn take_in(&mut self, link: Link) {
        link.extend(&mut self.trail);
        link.header.forgotten.iter().for_each(|range| self.forgotten.insert(range.clone()));
        if link.header.token_count > 0 {
            let lost = link.is_lost();
            self.segments.push(Segment::new(self.tip.end, self.blocks(), link.header, link.layout, lost));
        }
        self.damaged_pages.extend(link.damage);
        self.tip = link.tip;
    }

    /// Makes room for one more segment, so that [`Store::take_in`] cannot fail.
    pub(super) fn reserve_segment(&mut self) -> Result<()> {
        try_reserve(&mut self.segments, "the list of segments", 1)
    }

    /// The commit after the tip, in a file of `len` bytes, every byte of it checked.
    fn next_in_full(&self, len: u64) -> Result<Link> {
        let link = self.chain().next(&self.tip, &self.trail, len)?;
        let segment = Segment::new(self.tip.end, self.blocks(), link.header, link.layout, false);
        let (mut damage, geometry) = (None, &self.superblock.geometry);
        segment.scrub(&*self.storage, geometry, &mut |d| damage = damage.take().or(Some(d.error)), &mut |_| true)?;
        match damage {
            Some(damage) => Err(damage),
            None => Ok(Link { header: segment.header, layout: segment.layout, ..link }),
        }
    }

    /// Reads the superblocks and every page of the chain again. `progress` gets the bytes read and says whether to go on.
    pub fn scrub_pages(&self, found: &mut dyn FnMut(Damage), progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
        let all = |error| Damage { blocks: 0..self.blocks(), layer_slot: None, error };
        // One bad copy is what a crash may leave, and the next commit writes it anew.
        match read_superblocks(&*self.storage) {
            Err(error @ (Error::Corrupt { .. } | Error::Format { .. })) => found(all(error)),
            Err(e) => return Err(e),
            Ok((s, _)) if s.uuid != self.superblock.uuid => found(all(corrupt(0, "another memory stands in this file now".into()))),
            Ok(_) => {}
        }
        let mut block = 0;
        if !progress(2 * PAGE) {
            return Err(Error::Cancelled);
        }
        let walked = self.walk(&mut |link| {
            let blocks = block..block + if link.header.token_count > 0 { link.layout.blocks } else { 0 };
            block = blocks.end;
            if let Some(PageDamage { error, .. }) = link.damage {
                found(Damage { blocks, layer_slot: None, error });
            }
            if progress(2 * PAGE) { Ok(()) } else { Err(Error::Cancelled) }
        });
        match walked {
            // Nothing behind it can be reached any more.
            Err(error @ (Error::Corrupt { .. } | Error::Format { .. })) => {
                found(Damage { blocks: block..self.blocks(), layer_slot: None, error });
            }
            walked => walked?,
        }
        Ok(())
    }

    /// Hands every commit of the chain to `each`, page by page, around what is damaged. An error if it does not arrive at the tip.
    pub(super) fn walk(&self, each: &mut dyn FnMut(Link) -> Result<()>) -> Result<()> {
        let (mut tip, mut trail, len) = (Tip::start(&self.superblock.uuid), Trail::default(), file_len(&*self.storage)?);
        while tip.sequence < self.tip.sequence {
            let link = self.chain().next_to(&tip, &trail, &self.tip, len)?;
            link.extend(&mut trail);
            tip = link.tip;
            each(link)?;
        }
        if tip == self.tip {
            Ok(())
        } else {
            Err(corrupt(tip.end, format!("the chain arrives at {tip:?}, not at {:?} any more", self.tip)))
        }
    }

    /// For readers beside a writer: takes up what has become durable since. True if there is more than before.
    pub fn refresh(&mut self) -> Result<bool> {
        if self.access == Access::Write {
            return Ok(false);
        }
        let (superblock, slot) = read_superblocks(&*self.storage)?;
        let same = (superblock.uuid, &superblock.geometry, &superblock.fingerprint);
        if same != (self.superblock.uuid, &self.superblock.geometry, &self.superblock.fingerprint) {
            return Err(corrupt(0, "another memory stands in this file now".into()));
        }
        not_truncated(&*self.storage, self.tip.end)?;
        let before = self.tip.sequence;
        let durable = superblock.durable;
        (self.superblock, self.slot) = (superblock, slot);
        if durable.sequence >= before {
            self.follow(&durable, false)?;
        }
        Ok(self.tip.sequence > before)
    }

    /// For readers: follows the chain anew, to the last commit with at most `tokens` tokens in all.
    pub fn rewind(&mut self, tokens: u64) -> Result<()> {
        let (all, len, durable) = (self.tip, file_len(&*self.storage)?, self.superblock.durable);
        self.back_at(Tip::start(&self.superblock.uuid));
        let followed = (|| {
            // What is forgotten stays forgotten, whenever that was said.
            if self.stride_to(&all, tokens)? {
                return Ok(());
            }
            while self.tip.sequence < all.sequence {
                let link = self.chain().next_to(&self.tip, &self.trail, &durable, len)?;
                if link.tip.tokens > tokens {
                    break;
                }
                self.reserve_segment()?;
                self.take_in(link);
            }
            Ok(())
        })();
        self.maps = Maps::default();
        self.maps.extend(FIRST_SEGMENT, self.tip.end - FIRST_SEGMENT);
        followed
    }
}
