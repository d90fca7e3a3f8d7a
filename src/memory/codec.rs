//! How a memory keeps keys and values: as floats, row by row; or quantised, in the tiles of the local window (`kernels/tiles.rs`), so
//! that attention scores the codes as they lie.
//!
//! What is rotated is the codes' own business: whoever decodes gets keys in the model's axes, whoever attends rotates the query once.

use super::Side;
use crate::error::{Error, Result};
use crate::kernels::codec as element;
use crate::kernels::tiles::KvType;

/// Encoding of the keys and values of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// 32-bit floats, as computed.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// Keys in 8 bits ([`KvType::Q8_0`]), values in 4 ([`KvType::Q4`], rotated).
    K8V4,
    /// Keys and values in 4 bits ([`KvType::Q4`], rotated).
    K4V4,
}

/// The quantised codecs hold no larger numbers: rotating 1024 elements may make one of them 32 times as large, and the scale of its
/// block, an eighth of that, is a half.
const QUANTISED_MAX: f32 = 65504.0 * 8.0 / 32.0;

impl Codec {
    /// All there are.
    pub const ALL: [Codec; 5] = [Codec::F32, Codec::F16, Codec::Bf16, Codec::K8V4, Codec::K4V4];

    /// What one side is kept as.
    pub const fn of(self, side: Side) -> KvType {
        match (self, side) {
            (Codec::F32, _) => KvType::F32,
            (Codec::F16, _) => KvType::F16,
            (Codec::Bf16, _) => KvType::Bf16,
            (Codec::K8V4, Side::Keys) => KvType::Q8_0,
            (Codec::K8V4, Side::Values) | (Codec::K4V4, _) => KvType::Q4,
        }
    }

    /// True if rows are in tiles rather than one after the other.
    pub const fn is_quantised(self) -> bool {
        matches!(self, Codec::K8V4 | Codec::K4V4)
    }

    /// True if `x` is finite and stays so when it is stored.
    pub fn holds(self, x: f32) -> bool {
        match self.of(Side::Keys).codec() {
            Some(codec) => codec.holds(x),
            None => x.abs() <= QUANTISED_MAX,
        }
    }

    /// The id in files; never reused.
    pub const fn id(self) -> u32 {
        match self {
            Codec::F32 => 0,
            Codec::F16 => 1,
            Codec::Bf16 => 2,
            Codec::K8V4 => 3,
            Codec::K4V4 => 4,
        }
    }

    /// The codec of an id; [`Error::Unsupported`] for one that this build does not know.
    pub fn from_id(id: u32) -> Result<Codec> {
        let known = Codec::ALL.into_iter().find(|c| c.id() == id);
        known.ok_or_else(|| Error::Unsupported(format!("key and value codec {id} (this build knows f32, f16, bf16, k8v4 and k4v4)")))
    }

    /// The name users type: `f32`, `f16`, `bf16`, `k8v4`, `k4v4`.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::F32 => "f32",
            Codec::F16 => "f16",
            Codec::Bf16 => "bf16",
            Codec::K8V4 => "k8v4",
            Codec::K4V4 => "k4v4",
        }
    }

    /// The codec with this name.
    pub fn from_name(name: &str) -> Option<Codec> {
        Codec::ALL.into_iter().find(|c| c.name() == name)
    }
}

impl From<element::Codec> for Codec {
    fn from(codec: element::Codec) -> Codec {
        match codec {
            element::Codec::F32 => Codec::F32,
            element::Codec::F16 => Codec::F16,
            element::Codec::Bf16 => Codec::Bf16,
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
