//! From votes to what is laid out: the blocks with the most votes, with what follows them, and in which order.
//!
//! What was wanted most lies nearest to the text that goes on: a small model attends best to what is near, and is misled less by
//! what lies farther off. Leaving out what has few votes beside the best does no better than that (measured: `docs/memory.md`).

use super::BlockAddress;
use std::collections::BTreeMap;

/// Share of the votes that went elsewhere.
pub fn unread(chosen: &[(BlockAddress, f32)]) -> f32 {
    (1.0 - chosen.iter().map(|c| c.1).sum::<f32>()).clamp(0.0, 1.0)
}

/// The candidates with the most votes, each with the block that follows it (a thought rarely ends with its block), `n` blocks in all, with
/// their share of the votes. Blocks that follow each other make a passage, in text order; the passage with the best block comes last.
pub fn with_what_follows(blocks: &[usize], candidates: &[BlockAddress], votes: &[f32], n: usize) -> Vec<(BlockAddress, f32)> {
    let all: f32 = votes.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|a, b| votes[*b].total_cmp(&votes[*a]).then(a.cmp(b)));
    let mut chosen: BTreeMap<BlockAddress, f32> = BTreeMap::new();
    for i in order {
        let at = candidates[i];
        let next = BlockAddress { block: at.block + 1, ..at };
        if chosen.len() < n || chosen.contains_key(&at) {
            *chosen.entry(at).or_default() = votes[i] / all;
        }
        if chosen.len() < n && next.block < blocks[at.memory] {
            chosen.entry(next).or_insert(0.0);
        }
    }
    let chosen: Vec<(BlockAddress, f32)> = chosen.into_iter().collect();
    let goes_on = |a: &(BlockAddress, f32), b: &(BlockAddress, f32)| a.0.memory == b.0.memory && a.0.block + 1 == b.0.block;
    let mut passages: Vec<&[(BlockAddress, f32)]> = chosen.chunk_by(goes_on).collect();
    let best = |passage: &[(BlockAddress, f32)]| passage.iter().map(|c| c.1).fold(0.0, f32::max);
    passages.sort_by(|a, b| best(a).total_cmp(&best(b)));
    passages.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(memory: usize, block: usize) -> BlockAddress {
        BlockAddress { memory, block }
    }

    fn chosen(votes: &[(usize, usize, f32)], n: usize) -> Vec<(usize, usize)> {
        let candidates: Vec<_> = votes.iter().map(|v| at(v.0, v.1)).collect();
        let votes: Vec<_> = votes.iter().map(|v| v.2).collect();
        with_what_follows(&[100, 50], &candidates, &votes, n).iter().map(|c| (c.0.memory, c.0.block)).collect()
    }

    #[test]
    fn what_was_wanted_most_lies_nearest_and_passages_stay_together() {
        let votes = [(0, 3, 0.5), (0, 10, 0.3), (0, 40, 0.9), (1, 7, 0.7), (1, 20, 0.2)];
        assert_eq!(chosen(&votes, 8), [(0, 10), (0, 11), (0, 3), (0, 4), (1, 7), (1, 8), (0, 40), (0, 41)]);
        assert_eq!(chosen(&votes, 3), [(1, 7), (0, 40), (0, 41)]);
        // One passage of what follows each other, however the votes lie in it; what follows a memory's last block is not there.
        let votes = [(0, 5, 0.2), (0, 6, 0.9), (0, 7, 0.3), (0, 99, 0.5), (1, 0, 0.6)];
        assert_eq!(chosen(&votes, 8), [(0, 99), (1, 0), (1, 1), (0, 5), (0, 6), (0, 7), (0, 8)]);
    }
}
