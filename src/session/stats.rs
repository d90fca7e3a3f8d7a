//! Figures of a session: what it has computed, how long that took, and what it holds.

use super::Session;
use crate::memory::Memory;

/// Figures of a session since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SessionStats {
    /// Seconds from opening the file to a ready model.
    pub load_seconds: f64,
    /// Seconds from the start of the last generation (or its prefill) to its first token; 0 before.
    pub first_token_seconds: f64,
    /// Tokens computed in prefill, and the seconds that took.
    pub prefill_tokens: u64,
    /// Seconds of prefill.
    pub prefill_seconds: f64,
    /// Tokens computed one at a time, and the seconds that took.
    pub decode_tokens: u64,
    /// Seconds of decode.
    pub decode_seconds: f64,
    /// Prompt tokens that needed no work because the session held them already.
    pub reused_tokens: u64,
    /// Tokens in the local window now.
    pub local_tokens: u64,
    /// Tokens in all attached memories now.
    pub memory_tokens: u64,
    /// Bytes of the model and of memories that are mapped files (the system may reclaim them).
    pub mapped_bytes: u64,
    /// Bytes of the local window, of scratch, and of what memories hold in RAM (anonymous memory).
    pub anonymous_bytes: u64,
    /// Bytes of this process in RAM now, as the system counts them; 0 where it does not say.
    pub resident_bytes: u64,
    /// Bytes of memories read by attention or retrieval: blocks, keys that were compared, index, token ids.
    pub memory_bytes_read: u64,
    /// The same since the last prompt began, for each token computed one at a time since then.
    pub memory_bytes_per_token: f64,
    /// Bytes of RAM that retrieval holds, of its budget.
    pub memory_held_bytes: u64,
    /// Blocks that retrieval read, each in all layers.
    pub memory_blocks_read: u64,
    /// Blocks that it wanted and held already.
    pub memory_block_hits: u64,
    /// Damaged blocks that it left out.
    pub memory_blocks_damaged: u64,
    /// Times that it chose.
    pub memory_choices: u64,
    /// Of its last choice: the share of the votes that went to blocks which were not read.
    pub memory_unread_share: f64,
    /// Seconds of rest that [`Session::set_duty`] asked for; they are within those of prefill and decode.
    pub resting_seconds: f64,
}

/// What the session counts as it works.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub first_token_seconds: f64,
    pub prefill_tokens: u64,
    pub prefill_seconds: f64,
    pub decode_tokens: u64,
    pub decode_seconds: f64,
    pub reused_tokens: u64,
    pub memory_bytes_read: u64,
    /// Bytes of memories read, and tokens decoded, before the last prefill.
    pub before_prompt: (u64, u64),
    /// Of the last prefill, until the first token after it.
    pub prompt_seconds: f64,
}

impl Session {
    /// Bytes of memories read so far.
    pub(super) fn memory_bytes_read(&self) -> u64 {
        self.counters.memory_bytes_read + self.recall.stats().bytes_read
    }

    /// Figures since the session was made.
    pub fn stats(&self) -> SessionStats {
        let (c, recall, read) = (&self.counters, self.recall.stats(), self.memory_bytes_read());
        let memory_sum = |f: &dyn Fn(&Memory) -> u64| self.memories().map(|m| f(&super::memories::read(m))).sum::<u64>();
        let map = self.model.gguf().map();
        let mapped = if map.is_file_backed() { map.len() as u64 } else { 0 };
        SessionStats {
            load_seconds: self.model.load_seconds(),
            first_token_seconds: c.first_token_seconds,
            prefill_tokens: c.prefill_tokens,
            prefill_seconds: c.prefill_seconds,
            decode_tokens: c.decode_tokens,
            decode_seconds: c.decode_seconds,
            reused_tokens: c.reused_tokens,
            local_tokens: self.window.len() as u64,
            memory_tokens: self.memory_len(),
            mapped_bytes: mapped + memory_sum(&|m| m.stats().mapped_bytes),
            anonymous_bytes: (self.window.bytes() + self.scratch.bytes() + self.recall.bytes()) as u64
                + memory_sum(&|m| m.stats().ram_bytes),
            resident_bytes: resident_bytes(),
            memory_bytes_read: read,
            memory_bytes_per_token: (read - c.before_prompt.0) as f64 / (c.decode_tokens - c.before_prompt.1).max(1) as f64,
            memory_held_bytes: self.recall.bytes() as u64,
            memory_blocks_read: recall.blocks_read,
            memory_block_hits: recall.block_hits,
            memory_blocks_damaged: recall.blocks_damaged,
            memory_choices: recall.choices,
            memory_unread_share: recall.unread_share.into(),
            resting_seconds: self.pace.rested.as_secs_f64(),
        }
    }
}

/// Bytes of this process in RAM, where the system says.
fn resident_bytes() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
