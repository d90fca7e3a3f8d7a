//! Candidates by words: how much of a text's rarer tokens each block holds. What a question is about is mostly named in it.

use crate::error::{Result, try_reserve, try_zeroed};
use crate::memory::Memory;

/// Tokens that are looked at in one go.
const STRETCH: u64 = 1 << 14;

/// The tokens of a text, found again at the cost of a bit each.
struct Words {
    /// Sorted, each once.
    words: Vec<u32>,
    /// A bit for each token id up to the largest word.
    bits: Vec<u64>,
}

impl Words {
    fn new(text: &[u32]) -> Words {
        let mut words = text.to_vec();
        words.sort_unstable();
        words.dedup();
        let mut bits = vec![0u64; words.last().map_or(0, |w| *w as usize / 64 + 1)];
        words.iter().for_each(|w| bits[*w as usize / 64] |= 1 << (w % 64));
        Words { words, bits }
    }

    fn find(&self, token: u32) -> Option<u32> {
        let word = self.bits.get(token as usize / 64)?;
        if word >> (token % 64) & 1 == 0 { None } else { self.words.binary_search(&token).ok().map(|i| i as u32) }
    }
}

/// For each block of all memories the sum, over the tokens that it shares with `text`, of their inverse document frequency
/// (Robertson and Sparck Jones's weight, blocks as documents). Adds the bytes of token ids that were read to `bytes_read`.
pub fn shared_words(memories: &[&Memory], text: &[u32], bytes_read: &mut u64) -> Result<Vec<f32>> {
    let words = Words::new(text);
    let mut frequency = vec![0u32; words.words.len()];
    // (block, word), blocks in order.
    let mut shared: Vec<(u32, u32)> = Vec::new();
    let mut blocks = 0;
    let mut of_block: Vec<u32> = Vec::new();
    for memory in memories {
        // A block whose ids are damaged shares no words; its keys may still propose it.
        let (mut stretch, mut gaps) = ((0, Vec::new()), Vec::new());
        for b in 0..memory.blocks() {
            let span = memory.block(b)?;
            let (first, end) = (span.first_token, span.first_token + span.len as u64);
            if end > stretch.0 + stretch.1.len() as u64 {
                let ids;
                (ids, gaps) = memory.tokens_and_gaps(first..(first + STRETCH).max(end).min(memory.len()))?;
                stretch = (first, ids);
                *bytes_read += 4 * stretch.1.len() as u64;
            }
            if gaps.iter().any(|gap| gap.contains(&first)) {
                continue;
            }
            let tokens = &stretch.1[(first - stretch.0) as usize..(end - stretch.0) as usize];
            of_block.clear();
            of_block.extend(tokens.iter().filter_map(|t| words.find(*t)));
            of_block.sort_unstable();
            of_block.dedup();
            of_block.iter().for_each(|w| frequency[*w as usize] += 1);
            try_reserve(&mut shared, "shared words", of_block.len())?;
            shared.extend(of_block.iter().map(|w| (blocks + b as u32, *w)));
        }
        blocks += memory.blocks() as u32;
    }
    let n = blocks as f32;
    let weight: Vec<f32> = frequency.iter().map(|df| (1.0 + (n - *df as f32 + 0.5) / (*df as f32 + 0.5)).ln()).collect();
    let mut out = try_zeroed("shared words", blocks as usize)?;
    shared.iter().for_each(|(block, word)| out[*block as usize] += weight[*word as usize]);
    Ok(out)
}
