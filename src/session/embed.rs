//! Text as one vector: what the model makes of its tokens, pooled.

use super::{Progress, Session};
use crate::error::{Error, Result};
use crate::kernels::vector::add;
use crate::model::forward::Outputs;

/// How the states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last token, which has seen all others.
    Last,
}

impl Session {
    /// The embedding of a text: the normalised residual stream behind the last layer, pooled, of length 1. The context is reset before
    /// and after; memories are not read.
    ///
    /// # Errors
    /// [`Error::Argument`] without tokens, [`Error::Limit`] for more than the context holds, [`Error::Cancelled`].
    pub fn embed(&mut self, tokens: &[u32], pooling: Pooling, progress: Progress<'_>) -> Result<Vec<f32>> {
        self.begin_call();
        self.reset();
        let pooled = self.pooled(tokens, pooling, progress);
        self.reset();
        let mut pooled = pooled?;
        let norm = pooled.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            pooled.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
        Ok(pooled)
    }

    fn pooled(&mut self, tokens: &[u32], pooling: Pooling, progress: Progress<'_>) -> Result<Vec<f32>> {
        self.check_tokens(tokens)?;
        let (len, capacity) = (tokens.len(), self.window.capacity());
        if len == 0 {
            return Err(Error::argument("tokens", "at least one", "none"));
        }
        if len > capacity {
            return Err(Error::Limit { what: "context window (tokens)".into(), limit: capacity as u64, asked: len as u64 });
        }
        let mut pooled = vec![0.0; self.model.embedding_length()];
        for (i, batch) in tokens.chunks(self.options.batch).enumerate() {
            let start = i * self.options.batch;
            let mut each = |i: usize, state: &[f32]| match pooling {
                Pooling::Mean => add(&mut pooled, state),
                Pooling::Last if start + i + 1 == len => pooled.copy_from_slice(state),
                Pooling::Last => {}
            };
            self.compute(batch, Outputs::States(&mut each), &[])?;
            let done = start + batch.len();
            if progress(done, len).is_break() && done < len {
                return Err(Error::Cancelled);
            }
        }
        Ok(pooled)
    }
}
