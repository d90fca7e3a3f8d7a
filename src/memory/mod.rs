//! Context that outlives the window: an append-only file of key and value blocks, its index and its reader.
//!
//! A [`Memory`] holds entries, one for each token: its id and, for each stored layer and head, its *unrotated* key and its value.
//! Position is no part of it, so that one file serves FoT memory layers and block retrieval, and several memories can be read
//! together. What is appended is visible at once and durable after [`Memory::commit`]. The file is described in
//! `docs/memory-format.md`.
//!
//! Walk: `memory.rs` (the handle), `documents.rs` (whole documents), `reader.rs`, `scan.rs` and `sketches.rs` (what is read) -> `page.rs` (a
//! block in memory: pack, summarise) -> `store.rs` (the file: commit) and `follow.rs` (find its commits: by `trail.rs` from the end, by
//! `chain.rs` from the start and around damage), `segment.rs` (committed parts, checked at first touch) -> `maps.rs`; `codec.rs` says how rows
//! are kept, `index.rs` how summaries are, `form.rs` what files have looked like, `format.rs` the pages, `geometry.rs` the arithmetic.

mod chain;
mod codec;
mod documents;
mod follow;
mod form;
mod format;
mod geometry;
mod image;
mod index;
mod log;
mod maintain;
mod maps;
#[allow(clippy::module_inception)]
mod memory;
mod page;
mod reader;
mod records;
mod scan;
mod segment;
mod sketches;
mod store;
mod superblock;
mod trail;
mod view;

pub use codec::Codec;
pub use geometry::{Fingerprint, Geometry, PAGE_BYTES, Side};
pub use log::Unfinished;
pub use maintain::{CompactOptions, Compaction};
pub use memory::Memory;
pub use scan::{Extent, ExtentRoom};
pub use sketches::{SketchRoom, Sketches};
pub use view::{Access, BlockSpan, BlockView, Damage, LayerKv, Source, SourceSpan, Stats};
