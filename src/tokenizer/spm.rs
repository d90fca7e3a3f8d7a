//! SentencePiece-style BPE: the adjacent pair whose text is the token with the highest score is merged, the leftmost of
//! equals first; what is no token at the end becomes bytes.
//!
//! Reference: SentencePiece's BPE model as Llama 2 and Gemma use it. The whole text is one piece, so the queue is a heap.

use super::bpe::{NONE, byte_tokens};
use super::unicode::len_by_lead;
use super::vocabulary::Vocabulary;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What stands for a space in the texts of the vocabulary.
pub(super) const SPACE: &[u8] = "\u{2581}".as_bytes();

/// An encoder for SentencePiece vocabularies.
pub(super) struct Spm {
    byte_ids: [u32; 256],
    unknown: Option<u32>,
}

/// A run of bytes that is one symbol by now.
struct Symbol {
    start: u32,
    /// 0 once it has been merged into its left neighbour.
    len: u32,
    previous: u32,
    next: u32,
    /// [`NONE`] before the first merge.
    id: u32,
}

/// A pair that would make a token. The field order is the order of merging.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    /// The score, as a number that sorts as the score does.
    score: u32,
    left: Reverse<u32>,
    /// Bytes of the two symbols together: a pair of another length is out of date.
    len: u32,
    id: u32,
}

/// Maps floats to integers that compare as the floats do.
fn sortable(score: f32) -> u32 {
    let bits = score.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// `text` with spaces as the vocabulary writes them, appended to `out`.
pub(super) fn escape_spaces(text: &[u8], out: &mut Vec<u8>) {
    for part in text.split_inclusive(|b| *b == b' ') {
        match part.split_last() {
            Some((b' ', head)) => {
                out.extend_from_slice(head);
                out.extend_from_slice(SPACE);
            }
            _ => out.extend_from_slice(part),
        }
    }
}

/// The way back.
pub(super) fn unescape_spaces(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        match rest.strip_prefix(SPACE) {
            Some(tail) => {
                out.push(b' ');
                rest = tail;
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

impl Spm {
    /// Bytes that [`Spm::encode`] takes for each byte of a text, without what it adds to `out`: a symbol, and a pair for each.
    pub const BYTES_EACH: usize = size_of::<Symbol>() + size_of::<Pair>();

    pub fn new(vocabulary: &Vocabulary, unknown: Option<u32>) -> Spm {
        Spm { byte_ids: byte_tokens(vocabulary), unknown }
    }

    /// Adds the tokens of `text`, whose spaces are escaped and which is shorter than 4 GiB.
    pub fn encode(&self, vocabulary: &Vocabulary, text: &[u8], out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut pos = 0;
        while pos < text.len() {
            let len = len_by_lead(text[pos]).min(text.len() - pos);
            let at = symbols.len() as u32;
            symbols.push(Symbol { start: pos as u32, len: len as u32, previous: at.wrapping_sub(1), next: at + 1, id: NONE });
            pos += len;
        }
        let mut queue: BinaryHeap<Pair> = (0..symbols.len() as u32).filter_map(|left| pair(vocabulary, text, &symbols, left)).collect();
        while let Some(Pair { left, len, id, .. }) = queue.pop() {
            let left = left.0;
            let next = symbols[left as usize].next;
            let right_len = symbols.get(next as usize).map_or(0, |s| s.len);
            let s = &mut symbols[left as usize];
            if s.len == 0 || right_len == 0 || s.len + right_len != len {
                continue;
            }
            s.len = len;
            s.id = id;
            let previous = s.previous;
            let after = symbols[next as usize].next;
            symbols[left as usize].next = after;
            symbols[next as usize].len = 0;
            if let Some(s) = symbols.get_mut(after as usize) {
                s.previous = left;
            }
            if previous != NONE {
                queue.extend(pair(vocabulary, text, &symbols, previous));
            }
            queue.extend(pair(vocabulary, text, &symbols, left));
        }
        let mut at = 0;
        while let Some(s) = symbols.get(at) {
            let bytes = &text[s.start as usize..(s.start + s.len) as usize];
            let id = if s.id == NONE { vocabulary.find(bytes) } else { Some(s.id) };
            match id {
                Some(id) => out.push(id),
                None => out.extend(bytes.iter().filter_map(|b| match self.byte_ids[*b as usize] {
                    NONE => self.unknown,
                    id => Some(id),
                })),
            }
            at = s.next as usize;
        }
    }
}

/// The pair that begins at symbol `left`, if it makes a token.
fn pair(vocabulary: &Vocabulary, text: &[u8], symbols: &[Symbol], left: u32) -> Option<Pair> {
    let l = &symbols[left as usize];
    let r = symbols.get(l.next as usize)?;
    let len = l.len + r.len;
    let id = vocabulary.find(&text[l.start as usize..(l.start + len) as usize])?;
    Some(Pair { score: sortable(vocabulary.score(id)), left: Reverse(left), len, id })
}
