//! What is said about tokens after they were committed: so far, that they are forgotten. Records stand in the header page of a segment
//! that has no tokens, so that nothing can be damaged apart from what the chain hangs on anyway.
//!
//! On the page, behind the header's own fields: their number (u32), then for each its kind (u32: 1, forget), zero (u32), and two u64:
//! from which token to which.

use crate::bytes::Cursor;
use crate::error::Result;
use std::ops::Range;

/// Records that one header page has room for.
pub const RECORDS_MAX: usize = 160;

const FORGET: u32 = 1;

/// Appends records that tokens are forgotten.
pub fn encode(forgotten: &[Range<u64>], out: &mut Vec<u8>) {
    out.extend((forgotten.len() as u32).to_le_bytes());
    for range in forgotten {
        out.extend(FORGET.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(range.start.to_le_bytes());
        out.extend(range.end.to_le_bytes());
    }
}

/// Reads the records of a memory of `tokens` tokens.
pub fn parse(c: &mut Cursor<'_>, tokens: u64) -> Result<Vec<Range<u64>>> {
    let at = c.offset();
    let count = c.u32("record count")?;
    if !(1..=RECORDS_MAX as u32).contains(&count) {
        return Err(c.error_at(at, "record count", format!("1 to {RECORDS_MAX}"), count));
    }
    let mut out = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let at = c.offset();
        let kind = c.u64("record.kind")?;
        if kind != u64::from(FORGET) {
            return Err(c.error_at(at, "record.kind", FORGET, kind));
        }
        let range = c.u64("record.from")?..c.u64("record.to")?;
        if range.start >= range.end || range.end > tokens {
            return Err(c.error_at(at, "record", format!("a range within {tokens} tokens"), format!("{range:?}")));
        }
        out.push(range);
    }
    Ok(out)
}

/// Disjoint ranges of tokens in ascending order, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRanges(Vec<Range<u64>>);

impl TokenRanges {
    /// Adds a range, joined with what it meets.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|r| r.end < range.start);
        let to = self.0.partition_point(|r| r.start <= range.end);
        let start = self.0.get(from).filter(|_| from < to).map_or(range.start, |r| r.start.min(range.start));
        let end =
            to.checked_sub(1).filter(|last| *last >= from).and_then(|last| self.0.get(last)).map_or(range.end, |r| r.end.max(range.end));
        self.0.splice(from..to, std::iter::once(start..end));
    }

    /// True if any token of `range` is in it.
    pub fn meets(&self, range: &Range<u64>) -> bool {
        let next = self.0.partition_point(|r| r.end <= range.start);
        self.0.get(next).is_some_and(|r| r.start < range.end)
    }

    /// True if every token of `range` is in it.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let next = self.0.partition_point(|r| r.end <= range.start);
        self.0.get(next).is_some_and(|r| r.start <= range.start && range.end <= r.end)
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tokens in all of it.
    pub fn tokens(&self) -> u64 {
        self.0.iter().map(|r| r.end - r.start).sum()
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_as_sets_do() {
        let mut seed = 1u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..200 {
            let (mut ranges, mut set) = (TokenRanges::default(), [false; 40]);
            for _ in 0..next(9) {
                let (a, b) = (next(40), next(41));
                ranges.insert(a..b);
                (a..b).for_each(|i| set[i as usize] = true);
            }
            assert_eq!(ranges.tokens(), set.iter().filter(|x| **x).count() as u64);
            assert!(ranges.0.windows(2).all(|w| w[0].end < w[1].start), "{ranges:?}");
            for a in 0..40 {
                for b in a + 1..=40 {
                    let part = &set[a..b];
                    let range = a as u64..b as u64;
                    assert_eq!((ranges.meets(&range), ranges.covers(&range)), (part.contains(&true), !part.contains(&false)));
                }
            }
        }
    }
}
