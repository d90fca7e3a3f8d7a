//! Why a verb ended early, and the exit code that says so.

use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Why a verb ended early.
#[derive(Debug)]
pub enum Failure {
    /// The command line asks for something that makes no sense: exit code 2.
    Usage(String),
    /// The work failed: exit code 1.
    Failed(String),
    /// Ctrl-C: exit code 130.
    Cancelled,
    /// Nobody reads stdout any more (`loci ... | head`): exit code 141, and silence, as a process killed by SIGPIPE.
    PipeClosed,
}

impl Failure {
    pub fn usage(what: impl Into<String>) -> Failure {
        Failure::Usage(what.into())
    }

    pub fn failed(what: impl Into<String>) -> Failure {
        Failure::Failed(what.into())
    }

    /// A failed action on a path.
    pub fn io(action: &str, path: &Path, e: io::Error) -> Failure {
        Failure::Failed(format!("{action} {}: {e}", path.display()))
    }

    /// A failed write to stdout.
    pub fn stdout(e: io::Error) -> Failure {
        if e.kind() == io::ErrorKind::BrokenPipe { Failure::PipeClosed } else { Failure::Failed(format!("write to stdout: {e}")) }
    }

    /// Says on stderr what happened, and gives the exit code.
    pub fn report(self) -> ExitCode {
        let (what, code) = match self {
            Failure::Usage(what) => (what, 2),
            Failure::Failed(what) => (what, 1),
            Failure::Cancelled => ("cancelled".to_string(), 130),
            Failure::PipeClosed => return ExitCode::from(141),
        };
        crate::output::note(&format!("loci: error: {what}"));
        ExitCode::from(code)
    }
}

impl From<loci::Error> for Failure {
    fn from(e: loci::Error) -> Failure {
        match e {
            loci::Error::Cancelled => Failure::Cancelled,
            loci::Error::Argument { .. } => Failure::Usage(e.to_string()),
            e => Failure::Failed(e.to_string()),
        }
    }
}
