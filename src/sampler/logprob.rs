//! Log-probabilities of a row of logits, for scoring and for callers that want to see what the model thought.
//!
//! log p(i) = x(i) - max - ln(sum(exp(x(j) - max))), in f64 throughout. Invariants: NaN counts as `-inf`, `+inf` as the largest
//! finite logit, so no result is NaN; a row with nothing above `-inf` is an error.

use crate::error::{Error, Result, try_with_capacity};
use std::cmp::Ordering;

/// A logit as the sums see it.
fn clean(logit: f32) -> f64 {
    if logit.is_nan() { f64::NEG_INFINITY } else { logit.min(f32::MAX).into() }
}

/// ln(sum(exp(logits))).
pub fn log_sum_exp(logits: &[f32]) -> Result<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(clean(x)));
    if max == f64::NEG_INFINITY {
        return Err(Error::argument("logits", "at least one logit above -inf", format!("none in a row of {}", logits.len())));
    }
    Ok(max + logits.iter().map(|&x| (clean(x) - max).exp()).sum::<f64>().ln())
}

/// The log-probability of one token, at most 0.
///
/// # Errors
/// [`Error::Argument`] if the row has no such id, or nothing above `-inf`.
pub fn log_probability(logits: &[f32], id: u32) -> Result<f64> {
    let Some(&logit) = logits.get(id as usize) else {
        return Err(Error::argument("id", format!("a token below {}", logits.len()), id));
    };
    Ok((clean(logit) - log_sum_exp(logits)?).min(0.0))
}

/// The log-probabilities of the whole row (n_vocab) into `out` (n_vocab).
pub fn log_softmax(logits: &[f32], out: &mut [f32]) -> Result<()> {
    if out.len() != logits.len() {
        return Err(Error::argument("out", format!("room for {} values", logits.len()), out.len()));
    }
    let log_sum = log_sum_exp(logits)?;
    for (to, &x) in out.iter_mut().zip(logits) {
        *to = (clean(x) - log_sum).min(0.0) as f32;
    }
    Ok(())
}

/// The `n` most probable tokens (all, if the row has fewer) with their log-probabilities, best first, equal ones by id.
pub fn top_log_probabilities(logits: &[f32], n: usize) -> Result<Vec<(u32, f64)>> {
    let log_sum = log_sum_exp(logits)?;
    let mut ids: Vec<u32> = try_with_capacity("candidates", logits.len())?;
    ids.extend(0..logits.len() as u32);
    let order = |a: &u32, b: &u32| {
        let [x, y] = [a, b].map(|&id| clean(logits[id as usize]));
        y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(b))
    };
    if n < ids.len() {
        if n > 0 {
            ids.select_nth_unstable_by(n - 1, order);
        }
        ids.truncate(n);
    }
    ids.sort_unstable_by(order);
    Ok(ids.into_iter().map(|id| (id, (clean(logits[id as usize]) - log_sum).min(0.0))).collect())
}
