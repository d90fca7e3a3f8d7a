//! From logits to a token: a chain of stages and a seeded random number generator.
