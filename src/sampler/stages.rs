//! The stages that make the set of candidates smaller, and the softmax between them. Order and references: the [module](super).
//!
//! Invariants: a candidate's logit is never NaN or infinite; no stage empties a set that was not empty; sums are in f64; after any
//! truncation but min-p the candidates stand in descending order of logit, before that in ascending order of id.

use crate::error::{Result, try_reserve};
use std::cmp::Ordering;

/// One token that may still be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit after bias and penalties.
    pub logit: f32,
    /// Its share of what the stages left, 0 to 1.
    pub probability: f64,
}

/// Larger logits first, equal ones by id. Total, because no candidate is NaN.
fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Fills `candidates` from a row: all that may be drawn at all for `k` = 0, the `k` best in descending order otherwise.
///
/// One pass that holds at most a few times `k` candidates: nearly every logit of a row is dismissed by one comparison with the
/// worst of the best `k` so far. Ids ascend, so an equal logit that comes later loses, which is the order wanted.
pub fn top_k(candidates: &mut Vec<Candidate>, logits: &[f32], k: u32) -> Result<()> {
    candidates.clear();
    let k = k as usize;
    let all = k == 0 || k >= logits.len();
    let full = if all { usize::MAX } else { k.saturating_mul(2).max(k.saturating_add(64)) };
    try_reserve(candidates, super::CANDIDATES, full.min(logits.len()))?;
    let mut bar = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        // False for NaN and for -inf.
        if logit > bar {
            // Overflow to +inf (or a model gone wrong) must not make NaN of a difference.
            candidates.push(Candidate { id: id as u32, logit: logit.min(f32::MAX), probability: 0.0 });
            if candidates.len() >= full {
                bar = keep_best(candidates, k);
            }
        }
    }
    if k != 0 {
        keep_best(candidates, k);
        candidates.sort_unstable_by(descending);
    }
    Ok(())
}

/// Leaves the `k` best, in no order, and returns the worst logit of them.
fn keep_best(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    if candidates.len() <= k || k == 0 {
        return f32::NEG_INFINITY;
    }
    let (_, worst, _) = candidates.select_nth_unstable_by(k - 1, descending);
    let bar = worst.logit;
    candidates.truncate(k);
    bar
}

/// Probabilities of the candidates at a temperature.
pub fn softmax(candidates: &mut [Candidate], temperature: f64) {
    let max = candidates.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit));
    let mut sum = 0.0;
    for c in candidates.iter_mut() {
        c.probability = ((f64::from(c.logit) - f64::from(max)) / temperature).exp();
        sum += c.probability;
    }
    // The largest adds exp(0) = 1, so the sum is at least 1.
    for c in candidates.iter_mut() {
        c.probability /= sum;
    }
}

/// Keeps the shortest prefix of the candidates in `order` whose probabilities reach `mass`; at least one.
///
/// Only as much as is needed is sorted: a nucleus is usually a few dozen of a quarter of a million.
fn keep_mass(candidates: &mut Vec<Candidate>, mass: f64, order: impl Fn(&Candidate, &Candidate) -> Ordering) {
    let (mut sorted, mut step, mut sum) = (0, 64, 0.0);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        if step < rest.len() {
            rest.select_nth_unstable_by(step - 1, &order);
        }
        let step_len = step.min(rest.len());
        let part = &mut rest[..step_len];
        part.sort_unstable_by(&order);
        for (i, c) in part.iter().enumerate() {
            sum += c.probability;
            if sum >= mass {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += step_len;
        step *= 4;
    }
}

/// The most probable tokens whose mass reaches `p`.
pub fn top_p(candidates: &mut Vec<Candidate>, p: f64) {
    softmax(candidates, 1.0);
    keep_mass(candidates, p, descending);
}

/// The tokens whose surprise, -ln(probability), is nearest to the entropy, until their mass reaches `p`.
pub fn typical(candidates: &mut Vec<Candidate>, p: f64) {
    softmax(candidates, 1.0);
    // ln(probability) = logit - log_sum: exact also where the probability itself underflows.
    let max = candidates.iter().fold(f64::NEG_INFINITY, |max, c| max.max(c.logit.into()));
    let log_sum = max + candidates.iter().map(|c| (f64::from(c.logit) - max).exp()).sum::<f64>().ln();
    let surprise = |c: &Candidate| log_sum - f64::from(c.logit);
    let entropy: f64 = candidates.iter().map(|c| if c.probability > 0.0 { c.probability * surprise(c) } else { 0.0 }).sum();
    let distance = |c: &Candidate| (surprise(c) - entropy).abs();
    keep_mass(candidates, p, |a, b| distance(a).partial_cmp(&distance(b)).unwrap_or(Ordering::Equal).then(descending(a, b)));
    candidates.sort_unstable_by(descending);
}

/// The tokens at least `min_p` times as probable as the most probable one.
pub fn min_p(candidates: &mut Vec<Candidate>, min_p: f64) {
    let max = candidates.iter().fold(f32::NEG_INFINITY, |max, c| max.max(c.logit));
    // p_i / p_max = exp(logit_i - max), so nothing needs a sum.
    let bar = min_p.ln();
    candidates.retain(|c| f64::from(c.logit) - f64::from(max) >= bar);
}
