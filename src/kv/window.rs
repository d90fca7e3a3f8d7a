//! The local window: for each layer the rotated keys and the values of the last tokens.
//!
//! Positions are those of the text since the last reset: entry `i` of the window is token `first() + i`. Keys are rotated
//! once, when they come in; evicting from the front moves no position (RoPE depends on differences only), so nothing is
//! rotated again. Memory wants unrotated keys: whoever moves entries there turns them back, which is exact up to rounding.
//!
//! Invariant: every layer holds exactly `len()` entries, except while a forward pass is appending a batch, and but for the
//! layers above the last stored one while a document is read into memory (they hold none, and nobody asks).

use crate::error::{Error, Result, try_grow};
use crate::kernels::attention::{Entries, KvSegment, QueryKind, Visibility};
use crate::kernels::tiles::{KvType, TILE_TOKENS, TileLayout};
use crate::threads::Pass;

/// Tiles that make one chunk of a batch's encoding.
const TILES_AT_ONCE: usize = 2;

/// What one layer stores per token.
#[derive(Clone, Copy, Debug)]
pub struct LayerShape {
    /// KV heads.
    pub heads_kv: usize,
    /// Elements of a key.
    pub key_length: usize,
    /// Elements of a value.
    pub value_length: usize,
    /// Sliding window of this layer; 0 is unlimited.
    pub sliding_window: usize,
}

impl LayerShape {
    fn tile(&self, kv: KvType) -> TileLayout {
        TileLayout { keys: kv, values: kv, key_length: self.key_length, value_length: self.value_length }
    }

    /// Bytes from one head's tile to its next one: the tiles of all heads.
    fn stride(&self, kv: KvType) -> usize {
        self.heads_kv * self.tile(kv).bytes()
    }

    /// Bytes of the tiles of `tokens` tokens; more than any allocator has, if that is more than can be counted.
    fn bytes(&self, kv: KvType, tokens: usize) -> usize {
        tokens.div_ceil(TILE_TOKENS).saturating_mul(self.stride(kv))
    }
}

/// Tiles of sixteen tokens, `(tiles, heads_kv)`.
#[derive(Default)]
struct Layer {
    tiles: Vec<u8>,
    /// Tokens held.
    len: usize,
}

/// The local context of a session.
pub struct Window {
    shapes: Vec<LayerShape>,
    layers: Vec<Layer>,
    kv: KvType,
    capacity: usize,
    len: usize,
    first: i64,
}

impl Window {
    /// An empty window of at most `capacity` tokens.
    pub fn new(shapes: Vec<LayerShape>, kv: KvType, capacity: usize) -> Window {
        let layers = shapes.iter().map(|_| Layer::default()).collect();
        Window { shapes, layers, kv, capacity, len: 0, first: 0 }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most tokens it may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Lets it hold more tokens than it was made for.
    pub fn raise_capacity(&mut self, capacity: usize) {
        self.capacity = self.capacity.max(capacity);
    }

    /// Position of the oldest entry.
    pub fn first(&self) -> i64 {
        self.first
    }

    /// Position of the next token.
    pub fn next_position(&self) -> i64 {
        self.first + self.len as i64
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|l| l.tiles.capacity()).sum()
    }

    /// Makes room for `n` more tokens, or says that the window or the RAM is too small. Nothing changes on error.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        let need = self.len + n;
        if need > self.capacity {
            return Err(Error::Limit { what: "context window (tokens)".into(), limit: self.capacity as u64, asked: need as u64 });
        }
        for (layer, shape) in self.layers.iter_mut().zip(&self.shapes) {
            grow(&mut layer.tiles, shape.bytes(self.kv, need), shape.bytes(self.kv, self.capacity))?;
        }
        Ok(())
    }

    /// Bytes of a window of these layers that is full.
    pub fn bytes_full(shapes: &[LayerShape], kv: KvType, capacity: usize) -> u64 {
        shapes.iter().map(|s| s.bytes(kv, capacity) as u64).sum()
    }

    /// Gives back room that is not in use.
    pub fn shrink(&mut self) {
        self.layers.iter_mut().for_each(|l| l.tiles.shrink_to_fit());
    }

    /// Appends a batch's keys and values, `(tokens, heads_kv, length)`, to one layer. Between the first layer of a batch and
    /// [`Window::advance`] the layers differ in length.
    pub fn append(&mut self, pass: &Pass<'_>, layer: usize, keys: &[f32], values: &[f32]) {
        let (shape, l) = (&self.shapes[layer], &mut self.layers[layer]);
        let (tile, stride) = (shape.tile(self.kv), shape.stride(self.kv));
        let (key_row, value_row) = (shape.heads_kv * shape.key_length, shape.heads_kv * shape.value_length);
        let (first, end) = (l.len, l.len + keys.len() / key_row);
        l.tiles.resize(shape.bytes(self.kv, end), 0);
        l.len = end;
        let whole = first / TILE_TOKENS;
        pass.for_each_chunk(&mut l.tiles[whole * stride..], TILES_AT_ONCE * stride, |i, tiles| {
            for (i, heads) in (whole + i * TILES_AT_ONCE..).zip(tiles.chunks_exact_mut(stride)) {
                for token in first.max(i * TILE_TOKENS)..end.min((i + 1) * TILE_TOKENS) {
                    let keys = keys[(token - first) * key_row..][..key_row].chunks_exact(shape.key_length);
                    let values = values[(token - first) * value_row..][..value_row].chunks_exact(shape.value_length);
                    for (head, (key, value)) in heads.chunks_exact_mut(tile.bytes()).zip(keys.zip(values)) {
                        tile.put(head, token % TILE_TOKENS, key, value);
                    }
                }
            }
        });
    }

    /// Ends a batch of `n` tokens: all layers have it now.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
    }

    /// Drops what an interrupted batch has appended to some layers.
    pub fn roll_back(&mut self) {
        self.truncate(self.len);
    }

    /// Keeps the first `len` entries.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for (layer, shape) in self.layers.iter_mut().zip(&self.shapes) {
            layer.tiles.truncate(shape.bytes(self.kv, self.len));
            layer.len = layer.len.min(self.len);
        }
    }

    /// Drops the `n` oldest entries.
    pub fn evict(&mut self, n: usize) {
        let n = n.min(self.len);
        for (layer, shape) in self.layers.iter_mut().zip(&self.shapes) {
            layer.evict(n, shape, self.kv);
        }
        self.first += n as i64;
        self.len -= n;
    }

    /// Empties the window and starts counting positions at 0.
    pub fn clear(&mut self) {
        self.truncate(0);
        self.first = 0;
    }

    /// Rotated keys and values, `(n, heads_kv, length)` each, of the `n` oldest entries of a layer.
    pub fn entries(&self, layer: usize, n: usize, keys: &mut Vec<f32>, values: &mut Vec<f32>) -> Result<()> {
        let (shape, l) = (&self.shapes[layer], &self.layers[layer]);
        let tile = shape.tile(self.kv);
        keys.clear();
        values.clear();
        try_grow(keys, "what leaves the window", n * shape.heads_kv * shape.key_length)?;
        try_grow(values, "what leaves the window", n * shape.heads_kv * shape.value_length)?;
        let entries = keys.chunks_exact_mut(shape.key_length).zip(values.chunks_exact_mut(shape.value_length));
        for (i, (key, value)) in entries.enumerate() {
            let (token, head) = (i / shape.heads_kv, i % shape.heads_kv);
            let at = token / TILE_TOKENS * shape.stride(self.kv) + head * tile.bytes();
            tile.get(&l.tiles[at..][..tile.bytes()], token % TILE_TOKENS, key, value);
        }
        Ok(())
    }

    /// Each layer's tokens and its tiles as they lie, for a snapshot.
    pub fn contents(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.layers.iter().map(|l| (l.len, &l.tiles[..]))
    }

    /// Takes up what [`Window::contents`] of an equal window gave, whose first entry was at position `first`; every layer has `len`
    /// entries. False, and nothing changed, if it does not fit.
    pub fn restore(&mut self, first: i64, len: usize, layers: &[(usize, &[u8])]) -> Result<bool> {
        let fits =
            |((tokens, tiles), shape): (&(usize, &[u8]), &LayerShape)| *tokens == len && tiles.len() == shape.bytes(self.kv, *tokens);
        if len > self.capacity || layers.len() != self.layers.len() || !layers.iter().zip(&self.shapes).all(fits) {
            return Ok(false);
        }
        for (layer, (tokens, tiles)) in self.layers.iter_mut().zip(layers) {
            layer.tiles.clear();
            grow(&mut layer.tiles, tiles.len(), tiles.len())?;
            layer.tiles.extend_from_slice(tiles);
            layer.len = *tokens;
        }
        (self.first, self.len) = (first, len);
        Ok(true)
    }

    /// What KV head `head` of `layer` holds, the batch just appended included, for attention.
    pub fn segment(&self, layer: usize, head: usize) -> KvSegment<'_> {
        let (shape, l) = (&self.shapes[layer], &self.layers[layer]);
        let layout = shape.tile(self.kv);
        let keys = l.tiles.get(head * layout.bytes()..).unwrap_or(&[]);
        let values = keys.get(layout.key_bytes()..).unwrap_or(&[]);
        let stride = shape.stride(self.kv);
        KvSegment {
            entries: Entries::Tiles { layout, keys, values, key_stride: stride, value_stride: stride },
            len: l.len,
            query: QueryKind::Local,
            visibility: Visibility::Causal { first: self.len, window: shape.sliding_window },
        }
    }
}

impl Layer {
    fn evict(&mut self, n: usize, shape: &LayerShape, kv: KvType) {
        let n = n.min(self.len);
        let (tile, stride) = (shape.tile(kv), shape.stride(kv));
        self.tiles.drain(..n / TILE_TOKENS * stride);
        self.len -= n;
        let odd = n % TILE_TOKENS;
        if odd > 0 {
            for token in 0..self.len {
                for head in 0..shape.heads_kv {
                    let place = |token: usize| (token / TILE_TOKENS * stride + head * tile.bytes(), token % TILE_TOKENS);
                    tile.shift(&mut self.tiles, place(token + odd), place(token));
                }
            }
        }
        self.tiles.truncate(shape.bytes(kv, self.len));
    }
}

fn grow(v: &mut Vec<u8>, len: usize, most: usize) -> Result<()> {
    if len > v.capacity() {
        // Half as much again, so that decoding token by token does not copy the window each time, and never more than a full one.
        let want = len.max((v.capacity() + v.capacity() / 2).min(most));
        v.try_reserve_exact(want - v.len()).map_err(|_| Error::OutOfMemory { what: "the local window", bytes: want as u64 })?;
    }
    Ok(())
}
