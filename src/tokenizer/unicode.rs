//! Characters and their classes, read straight from bytes that need not be UTF-8.
//!
//! A class is one bit, so a regular expression's character set is a mask and membership one `and`. Reference: the Unicode
//! general categories and the White_Space property, in the version named in `unicode_tables.rs`.

use super::unicode_tables::RANGES;

/// A set of character classes.
pub(super) type Mask = u16;

pub(super) const LU: Mask = 1 << 0;
pub(super) const LL: Mask = 1 << 1;
pub(super) const LT: Mask = 1 << 2;
pub(super) const LM: Mask = 1 << 3;
pub(super) const LO: Mask = 1 << 4;
/// `\p{M}`: combining marks.
pub(super) const M: Mask = 1 << 5;
/// `\p{Nd}`, which is also `\d`.
pub(super) const ND: Mask = 1 << 6;
/// The other numbers: `\p{Nl}`, `\p{No}`.
const NO: Mask = 1 << 7;
/// `\p{P}`: punctuation.
pub(super) const P: Mask = 1 << 8;
/// `\p{S}`: symbols.
pub(super) const S: Mask = 1 << 9;
/// `\s`: the White_Space property.
pub(super) const WS: Mask = 1 << 10;
/// Controls, formats, surrogates, private use, unassigned.
const OTHER: Mask = 1 << 11;
/// `\p{L}`
pub(super) const L: Mask = LU | LL | LT | LM | LO;
/// `\p{N}`
pub(super) const N: Mask = ND | NO;
/// Any character; the end of the text has no bit at all, so no set contains it.
pub(super) const ANY: Mask = (OTHER << 1) - 1;

/// What stands where a byte is no part of any character.
const REPLACEMENT: u32 = 0xFFFD;

/// One character of a text, or its end.
#[derive(Clone, Copy)]
pub(super) struct Char {
    /// The code point; U+FFFD for a byte that is no UTF-8, and a value beyond Unicode at the end.
    pub cp: u32,
    /// Its class, one bit; 0 at the end.
    pub class: Mask,
    /// Its length in bytes; 0 at the end.
    pub len: usize,
}

impl Char {
    /// Whether the class is in `mask`.
    #[inline]
    pub fn is(self, mask: Mask) -> bool {
        self.class & mask != 0
    }

    /// `[\r\n]`
    #[inline]
    pub fn is_newline(self) -> bool {
        self.cp == '\n' as u32 || self.cp == '\r' as u32
    }
}

/// The character that begins at byte `pos`.
#[inline]
pub(super) fn char_at(text: &[u8], pos: usize) -> Char {
    match text.get(pos) {
        None => Char { cp: u32::MAX, class: 0, len: 0 },
        Some(&b) if b < 0x80 => Char { cp: b.into(), class: ASCII[b as usize], len: 1 },
        Some(_) => {
            let (cp, len) = decode(&text[pos..]);
            Char { cp, class: class_of(cp), len }
        }
    }
}

/// The first character of bytes that are not empty, and how many bytes it takes: 1 and U+FFFD where they are no UTF-8
/// (overlong forms and surrogates are none).
fn decode(s: &[u8]) -> (u32, usize) {
    let next = |i: usize| s.get(i).filter(|b| **b & 0xC0 == 0x80).map(|b| u32::from(b & 0x3F));
    let lead = u32::from(s[0]);
    let decoded = match lead {
        0x00..0x80 => Some((lead, 1)),
        0xC2..0xE0 => next(1).map(|a| ((lead & 0x1F) << 6 | a, 2)),
        0xE0..0xF0 => next(1).zip(next(2)).map(|(a, b)| ((lead & 0x0F) << 12 | a << 6 | b, 3)),
        0xF0..0xF5 => next(1).zip(next(2)).zip(next(3)).map(|((a, b), c)| ((lead & 0x07) << 18 | a << 12 | b << 6 | c, 4)),
        _ => None,
    };
    let shortest = |&(cp, len): &(u32, usize)| match len {
        3 => matches!(cp, 0x800..=0xD7FF | 0xE000..=0xFFFF),
        4 => matches!(cp, 0x1_0000..=0x10_FFFF),
        _ => true,
    };
    decoded.filter(shortest).unwrap_or((REPLACEMENT, 1))
}

/// How many bytes a character takes by its first byte alone; 1 for a byte that begins none.
#[inline]
pub(super) fn len_by_lead(lead: u8) -> usize {
    match lead {
        0xF0.. => 4,
        0xE0.. => 3,
        0xC0.. => 2,
        _ => 1,
    }
}

fn class_of(cp: u32) -> Mask {
    let i = RANGES.partition_point(|r| r >> 8 <= cp);
    class_bit(RANGES[i - 1])
}

const fn class_bit(range: u32) -> Mask {
    match range & 0xFF {
        0 => OTHER,
        i => 1 << (i - 1),
    }
}

static ASCII: [Mask; 128] = {
    let mut table = [0; 128];
    let (mut cp, mut range) = (0, 0);
    while cp < 128 {
        if RANGES[range + 1] >> 8 <= cp {
            range += 1;
        }
        table[cp as usize] = class_bit(RANGES[range]);
        cp += 1;
    }
    table
};

/// `\w` for the one use it has: letters, marks, decimal digits and connector punctuation.
pub(super) fn is_word(c: Char) -> bool {
    c.is(L | M | ND) || matches!(c.cp, 0x5F | 0x203F | 0x2040 | 0x2054 | 0xFE33 | 0xFE34 | 0xFE4D..=0xFE4F | 0xFF3F)
}
