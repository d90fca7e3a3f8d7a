//! What the machine could reach at most: measured in the same rounds as the tests, with as many threads.

use super::{Kind, Row, median};
use crate::Failure;
use loci::kernels::probe::Probe;
use loci::model::Model;
use loci::session::SessionOptions;
use loci::threads::Team;

/// The probe and what it has measured so far.
pub struct Limits {
    probe: Probe,
    team: Team,
    bandwidths: Vec<f64>,
    rates: Vec<f64>,
}

impl Limits {
    pub fn new(threads: usize) -> Result<Limits, Failure> {
        Ok(Limits { probe: Probe::new()?, team: Team::new(threads)?, bandwidths: Vec::new(), rates: Vec::new() })
    }

    /// One more measurement of each.
    pub fn measure(&mut self) {
        self.bandwidths.push(self.probe.read_bandwidth(&self.team));
        self.rates.push(self.probe.dot_rate(&self.team));
    }

    /// Bytes that can be read from memory a second; 0 before the first measurement.
    pub fn read_bandwidth(&self) -> f64 {
        if self.bandwidths.is_empty() { 0.0 } else { median(&self.bandwidths) }
    }

    /// 8-bit operations that can be computed a second, a multiply-add counting as two; 0 before the first measurement.
    pub fn dot_rate(&self) -> f64 {
        if self.rates.is_empty() { 0.0 } else { median(&self.rates) }
    }

    /// What share of its limit a test reached.
    pub fn share(&self, model: &Model, options: &SessionOptions, row: &Row) -> Option<f64> {
        let (needed, most) = match row.kind {
            Kind::Decode => {
                let context = row.depth as f64 + row.tokens as f64 / 2.0;
                (decode_bytes(model) as f64 + kv_bytes(model, options, context), self.read_bandwidth())
            }
            // Float weights are multiplied as floats: the rate of 8-bit products is no measure of them.
            Kind::Prefill if ["F32", "F16", "BF16"].contains(&model.weight_type()) => return None,
            Kind::Prefill => (prefill_operations(model, row.tokens) / row.tokens as f64, self.dot_rate()),
        };
        (most > 0.0).then(|| needed * row.median() / most)
    }
}

/// Bytes of weights that decoding a token reads: all but the embeddings, of which it reads one row. Where the file ties them to
/// the head, the head reads them.
fn decode_bytes(model: &Model) -> u64 {
    let tensors = model.gguf().tensors().iter();
    tensors.filter(|t| t.name != "token_embd.weight" || is_tied(model)).map(|t| t.range.len() as u64).sum()
}

fn is_tied(model: &Model) -> bool {
    model.gguf().tensor("output.weight").is_none()
}

/// Bytes of keys and values that a token reads with `context` tokens before it.
fn kv_bytes(model: &Model, options: &SessionOptions, context: f64) -> f64 {
    let h = model.hparams();
    let token = h.head_count_kv * (options.kv_type.row_bytes(h.key_length) + options.kv_type.row_bytes(h.value_length));
    let seen = |window: &usize| if *window > 0 { context.min(*window as f64) } else { context };
    h.sliding_window.iter().map(seen).sum::<f64>() * token as f64
}

/// Operations of the matrix products of `n` tokens: two for each parameter of the layers and token, and the head's for the last.
fn prefill_operations(model: &Model, n: usize) -> f64 {
    let (embd, head) = ("token_embd.weight", if is_tied(model) { "token_embd.weight" } else { "output.weight" });
    let elements = |wanted: &dyn Fn(&str) -> bool| -> u64 {
        model.gguf().tensors().iter().filter(|t| t.dims.len() > 1 && wanted(&t.name)).map(|t| t.elements()).sum()
    };
    let layers = elements(&|name| name != embd && name != head);
    2.0 * (layers as f64 * n as f64 + elements(&|name| name == head) as f64)
}
