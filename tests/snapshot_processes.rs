//! A session outlives its process: it is saved, the process is killed with SIGKILL, and another one that has nothing but the files goes on
//! with the very tokens that the first would have sampled, a memory attached. Through the C ABI, as an app does it; the same program runs
//! on emulated 64-bit ARM (`tools/aarch64/examples.sh`).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::native::{self, libraries, root, run};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

fn goes_on(program: &Path, model: &Path, dir: &Path) {
    let (memory, state) = (dir.join("m.lmem"), dir.join("session"));
    let mut writer = Command::new(program);
    writer.arg("save").arg(model).arg(&memory).arg(&state).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let (before, next) = (lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap());
    assert!(writer.try_wait().unwrap().is_none(), "it was to wait for its end");
    writer.kill().unwrap();
    writer.wait().unwrap();
    let after = run(Command::new(program).arg("load").arg(model).arg(&state));
    assert_eq!(next.split_whitespace().count(), 64);
    assert_ne!(before.trim(), next.trim());
    assert_eq!(after.trim_end_matches('\n'), next);
    // The memory and the state are both needed: this is not the model answering from nothing.
    std::fs::remove_file(&memory).unwrap();
    assert!(!native::output(Command::new(program).arg("load").arg(model).arg(&state)).status.success());
    std::fs::remove_file(&state).unwrap();
}

#[test]
fn a_killed_process_is_continued_by_another() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(libraries().join("libloci.so"), dir.path().join("libloci.so.0")).unwrap();
    let program = dir.path().join("snapshot");
    run(Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-I"])
        .arg(root().join("include"))
        .arg(root().join("tests/c/snapshot.c"))
        .arg("-o")
        .arg(&program)
        .arg(dir.path().join("libloci.so.0"))
        .arg(format!("-Wl,-rpath,{}", dir.path().display())));
    let ordinary = dir.path().join("model.gguf");
    std::fs::write(&ordinary, native::chat_model()).unwrap();
    goes_on(&program, &ordinary, dir.path());
    goes_on(&program, &root().join("models/loci-fot-1m.Q8_0.gguf"), dir.path());
}
