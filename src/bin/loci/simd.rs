//! `simd`: which instruction sets this machine offers.

use crate::{Done, output};
use clap::Args;

/// Instruction sets this machine can compute with, one a line, the preferred one last
///
/// `LOCI_SIMD=NAME` chooses one of them.
#[derive(Args)]
pub struct Simd {}

impl Simd {
    pub fn exec(self) -> Done {
        loci::simd::Level::available().iter().try_for_each(|level| output::print_line(level.name()))
    }
}
