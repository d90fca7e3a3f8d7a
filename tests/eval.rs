//! `loci eval`: every length and depth is asked, the same seed asks the same, a kept memory is taken up, the map shows every cell.

mod common;

use common::tiny::{self, TinyOptions};
use serde_json::Value;
use std::process::{Command, Output};

fn loci(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loci")).args(arguments).output().expect("start loci")
}

fn json(arguments: &[&str]) -> Value {
    let out = loci(arguments);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON on stdout")
}

#[test]
fn every_cell_is_asked_and_the_same_seed_asks_the_same() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8 path").to_string();
    let (model, memory, svg) = (path("tiny.gguf"), path("hay.lmem"), path("map.svg"));
    std::fs::write(&model, tiny::llama(TinyOptions { n_ctx: 1024, ..TinyOptions::default() })).expect("write");
    let arguments = [
        "eval",
        "--model",
        &model,
        "--lengths",
        "4096,512",
        "--tasks",
        "passkey,vt,kv",
        "--modes",
        "memory,full,window",
        "--depths",
        "2",
        "--perplexity",
        "64",
        "--memory",
        &memory,
        "--svg",
        &svg,
        "--json",
    ];
    let first = json(&arguments);
    assert_eq!(first["lengths"], serde_json::json!([512, 4096]));
    assert_eq!(first["remembered_tokens"], 4096);
    let cells = first["cells"].as_array().expect("cells");
    // Memory answers at both lengths; all of the text fits the prompt at one; its end always does.
    let of = |mode: &str, length: u64| cells.iter().filter(|c| c["mode"] == mode && c["length"] == length).count();
    assert_eq!((of("memory", 512), of("memory", 4096), of("full", 512), of("full", 4096)), (6, 6, 6, 0));
    assert_eq!((of("window", 512), of("window", 4096)), (6, 6));
    assert!(cells.iter().all(|c| c["score"].as_f64().is_some_and(|s| (0.0..=1.0).contains(&s))));
    let boxes = std::fs::read_to_string(&svg).expect("the map").matches("<title>").count();
    assert_eq!(boxes, cells.len());
    let perplexities = first["perplexity"].as_array().expect("perplexities");
    assert_eq!(perplexities.len(), 5, "memory and window at both lengths, full at one");
    assert!(perplexities.iter().all(|p| p["perplexity"].as_f64().is_some_and(|x| x > 1.0) && p["scored_tokens"] == 64));

    let second = json(&arguments);
    assert_eq!(second["remembered_tokens"], 0, "the memory was kept");
    assert_eq!((&second["cells"], &second["perplexity"]), (&first["cells"], &first["perplexity"]));

    let other = [&arguments[..], &["--seed", "2"]].concat();
    let out = loci(&other);
    assert_eq!(out.status.code(), Some(1), "a made-up haystack of another seed is another text");
    assert!(String::from_utf8_lossy(&out.stderr).contains("another text"));
}
