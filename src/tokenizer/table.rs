//! An open-addressing table from hashed keys to indices: the keys stay where they are, a slot is eight bytes.
//!
//! It holds the vocabulary's texts and the merges. The hash is seeded per process, because the keys come from a file: one that
//! was made to collide must not make look-ups linear.

use crate::error::{Result, try_with_capacity};
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Maps the keys of an array that lives elsewhere to their positions in it.
pub(super) struct IndexTable {
    /// The upper half of the key's hash over the index; [`EMPTY`] where there is none.
    slots: Vec<u64>,
}

const EMPTY: u64 = u64::MAX;

impl IndexTable {
    /// Bytes that it takes.
    pub fn heap_bytes(&self) -> usize {
        8 * self.slots.capacity()
    }

    /// Room for `len` keys, at least one.
    pub fn with_capacity(len: usize) -> Result<IndexTable> {
        let count = (len + len / 2 + 1).next_power_of_two();
        let mut slots = try_with_capacity("a table of the vocabulary", count)?;
        slots.resize(count, EMPTY);
        Ok(IndexTable { slots })
    }

    /// The index of the key with this hash for which `same` holds.
    #[inline]
    pub fn find(&self, hash: u64, mut same: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            if (slot ^ hash) >> 32 == 0 && same(slot as u32) {
                return Some(slot as u32);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds `index` under `hash`, unless a key for which `same` holds is there; its index is returned then.
    pub fn insert(&mut self, hash: u64, index: u32, same: impl FnMut(u32) -> bool) -> Option<u32> {
        let found = self.find(hash, same);
        if found.is_none() {
            let mask = self.slots.len() - 1;
            let mut at = hash as usize & mask;
            while self.slots[at] != EMPTY {
                at = (at + 1) & mask;
            }
            self.slots[at] = hash >> 32 << 32 | u64::from(index);
        }
        found
    }
}

static SEED: LazyLock<[u64; 2]> = LazyLock::new(|| {
    let random = RandomState::new();
    [random.hash_one(0u8), random.hash_one(1u8) | 1]
});

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// A hasher whose seed has been fetched once.
#[derive(Clone, Copy)]
pub(super) struct Hasher {
    seed: [u64; 2],
}

impl Hasher {
    pub fn new() -> Hasher {
        Hasher { seed: *SEED }
    }

    /// The hash of two numbers.
    #[inline]
    pub fn pair(self, a: u32, b: u32) -> u64 {
        fold(fold((u64::from(a) << 32 | u64::from(b)) ^ self.seed[0], 0x9E37_79B9_7F4A_7C15), self.seed[1])
    }

    /// The hash of bytes.
    #[inline]
    pub fn bytes(self, mut s: &[u8]) -> u64 {
        let mut h = self.seed[0] ^ s.len() as u64;
        while let Some((head, tail)) = s.split_first_chunk::<8>() {
            h = fold(h ^ u64::from_le_bytes(*head), 0x9E37_79B9_7F4A_7C15);
            s = tail;
        }
        // What is left, all of it: the two halves may overlap, the length has been counted.
        let last = match (s.first_chunk::<4>(), s.last_chunk::<4>(), s) {
            (Some(a), Some(b), _) => u64::from(u32::from_le_bytes(*a)) << 32 | u64::from(u32::from_le_bytes(*b)),
            (.., []) => 0,
            (.., [a, .., c]) => u64::from(*a) << 16 | u64::from(s[s.len() / 2]) << 8 | u64::from(*c),
            (.., [a]) => u64::from(*a),
        };
        fold(fold(h ^ last, 0x9E37_79B9_7F4A_7C15), self.seed[1])
    }
}
