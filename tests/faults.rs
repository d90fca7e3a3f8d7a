//! Whatever the system refuses becomes a status: no abort, no crash, no panic, whichever call of a common job it is that fails.
//!
//! `tests/c/faults.c` is preloaded into `tests/c/job.c` and makes the n-th call of one function of the C library fail. The job ends at the
//! first status that is not the one it expects and says which: that must be an ordinary one. `tests/c/short.c` is a second, shorter job, for
//! a model of ordinary size; `tests/c/spent.c` uses the allocator's reserve up and frees.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::native::{self, libraries, output, root, run};
use common::smollm2;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A function, and the number of the error that it fails with.
const FAULTS: [(&str, i32); 12] = [
    ("open", 13),
    ("open", 24),
    ("mmap", 12),
    ("pread", 5),
    ("pread", 4),
    ("pwrite", 28),
    ("pwrite", 5),
    ("write", 28),
    ("fdatasync", 5),
    ("fsync", 5),
    ("ftruncate", 28),
    ("pthread_create", 11),
];
/// Calls of one function that are made to fail, spread over all that there are.
const TRIED: usize = 24;

struct Job {
    dir: tempfile::TempDir,
    runs: std::cell::Cell<usize>,
}

impl Job {
    fn new() -> Job {
        let dir = tempfile::tempdir().unwrap();
        let job = Job { dir, runs: 0.into() };
        run(Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(job.path("faults.so"))
            .arg(root().join("tests/c/faults.c")));
        std::os::unix::fs::symlink(libraries().join("libloci.so"), job.path("libloci.so.0")).unwrap();
        for program in ["job", "short", "spent"] {
            let mut cc = Command::new("cc");
            cc.args(["-std=c99", "-pthread", "-I"]).arg(root().join("include")).arg(root().join(format!("tests/c/{program}.c")));
            cc.arg(job.path("libloci.so.0")).arg("-Wl,-rpath").arg(format!("-Wl,{}", job.dir.path().display()));
            run(cc.args(["-lm", "-o"]).arg(job.path(program)));
        }
        let model = native::chat_model();
        std::fs::write(job.path("model.gguf"), &model).unwrap();
        std::fs::write(job.path("padded"), [&[0x5a; 64][..], &model].concat()).unwrap();
        job
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the common job with a fault; how many calls of the function there were, and what the process had to say.
    fn run(&self, fault: &str, lasting: bool) -> (usize, Output) {
        self.start(fault, lasting, "job", |job| job.arg(self.path("model.gguf")).arg(self.path("padded")).args(["64", "0"]))
    }

    /// The same for the short job with an ordinary model.
    fn run_short(&self, fault: &str, lasting: bool) -> (usize, Output) {
        self.start(fault, lasting, "short", |job| job.arg(smollm2()))
    }

    fn start(&self, fault: &str, lasting: bool, program: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> (usize, Output) {
        self.runs.set(self.runs.get() + 1);
        let files = self.path(&format!("files-{}", self.runs.get()));
        std::fs::create_dir(&files).unwrap();
        let mut job = Command::new(self.path(program));
        arguments(&mut job).arg(&files);
        job.env("LD_PRELOAD", self.path("faults.so")).env("LOCI_FAULT", fault).env("LOCI_FAULT_COUNT", self.path("count"));
        if lasting {
            job.env("LOCI_FAULT_LASTING", "1");
        }
        let _ = std::fs::remove_file(self.path("count"));
        let out = output(&mut job);
        let _ = std::fs::remove_dir_all(&files);
        (count(&self.path("count")), out)
    }
}

/// True if a status said what was refused, false if the job went on without it (a hint, an interrupted call that was made again, an
/// allocation from the reserve). Anything else is a failure of the test.
fn is_refused(fault: &str, out: Output) -> bool {
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(matches!(out.status.code(), Some(0 | 1)), "{fault}: {}\n{said}", out.status);
    assert!(!said.contains("LOCI_PANIC") && !said.contains("panicked") && !said.contains("LOCI_INTERNAL"), "{fault}: {said}");
    let refused = out.status.code() == Some(1);
    assert!(!refused || said.contains("last error: ") && !said.contains("last error: )"), "{fault}: nothing is said: {said}");
    refused
}

fn count(file: &Path) -> usize {
    std::fs::read_to_string(file).ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn refusals_of_the_system_are_statuses() {
    let job = Job::new();
    let mut refused = 0;
    for (function, errno) in FAULTS {
        let (calls, out) = job.run(&format!("{function}:0:{errno}"), false);
        assert!(out.status.success(), "without a fault: {out:?}");
        for n in (1..=calls).step_by(calls.div_ceil(TRIED).max(1)) {
            let fault = format!("{function}:{n}:{errno}");
            refused += usize::from(is_refused(&fault, job.run(&fault, false).1));
        }
    }
    assert!(refused > 40, "only {refused} faults were noticed: they are not injected");
}

/// One allocation fails, or every one from the n-th on, at points spread over two jobs.
#[test]
fn without_memory_every_call_ends_with_a_status() {
    let job = Job::new();
    let (mut runs, mut refused, mut in_std) = (0, 0, 0);
    type Run = fn(&Job, &str, bool) -> (usize, Output);
    for (run, lasting) in [(Job::run as Run, false), (Job::run, true), (Job::run_short, true)] {
        let (calls, out) = run(&job, "memory:0:12", lasting);
        assert!(out.status.success(), "without a fault: {out:?}");
        assert!(calls > 1000, "only {calls} allocations are seen");
        for i in 0..TRIED {
            let fault = format!("memory:{}:12", 1 + i * calls / TRIED);
            let out = run(&job, &fault, lasting).1;
            runs += 1;
            // The standard library takes some bytes for a new thread past every allocator and ends the process without them. The library
            // asks for more than that just before, so what is left is a fault at this one allocation.
            if out.status.code().is_none() && out.stderr.starts_with(b"memory allocation of 48 bytes") {
                in_std += 1;
                continue;
            }
            refused += usize::from(is_refused(&fault, out));
        }
    }
    assert!(refused > runs / 3, "only {refused} of {runs} faults were noticed: they are not injected");
    assert!(
        in_std <= runs / 12,
        "{in_std} of {runs} runs were ended by the standard library: it is not asked first whether there is memory"
    );
}

#[test]
fn what_gives_back_is_never_refused() {
    let job = Job::new();
    run(Command::new(job.path("spent")).arg(job.path("model.gguf")));
}
