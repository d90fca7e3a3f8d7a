//! Whole documents: begun, gone on with after a crash, finished, forgotten.
//!
//! Invariant: a document that was begun is in the token log before anything is computed of it, and leaves the log only when all of it is
//! committed.

use super::Memory;
use super::log::{TokenLog, Unfinished};
use super::records::TokenRanges;
use crate::bytes::Storage;
use crate::error::Result;

impl Memory {
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
    /// [`Error::Io`](crate::error::Error::Io), for a full disk too.
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
}
