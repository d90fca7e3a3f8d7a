//! Whole documents: begun, gone on with after a crash, finished, forgotten.
//!
//! Invariant: a document that was begun is in the token log before anything is computed of it, and leaves the log only when all of it is
//! committed.

use super::Memory;
use super::log::{TokenLog, Unfinished};
use super::records::TokenRanges;
use crate::bytes::Storage;
use crate::error::{Error, Result};

impl Memory {
    /// Forgets what was remembered under this label: its blocks are not read any more, durably, and [`Memory::compact`] leaves them
    /// out. A block that also holds tokens of another source goes with them; documents that a session reads into a file do not share
    /// blocks. Commits what is pending first. Returns the number of tokens.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if sources are damaged, so that tokens of this label may be left; all that could be found are forgotten then.
    pub fn forget(&mut self, label: &str) -> Result<u64> {
        self.commit()?;
        let mut ranges = TokenRanges::default();
        let (sources, _) = self.sources_and_gaps()?;
        sources.into_iter().filter(|s| s.label == label).for_each(|s| ranges.insert(s.tokens));
        let before = self.forgotten().tokens();
        match &mut self.store {
            Some(store) if ranges.tokens() > 0 => store.forget(&ranges.iter().cloned().collect::<Vec<_>>())?,
            Some(store) => store.writable()?,
            None => ranges.iter().for_each(|r| self.forgotten.insert(r.clone())),
        }
        match self.sources_and_gaps()?.1.pop() {
            Some((_, damage)) => Err(damage),
            None => Ok(self.forgotten().tokens() - before),
        }
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
    /// [`Error::Io`], for a full disk too; [`Error::OutOfMemory`].
    pub fn begin(&mut self, label: Option<&str>, tokens: &[u32]) -> Result<bool> {
        if self.log.as_ref().is_none_or(|log| log.active) {
            return Ok(false);
        }
        self.commit()?;
        let first_token = self.len();
        let (Some(log), Some(store)) = (&mut self.log, &mut self.store) else { return Ok(false) };
        store.writable()?;
        let row = store.form().extent_bytes(&self.geometry, self.geometry.block_len()).div_ceil(self.geometry.block_len());
        store.reserve((row * self.geometry.layer_count()) as u64 * tokens.len() as u64)?;
        log.write(store.uuid(), label, tokens, first_token)?;
        log.active = true;
        Ok(true)
    }

    /// The document of [`Memory::unfinished`], and how many of its tokens are there; [`Memory::go_on`] is to be called next. What is
    /// pending is committed first: where a full disk has interrupted it, that is more of the document.
    ///
    /// # Errors
    /// [`Error::Busy`] while this handle is reading it; as [`Memory::commit`].
    pub fn interrupted(&mut self) -> Result<Option<(Unfinished, usize)>> {
        if self.log.as_ref().is_some_and(|log| log.active) {
            return Err(Error::Busy("a document is being read into this memory".into()));
        }
        self.commit()?;
        let len = self.committed_len();
        Ok(self.unfinished()?.map(|document| {
            let done = (len - document.first_token) as usize;
            (document, done)
        }))
    }

    /// Goes on with the document that [`Memory::interrupted`] has given.
    pub fn go_on(&mut self) {
        if let Some(log) = &mut self.log {
            log.active = true;
        }
    }

    /// Ends the document that the log has: commits what is pending, then clears the log. If the commit fails, the log stays, and the
    /// document can be resumed; another one can be begun all the same, which gives this one up.
    pub fn finish(&mut self) -> Result<()> {
        let Some(log) = &mut self.log else { return self.commit() };
        log.active = false;
        let committed = self.commit();
        // What was reserved for a document that was given up would stay the file's.
        if let Some(store) = &mut self.store {
            store.release();
        }
        committed?;
        self.log.as_mut().map_or(Ok(()), TokenLog::clear)
    }

    /// The document that a crash has interrupted, if any, of which [`Memory::len`] less its first token are there. Also while it is
    /// being read by this handle.
    pub fn unfinished(&self) -> Result<Option<Unfinished>> {
        let (Some(log), Some(store)) = (&self.log, &self.store) else { return Ok(None) };
        let Some(document) = log.read(store.uuid())? else { return Ok(None) };
        let (len, count) = (store.tip().tokens, document.tokens.len() as u64);
        let Some(done) = len.checked_sub(document.first_token).filter(|done| *done < count) else { return Ok(None) };
        // What is there must be its beginning, as far as it can be read; otherwise the log is left over from another time.
        let (ids, gaps) = self.tokens_and_gaps(document.first_token..len)?;
        let unknown = |i: usize| gaps.iter().any(|gap| gap.contains(&(document.first_token + i as u64)));
        let is_its_own = (0..done as usize).all(|i| ids[i] == document.tokens[i] || unknown(i));
        Ok(is_its_own.then_some(document))
    }
}
