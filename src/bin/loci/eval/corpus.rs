//! The haystack, what is hidden in it, and where. One text serves all lengths: the shorter ones are its beginnings, and what is hidden
//! for any of them is in it from the start; for each question what belongs to the others is left out. Everything follows from the seed.

use super::tasks::{Item, Task};
use crate::Failure;
use loci::model::MEMORY_BLOCK_TOKENS;
use loci::tokenizer::Tokenizer;
use std::ops::Range;

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// What is to be built.
pub struct Plan<'a> {
    pub tasks: &'a [Task],
    /// Tokens, ascending.
    pub lengths: &'a [usize],
    pub depths: usize,
    pub samples: usize,
    pub seed: u64,
    /// A text to hide things in; without one it is made up.
    pub haystack: Option<&'a str>,
}

/// The text, and what is hidden in it.
pub struct Corpus {
    pub tokens: Vec<u32>,
    pub items: Vec<Item>,
}

/// A part of an item on its way into the text.
struct Part {
    /// Where it shall begin, in tokens.
    wanted: usize,
    item: usize,
    tokens: Vec<u32>,
}

/// Part of a length behind which nothing is hidden: the end of a text is still in everybody's window.
const LAST_PART: f64 = 0.97;
/// Of several samples as many are hidden as leave half of the text in peace.
const PART_OF_SAMPLES: usize = 2;
/// Tokens between two parts at least: no block holds parts of two items.
const APART: usize = 2 * MEMORY_BLOCK_TOKENS as usize;
/// A token is seldom longer, in bytes.
const TOKEN_BYTES: usize = 8;

impl Corpus {
    pub fn build(tokenizer: &Tokenizer, plan: &Plan<'_>) -> Result<Corpus, Failure> {
        let longest = plan.lengths.last().copied().unwrap_or(0);
        let mut rng = Rng(plan.seed);
        let mut text = String::new();
        while text.len() < longest * TOKEN_BYTES {
            match plan.haystack.filter(|h| !h.is_empty()) {
                Some(haystack) => text.push_str(haystack),
                None => text.push_str(&paragraph(&mut rng)),
            }
        }
        let end = (0..=longest * TOKEN_BYTES).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(end.unwrap_or(0));
        let mut haystack = tokenizer.encode(&text, true, false);
        haystack.truncate(longest);
        let (mut items, mut parts, mut numbers) = (Vec::new(), Vec::new(), vec![0; plan.tasks.len()]);
        for (length, tokens) in plan.lengths.iter().enumerate() {
            let mut taken = 0;
            for sample in 0..plan.samples {
                let mut more = Vec::new();
                for (t, (&task, number)) in plan.tasks.iter().zip(&mut numbers).enumerate() {
                    for depth in 0..plan.depths {
                        let item = task.item(&mut rng, *number, length, depth);
                        *number += 1;
                        // What is hidden at a depth is spread over the way to the next one.
                        let (i, n) = (sample * plan.tasks.len() + t, plan.samples * plan.tasks.len());
                        let deep = (depth as f64 + (i as f64 + 0.5) / n as f64) / plan.depths as f64;
                        // The shortest text has enough with its own.
                        let from = if length == 0 { 0 } else { plan.lengths[0] };
                        more.push((places(tokenizer, &item, from, deep * LAST_PART * *tokens as f64), item));
                    }
                }
                taken += more.iter().flat_map(|m| &m.0).map(|p| p.1.len() + APART).sum::<usize>();
                if sample > 0 && taken * PART_OF_SAMPLES > *tokens {
                    break;
                }
                for (places, item) in more {
                    parts.extend(places.into_iter().map(|(wanted, tokens)| Part { wanted, item: items.len(), tokens }));
                    items.push(item);
                }
            }
        }
        let ends_line = |t: &u32| tokenizer.token_bytes(*t).is_some_and(|b| b.ends_with(b"\n"));
        let lines: Vec<usize> = haystack.iter().enumerate().filter(|(_, t)| ends_line(t)).map(|(i, _)| i + 1).collect();
        let tokens = hide(&haystack, &lines, parts, &mut items);
        if let Some(item) = items.iter().find(|i| i.end() > plan.lengths[i.length] as u64) {
            let what = format!("{} tokens are too few for what is to be hidden there: fewer tasks or depths", plan.lengths[item.length]);
            return Err(Failure::failed(what));
        }
        Ok(Corpus { tokens, items })
    }

    /// What is hidden for other questions than item number `item`, in the order of the text.
    pub fn others(&self, item: usize) -> Vec<Range<u64>> {
        let others = self.items.iter().enumerate().filter(|(i, _)| *i != item);
        let mut ranges: Vec<_> = others.flat_map(|(_, other)| other.hidden.iter().cloned()).collect();
        ranges.sort_by_key(|r| r.start);
        ranges
    }

    /// The first `length` tokens of the text without those.
    pub fn without(&self, others: &[Range<u64>], length: usize) -> Vec<u32> {
        let (mut out, mut from) = (Vec::with_capacity(length), 0);
        for range in others {
            out.extend(&self.tokens[from.min(length)..(range.start as usize).min(length)]);
            from = range.end as usize;
        }
        out.extend(&self.tokens[from.min(length)..length]);
        out
    }
}

/// Where the parts of an item go whose last part is to be `deepest` tokens deep, none before token `from`, and their tokens. What comes in
/// several parts is spread over the text before.
fn places(tokenizer: &Tokenizer, item: &Item, from: usize, deepest: f64) -> Vec<(usize, Vec<u32>)> {
    let place = |(i, part): (usize, &String)| {
        let wanted = (deepest * (i + 1) as f64 / item.parts.len() as f64) as usize;
        (wanted.max(from), tokenizer.encode(&format!("{part}\n"), false, false))
    };
    item.parts.iter().enumerate().map(place).collect()
}

/// The haystack with the parts in it, each at the beginning of one of the `lines`, as long as the haystack is. Notes where they are.
fn hide(haystack: &[u32], lines: &[usize], mut parts: Vec<Part>, items: &mut [Item]) -> Vec<u32> {
    parts.sort_by_key(|p| p.wanted);
    let (mut out, mut from, mut free) = (Vec::with_capacity(haystack.len()), 0, 0);
    for part in parts {
        let wanted = from + part.wanted.max(free).saturating_sub(out.len());
        let at = lines.get(lines.partition_point(|l| *l < wanted)).map_or(wanted, |l| *l).min(haystack.len());
        out.extend(&haystack[from..at]);
        from = at;
        let start = out.len() as u64;
        out.extend(&part.tokens);
        items[part.item].hidden.push(start..out.len() as u64);
        free = out.len() + APART;
    }
    out.extend(&haystack[from..]);
    out.truncate(haystack.len());
    out
}

fn paragraph(rng: &mut Rng) -> String {
    (0..5).map(|_| sentence(rng)).collect::<String>() + "\n"
}

const WHO: &[&str] = &[
    "Anna",
    "Old Peter",
    "the carpenter",
    "my neighbour",
    "the postman",
    "Marten",
    "Henrietta",
    "the gardener",
    "our landlord",
    "the night watchman",
];
const DID: &[&str] = &[
    "mended the fence",
    "counted the sheep",
    "cleaned the chimney",
    "carried firewood",
    "painted a bench",
    "repaired a bicycle",
    "picked plums",
    "walked the dog",
    "sorted apples",
    "played chess",
    "polished the bell",
];
const WHERE: &[&str] = &[
    "behind the barn",
    "by the river",
    "in the orchard",
    "at the market",
    "near the old bridge",
    "on the hill",
    "under the oak",
    "at the mill pond",
    "along the dike",
    "outside the chapel",
];
const WEATHER: &[&str] = &[
    "a thin fog lay over the meadows",
    "it rained without a pause",
    "the wind turned to the east",
    "the sun came out for an hour",
    "there was frost on the windows",
    "the sky stayed grey",
    "hail fell on the roof",
];

/// A sentence of a diary in which nothing happens.
fn sentence(rng: &mut Rng) -> String {
    match rng.below(4) {
        0 => format!("In the morning {}. ", rng.pick(WEATHER)),
        1 => format!("At {}:{:02} {} {} {}. ", 5 + rng.below(17), rng.below(60), rng.pick(WHO), rng.pick(DID), rng.pick(WHERE)),
        2 => format!("Someone said that {} {} {}. ", rng.pick(WHO), rng.pick(DID), rng.pick(WHERE)),
        _ => format!("While {}, {} {}. ", rng.pick(WEATHER), rng.pick(WHO), rng.pick(DID)),
    }
}
