//! The forward pass: embeddings, the layers, the output head. Reads like the papers; all shapes were checked at the door.

use super::gather::gather;
use super::hparams::Hparams;
use super::preselect::Sketched;
use super::recall::Recall;
use super::rope::RotarySet;
use super::scratch::Scratch;
use super::weights::{Layer, Linear, Weights};
use crate::error::{Error, Result, try_grow};
use crate::kernels::activation;
use crate::kernels::attention::{KvSegment, Queries, Visibility, attention};
use crate::kernels::matmul::{Activations, matmul, matmul_gated, matmul_many};
use crate::kernels::norm::{rms_norm, rms_norm_in_place};
use crate::kernels::rotary::Rotary;
use crate::kernels::vector::add;
use crate::kv::Window;
use crate::memory::Memory;
use crate::threads::Pass;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of logits computed at once when every position's are wanted.
const LOGIT_ROWS: usize = 16;

/// What a pass is to compute.
pub enum Outputs<'a> {
    /// Keys and values for a memory, and nothing above the last layer that one stores. Only for windows that are moved to
    /// memory whole and then forgotten: the layers above hold nothing of these tokens.
    Memory,
    /// Nothing but the queries that retrieval notes, of the layers that search. For tokens that are taken back afterwards.
    Queries,
    /// Keys and values of every layer, no logits.
    None,
    /// Those of the last token, left in `scratch.logits`.
    Last,
    /// Those of every token, handed out as (index in the batch, logits).
    Each(&'a mut dyn FnMut(usize, &[f32])),
    /// No logits, but what they would be made of: the normalised residual stream of every token, `embedding` values each.
    States(&'a mut dyn FnMut(usize, &[f32])),
}

/// What a forward pass works with besides the model.
pub struct Context<'a> {
    /// The session's rotary embeddings.
    pub rotary: &'a RotarySet,
    /// The local context; the batch is appended to it.
    pub window: &'a mut Window,
    /// Buffers.
    pub scratch: &'a mut Scratch,
    /// Attached memories, all of this model's geometry.
    pub memories: &'a [&'a Memory],
    /// Ordinary models: retrieval from the memories.
    pub recall: Option<&'a mut Recall>,
    /// FoT: keys read per query and head; 0 is all.
    pub memory_top_k: usize,
    /// Bytes of memory read, added to.
    pub memory_bytes_read: &'a mut u64,
    /// Set from outside to stop within one layer.
    pub cancel: &'a AtomicBool,
}

/// Computes `tokens` after what the window holds. On error the window is as before.
pub fn forward(h: &Hparams, w: &Weights, pass: &Pass<'_>, c: &mut Context<'_>, tokens: &[u32], mut outputs: Outputs<'_>) -> Result<()> {
    // A panic in a callback may have left layers of different lengths.
    c.window.roll_back();
    let lost_pages = Memory::lost_pages(c.memories);
    let computed = layers(h, w, pass, c, tokens, &outputs)
        .and_then(|()| Memory::check_unlost(c.memories, lost_pages))
        .and_then(|()| output(h, w, pass, c.scratch, tokens.len(), &mut outputs));
    match computed {
        Ok(()) => c.window.advance(tokens.len()),
        Err(_) => c.window.roll_back(),
    }
    computed
}

/// The residual stream of `tokens` through as many layers as `outputs` needs.
fn layers(h: &Hparams, w: &Weights, pass: &Pass<'_>, c: &mut Context<'_>, tokens: &[u32], outputs: &Outputs<'_>) -> Result<()> {
    let n = tokens.len();
    let rows = match outputs {
        Outputs::Memory | Outputs::Queries | Outputs::None | Outputs::States(_) => 0,
        Outputs::Last => 1,
        Outputs::Each(_) => LOGIT_ROWS.min(n),
    };
    c.window.reserve(n)?;
    c.scratch.reserve(h, n, rows, w.token_embd.rows())?;
    embed(h, w, pass, tokens, &mut c.scratch.x);
    compute_angles(h, c, n);
    // What nobody asks for above this layer is not computed.
    let last = match outputs {
        Outputs::Memory => h.memory_layers.last().copied(),
        Outputs::Queries => c.recall.as_ref().and_then(|r| r.last_searching()).map(|slot| h.memory_layers[slot]),
        Outputs::None if c.recall.is_none() => w.layers.len().checked_sub(1),
        _ => None,
    };
    // Nor, in the last layer, are tokens for which nobody asks.
    let asked = if matches!(outputs, Outputs::Last) { n.saturating_sub(1)..n } else { 0..n };
    for (l, layer) in w.layers.iter().enumerate() {
        if c.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        project(h, layer, l, pass, c, n)?;
        if last == Some(l) {
            return Ok(());
        }
        let rows = if l + 1 == w.layers.len() { asked.clone() } else { 0..n };
        attention_block(h, layer, l, pass, c, rows.clone())?;
        feed_forward_block(h, layer, pass, c.scratch, rows)?;
    }
    Ok(())
}

/// What was asked for, of the `n` tokens whose residual stream is complete.
fn output(h: &Hparams, w: &Weights, pass: &Pass<'_>, s: &mut Scratch, n: usize, outputs: &mut Outputs<'_>) -> Result<()> {
    match outputs {
        Outputs::Memory | Outputs::Queries | Outputs::None => {}
        Outputs::Last => head(h, w, pass, s, n - 1, 1)?,
        Outputs::Each(each) => {
            for at in (0..n).step_by(LOGIT_ROWS) {
                let rows = LOGIT_ROWS.min(n - at);
                head(h, w, pass, s, at, rows)?;
                for (i, logits) in s.logits.chunks_exact(w.output.rows()).take(rows).enumerate() {
                    each(at + i, logits);
                }
            }
        }
        Outputs::States(each) => {
            final_norm(h, w, pass, s, 0, n);
            s.h.chunks_exact(h.embedding_length).take(n).enumerate().for_each(|(i, state)| each(i, state));
        }
    }
    Ok(())
}

fn embed(h: &Hparams, w: &Weights, pass: &Pass<'_>, tokens: &[u32], x: &mut [f32]) {
    let width = h.embedding_length;
    let scale = if h.arch.scale_embedding { (width as f32).sqrt() } else { 1.0 };
    pass.for_each_chunk(&mut x[..tokens.len() * width], width, |i, row| {
        w.token_embd.row(tokens[i] as usize, row);
        if scale != 1.0 {
            row.iter_mut().for_each(|v| *v *= scale);
        }
    });
}

fn compute_angles(h: &Hparams, c: &mut Context<'_>, n: usize) {
    let angles = &mut c.scratch.angles;
    angles.global.clear();
    angles.sliding.clear();
    angles.memory.clear();
    let has_sliding = h.sliding_window.iter().any(|w| *w > 0);
    for j in 0..n {
        let position = c.window.next_position() + j as i64;
        c.rotary.global.angles(position, &mut angles.global);
        if has_sliding {
            c.rotary.sliding.angles(position, &mut angles.sliding);
        }
        if h.fot.is_some() {
            c.rotary.global.angles((c.window.len() + j) as i64, &mut angles.memory);
        }
    }
}

/// Queries, keys and values of layer `l`: projected, normalised, rotated; keys and values go into the window. What reads memory
/// is told the unrotated queries on the way.
fn project(h: &Hparams, layer: &Layer, l: usize, pass: &Pass<'_>, c: &mut Context<'_>, n: usize) -> Result<()> {
    let s = &mut *c.scratch;
    let width = h.embedding_length;
    let (queries, keys, values) =
        (n * h.head_count * h.key_length, n * h.head_count_kv * h.key_length, n * h.head_count_kv * h.value_length);
    norm_rows(pass, &s.x[..n * width], &layer.attn_norm, h.rms_epsilon, &mut s.h[..n * width]);
    let (q, k, v) = (&mut s.q[..queries], &mut s.k[..keys], &mut s.v[..values]);
    s.activations.load_for(pass, &s.h[..n * width], &[&layer.attn_q.weight, &layer.attn_k.weight, &layer.attn_v.weight])?;
    linears(pass, [(&layer.attn_q, q), (&layer.attn_k, k), (&layer.attn_v, v)], &s.activations);
    let (q, k, v) = (&mut s.q[..queries], &mut s.k[..keys], &mut s.v[..values]);
    if let (Some(q_norm), Some(k_norm)) = (&layer.attn_q_norm, &layer.attn_k_norm) {
        norm_rows_in_place(pass, q, q_norm, h.head_count, h.rms_epsilon);
        norm_rows_in_place(pass, k, k_norm, h.head_count_kv, h.rms_epsilon);
    }
    let fot = h.fot_layer(l);
    if let Some(slot) = h.memory_slot[l] {
        if fot.is_some() && !c.memories.is_empty() {
            s.q_memory[..queries].copy_from_slice(q);
        } else if let Some(recall) = c.recall.as_deref_mut() {
            recall.note(h, slot, q);
        }
    }
    if fot.is_none_or(|f| f.memory_positionals) {
        let sliding = h.sliding_window[l] > 0;
        let (rotary, angles) = if sliding { (&c.rotary.sliding, &s.angles.sliding) } else { (&c.rotary.global, &s.angles.global) };
        rotate_heads(pass, rotary, angles, q, h.head_count, h.key_length);
        rotate_heads(pass, rotary, angles, k, h.head_count_kv, h.key_length);
    }
    c.window.append(pass, l, k, v);
    Ok(())
}

/// `x += W_o attention(norm(x))` for the tokens `rows` of the batch, which [`project`] has prepared.
fn attention_block(h: &Hparams, layer: &Layer, l: usize, pass: &Pass<'_>, c: &mut Context<'_>, rows: Range<usize>) -> Result<()> {
    let s = &mut *c.scratch;
    let (width, query, n) = (h.embedding_length, h.head_count * h.key_length, rows.len());
    let queries = rows.start * query..rows.end * query;
    let (slot, fot) = (h.memory_slot[l], h.fot_layer(l).filter(|_| !c.memories.is_empty()));
    if let Some(fot) = fot {
        if fot.memory_positionals {
            let angles = &s.angles.memory[rows.start * c.rotary.global.pairs()..];
            rotate_heads(pass, &c.rotary.global, angles, &mut s.q_memory[queries.clone()], h.head_count, h.key_length);
        }
    } else if let (Some(slot), Some(recall)) = (slot, c.recall.as_deref_mut()) {
        recall.prepare(h, slot, &c.rotary.global, c.window.first())?;
    }
    let sketched = match slot.filter(|_| fot.is_some()) {
        Some(slot) => Sketched::new(h, c.memories, slot, c.memory_top_k)?,
        None => None,
    };
    let mut segments = recycle(std::mem::take(&mut s.segments));
    let row = h.head_count * h.value_length;
    let attended = n * row;
    // What top-k leaves out is found for each token by itself.
    let step = if sketched.is_some() { 1 } else { n.max(1) };
    for at in (0..n).step_by(step) {
        if at > 0 && c.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let of = queries.start + at * query..queries.start + (at + step) * query;
        let queries = Queries { local: &s.q[of.clone()], memory: &s.q_memory[of] };
        let candidates = match &sketched {
            Some(sketched) => sketched.candidates(pass, h, queries.memory, c.memory_bytes_read)?,
            None => None,
        };
        segments.clear();
        let lost_pages = Memory::lost_pages(c.memories);
        for head in 0..h.head_count_kv {
            let mut local = c.window.segment(l, head);
            if let Visibility::Causal { first, .. } = &mut local.visibility {
                *first += rows.start + at;
            }
            segments.push(local);
            match (slot, fot) {
                (Some(slot), Some(_)) => {
                    let few = sketched.as_ref().zip(candidates.as_deref());
                    gather(c.memories, slot, head, few, &mut segments, c.memory_bytes_read)?;
                }
                (Some(slot), None) => segments.extend(c.recall.as_deref().and_then(|recall| recall.segment(h, slot, head))),
                (None, _) => {}
            }
        }
        // A block that was lost after the first head had it would leave the others a segment short.
        Memory::check_unlost(c.memories, lost_pages)?;
        let shape = h.attention_shape(step, c.memory_top_k);
        attention(pass, &shape, queries, &segments, &mut s.attended[at * row..(at + step) * row])?;
    }
    s.segments = recycle(segments);
    s.activations.load_for(pass, &s.attended[..attended], &[&layer.attn_output.weight])?;
    linears(pass, [(&layer.attn_output, &mut s.h[..n * width])], &s.activations);
    add_residual(h, pass, layer.post_attention_norm.as_deref(), &mut s.x[rows.start * width..], &mut s.h, n);
    Ok(())
}

/// The allocation of a list for another one.
#[allow(clippy::unnecessary_filter_map)] // A filter would keep the lifetime.
fn recycle<'a>(mut segments: Vec<KvSegment<'_>>) -> Vec<KvSegment<'a>> {
    segments.clear();
    // Nothing is left to convert: the collector keeps the allocation, which a plain assignment could not for its lifetime.
    segments.into_iter().filter_map(|_| None).collect()
}

/// `x += W_down (f(W_gate y) * W_up y)`, `y = norm(x)`, for the tokens `rows` of the batch.
fn feed_forward_block(h: &Hparams, layer: &Layer, pass: &Pass<'_>, s: &mut Scratch, rows: Range<usize>) -> Result<()> {
    let (width, ffn, n) = (h.embedding_length, h.feed_forward_length, rows.len());
    norm_rows(pass, &s.x[rows.start * width..rows.end * width], &layer.ffn_norm, h.rms_epsilon, &mut s.h[..n * width]);
    let (gate, up) = (&layer.ffn_gate, &layer.ffn_up);
    s.activations.load_for(pass, &s.h[..n * width], &[&gate.weight, &up.weight])?;
    if gate.bias.is_none() && up.bias.is_none() {
        matmul_gated(pass, &gate.weight, &up.weight, h.arch.activation, &s.activations, &mut s.gate[..n * ffn]);
    } else {
        try_grow(&mut s.up, "scratch buffers", n * ffn)?;
        linears(pass, [(gate, &mut s.gate[..n * ffn]), (up, &mut s.up[..n * ffn])], &s.activations);
        let up = &s.up;
        pass.for_each_chunk(&mut s.gate[..n * ffn], GATE_STEP, |i, gate| {
            activation::gate(h.arch.activation, gate, &up[i * GATE_STEP..][..gate.len()]);
        });
    }
    s.activations.load_for(pass, &s.gate[..n * ffn], &[&layer.ffn_down.weight])?;
    linears(pass, [(&layer.ffn_down, &mut s.h[..n * width])], &s.activations);
    add_residual(h, pass, layer.post_ffw_norm.as_deref(), &mut s.x[rows.start * width..], &mut s.h, n);
    Ok(())
}

/// Elements of the gate that one chunk bends.
const GATE_STEP: usize = 1024;

/// The normalised residual stream of `rows` tokens from `at`, into `scratch.h`.
fn final_norm(h: &Hparams, w: &Weights, pass: &Pass<'_>, s: &mut Scratch, at: usize, rows: usize) {
    let width = h.embedding_length;
    norm_rows(pass, &s.x[at * width..(at + rows) * width], &w.output_norm, h.rms_epsilon, &mut s.h[..rows * width]);
}

/// Logits of `rows` tokens from `at` into `scratch.logits`.
fn head(h: &Hparams, w: &Weights, pass: &Pass<'_>, s: &mut Scratch, at: usize, rows: usize) -> Result<()> {
    final_norm(h, w, pass, s, at, rows);
    let width = h.embedding_length;
    s.activations.load_for(pass, &s.h[..rows * width], &[&w.output])?;
    let logits = &mut s.logits[..rows * w.output.rows()];
    matmul(pass, &w.output, &s.activations, logits);
    let cap = h.final_logit_softcapping;
    if cap > 0.0 {
        pass.for_each_chunk(logits, GATE_STEP, |_, x| x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh()));
    }
    Ok(())
}

/// Products with the same activations, in one parallel loop, and their biases.
fn linears<const N: usize>(pass: &Pass<'_>, mut products: [(&Linear, &mut [f32]); N], x: &Activations) {
    matmul_many(pass, products.each_mut().map(|(w, out)| (&w.weight, &mut **out)), x);
    for (w, out) in products {
        if let Some(bias) = &w.bias {
            pass.for_each_chunk(out, bias.len(), |_, row| add(row, bias));
        }
    }
}

fn norm_rows(pass: &Pass<'_>, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    pass.for_each_chunk(out, ROWS_AT_ONCE * width, |i, out| {
        rms_norm(&x[i * ROWS_AT_ONCE * width..][..out.len()], weight, eps, out);
    });
}

/// Normalises every head of every token.
fn norm_rows_in_place(pass: &Pass<'_>, x: &mut [f32], weight: &[f32], heads: usize, eps: f32) {
    pass.for_each_chunk(x, ROWS_AT_ONCE * heads * weight.len(), |_, x| rms_norm_in_place(x, weight, eps));
}

/// Tokens whose small per-row work makes one chunk.
const ROWS_AT_ONCE: usize = 8;

fn rotate_heads(pass: &Pass<'_>, rotary: &Rotary, angles: &[[f32; 2]], x: &mut [f32], heads: usize, length: usize) {
    let pairs = rotary.pairs();
    pass.for_each_chunk(x, ROWS_AT_ONCE * heads * length, |i, x| {
        for (j, token) in x.chunks_exact_mut(heads * length).enumerate() {
            let angles = &angles[(i * ROWS_AT_ONCE + j) * pairs..][..pairs];
            rotary.rotate_heads(token, length, angles);
        }
    });
}

fn add_residual(h: &Hparams, pass: &Pass<'_>, post_norm: Option<&[f32]>, x: &mut [f32], y: &mut [f32], n: usize) {
    let width = h.embedding_length;
    let step = ROWS_AT_ONCE * width;
    if let Some(weight) = post_norm {
        norm_rows_in_place(pass, &mut y[..n * width], weight, 1, h.rms_epsilon);
    }
    pass.for_each_chunk(&mut x[..n * width], step, |i, x| add(x, &y[i * step..][..x.len()]));
}
