//! Ctrl-C: the first cancels the work in progress, one with nothing in progress leaves.

use crate::failure::Failure;
use crate::output;
use loci::session::CancelHandle;
use std::sync::Mutex;

/// What the next Ctrl-C does.
enum State {
    /// Nothing is running: leave.
    Idle,
    /// Cancel this; a further one leaves, should the work not react.
    Busy(CancelHandle),
    /// Waiting at a chat prompt: warn first, leave at the second.
    Prompt,
}

static STATE: Mutex<State> = Mutex::new(State::Idle);

fn set(state: State) {
    *STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = state;
}

/// Installs the handler; once per process.
pub fn install() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        let mut state = STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match std::mem::replace(&mut *state, State::Idle) {
            State::Busy(work) => work.cancel(),
            State::Prompt => {
                output::note("\n(Ctrl-C again or Ctrl-D leaves)");
                // The prompt once more; if stdout is gone, the next read notices.
                let _ = output::print("> ");
            }
            // Committed memory is safe at any instant, so there is nothing to wait for.
            State::Idle => std::process::exit(130),
        }
    })
    .map_err(|e| Failure::failed(format!("catch Ctrl-C: {e}")))
}

/// While the guard lives, Ctrl-C cancels `work`; after it, Ctrl-C leaves the program.
pub fn guard(work: CancelHandle) -> Guard {
    set(State::Busy(work));
    Guard
}

/// At a prompt: the first Ctrl-C only warns.
pub fn prompt() -> Guard {
    set(State::Prompt);
    Guard
}

/// See [`guard`].
pub struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        set(State::Idle);
    }
}
