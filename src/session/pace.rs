//! Pace: rests between forward passes, for devices that must stay cool or leave the processor to others.
//!
//! Invariants: a rest follows its pass and lasts in proportion to it; it holds no lock of a memory, and ends when the session is cancelled.

use super::{CancelHandle, Session};
use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// A cancellation ends a rest within this.
const SLICE: Duration = Duration::from_millis(10);

/// How much of the time is for work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    percent: u32,
    pub rested: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { percent: 100, rested: Duration::ZERO }
    }
}

impl Pace {
    /// Rests for what `worked` has earned.
    pub fn rest(&mut self, worked: Duration, cancel: &CancelHandle) {
        if self.percent == 100 {
            return;
        }
        let (start, due) = (Instant::now(), worked * (100 - self.percent) / self.percent);
        while let Some(left) = due.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            if cancel.is_cancelled() {
                break;
            }
            std::thread::sleep(left.min(SLICE));
        }
        self.rested += start.elapsed();
    }
}

impl Session {
    /// Works for at most `percent` of the time, 1 to 100: after each forward pass, of a prompt, a document or a token, it rests so long that
    /// this holds. Results do not depend on it. At 100, the default, it never rests. For devices that get hot.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn set_duty(&mut self, percent: u32) -> Result<()> {
        if !(1..=100).contains(&percent) {
            return Err(Error::argument("percent", "1 to 100", percent));
        }
        self.pace.percent = percent;
        Ok(())
    }

    /// What [`Session::set_duty`] said last.
    pub fn duty(&self) -> u32 {
        self.pace.percent
    }
}
