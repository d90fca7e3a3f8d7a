//! `bench`: tokens per second of prefill and decode, medians and spread over rounds, beside what the machine could do at most.

mod limits;
mod report;

use crate::args::{ModelArgs, SessionArgs};
use crate::{Done, Failure, interrupt, output};
use clap::{Args, ValueEnum};
use limits::Limits;
use loci::model::Model;
use loci::session::Session;
use loci::threads::default_threads;
use std::ops::ControlFlow;
use std::time::Instant;

/// Speed of prefill (pp) and decode (tg)
///
/// Each test warms up, then runs once in each of --repetitions rounds. ppN computes N tokens at once, tgN computes N tokens
/// one at a time with the logits of each; both follow --depth tokens that are there already. The limit is what the same number of
/// threads could reach here, measured in the same rounds: for decode, reading all weights and keys and values once for each token
/// at the bandwidth of the memory; for prefill, two operations for each parameter and token at the rate of 8-bit dot products.
#[derive(Args)]
pub struct Bench {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt sizes
    #[arg(long, value_name = "N,N..", value_delimiter = ',', default_value = "128,512")]
    pp: Vec<usize>,
    /// Decode lengths
    #[arg(long, value_name = "N,N..", value_delimiter = ',', default_value = "64")]
    tg: Vec<usize>,
    /// Tokens in the context before each test
    #[arg(long, value_name = "N,N..", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    #[arg(short, long, default_value_t = 5)]
    repetitions: usize,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    session: SessionArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
    Csv,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Prefill,
    Decode,
}

/// Tokens that are decoded to warm up: all weights have been read by then, and all buffers have grown.
const WARM_TOKENS: usize = 16;

/// One test, and what it has shown.
struct Row {
    kind: Kind,
    tokens: usize,
    depth: usize,
    /// Tokens per second of each round.
    speeds: Vec<f64>,
    /// The median's share of the machine's limit; None where that says nothing.
    share: Option<f64>,
}

impl Row {
    fn name(&self) -> String {
        let kind = if self.kind == Kind::Prefill { "pp" } else { "tg" };
        let depth = if self.depth > 0 { format!("@d{}", self.depth) } else { String::new() };
        format!("{kind}{}{depth}", self.tokens)
    }

    fn median(&self) -> f64 {
        median(&self.speeds)
    }

    fn least(&self) -> f64 {
        self.speeds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.speeds.iter().copied().fold(0.0, f64::max)
    }

    /// Seconds of the first `tokens` of one run after the first `depth` of `ids`, which the session holds or takes up first.
    fn run(&self, session: &mut Session, ids: &[u32], tokens: usize) -> Result<f64, Failure> {
        if session.truncate(self.depth).is_err() {
            session.reset();
            prefill(session, &ids[..self.depth])?;
        }
        let ids = &ids[self.depth..self.depth + tokens];
        let started = Instant::now();
        match self.kind {
            Kind::Prefill => prefill(session, ids)?,
            Kind::Decode => ids.chunks(1).try_for_each(|id| prefill(session, id))?,
        }
        Ok(started.elapsed().as_secs_f64())
    }
}

impl Bench {
    pub fn exec(self) -> Done {
        if self.repetitions == 0 {
            return Err(Failure::usage("bench: --repetitions must be at least 1"));
        }
        let model = self.model.open()?;
        let mut rows: Vec<Row> = self.depth.iter().flat_map(|&depth| self.tests(depth)).collect();
        let ids = some_ids(&model, rows.iter().map(|r| r.depth + r.tokens).max().unwrap_or(0));
        let mut options = self.session.options();
        options.context_length = options.context_length.max(ids.len());
        if options.threads == 0 {
            options.threads = default_threads();
        }
        let mut session = self.session.start(model.clone(), options)?;
        let mut limits = Limits::new(session.options().threads)?;
        interrupt::install()?;
        let _busy = interrupt::guard(session.cancel_handle());
        for rows in rows.chunk_by_mut(|a, b| a.depth == b.depth) {
            for row in rows.iter() {
                let warm = if row.kind == Kind::Decode { row.tokens.min(WARM_TOKENS) } else { row.tokens };
                row.run(&mut session, &ids, warm)?;
            }
            for _ in 0..self.repetitions {
                limits.measure();
                for row in rows.iter_mut() {
                    row.speeds.push(output::per_second(row.tokens as u64, row.run(&mut session, &ids, row.tokens)?));
                }
            }
        }
        for row in &mut rows {
            row.share = limits.share(&model, session.options(), row);
        }
        report::print(self.format, &model, session.options(), &limits, &rows)
    }

    fn tests(&self, depth: usize) -> impl Iterator<Item = Row> {
        let row = move |kind| move |tokens: &usize| Row { kind, tokens: *tokens, depth, speeds: Vec::new(), share: None };
        let rows = self.pp.iter().map(row(Kind::Prefill)).chain(self.tg.iter().map(row(Kind::Decode)));
        rows.filter(|row| row.tokens > 0)
    }
}

fn prefill(session: &mut Session, ids: &[u32]) -> Done {
    Ok(session.prefill(ids, &mut |_, _| ControlFlow::Continue(()))?)
}

/// Ids spread over the vocabulary: what they say does not matter for the speed of a dense model.
fn some_ids(model: &Model, n: usize) -> Vec<u32> {
    let len = model.vocab_len().max(1) as u64;
    (0..n as u64).map(|i| (i.wrapping_mul(7919) % len) as u32).collect()
}

/// The middle of `values`, which are not empty; of an even number, the mean of the two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (n, half) = (sorted.len(), sorted.len() / 2);
    if n % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 }
}
