//! The compute team: one fork per forward pass, cheap parallel loops inside it.
//!
//! A [`Team`] owns a rayon pool. [`Team::pass`] lends its workers to one forward pass; inside, [`Pass::for_each`] and its
//! kin cut an operator into chunks. Every thread has a share of consecutive chunks, the same share of every loop, so that what it
//! wrote in one loop it finds in its own caches in the next; whoever has finished takes chunks from the end of another's share.
//! So a slow or late core costs at most one chunk, and the caller never waits for a worker that has not started. A waiting
//! worker spins for a bounded time, then yields, so that an oversubscribed machine still makes progress.
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

/// How often a waiting thread looks again before it gives its time slice away: some thirty microseconds, longer than what usually
/// lies between two loops. On a machine with more threads than cores the thread that is waited for needs this very core.
const SPINS_BEFORE_YIELD: u32 = 1500;

/// The number of threads to use when nobody says: one for each big core that the process may run on (its affinity mask and its
/// share of the machine), at most 16.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    affinity::big_cores().map_or(allowed, |cores| cores.min(allowed)).min(16)
}

/// More than what starting a thread takes from the allocator; its stack is the system's matter.
const THREAD_BYTES: usize = 256 << 10;

/// Starts a worker. The standard library takes some bytes for a thread from the system without asking, which would end the process where
/// there is nothing left: this asks first.
fn spawn(worker: rayon::ThreadBuilder) -> std::io::Result<()> {
    let builder = match worker.name() {
        Some(name) => std::thread::Builder::new().name(name.to_owned()),
        None => std::thread::Builder::new(),
    };
    Vec::<u8>::new().try_reserve_exact(THREAD_BYTES).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    builder.spawn(|| worker.run()).map(drop)
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
                .spawn_handler(spawn)
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
        let Some(pool) = &self.pool else { return alone(f) };
        let shared = Shared::new(self.threads);
        pool.in_place_scope(|scope| {
            for _ in 1..self.threads {
                // A worker has the same share in every pass.
                scope.spawn(|_| shared.work(rayon::current_thread_index().map_or(0, |i| i + 1)));
            }
            // Lets the workers go however `f` ends: the scope waits for them.
            let _release = Release(&shared);
            f(&Pass { shared: &shared, threads: self.threads, issuer: PhantomData })
        })
    }
}

/// Runs `f` on this thread, with nobody to help.
pub fn alone<R>(f: impl FnOnce(&Pass<'_>) -> R) -> R {
    f(&Pass { shared: &Shared::new(1), threads: 1, issuer: PhantomData })
}

struct Release<'a>(&'a Shared);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.job.over.store(true, Ordering::Release);
    }
}

/// The job at hand. A [`Share`] holds (epoch, first, end) of the chunks that nobody has claimed of one thread's part; a claim is a
/// compare-and-swap on all three, so it can only succeed while that very job is open, and while it is open the caller does not
/// touch `call`, `data` and `chunks`.
struct Shared {
    job: Job,
    /// Chunks done, told by each thread when it finds no more.
    done: Done,
    shares: Box<[Share]>,
}

/// What a worker reads to begin, in one cache line (or the pair that is fetched together).
#[repr(align(128))]
struct Job {
    epoch: AtomicU32,
    chunks: AtomicU32,
    call: AtomicPtr<()>,
    data: AtomicUsize,
    over: AtomicBool,
}

#[repr(align(128))]
struct Done {
    chunks: AtomicU32,
    panicked: AtomicBool,
}

/// epoch << 32 | first << 16 | end, both counted from the share's first chunk.
#[repr(align(128))]
struct Share(AtomicU64);

/// Most chunks of a share.
const SHARE_MAX: usize = u16::MAX as usize;

type Call = unsafe fn(data: usize, chunk: usize);

/// # Safety
/// `data` must be the address of a live `F`.
unsafe fn call_chunk<F: Fn(usize) + Sync>(data: usize, chunk: usize) {
    // SAFETY: the caller of `for_each` keeps `F` alive until every chunk is done, and `F: Sync`.
    let f = unsafe { &*(data as *const F) };
    f(chunk)
}

impl Shared {
    fn new(threads: usize) -> Shared {
        Shared {
            job: Job {
                epoch: AtomicU32::new(0),
                chunks: AtomicU32::new(0),
                call: AtomicPtr::new(std::ptr::null_mut()),
                data: AtomicUsize::new(0),
                over: AtomicBool::new(false),
            },
            done: Done { chunks: AtomicU32::new(0), panicked: AtomicBool::new(false) },
            shares: (0..if threads == 1 { 0 } else { threads }).map(|_| Share(AtomicU64::new(0))).collect(),
        }
    }

    /// The first chunk of share `i`.
    fn start(&self, i: usize, chunks: usize) -> usize {
        i * chunks / self.shares.len()
    }

    /// Opens a job of `chunks` chunks.
    fn open(&self, chunks: usize, call: Call, data: usize) {
        let epoch = self.job.epoch.load(Ordering::Relaxed).wrapping_add(1);
        self.done.chunks.store(0, Ordering::Relaxed);
        self.job.chunks.store(chunks as u32, Ordering::Relaxed);
        self.job.data.store(data, Ordering::Relaxed);
        self.job.call.store(call as *mut (), Ordering::Relaxed);
        for (i, share) in self.shares.iter().enumerate() {
            let len = self.start(i + 1, chunks) - self.start(i, chunks);
            share.0.store(u64::from(epoch) << 32 | len as u64, Ordering::Release);
        }
        self.job.epoch.store(epoch, Ordering::Release);
    }

    /// Claims the first chunk of one's own share, or the last of another's.
    fn claim(&self, share: usize, own: bool) -> Option<usize> {
        let state = &self.shares[share].0;
        let mut now = state.load(Ordering::Acquire);
        loop {
            let (first, end) = (now >> 16 & 0xffff, now & 0xffff);
            if first >= end {
                return None;
            }
            let next = if own { now + (1 << 16) } else { now - 1 };
            match state.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let chunks = self.job.chunks.load(Ordering::Relaxed) as usize;
                    return Some(self.start(share, chunks) + if own { first } else { end - 1 } as usize);
                }
                Err(other) => now = other,
            }
        }
    }

    /// Runs chunks of the open job until there is none to claim, as thread `me`.
    fn run(&self, me: usize) {
        let threads = self.shares.len();
        let mut ran = 0;
        for i in 0..threads {
            while let Some(chunk) = self.claim((me + i) % threads, i == 0) {
                let data = self.job.data.load(Ordering::Relaxed);
                let call = self.job.call.load(Ordering::Relaxed);
                // SAFETY: `call` was made from a `Call` by `for_each`, which published it before opening this job (our claim
                // succeeded, so the job is open and the fields are its own) and waits for this chunk before it returns.
                let result = catch_unwind(AssertUnwindSafe(|| unsafe {
                    let call: Call = std::mem::transmute::<*mut (), Call>(call);
                    call(data, chunk)
                }));
                if result.is_err() {
                    self.done.panicked.store(true, Ordering::Relaxed);
                }
                ran += 1;
            }
        }
        // Until this is told the job stays open, so all that was run is of one job.
        if ran > 0 {
            self.done.chunks.fetch_add(ran, Ordering::Release);
        }
    }

    /// A worker's life during a pass.
    fn work(&self, me: usize) {
        let (mut spins, mut seen) = (0, 0);
        while !self.job.over.load(Ordering::Acquire) {
            let epoch = self.job.epoch.load(Ordering::Acquire);
            if epoch == seen {
                wait(&mut spins);
            } else {
                (seen, spins) = (epoch, 0);
                self.run(me);
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
        if chunks > SHARE_MAX {
            let each = chunks.div_ceil(SHARE_MAX);
            // Dynamic, or this call would be instantiated with closures of closures without end.
            let several: &(dyn Fn(usize) + Sync) = &|i| (i * each..chunks.min((i + 1) * each)).for_each(&f);
            return self.for_each(chunks.div_ceil(each), several);
        }
        let s = self.shared;
        s.open(chunks, call_chunk::<F>, &raw const f as usize);
        s.run(0);
        let mut spins = 0;
        while s.done.chunks.load(Ordering::Acquire) as usize != chunks {
            wait(&mut spins);
        }
        if s.done.panicked.swap(false, Ordering::Relaxed) {
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

    /// Cuts row-major matrices (data, width) of equally many rows into bands: blocks of rows, one for each thread where there are
    /// rows enough, and within a block whole units of columns of one matrix after the other. Calls `f(matrix, band)` on each.
    ///
    /// # Panics
    /// If a matrix is not whole rows.
    pub fn for_each_band<const N: usize, F>(&self, matrices: [(&mut [f32], usize); N], grain: Grain, f: F)
    where
        F: Fn(usize, &mut Band<'_>) + Sync,
    {
        let mut rows = 0;
        let matrices = matrices.map(|(data, width)| {
            assert!(width > 0 && data.len().is_multiple_of(width), "whole rows");
            rows = data.len() / width;
            (width, rows, SharedMut(data.as_mut_ptr(), PhantomData))
        });
        assert!(matrices.iter().all(|m| m.1 == rows), "equally many rows");
        let total: usize = matrices.iter().map(|(width, ..)| width.div_ceil(grain.unit)).sum();
        let blocks = (rows / grain.rows_least).clamp(1, self.threads);
        let height = rows.div_ceil(blocks).next_multiple_of(grain.rows_unit);
        let blocks = rows.div_ceil(height);
        // Several bands for each thread, so that they end together.
        let wanted = total * blocks / if self.threads == 1 { 1 } else { self.threads * BANDS_EACH };
        let piece = wanted.max(grain.least).clamp(1, grain.most);
        let pieces = total.div_ceil(piece);
        self.for_each(blocks * pieces, |i| {
            let block = i / pieces * height..rows.min((i / pieces + 1) * height);
            let (start, end) = (i % pieces * piece, total.min((i % pieces + 1) * piece));
            let mut before = 0;
            for (m, (width, _, base)) in matrices.iter().enumerate() {
                let units = width.div_ceil(grain.unit);
                let (from, to) = (start.max(before) - before, end.min(before + units).saturating_sub(before));
                if from < to {
                    let columns = from * grain.unit..(to * grain.unit).min(*width);
                    f(m, &mut Band { base, width: *width, rows: block.clone(), columns });
                }
                before += units;
            }
        });
    }
}

/// Bands of a loop for each thread, about.
const BANDS_EACH: usize = 8;

/// How finely [`Pass::for_each_band`] cuts. No number may be 0.
#[derive(Clone, Copy, Debug)]
pub struct Grain {
    /// Columns that stay together.
    pub unit: usize,
    /// Most units of a band.
    pub most: usize,
    /// Least units of a band (but for the last one).
    pub least: usize,
    /// Rows that stay together.
    pub rows_unit: usize,
    /// Least rows of a block.
    pub rows_least: usize,
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

/// Some columns of some rows of a matrix, exclusively.
pub struct Band<'a> {
    base: &'a SharedMut<'a, f32>,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Band<'_> {
    /// Which rows of the matrix.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Which of their columns.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// This band's part of row `row` of the matrix.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row), "row {row} of {:?}", self.rows);
        let start = row * self.width;
        // SAFETY: inside the matrix, as `rows` and `columns` are, and bands of one loop share no column of a row; `&mut self`
        // keeps two rows of one band from being held at once.
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
            let grain = Grain { unit: 4, most: 2, least: 1, rows_unit: 2, rows_least: 2 };
            p.for_each_band([(&mut m, 17)], grain, |_, band| {
                let columns = band.columns();
                for r in band.rows() {
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
            for (rows, most, least, rows_unit, rows_least) in [(1, 1, 1, 1, 1), (9, 4, 1, 4, 2), (9, 4, 2, 1, 100), (31, 100, 3, 4, 8)] {
                let (mut a, mut b, mut c) = (vec![0f32; rows * 100], vec![0f32; rows * 7], vec![0f32; rows * 64]);
                let grain = Grain { unit: 8, most, least, rows_unit, rows_least };
                team.pass(|p| {
                    p.for_each_band([(&mut a, 100), (&mut b, 7), (&mut c, 64)], grain, |m, band| {
                        assert!(band.columns().len() <= 8 * most && band.columns().start.is_multiple_of(8), "{:?}", band.columns());
                        assert!(band.rows().start.is_multiple_of(rows_unit));
                        for r in band.rows() {
                            band.row(r).iter_mut().for_each(|v| *v += m as f32 + 1.0);
                        }
                    })
                });
                assert!([(a, 1.0), (b, 2.0), (c, 3.0)].iter().all(|(m, v)| m.iter().all(|x| x == v)), "{threads} threads, {grain:?}");
            }
        }
    }

    #[test]
    fn more_chunks_than_a_share_can_count_all_run() {
        let team = Team::new(2).unwrap();
        let hits: Vec<AtomicU32> = (0..300_001).map(|_| AtomicU32::new(0)).collect();
        team.pass(|p| {
            p.for_each(hits.len(), |i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            })
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
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
