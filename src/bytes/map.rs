//! Read-only memory maps. The only place where a file becomes `&[u8]`.
//!
//! Invariant: the mapped file must not be truncated while the map lives (the kernel would answer an access with SIGBUS).
//! Model files are opened read-only and expected to be left alone, as every mmap-based runtime does; memory files are
//! append-only and their writer never shrinks them below the committed length, and as they are long and live on what a phone or a
//! board has for a disk, their maps are guarded ([`Map::guarded`]).
#![allow(unsafe_code)]

use super::guard::Guard;
use crate::bytes::AlignedBytes;
use crate::error::{Error, Result};
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

enum Backing {
    Mapped(memmap2::Mmap),
    Owned(Box<[u8]>),
    Aligned(AlignedBytes),
}

/// A whole file, or a part of one, mapped read-only; or bytes in memory under the same face.
pub struct Map {
    /// Before the map in the order of dropping: it must not outlive what it watches.
    guard: Option<Guard>,
    backing: Backing,
}

impl Map {
    /// Maps the whole file at `path`.
    pub fn open(path: &Path) -> Result<Map> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let len = file.metadata().map_err(|e| Error::io("stat", path, e))?.len();
        Map::of_file(&file, 0, len).map_err(|e| Error::io("map", path, e))
    }

    /// Maps `len` bytes from `offset` of an open file (the descriptor may be closed afterwards).
    pub fn of_file(file: &File, offset: u64, len: u64) -> std::io::Result<Map> {
        let Some(len) = usize::try_from(len).ok().filter(|len| *len <= isize::MAX as usize) else {
            return Err(std::io::Error::other(format!("{len} bytes do not fit the address space of a {}-bit program", usize::BITS)));
        };
        if len == 0 {
            return Ok(Map::owned(Vec::new()));
        }
        let end = file.metadata()?.len();
        if offset.checked_add(len as u64).is_none_or(|e| e > end) {
            return Err(std::io::Error::other(format!("range {offset}+{len} reaches past the end of the file ({end} bytes)")));
        }
        // SAFETY: the map is private to this struct and only handed out as `&[u8]`; the module's invariant (the file is not
        // truncated while mapped) is the documented contract of opening a model or a memory.
        let map = unsafe { memmap2::MmapOptions::new().offset(offset).len(len).map(file)? };
        Ok(Map::of(Backing::Mapped(map)))
    }

    fn of(backing: Backing) -> Map {
        Map { guard: None, backing }
    }

    /// From now on a page that cannot be had (the file is cut short, the disk has an error) reads as zeros, and [`Map::may_have_lost`] says so,
    /// instead of ending the process, where the system allows that.
    pub fn guarded(mut self) -> Map {
        if self.guard.is_none() && self.is_file_backed() {
            let range = self.as_ptr_range();
            self.guard = Guard::new(range.start as usize..range.end as usize);
        }
        self
    }

    /// Times that a page of a guarded map could not be had so far.
    pub fn lost_pages(&self) -> u64 {
        self.guard.as_ref().map_or(0, Guard::lost_pages)
    }

    /// Where the first of those pages begins.
    pub fn first_lost(&self) -> Option<usize> {
        self.guard.as_ref().and_then(Guard::first_lost).map(|page| page.saturating_sub(self.as_ptr() as usize))
    }

    /// True if one of those pages may have been in `range`: what is read there may be zeros.
    pub fn may_have_lost(&self, range: &Range<usize>) -> bool {
        let start = self.as_ptr() as usize;
        self.guard.as_ref().is_some_and(|guard| guard.may_have_lost(&(start + range.start..start + range.end)))
    }

    /// Bytes that live in memory, for models and memories that come from a buffer.
    pub fn owned(bytes: Vec<u8>) -> Map {
        Map::of(Backing::Owned(bytes.into_boxed_slice()))
    }

    /// Bytes that live in memory and start at a multiple of 64, as those of a file do.
    pub fn aligned(bytes: AlignedBytes) -> Map {
        Map::of(Backing::Aligned(bytes))
    }

    /// Tells the kernel that this range will be read soon, so that the first touch finds it in memory. A hint only.
    pub fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        self.advise(range, memmap2::Advice::WillNeed);
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the kernel that only places here and there will be read of this range: nothing around them is brought in. A hint only.
    pub fn read_sparsely(&self, range: Range<usize>) {
        #[cfg(unix)]
        self.advise(range, memmap2::Advice::Random);
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the kernel that this range will be read whole, again and again: it is to bring it in, and map it, in huge pages where
    /// it can (file systems with large folios, as ext4 from Linux 6.16 on), which spares misses while weights stream by. A hint only.
    pub fn read_whole(&self, range: Range<usize>) {
        #[cfg(unix)]
        self.advise(range.clone(), memmap2::Advice::Normal);
        #[cfg(target_os = "linux")]
        self.advise(range.clone(), memmap2::Advice::HugePage);
        let _ = range;
    }

    /// Takes the pages of a file out of this process; the next access brings them back. A hint only.
    pub fn let_go(&self) {
        #[cfg(unix)]
        if let Backing::Mapped(map) = &self.backing {
            // SAFETY: the map is read-only and shared with the file: what is dropped comes back from there, unchanged.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    #[cfg(unix)]
    fn advise(&self, range: Range<usize>, advice: memmap2::Advice) {
        if let Backing::Mapped(map) = &self.backing
            && range.start < range.end
            && range.end <= map.len()
        {
            let _ = map.advise_range(advice, range.start, range.end - range.start);
        }
    }

    /// True if the bytes are pages of a file (reclaimable by the kernel), false if they are anonymous memory.
    pub fn is_file_backed(&self) -> bool {
        matches!(self.backing, Backing::Mapped(_))
    }
}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.backing {
            Backing::Mapped(map) => map,
            Backing::Owned(bytes) => bytes,
            Backing::Aligned(bytes) => bytes,
        }
    }
}

/// A range of a [`Map`] that keeps the map alive.
#[derive(Clone)]
pub struct MapSlice {
    map: Arc<Map>,
    range: Range<usize>,
}

impl MapSlice {
    /// The bytes `range` of `map`.
    ///
    /// # Panics
    /// If the range does not lie inside the map: callers check ranges that come from a file before they get here.
    pub fn new(map: Arc<Map>, range: Range<usize>) -> MapSlice {
        assert!(range.start <= range.end && range.end <= map.len(), "range {range:?} outside the map");
        MapSlice { map, range }
    }
}

impl Deref for MapSlice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hole, so that nothing is written; more than half of a 32-bit address space, and a range that no system can map.
    #[test]
    fn what_the_address_space_cannot_hold_is_refused_by_name() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 << 30).unwrap();
        let refused = |len: u64| Map::of_file(&file, 0, len).err().map(|e| e.to_string()).unwrap_or_default();
        let says = format!("do not fit the address space of a {}-bit program", usize::BITS);
        assert!(refused(1 << 63).contains(&says), "{}", refused(1 << 63));
        let fits = usize::BITS > 32;
        assert_eq!(refused(3 << 30).is_empty(), fits, "{}", refused(3 << 30));
        assert!(fits || (refused(3 << 30).contains(&says) && refused(5 << 30).contains(&says)));
        // Beyond the offsets that 32 bits can say.
        let end = Map::of_file(&file, (5 << 30) - 16, 16).unwrap();
        assert_eq!(&end[..], [0; 16]);
    }
}
