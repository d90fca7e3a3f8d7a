//! The allocator of the C library: the system's, with a reserve for the moment in which the system has nothing left.
//!
//! Rust ends the process when an allocation fails that nobody asked about: a string of an error, a node of a list. What is large in loci
//! asks first and answers `LOCI_NOMEM`; what is small comes from this reserve then, so that the call can end in good order. As soon as a
//! part of the reserve is in use [`engine::error::memory_is_short`] says so: new calls are refused, and loops over many small things give
//! up. It is free again when what lies in it was freed.
//!
//! Invariants: the reserve is part of the library's zeroed data, of which a page costs nothing before it is touched; a granule belongs to
//! one allocation while its bit is set; bits change under the lock only; nothing here allocates, waits for anything else, or panics.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What one allocation takes at least, and what it is aligned to.
const GRANULE: usize = 64;
const GRANULES: usize = 64 * 256;
/// Larger ones are refused: they would ask if they may.
const LARGEST: usize = 128 << 10;
/// In use above this much, memory is short. An ordinary call takes less than what remains.
const SHORT_ABOVE: usize = GRANULES / 8;

#[global_allocator]
static ALLOCATOR: Reserve = Reserve { taken: Taken::new(Some(engine::error::set_memory_is_short)) };

// By itself, so that it is all zeros: beside the allocator's function pointer it would be data, and a megabyte of the library's file.
static BYTES: Bytes = Bytes(UnsafeCell::new([0; GRANULE * GRANULES]));

#[repr(align(4096))]
struct Bytes(UnsafeCell<[u8; GRANULE * GRANULES]>);

// SAFETY: nothing here reads or writes the bytes; each part of them belongs to whoever got it from `alloc`, until it is freed.
unsafe impl Sync for Bytes {}

struct Reserve {
    taken: Taken,
}

/// Which granules are taken.
struct Taken {
    locked: AtomicBool,
    /// Told, under the lock, whether memory is short.
    tell: Option<fn(bool)>,
    /// Read and written under the lock.
    bits: [AtomicU64; GRANULES / 64],
}

impl Taken {
    const fn new(tell: Option<fn(bool)>) -> Taken {
        Taken { locked: AtomicBool::new(false), tell, bits: [const { AtomicU64::new(0) }; GRANULES / 64] }
    }

    fn with_lock<T>(&self, body: impl FnOnce() -> T) -> T {
        while self.locked.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            spin_loop();
        }
        let result = body();
        if let Some(tell) = self.tell {
            tell(self.count() > SHORT_ABOVE);
        }
        self.locked.store(false, Ordering::Release);
        result
    }

    fn count(&self) -> usize {
        self.bits.iter().map(|b| b.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    fn is_taken(&self, granule: usize) -> bool {
        self.bits[granule / 64].load(Ordering::Relaxed) & 1 << (granule % 64) != 0
    }

    fn flip(&self, first: usize, count: usize) {
        (first..first + count).for_each(|g| _ = self.bits[g / 64].fetch_xor(1 << (g % 64), Ordering::Relaxed));
    }

    /// Takes so many granules in a row, the first of them a multiple of `align`.
    fn take(&self, count: usize, align: usize) -> Option<usize> {
        self.with_lock(|| {
            let mut first = 0;
            while first + count <= GRANULES {
                match (first..first + count).rev().find(|g| self.is_taken(*g)) {
                    Some(taken) => first = (taken + 1).next_multiple_of(align),
                    None => {
                        self.flip(first, count);
                        return Some(first);
                    }
                }
            }
            None
        })
    }

    fn give_back(&self, first: usize, count: usize) {
        self.with_lock(|| self.flip(first, count));
    }
}

fn granules(layout: Layout) -> usize {
    layout.size().div_ceil(GRANULE)
}

impl Reserve {
    fn take(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST || layout.align() > align_of::<Bytes>() {
            return null_mut();
        }
        match self.taken.take(granules(layout), layout.align().div_ceil(GRANULE)) {
            Some(first) => BYTES.0.get().cast::<u8>().wrapping_add(first * GRANULE),
            None => null_mut(),
        }
    }

    /// The first granule of what lies in the reserve.
    fn granule_of(&self, at: *mut u8) -> Option<usize> {
        let from = (at as usize).wrapping_sub(BYTES.0.get() as usize);
        (from < GRANULE * GRANULES).then_some(from / GRANULE)
    }
}

// Never inlined: there are thousands of places that allocate, and in each of them it would be larger than the call.
//
// SAFETY: what `System` hands out goes back to `System`, told apart by its address; the reserve hands out disjoint ranges of at least the
// size and alignment that were asked for, and nothing unwinds.
unsafe impl GlobalAlloc for Reserve {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout, as it came.
        let at = unsafe { System.alloc(layout) };
        if at.is_null() { self.take(layout) } else { at }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout, as it came.
        let at = unsafe { System.alloc_zeroed(layout) };
        if !at.is_null() {
            return at;
        }
        let at = self.take(layout);
        if !at.is_null() {
            // SAFETY: `take` gave so many bytes.
            unsafe { at.write_bytes(0, layout.size()) };
        }
        at
    }

    #[inline(never)]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match self.granule_of(at) {
            Some(first) => self.taken.give_back(first, granules(layout)),
            // SAFETY: not of the reserve, so of the system, with this layout.
            None => unsafe { System.dealloc(at, layout) },
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if self.granule_of(at).is_none() {
            // SAFETY: of the system, with this layout; the new size is the caller's care.
            let moved = unsafe { System.realloc(at, layout, new_size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: the caller's care: the alignment is that of a layout, and the new size fits it.
        let moved = unsafe { self.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both are at least this long and do not overlap, and the old one is given back with its own layout.
            unsafe {
                at.copy_to_nonoverlapping(moved, layout.size().min(new_size));
                self.dealloc(at, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_hands_out_each_granule_once() {
        let taken = Taken::new(None);
        let mut held = Vec::new();
        for i in 0.. {
            let (count, align) = (1 + i % 7, 1 << (i % 4));
            let Some(first) = taken.take(count, align) else { break };
            assert_eq!(first % align, 0);
            assert!(held.iter().all(|(f, c)| first + count <= *f || f + c <= first), "{first} is handed out twice");
            held.push((first, count));
        }
        assert!(held.iter().map(|(_, c)| c).sum::<usize>() > GRANULES / 2);
        held.iter().for_each(|(first, count)| taken.give_back(*first, *count));
        assert_eq!(taken.take(GRANULES, 1), Some(0), "all of it comes back");
        assert_eq!(taken.take(1, 1), None);
        taken.give_back(0, GRANULES);
        assert_eq!(taken.count(), 0);
    }
}
