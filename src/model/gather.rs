//! What a Focused Transformer's memory layer reads of its memories, as segments of attention: all blocks, or the few entries that
//! top-k may need (`preselect.rs`), in place.
//!
//! Invariant: every KV head gets as many segments as the others, as attention wants it.

use super::preselect::{EntryAddress, Sketched};
use crate::error::Result;
use crate::kernels::attention::{Entries, KvSegment, QueryKind, Visibility};
use crate::kernels::codec::Codec;
use crate::kernels::tiles::TILE_TOKENS;
use crate::memory::{BlockView, Memory};

/// Appends what KV head `head` reads of the memories, and adds its bytes. `few`: of what is sketched only each
/// head's entries; else all.
pub fn gather<'a>(
    memories: &[&'a Memory],
    slot: usize,
    head: usize,
    few: Option<(&Sketched<'_>, &[Vec<EntryAddress>])>,
    segments: &mut Vec<KvSegment<'a>>,
    bytes_read: &mut u64,
) -> Result<()> {
    let Some((sketched, of_heads)) = few else {
        for memory in memories {
            for at in (0..memory.blocks()).filter(|at| memory.is_readable(*at)) {
                block(memory, slot, head, at, &[], segments, bytes_read)?;
            }
        }
        return Ok(());
    };
    for (memory, at) in sketched.unsketched() {
        block(memories[*memory], slot, head, *at, &[], segments, bytes_read)?;
    }
    let before = segments.len();
    // All are asked for before the first is touched.
    let of_blocks = || of_heads[head].chunk_by(|a, b| (a.memory(), a.block()) == (b.memory(), b.block()));
    of_blocks().for_each(|of| memories[of[0].memory()].prefetch_untouched(slot, of[0].block()));
    for of in of_blocks() {
        block(memories[of[0].memory()], slot, head, of[0].block(), of, segments, bytes_read)?;
    }
    // As many as if none of the entries lay together, for the head that has most.
    let most = of_heads.iter().map(Vec::len).max().unwrap_or(0);
    let entries = Entries::Rows { codec: Codec::F16, keys: &[], values: &[], key_stride: 0, value_stride: 0 };
    segments.resize(before + most, KvSegment { entries, len: 0, query: QueryKind::Memory, visibility: Visibility::All });
    Ok(())
}

/// A block, or `some` of its entries if that is not empty. It is seen by every query: it is all older than the window.
fn block<'a>(
    memory: &'a Memory,
    slot: usize,
    head: usize,
    at: usize,
    some: &[EntryAddress],
    segments: &mut Vec<KvSegment<'a>>,
    bytes_read: &mut u64,
) -> Result<()> {
    let both = memory.keys(slot, head, at).and_then(|keys| Ok((keys, memory.values(slot, head, at)?)));
    let Some((keys, values)) = memory.or_drop(at, both)? else { return Ok(()) };
    let mut push = |keys: BlockView<'a>, values: BlockView<'a>| {
        *bytes_read += (keys.bytes.len() + values.bytes.len()) as u64;
        segments.push(KvSegment { entries: keys.entries(&values), len: keys.len, query: QueryKind::Memory, visibility: Visibility::All });
    };
    if some.is_empty() {
        push(keys, values);
        return Ok(());
    }
    // Entries that lie together, or in the same tile, are one segment.
    let apart = if keys.codec.is_quantised() { TILE_TOKENS } else { 1 };
    for run in some.chunk_by(|a, b| b.at() / apart <= a.at() / apart + 1) {
        let tokens = run[0].at()..run[run.len() - 1].at() + 1;
        push(keys.part(tokens.clone()), values.part(tokens));
    }
    Ok(())
}
