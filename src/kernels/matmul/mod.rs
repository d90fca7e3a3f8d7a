//! Matrix products: weights read in place from the map, activations quantised to 8 bits once.
//!
//! Every format is unpacked by `quant` to one shape (codes, scale, shift per 32 elements of `LANES` rows), so there is one
//! mat-vec (`single.rs`) and one mat-mat (`tile.rs`); float weights have a product of their own (`float.rs`). All of them leave
//! the sums of a band of weight rows in a buffer of their thread; what is done with them (stored, gated) is said here, once.
//!
//! Accumulation order, the same in all and on every level: per block of 32 an exact integer dot (two of 16 for formats with
//! `HALVES`, joined with their scales), then one fma into the sum in increasing block order, then one for the shift. Therefore an
//! output does not depend on how many activation rows or threads there are. Float weights multiply the exact activations in
//! `LANES` partial sums, again the same ones for any number of rows.

mod activations;
mod float;
mod single;
mod tile;

pub use self::activations::Activations;

use crate::bytes::MapSlice;
use crate::error::{Error, Result};
use crate::gguf::TensorType;
use crate::kernels::activation::{Activation, gate_at};
use crate::quant::{self, Block, Float, Visitor};
use crate::simd::{Scratch, dispatch};
use crate::threads::{Band, Grain, Pass};
use std::cell::RefCell;
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

/// `out[i][r] = sum over c of w[r][c] * x[i][c]`; `out` is `(n, w.rows())` row-major.
///
/// # Panics
/// If the shapes do not fit, or `x` was not loaded for this kind of weights.
pub fn matmul(pass: &Pass<'_>, w: &Matrix, x: &Activations, out: &mut [f32]) {
    matmul_many(pass, [(w, out)], x);
}

/// [`matmul`] of several matrices with the same activations, in one parallel loop.
pub fn matmul_many<const N: usize>(pass: &Pass<'_>, products: [(&Matrix, &mut [f32]); N], x: &Activations) {
    let weights = products.each_ref().map(|(w, _)| *w);
    let outs = products.map(|(w, out)| {
        check(w, x, out);
        (out, w.rows)
    });
    if x.rows == 0 {
        return;
    }
    pass.for_each_band(outs, grain(&weights, x), |m, band| {
        BUFFERS.with_borrow_mut(|Buffers { work, sums: [sums, _] }| multiply(weights[m], x, band, work, sums).store(band));
    });
}

/// The gate of a feed-forward network, `out = f(gate x) * (up x)`, without the two products in memory.
///
/// # Panics
/// As for [`matmul`], and if the two matrices differ in their shape.
pub fn matmul_gated(pass: &Pass<'_>, gate: &Matrix, up: &Matrix, activation: Activation, x: &Activations, out: &mut [f32]) {
    check(gate, x, out);
    check(up, x, out);
    if x.rows == 0 {
        return;
    }
    pass.for_each_band([(out, gate.rows)], grain(&[gate, up], x), |_, band| {
        BUFFERS.with_borrow_mut(|Buffers { work, sums: [first, second] }| {
            let gate = multiply(gate, x, band, work, first);
            let up = multiply(up, x, band, work, second);
            gate_at(x.level, activation, gate.floats, up.floats);
            gate.store(band);
        });
    });
}

fn check(w: &Matrix, x: &Activations, out: &[f32]) {
    assert!(x.cols == w.cols && out.len() == x.rows * w.rows, "{} x {} by {} x {} to {}", w.rows, w.cols, x.cols, x.rows, out.len());
    assert!(if w.is_float() { x.has_exact } else { x.has_codes }, "activations were not loaded for {}", w.ty);
}

/// How products are cut: those of one activation row in bands long enough to stream, those of more in bands whose sums and
/// unpacked weights stay in the second-level cache. Many activation rows are shared out among the threads, which unpack the
/// weights each for themselves: that costs less than moving activations from core to core.
fn grain(weights: &[&Matrix], x: &Activations) -> Grain {
    let row_bytes = weights.iter().map(|w| w.row_bytes).max().unwrap_or(1);
    if x.rows == 1 {
        Grain { unit: PAD, most: 128, least: (LEAST_STREAM / (PAD * row_bytes)).max(1), rows_unit: 1, rows_least: 1 }
    } else {
        Grain { unit: PAD, most: 4, least: 2, rows_unit: 4 * tile::PANELS_MOST, rows_least: 64 }
    }
}

/// Bytes below which it does not pay to share the rows of a mat-vec.
const LEAST_STREAM: usize = 8192;

/// Buffers of one thread, kept between products.
#[derive(Default)]
struct Buffers {
    work: Work,
    sums: [Scratch; 2],
}

/// What the products themselves need.
#[derive(Default)]
struct Work {
    tile: Scratch,
    few: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// The sums of a band: `(groups, padded activation rows, lanes)`. Group `k` is the weight rows `start + k * lanes ..`, or the last
/// `lanes` rows of the matrix if those are not that many.
struct Sums<'a> {
    floats: &'a mut [f32],
    /// Activation rows, padding included.
    rows: usize,
    lanes: usize,
    /// Rows of the weights.
    height: usize,
}

impl Sums<'_> {
    fn store(&self, band: &mut Band<'_>) {
        let (first, columns) = (band.rows().start, band.columns());
        for row in band.rows() {
            let out = band.row(row);
            for (k, out) in out.chunks_mut(self.lanes).enumerate() {
                let group = &self.floats[(k * self.rows + row - first) * self.lanes..][..self.lanes];
                let column = columns.start + k * self.lanes;
                let lane = column - column.min(self.height.saturating_sub(self.lanes));
                match (self.lanes, lane) {
                    // Lengths that the compiler knows make these copies single moves.
                    (16, 0) if out.len() == 16 => out[..16].copy_from_slice(&group[..16]),
                    (8, 0) if out.len() == 8 => out[..8].copy_from_slice(&group[..8]),
                    (4, 0) if out.len() == 4 => out[..4].copy_from_slice(&group[..4]),
                    _ => out.copy_from_slice(&group[lane..][..out.len()]),
                }
            }
        }
    }
}

/// The sums of the weight rows that are `band`'s columns with the activation rows that are its rows.
fn multiply<'s>(w: &Matrix, x: &Activations, band: &Band<'_>, work: &mut Work, sums: &'s mut Scratch) -> Sums<'s> {
    let (columns, rows) = (band.columns(), band.rows());
    let done = quant::visit(w.ty, Multiply { w, x, columns: columns.clone(), rows, work, sums });
    debug_assert!(done.is_some(), "checked in `Matrix::new`");
    let (lanes, padded) = done.unwrap_or((PAD, 0));
    let (floats, _) = sums.two::<f32, u8>(columns.len().div_ceil(lanes) * lanes * padded, 0);
    Sums { floats, rows: padded, lanes, height: w.rows }
}

/// The product of one band, format still to be chosen; gives the lanes of a group and the padded activation rows.
struct Multiply<'a> {
    w: &'a Matrix,
    x: &'a Activations,
    /// Weight rows.
    columns: Range<usize>,
    /// Activation rows.
    rows: Range<usize>,
    work: &'a mut Work,
    sums: &'a mut Scratch,
}

impl Visitor for Multiply<'_> {
    type Out = (usize, usize);

    fn block<B: Block>(self) -> (usize, usize) {
        let (level, rows) = (self.x.level, self.rows.len());
        if self.x.rows == 1 {
            (dispatch(level, single::Single::<B>::new(self)), 1)
        } else {
            (dispatch(level, tile::Expanded::<B>::new(self)), rows.next_multiple_of(4))
        }
    }

    fn float<F: Float>(self) -> (usize, usize) {
        let (level, rows) = (self.x.level, self.rows.len());
        (dispatch(level, float::FloatRows::<F>::new(self)), rows)
    }
}
