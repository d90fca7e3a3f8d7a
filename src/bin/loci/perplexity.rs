//! `logits` and `perplexity`: what a model thinks of a given text.

use crate::args::{ModelArgs, SessionArgs};
use crate::{Done, Failure, interrupt, output, prompt};
use clap::Args;
use loci::sampler::log_probability;
use serde_json::json;
use std::path::PathBuf;

/// Logits of every position, as raw little-endian f32 (positions x vocabulary)
#[derive(Args)]
pub struct Logits {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids: `1,2,3`, or a file with a JSON array
    #[arg(long)]
    ids: String,
    /// Where the numbers go (`-`: stdout)
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    session: SessionArgs,
}

impl Logits {
    pub fn exec(self) -> Done {
        let ids = prompt::ids(&self.ids)?;
        let model = self.model.open()?;
        prompt::check_ids(model.vocab_len(), &ids)?;
        let mut options = self.session.options();
        if options.context_length == 0 && model.memory_layers().is_empty() {
            options.context_length = ids.len().max(1);
        }
        let mut session = self.session.start(model, options)?;
        interrupt::install()?;
        let _busy = interrupt::guard(session.cancel_handle());
        let mut out = output::create(&self.out)?;
        let mut written = Ok(());
        session.prefill_logits(&ids, &mut |_, row| {
            if written.is_ok() {
                written = output::write_f32(&mut *out, row, &self.out);
            }
        })?;
        written?;
        output::finish(&mut *out, &self.out)
    }
}

/// Perplexity of a text
///
/// The text is tokenised whole and cut into chunks of --ctx tokens. Each chunk starts from an empty context; where the model wants
/// a BOS, it replaces the chunk's first token. Only the second half of a chunk is scored, so every scored token has at least half a
/// chunk of context before it.
#[derive(Args)]
pub struct Perplexity {
    #[command(flatten)]
    model: ModelArgs,
    /// The text
    #[arg(short, long, required_unless_present = "ids", conflicts_with = "ids")]
    file: Option<PathBuf>,
    /// Token ids in place of a text: a file with a JSON array
    #[arg(long)]
    ids: Option<String>,
    /// At most so many chunks; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0)]
    chunks: usize,
    /// One JSON object in place of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArgs,
}

impl Perplexity {
    pub fn exec(self) -> Done {
        let model = self.model.open()?;
        let tokens = match (&self.file, &self.ids) {
            (_, Some(ids)) => prompt::ids(ids)?,
            (Some(file), None) => model.tokenizer().encode_bytes(&prompt::read(file)?, true, false),
            (None, None) => return Err(Failure::usage("perplexity: --file or --ids is needed")),
        };
        prompt::check_ids(model.vocab_len(), &tokens)?;
        let mut options = self.session.options();
        if options.context_length == 0 {
            options.context_length = 512;
        }
        let n_ctx = options.context_length;
        let available = if n_ctx < 4 { 0 } else { tokens.len() / n_ctx };
        if available == 0 {
            return Err(Failure::usage(format!("perplexity: {} tokens do not fill one chunk of --ctx {n_ctx}", tokens.len())));
        }
        let chunks = if self.chunks == 0 { available } else { self.chunks.min(available) };
        let bos = model.tokenizer().bos().filter(|_| model.tokenizer().add_bos());
        let mut session = self.session.start(model, options)?;
        interrupt::install()?;
        let _busy = interrupt::guard(session.cancel_handle());
        let bar = output::token_bar("perplexity", chunks * n_ctx);
        let started = std::time::Instant::now();
        let mut score = Score::default();
        // One call: a Ctrl-C between two chunks is not forgotten.
        session.as_one_call(|session| {
            for chunk in tokens.chunks_exact(n_ctx).take(chunks) {
                let mut chunk = chunk.to_vec();
                if let Some(bos) = bos {
                    chunk[0] = bos;
                }
                session.reset();
                let mut bad = None;
                session.prefill_logits(&chunk, &mut |at, row| {
                    if at >= n_ctx / 2 && at + 1 < n_ctx {
                        match log_probability(row, chunk[at + 1]) {
                            Ok(p) => score.add(-p),
                            Err(e) => bad = Some(e),
                        }
                    }
                    bar.inc(1);
                })?;
                if let Some(e) = bad {
                    return Err(e);
                }
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        let (ppl, error) = score.perplexity();
        if self.json {
            let seconds = started.elapsed().as_secs_f64();
            let figures = json!({
                "perplexity": ppl, "error": error, "nll": score.mean(), "chunks": chunks, "ctx": n_ctx, "scored_tokens": score.count,
                "tokens": chunks * n_ctx, "seconds": seconds, "tokens_per_second": output::per_second((chunks * n_ctx) as u64, seconds),
            });
            return output::print_line(&figures.to_string());
        }
        output::print_line(&format!("chunks {chunks} of {available}, {n_ctx} tokens each, {} scored", score.count))?;
        output::print_line(&format!("PPL = {ppl:.4} +/- {error:.5}"))
    }
}

/// Sums of negative log-likelihoods.
#[derive(Default)]
pub struct Score {
    sum: f64,
    squares: f64,
    count: u64,
}

impl Score {
    pub fn add(&mut self, nll: f64) {
        self.sum += nll;
        self.squares += nll * nll;
        self.count += 1;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// exp of the mean, and its standard error by the delta method.
    pub fn perplexity(&self) -> (f64, f64) {
        let mean = self.mean();
        let variance = (self.squares / self.count as f64 - mean * mean).max(0.0);
        let error = if self.count > 1 { (variance / (self.count - 1) as f64).sqrt() } else { 0.0 };
        (mean.exp(), error * mean.exp())
    }
}
