//! The compute team: one fork per forward pass, cheap parallel loops inside it.
//!
//! A [`Team`] owns a rayon pool. [`Team::pass`] lends its workers to one forward pass; inside, [`Pass::for_each`] and its
//! kin cut an operator into chunks which the caller and the workers claim from one atomic counter. Chunks are claimed, not
//! assigned, so a slow or late core costs at most one chunk, and the caller never waits for a worker that has not started.
//! A waiting worker spins for a bounded time, then yields, so that an oversubscribed machine still makes progress.
//!
//! Invariants:
//! - A loop returns only when every chunk of it has finished; closures may therefore borrow from the caller's stack.
//! - What a chunk computes does not depend on who runs it or on the number of threads: same bits for any team.
#![allow(unsafe_code)]

mod affinity;

use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Most threads a team may have.
pub const THREADS_MAX: usize = 512;

/// How often a waiting thread looks again before it gives its time slice away.
const SPINS_BEFORE_YIELD: u32 = 4000;

/// The number of threads to use when nobody says: one for each big core that the process may run on (its affinity mask and its
/// share of the machine), at most 16.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    affinity::big_cores().map_or(allowed, |cores| cores.min(allowed)).min(16)
}

/// A pool of threads for forward passes.
pub struct Team {
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Team {
    /// A team of `threads` in all, the caller of [`Team::pass`] included.
    pub fn new(threads: usize) -> Result<Team> {
        if !(1..=THREADS_MAX).contains(&threads) {
            return Err(Error::argument("threads", format!("1 to {THREADS_MAX}"), threads));
        }
        let pool = if threads == 1 {
            None
        } else {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads - 1)
                .thread_name(|i| format!("loci-{i}"))
                .build()
                .map_err(|e| Error::Io { what: "start compute threads".into(), source: std::io::Error::other(e) })?;
            Some(pool)
        };
        Ok(Team { pool, threads })
    }

    /// Threads in all.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `f` with the team's workers at its disposal. One pass at a time is the intended use; a second one from another
    /// thread is correct but shares the workers.
    pub fn pass<R>(&self, f: impl FnOnce(&Pass<'_>) -> R) -> R {
        let shared = Shared::new();
        let Some(pool) = &self.pool else {
            return f(&Pass { shared: &shared, threads: 1, issuer: PhantomData });
        };
        pool.in_place_scope(|scope| {
            for _ in 1..self.threads {
                scope.spawn(|_| shared.work());
            }
            // Lets the workers go however `f` ends: the scope waits for them.
            let _release = Release(&shared);
            f(&Pass { shared: &shared, threads: self.threads, issuer: PhantomData })
        })
    }
}

struct Release<'a>(&'a Shared);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
    }
}

/// The job at hand. `state` holds (epoch << 32 | chunks not yet claimed); a claim is a compare-and-swap on both, so it can
/// only succeed while that very job is open, and while it is open the caller does not touch `call` and `data`.
struct Shared {
    state: AtomicU64,
    chunks: AtomicU32,
    done: AtomicU32,
    call: AtomicPtr<()>,
    data: AtomicUsize,
    panicked: AtomicBool,
    over: AtomicBool,
}

type Call = unsafe fn(data: usize, chunk: usize);

/// # Safety
/// `data` must be the address of a live `F`.
unsafe fn call_chunk<F: Fn(usize) + Sync>(data: usize, chunk: usize) {
    // SAFETY: the caller of `for_each` keeps `F` alive until every chunk is done, and `F: Sync`.
    let f = unsafe { &*(data as *const F) };
    f(chunk)
}

impl Shared {
    fn new() -> Shared {
        Shared {
            state: AtomicU64::new(0),
            chunks: AtomicU32::new(0),
            done: AtomicU32::new(0),
            call: AtomicPtr::new(std::ptr::null_mut()),
            data: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Claims and runs one chunk of the open job; false if there is none to claim.
    fn run_one(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let left = state as u32;
        if left == 0 {
            return false;
        }
        if self.state.compare_exchange_weak(state, state - 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return true;
        }
        let chunk = self.chunks.load(Ordering::Relaxed) - left;
        let data = self.data.load(Ordering::Relaxed);
        let call = self.call.load(Ordering::Relaxed);
        // SAFETY: `call` was made from a `Call` by `for_each`, which published it before opening this job (our claim
        // succeeded, so the job is open and the fields are its own) and waits for this chunk before it returns.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe {
            let call: Call = std::mem::transmute::<*mut (), Call>(call);
            call(data, chunk as usize)
        }));
        if result.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    /// A worker's life during a pass.
    fn work(&self) {
        let mut spins = 0;
        while !self.over.load(Ordering::Acquire) {
            if self.run_one() {
                spins = 0;
            } else {
                wait(&mut spins);
            }
        }
    }
}

fn wait(spins: &mut u32) {
    *spins += 1;
    if *spins < SPINS_BEFORE_YIELD {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// The team during one forward pass. Loops are issued one after the other by the thread that owns the pass.
pub struct Pass<'a> {
    shared: &'a Shared,
    threads: usize,
    /// Not `Sync`: the protocol of `Shared` expects one issuer, so a chunk cannot get hold of its own pass.
    issuer: PhantomData<std::cell::Cell<()>>,
}

impl Pass<'_> {
    /// Threads in all.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f(0) ... f(chunks - 1)`, each once, in any order and on any thread of the team; returns when all are done.
    ///
    /// # Panics
    /// If `f` panicked, after all chunks have ended.
    pub fn for_each<F: Fn(usize) + Sync>(&self, chunks: usize, f: F) {
        if self.threads == 1 || chunks <= 1 {
            (0..chunks).for_each(f);
            return;
        }
        let s = self.shared;
        debug_assert_eq!(s.state.load(Ordering::Relaxed) as u32, 0, "a loop inside a loop");
        let n = u32::try_from(chunks).expect("fewer than 2^32 chunks");
        s.chunks.store(n, Ordering::Relaxed);
        s.done.store(0, Ordering::Relaxed);
        s.data.store(&raw const f as usize, Ordering::Relaxed);
        s.call.store(call_chunk::<F> as Call as *mut (), Ordering::Relaxed);
        let epoch = (s.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        s.state.store(epoch << 32 | u64::from(n), Ordering::Release);
        while s.run_one() {}
        let mut spins = 0;
        while s.done.load(Ordering::Acquire) != n {
            wait(&mut spins);
        }
        if s.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a compute thread panicked"));
        }
    }

    /// Cuts `0..len` into ranges of at most `step` and calls `f` on each.
    pub fn for_each_range<F: Fn(Range<usize>) + Sync>(&self, len: usize, step: usize, f: F) {
        let step = step.max(1);
        self.for_each(len.div_ceil(step), |i| f(i * step..len.min((i + 1) * step)));
    }

    /// Cuts `data` into pieces of `step` elements (the last may be shorter) and calls `f(index of the piece, piece)`.
    pub fn for_each_chunk<T: Send, F: Fn(usize, &mut [T]) + Sync>(&self, data: &mut [T], step: usize, f: F) {
        let step = step.max(1);
        let len = data.len();
        let base = SharedMut(data.as_mut_ptr(), PhantomData);
        self.for_each_range(len, step, |range| {
            // SAFETY: ranges of one loop are disjoint and inside `data`, which is borrowed mutably until all are done.
            let piece = unsafe { base.slice(range.clone()) };
            f(range.start / step, piece);
        });
    }

    /// Cuts the columns of row-major matrices (data, width), one after the other, into bands of whole units and calls
    /// `f(matrix, columns, band)` on each. The first bands are large and the last small, so that the threads end together.
    ///
    /// # Panics
    /// If a matrix is not whole rows.
    pub fn for_each_band<const N: usize, F>(&self, matrices: [(&mut [f32], usize); N], grain: Grain, f: F)
    where
        F: Fn(usize, Range<usize>, &mut Band<'_>) + Sync,
    {
        let unit = grain.unit.max(1);
        let matrices = matrices.map(|(data, width)| {
            assert!(width > 0 && data.len().is_multiple_of(width), "whole rows");
            (data.len() / width, width, SharedMut(data.as_mut_ptr(), PhantomData))
        });
        let total = matrices.iter().map(|(_, width, _)| width.div_ceil(unit)).sum();
        let cut = Cut { total, most: grain.most.max(1), least: grain.least.max(1), sharers: self.threads + 1 };
        let alone = self.threads == 1;
        self.for_each(if alone { 1 } else { cut.pieces() }, |i| {
            let piece = if alone { 0..total } else { cut.piece(i) };
            let mut before = 0;
            for (m, (rows, width, base)) in matrices.iter().enumerate() {
                let units = width.div_ceil(unit);
                let (from, to) = (piece.start.max(before) - before, piece.end.min(before + units).saturating_sub(before));
                // A piece of one matrix is cut again, so that no band is wider than was asked for.
                for from in (from..to).step_by(cut.most) {
                    let columns = from * unit..((from + cut.most).min(to) * unit).min(*width);
                    f(m, columns.clone(), &mut Band { base, width: *width, rows: *rows, columns });
                }
                before += units;
            }
        });
    }
}

/// How finely [`Pass::for_each_band`] cuts.
#[derive(Clone, Copy, Debug)]
pub struct Grain {
    /// Columns that stay together.
    pub unit: usize,
    /// Most units of a piece.
    pub most: usize,
    /// Least units of a piece (but for the last one).
    pub least: usize,
}

/// `total` units cut so that every piece is one `sharers`th of what is left, but for the bounds.
#[derive(Clone, Copy, Debug)]
struct Cut {
    total: usize,
    most: usize,
    least: usize,
    sharers: usize,
}

impl Cut {
    /// How many pieces of `most` come first.
    fn full(self) -> usize {
        let bound = self.most.saturating_mul(self.sharers);
        if self.total >= bound { (self.total - bound) / self.most + 1 } else { 0 }
    }

    fn next(self, left: usize) -> usize {
        (left / self.sharers).clamp(self.least.min(self.most), self.most).min(left)
    }

    fn pieces(self) -> usize {
        let full = self.full();
        let mut left = self.total - full * self.most;
        let mut count = full;
        while left > 0 {
            left -= self.next(left);
            count += 1;
        }
        count
    }

    fn piece(self, i: usize) -> Range<usize> {
        let full = self.full();
        if i < full {
            return i * self.most..(i + 1) * self.most;
        }
        let mut at = full * self.most;
        for _ in full..i {
            at += self.next(self.total - at);
        }
        at..at + self.next(self.total - at)
    }
}

/// A mutable slice that several threads write at disjoint places.
struct SharedMut<'a, T>(*mut T, PhantomData<&'a mut [T]>);

// SAFETY: only handed out as disjoint slices (the callers' obligation in `slice`).
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<T> SharedMut<'_, T> {
    /// # Safety
    /// `range` must lie inside the slice and overlap no other range that is in use.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        // SAFETY: by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Some columns of every row of a matrix, exclusively.
pub struct Band<'a> {
    base: &'a SharedMut<'a, f32>,
    width: usize,
    rows: usize,
    columns: Range<usize>,
}

impl Band<'_> {
    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// This band's part of row `row`.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let start = row * self.width;
        // SAFETY: inside the matrix (checked), and bands of one loop have disjoint columns; `&mut self` keeps two rows of one
        // band from being held at once.
        unsafe { self.base.slice(start + self.columns.start..start + self.columns.end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_whatever_the_team() {
        for threads in [1, 2, 3, 7] {
            let team = Team::new(threads).unwrap();
            for chunks in [0usize, 1, 2, 5, 1000] {
                let hits: Vec<AtomicU32> = (0..chunks).map(|_| AtomicU32::new(0)).collect();
                team.pass(|p| {
                    for _ in 0..50 {
                        p.for_each(chunks, |i| {
                            hits[i].fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 50), "{threads} threads, {chunks} chunks");
            }
        }
    }

    #[test]
    fn chunks_and_bands_cover_the_data_disjointly() {
        let team = Team::new(3).unwrap();
        let mut data = vec![0u32; 1003];
        team.pass(|p| p.for_each_chunk(&mut data, 10, |i, piece| piece.iter_mut().for_each(|v| *v += i as u32 + 1)));
        assert!(data.iter().enumerate().all(|(i, v)| *v == i as u32 / 10 + 1));
        let mut m = vec![0f32; 5 * 17];
        team.pass(|p| {
            p.for_each_band([(&mut m, 17)], Grain { unit: 4, most: 2, least: 1 }, |_, columns, band| {
                for r in 0..band.rows() {
                    for (v, c) in band.row(r).iter_mut().zip(columns.clone()) {
                        *v += (r * 17 + c) as f32;
                    }
                }
            })
        });
        assert!(m.iter().enumerate().all(|(i, v)| *v == i as f32));
    }

    #[test]
    fn bands_of_several_matrices_cover_each_once() {
        for threads in [1, 2, 3, 5] {
            let team = Team::new(threads).unwrap();
            for (most, least) in [(1, 1), (4, 1), (4, 2), (100, 3)] {
                let (mut a, mut b, mut c) = (vec![0f32; 3 * 100], vec![0f32; 2 * 7], vec![0f32; 64]);
                team.pass(|p| {
                    let matrices = [(&mut a[..], 100), (&mut b[..], 7), (&mut c[..], 64)];
                    p.for_each_band(matrices, Grain { unit: 8, most, least }, |m, columns, band| {
                        assert!(columns.len() <= 8 * most && columns.start.is_multiple_of(8));
                        for r in 0..band.rows() {
                            band.row(r).iter_mut().for_each(|v| *v += m as f32 + 1.0);
                        }
                    })
                });
                assert!(a.iter().all(|v| *v == 1.0) && b.iter().all(|v| *v == 2.0) && c.iter().all(|v| *v == 3.0), "{threads} {most}");
            }
        }
    }

    #[test]
    fn pieces_are_the_whole_in_order_and_shrink() {
        for total in [0, 1, 5, 60, 3072] {
            for (most, least, sharers) in [(1, 1, 3), (4, 2, 3), (128, 1, 2), (9, 20, 5)] {
                let cut = Cut { total, most, least, sharers };
                let (mut at, mut last) = (0, usize::MAX);
                for i in 0..cut.pieces() {
                    let piece = cut.piece(i);
                    assert!(piece.start == at && !piece.is_empty() && piece.len() <= most && piece.len() <= last, "{cut:?} {i}: {piece:?}");
                    (at, last) = (piece.end, piece.len());
                }
                assert_eq!(at, total, "{cut:?}");
            }
        }
    }

    #[test]
    fn a_panic_in_a_chunk_reaches_the_caller_and_leaves_the_team_usable() {
        let team = Team::new(2).unwrap();
        let r = catch_unwind(AssertUnwindSafe(|| team.pass(|p| p.for_each(100, |i| assert!(i != 37)))));
        assert!(r.is_err());
        let n = AtomicU32::new(0);
        team.pass(|p| {
            p.for_each(100, |_| {
                n.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(n.load(Ordering::Relaxed), 100);
    }
}
