//! A process that the system stops between two tokens, as phones do with apps in the background, goes on where it was: no timer has run out,
//! no lock was lost, and the answer is the one that it would have been.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use common::tiny::{self, TinyOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn loci(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loci"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap().success());
}

/// The letter of the process's state: T is stopped.
fn state(child: &Child) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().chars().take(1).collect()
}

fn stopped(child: &Child) {
    signal(child, "STOP");
    while state(child) != "T" {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(300));
    signal(child, "CONT");
}

fn model(dir: &Path) -> String {
    let path = dir.join("model.gguf");
    let options = TinyOptions { n_ctx: 4096, n_layer: 6, n_embd: 256, n_ff: 512, ..TinyOptions::default() };
    std::fs::write(&path, tiny::llama(options)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_answer_goes_on_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let arguments = ["run", "the key is", "-m", &model, "-n", "1500", "--ignore-eos", "--temp", "0", "-t", "2"];
    let whole = loci(&arguments).wait_with_output().unwrap();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));

    let mut child = loci(&arguments);
    let mut out = child.stdout.take().unwrap();
    let (mut said, mut piece, mut stops) = (Vec::new(), [0; 64], 0);
    loop {
        let n = out.read(&mut piece).unwrap();
        if n == 0 {
            break;
        }
        said.extend_from_slice(&piece[..n]);
        // In the middle of the answer, three times.
        if stops < 3 && said.len() > whole.stdout.len() * (stops + 1) / 5 {
            stops += 1;
            if child.try_wait().unwrap().is_none() {
                stopped(&child);
            }
        }
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(stops, 3);
    assert!(said == whole.stdout, "another answer than without the stops");
}

#[test]
fn a_writer_that_was_stopped_still_holds_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let (text, file) = (dir.path().join("text.txt"), dir.path().join("notes.lmem"));
    std::fs::write(&text, "the key is under the stone. ".repeat(2000)).unwrap();
    let (text, file) = (text.to_str().unwrap(), file.to_str().unwrap());
    let mut child = loci(&["remember", text, "--memory", file, "-m", &model, "-t", "1"]);
    while !Path::new(file).exists() {
        std::thread::sleep(Duration::from_millis(1));
        assert!(child.try_wait().unwrap().is_none(), "it was over before it was stopped");
    }
    signal(&child, "STOP");
    let other = loci(&["remember", text, "--memory", file, "-m", &model]).wait_with_output().unwrap();
    let refused = !other.status.success();
    signal(&child, "CONT");
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).lines().for_each(|l| said += &l.unwrap());
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(refused, "a second writer was let in while the first was stopped");
    let verify = loci(&["memory", "verify", file]).wait_with_output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
}
