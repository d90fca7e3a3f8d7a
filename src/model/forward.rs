//! The forward pass: embeddings, the layers, the output head. Reads like the papers; all shapes were checked at the door.

use super::fot::Fot;
use super::hparams::Hparams;
use super::recall::Recall;
use super::rope::RotarySet;
use super::scratch::Scratch;
use super::weights::{Layer, Linear, Weights};
use crate::error::{Error, Result};
use crate::kernels::activation;
use crate::kernels::attention::{Entries, KvSegment, Queries, QueryKind, Shape, Visibility, attention};
use crate::kernels::matmul::{Activations, matmul};
use crate::kernels::norm::{rms_norm, rms_norm_in_place};
use crate::kernels::rotary::Rotary;
use crate::kernels::vector::add;
use crate::kv::Window;
use crate::memory::Memory;
use crate::threads::Pass;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of logits computed at once when every position's are wanted.
const LOGIT_ROWS: usize = 16;

/// What a pass is to compute.
pub enum Outputs<'a> {
    /// Keys and values for a memory, and nothing above the last layer that one stores. Only for windows that are moved to
    /// memory whole and then forgotten: the layers above hold nothing of these tokens.
    Memory,
    /// Keys and values of every layer, no logits.
    None,
    /// Those of the last token, left in `scratch.logits`.
    Last,
    /// Those of every token, handed out as (index in the batch, logits).
    Each(&'a mut dyn FnMut(usize, &[f32])),
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
    let n = tokens.len();
    let rows = match outputs {
        Outputs::Memory | Outputs::None => 0,
        Outputs::Last => 1,
        Outputs::Each(_) => LOGIT_ROWS.min(n),
    };
    c.window.reserve(n)?;
    c.scratch.reserve(h, n, rows, w.token_embd.rows())?;
    embed(h, w, pass, tokens, &mut c.scratch.x);
    compute_angles(h, c, n);
    let last_stored = memory_layers(h).last().filter(|_| matches!(outputs, Outputs::Memory));
    for (l, layer) in w.layers.iter().enumerate() {
        if c.cancel.load(Ordering::Relaxed) {
            c.window.roll_back();
            return Err(Error::Cancelled);
        }
        if last_stored == Some(l) {
            let queries = n * h.head_count * h.key_length;
            if project(h, layer, l, pass, c, n)
                && let (Some(slot), Some(recall)) = (memory_slot(h, l), c.recall.as_deref_mut())
            {
                recall.note(h, slot, &c.scratch.q_raw[..queries]);
            }
            break;
        }
        if let Err(e) = attention_block(h, layer, l, pass, c, n) {
            c.window.roll_back();
            return Err(e);
        }
        feed_forward_block(h, layer, pass, c.scratch, n);
    }
    c.window.advance(n);
    match &mut outputs {
        Outputs::Memory | Outputs::None => {}
        Outputs::Last => head(h, w, pass, c.scratch, n - 1, 1),
        Outputs::Each(each) => {
            for at in (0..n).step_by(LOGIT_ROWS) {
                let rows = LOGIT_ROWS.min(n - at);
                head(h, w, pass, c.scratch, at, rows);
                for (i, logits) in c.scratch.logits.chunks_exact(w.output.rows()).take(rows).enumerate() {
                    each(at + i, logits);
                }
            }
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

/// Queries, keys and values of layer `l`: projected, normalised, rotated; keys and values go into the window. Where the layer
/// reads memory, the unrotated queries are kept too. Returns whether it does.
fn project(h: &Hparams, layer: &Layer, l: usize, pass: &Pass<'_>, c: &mut Context<'_>, n: usize) -> bool {
    let s = &mut *c.scratch;
    let width = h.embedding_length;
    let (queries, keys, values) =
        (n * h.head_count * h.key_length, n * h.head_count_kv * h.key_length, n * h.head_count_kv * h.value_length);
    norm_rows(pass, &s.x[..n * width], &layer.attn_norm, h.rms_epsilon, &mut s.h[..n * width]);
    s.activations.load(pass, &s.h[..n * width], width);
    linear(pass, &layer.attn_q, &s.activations, &mut s.q[..queries]);
    linear(pass, &layer.attn_k, &s.activations, &mut s.k[..keys]);
    linear(pass, &layer.attn_v, &s.activations, &mut s.v[..values]);
    if let (Some(q_norm), Some(k_norm)) = (&layer.attn_q_norm, &layer.attn_k_norm) {
        rms_norm_in_place(&mut s.q[..queries], q_norm, h.rms_epsilon);
        rms_norm_in_place(&mut s.k[..keys], k_norm, h.rms_epsilon);
    }

    let reads_memory = memory_slot(h, l).is_some() && (!c.memories.is_empty() || c.recall.is_some());
    if reads_memory {
        s.q_raw[..queries].copy_from_slice(&s.q[..queries]);
    }
    let sliding = h.sliding_window[l] > 0;
    if fot_layer(h, l).is_none_or(|f| f.memory_positionals) {
        let (rotary, angles) = if sliding { (&c.rotary.sliding, &s.angles.sliding) } else { (&c.rotary.global, &s.angles.global) };
        rotate_heads(pass, rotary, angles, &mut s.q[..queries], h.head_count, h.key_length);
        rotate_heads(pass, rotary, angles, &mut s.k[..keys], h.head_count_kv, h.key_length);
    }
    c.window.append(pass, l, &s.k[..keys], &s.v[..values]);
    reads_memory
}

/// `x += W_o attention(norm(x))`
fn attention_block(h: &Hparams, layer: &Layer, l: usize, pass: &Pass<'_>, c: &mut Context<'_>, n: usize) -> Result<()> {
    let reads_memory = project(h, layer, l, pass, c, n);
    let s = &mut *c.scratch;
    let (width, queries) = (h.embedding_length, n * h.head_count * h.key_length);
    let (slot, fot) = (memory_slot(h, l).filter(|_| reads_memory), fot_layer(h, l));
    if let (Some(_), Some(fot)) = (slot, fot) {
        s.q_memory[..queries].copy_from_slice(&s.q_raw[..queries]);
        if fot.memory_positionals {
            rotate_heads(pass, &c.rotary.global, &s.angles.memory, &mut s.q_memory[..queries], h.head_count, h.key_length);
        }
    } else if let (Some(slot), Some(recall)) = (slot, c.recall.as_deref_mut()) {
        let base = c.window.first();
        recall.prepare(h, slot, c.memories, &s.q_raw[..queries], &c.rotary.global, base, c.memory_bytes_read)?;
    }
    let mut segments = recycle(std::mem::take(&mut s.segments));
    for head in 0..h.head_count_kv {
        segments.push(c.window.segment(l, head));
        if let (Some(slot), Some(_)) = (slot, fot) {
            for memory in c.memories {
                fot_segments(memory, slot, head, &mut segments, c.memory_bytes_read)?;
            }
        } else if let (Some(slot), Some(recall)) = (slot, c.recall.as_deref()) {
            segments.extend(recall.segment(h, slot, head));
        }
    }

    let shape = Shape {
        tokens: n,
        heads: h.head_count,
        heads_kv: h.head_count_kv,
        key_length: h.key_length,
        value_length: h.value_length,
        scale: 1.0 / (h.key_length as f32).sqrt(),
        memory_top_k: c.memory_top_k,
    };
    let attended = n * h.head_count * h.value_length;
    let queries = Queries { local: &s.q[..queries], memory: &s.q_memory[..queries] };
    attention(pass, &shape, queries, &segments, &mut s.attended[..attended]);
    s.segments = recycle(segments);
    s.activations.load(pass, &s.attended[..attended], h.head_count * h.value_length);
    linear(pass, &layer.attn_output, &s.activations, &mut s.h[..n * width]);
    add_residual(h, pass, layer.post_attention_norm.as_deref(), &mut s.x, &mut s.h, n);
    Ok(())
}

/// The allocation of a list for another one.
fn recycle<'a>(mut segments: Vec<KvSegment<'_>>) -> Vec<KvSegment<'a>> {
    segments.clear();
    // Nothing is left to convert: the collector keeps the allocation, which a plain assignment could not for its lifetime.
    segments.into_iter().filter_map(|_| None).collect()
}

/// `x += W_down (f(W_gate y) * W_up y)`, `y = norm(x)`
fn feed_forward_block(h: &Hparams, layer: &Layer, pass: &Pass<'_>, s: &mut Scratch, n: usize) {
    let (width, ffn) = (h.embedding_length, h.feed_forward_length);
    norm_rows(pass, &s.x[..n * width], &layer.ffn_norm, h.rms_epsilon, &mut s.h[..n * width]);
    s.activations.load(pass, &s.h[..n * width], width);
    linear(pass, &layer.ffn_gate, &s.activations, &mut s.gate[..n * ffn]);
    linear(pass, &layer.ffn_up, &s.activations, &mut s.up[..n * ffn]);
    let up = &s.up;
    pass.for_each_chunk(&mut s.gate[..n * ffn], GATE_STEP, |i, gate| {
        activation::gate(h.arch.activation, gate, &up[i * GATE_STEP..][..gate.len()]);
    });
    s.activations.load(pass, &s.gate[..n * ffn], ffn);
    linear(pass, &layer.ffn_down, &s.activations, &mut s.h[..n * width]);
    add_residual(h, pass, layer.post_ffw_norm.as_deref(), &mut s.x, &mut s.h, n);
}

/// Elements of the gate that one chunk bends.
const GATE_STEP: usize = 1024;

/// Logits of `rows` tokens from `at` into `scratch.logits`.
fn head(h: &Hparams, w: &Weights, pass: &Pass<'_>, s: &mut Scratch, at: usize, rows: usize) {
    let width = h.embedding_length;
    let x = &s.x[at * width..(at + rows) * width];
    norm_rows(pass, x, &w.output_norm, h.rms_epsilon, &mut s.h[..rows * width]);
    s.activations.load(pass, &s.h[..rows * width], width);
    let logits = &mut s.logits[..rows * w.output.rows()];
    matmul(pass, &w.output, &s.activations, logits);
    let cap = h.final_logit_softcapping;
    if cap > 0.0 {
        pass.for_each_chunk(logits, GATE_STEP, |_, x| x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh()));
    }
}

fn linear(pass: &Pass<'_>, w: &Linear, x: &Activations, out: &mut [f32]) {
    matmul(pass, &w.weight, x, out);
    if let Some(bias) = &w.bias {
        out.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
    }
}

fn norm_rows(pass: &Pass<'_>, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    pass.for_each_chunk(out, ROWS_AT_ONCE * width, |i, out| {
        rms_norm(&x[i * ROWS_AT_ONCE * width..][..out.len()], weight, eps, out);
    });
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
    if let Some(weight) = post_norm {
        pass.for_each_chunk(&mut y[..n * width], ROWS_AT_ONCE * width, |_, y| rms_norm_in_place(y, weight, h.rms_epsilon));
    }
    add(&mut x[..n * width], &y[..n * width]);
}

/// The Focused Transformer's settings if layer `l` is one of its memory layers.
fn fot_layer(h: &Hparams, l: usize) -> Option<&Fot> {
    h.fot.as_ref().filter(|f| f.memory_layers.contains(&(l as u32)))
}

/// The place of layer `l` among the layers that a memory of this model stores: FoT memory layers, or all global layers.
pub fn memory_slot(h: &Hparams, l: usize) -> Option<usize> {
    memory_layers(h).position(|m| m == l)
}

/// The layers that a memory of this model stores.
pub fn memory_layers(h: &Hparams) -> impl Iterator<Item = usize> + '_ {
    (0..h.block_count).filter(|l| match &h.fot {
        Some(fot) => fot.memory_layers.contains(&(*l as u32)),
        None => h.sliding_window[*l] == 0,
    })
}

/// Every block of a Focused Transformer's memory, seen whole by every query: it is all older than the window.
fn fot_segments<'a>(memory: &'a Memory, slot: usize, head: usize, segments: &mut Vec<KvSegment<'a>>, bytes_read: &mut u64) -> Result<()> {
    let g = memory.geometry();
    for block in 0..memory.blocks() {
        let (keys, values) = (memory.keys(slot, head, block)?, memory.values(slot, head, block)?);
        *bytes_read += (keys.bytes.len() + values.bytes.len()) as u64;
        segments.push(KvSegment {
            entries: Entries::Rows {
                codec: g.codec,
                keys: keys.bytes,
                values: values.bytes,
                key_stride: g.key_length as usize,
                value_stride: g.value_length as usize,
            },
            len: keys.len,
            query: QueryKind::Memory,
            visibility: Visibility::All,
        });
    }
    Ok(())
}
