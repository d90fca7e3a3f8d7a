//! Rotary positions (RoPE, arXiv 2104.09864): each pair of dimensions of a head turns by `position * frequency`.
//!
//! Every kind of scaling known here comes down to a frequency per pair and one magnitude, so this file knows no kinds.
//! Angles are computed in f64: positions may be large (or negative, for blocks placed before the start of the window).

use crate::simd::{Level, Simd, Task, dispatch};

/// Which two dimensions make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairLayout {
    /// `2i` with `2i + 1`: GGUF's `llama` and its kin (llama.cpp calls it NORM).
    Adjacent,
    /// `i` with `i + n_rot / 2` (NEOX).
    Halves,
}

/// To a position, or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Rotates what is unrotated.
    Forward,
    /// Undoes that, exactly up to rounding.
    Back,
}

/// Frequencies of the pairs, in radians per position, and the factor on the rotated vectors.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// One per pair; `2 * len` dimensions of each head are rotated, the rest is left as it is.
    pub frequencies: Vec<f64>,
    /// Multiplies the rotated dimensions (YaRN and LongRoPE use it; 1 otherwise).
    pub magnitude: f32,
    /// Which dimensions pair up.
    pub layout: PairLayout,
}

impl Rotary {
    /// Appends `(cos, sin)` of every pair at `position`, times the magnitude, to `table`.
    pub fn angles(&self, position: i64, table: &mut Vec<[f32; 2]>) {
        self.angles_of(Turn::Forward, position, table);
    }

    fn angles_of(&self, turn: Turn, position: i64, table: &mut Vec<[f32; 2]>) {
        for f in &self.frequencies {
            let (sin, cos) = (position as f64 * f).sin_cos();
            table.push(match turn {
                Turn::Forward => [cos as f32 * self.magnitude, sin as f32 * self.magnitude],
                Turn::Back => [cos as f32 / self.magnitude, -sin as f32 / self.magnitude],
            });
        }
    }

    /// Pairs per head.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Turns the heads of consecutive tokens in place, the first token at position `first`; `x` is `(tokens, heads, length)`.
    pub fn turn(&self, turn: Turn, first: i64, x: &mut [f32], heads: usize, length: usize) {
        let mut angles = Vec::with_capacity(self.pairs());
        for (position, token) in (first..).zip(x.chunks_exact_mut(heads * length)) {
            angles.clear();
            self.angles_of(turn, position, &mut angles);
            self.rotate_heads(token, length, &angles);
        }
    }

    /// Rotates the heads of a token in place, each of `length` elements, by the angles of the token (`pairs()` entries).
    pub fn rotate_heads(&self, heads: &mut [f32], length: usize, angles: &[[f32; 2]]) {
        debug_assert!(angles.len() == self.pairs() && length >= 2 * self.pairs() && heads.len().is_multiple_of(length));
        dispatch(Level::detect(), Rotate { layout: self.layout, heads, length, angles });
    }

    /// [`Rotary::rotate_heads`] of one head.
    pub fn rotate(&self, head: &mut [f32], angles: &[[f32; 2]]) {
        self.rotate_heads(head, head.len(), angles);
    }
}

/// Plain loops, which become vectors of the level's width: every level gives the same bits, as nothing is fused.
struct Rotate<'a> {
    layout: PairLayout,
    heads: &'a mut [f32],
    length: usize,
    angles: &'a [[f32; 2]],
}

impl Task for Rotate<'_> {
    type Out = ();
    const PRODUCTS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let n = self.angles.len();
        match self.layout {
            PairLayout::Adjacent => {
                for head in self.heads.chunks_exact_mut(self.length) {
                    for (pair, [c, s]) in head.as_chunks_mut::<2>().0.iter_mut().zip(self.angles) {
                        let [a, b] = *pair;
                        *pair = [a * c - b * s, a * s + b * c];
                    }
                }
            }
            PairLayout::Halves => {
                for head in self.heads.chunks_exact_mut(self.length) {
                    let (lo, hi) = head[..2 * n].split_at_mut(n);
                    for ((a, b), [c, s]) in lo.iter_mut().zip(hi).zip(self.angles) {
                        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
                    }
                }
            }
        }
    }
}
