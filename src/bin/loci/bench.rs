//! `bench`: tokens per second of prefill and decode, medians and spread over repetitions.

use crate::args::{ModelArgs, SessionArgs};
use crate::{Done, Failure, interrupt, output};
use clap::{Args, ValueEnum};
use loci::model::Model;
use loci::session::{Session, SessionOptions};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// Speed of prefill (pp) and decode (tg)
///
/// Each test runs once to warm up, then --repetitions times. ppN computes N tokens from an empty context, tgN computes N tokens one
/// at a time after --depth tokens.
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
    /// Tokens in the context before the decode test
    #[arg(long, value_name = "N", default_value_t = 1)]
    depth: usize,
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

/// One test's tokens per second, sorted.
struct Row {
    test: String,
    tokens: usize,
    speeds: Vec<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        let (n, half) = (self.speeds.len(), self.speeds.len() / 2);
        if n % 2 == 1 { self.speeds[half] } else { (self.speeds[half - 1] + self.speeds[half]) / 2.0 }
    }

    fn least(&self) -> f64 {
        self.speeds[0]
    }

    fn most(&self) -> f64 {
        self.speeds[self.speeds.len() - 1]
    }
}

impl Bench {
    pub fn exec(self) -> Done {
        if self.repetitions == 0 || self.depth == 0 {
            return Err(Failure::usage("bench: --repetitions and --depth must be at least 1"));
        }
        let model = self.model.open()?;
        let longest = self.pp.iter().copied().chain(self.tg.iter().map(|n| n + self.depth)).max().unwrap_or(0);
        let mut options = self.session.options();
        options.context_length = options.context_length.max(longest);
        let mut session = Session::new(model.clone(), options)?;
        interrupt::install()?;
        let _busy = interrupt::guard(session.cancel_handle());
        let mut rows = Vec::new();
        for &n in self.pp.iter().filter(|&&n| n > 0) {
            let ids = some_ids(&model, n);
            rows.push(self.measure(format!("pp{n}"), n, &mut session, &mut |session| {
                session.reset();
                let started = Instant::now();
                prefill(session, &ids)?;
                Ok(started.elapsed().as_secs_f64())
            })?);
        }
        for &n in self.tg.iter().filter(|&&n| n > 0) {
            let ids = some_ids(&model, self.depth + n);
            rows.push(self.measure(format!("tg{n}"), n, &mut session, &mut |session| {
                session.reset();
                prefill(session, &ids[..self.depth])?;
                let started = Instant::now();
                for id in &ids[self.depth..] {
                    prefill(session, std::slice::from_ref(id))?;
                }
                Ok(started.elapsed().as_secs_f64())
            })?);
        }
        self.report(&model, session.options(), &rows)
    }

    fn measure(
        &self,
        test: String,
        tokens: usize,
        session: &mut Session,
        run: &mut dyn FnMut(&mut Session) -> Result<f64, Failure>,
    ) -> Result<Row, Failure> {
        run(session)?;
        let mut speeds = Vec::new();
        for _ in 0..self.repetitions {
            speeds.push(output::per_second(tokens as u64, run(session)?));
        }
        speeds.sort_by(f64::total_cmp);
        Ok(Row { test, tokens, speeds })
    }

    fn report(&self, model: &Arc<Model>, options: &SessionOptions, rows: &[Row]) -> Done {
        let simd = loci::simd::Level::detect().name();
        match self.format {
            Format::Json => {
                let rows: Vec<Value> = rows
                    .iter()
                    .map(|r| {
                        json!({
                            "test": r.test, "tokens": r.tokens, "median": r.median(), "min": r.least(), "max": r.most(), "all": r.speeds,
                        })
                    })
                    .collect();
                let object = json!({
                    "model": model.name(), "type": model.weight_type(), "parameters": model.parameter_count(),
                    "weight_bytes": model.weight_bytes(), "threads": options.threads, "batch": options.batch, "depth": self.depth,
                    "simd": simd, "unit": "tokens/s", "tests": rows,
                });
                output::print_line(&object.to_string())
            }
            Format::Csv => {
                let mut text = String::from("model,type,threads,test,tokens,median,min,max\n");
                for r in rows {
                    let (name, ty) = (model.name().replace(',', " "), model.weight_type());
                    let [median, least, most] = [r.median(), r.least(), r.most()];
                    text += &format!("{name},{ty},{},{},{},{median:.2},{least:.2},{most:.2}\n", options.threads, r.test, r.tokens);
                }
                output::print(&text)
            }
            Format::Table => {
                let mut text = format!(
                    "{} {}, {} parameters, {}, {} threads (0: one per core), {simd}\n\n",
                    model.name(),
                    model.weight_type(),
                    model.parameter_count(),
                    output::bytes(model.weight_bytes()),
                    options.threads,
                );
                text += &format!(
                    "| {:8} | {:>16} | {:>21} |\n|{:-<10}|{:->17}:|{:->22}:|\n",
                    "test", "median tokens/s", "least .. most", "", "", ""
                );
                for r in rows {
                    text += &format!("| {:8} | {:>16.2} | {:>9.2} .. {:>8.2} |\n", r.test, r.median(), r.least(), r.most());
                }
                output::print(&text)
            }
        }
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
