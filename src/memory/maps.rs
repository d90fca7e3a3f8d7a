//! The committed part of a memory file as a few read-only maps, made when they are first touched.
//!
//! Each commit adds a range. Neighbours are joined while the newer one has grown as large as the older one, so that a million
//! small commits are some twenty maps (systems limit their number) and a large map is seldom mapped anew.

use super::format::FILE;
use super::segment::not_truncated;
use crate::bytes::{Map, Storage};
use crate::error::{Error, Result};
use std::sync::OnceLock;

struct Range {
    offset: u64,
    len: u64,
    map: OnceLock<Map>,
}

/// Consecutive ranges of the file, from the first segment to the end of the last commit.
#[derive(Default)]
pub struct Maps {
    ranges: Vec<Range>,
}

impl Maps {
    /// Adds the `len` bytes from `offset`, which is where the last range ended; no later read crosses that border.
    pub fn extend(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let mut new = Range { offset, len, map: OnceLock::new() };
        while let Some(last) = self.ranges.pop_if(|last| last.len <= new.len) {
            new = Range { offset: last.offset, len: last.len + new.len, map: OnceLock::new() };
        }
        self.ranges.push(new);
    }

    fn range(&self, offset: u64) -> Option<&Range> {
        self.ranges.get(self.ranges.partition_point(|r| r.offset <= offset).checked_sub(1)?)
    }

    /// The bytes `offset..offset + len` of the file.
    pub fn bytes(&self, storage: &dyn Storage, offset: u64, len: u64) -> Result<&[u8]> {
        let outside = || Error::Corrupt { file: FILE, offset, what: format!("{len} bytes reach outside the committed data") };
        let range = self.range(offset).ok_or_else(outside)?;
        let map = match range.map.get() {
            Some(map) => map,
            None => {
                not_truncated(storage, range.offset + range.len)?;
                let what = || format!("map {} bytes of the memory file at offset {}", range.len, range.offset);
                let bytes =
                    usize::try_from(range.len).map_err(|_| Error::Unsupported(format!("{}: it does not fit the address space", what())))?;
                let map = storage.map(range.offset, bytes).map_err(|source| Error::Io { what: what(), source })?;
                range.map.get_or_init(|| map)
            }
        };
        let start = (offset - range.offset) as usize;
        let bytes = usize::try_from(len).ok().and_then(|len| map.get(start..start.checked_add(len)?)).ok_or_else(outside)?;
        if map.may_have_lost(&(start..start + bytes.len())) {
            let what = "a page here could not be read: the disk has an error, or the file was cut short";
            return Err(Error::Corrupt { file: FILE, offset, what: what.into() });
        }
        Ok(bytes)
    }

    /// Where in the file the first page lies that could not be had.
    pub fn first_lost(&self) -> Option<u64> {
        self.ranges.iter().find_map(|r| Some(r.offset + r.map.get()?.first_lost()? as u64))
    }

    /// Times that a page of the maps that there are could not be had.
    pub fn lost_pages(&self) -> u64 {
        self.ranges.iter().filter_map(|r| r.map.get()).map(Map::lost_pages).sum()
    }

    /// Asks the system to read these bytes ahead; only a hint, and only for what is mapped.
    pub fn will_need(&self, offset: u64, len: u64) {
        if let Some(range) = self.range(offset)
            && let Some(map) = range.map.get()
        {
            let start = (offset - range.offset) as usize;
            map.will_need(start..start.saturating_add(len as usize));
        }
    }

    /// Bytes mapped at present, and in how many maps.
    pub fn mapped(&self) -> (u64, usize) {
        self.ranges.iter().filter(|r| r.map.get().is_some()).fold((0, 0), |(bytes, n), r| (bytes + r.len, n + 1))
    }
}
