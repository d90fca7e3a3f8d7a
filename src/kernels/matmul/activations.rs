//! The right-hand side of the products: activation rows, quantised to 8 bits with a scale per 32 columns.
//!
//! One row lies in panels of its own, for mat-vec; more rows lie in panels of four, for mat-mat. Float weights multiply the exact
//! activations, which are then kept too.

use super::{BLOCK, Matrix, PAD};
use crate::error::{Result, try_reserve};
use crate::simd::{Level, Simd, Task, dispatch};
use crate::threads::Pass;

/// What the codes of formats with one scale per block stand above their values (and 0), signed ones as the dot word wants them.
const OFFSETS: [i32; 3] = [8, 16, 128];
/// The same for formats with two scales per block.
const HALF_OFFSETS: [i32; 2] = [4, 32];

/// `W` activation rows' share of one block of 32 columns.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Panel<const W: usize> {
    /// Of a column each, or in the level's order for pairs of columns ([`Simd::arrange_pair`]).
    pub(super) codes: [[i8; BLOCK]; W],
    pub(super) scale: [f32; W],
    /// `scale * sum of the codes`
    pub(super) scaled_sum: [f32; W],
    /// `- offset * sum of the codes` for each offset of [`OFFSETS`]: what an accumulator starts from.
    minus_sum: [[i32; 3]; W],
    /// The same for the first and the last 16, and each offset of [`HALF_OFFSETS`].
    minus_half: [[[i32; 2]; 2]; W],
}

impl<const W: usize> Panel<W> {
    const ZERO: Panel<W> =
        Panel { codes: [[0; BLOCK]; W], scale: [0.0; W], scaled_sum: [0.0; W], minus_sum: [[0; 3]; W], minus_half: [[[0; 2]; 2]; W] };

    /// What the accumulator of column `c` starts from, for codes that stand `offset` above their values.
    #[inline(always)]
    pub(super) fn start(&self, c: usize, offset: i32) -> i32 {
        match offset {
            0 => 0,
            8 => self.minus_sum[c][0],
            16 => self.minus_sum[c][1],
            128 => self.minus_sum[c][2],
            _ => unreachable!("no format has this offset"),
        }
    }

    /// As [`Panel::start`], for half a block.
    #[inline(always)]
    pub(super) fn half_start(&self, c: usize, half: usize, offset: i32) -> i32 {
        match offset {
            0 => 0,
            4 => self.minus_half[c][half][0],
            32 => self.minus_half[c][half][1],
            _ => unreachable!("no format with halves has this offset"),
        }
    }

    /// `scale * sum of the codes` of half a block of column `c`.
    #[inline(always)]
    #[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
    pub(super) fn half_sum(&self, c: usize, half: usize) -> f32 {
        self.scale[c] * -(self.minus_half[c][half][0] / HALF_OFFSETS[0]) as f32
    }
}

/// The right-hand side of [`matmul`](super::matmul): activation rows, quantised once for all matrices that read them. Reuse it: buffers stay.
pub struct Activations {
    pub(super) level: Level,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// `(rows, cols padded to PAD)`, for float weights.
    pub(super) exact: Vec<f32>,
    pub(super) has_exact: bool,
    pub(super) has_codes: bool,
    /// One row: `(cols / 32)`.
    pub(super) single: Vec<Panel<1>>,
    /// More rows: `(rows / 4, cols / 32)`, the last panel padded with zero rows.
    pub(super) panels: Vec<Panel<4>>,
}

impl Default for Activations {
    fn default() -> Self {
        Activations::new()
    }
}

impl Activations {
    /// Empty buffers.
    pub fn new() -> Activations {
        Activations::with_level(Level::detect())
    }

    /// Empty buffers for products computed at `level`.
    pub fn with_level(level: Level) -> Activations {
        Activations {
            level,
            rows: 0,
            cols: 0,
            exact: Vec::new(),
            has_exact: false,
            has_codes: false,
            single: Vec::new(),
            panels: Vec::new(),
        }
    }

    /// Takes `x`, `(n, cols)` row-major, for any weights. Weights of block formats need `cols` to be a multiple of 32.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory).
    pub fn load(&mut self, pass: &Pass<'_>, x: &[f32], cols: usize) -> Result<()> {
        self.load_as(pass, x, cols, true, cols.is_multiple_of(BLOCK))
    }

    /// As [`Activations::load`], but prepares only what the products with these `weights` will read.
    pub fn load_for(&mut self, pass: &Pass<'_>, x: &[f32], weights: &[&Matrix]) -> Result<()> {
        let cols = weights.first().map_or(1, |w| w.cols);
        self.load_as(pass, x, cols, weights.iter().any(|w| w.is_float()), weights.iter().any(|w| !w.is_float()))
    }

    /// Bytes of one of many quantised rows of `cols`.
    pub fn bytes_per_row(cols: usize) -> usize {
        cols.div_ceil(BLOCK) * size_of::<Panel<4>>() / 4
    }

    /// Activation rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn load_as(&mut self, pass: &Pass<'_>, x: &[f32], cols: usize, exact: bool, codes: bool) -> Result<()> {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} activations in rows of {cols}", x.len());
        (self.rows, self.cols, self.has_exact, self.has_codes) = (x.len() / cols, cols, exact, codes);
        let level = self.level;
        if exact {
            let padded = cols.next_multiple_of(PAD);
            resize(&mut self.exact, self.rows * padded, 0.0)?;
            pass.for_each_chunk(&mut self.exact, padded, |i, row| {
                row[..cols].copy_from_slice(&x[i * cols..][..cols]);
                row[cols..].fill(0.0);
            });
        }
        if !codes {
            return Ok(());
        }
        assert!(cols.is_multiple_of(BLOCK), "{cols} columns are not blocks of {BLOCK}");
        let blocks = cols / BLOCK;
        if self.rows == 1 {
            resize(&mut self.single, blocks, Panel::ZERO)?;
            pass.for_each_chunk(&mut self.single, 64, |i, panel| {
                dispatch(level, Quantise { x: &x[i * 64 * BLOCK..][..panel.len() * BLOCK], cols: panel.len() * BLOCK, panel });
            });
        } else {
            resize(&mut self.panels, self.rows.div_ceil(4) * blocks, Panel::ZERO)?;
            pass.for_each_chunk(&mut self.panels, blocks, |i, panel| {
                let end = x.len().min((i + 1) * 4 * cols);
                dispatch(level, Quantise { x: &x[i * 4 * cols..end], cols, panel });
            });
        }
        Ok(())
    }
}

fn resize<T: Clone>(v: &mut Vec<T>, len: usize, fill: T) -> Result<()> {
    try_reserve(v, "quantised activations", len.saturating_sub(v.len()))?;
    v.resize(len, fill);
    Ok(())
}

/// Quantises up to `W` rows of `cols` to a row of panels.
struct Quantise<'a, const W: usize> {
    x: &'a [f32],
    cols: usize,
    panel: &'a mut [Panel<W>],
}

impl<const W: usize> Task for Quantise<'_, W> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for w in 0..W {
            let Some(row) = self.x.get(w * self.cols..(w + 1) * self.cols) else {
                self.panel.iter_mut().for_each(|p| {
                    (p.codes[w], p.scale[w], p.scaled_sum[w]) = ([0; BLOCK], 0.0, 0.0);
                    (p.minus_sum[w], p.minus_half[w]) = ([0; 3], [[0; 2]; 2]);
                });
                continue;
            };
            for (x, p) in row.as_chunks::<BLOCK>().0.iter().zip(self.panel.iter_mut()) {
                let mut most = s.splat(0.0);
                for x in x.chunks_exact(S::LANES) {
                    most = s.max(most, s.abs(s.load(x)));
                }
                let most = s.most(most);
                // Below that the inverse is no longer a number.
                let inverse = if most > 1e-30 { 127.0 / most } else { 0.0 };
                let scale = if most > 1e-30 { most / 127.0 } else { 0.0 };
                let factor = s.splat(inverse);
                let mut sums = [0; 2];
                let halves = x.as_chunks::<{ BLOCK / 2 }>().0.iter().zip(p.codes[w].as_chunks_mut::<{ BLOCK / 2 }>().0);
                for ((x, codes), sum) in halves.zip(&mut sums) {
                    let mut total = s.splat32(0);
                    for (x, codes) in x.chunks_exact(S::LANES).zip(codes.chunks_exact_mut(S::LANES)) {
                        let code = s.round(s.mul(s.load(x), factor));
                        s.store_i8(code, codes);
                        total = s.add32(total, code);
                    }
                    *sum = s.total(total);
                }
                let sum = sums[0] + sums[1];
                (p.scale[w], p.scaled_sum[w]) = (scale, scale * sum as f32);
                p.minus_sum[w] = OFFSETS.map(|o| -o * sum);
                p.minus_half[w] = sums.map(|sum| HALF_OFFSETS.map(|o| -o * sum));
            }
        }
        if S::PAIRS {
            for p in self.panel {
                for pair in p.codes.as_chunks_mut::<2>().0 {
                    s.arrange_pair(pair);
                }
            }
        }
    }
}
