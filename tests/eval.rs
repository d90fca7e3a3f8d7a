//! `loci eval`: every length and depth is asked, the same seed asks the same, a kept memory is taken up, the map shows every cell.

mod common;

use common::tiny::{self, TinyOptions};
use loci::memory::Memory;
use loci::model::Model;
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
    std::fs::write(&model, tiny::llama(TinyOptions { n_ctx: 5120, ..TinyOptions::default() })).expect("write");
    let arguments = [
        "eval",
        "--model",
        &model,
        "--lengths",
        "8192,4096",
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
    assert_eq!(first["lengths"], serde_json::json!([4096, 8192]));
    assert_eq!(first["remembered_tokens"], 8192);
    let cells = first["cells"].as_array().expect("cells");
    // Memory answers at both lengths; all of the text fits the prompt at one; its end always does.
    let of = |mode: &str, length: u64| cells.iter().filter(|c| c["mode"] == mode && c["length"] == length).count();
    assert_eq!((of("memory", 4096), of("memory", 8192), of("full", 4096), of("full", 8192)), (6, 6, 6, 0));
    assert_eq!((of("window", 4096), of("window", 8192)), (6, 6));
    assert!(cells.iter().all(|c| c["score"].as_f64().is_some_and(|s| (0.0..=1.0).contains(&s))));
    let boxes = std::fs::read_to_string(&svg).expect("the map").matches("<title>").count();
    assert_eq!(boxes, cells.len());
    let perplexities = first["perplexity"].as_array().expect("perplexities");
    assert_eq!(perplexities.len(), 5, "memory and window at both lengths, full at one");
    assert!(perplexities.iter().all(|p| p["perplexity"].as_f64().is_some_and(|x| x > 1.0) && p["scored_tokens"] == 64));

    // What is asked for stands in the text where the report says, within its length, and apart from everything else.
    let text = Memory::open_read_only(memory.as_ref(), None).expect("the memory");
    let tokenizer = Model::open(model.as_ref(), &Default::default()).expect("the model");
    let mut ends = Vec::new();
    for q in first["questions"].as_array().expect("questions").iter().filter(|q| q["mode"] == "memory") {
        let mut said = String::new();
        for range in q["hidden"].as_array().expect("ranges") {
            let (from, to) = (range[0].as_u64().expect("from"), range[1].as_u64().expect("to"));
            assert!(to <= q["length"].as_u64().expect("length"));
            said += &String::from_utf8_lossy(&tokenizer.tokenizer().decode(&text.tokens(from..to).expect("tokens"), false));
            ends.push((from, to));
        }
        for expected in q["expected"].as_array().expect("expected") {
            assert!(said.contains(expected.as_str().expect("a string")), "{expected} in {said:?}");
        }
    }
    ends.sort_unstable();
    assert_eq!(ends.len(), 2 * (2 * 2 + 2 * 3), "pass keys and pairs are in one part, chains in three");
    assert!(ends.windows(2).all(|w| w[0].1 + 64 <= w[1].0), "{ends:?}");

    let second = json(&arguments);
    assert_eq!(second["remembered_tokens"], 0, "the memory was kept");
    assert_eq!((&second["cells"], &second["perplexity"]), (&first["cells"], &first["perplexity"]));

    // An interrupted reading goes on; what is there can be asked about meanwhile.
    let (part, begun) = (path("part.lmem"), &[&arguments[..4], &["8192,4096", "--tasks", "passkey,vt,kv", "--depths", "2"]].concat());
    let begun = [&begun[..], &["--memory", &part, "--modes", "memory"]].concat();
    assert!(loci(&[&begun[..], &["--remember", "--only", "4096"]].concat()).status.success());
    let writer = Memory::open(part.as_ref(), None).expect("the memory");
    assert_eq!(writer.len(), 4096);
    let early = json(&[&begun[..], &["--only", "4096", "--only-tasks", "kv", "--json"]].concat());
    assert_eq!((early["remembered_tokens"].as_u64(), early["questions"].as_array().map(Vec::len)), (Some(0), Some(2)));
    drop(writer);
    assert_eq!(json(&[&begun[..], &["--only", "8192", "--json"]].concat())["remembered_tokens"], 4096);

    let other = [&arguments[..], &["--seed", "2"]].concat();
    let out = loci(&other);
    assert_eq!(out.status.code(), Some(1), "a made-up haystack of another seed is another text");
    assert!(String::from_utf8_lossy(&out.stderr).contains("another text"));
}
