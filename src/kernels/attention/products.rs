//! The two products of attention over cells: queries with keys, weights with values.
//!
//! Rows are taken `R` at a time, so that what was loaded serves them all, and sums stay in registers while the product runs over
//! the other dimension.
//!
//! Invariants: a row's results do not depend on the rows it shares a block with; per row, scores are summed over the key's
//! elements and values over the keys, in order, so that they are the same whatever the number of lanes.

use super::cells::{Cells, View};
use crate::kernels::tiles::TILE_TOKENS;
use crate::kernels::vector::LANES;
use crate::simd::{Simd, prefetch_ahead};
use std::ops::Range;

/// Most vectors of a cell.
const VECTORS: usize = 4;

/// Products of `R` queries with the keys of the tiles `tiles`, times `scale`, into the rows of `scores`, `width` apart.
#[inline(always)]
pub(super) fn score<S: Simd, T: Cells, const R: usize>(
    s: S,
    queries: [&[f32]; R],
    keys: View<'_, T>,
    tiles: Range<usize>,
    scale: f32,
    scores: &mut [f32],
    width: usize,
) {
    let mut tile = tiles.start;
    while tile < tiles.end {
        let out = &mut scores[(tile - tiles.start) * TILE_TOKENS..];
        tile += if S::LANES == LANES && tile.is_multiple_of(4) && tiles.end - tile >= 4 {
            score_tiles::<S, T, R, 4>(s, queries, keys, tile, scale, out, width);
            4
        } else {
            score_tiles::<S, T, R, 1>(s, queries, keys, tile, scale, out, width);
            1
        };
    }
}

#[inline(always)]
fn score_tiles<S: Simd, T: Cells, const R: usize, const N: usize>(
    s: S,
    queries: [&[f32]; R],
    keys: View<'_, T>,
    tile: usize,
    scale: f32,
    scores: &mut [f32],
    width: usize,
) {
    let mut cells: [&[T::Cell]; N] = [&[]; N];
    let mut from = [0; N];
    let mut d = queries[0].len();
    for (i, (cells, from)) in cells.iter_mut().zip(&mut from).enumerate() {
        (*cells, *from) = keys.tile(tile + i);
        if N == T::TILES {
            // So it is, and now the compiler knows it too.
            *from = i * TILE_TOKENS;
        }
        d = d.min(cells.len());
    }
    let queries = queries.map(|q| &q[..d]);
    for cells in &mut cells {
        *cells = &cells[..d];
    }
    let mut sums = [[[s.splat(0.0); VECTORS]; N]; R];
    // While these tiles are read, later ones are asked for, one after the other, as many bytes as are used up.
    let ahead = if T::IN_PLACE > 0 { keys.ahead(N) } else { 0 };
    let mut e = 0;
    for (i, tile) in cells.iter().enumerate() {
        let (first, end) = (e, if i + 1 == N { d } else { (i + 1) * d / N });
        while e < end.min(d) {
            if T::IN_PLACE > 0 {
                prefetch_ahead(tile, ahead + (e - first) * N * T::IN_PLACE, N * T::IN_PLACE);
            }
            let mut k = [[s.splat(0.0); VECTORS]; N];
            for ((k, cells), from) in k.iter_mut().zip(&cells).zip(&from) {
                for (v, k) in k[..LANES / S::LANES].iter_mut().enumerate() {
                    *k = T::load(s, &cells[e], from + v * S::LANES);
                }
            }
            for (sums, q) in sums.iter_mut().zip(&queries) {
                let q = s.splat(q[e]);
                for (sums, k) in sums.iter_mut().zip(&k) {
                    for (sum, k) in sums[..LANES / S::LANES].iter_mut().zip(k) {
                        *sum = s.fma(q, *k, *sum);
                    }
                }
            }
            e += 1;
        }
    }
    let scale = s.splat(scale);
    for (scores, sums) in scores.chunks_mut(width).zip(sums) {
        for (scores, sums) in scores[..N * TILE_TOKENS].chunks_exact_mut(TILE_TOKENS).zip(sums) {
            for (scores, sum) in scores.chunks_exact_mut(S::LANES).zip(sums) {
                s.store(s.mul(sum, scale), scores);
            }
        }
    }
}

/// Values of consecutive tokens, from the first one of a tile on.
pub(super) trait Values: Copy {
    /// Adds those of the tokens `tokens`, times their weights in each of `R` rows, to the rows of `acc`, `width` floats each. The weights
    /// are those of the tokens in order.
    fn add<S: Simd, const R: usize>(self, s: S, weights: [&[f32]; R], tokens: Range<usize>, acc: &mut [f32], width: usize);
}

impl<T: Cells> Values for View<'_, T> {
    #[inline(always)]
    fn add<S: Simd, const R: usize>(self, s: S, weights: [&[f32]; R], tokens: Range<usize>, acc: &mut [f32], width: usize) {
        if tokens.is_empty() {
            return;
        }
        let cells = width / LANES;
        let mut at = 0;
        while at < cells {
            let left = cells - at;
            at += if S::LANES == LANES && left >= 4 {
                add_cells::<S, T, R, 4>(s, weights, self, tokens.clone(), at, acc, cells);
                4
            } else if S::LANES == LANES && left >= 2 {
                add_cells::<S, T, R, 2>(s, weights, self, tokens.clone(), at, acc, cells);
                2
            } else {
                add_cells::<S, T, R, 1>(s, weights, self, tokens.clone(), at, acc, cells);
                1
            };
        }
    }
}

#[inline(always)]
fn add_cells<S: Simd, T: Cells, const R: usize, const C: usize>(
    s: S,
    weights: [&[f32]; R],
    values: View<'_, T>,
    tokens: Range<usize>,
    at: usize,
    acc: &mut [f32],
    cells: usize,
) {
    let mut sums = [[[s.splat(0.0); VECTORS]; C]; R];
    for (sums, acc) in sums.iter_mut().zip(acc.chunks_exact(cells * LANES)) {
        for (sums, acc) in sums.iter_mut().zip(acc[at * LANES..].chunks_exact(LANES)) {
            for (sum, acc) in sums.iter_mut().zip(acc.chunks_exact(S::LANES)) {
                *sum = s.load(acc);
            }
        }
    }
    let mut token = tokens.start;
    let weights = weights.map(|w| &w[..tokens.len()]);
    let ahead = if T::IN_PLACE > 0 { values.ahead(1) } else { 0 };
    while token < tokens.end {
        let slot = token % TILE_TOKENS;
        let n = (TILE_TOKENS - slot).min(tokens.end - token);
        let rows = values.tile(token / TILE_TOKENS).0[slot * cells..].chunks_exact(cells);
        let weights = weights.map(|w| &w[token - tokens.start..][..n]);
        for (i, row) in (0..n).zip(rows) {
            let row = &row[at..at + C];
            if T::IN_PLACE > 0 {
                prefetch_ahead(row, ahead, C * T::IN_PLACE);
            }
            for (c, cell) in row.iter().enumerate() {
                for v in 0..LANES / S::LANES {
                    let value = T::load(s, cell, v * S::LANES);
                    for (sums, weights) in sums.iter_mut().zip(&weights) {
                        sums[c][v] = s.fma(s.splat(weights[i]), value, sums[c][v]);
                    }
                }
            }
        }
        token += n;
    }
    for (sums, acc) in sums.iter().zip(acc.chunks_exact_mut(cells * LANES)) {
        for (sums, acc) in sums.iter().zip(acc[at * LANES..].chunks_exact_mut(LANES)) {
            for (sum, acc) in sums.iter().zip(acc.chunks_exact_mut(S::LANES)) {
                s.store(*sum, acc);
            }
        }
    }
}
