//! A block in memory: every layer's extent in the layout of the file, filled token by token, with its summary.
//!
//! The summary of a block's head is the mean of its stored (not of its given) keys, as they decode, encoded as the index keeps it, and
//! the radius: no key of the block is farther from what is kept of the mean. For a query `q`, `q·mean + |q|·radius` is thus an upper bound of every score in the block.

use super::form::Form;
use super::geometry::Side;
use super::{BlockView, Geometry, LayerKv};
use crate::bytes::AlignedBytes;
use crate::error::{Error, Result, try_with_capacity, try_zeroed};
use crate::kernels::sketch;
use crate::kernels::tiles::TILE_TOKENS;
use crate::quant::dequantise;
use crate::threads::Pass;

/// One block that is not in a segment yet.
pub struct Block {
    /// `[layer slot]` of extents with room for a full block.
    bytes: AlignedBytes,
    /// Tokens in it.
    pub len: usize,
    /// How mean keys are kept.
    form: Form,
    /// Encoded mean keys, `(layer slot, head)`.
    means: Vec<u8>,
    /// Radii, `(layer slot, head)`.
    radii: Vec<f32>,
}

impl Block {
    /// An empty block.
    pub fn new(geometry: &Geometry, form: Form) -> Result<Block> {
        let heads = geometry.layer_count() * geometry.heads();
        Ok(Block {
            bytes: AlignedBytes::zeroed("a memory block", geometry.layer_count() * form.extent_bytes(geometry, geometry.block_len()))?,
            len: 0,
            form,
            means: try_zeroed("a memory block's index", heads * form.row_bytes(geometry))?,
            radii: try_zeroed("a memory block's index", heads)?,
        })
    }

    /// All extents, with room for a full block.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes up the bytes of another block of this geometry, which has `len` tokens.
    pub fn fill(&mut self, bytes: &[u8], len: usize) {
        self.bytes.copy_from_slice(bytes);
        self.len = len;
    }

    /// The extent of a layer slot, of the size of a full block.
    pub fn extent(&self, geometry: &Geometry, layer_slot: usize) -> &[u8] {
        let size = self.form.extent_bytes(geometry, geometry.block_len());
        &self.bytes[layer_slot * size..][..size]
    }

    /// A head's rows.
    pub fn run(&self, geometry: &Geometry, layer_slot: usize, side: Side, head: usize) -> &[u8] {
        let start = geometry.run_offset(side, head, geometry.block_len());
        &self.extent(geometry, layer_slot)[start..][..geometry.run_bytes(side, self.len)]
    }

    /// The extent as it stands in a file: packed for the present number of tokens.
    pub fn pack(&self, geometry: &Geometry, layer_slot: usize, out: &mut Vec<u8>) -> Result<()> {
        let size = self.form.extent_bytes(geometry, self.len);
        out.clear();
        crate::error::try_grow(out, "packing a memory block", size)?;
        for side in [Side::Keys, Side::Values] {
            for head in 0..geometry.heads() {
                let run = self.run(geometry, layer_slot, side, head);
                out[geometry.run_offset(side, head, self.len)..][..run.len()].copy_from_slice(run);
            }
        }
        Ok(())
    }

    /// Appends tokens `from..from + count` of the given rows; there is room, and every number fits the codec (see [`check_rows`]).
    pub fn push(&mut self, pass: &Pass<'_>, geometry: &Geometry, rows: &[LayerKv<'_>], from: usize, count: usize) {
        let (step, len) = (self.form.extent_bytes(geometry, geometry.block_len()), self.len);
        pass.for_each_chunk(&mut self.bytes, step, |slot, extent| {
            for (side, given) in [(Side::Keys, rows[slot].keys), (Side::Values, rows[slot].values)] {
                let length = geometry.length(side);
                for head in 0..geometry.heads() {
                    let start = geometry.run_offset(side, head, geometry.block_len());
                    let run = &mut extent[start..][..geometry.run_bytes(side, geometry.block_len())];
                    for i in 0..count {
                        let row = &given[((from + i) * geometry.heads() + head) * length..][..length];
                        put(geometry, side, run, len + i, row);
                    }
                }
            }
        });
        self.len += count;
    }

    /// Computes means and radii anew from the stored keys, of the layers that have them, with room for each layer slot. The result depends on the tokens only, not on how
    /// many appends brought them.
    pub fn summarise(&mut self, pass: &Pass<'_>, geometry: &Geometry, scratch: &mut [Scratch]) {
        let (form, row, heads) = (self.form, self.form.row_bytes(geometry), geometry.heads());
        let this = &*self;
        pass.for_each_chunk(scratch, 1, |slot, scratch| {
            for scratch in scratch {
                let Scratch { radii, rows, of_run } = scratch;
                if form.summary_slot(geometry, slot).is_none() {
                    continue;
                }
                for (head, (radius, row)) in radii.iter_mut().zip(rows.chunks_exact_mut(row)).enumerate() {
                    *radius = of_run.summarise(geometry, form, this.run(geometry, slot, Side::Keys, head), this.len, row);
                }
            }
        });
        for (slot, Scratch { radii, rows, .. }) in scratch.iter().enumerate() {
            self.means[slot * heads * row..][..heads * row].copy_from_slice(rows);
            self.radii[slot * heads..][..heads].copy_from_slice(radii);
        }
    }

    /// Encoded mean key of a head, and its radius.
    pub fn summary(&self, geometry: &Geometry, layer_slot: usize, head: usize) -> (&[u8], f32) {
        let (at, row) = (layer_slot * geometry.heads() + head, self.form.row_bytes(geometry));
        (&self.means[at * row..][..row], self.radii[at])
    }

    /// Bytes it occupies.
    pub fn resident_bytes(&self) -> u64 {
        (self.bytes.len() + self.means.len() + 4 * self.radii.len()) as u64
    }
}

/// Room to summarise a layer slot of a block in, and what comes of it.
pub struct Scratch {
    radii: Vec<f32>,
    rows: Vec<u8>,
    of_run: RunScratch,
}

impl Scratch {
    /// One for each layer slot.
    pub fn of_layers(geometry: &Geometry, form: Form) -> Result<Vec<Scratch>> {
        const WHAT: &str = "a memory block's index";
        let mut out = try_with_capacity(WHAT, geometry.layer_count())?;
        for _ in 0..geometry.layer_count() {
            let (radii, rows) = (try_zeroed(WHAT, geometry.heads())?, try_zeroed(WHAT, geometry.heads() * form.row_bytes(geometry))?);
            out.push(Scratch { radii, rows, of_run: RunScratch::new(geometry)? });
        }
        Ok(out)
    }
}

/// Room to look at the keys of a run in.
pub struct RunScratch {
    keys: Vec<f32>,
    mean: Vec<f32>,
    sums: Vec<f64>,
    row: Vec<u8>,
}

impl RunScratch {
    /// For full blocks.
    pub fn new(geometry: &Geometry) -> Result<RunScratch> {
        const WHAT: &str = "a memory block's index";
        let length = geometry.length(Side::Keys);
        let keys = try_zeroed(WHAT, geometry.block_len() * length)?;
        let row = try_with_capacity(WHAT, 4 * length)?;
        Ok(RunScratch { keys, mean: try_zeroed(WHAT, length)?, sums: try_zeroed(WHAT, length)?, row })
    }

    /// Encodes the mean of a run of `len` keys and returns the radius.
    pub fn summarise(&mut self, geometry: &Geometry, form: Form, run: &[u8], len: usize, row: &mut [u8]) -> f32 {
        let keys = decoded(geometry, run, len, &mut self.keys);
        mean_of(keys, &mut self.mean, &mut self.sums);
        form.encode(geometry, &mut self.mean, &mut self.row, row);
        radius_of(keys, &self.mean)
    }

    /// Writes the sketches of a run of `len` keys around what `row` has kept of their mean; none where `out` is empty.
    pub fn sketch(&mut self, geometry: &Geometry, form: Form, run: &[u8], len: usize, row: &[u8], out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        dequantise(form.row_type(geometry), row, &mut self.mean)?;
        sketch::encode(decoded(geometry, run, len, &mut self.keys), &self.mean, out);
        Ok(())
    }
}

/// The keys of a run of `len` as they decode.
fn decoded<'a>(geometry: &Geometry, run: &[u8], len: usize, keys: &'a mut [f32]) -> &'a mut [f32] {
    let length = geometry.length(Side::Keys);
    let keys = &mut keys[..len * length];
    BlockView { bytes: run, codec: geometry.codec, side: Side::Keys, len, length }.decode(keys);
    keys
}

/// Writes the row of token `token` of a run.
fn put(geometry: &Geometry, side: Side, run: &mut [u8], token: usize, row: &[f32]) {
    let row_bytes = geometry.row_bytes(side);
    if let Some(codec) = geometry.codec.of(side).codec() {
        codec.encode(row, &mut run[token * row_bytes..][..row_bytes]);
    } else if let Some(layout) = geometry.tiles() {
        let tile = &mut run[token / TILE_TOKENS * TILE_TOKENS * row_bytes..][..TILE_TOKENS * row_bytes];
        match side {
            Side::Keys => layout.put_key(tile, token % TILE_TOKENS, row),
            Side::Values => layout.put_value(tile, token % TILE_TOKENS, row),
        }
    }
}

/// Mean of the rows in `keys`, each as long as `mean`. Sums run in f64, in order.
fn mean_of(keys: &[f32], mean: &mut [f32], sums: &mut [f64]) {
    let rows = keys.chunks_exact(mean.len());
    let count = rows.len().max(1) as f64;
    sums.fill(0.0);
    for row in rows {
        for (s, k) in sums.iter_mut().zip(row) {
            *s += f64::from(*k);
        }
    }
    for (m, s) in mean.iter_mut().zip(sums.iter()) {
        *m = (s / count) as f32;
    }
}

/// The largest distance of a row in `keys` from `mean`, rounded up.
fn radius_of(keys: &[f32], mean: &[f32]) -> f32 {
    let distance = |row: &[f32]| row.iter().zip(mean).map(|(k, m)| (f64::from(*k) - f64::from(*m)).powi(2)).sum::<f64>();
    let radius = keys.chunks_exact(mean.len()).map(distance).fold(0.0, f64::max).sqrt();
    let rounded = radius as f32;
    if f64::from(rounded) < radius { rounded.next_up() } else { rounded }
}

/// Checks the shape of what is to be appended, and that every number stays finite in the codec: a NaN or an infinity in a
/// memory would spoil every later softmax over it.
pub fn check_rows(geometry: &Geometry, count: usize, rows: &[LayerKv<'_>]) -> Result<()> {
    if rows.len() != geometry.layer_count() {
        return Err(Error::argument("keys_values", format!("{} layers", geometry.layer_count()), rows.len()));
    }
    for (slot, layer) in rows.iter().enumerate() {
        for (name, side, given) in [("keys", Side::Keys, layer.keys), ("values", Side::Values, layer.values)] {
            let row = geometry.heads() * geometry.length(side);
            if count.checked_mul(row) != Some(given.len()) {
                let expected = format!("{count} tokens of {} heads of {} elements", geometry.heads(), geometry.length(side));
                return Err(Error::argument(name, expected, format!("{} elements in layer slot {slot}", given.len())));
            }
            if let Some(i) = given.iter().position(|x| !geometry.codec.holds(*x)) {
                let (token, head) = (i / row, i % row / geometry.length(side));
                let found = format!("{} in layer slot {slot}, token {token}, head {head}", given[i]);
                return Err(Error::argument(name, format!("finite numbers that {} can hold", geometry.codec), found));
            }
        }
    }
    Ok(())
}
