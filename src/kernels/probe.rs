//! What this machine can do at most, measured: bytes read from memory a second, and 8-bit multiply-adds a second.
//!
//! Speeds of models are given as shares of these. Both go through what the kernels go through (a [`Team`], the words of the level
//! in use), so that they are limits for the same number of threads at the same level: reading streams over a buffer much larger
//! than any cache, on huge pages where the system has them; multiplying repeats [`Simd::dot`] on independent sums with operands
//! in registers and the first cache level, and does nothing else.

use crate::error::{Error, Result};
use crate::simd::{Level, Simd, Task, U4, dispatch};
use crate::threads::Team;
use memmap2::MmapMut;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that are streamed; less if RAM is short.
const STREAM_BYTES: usize = 512 << 20;
/// The part of the stream that a thread claims at once.
const CHUNK_BYTES: usize = 4 << 20;
/// Vectors read before the next look at the loop's end, each into a sum of its own.
const STREAMS: usize = 8;
/// Independent sums: enough to hide the latency of the dot word, few enough to stay in registers.
const SUMS: usize = 12;
/// Calls of the dot word for each sum between two looks at the clock.
const TURNS: usize = 20_000;

/// The buffer that is read. Make it once and measure repeatedly, in turn with what is compared.
pub struct Probe {
    stream: MmapMut,
    level: Level,
}

impl Probe {
    /// A probe for the level that kernels use.
    ///
    /// # Errors
    /// [`Error::Io`] if the system gives no memory.
    pub fn new() -> Result<Probe> {
        let mut len = STREAM_BYTES;
        while len > 16 * CHUNK_BYTES && available_bytes().is_some_and(|free| len > free / 4) {
            len /= 2;
        }
        Probe::with_bytes(len)
    }

    fn with_bytes(len: usize) -> Result<Probe> {
        let mut stream = MmapMut::map_anon(len).map_err(|source| Error::Io { what: "map memory to read".into(), source })?;
        #[cfg(target_os = "linux")]
        let _ = stream.advise(memmap2::Advice::HugePage);
        // Pages that nobody has written are all the same page of zeros.
        stream.fill(1);
        Ok(Probe { stream, level: Level::detect() })
    }

    /// Bytes a second that `team` reads from memory.
    pub fn read_bandwidth(&self, team: &Team) -> f64 {
        let (level, stream) = (self.level, &self.stream[..]);
        let started = Instant::now();
        team.pass(|pass| {
            pass.for_each_range(stream.len(), CHUNK_BYTES, |range| {
                black_box(dispatch(level, Read { bytes: &stream[range] }));
            });
        });
        stream.len() as f64 / started.elapsed().as_secs_f64()
    }

    /// 8-bit operations a second that `team` computes; a multiply-add counts as two.
    pub fn dot_rate(&self, team: &Team) -> f64 {
        let level = self.level;
        // Long enough for every thread to be there most of the time.
        let least = Duration::from_millis(20);
        let (started, mut operations) = (Instant::now(), 0.0);
        while started.elapsed() < least {
            let chunks = 2 * team.threads();
            team.pass(|pass| {
                pass.for_each(chunks, |_| {
                    black_box(dispatch(level, Multiply));
                })
            });
            operations += (chunks * TURNS * SUMS * 2 * 16 * lanes(level)) as f64;
        }
        operations / started.elapsed().as_secs_f64()
    }
}

/// Bytes that the system could give, where it says.
fn available_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

fn lanes(level: Level) -> usize {
    struct Lanes;
    impl Task for Lanes {
        type Out = usize;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> usize {
            S::LANES
        }
    }
    dispatch(level, Lanes)
}

/// Reads whole vectors and keeps a trace of each, so that none is left out.
struct Read<'a> {
    bytes: &'a [u8],
}

impl Task for Read<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); STREAMS];
        for line in self.bytes.chunks_exact(STREAMS * 4 * S::LANES) {
            for (sum, v) in sums.iter_mut().zip(line.chunks_exact(4 * S::LANES)) {
                *sum = s.add(*sum, s.load_f32(v));
            }
        }
        let mut all = sums[0];
        for sum in &sums[1..] {
            all = s.add(all, *sum);
        }
        s.sum(all)
    }
}

/// [`TURNS`] times the dot word for each of [`SUMS`] sums.
struct Multiply;

impl Task for Multiply {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let codes = black_box([[3i8; 16]; SUMS]);
        let weights = [s.splat8(black_box(1)), s.splat8(black_box(2)), s.splat8(black_box(3)), s.splat8(black_box(5))];
        let mut sums = [s.splat32(0); SUMS];
        for _ in 0..TURNS {
            // The products of constants could be computed once: the activations might have changed.
            let codes = black_box(&codes);
            for (sum, a) in sums.iter_mut().zip(codes) {
                *sum = s.dot::<U4>(*sum, &weights, a);
            }
        }
        let mut all = sums[0];
        for sum in &sums[1..] {
            all = s.add32(all, *sum);
        }
        s.sum(s.to_f(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read_and_every_product_computed_at_every_level() {
        // Ones: the sum says how many there were.
        let bytes: Vec<u8> = 1.0f32.to_le_bytes().repeat(STREAMS * 16 * 3);
        let want = (TURNS * SUMS) as f32 * 3.0 * 4.0 * f32::from(1u8 + 2 + 3 + 5);
        for level in Level::available() {
            assert_eq!(dispatch(level, Read { bytes: &bytes }), (STREAMS * 16 * 3) as f32, "{level:?}");
            let got = dispatch(level, Multiply);
            assert!((got / lanes(level) as f32 / want - 1.0).abs() < 1e-5, "{level:?}: {got}, not {want} for each lane");
        }
    }

    #[test]
    fn speeds_are_numbers() {
        let (probe, team) = (Probe::with_bytes(3 * CHUNK_BYTES / 2).unwrap(), Team::new(2).unwrap());
        for speed in [probe.read_bandwidth(&team), probe.dot_rate(&team)] {
            assert!(speed.is_finite() && speed > 0.0);
        }
    }
}
