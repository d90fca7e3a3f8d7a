//! Mat-mat: several activation rows. Weights are expanded once per band, in tile order, and all activation rows pass over them.
//!
//! The columns are cut into spans so that a group of weight rows and a tile of activation rows lie in the first-level cache
//! together; the sums rest in a buffer between spans, which does not change what is added to them or when.

use super::activations::Panel;
use super::single::{by_code, group, join, join_halves, offset, repeat_few};
use super::{Activations, BLOCK, Multiply};
use crate::quant::{Block, Shape, Sink};
use crate::simd::{Scratch, Simd, Task, dispatch, quad};
use std::marker::PhantomData;
use std::ops::Range;

/// The sums of a band of a product with several activation rows; gives the lanes of a group.
pub(super) struct Expanded<'a, B>(Multiply<'a>, PhantomData<B>);

impl<'a, B> Expanded<'a, B> {
    pub(super) fn new(product: Multiply<'a>) -> Self {
        Expanded(product, PhantomData)
    }
}

/// Blocks of 32 columns of a span, about; a multiple of what a format has in a block.
const SPAN: usize = 16;

/// Most panels of a tile on any level.
pub(super) const PANELS_MOST: usize = 3;

impl<B: Block> Task for Expanded<'_, B> {
    type Out = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let Multiply { w, x, columns, rows, work, sums } = self.0;
        repeat_few::<S>(w, &mut work.few);
        let blocks = w.cols / BLOCK;
        let groups = columns.len().div_ceil(S::LANES);
        // Even spans, of whole blocks of the format.
        let whole = B::LEN / BLOCK;
        let span = (blocks / whole).div_ceil((blocks / SPAN).max(1)) * whole;
        for from in (0..blocks).step_by(span) {
            let span = from..blocks.min(from + span);
            let (codes, factors) = work.tile.two::<TileCodes<S>, S::F>(groups * span.len(), groups * span.len() * factors::<B::Shape>());
            for k in 0..groups {
                let group = group::<S>(w, &work.few, columns.start + k * S::LANES);
                let codes = codes[k * span.len()..][..span.len()].iter_mut();
                let factors = factors[k * span.len() * self::factors::<B::Shape>()..].chunks_exact_mut(self::factors::<B::Shape>());
                let mut sink = TileSink::<S, B::Shape> { s, tile: codes.zip(factors), shape: PhantomData };
                for at in (span.start / whole..span.end / whole).map(|b| b * B::BYTES) {
                    B::unpack(s, &group, at, &mut sink);
                }
            }
            // By shape, not by format: there are fewer of those.
            let rows = rows.clone();
            dispatch(x.level, Tiles::<B::Shape> { x, rows, span, groups, tile: &mut work.tile, sums, shape: PhantomData });
        }
        S::LANES
    }
}

/// Per block of 32 the codes in tile form.
type TileCodes<S> = [[<S as Simd>::V; 4]; 2];

/// Factors of a block: scale, shift, and both again for the second half, where the shape has them.
const fn factors<C: Shape>() -> usize {
    (1 + C::HALVES as usize) * (1 + C::SHIFTS as usize)
}

/// Writes unpacked blocks to a tile.
struct TileSink<'a, S: Simd, C> {
    s: S,
    tile: std::iter::Zip<std::slice::IterMut<'a, TileCodes<S>>, std::slice::ChunksExactMut<'a, S::F>>,
    shape: PhantomData<C>,
}

impl<S: Simd, C: Shape> Sink<S> for TileSink<'_, S, C> {
    #[inline(always)]
    fn take(&mut self, lo: [S::V; 4], hi: [S::V; 4], scale: [S::F; 2], shift: [S::F; 2]) {
        let Some((codes, factors)) = self.tile.next() else { return };
        *codes = [self.s.tile(lo), self.s.tile(hi)];
        match (C::HALVES, C::SHIFTS) {
            (false, false) => factors.copy_from_slice(&scale[..1]),
            (false, true) => factors.copy_from_slice(&[scale[0], shift[0]]),
            (true, false) => factors.copy_from_slice(&scale),
            (true, true) => factors.copy_from_slice(&[scale[0], scale[1], shift[0], shift[1]]),
        }
    }
}

/// Activation rows times the expanded groups.
struct Tiles<'a, C> {
    x: &'a Activations,
    rows: Range<usize>,
    span: Range<usize>,
    groups: usize,
    tile: &'a mut Scratch,
    sums: &'a mut Scratch,
    shape: PhantomData<C>,
}

impl<C: Shape> Task for Tiles<'_, C> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tiles { x, rows, span, groups, .. } = self;
        let blocks = x.cols / BLOCK;
        let (len, count) = (span.len(), rows.len().div_ceil(4));
        let panels = &x.panels[rows.start / 4 * blocks..];
        let (codes, factors) = self.tile.two::<TileCodes<S>, S::F>(groups * len, groups * len * factors::<C>());
        let (sums, _) = self.sums.two::<S::F, u8>(groups * count * 4, 0);
        let mut panel = 0;
        while panel < count {
            let now = (count - panel).min(S::TILE_PANELS);
            for k in 0..groups {
                let tile = Tile::<S> {
                    codes: &codes[k * len..][..len],
                    factors: &factors[k * len * self::factors::<C>()..][..len * self::factors::<C>()],
                    panels: &panels[panel * blocks..],
                    blocks,
                    from: span.start,
                };
                let sums = &mut sums[(k * count + panel) * 4..][..now * 4];
                match now {
                    3 => tile.multiply::<C, 3>(s, sums),
                    2 => tile.multiply::<C, 2>(s, sums),
                    _ => tile.multiply::<C, 1>(s, sums),
                }
            }
            panel += now;
        }
    }
}

/// A span of `LANES` weight rows beside rows of panels.
struct Tile<'a, S: Simd> {
    codes: &'a [TileCodes<S>],
    factors: &'a [S::F],
    panels: &'a [Panel<4>],
    /// Panels of a row of panels.
    blocks: usize,
    /// The first block of the span.
    from: usize,
}

impl<S: Simd> Tile<'_, S> {
    /// `LANES` weight rows times `4 P` activation rows (`P` is 1, 2 or 3), added to `out` (or begun, with the first span).
    #[inline(always)]
    fn multiply<C: Shape, const P: usize>(&self, s: S, out: &mut [S::F]) {
        let Some(out) = out.as_chunks_mut::<4>().0.first_chunk_mut::<P>() else { return };
        let mut sums = if self.from > 0 { *out } else { [[s.splat(0.0); 4]; P] };
        let (len, blocks) = (self.codes.len(), self.blocks);
        let row = |p: usize| &self.panels[p.min(P - 1) * blocks + self.from..][..len];
        let columns = row(0).iter().zip(row(1)).zip(row(2));
        // Written out, not looped: only then do all sums stay in registers.
        for ((w, f), ((x0, x1), x2)) in self.codes.iter().zip(self.factors.chunks_exact(factors::<C>())).zip(columns) {
            sums[0] = add_panel::<S, C>(s, w, f, x0, sums[0]);
            if P > 1 {
                sums[1] = add_panel::<S, C>(s, w, f, x1, sums[1]);
            }
            if P > 2 {
                sums[2] = add_panel::<S, C>(s, w, f, x2, sums[2]);
            }
        }
        *out = sums;
    }
}

/// Adds the products of a block with a panel's four columns to their sums.
#[inline(always)]
fn add_panel<S: Simd, C: Shape>(s: S, w: &TileCodes<S>, f: &[S::F], x: &Panel<4>, sums: [S::F; 4]) -> [S::F; 4] {
    if S::PAIRS {
        let [a, b, c, d] = sums;
        let ([a, b], [c, d]) = (add_pair::<S, C, 0>(s, w, f, x, [a, b]), add_pair::<S, C, 2>(s, w, f, x, [c, d]));
        return [a, b, c, d];
    }
    if S::PANELS {
        return add_four::<S, C>(s, w, f, x, sums);
    }
    quad!(I => add_column::<S, C>(s, w, f, x, I, sums[I]))
}

/// As four times [`add_column`].
#[inline(always)]
fn add_four<S: Simd, C: Shape>(s: S, w: &TileCodes<S>, f: &[S::F], x: &Panel<4>, sums: [S::F; 4]) -> [S::F; 4] {
    let offset = offset::<S, C>();
    if C::HALVES {
        let a = by_code!(C, s.dot_panel::<0, 4>(quad!(I => x.half_start(I, 0, offset)), w, &x.codes));
        let b = by_code!(C, s.dot_panel::<4, 8>(quad!(I => x.half_start(I, 1, offset)), w, &x.codes));
        let shift = if C::SHIFTS { [f[2], f[3]] } else { [f[0]; 2] };
        quad!(I => join_halves::<S, C, 4>(s, [a[I], b[I]], x, I, [f[0], f[1]], shift, sums[I]))
    } else {
        let dots = by_code!(C, s.dot_panel::<0, 8>(quad!(I => x.start(I, offset)), w, &x.codes));
        let shift = if C::SHIFTS { f[1] } else { f[0] };
        quad!(I => join::<S, C, 4>(s, dots[I], x, I, f[0], shift, sums[I]))
    }
}

/// Columns `FIRST` and the next.
#[inline(always)]
fn add_pair<S: Simd, C: Shape, const FIRST: usize>(s: S, w: &TileCodes<S>, f: &[S::F], x: &Panel<4>, sums: [S::F; 2]) -> [S::F; 2] {
    let codes = &x.codes.as_chunks::<2>().0[FIRST / 2];
    let offset = offset::<S, C>();
    if C::HALVES {
        let a = s.start_pair([x.half_start(FIRST, 0, offset), x.half_start(FIRST + 1, 0, offset)]);
        let b = s.start_pair([x.half_start(FIRST, 1, offset), x.half_start(FIRST + 1, 1, offset)]);
        let a = s.end_pair(by_code!(C, s.dot_pair(a, &w[0], codes, 0)));
        let b = s.end_pair(by_code!(C, s.dot_pair(b, &w[1], codes, 1)));
        let (scale, shift) = ([f[0], f[1]], if C::SHIFTS { [f[2], f[3]] } else { [f[0]; 2] });
        [
            join_halves::<S, C, 4>(s, [a[0], b[0]], x, FIRST, scale, shift, sums[0]),
            join_halves::<S, C, 4>(s, [a[1], b[1]], x, FIRST + 1, scale, shift, sums[1]),
        ]
    } else {
        let acc = s.start_pair([x.start(FIRST, offset), x.start(FIRST + 1, offset)]);
        let acc = by_code!(C, s.dot_pair(acc, &w[0], codes, 0));
        let dots = s.end_pair(by_code!(C, s.dot_pair(acc, &w[1], codes, 1)));
        let shift = if C::SHIFTS { f[1] } else { f[0] };
        [join::<S, C, 4>(s, dots[0], x, FIRST, f[0], shift, sums[0]), join::<S, C, 4>(s, dots[1], x, FIRST + 1, f[0], shift, sums[1])]
    }
}

#[inline(always)]
fn add_column<S: Simd, C: Shape>(s: S, w: &TileCodes<S>, f: &[S::F], x: &Panel<4>, c: usize, sum: S::F) -> S::F {
    let [a, b] = x.codes[c].as_chunks::<16>().0 else { return sum };
    if C::HALVES {
        let a = by_code!(C, s.dot(s.splat32(x.half_start(c, 0, offset::<S, C>())), &w[0], a));
        let b = by_code!(C, s.dot(s.splat32(x.half_start(c, 1, offset::<S, C>())), &w[1], b));
        let shift = if C::SHIFTS { [f[2], f[3]] } else { [f[0]; 2] };
        join_halves::<S, C, 4>(s, [a, b], x, c, [f[0], f[1]], shift, sum)
    } else {
        let dot = by_code!(C, s.dot(s.splat32(x.start(c, offset::<S, C>())), &w[0], a));
        let dot = by_code!(C, s.dot(dot, &w[1], b));
        join::<S, C, 4>(s, dot, x, c, f[0], if C::SHIFTS { f[1] } else { f[0] }, sum)
    }
}
