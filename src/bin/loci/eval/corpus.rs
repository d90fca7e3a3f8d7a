//! The haystack, what is hidden in it, and where. One text serves all lengths: the shorter ones are its beginnings. Everything
//! follows from the seed.

use super::tasks::{Item, Task};
use loci::tokenizer::Tokenizer;

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

/// The haystack, and what is to be hidden in it.
pub struct Corpus {
    pub tokens: Vec<u32>,
    pub items: Vec<Item>,
    /// Where lines begin, as indices into the tokens.
    lines: Vec<usize>,
}

/// A part of an item on its way into the text.
pub struct Place {
    /// Index of the token before which it goes.
    pub at: usize,
    pub tokens: Vec<u32>,
}

/// Part of a length behind which nothing is hidden: the end of a text is still in everybody's window.
const LAST_PART: f64 = 0.97;
/// A token is seldom longer, in bytes.
const TOKEN_BYTES: usize = 8;

impl Corpus {
    pub fn build(tokenizer: &Tokenizer, plan: &Plan<'_>) -> Corpus {
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
        let mut tokens = tokenizer.encode(&text, true, false);
        tokens.truncate(longest);
        let ends_line = |t: &u32| tokenizer.token_bytes(*t).is_some_and(|b| b.ends_with(b"\n"));
        let lines = tokens.iter().enumerate().filter(|(_, t)| ends_line(t)).map(|(i, _)| i + 1).collect();
        let mut items = Vec::new();
        for length in 0..plan.lengths.len() {
            for &task in plan.tasks {
                for depth in 0..plan.depths {
                    for _ in 0..plan.samples {
                        items.push(task.item(&mut rng, items.len(), length, depth));
                    }
                }
            }
        }
        Corpus { tokens, items, lines }
    }

    /// Where the parts of an item go in a text of `length` tokens, at the beginnings of lines. What comes in several parts is spread
    /// over the text before the item's depth.
    pub fn places(&self, tokenizer: &Tokenizer, item: &Item, length: usize, depths: usize) -> Vec<Place> {
        let deepest = (item.depth as f64 + 0.5) / depths as f64 * LAST_PART * length as f64;
        let places = item.parts.iter().enumerate().map(|(i, part)| {
            let wanted = (deepest * (i + 1) as f64 / item.parts.len() as f64) as usize;
            let at = self.lines.get(self.lines.partition_point(|l| *l < wanted)).map_or(wanted, |l| *l).min(length);
            Place { at, tokens: tokenizer.encode(&format!("{part}\n"), false, false) }
        });
        places.collect()
    }

    /// The first `length` tokens of the text with the parts in it.
    pub fn with(&self, places: &[Place], length: usize) -> Vec<u32> {
        let mut out = Vec::new();
        let mut from = 0;
        for place in places {
            out.extend(&self.tokens[from..place.at]);
            out.extend(&place.tokens);
            from = place.at;
        }
        out.extend(&self.tokens[from..length]);
        out.truncate(length);
        out
    }
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
