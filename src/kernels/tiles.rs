//! How the local window lays out keys and values: in tiles of sixteen tokens, so that attention reads them as they lie.
//!
//! A tile of one KV head is a sequence of *planes*, each with an equal share of every token, tokens in order:
//!
//! - keys: a plane per element, so that the lanes of a vector are tokens and scores need no sums across lanes;
//! - values: one plane with each token's row, filled with zeros up to a whole number of sixteen elements.
//!
//! Invariant: what a tile holds of a token depends on that token alone, so tokens may be written one by one and in any order,
//! and a tile's unused places may hold anything.

use super::codec::Codec;

/// Tokens of a tile.
pub const TILE_TOKENS: usize = 16;

/// Sizes of a tile of one KV head.
#[derive(Clone, Copy, Debug)]
pub struct TileLayout {
    /// Encoding of keys and values.
    pub codec: Codec,
    /// Elements of a key.
    pub key_length: usize,
    /// Elements of a value.
    pub value_length: usize,
}

impl TileLayout {
    /// Elements of a value's row, zeros included.
    pub const fn value_width(&self) -> usize {
        self.value_length.next_multiple_of(TILE_TOKENS)
    }

    /// Bytes of the keys of a tile; the values follow.
    pub const fn key_bytes(&self) -> usize {
        self.key_length * TILE_TOKENS * self.codec.bytes()
    }

    /// Bytes of the values of a tile.
    pub const fn value_bytes(&self) -> usize {
        self.value_width() * TILE_TOKENS * self.codec.bytes()
    }

    /// Bytes of a tile.
    pub const fn bytes(&self) -> usize {
        self.key_bytes() + self.value_bytes()
    }

    /// Writes the key and the value of token `slot` of `tile`.
    pub fn put(&self, tile: &mut [u8], slot: usize, key: &[f32], value: &[f32]) {
        debug_assert!(slot < TILE_TOKENS && key.len() == self.key_length && value.len() == self.value_length);
        let each = self.codec.bytes();
        let (keys, values) = tile.split_at_mut(self.key_bytes());
        let mut encoded = [0; 4 * PIECE];
        for (key, planes) in key.chunks(PIECE).zip(keys.chunks_mut(PIECE * TILE_TOKENS * each)) {
            let encoded = &mut encoded[..key.len() * each];
            self.codec.encode(key, encoded);
            match each {
                2 => scatter::<2>(encoded, planes, slot),
                _ => scatter::<4>(encoded, planes, slot),
            }
        }
        let row = &mut values[slot * self.value_width() * each..][..self.value_width() * each];
        let (row, rest) = row.split_at_mut(self.value_length * each);
        self.codec.encode(value, row);
        rest.fill(0);
    }

    /// Reads the key and the value of token `slot` of `tile`.
    pub fn get(&self, tile: &[u8], slot: usize, key: &mut [f32], value: &mut [f32]) {
        let each = self.codec.bytes();
        let (keys, values) = tile.split_at(self.key_bytes());
        let mut encoded = [0; 4 * PIECE];
        for (key, planes) in key.chunks_mut(PIECE).zip(keys.chunks(PIECE * TILE_TOKENS * each)) {
            let encoded = &mut encoded[..key.len() * each];
            for (element, plane) in encoded.chunks_exact_mut(each).zip(planes.chunks_exact(TILE_TOKENS * each)) {
                element.copy_from_slice(&plane[slot * each..][..each]);
            }
            self.codec.decode(encoded, key);
        }
        self.codec.decode(&values[slot * self.value_width() * each..][..self.value_length * each], value);
    }

    /// Moves the token at `from`, as (first byte of its tile, slot), to `to`, which lies before it.
    pub fn shift(&self, tiles: &mut [u8], from: (usize, usize), to: (usize, usize)) {
        let mut plane = 0;
        for (planes, share) in self.planes() {
            for _ in 0..planes {
                let source = from.0 + plane + from.1 * share;
                tiles.copy_within(source..source + share, to.0 + plane + to.1 * share);
                plane += TILE_TOKENS * share;
            }
        }
    }

    /// The planes of a tile in order, as (how many, bytes of a token in each).
    fn planes(&self) -> [(usize, usize); 2] {
        let each = self.codec.bytes();
        [(self.key_length, each), (1, self.value_width() * each)]
    }
}

/// Elements of a key that are encoded at once.
const PIECE: usize = 64;

/// Writes elements of `N` bytes to place `slot` of consecutive planes.
fn scatter<const N: usize>(elements: &[u8], planes: &mut [u8], slot: usize) {
    let places = planes.as_chunks_mut::<N>().0;
    for (element, plane) in elements.as_chunks::<N>().0.iter().zip(places.chunks_exact_mut(TILE_TOKENS)) {
        plane[slot] = *element;
    }
}
