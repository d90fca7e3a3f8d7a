//! The bindings that are given as examples do what they say, over the library as it is built here.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::native::{self, libraries, root, run};
use std::path::PathBuf;
use std::process::Command;

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join(script)).env("LOCI_LIBRARY", libraries().join("libloci.so")).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn model(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, native::chat_model()).unwrap();
    path
}

#[test]
fn python_does_what_its_file_says() {
    let dir = tempfile::tempdir().unwrap();
    let said = run(python("tests/python/binding.py").arg(model(&dir)).arg(dir.path()));
    assert!(said.is_empty(), "{said}");
    assert!(!run(python("examples/python/hello.py").arg(model(&dir)).arg("Where is the key?")).trim().is_empty());
}
