//! Whatever the system refuses becomes a status: no abort, no crash, no panic, whichever call of a common job it is that fails.
//!
//! `tests/c/faults.c` is preloaded into `tests/c/job.c` and makes the n-th call of one function of the C library fail. The job ends at the
//! first status that is not the one it expects and says which: that must be an ordinary one.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::native::{self, libraries, output, root, run};
use std::path::Path;
use std::process::Command;

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
        let include = root().join("include");
        run(Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(dir.path().join("faults.so"))
            .arg(root().join("tests/c/faults.c")));
        std::os::unix::fs::symlink(libraries().join("libloci.so"), dir.path().join("libloci.so.0")).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-std=c99", "-pthread", "-I"]).arg(include).arg(root().join("tests/c/job.c")).arg(dir.path().join("libloci.so.0"));
        run(cc.arg("-Wl,-rpath").arg(format!("-Wl,{}", dir.path().display())).args(["-lm", "-o"]).arg(dir.path().join("job")));
        let model = native::chat_model();
        std::fs::write(dir.path().join("model.gguf"), &model).unwrap();
        std::fs::write(dir.path().join("padded"), [&[0x5a; 64][..], &model].concat()).unwrap();
        Job { dir, runs: 0.into() }
    }

    /// Runs the job with a fault; how many calls of the function there were, and what the process had to say.
    fn run(&self, fault: &str) -> (usize, std::process::Output) {
        let path = |name: &str| self.dir.path().join(name);
        self.runs.set(self.runs.get() + 1);
        let files = path(&format!("files-{}", self.runs.get()));
        std::fs::create_dir(&files).unwrap();
        let mut job = Command::new(path("job"));
        job.arg(path("model.gguf")).arg(path("padded")).args(["64", "0"]).arg(&files);
        job.env("LD_PRELOAD", path("faults.so")).env("LOCI_FAULT", fault).env("LOCI_FAULT_COUNT", path("count"));
        let _ = std::fs::remove_file(path("count"));
        let out = output(&mut job);
        let _ = std::fs::remove_dir_all(&files);
        (count(&path("count")), out)
    }
}

fn count(file: &Path) -> usize {
    std::fs::read_to_string(file).ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn refusals_of_the_system_are_statuses() {
    let job = Job::new();
    let mut refused = 0;
    for (function, errno) in FAULTS {
        let (calls, out) = job.run(&format!("{function}:0:{errno}"));
        assert!(out.status.success(), "without a fault: {out:?}");
        let step = calls.div_ceil(TRIED).max(1);
        for n in (1..=calls).step_by(step) {
            let fault = format!("{function}:{n}:{errno}");
            let (_, out) = job.run(&fault);
            let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            // 0: it went on without (a hint that was refused, an interrupted call that was made again). 1: a check of the job named a status.
            assert!(matches!(out.status.code(), Some(0 | 1)), "{fault}: {}\n{said}", out.status);
            assert!(!said.contains("LOCI_PANIC") && !said.contains("panicked") && !said.contains("LOCI_INTERNAL"), "{fault}: {said}");
            if out.status.code() == Some(1) {
                assert!(said.contains("last error: ") && !said.contains("last error: )"), "{fault}: nothing is said: {said}");
                refused += 1;
            }
        }
    }
    assert!(refused > 40, "only {refused} faults were noticed: they are not injected");
}
