//! The gates of feed-forward networks: `out = f(gate) * up`.

use super::vector::exp;

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
    match activation {
        Activation::Silu => {
            for (g, u) in gate.iter_mut().zip(up) {
                *g = *g / (1.0 + exp(-*g)) * u;
            }
        }
        Activation::GeluTanh => {
            for (g, u) in gate.iter_mut().zip(up) {
                *g = gelu_tanh(*g) * u;
            }
        }
    }
}

#[inline]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let inner = SQRT_2_OVER_PI * x * (1.0 + 0.044715 * x * x);
    // (1 + tanh(y)) / 2 = 1 / (1 + e^(-2y))
    x / (1.0 + exp(-2.0 * inner))
}
