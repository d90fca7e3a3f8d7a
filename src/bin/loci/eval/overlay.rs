//! Hides an item in a text that is remembered already: only what differs is read, and laid over the memory as a second one.
//!
//! A part is read behind the tokens that stand before its place, and the blocks that hold it and what follows are kept. So one
//! memory of a haystack serves every item at every depth. The haystack behind a part has not seen it, which blocks that come
//! back one by one hardly show.

use super::corpus::{Corpus, Place, Rng};
use crate::Failure;
use loci::memory::{LayerKv, Memory};
use loci::session::{Session, SharedMemory};
use std::ops::ControlFlow;
use std::sync::{Arc, RwLock};

/// Tokens of the haystack that are read before a part; up to a block more, so that parts begin anywhere in a block.
const BEFORE: usize = 512;
/// Tokens of the haystack behind a part that are read with it.
const AFTER: usize = 64;

/// What lies over the memory.
pub struct Overlay {
    pub memory: SharedMemory,
    /// Where the last part ends, as an index into the memory's tokens.
    pub end: u64,
}

fn broken() -> Failure {
    Failure::failed("a memory is unusable after a failure")
}

impl Overlay {
    pub fn new(session: &mut Session, corpus: &Corpus, places: &[Place], length: usize, seed: u64) -> Result<Overlay, Failure> {
        let model = session.model().clone();
        let in_ram = || Memory::in_ram(model.memory_geometry(), model.fingerprint().clone());
        let mut rng = Rng(seed);
        let mut overlay = in_ram()?;
        let mut end = 0;
        for place in places {
            let before = place.at.min(BEFORE + rng.below(model.memory_geometry().block_tokens as usize));
            let mut text = corpus.tokens[place.at - before..place.at].to_vec();
            text.extend(&place.tokens);
            text.extend(&corpus.tokens[place.at..(place.at + AFTER).min(length)]);
            let read: SharedMemory = Arc::new(RwLock::new(in_ram()?));
            session.remember(&read, &text, None, &mut |_, _| ControlFlow::Continue(()))?;
            let read = read.read().map_err(|_| broken())?;
            // The first block of a memory has no vote: one more goes before the part's own.
            let first = (before / model.memory_geometry().block_tokens as usize).saturating_sub(1);
            let (held, start) = (overlay.len(), append(&mut overlay, &read, first)?);
            end = held + (before + place.tokens.len()) as u64 - start;
        }
        Ok(Overlay { memory: Arc::new(RwLock::new(overlay)), end })
    }
}

/// Appends the blocks of `from` from number `first` on; returns the index of their first token there.
fn append(to: &mut Memory, from: &Memory, first: usize) -> Result<u64, Failure> {
    let g = from.geometry().clone();
    let start = from.block(first)?.first_token;
    let tokens = from.tokens(start..from.len())?;
    let mut layers = Vec::new();
    for slot in 0..g.layers.len() {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for block in first..from.blocks() {
            let heads = 0..g.head_count_kv as usize;
            let rows =
                heads.map(|h| Ok((from.keys(slot, h, block)?, from.values(slot, h, block)?))).collect::<Result<Vec<_>, Failure>>()?;
            let decoded = |view: &loci::memory::BlockView<'_>| {
                let mut out = vec![0.0; view.len * view.length];
                view.decode(&mut out);
                out
            };
            let of_heads: Vec<_> = rows.iter().map(|(k, v)| (decoded(k), decoded(v))).collect();
            for t in 0..rows.first().map_or(0, |(k, _)| k.len) {
                for (k, v) in &of_heads {
                    let (kl, vl) = (g.key_length as usize, g.value_length as usize);
                    keys.extend(&k[t * kl..][..kl]);
                    values.extend(&v[t * vl..][..vl]);
                }
            }
        }
        layers.push((keys, values));
    }
    let rows: Vec<LayerKv<'_>> = layers.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    to.append(&tokens, None, &rows)?;
    Ok(start)
}
