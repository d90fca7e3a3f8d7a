//! Every tensor type id that GGUF ever gave out, by name, with its block geometry.
//!
//! Knowing a type here does not mean that it can be computed with: that is `quant`'s register. It means that files holding
//! it can be inspected, and that the refusal can name it.

/// The encoding of a tensor's elements. The discriminant is the id in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)]
#[repr(u32)]
pub enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

use TensorType::*;

/// (type, name, elements per block, bytes per block)
const TABLE: &[(TensorType, &str, usize, usize)] = &[
    (F32, "F32", 1, 4),
    (F16, "F16", 1, 2),
    (Q4_0, "Q4_0", 32, 18),
    (Q4_1, "Q4_1", 32, 20),
    (Q5_0, "Q5_0", 32, 22),
    (Q5_1, "Q5_1", 32, 24),
    (Q8_0, "Q8_0", 32, 34),
    (Q8_1, "Q8_1", 32, 36),
    (Q2_K, "Q2_K", 256, 84),
    (Q3_K, "Q3_K", 256, 110),
    (Q4_K, "Q4_K", 256, 144),
    (Q5_K, "Q5_K", 256, 176),
    (Q6_K, "Q6_K", 256, 210),
    (Q8_K, "Q8_K", 256, 292),
    (IQ2_XXS, "IQ2_XXS", 256, 66),
    (IQ2_XS, "IQ2_XS", 256, 74),
    (IQ3_XXS, "IQ3_XXS", 256, 98),
    (IQ1_S, "IQ1_S", 256, 50),
    (IQ4_NL, "IQ4_NL", 32, 18),
    (IQ3_S, "IQ3_S", 256, 110),
    (IQ2_S, "IQ2_S", 256, 82),
    (IQ4_XS, "IQ4_XS", 256, 136),
    (I8, "I8", 1, 1),
    (I16, "I16", 1, 2),
    (I32, "I32", 1, 4),
    (I64, "I64", 1, 8),
    (F64, "F64", 1, 8),
    (IQ1_M, "IQ1_M", 256, 56),
    (BF16, "BF16", 1, 2),
    (TQ1_0, "TQ1_0", 256, 54),
    (TQ2_0, "TQ2_0", 256, 66),
    (MXFP4, "MXFP4", 32, 17),
    (NVFP4, "NVFP4", 64, 36),
    (Q1_0, "Q1_0", 128, 18),
    (Q2_0, "Q2_0", 64, 18),
];

/// Ids that were given out and withdrawn, or that only forks use: (first, last, what to say).
const REFUSED: &[(u32, u32, &str)] = &[
    (4, 4, "Q4_2, withdrawn in 2023"),
    (5, 5, "Q4_3, withdrawn in 2023"),
    (31, 31, "Q4_0_4_4, withdrawn: files hold Q4_0 and are repacked at run time"),
    (32, 32, "Q4_0_4_8, withdrawn: files hold Q4_0 and are repacked at run time"),
    (33, 33, "Q4_0_8_8, withdrawn: files hold Q4_0 and are repacked at run time"),
    (36, 36, "IQ4_NL_4_4, withdrawn"),
    (37, 37, "IQ4_NL_4_8, withdrawn"),
    (38, 38, "IQ4_NL_8_8, withdrawn"),
    (133, 158, "a type of a fork of llama.cpp"),
    (202, 399, "a type of a fork of llama.cpp"),
];

impl TensorType {
    /// All types, in the order of their ids.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (TensorType, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The type with this id in the file.
    pub fn from_id(id: u32) -> Option<TensorType> {
        TABLE.iter().find(|row| row.0 as u32 == id).map(|row| row.0)
    }

    /// The type with this name (`Q4_K`, case is ignored).
    pub fn from_name(name: &str) -> Option<TensorType> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// What an id stands for, also where it is refused.
    pub fn describe_id(id: u32) -> String {
        if let Some(t) = TensorType::from_id(id) {
            return t.name().into();
        }
        match REFUSED.iter().find(|r| (r.0..=r.1).contains(&id)) {
            Some(r) => format!("{id} ({})", r.2),
            None => format!("{id} (unknown)"),
        }
    }

    /// The id in the file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// The official name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements in a block.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Bytes of a row of `len` elements; `None` if blocks do not divide it or the product overflows.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
