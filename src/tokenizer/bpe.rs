//! Byte-pair encoding: the adjacent pair with the lowest rank is merged, the leftmost of equals first, until none is left.
//!
//! Reference: GPT-2's byte-level BPE (each byte is one character of a 256-letter alphabet) and the form without that alphabet
//! which Gemma 4 uses (characters, spaces as U+2581, `<0xXX>` for what has no token). Merges are looked up by the ids of the
//! two halves. Short pieces are merged by scanning for the least rank, long ones with a heap: O(n log n).

use super::pretokenize::PreTokenizer;
use super::table::{Hasher, IndexTable};
use super::unicode::len_by_lead;
use super::vocabulary::{Vocabulary, string_array};
use crate::error::{Error, Result, quoted, try_with_capacity};
use crate::gguf::Gguf;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const MERGES: &str = "tokenizer.ggml.merges";
/// No token, no rank, no neighbour.
pub(super) const NONE: u32 = u32::MAX;
/// Up to this many symbols a piece is merged by scanning.
const SCAN_LEN_MAX: usize = 64;

/// The 256 characters of the byte-level alphabet, by byte: printable Latin-1 stands for itself, the rest, in order, for the
/// characters from U+0100 on.
static ALPHABET: [u16; 256] = {
    let mut table = [0; 256];
    let (mut byte, mut next) = (0usize, 256);
    while byte < 256 {
        table[byte] = match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => byte as u16,
            _ => {
                next += 1;
                next - 1
            }
        };
        byte += 1;
    }
    table
};

/// The way back: the byte of each character below U+0144, or a number above 255.
static BYTES: [u16; 0x144] = {
    let mut table = [NONE as u16; 0x144];
    let mut byte = 0;
    while byte < 256 {
        table[ALPHABET[byte] as usize] = byte as u16;
        byte += 1;
    }
    table
};

/// Adds the character of the byte-level alphabet for `byte`; it takes one byte or two.
fn push_letter(out: &mut Vec<u8>, byte: u8) {
    let c = ALPHABET[byte as usize];
    if c < 0x80 {
        out.push(c as u8);
    } else {
        out.extend([0xC0 | (c >> 6) as u8, 0x80 | (c & 0x3F) as u8]);
    }
}

/// The bytes that a text in the byte-level alphabet stands for; `None` if it is not in that alphabet.
pub(super) fn bytes_of_letters(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    text.chars().map(|c| BYTES.get(c as usize).and_then(|b| u8::try_from(*b).ok())).collect()
}

/// The token of each byte in a vocabulary that spells them `<0x00>` to `<0xFF>`, or as the byte alone.
pub(super) fn byte_tokens(vocabulary: &Vocabulary) -> [u32; 256] {
    std::array::from_fn(|b| {
        let spelled = format!("<0x{b:02X}>");
        vocabulary.find(spelled.as_bytes()).or_else(|| vocabulary.find(&[b as u8])).unwrap_or(NONE)
    })
}

/// A byte-pair encoder.
pub(super) struct Bpe {
    pub pre: PreTokenizer,
    /// The token of each byte; [`NONE`] where the vocabulary has none.
    byte_ids: [u32; 256],
    /// Whether the vocabulary is spelled in the byte-level alphabet; else in plain text.
    pub byte_level: bool,
    /// By rank: the left half, the right half, the two together.
    merges: Vec<[u32; 3]>,
    ranks: IndexTable,
    hasher: Hasher,
}

/// Space that one call of `encode` uses over and over.
#[derive(Default)]
struct Scratch {
    ids: Vec<u32>,
    letters: Vec<u8>,
    ranks: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: Vec<Reverse<u64>>,
}

impl Bpe {
    /// Bytes that it takes.
    pub fn heap_bytes(&self) -> usize {
        12 * self.merges.capacity() + self.ranks.heap_bytes()
    }

    /// Reads the merges; `byte_level` says how the vocabulary is spelled.
    pub fn from_gguf(gguf: &Gguf, vocabulary: &Vocabulary, pre: PreTokenizer, byte_level: bool) -> Result<Bpe> {
        let array = gguf.required(MERGES, string_array(gguf, MERGES)?)?;
        let hasher = Hasher::new();
        let mut merges: Vec<[u32; 3]> = try_with_capacity("merges", array.len)?;
        let mut ranks = IndexTable::with_capacity(array.len)?;
        let mut joined = Vec::new();
        for (rank, text) in array.strings().enumerate() {
            let bad = |expected: &str| Error::model(MERGES, expected, format!("merge {rank}: {}", quoted(&String::from_utf8_lossy(text))));
            // The left half may itself begin with a space where the alphabet is plain text.
            let cut = text.iter().skip(1).position(|b| *b == b' ').ok_or_else(|| bad("two tokens and a space between them"))? + 1;
            let (left, right) = (&text[..cut], &text[cut + 1..]);
            joined.clear();
            joined.extend_from_slice(left);
            joined.extend_from_slice(right);
            let (Some(left), Some(right), Some(both)) = (vocabulary.find(left), vocabulary.find(right), vocabulary.find(&joined)) else {
                return Err(bad("two tokens that make a third"));
            };
            let rank = u32::try_from(rank).map_err(|_| bad("less than 2^32 merges"))?;
            merges.push([left, right, both]);
            // Of equal pairs the first counts.
            ranks.insert(hasher.pair(left, right), rank, |other| merges[other as usize][..2] == [left, right]);
        }
        let byte_ids = if byte_level {
            std::array::from_fn(|b| {
                joined.clear();
                push_letter(&mut joined, b as u8);
                vocabulary.find(&joined).unwrap_or(NONE)
            })
        } else {
            byte_tokens(vocabulary)
        };
        Ok(Bpe { pre, byte_ids, byte_level, merges, ranks, hasher })
    }

    /// Adds the tokens of `text`.
    pub fn encode(&self, vocabulary: &Vocabulary, text: &[u8], out: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        self.pre.split(text, &mut |piece| self.encode_piece(vocabulary, piece, &mut scratch, out));
    }

    fn encode_piece(&self, vocabulary: &Vocabulary, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if let Some(id) = self.whole_piece(vocabulary, piece, &mut scratch.letters) {
            return out.push(id);
        }
        scratch.ids.clear();
        if self.byte_level {
            scratch.ids.extend(piece.iter().map(|b| self.byte_ids[*b as usize]));
        } else {
            let mut pos = 0;
            while pos < piece.len() {
                let end = (pos + len_by_lead(piece[pos])).min(piece.len());
                match vocabulary.find(&piece[pos..end]) {
                    Some(id) => scratch.ids.push(id),
                    None => scratch.ids.extend(piece[pos..end].iter().map(|b| self.byte_ids[*b as usize])),
                }
                pos = end;
            }
        }
        if scratch.ids.len() <= SCAN_LEN_MAX {
            self.merge_by_scanning(scratch);
        } else {
            self.merge_by_heap(scratch);
        }
        // A byte without a token is left out, as these vocabularies are published: their unknown token, if any, ends a text.
        out.extend(scratch.ids.iter().filter(|id| **id != NONE));
    }

    /// The token that a piece is as a whole, where that goes before merging.
    fn whole_piece(&self, vocabulary: &Vocabulary, piece: &[u8], letters: &mut Vec<u8>) -> Option<u32> {
        if !self.byte_level {
            // Gemma 4's runs of newlines have tokens, but no merges that lead to them.
            return if piece[0] == b'\n' { vocabulary.find(piece) } else { None };
        }
        if !self.pre.ignore_merges {
            return None;
        }
        letters.clear();
        piece.iter().for_each(|b| push_letter(letters, *b));
        vocabulary.find(letters)
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.ranks.find(self.hasher.pair(left, right), |rank| self.merges[rank as usize][..2] == [left, right]).unwrap_or(NONE)
    }

    fn merge_by_scanning(&self, scratch: &mut Scratch) {
        let Scratch { ids, ranks, .. } = scratch;
        ranks.clear();
        ranks.extend(ids.windows(2).map(|pair| self.rank(pair[0], pair[1])));
        // The first of equal minima is the leftmost.
        while let Some((at, &rank)) = ranks.iter().enumerate().min_by_key(|(_, rank)| **rank)
            && rank != NONE
        {
            ids[at] = self.merges[rank as usize][2];
            ids.remove(at + 1);
            ranks.remove(at);
            if at < ranks.len() {
                ranks[at] = self.rank(ids[at], ids[at + 1]);
            }
            if at > 0 {
                ranks[at - 1] = self.rank(ids[at - 1], ids[at]);
            }
        }
    }

    fn merge_by_heap(&self, scratch: &mut Scratch) {
        let Scratch { ids, ranks, next, previous, heap, .. } = scratch;
        let n = ids.len();
        // `ranks[i]` is the rank of symbol i with its right neighbour: a heap entry that says otherwise is out of date.
        ranks.clear();
        ranks.extend(ids.windows(2).map(|pair| self.rank(pair[0], pair[1])));
        ranks.push(NONE);
        next.clear();
        next.extend(1..=n as u32);
        previous.clear();
        previous.extend((0..n as u32).map(|i| i.wrapping_sub(1)));
        heap.clear();
        let entry = |rank: u32, at: u32| Reverse(u64::from(rank) << 32 | u64::from(at));
        heap.extend(ranks.iter().zip(0..).filter(|(rank, _)| **rank != NONE).map(|(rank, at)| entry(*rank, at)));
        let mut queue = BinaryHeap::from(std::mem::take(heap));
        while let Some(Reverse(top)) = queue.pop() {
            let (rank, at) = ((top >> 32) as u32, top as u32 as usize);
            if ranks[at] != rank {
                continue;
            }
            let right = next[at] as usize;
            ids[at] = self.merges[rank as usize][2];
            ids[right] = NONE;
            ranks[right] = NONE;
            ranks[at] = NONE;
            next[at] = next[right];
            let after = next[at] as usize;
            if after < n {
                previous[after] = at as u32;
                ranks[at] = self.rank(ids[at], ids[after]);
                if ranks[at] != NONE {
                    queue.push(entry(ranks[at], at as u32));
                }
            }
            let before = previous[at] as usize;
            if before < n {
                ranks[before] = self.rank(ids[before], ids[at]);
                if ranks[before] != NONE {
                    queue.push(entry(ranks[before], before as u32));
                }
            }
        }
        *heap = queue.into_vec();
        let mut at = 0;
        let mut len = 0;
        while at < n {
            ids[len] = ids[at];
            len += 1;
            at = next[at] as usize;
        }
        ids.truncate(len);
    }
}
