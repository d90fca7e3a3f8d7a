//! The k-th best of many scores that come some at a time, held in room for little more than k of them.
//!
//! Invariant: what is held has the k best so far, equal ones as often as it takes to make k; so the answer is, to the bit, what sorting
//! all of them would give.

use super::PART;

/// One row's best scores.
#[derive(Default)]
pub(super) struct Best {
    scores: Vec<f32>,
    /// The k-th best when they were last sorted out: nothing that is not better can change it.
    least: Option<f32>,
}

impl Best {
    /// Forgets all, and makes room for the best `k` of `total`.
    pub fn clear(&mut self, k: usize, total: usize) {
        self.scores.clear();
        self.least = None;
        self.scores.reserve_exact(Best::room(k, total));
    }

    /// Scores that are held at most.
    pub fn room(k: usize, total: usize) -> usize {
        total.min(Best::most(k).saturating_add(PART))
    }

    /// Held after a sorting out, and as many again.
    fn most(k: usize) -> usize {
        k.saturating_add(k.max(PART))
    }

    /// Takes up to [`PART`] more scores.
    pub fn add(&mut self, k: usize, scores: &[f32]) {
        match self.least {
            Some(least) => self.scores.extend(scores.iter().filter(|score| score.total_cmp(&least).is_gt())),
            None => self.scores.extend_from_slice(scores),
        }
        if self.scores.len() >= Best::most(k) {
            self.kth(k);
        }
    }

    /// The `k`-th best (from 1) of all scores, which are no fewer.
    pub fn kth(&mut self, k: usize) -> f32 {
        let (_, kth, _) = self.scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let kth = *kth;
        self.least = Some(kth);
        self.scores.truncate(k);
        kth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_kth_of_all_sorted_to_the_bit_and_takes_no_more_room() {
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            seed >> 33
        };
        let mut best = Best::default();
        for case in 0..400 {
            let (total, k) = (1 + next() as usize % 9000, 1 + next() as usize % 700);
            let (total, k) = (total.max(k), k);
            // Few different values, zeros of both signs among them, so that there are ties; or many.
            let many = case % 2 == 0;
            let scores: Vec<f32> = (0..total)
                .map(|_| if many { next() as f32 - 1e9 } else { (next() % 9) as f32 * 0.5 * if next() % 2 == 0 { -1.0 } else { 1.0 } })
                .collect();
            best.clear(k, total);
            scores.chunks(1 + next() as usize % PART).for_each(|some| best.add(k, some));
            let mut sorted = scores;
            sorted.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(best.kth(k).to_bits(), sorted[k - 1].to_bits(), "the best {k} of {total}");
        }
        let mut best = Best::default();
        best.clear(10, 1 << 20);
        let room = best.scores.capacity();
        for i in 0..4096 {
            best.add(10, &[i as f32; PART]);
        }
        assert!(best.kth(10) == 4095.0 && best.scores.capacity() == room && room < 4 * PART);
    }
}
