//! The gates of feed-forward networks: `out = f(gate) * up`.
//!
//! Invariant: an element's result does not depend on its place in the slice.

use super::vector::{LANES, exp_vector, load_up_to};
use crate::simd::{Level, Simd, Task, dispatch};

/// Which function bends the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)` (SwiGLU, arXiv 2002.05202).
    Silu,
    /// The tanh form of GELU (arXiv 1606.08415): `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// `gate = f(gate) * up`, element by element.
pub fn gate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    gate_at(Level::detect(), activation, gate, up);
}

/// [`gate`] at a level of one's choice.
pub fn gate_at(level: Level, activation: Activation, gate: &mut [f32], up: &[f32]) {
    debug_assert_eq!(gate.len(), up.len());
    match activation {
        Activation::Silu => dispatch(level, Gate::<false> { gate, up }),
        Activation::GeluTanh => dispatch(level, Gate::<true> { gate, up }),
    }
}

struct Gate<'a, const GELU: bool> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl<const GELU: bool> Task for Gate<'_, GELU> {
    type Out = ();
    const PRODUCTS: bool = false;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (g, u) in self.gate.chunks_mut(S::LANES).zip(self.up.chunks(S::LANES)) {
            if g.len() == S::LANES && u.len() == S::LANES {
                s.store(s.mul(bend::<S, GELU>(s, s.load(g)), s.load(u)), g);
            } else {
                let mut last = [0.0; LANES];
                s.store(s.mul(bend::<S, GELU>(s, load_up_to(s, g)), load_up_to(s, u)), &mut last);
                g.copy_from_slice(&last[..g.len()]);
            }
        }
    }
}

#[inline(always)]
fn bend<S: Simd, const GELU: bool>(s: S, x: S::F) -> S::F {
    let y = if GELU {
        // (1 + tanh(y)) / 2 = 1 / (1 + e^(-2y)), y = sqrt(2/pi) (x + 0.044715 x^3)
        const MINUS_2_SQRT_2_OVER_PI: f32 = -2.0 * 0.797_884_6;
        let cubic = s.fma(s.mul(x, x), s.splat(0.044715), s.splat(1.0));
        s.mul(s.mul(x, s.splat(MINUS_2_SQRT_2_OVER_PI)), cubic)
    } else {
        s.sub(s.splat(0.0), x)
    };
    s.div(x, s.add(s.splat(1.0), exp_vector(s, y)))
}
