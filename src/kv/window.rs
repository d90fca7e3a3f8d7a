//! The local window: for each layer the rotated keys and the values of the last tokens.
//!
//! Positions are those of the text since the last reset: entry `i` of the window is token `first() + i`. Keys are rotated
//! once, when they come in; evicting from the front moves no position (RoPE depends on differences only), so nothing is
//! rotated again. Memory wants unrotated keys: whoever moves entries there turns them back, which is exact up to rounding.
//!
//! Invariant: every layer holds exactly `len()` entries, except while a forward pass is appending a batch, and but for the
//! layers above the last stored one while a document is read into memory (they hold none, and nobody asks).

use crate::error::{Error, Result};
use crate::kernels::attention::{KvSegment, QueryKind, Visibility};
use crate::kernels::codec::Codec;
use crate::threads::Pass;

/// Elements that make one chunk of a batch's encoding.
const ENCODED_AT_ONCE: usize = 4096;

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
    /// Bytes of the keys and of the values of `tokens` tokens.
    fn bytes(&self, codec: Codec, tokens: usize) -> (usize, usize) {
        let each = tokens * self.heads_kv * codec.bytes();
        (each * self.key_length, each * self.value_length)
    }
}

#[derive(Default)]
struct Layer {
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// The local context of a session.
pub struct Window {
    shapes: Vec<LayerShape>,
    layers: Vec<Layer>,
    codec: Codec,
    capacity: usize,
    len: usize,
    first: i64,
}

impl Window {
    /// An empty window of at most `capacity` tokens.
    pub fn new(shapes: Vec<LayerShape>, codec: Codec, capacity: usize) -> Window {
        let layers = shapes.iter().map(|_| Layer::default()).collect();
        Window { shapes, layers, codec, capacity, len: 0, first: 0 }
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
        self.layers.iter().map(|l| l.keys.capacity() + l.values.capacity()).sum()
    }

    /// Makes room for `n` more tokens, or says that the window or the RAM is too small. Nothing changes on error.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        let need = self.len + n;
        if need > self.capacity {
            return Err(Error::Limit { what: "context window (tokens)".into(), limit: self.capacity as u64, asked: need as u64 });
        }
        for (layer, shape) in self.layers.iter_mut().zip(&self.shapes) {
            let (keys, values) = shape.bytes(self.codec, need);
            grow(&mut layer.keys, keys)?;
            grow(&mut layer.values, values)?;
        }
        Ok(())
    }

    /// Appends a batch's keys and values, `(tokens, heads_kv, length)`, to one layer. Between the first layer of a batch and
    /// [`Window::advance`] the layers differ in length.
    pub fn append(&mut self, pass: &Pass<'_>, layer: usize, keys: &[f32], values: &[f32]) {
        let (l, codec) = (&mut self.layers[layer], self.codec);
        for (floats, bytes) in [(keys, &mut l.keys), (values, &mut l.values)] {
            let start = bytes.len();
            bytes.resize(start + floats.len() * codec.bytes(), 0);
            pass.for_each_chunk(&mut bytes[start..], ENCODED_AT_ONCE * codec.bytes(), |i, bytes| {
                codec.encode(&floats[i * ENCODED_AT_ONCE..][..bytes.len() / codec.bytes()], bytes);
            });
        }
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
            let (keys, values) = shape.bytes(self.codec, self.len);
            layer.keys.truncate(keys);
            layer.values.truncate(values);
        }
    }

    /// Drops the `n` oldest entries.
    pub fn evict(&mut self, n: usize) {
        let n = n.min(self.len);
        for (layer, shape) in self.layers.iter_mut().zip(&self.shapes) {
            let (keys, values) = shape.bytes(self.codec, n);
            layer.keys.drain(..keys.min(layer.keys.len()));
            layer.values.drain(..values.min(layer.values.len()));
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
    pub fn entries(&self, layer: usize, n: usize, keys: &mut Vec<f32>, values: &mut Vec<f32>) {
        let (shape, l) = (&self.shapes[layer], &self.layers[layer]);
        for (bytes, length, out) in [(&l.keys, shape.key_length, keys), (&l.values, shape.value_length, values)] {
            out.clear();
            out.resize(n * shape.heads_kv * length, 0.0);
            self.codec.decode(&bytes[..out.len() * self.codec.bytes()], out);
        }
    }

    /// What KV head `head` of `layer` holds, the batch just appended included, for attention.
    pub fn segment(&self, layer: usize, head: usize) -> KvSegment<'_> {
        let shape = &self.shapes[layer];
        let l = &self.layers[layer];
        let each = self.codec.bytes();
        let len = l.keys.len() / shape.bytes(self.codec, 1).0;
        KvSegment {
            codec: self.codec,
            keys: l.keys.get(head * shape.key_length * each..).unwrap_or(&[]),
            values: l.values.get(head * shape.value_length * each..).unwrap_or(&[]),
            key_stride: shape.heads_kv * shape.key_length,
            value_stride: shape.heads_kv * shape.value_length,
            len,
            query: QueryKind::Local,
            visibility: Visibility::Causal { first: self.len, window: shape.sliding_window },
        }
    }
}

fn grow(v: &mut Vec<u8>, len: usize) -> Result<()> {
    if len > v.capacity() {
        // Half as much again, so that decoding token by token does not copy the window each time.
        let want = len.max(v.capacity() + v.capacity() / 2);
        v.try_reserve_exact(want - v.len()).map_err(|_| Error::OutOfMemory { what: "the local window", bytes: want as u64 })?;
    }
    Ok(())
}
