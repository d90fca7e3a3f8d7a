//! The blocks that came back: kept unrotated in RAM while they are wanted, copied and rotated to where they are read.
//!
//! A block is read from its memory once, all layers together, each layer asked for ahead; so no kernel ever waits for a page of a
//! memory file. Blocks of earlier choices stay until the byte budget wants their room, the longest unused first.

use super::BlockAddress;
use crate::error::{Result, try_grow, try_reserve, try_with_capacity, try_zeroed};
use crate::kernels::codec::Codec;
use crate::kernels::rotary::Rotary;
use crate::memory::{ExtentRoom, Memory, Side};
use crate::model::hparams::Hparams;
use crate::threads::Pass;
use std::ops::Range;

/// Layers that a thread reads one after the other into the same room.
const LAYERS_READ_AT_ONCE: usize = 2;
/// Encoding of the copies.
pub const CODEC: Codec = Codec::F16;

/// One block of all stored layers.
struct Held {
    at: BlockAddress,
    /// Number of the choice that wanted it last.
    used: u64,
    tokens: usize,
    /// For each layer the keys `(tokens, heads_kv, key_length)`, then the values likewise.
    rows: Vec<u8>,
}

/// Blocks in RAM.
#[derive(Default)]
pub struct Blocks {
    held: Vec<Held>,
}

/// Bytes of a token's key, or value, of all heads.
fn row_bytes(h: &Hparams) -> (usize, usize) {
    (CODEC.row_bytes(h.head_count_kv * h.key_length), CODEC.row_bytes(h.head_count_kv * h.value_length))
}

/// Reads a block of a layer slot into keys and values, each with the bytes of a token; returns the bytes that were read.
fn load_layer(
    h: &Hparams,
    memory: &Memory,
    (slot, block): (usize, usize),
    [keys, values]: [(&mut [u8], usize); 2],
    room: &mut ExtentRoom,
) -> Result<u64> {
    let extent = memory.extent(slot, block, room)?;
    let (mut read, mut decoded) = (0, Vec::new());
    for (side, (out, width)) in [(Side::Keys, keys), (Side::Values, values)] {
        for head in 0..h.head_count_kv {
            let view = extent.rows(side, head);
            read += view.bytes.len() as u64;
            decoded.clear();
            try_grow(&mut decoded, "a block of a memory", view.len * view.length)?;
            view.decode(&mut decoded);
            let bytes = CODEC.row_bytes(view.length);
            for (t, row) in decoded.chunks_exact(view.length).enumerate() {
                CODEC.encode(row, &mut out[t * width + head * bytes..][..bytes]);
            }
        }
    }
    Ok(read)
}

impl Blocks {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.held.iter().map(|b| b.rows.len()).sum()
    }

    /// Drops the blocks of all memories but the first `keep`.
    pub fn truncate(&mut self, keep: usize) {
        self.held.retain(|b| b.at.memory < keep);
    }

    /// True if the block is held.
    pub fn holds(&self, at: BlockAddress) -> bool {
        self.held.iter().any(|b| b.at == at)
    }

    /// True if the block is held; it then counts as used by `choice`.
    pub fn use_for(&mut self, at: BlockAddress, choice: u64, len: usize) -> bool {
        let held = self.held.iter_mut().find(|b| b.at == at && b.tokens == len);
        held.is_some_and(|b| {
            b.used = choice;
            true
        })
    }

    /// Drops the longest unused blocks, none that is `wanted`, until `bytes` hold the rest.
    pub fn shrink(&mut self, bytes: usize, wanted: impl Fn(BlockAddress) -> bool) {
        while self.bytes() > bytes {
            let oldest = self.held.iter().enumerate().filter(|(_, b)| !wanted(b.at)).min_by_key(|(_, b)| b.used);
            let Some((i, _)) = oldest else { return };
            self.held.swap_remove(i);
        }
    }

    /// Reads a block of every layer; returns the bytes that were read.
    pub fn load(&mut self, pass: &Pass<'_>, h: &Hparams, memories: &[&Memory], at: BlockAddress, choice: u64) -> Result<u64> {
        let memory = memories[at.memory];
        let layers = memory.geometry().layers.len();
        let tokens = memory.block(at.block)?.len;
        let (key_row, value_row) = row_bytes(h);
        let mut rows = try_zeroed("a block of a memory", layers * tokens * (key_row + value_row))?;
        let mut parts = try_with_capacity("a block of a memory", layers)?;
        parts.extend(rows.chunks_exact_mut(tokens * (key_row + value_row)).map(|layer| (layer, Ok(0))));
        pass.for_each_chunk(&mut parts, LAYERS_READ_AT_ONCE, |i, parts| {
            let mut room = ExtentRoom::default();
            for (j, (layer, read)) in parts.iter_mut().enumerate() {
                let (keys, values) = layer.split_at_mut(tokens * key_row);
                *read = load_layer(h, memory, (i * LAYERS_READ_AT_ONCE + j, at.block), [(keys, key_row), (values, value_row)], &mut room);
            }
        });
        let read = parts.into_iter().map(|(_, read)| read).sum::<Result<u64>>()?;
        self.held.retain(|b| b.at != at);
        self.held.push(Held { at, used: choice, tokens, rows });
        Ok(read)
    }

    /// One layer's copy for attention: sinks and the chosen blocks, keys rotated to consecutive positions that end before `base`.
    pub fn place(
        &self,
        h: &Hparams,
        slot: usize,
        sinks: &Sinks,
        chosen: &[BlockAddress],
        place: (&Rotary, i64, &mut Turning),
        out: &mut Placed,
    ) -> Result<()> {
        let ((key_row, value_row), (rotary, base, room)) = (row_bytes(h), place);
        let found = || chosen.iter().filter_map(|at| self.held.iter().find(|b| b.at == *at));
        out.keys.clear();
        out.values.clear();
        room.keys.clear();
        let tokens = sinks.tokens + found().map(|b| b.tokens).sum::<usize>();
        try_reserve(&mut out.keys, PLACED, tokens * key_row)?;
        try_reserve(&mut out.values, PLACED, tokens * value_row)?;
        try_reserve(&mut room.keys, PLACED, tokens * h.head_count_kv * h.key_length)?;
        if sinks.tokens > 0 {
            room.keys.extend_from_slice(&sinks.keys[slot]);
            CODEC.append(&sinks.values[slot], &mut out.values);
        }
        out.tokens = sinks.tokens;
        for block in found() {
            let layer = &block.rows[slot * block.tokens * (key_row + value_row)..][..block.tokens * (key_row + value_row)];
            let (keys, values) = layer.split_at(block.tokens * key_row);
            let start = room.keys.len();
            room.keys.resize(start + block.tokens * h.head_count_kv * h.key_length, 0.0);
            CODEC.decode(keys, &mut room.keys[start..]);
            out.values.extend_from_slice(values);
            out.tokens += block.tokens;
        }
        room.turn(rotary, base - out.tokens as i64, h.head_count_kv, h.key_length)?;
        CODEC.append(&room.keys, &mut out.keys);
        Ok(())
    }
}

/// The first tokens of the text, kept when they leave the window: `(tokens, heads_kv, length)` per stored layer.
#[derive(Default)]
pub struct Sinks {
    pub tokens: usize,
    pub keys: Vec<Vec<f32>>,
    pub values: Vec<Vec<f32>>,
}

/// Room to rotate keys in, with the angles of the positions that were wanted last: all layers want the same.
#[derive(Default)]
pub struct Turning {
    /// `(tokens, heads_kv, key_length)`
    keys: Vec<f32>,
    angles: Vec<[f32; 2]>,
    positions: Range<i64>,
}

impl Turning {
    pub fn bytes(&self) -> usize {
        4 * self.keys.capacity() + 8 * self.angles.capacity()
    }

    /// Rotates the keys of consecutive tokens, the first one at position `first`.
    fn turn(&mut self, rotary: &Rotary, first: i64, heads: usize, length: usize) -> Result<()> {
        let positions = first..first + (self.keys.len() / (heads * length)) as i64;
        if self.positions != positions {
            self.angles.clear();
            self.positions = 0..0;
            try_reserve(&mut self.angles, PLACED, positions.clone().count() * rotary.pairs())?;
            positions.clone().for_each(|position| rotary.angles(position, &mut self.angles));
            self.positions = positions;
        }
        let of_tokens = self.angles.chunks_exact(rotary.pairs().max(1));
        for (token, angles) in self.keys.chunks_exact_mut(heads * length).zip(of_tokens) {
            rotary.rotate_heads(token, length, angles);
        }
        Ok(())
    }
}

const PLACED: &str = "blocks of a memory";

/// What attention reads in one layer: `(tokens, heads_kv, length)`.
#[derive(Default)]
pub struct Placed {
    pub keys: Vec<u8>,
    pub values: Vec<u8>,
    pub tokens: usize,
}

impl Placed {
    pub fn bytes(&self) -> usize {
        self.keys.capacity() + self.values.capacity()
    }
}
