//! The mathematics over rows: matrix products, attention, norms, rotary positions, activations.
