//! A memory without a file, as bytes within somebody else's file (a session's snapshot): blocks as they lie in RAM, so that it goes on
//! exactly as it was.
//!
//! Layout: shape (u32: codec, head_count_kv, key_length, value_length, block_tokens, number of layers; the layers), forgotten ranges
//! (u64 count; from, to), tokens (u64 count; u32 each), source spans (u64 bytes; as in a segment), then for each block the bytes of its
//! extents with room for a full block. Summaries are computed anew; there are no sketches of what lies in RAM.

use super::form::Form;
use super::format::{SegmentHeader, encode_spans, parse_spans};
use super::memory::Pending;
use super::page::{Block, Scratch};
use super::{Codec, Fingerprint, Geometry, Memory};
use crate::bytes::Cursor;
use crate::error::{Error, Result};
use crate::threads::alone;

impl Memory {
    /// Hands the bytes of a memory without a file to `put`, in pieces.
    ///
    /// # Errors
    /// [`Error::Argument`] if it has a file; what `put` returns.
    pub fn write_image(&self, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.is_on_file() {
            return Err(Error::argument("memory", "one without a file", "one on a file"));
        }
        let (g, mut head) = (self.geometry(), Vec::new());
        for x in [g.codec.id(), g.head_count_kv, g.key_length, g.value_length, g.block_tokens, g.layers.len() as u32] {
            head.extend(x.to_le_bytes());
        }
        head.extend(g.layers.iter().flat_map(|l| l.to_le_bytes()));
        let forgotten: Vec<_> = self.forgotten().iter().flat_map(|r| [r.start, r.end]).collect();
        head.extend((forgotten.len() as u64 / 2).to_le_bytes());
        head.extend(forgotten.iter().flat_map(|x| x.to_le_bytes()));
        let pending = self.pending();
        head.extend((pending.tokens.len() as u64).to_le_bytes());
        put(&head)?;
        pending.tokens.iter().try_for_each(|t| put(&t.to_le_bytes()))?;
        let spans = encode_spans(&pending.spans, 0)?;
        put(&(spans.len() as u64).to_le_bytes())?;
        put(&spans)?;
        pending.blocks.iter().try_for_each(|block| put(block.bytes()))
    }

    /// The memory that [`Memory::write_image`] wrote.
    pub fn read_image(c: &mut Cursor<'_>, fingerprint: &Fingerprint) -> Result<Memory> {
        let at = c.offset();
        let codec = Codec::from_id(c.u32("codec")?)?;
        let (head_count_kv, key_length) = (c.u32("head_count_kv")?, c.u32("key_length")?);
        let (value_length, block_tokens) = (c.u32("value_length")?, c.u32("block_tokens")?);
        let layer_count = c.u32("layer_count")? as usize;
        let bytes = c.take("layers", layer_count.saturating_mul(4))?;
        let layers = bytes.as_chunks().0.iter().map(|l| u32::from_le_bytes(*l)).collect();
        let geometry = Geometry { layers, head_count_kv, key_length, value_length, block_tokens, codec, sketched: Vec::new() };
        geometry.check().map_err(|(name, expected, found)| c.error_at(at, name, expected, found))?;
        let mut memory = Memory::in_ram(geometry.clone(), fingerprint.clone())?;

        let mut forgotten = Vec::new();
        for _ in 0..c.count("forgotten ranges", 16)? {
            forgotten.push(c.u64("range.from")?..c.u64("range.to")?);
        }
        let count = c.count("tokens", 4)?;
        let tokens: Vec<u32> = c.take("tokens", 4 * count)?.as_chunks().0.iter().map(|t| u32::from_le_bytes(*t)).collect();
        if let Some(bad) = forgotten.iter().find(|r| r.start >= r.end || r.end > count as u64) {
            return Err(c.error("forgotten range", format!("one within {count} tokens"), format!("{bad:?}")));
        }
        let span_bytes = c.count("source spans", 1)?;
        let at = c.offset();
        let bytes = c.take("source spans", span_bytes)?;
        let token_count = u32::try_from(count).map_err(|_| c.error("tokens", "at most 2^32", count))?;
        let whole = SegmentHeader { sequence: 0, first_token: 0, token_count, spans_bytes: 0, crcs: [0; 4], forgotten: Vec::new() };
        let mut spans = Vec::new();
        parse_spans(bytes, at, &whole, |span| spans.push(span))?;

        let mut blocks = Vec::new();
        let mut scratch = Scratch::of_layers(&geometry, Form::RAM)?;
        for len in (0..count).step_by(geometry.block_len()).map(|first| geometry.block_len().min(count - first)) {
            let size = geometry.layer_count() * Form::RAM.extent_bytes(&geometry, geometry.block_len());
            let bytes = c.take("block", size)?;
            let mut block = Block::new(&geometry, Form::RAM)?;
            block.fill(bytes, len);
            alone(|pass| block.summarise(pass, &geometry, &mut scratch));
            blocks.push(block);
        }
        memory.set_pending(Pending { blocks, tokens, spans }, &forgotten);
        Ok(memory)
    }
}
