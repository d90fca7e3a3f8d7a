//! Tokens that are matched in the text before it is split: user-defined ones always, control tokens on request.
//!
//! The longest token goes first over the whole text, then the next in what is left: not the leftmost. So does llama.cpp.

use super::vocabulary::{Vocabulary, attr};
use std::ops::Range;

/// A stretch of the text, or a token found in it.
#[derive(Debug)]
pub(super) enum Fragment {
    Text(Range<usize>),
    Token(u32),
}

/// The tokens to look for.
pub(super) struct Specials {
    /// Sorted by text.
    all: Vec<u32>,
    user_defined: Vec<u32>,
}

impl Specials {
    pub fn new(vocabulary: &Vocabulary) -> Specials {
        let special = attr::CONTROL | attr::USER_DEFINED | attr::UNKNOWN;
        let mut all: Vec<u32> = vocabulary.ids().filter(|id| vocabulary.attr(*id) & special != 0).collect();
        all.sort_unstable_by(|a, b| vocabulary.text(*a).cmp(vocabulary.text(*b)));
        let plain = |id: &u32| vocabulary.attr(*id) & (attr::CONTROL | attr::UNKNOWN) == 0;
        let user_defined = all.iter().copied().filter(plain).collect();
        Specials { all, user_defined }
    }

    /// Cuts `text` at the tokens in it.
    pub fn partition(&self, vocabulary: &Vocabulary, text: &[u8], parse_special: bool) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(0..text.len()));
        }
        let tokens = if parse_special { &self.all } else { &self.user_defined };
        for id in present(vocabulary, tokens, text) {
            let mut cut = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                match fragment {
                    Fragment::Text(range) => cut_at(vocabulary, id, text, range, &mut cut),
                    token => cut.push(token),
                }
            }
            fragments = cut;
        }
        fragments
    }
}

/// Those of `tokens` (sorted by text) that stand in `text` at all, the longest first, of equals the lowest id.
fn present(vocabulary: &Vocabulary, tokens: &[u32], text: &[u8]) -> Vec<u32> {
    let byte = |id: u32, at: usize| vocabulary.text(id).get(at).copied();
    let mut begins = [false; 256];
    tokens.iter().filter_map(|id| byte(*id, 0)).for_each(|b| begins[b as usize] = true);
    let mut found = vec![false; tokens.len()];
    for start in (0..text.len()).filter(|i| begins[text[*i] as usize]) {
        // The tokens that begin as the text does here, narrowed byte by byte; the shortest of them stands first.
        let (mut low, mut high) = (0, tokens.len());
        for (depth, b) in text[start..].iter().enumerate() {
            let slice = &tokens[low..high];
            let first = slice.partition_point(|id| byte(*id, depth) < Some(*b));
            let end = slice.partition_point(|id| byte(*id, depth) <= Some(*b));
            (low, high) = (low + first, low + end);
            if low == high {
                break;
            }
            if vocabulary.text(tokens[low]).len() == depth + 1 {
                found[low] = true;
            }
        }
    }
    let mut present: Vec<u32> = tokens.iter().zip(found).filter(|(_, found)| *found).map(|(id, _)| *id).collect();
    present.sort_unstable_by_key(|id| (std::cmp::Reverse(vocabulary.text(*id).len()), *id));
    present
}

/// Cuts one stretch of text at every occurrence of one token.
fn cut_at(vocabulary: &Vocabulary, id: u32, text: &[u8], range: Range<usize>, out: &mut Vec<Fragment>) {
    let is_space = |b: u8| matches!(b, b' ' | 0x09..=0x0D);
    let (token, attrs) = (vocabulary.text(id), vocabulary.attr(id));
    let mut start = range.start;
    while let Some(at) = find(&text[start..range.end], token) {
        let at = start + at;
        let mut end = at;
        while attrs & attr::STRIP_LEFT != 0 && end > start && is_space(text[end - 1]) {
            end -= 1;
        }
        if end > start {
            out.push(Fragment::Text(start..end));
        }
        out.push(Fragment::Token(id));
        start = at + token.len();
        while attrs & attr::STRIP_RIGHT != 0 && start < range.end && is_space(text[start]) {
            start += 1;
        }
    }
    if start < range.end {
        out.push(Fragment::Text(start..range.end));
    }
}

/// The first occurrence of a needle that is not empty.
fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle.first()?;
    let mut pos = 0;
    loop {
        pos += text[pos..].iter().position(|b| b == first)?;
        if text[pos..].starts_with(needle) {
            return Some(pos);
        }
        pos += 1;
    }
}
