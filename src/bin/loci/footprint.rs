//! `estimate`: how much RAM a session will take, and with --measure how much it did take.

use crate::args::{ModelArgs, SessionArgs};
use crate::{Done, Failure, output};
use clap::Args;
use loci::session::Session;
use serde_json::json;
use std::ops::ControlFlow;

/// RAM that a session takes, before it is made
///
/// The figures are those of a full context and of a batch as large as allowed.
#[derive(Args)]
pub struct Estimate {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    session: SessionArgs,
    /// With a memory attached
    #[arg(long)]
    memory: bool,
    /// Then fill a context, and say how much the process took at its peak
    #[arg(long, conflicts_with = "memory")]
    measure: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Estimate {
    pub fn exec(self) -> Done {
        let model = self.model.open()?;
        let options = self.session.options();
        let e = Session::estimate(&model, &options, self.memory)?;
        let peak = if self.measure {
            let mut session = self.session.start(model.clone(), options)?;
            let token = model.tokenizer().encode("a", false, false).last().copied().unwrap_or(0);
            let tokens = vec![token; session.context_length()];
            let bar = output::token_bar("filling the context", tokens.len());
            session.prefill(&tokens, &mut |done, _| {
                bar.set_position(done as u64);
                ControlFlow::Continue(())
            })?;
            bar.finish_and_clear();
            Some(peak_bytes().ok_or_else(|| Failure::failed("estimate: this system does not say how much a process took"))?)
        } else {
            None
        };
        if self.json {
            return output::print_line(
                &json!({
                    "file_bytes": e.file_bytes,
                    "model_bytes": e.model_bytes,
                    "context_bytes": e.context_bytes,
                    "scratch_bytes": e.scratch_bytes,
                    "memory_bytes": e.memory_bytes,
                    "total_bytes": e.total(),
                    "measured_peak_bytes": peak,
                })
                .to_string(),
            );
        }
        let mut text = String::new();
        let rows = [
            ("weights, mapped (the system may take them back)", e.file_bytes),
            ("vocabulary and process", e.model_bytes),
            ("keys and values of a full context", e.context_bytes),
            ("buffers of a batch", e.scratch_bytes),
            ("brought back from memory", e.memory_bytes),
            ("in all", e.total()),
        ];
        for (what, bytes) in rows {
            text += &format!("{:>12}  {what}\n", output::bytes(bytes));
        }
        if let Some(peak) = peak {
            text +=
                &format!("{:>12}  measured at its peak: {:.3} times the estimate\n", output::bytes(peak), peak as f64 / e.total() as f64);
        }
        output::print(&text)
    }
}

/// Most bytes of this process that were ever in RAM, where the system says.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
