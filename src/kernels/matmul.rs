//! Matrix products: weights read in place from the map, activations quantised to 8 bits once.
//!
//! Every format is unpacked by `quant` to one shape (codes, scale, shift per 32 elements of `LANES` rows), so there is one
//! mat-vec and one mat-mat. Mat-vec multiplies unpacked codes while they are in registers. Mat-mat expands `LANES` weight rows
//! once into a buffer of its thread, in tile order, and multiplies all activation rows with it.
//!
//! Accumulation order, the same in both and on every level: per block of 32 (16 for formats with `HALVES`) an exact integer
//! dot, then one `fma(dot, scale * activation scale, sum)` in increasing block order, then one for the shift. Therefore an
//! output does not depend on how many activation rows or threads there are. Float weights multiply the exact activations in
//! `LANES` partial sums, again the same ones for any number of rows.

use crate::bytes::MapSlice;
use crate::error::{Error, Result};
use crate::gguf::TensorType;
use crate::quant::{self, Block, Float, Shape, Sink, Visitor};
use crate::simd::{I8, Level, Rows, Scratch, Simd, Task, U4, U6, dispatch, quad};
use crate::threads::{Band, Pass};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements of an activation block.
const BLOCK: usize = 32;
/// Float rows are padded to a multiple of this with zeros: the most lanes a level has.
const PAD: usize = 16;

/// Weights in the map: `rows` output features of `cols` input features. Immutable and cheap to clone.
#[derive(Clone)]
pub struct Matrix {
    ty: TensorType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    /// The first row of this view within `bytes`.
    first: usize,
    bytes: MapSlice,
}

impl Matrix {
    /// The matrix stored in `bytes`, row after row.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a type without kernels, [`Error::Mismatch`] if the sizes do not fit together.
    pub fn new(ty: TensorType, rows: usize, cols: usize, bytes: MapSlice) -> Result<Matrix> {
        if !quant::is_supported(ty) {
            return Err(quant::unsupported(ty));
        }
        let shape = || format!("bytes of a {ty} matrix of {rows} x {cols}");
        let row_bytes = ty.row_bytes(cols).filter(|n| *n > 0 && rows > 0);
        let row_bytes = row_bytes.ok_or_else(|| Error::mismatch(shape(), format!("whole blocks of {}", ty.block_len()), bytes.len()))?;
        if row_bytes.checked_mul(rows) != Some(bytes.len()) {
            return Err(Error::mismatch(shape(), format!("{rows} x {row_bytes}"), bytes.len()));
        }
        Ok(Matrix { ty, rows, cols, row_bytes, first: 0, bytes })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the elements are stored.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Decodes row `row` to `out`, which holds `cols` values.
    ///
    /// # Panics
    /// If `row` or `out.len()` does not fit.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}, {} of {} columns", self.rows, out.len(), self.cols);
        let decoded = quant::dequantise(self.ty, &self.bytes()[row * self.row_bytes..][..self.row_bytes], out);
        assert!(decoded.is_ok(), "checked in `new`");
    }

    /// The rows `rows` as a matrix of their own (a fused tensor holds several).
    ///
    /// # Panics
    /// If the range is empty or reaches past the last row.
    pub fn row_range(&self, rows: Range<usize>) -> Matrix {
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        Matrix { first: self.first + rows.start, rows: rows.len(), ..self.clone() }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.first * self.row_bytes..][..self.rows * self.row_bytes]
    }

    fn is_float(&self) -> bool {
        self.ty.block_len() == 1
    }
}

/// `W` activation rows' share of one block of 32 columns. Sums are negative: kernels take offsets times sums off.
#[derive(Clone, Copy)]
#[repr(C)]
struct Panel<const W: usize> {
    codes: [[i8; BLOCK]; W],
    scale: [f32; W],
    /// `- sum of the codes`
    minus_sum: [i32; W],
    /// `scale * sum of the codes`
    scaled_sum: [f32; W],
    /// `minus_sum` of the first and of the last 16.
    minus_half: [[i32; 2]; W],
}

impl<const W: usize> Panel<W> {
    const ZERO: Panel<W> =
        Panel { codes: [[0; BLOCK]; W], scale: [0.0; W], minus_sum: [0; W], scaled_sum: [0.0; W], minus_half: [[0; 2]; W] };
}

/// The right-hand side of [`matmul`]: activation rows, quantised once for all matrices that read them. Reuse it: buffers stay.
pub struct Activations {
    level: Level,
    rows: usize,
    cols: usize,
    /// `(rows, cols padded to PAD)`, for float weights.
    exact: Vec<f32>,
    has_exact: bool,
    has_codes: bool,
    /// One row: `(cols / 32)`.
    single: Vec<Panel<1>>,
    /// More rows: `(rows / 4, cols / 32)`, the last panel padded with zero rows.
    panels: Vec<Panel<4>>,
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
    pub fn load(&mut self, pass: &Pass<'_>, x: &[f32], cols: usize) {
        self.load_as(pass, x, cols, true, cols.is_multiple_of(BLOCK));
    }

    /// As [`Activations::load`], but prepares only what the products with these `weights` will read.
    pub fn load_for(&mut self, pass: &Pass<'_>, x: &[f32], weights: &[&Matrix]) {
        let cols = weights.first().map_or(1, |w| w.cols);
        self.load_as(pass, x, cols, weights.iter().any(|w| w.is_float()), weights.iter().any(|w| !w.is_float()));
    }

    /// Activation rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn load_as(&mut self, pass: &Pass<'_>, x: &[f32], cols: usize, exact: bool, codes: bool) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} activations in rows of {cols}", x.len());
        (self.rows, self.cols, self.has_exact, self.has_codes) = (x.len() / cols, cols, exact, codes);
        let level = self.level;
        if exact {
            let padded = cols.next_multiple_of(PAD);
            self.exact.resize(self.rows * padded, 0.0);
            pass.for_each_chunk(&mut self.exact, padded, |i, row| {
                row[..cols].copy_from_slice(&x[i * cols..][..cols]);
                row[cols..].fill(0.0);
            });
        }
        if !codes {
            return;
        }
        assert!(cols.is_multiple_of(BLOCK), "{cols} columns are not blocks of {BLOCK}");
        let blocks = cols / BLOCK;
        if self.rows == 1 {
            self.single.resize(blocks, Panel::ZERO);
            pass.for_each_chunk(&mut self.single, 64, |i, panel| {
                dispatch(level, Quantise { x: &x[i * 64 * BLOCK..][..panel.len() * BLOCK], cols: panel.len() * BLOCK, panel });
            });
        } else {
            self.panels.resize(self.rows.div_ceil(4) * blocks, Panel::ZERO);
            pass.for_each_chunk(&mut self.panels, blocks, |i, panel| {
                let end = x.len().min((i + 1) * 4 * cols);
                dispatch(level, Quantise { x: &x[i * 4 * cols..end], cols, panel });
            });
        }
    }
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
                    (p.codes[w], p.scale[w], p.minus_sum[w], p.scaled_sum[w], p.minus_half[w]) = ([0; BLOCK], 0.0, 0, 0.0, [0; 2]);
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
                for (x, q) in x.chunks_exact(S::LANES).zip(p.codes[w].chunks_exact_mut(S::LANES)) {
                    s.store_i8(s.round(s.mul(s.load(x), factor)), q);
                }
                let half = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
                let (a, b) = (half(&p.codes[w][..16]), half(&p.codes[w][16..]));
                (p.scale[w], p.minus_sum[w], p.scaled_sum[w], p.minus_half[w]) = (scale, -(a + b), scale * (a + b) as f32, [-a, -b]);
            }
        }
    }
}

/// `out[i][r] = sum over c of w[r][c] * x[i][c]`; `out` is `(n, w.rows())` row-major.
///
/// # Panics
/// If the shapes do not fit, or `x` was not loaded for this kind of weights.
pub fn matmul(pass: &Pass<'_>, w: &Matrix, x: &Activations, out: &mut [f32]) {
    assert!(x.cols == w.cols && out.len() == x.rows * w.rows, "{} x {} by {} x {} to {}", w.rows, w.cols, x.cols, x.rows, out.len());
    assert!(if w.is_float() { x.has_exact } else { x.has_codes }, "activations were not loaded for {}", w.ty);
    if x.rows == 0 {
        return;
    }
    pass.for_each_band(out, w.rows, step(w, x.rows), |rows, band| {
        let done = quant::visit(w.ty, Multiply { w, x, rows, band });
        debug_assert!(done.is_some(), "checked in `Matrix::new`");
    });
}

/// [`matmul`] of several matrices with the same activations.
pub fn matmul_many(pass: &Pass<'_>, products: &mut [(&Matrix, &mut [f32])], x: &Activations) {
    for (w, out) in products {
        matmul(pass, w, x, out);
    }
}

/// Weight rows per chunk of work. Must depend on the shapes alone, and be a multiple of every level's lanes.
fn step(w: &Matrix, n: usize) -> usize {
    if n == 1 { (65536 / w.row_bytes).next_multiple_of(PAD).clamp(PAD, 1024) } else { 2 * PAD }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
    static FEW_ROWS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The product of one chunk of weight rows, format still to be chosen.
struct Multiply<'a, 'b> {
    w: &'a Matrix,
    x: &'a Activations,
    rows: Range<usize>,
    band: &'a mut Band<'b>,
}

impl Visitor for Multiply<'_, '_> {
    type Out = ();

    fn block<B: Block>(self) {
        let Multiply { w, x, rows, band } = self;
        SCRATCH.with_borrow_mut(|scratch| {
            FEW_ROWS.with_borrow_mut(|few| {
                let mut row = rows.start;
                while row < rows.end {
                    row += dispatch(x.level, Group::<B> { w, x, row, rows: &rows, band, scratch, few, format: PhantomData });
                }
            });
        });
    }

    fn float<F: Float>(self) {
        let Multiply { w, x, rows, band } = self;
        SCRATCH.with_borrow_mut(|scratch| dispatch(x.level, FloatRows::<F> { w, x, rows, band, scratch, format: PhantomData }));
    }
}

/// The product of the rows of a chunk from `row` on, `LANES` of them; gives how many it did.
struct Group<'a, 'b, B> {
    w: &'a Matrix,
    x: &'a Activations,
    row: usize,
    rows: &'a Range<usize>,
    band: &'a mut Band<'b>,
    scratch: &'a mut Scratch,
    few: &'a mut Vec<u8>,
    format: PhantomData<B>,
}

impl<B: Block> Task for Group<'_, '_, B> {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let (w, x) = (self.w, self.x);
        if w.rows < S::LANES {
            // Too few rows to fill a group: repeat the last one.
            self.few.clear();
            (0..S::LANES).for_each(|r| self.few.extend_from_slice(&w.bytes()[r.min(w.rows - 1) * w.row_bytes..][..w.row_bytes]));
        }
        if x.rows == 1 {
            // All groups of the chunk in one go.
            let mut row = self.row;
            while row < self.rows.end {
                let first = row.min(w.rows.saturating_sub(S::LANES));
                let group = group::<S>(w, self.few, first);
                let mut sink = VecSink::<S, B> { s, x: x.single.iter(), sum: s.splat(0.0), rows: group, ahead: 0, format: PhantomData };
                for at in (0..w.row_bytes).step_by(B::BYTES) {
                    B::unpack(s, &group, at, &mut sink);
                }
                let sums = s.to_array(sink.sum);
                let done = S::LANES.min(self.rows.end - row);
                self.band.row(0)[row - self.rows.start..][..done].copy_from_slice(&sums[row - first..][..done]);
                row += done;
            }
            return row - self.row;
        }
        let first = self.row.min(w.rows.saturating_sub(S::LANES));
        let group = group::<S>(w, self.few, first);
        let (codes, factors) = tile_buffer::<S>(self.scratch, w.cols);
        let mut sink = TileSink::<S, B::Shape> { s, tile: codes.iter_mut().zip(factors), shape: PhantomData };
        for at in (0..w.row_bytes).step_by(B::BYTES) {
            B::unpack(s, &group, at, &mut sink);
        }
        let done = S::LANES.min(self.rows.end - self.row);
        let out = Target { band: self.band, lane: self.row - first, at: self.row - self.rows.start, len: done };
        dispatch(x.level, Tiles::<B::Shape> { x, scratch: self.scratch, out, shape: PhantomData });
        done
    }
}

#[inline(always)]
fn group<'a, S: Simd>(w: &'a Matrix, few: &'a [u8], first: usize) -> Rows<'a> {
    if w.rows < S::LANES { Rows::new(few, w.row_bytes, 0, S::LANES) } else { Rows::new(w.bytes(), w.row_bytes, first, S::LANES) }
}

/// What the sum starts from: the offset of the codes times the activations' sum, taken off.
#[inline(always)]
fn start<S: Simd, C: Shape>(s: S, minus_sum: i32) -> S::V {
    let offset = C::OFFSET + if C::CODE == I8 { S::SIGNED_BIAS } else { 0 };
    if offset == 0 { s.splat32(0) } else { s.shl32(s.splat32(minus_sum), offset.trailing_zeros()) }
}

macro_rules! by_code {
    ($shape:ident, $s:ident . $word:ident ( $($arg:expr),* )) => {
        match $shape::CODE {
            U4 => $s.$word::<U4>($($arg),*),
            U6 => $s.$word::<U6>($($arg),*),
            _ => $s.$word::<I8>($($arg),*),
        }
    };
}

/// Multiplies with one activation row while the codes are in registers.
struct VecSink<'a, S: Simd, B> {
    s: S,
    x: std::slice::Iter<'a, Panel<1>>,
    sum: S::F,
    rows: Rows<'a>,
    /// How many bytes of the next group have been asked for.
    ahead: usize,
    format: PhantomData<B>,
}

impl<S: Simd, B: Block> Sink<S> for VecSink<'_, S, B> {
    #[inline(always)]
    fn take(&mut self, lo: [S::V; 4], hi: [S::V; 4], scale: [S::F; 2], shift: [S::F; 2]) {
        // As many bytes ahead as are used up here: a few lines at a time, or the requests queue up.
        let used = B::BYTES * S::LANES * BLOCK / B::LEN;
        self.rows.prefetch_following(self.ahead, used);
        self.ahead += used;
        multiply_single::<S, B::Shape>(self.s, &mut self.x, &mut self.sum, lo, hi, scale, shift);
    }
}

#[inline(always)]
fn multiply_single<S: Simd, C: Shape>(
    s: S,
    x: &mut std::slice::Iter<'_, Panel<1>>,
    sum: &mut S::F,
    lo: [S::V; 4],
    hi: [S::V; 4],
    scale: [S::F; 2],
    shift: [S::F; 2],
) {
    let Some(x) = x.next() else { return };
    let factor = s.splat(x.scale[0]);
    if C::HALVES {
        let [a, b] = x.codes[0].as_chunks::<16>().0 else { return };
        let a = s.add32(by_code!(C, s.dot_rows16(lo, a)), start::<S, C>(s, x.minus_half[0][0]));
        let b = s.add32(by_code!(C, s.dot_rows16(hi, b)), start::<S, C>(s, x.minus_half[0][1]));
        *sum = s.fma(s.to_f(a), s.mul(scale[0], factor), *sum);
        *sum = s.fma(s.to_f(b), s.mul(scale[1], factor), *sum);
        if C::SHIFTS {
            *sum = s.fma(shift[0], s.splat(half_sum(x, 0, 0)), *sum);
            *sum = s.fma(shift[1], s.splat(half_sum(x, 0, 1)), *sum);
        }
    } else {
        let dot = s.add32(by_code!(C, s.dot_rows32(lo, hi, &x.codes[0])), start::<S, C>(s, x.minus_sum[0]));
        *sum = s.fma(s.to_f(dot), s.mul(scale[0], factor), *sum);
        if C::SHIFTS {
            *sum = s.fma(shift[0], s.splat(x.scaled_sum[0]), *sum);
        }
    }
}

#[inline(always)]
#[cfg_attr(feature = "prove-no-panic", no_panic::no_panic)]
fn half_sum<const W: usize>(x: &Panel<W>, w: usize, half: usize) -> f32 {
    x.scale[w] * -x.minus_half[w][half] as f32
}

/// A tile: per block of 32 the transposed codes, and the factors scale, shift, scale and shift of the second half.
type TileCodes<S> = [[<S as Simd>::V; 4]; 2];
type TileFactors<S> = [<S as Simd>::F; 4];

#[inline(always)]
fn tile_buffer<S: Simd>(scratch: &mut Scratch, cols: usize) -> (&mut [TileCodes<S>], &mut [TileFactors<S>]) {
    scratch.two(cols / BLOCK, cols / BLOCK)
}

/// Writes unpacked blocks to a tile.
struct TileSink<'a, S: Simd, C> {
    s: S,
    tile: std::iter::Zip<std::slice::IterMut<'a, TileCodes<S>>, std::slice::IterMut<'a, TileFactors<S>>>,
    shape: PhantomData<C>,
}

impl<S: Simd, C: Shape> Sink<S> for TileSink<'_, S, C> {
    #[inline(always)]
    fn take(&mut self, lo: [S::V; 4], hi: [S::V; 4], scale: [S::F; 2], shift: [S::F; 2]) {
        let Some((codes, factors)) = self.tile.next() else { return };
        *codes = [self.s.transpose(lo), self.s.transpose(hi)];
        factors[0] = scale[0];
        if C::SHIFTS {
            factors[1] = shift[0];
        }
        if C::HALVES {
            factors[2] = scale[1];
            if C::SHIFTS {
                factors[3] = shift[1];
            }
        }
    }
}

/// Where the lanes of a group go: lanes `lane .. lane + len` to places `at .. at + len` of the band's rows.
struct Target<'a, 'b> {
    band: &'a mut Band<'b>,
    lane: usize,
    at: usize,
    len: usize,
}

/// All activation rows times the tile in `scratch`.
struct Tiles<'a, 'b, C> {
    x: &'a Activations,
    scratch: &'a mut Scratch,
    out: Target<'a, 'b>,
    shape: PhantomData<C>,
}

impl<C: Shape> Task for Tiles<'_, '_, C> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (codes, factors) = tile_buffer::<S>(self.scratch, self.x.cols);
        let blocks = codes.len();
        let mut row = 0;
        let mut panels = self.x.panels.as_slice();
        while !panels.is_empty() {
            let count = (panels.len() / blocks).min(S::TILE_PANELS);
            let (now, rest) = panels.split_at(count * blocks);
            match count {
                3 => put(s, tile::<S, C, 3>(s, codes, factors, now), &mut self.out, &mut row),
                2 => put(s, tile::<S, C, 2>(s, codes, factors, now), &mut self.out, &mut row),
                _ => put(s, tile::<S, C, 1>(s, codes, factors, now), &mut self.out, &mut row),
            }
            panels = rest;
        }
    }
}

#[inline(always)]
fn put<S: Simd, const P: usize>(s: S, sums: [[S::F; 4]; P], out: &mut Target<'_, '_>, row: &mut usize) {
    for sum in sums.into_iter().flatten() {
        if *row < out.band.rows() {
            out.band.row(*row)[out.at..][..out.len].copy_from_slice(&s.to_array(sum)[out.lane..][..out.len]);
        }
        *row += 1;
    }
}

/// `LANES` weight rows times `4 P` activation rows.
#[inline(always)]
fn tile<S: Simd, C: Shape, const P: usize>(
    s: S,
    codes: &[TileCodes<S>],
    factors: &[TileFactors<S>],
    panels: &[Panel<4>],
) -> [[S::F; 4]; P] {
    let mut sums = [[s.splat(0.0); 4]; P];
    let blocks = codes.len();
    let mut columns: [std::slice::Iter<'_, Panel<4>>; P] = std::array::from_fn(|p| panels[p * blocks..(p + 1) * blocks].iter());
    for (w, f) in codes.iter().zip(factors) {
        for (sums, column) in sums.iter_mut().zip(columns.iter_mut()) {
            let Some(x) = column.next() else { return [[s.splat(0.0); 4]; P] };
            for (c, sum) in sums.iter_mut().enumerate() {
                let [a, b] = x.codes[c].as_chunks::<16>().0 else { continue };
                let factor = s.splat(x.scale[c]);
                if C::HALVES {
                    let a = by_code!(C, s.dot(start::<S, C>(s, x.minus_half[c][0]), &w[0], a));
                    let b = by_code!(C, s.dot(start::<S, C>(s, x.minus_half[c][1]), &w[1], b));
                    *sum = s.fma(s.to_f(a), s.mul(f[0], factor), *sum);
                    *sum = s.fma(s.to_f(b), s.mul(f[2], factor), *sum);
                    if C::SHIFTS {
                        *sum = s.fma(f[1], s.splat(half_sum(x, c, 0)), *sum);
                        *sum = s.fma(f[3], s.splat(half_sum(x, c, 1)), *sum);
                    }
                } else {
                    let dot = by_code!(C, s.dot(start::<S, C>(s, x.minus_sum[c]), &w[0], a));
                    let dot = by_code!(C, s.dot(dot, &w[1], b));
                    *sum = s.fma(s.to_f(dot), s.mul(f[0], factor), *sum);
                    if C::SHIFTS {
                        *sum = s.fma(f[1], s.splat(x.scaled_sum[c]), *sum);
                    }
                }
            }
        }
    }
    sums
}

/// The product of a chunk of float rows with the exact activations.
struct FloatRows<'a, 'b, F> {
    w: &'a Matrix,
    x: &'a Activations,
    rows: Range<usize>,
    band: &'a mut Band<'b>,
    scratch: &'a mut Scratch,
    format: PhantomData<F>,
}

/// Float rows decoded together.
const FLOAT_ROWS: usize = 4;

impl<F: Float> Task for FloatRows<'_, '_, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, x) = (self.w, self.x);
        let padded = w.cols.next_multiple_of(PAD);
        let (buffer, _) = self.scratch.two::<f32, u8>(FLOAT_ROWS * padded, 0);
        for row in self.rows.clone().step_by(FLOAT_ROWS) {
            let count = FLOAT_ROWS.min(self.rows.end - row);
            for (r, out) in buffer.chunks_exact_mut(padded).enumerate() {
                // The last rows repeat where there are fewer than four.
                let bytes = &w.bytes()[(row + r.min(count - 1)) * w.row_bytes..][..w.row_bytes];
                let whole = w.cols - w.cols % S::LANES;
                let (vectors, rest) = bytes.split_at(whole * F::BYTES);
                for (b, o) in vectors.chunks_exact(S::LANES * F::BYTES).zip(out.chunks_exact_mut(S::LANES)) {
                    s.store(F::load(s, b), o);
                }
                out[whole..].fill(0.0);
                rest.chunks_exact(F::BYTES).zip(&mut out[whole..]).for_each(|(b, o)| *o = F::decode(b));
            }
            let at = row - self.rows.start;
            let columns = &x.exact[..x.rows * padded];
            let mut quads = columns.chunks_exact(4 * padded);
            let mut i = 0;
            for x in &mut quads {
                i = put_floats(self.band, i, at, count, float_dots::<S, 4>(s, buffer, x));
            }
            for x in quads.remainder().chunks_exact(padded) {
                i = put_floats(self.band, i, at, count, float_dots::<S, 1>(s, buffer, x));
            }
        }
    }
}

fn put_floats<const C: usize>(band: &mut Band<'_>, mut i: usize, at: usize, count: usize, sums: [[f32; FLOAT_ROWS]; C]) -> usize {
    for sums in sums {
        band.row(i)[at..][..count].copy_from_slice(&sums[..count]);
        i += 1;
    }
    i
}

/// Dots of four rows with `C` rows of `x`.
#[inline(always)]
fn float_dots<S: Simd, const C: usize>(s: S, rows: &[f32], x: &[f32]) -> [[f32; FLOAT_ROWS]; C] {
    let n = x.len() / C;
    let mut sums = [[s.splat(0.0); FLOAT_ROWS]; C];
    let w: [&[f32]; FLOAT_ROWS] = quad!(R => &rows[R * n..(R + 1) * n]);
    let mut at = 0;
    while at + S::LANES <= n {
        let w = quad!(R => s.load(&w[R][at..]));
        let mut c = 0;
        while c < C {
            let x = s.load(&x[c * n + at..]);
            sums[c] = quad!(R => s.fma(w[R], x, sums[c][R]));
            c += 1;
        }
        at += S::LANES;
    }
    let mut out = [[0.0; FLOAT_ROWS]; C];
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = quad!(R => s.sum(sums[R]));
    }
    out
}
