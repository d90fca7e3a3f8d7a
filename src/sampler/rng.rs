//! The random numbers of the draw: xoshiro256++ seeded through SplitMix64
//! ([Blackman and Vigna 2019](https://prng.di.unimi.it/xoshiro256plusplus.c)), period 2^256 - 1.
//!
//! Not for secrets. Invariants: the state is never all zero; the sequence of a seed is part of the library's promise, since a saved
//! session goes on with it.

/// A generator; equal states give equal sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The generator of a seed; every seed is good, also 0.
    pub fn new(seed: u64) -> Rng {
        // Four different outputs of a bijection: they cannot all be zero.
        let mut counter = seed;
        Rng { state: std::array::from_fn(|_| split_mix(&mut counter)) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in 0 (included) to 1 (excluded), a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// The state, each word little endian.
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut out = [0; 32];
        for (to, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(self.state) {
            *to = word.to_le_bytes();
        }
        out
    }

    /// The generator of a saved state, or `None` for the one state that is none: all zero.
    pub fn from_bytes(bytes: [u8; 32]) -> Option<Rng> {
        let (words, _) = bytes.as_chunks::<8>();
        let state = std::array::from_fn(|i| u64::from_le_bytes(words[i]));
        (state != [0; 4]).then_some(Rng { state })
    }
}

/// One step of SplitMix64.
fn split_mix(counter: &mut u64) -> u64 {
    *counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *counter;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs that the authors' C code gives for the state 1, 2, 3, 4.
    #[test]
    fn xoshiro_reference_sequence() {
        let mut rng = Rng { state: [1, 2, 3, 4] };
        let expected: [u64; 10] = [
            41943041,
            58720359,
            3588806011781223,
            3591011842654386,
            9228616714210784205,
            9973669472204895162,
            14011001112246962877,
            12406186145184390807,
            15849039046786891736,
            10450023813501588000,
        ];
        assert_eq!(expected.map(|_| rng.bits()), expected);
    }

    /// The first outputs that the authors' C code gives for the seed 1234567.
    #[test]
    fn split_mix_reference_sequence() {
        let mut counter = 1234567;
        let expected: [u64; 5] = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821];
        assert_eq!(expected.map(|_| split_mix(&mut counter)), expected);
    }
}
