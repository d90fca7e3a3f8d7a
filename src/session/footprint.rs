//! How much RAM a session takes: foretold before it is made, and given back when the system is short of it.

use super::{Session, SessionOptions};
use crate::error::Result;
use crate::kv::Window;
use crate::model::Model;
use crate::model::scratch::Scratch;
use crate::threads::default_threads;

/// Bytes that a session of a model takes at most, with its context full and its largest batch computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// The model's file, mapped: all of it is read as tokens are computed, and the system may take the pages back at any time.
    pub file_bytes: u64,
    /// The vocabulary and the tensors' directory.
    pub model_bytes: u64,
    /// Keys and values of a full context.
    pub context_bytes: u64,
    /// Buffers of a batch, of all threads.
    pub scratch_bytes: u64,
    /// What retrieval from memories may hold, at most: for sessions that have one attached.
    pub memory_bytes: u64,
}

impl Estimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.file_bytes + self.anonymous()
    }

    /// What the system cannot take back.
    pub fn anonymous(&self) -> u64 {
        self.model_bytes + self.context_bytes + self.scratch_bytes + self.memory_bytes
    }
}

/// What a process takes beside: code, stacks, the allocator's own.
const PROCESS_BYTES: u64 = 5 << 20;
/// Buffers of one thread between products.
const THREAD_BYTES: u64 = 1 << 20;

impl Session {
    /// What a session of `model` with these options will take, with a memory attached or without. Computes nothing and touches no weight.
    ///
    /// # Errors
    /// As for [`Session::new`].
    pub fn estimate(model: &Model, options: &SessionOptions, with_memory: bool) -> Result<Estimate> {
        let h = model.hparams();
        super::check(options, h.context_length)?;
        let context = super::context_length(options, h);
        let batch = options.batch.min(context);
        let threads = if options.threads == 0 { default_threads() } else { options.threads };
        let map = model.gguf().map();
        let (file, held) = if map.is_file_backed() { (map.len() as u64, 0) } else { (0, map.len() as u64) };
        // Focused Transformers read memory where it lies, others keep to their budget.
        let memory = if with_memory && h.fot.is_none() { super::recall_options(options, h, context)?.budget_bytes } else { 0 };
        Ok(Estimate {
            file_bytes: file,
            model_bytes: held + model.tokenizer().heap_bytes() as u64 + PROCESS_BYTES,
            context_bytes: Window::bytes_full(&super::layer_shapes(h), options.kv_type, context),
            scratch_bytes: Scratch::bytes_for(h, batch, model.vocab_len()) + threads as u64 * THREAD_BYTES,
            memory_bytes: memory as u64,
        })
    }

    /// Gives back what can be had again: buffers of batches, room in the context that is not used. The context itself and the logits stay;
    /// the next call allocates anew. For memory-pressure callbacks, beside [`Model::trim`].
    pub fn trim(&mut self) {
        let row = self.logits_row();
        let scratch = std::mem::take(&mut self.scratch);
        if let Some(row) = row {
            // In place: there may be no room for a copy when this is called.
            self.scratch.logits = scratch.logits;
            self.scratch.logits.truncate(row.end);
            self.scratch.logits.shrink_to_fit();
        }
        self.window.shrink();
        self.recall.trim();
    }
}
