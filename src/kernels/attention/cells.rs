//! Keys and values as the products read them: in cells of sixteen elements, in place where the window's tiles are encoded floats,
//! else decoded into a buffer.
//!
//! A tile is sixteen tokens. Of keys, it has a cell for each element, which holds that element of every token; of values, it has
//! the cells of the first token's row, then those of the second's, and so on. Decoded keys of four tiles stand side by side, so
//! that they are read from one stream.

use super::{Entries, KvSegment};
use crate::kernels::codec::{Bf16, Codec, Encoding, F16, F32};
use crate::kernels::tiles::{TILE_TOKENS, TileLayout};
use crate::kernels::vector::LANES;
use crate::simd::{Rows, Simd, prefetch, prefetch_ahead};

/// Keys and values that lie in memory are asked for this many bytes before they are read, a line or two at a time between the products:
/// asked for all at once, they keep the core from what it could do meanwhile.
pub(super) const AHEAD: usize = 16 << 10;

/// How a cell is stored.
pub(super) trait Cells {
    /// What cells are cut from.
    type Element: crate::simd::Plain;
    /// Sixteen elements; of keys, of each of `TILES` tiles.
    type Cell;
    /// See there.
    const TILES: usize;
    /// Bytes of a cell where it is read from memory, in place, of one tile; else 0.
    const IN_PLACE: usize;
    /// The cells that a slice consists of.
    fn cut(elements: &[Self::Element]) -> &[Self::Cell];
    /// `LANES` elements of a cell, the first of which is number `from`.
    fn load<S: Simd>(s: S, cell: &Self::Cell, from: usize) -> S::F;
}

/// Decoded.
pub(super) struct Floats;
/// Decoded keys.
pub(super) struct FloatKeys;

/// Tiles of decoded keys that stand side by side.
pub(super) const ABREAST: usize = 4;

impl Cells for FloatKeys {
    type Element = f32;
    type Cell = [f32; 16 * ABREAST];
    const TILES: usize = ABREAST;
    const IN_PLACE: usize = 0;
    #[inline(always)]
    fn cut(elements: &[f32]) -> &[[f32; 16 * ABREAST]] {
        elements.as_chunks().0
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, cell: &[f32; 16 * ABREAST], from: usize) -> S::F {
        s.load(&cell[from..])
    }
}

impl Cells for Floats {
    type Element = f32;
    type Cell = [f32; 16];
    const TILES: usize = 1;
    const IN_PLACE: usize = 0;
    #[inline(always)]
    fn cut(elements: &[f32]) -> &[[f32; 16]] {
        elements.as_chunks().0
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, cell: &[f32; 16], from: usize) -> S::F {
        s.load(&cell[from..])
    }
}

macro_rules! encoded {
    ($name:ident, $bytes:literal) => {
        impl Cells for $name {
            type Element = u8;
            type Cell = [u8; $bytes];
            const TILES: usize = 1;
            const IN_PLACE: usize = $bytes;
            #[inline(always)]
            fn cut(elements: &[u8]) -> &[[u8; $bytes]] {
                elements.as_chunks().0
            }
            #[inline(always)]
            fn load<S: Simd>(s: S, cell: &[u8; $bytes], from: usize) -> S::F {
                <$name as Encoding>::load(s, &cell[from * $bytes / 16..])
            }
        }
    };
}
encoded!(F32, 64);
encoded!(F16, 32);
encoded!(Bf16, 32);

/// The cells of the keys, or of the values, of consecutive tiles.
pub(super) struct View<'a, T: Cells> {
    pub elements: &'a [T::Element],
    /// Elements from one tile to the next.
    pub stride: usize,
    /// Elements of a tile.
    pub each: usize,
    /// Bytes that will be wanted of each tile.
    pub wanted: usize,
}

impl<T: Cells> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Cells> Copy for View<'_, T> {}

impl<'a, T: Cells> View<'a, T> {
    /// How far behind a tile that one lies which is to be asked for now, at least `tiles` tiles later.
    #[inline(always)]
    pub fn ahead(&self, tiles: usize) -> usize {
        AHEAD.div_ceil(self.each.max(1)).max(tiles) * self.stride
    }

    /// The cells of tile `i`, and where in each of them it begins.
    #[inline(always)]
    pub fn tile(&self, i: usize) -> (&'a [T::Cell], usize) {
        (T::cut(&self.elements[i / T::TILES * self.stride..][..self.each]), i % T::TILES * TILE_TOKENS)
    }
}

impl<'a, T: Cells<Element = f32>> View<'a, T> {
    /// Of decoded tiles, one after the other; `each` is their size, or that of those that stand side by side.
    #[inline(always)]
    pub fn of(elements: &'a [f32], each: usize) -> Self {
        View { elements, stride: each, each, wanted: 0 }
    }
}

/// The keys of tiles from number `first` on, in place. Where values stand behind the keys they will be wanted with them.
#[inline(always)]
pub(super) fn keys_in_place<'a, T: Cells<Element = u8>>(layout: &TileLayout, keys: &'a [u8], stride: usize, first: usize) -> View<'a, T> {
    View { elements: keys.get(first * stride..).unwrap_or(&[]), stride, each: layout.key_bytes(), wanted: layout.bytes().min(stride) }
}

/// The values of tiles from number `first` on, in place.
#[inline(always)]
pub(super) fn values_in_place<'a, T: Cells<Element = u8>>(
    layout: &TileLayout,
    values: &'a [u8],
    stride: usize,
    first: usize,
) -> View<'a, T> {
    View { elements: values.get(first * stride..).unwrap_or(&[]), stride, each: layout.value_bytes(), wanted: 0 }
}

/// Runs `$call` with the type of a codec.
macro_rules! by_codec {
    ($codec:expr, $e:ident => $call:expr) => {
        match $codec {
            Codec::F32 => {
                type $e = F32;
                $call
            }
            Codec::F16 => {
                type $e = F16;
                $call
            }
            Codec::Bf16 => {
                type $e = Bf16;
                $call
            }
        }
    };
}

/// Keys `at .. at + n` of a segment, of `d` elements, as tiles into `out`. The last tile's columns behind them get anything.
#[inline(always)]
pub(super) fn decode_keys<S: Simd>(s: S, segment: &KvSegment<'_>, at: usize, n: usize, d: usize, spill: &mut Vec<u8>, out: &mut [f32]) {
    match &segment.entries {
        Entries::Rows { codec, keys, key_stride, .. } => {
            by_codec!(codec, E => transpose::<S, E>(s, keys, *key_stride, at, n, d, spill, out))
        }
        Entries::Tiles { layout, keys, key_stride, .. } => by_codec!(layout.keys.codec().unwrap_or(Codec::F16), E => {
            let view = keys_in_place::<E>(layout, keys, *key_stride, at / TILE_TOKENS);
            for ahead in ABREAST..ABREAST + n.div_ceil(TILE_TOKENS) {
                prefetch(view.elements, ahead * view.stride, view.wanted);
            }
            for i in 0..n.div_ceil(TILE_TOKENS) {
                let out = &mut out[i / ABREAST * d * ABREAST * LANES..][..d * ABREAST * LANES];
                copy::<S, E>(s, view.tile(i).0, &mut out[i % ABREAST * LANES..], ABREAST * LANES);
            }
        }),
    }
}

/// Values `at .. at + n` of a segment, of `length` elements, as rows of whole cells into `out`.
#[inline(always)]
pub(super) fn decode_values<S: Simd>(s: S, segment: &KvSegment<'_>, at: usize, n: usize, length: usize, out: &mut [f32]) {
    match &segment.entries {
        Entries::Rows { codec, values, value_stride, .. } => {
            by_codec!(codec, E => load::<S, E>(s, values, *value_stride, at, n, length, out))
        }
        Entries::Tiles { layout, values, value_stride, .. } if layout.values.codec().is_none() => {
            let tiles = values[at / TILE_TOKENS * value_stride..].chunks(*value_stride).take(n.div_ceil(TILE_TOKENS));
            for (tile, out) in tiles.zip(out.chunks_exact_mut(length * TILE_TOKENS)) {
                super::codes::decode_values(s, layout, &tile[..layout.value_bytes()], out);
            }
        }
        Entries::Tiles { layout, values, value_stride, .. } => by_codec!(layout.values.codec().unwrap_or(Codec::F16), E => {
            let view = values_in_place::<E>(layout, values, *value_stride, at / TILE_TOKENS);
            for (i, out) in out.chunks_exact_mut(layout.value_width() * TILE_TOKENS).take(n.div_ceil(TILE_TOKENS)).enumerate() {
                copy::<S, E>(s, view.tile(i).0, out, LANES);
            }
        }),
    }
}

/// Decodes cells to floats that begin `step` apart.
#[inline(always)]
fn copy<S: Simd, T: Cells>(s: S, cells: &[T::Cell], out: &mut [f32], step: usize) {
    for (cell, out) in cells.iter().zip(out.chunks_mut(step)) {
        for (v, out) in out[..LANES].chunks_exact_mut(S::LANES).enumerate() {
            s.store(T::load(s, cell, v * S::LANES), out);
        }
    }
}

/// Rows of keys into the columns of tiles.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn transpose<S: Simd, E: Encoding>(s: S, keys: &[u8], stride: usize, at: usize, n: usize, d: usize, spill: &mut Vec<u8>, out: &mut [f32]) {
    let (stride, row) = (stride * E::BYTES, d * E::BYTES);
    let padded = row.next_multiple_of(16);
    for first in (0..n).step_by(S::LANES) {
        let key = at + first;
        let whole = row == padded && first + S::LANES <= n && (key + S::LANES) * stride <= keys.len();
        let group = if whole {
            for r in key..key + S::LANES {
                prefetch_ahead(&keys[r * stride..], AHEAD, row);
            }
            Rows::new(keys, stride, key, S::LANES)
        } else {
            spill.clear();
            spill.resize(S::LANES * padded, 0);
            for (r, spill) in spill.chunks_exact_mut(padded).take(n - first).enumerate() {
                spill[..row].copy_from_slice(&keys[(key + r) * stride..][..row]);
            }
            Rows::new(spill, padded, 0, S::LANES)
        };
        let per_lane = 4 / E::BYTES;
        let keys = ABREAST * LANES;
        let tiles = &mut out[first / keys * d * keys..][..d * keys];
        for (c, out) in tiles.chunks_mut(4 * per_lane * keys).enumerate() {
            let words = s.transpose(s.rows_quad(&group, 16 * c));
            for (out, words) in out.chunks_mut(per_lane * keys).zip(words) {
                for (j, out) in out.chunks_exact_mut(keys).enumerate() {
                    s.store(E::lane(s, words, j), &mut out[first % keys..]);
                }
            }
        }
    }
}

/// Rows of values, filled with zeros up to a whole cell.
#[inline(always)]
fn load<S: Simd, E: Encoding>(s: S, values: &[u8], stride: usize, at: usize, n: usize, length: usize, out: &mut [f32]) {
    let stride = stride * E::BYTES;
    let whole = length - length % S::LANES;
    for (i, out) in out.chunks_exact_mut(length.next_multiple_of(LANES)).take(n).enumerate() {
        let bytes = &values[(at + i) * stride..][..length * E::BYTES];
        let (vectors, rest) = bytes.split_at(whole * E::BYTES);
        prefetch_ahead(bytes, AHEAD, bytes.len());
        for (b, o) in vectors.chunks_exact(S::LANES * E::BYTES).zip(out.chunks_exact_mut(S::LANES)) {
            s.store(E::load(s, b), o);
        }
        let end = &mut out[whole..];
        end.fill(0.0);
        if !rest.is_empty() {
            let mut last = [0; 4 * LANES];
            last[..rest.len()].copy_from_slice(rest);
            s.store(E::load(s, &last), end);
        }
    }
}
