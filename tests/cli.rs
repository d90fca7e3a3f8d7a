//! The command line: verbs work end to end, errors name what is wrong, exit codes are as documented.

mod common;

use common::tiny::{self, TinyOptions};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn loci(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loci")).args(arguments).stdin(Stdio::null()).output().expect("start loci")
}

/// stdout of a run that must succeed.
fn stdout(arguments: &[&str]) -> Vec<u8> {
    let out = loci(arguments);
    assert!(out.status.success(), "loci {arguments:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn text(arguments: &[&str]) -> String {
    String::from_utf8(stdout(arguments)).expect("UTF-8 on stdout")
}

fn json(arguments: &[&str]) -> Value {
    let text = text(arguments);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("loci {arguments:?}: {e}: {text}"))
}

/// A run that must end with `code`, nothing on stdout, and a message that holds each of `words`.
fn fails(code: i32, words: &[&str], arguments: &[&str]) {
    let out = loci(arguments);
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "loci {arguments:?}: {message}");
    assert!(out.stdout.is_empty(), "loci {arguments:?} wrote to stdout");
    assert!(message.starts_with("loci: error: "), "loci {arguments:?}: {message}");
    for word in words {
        assert!(message.contains(word), "loci {arguments:?} does not name {word:?}: {message}");
    }
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().expect("temporary directory"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("UTF-8 path").to_string()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.path().join(name), bytes).expect("write");
        self.path(name)
    }

    fn tiny(&self) -> String {
        self.write("tiny.gguf", tiny::llama(TinyOptions::default()))
    }
}

fn utf8(path: PathBuf) -> String {
    path.to_str().expect("UTF-8 path").to_string()
}

fn dict_model() -> String {
    utf8(common::data("fot_dict/fot_dict.f16.gguf"))
}

#[test]
fn usage_errors_end_with_2() {
    let dir = Dir::new();
    let tiny = dir.tiny();
    fails(2, &["frobnicate"], &["frobnicate"]);
    fails(2, &["--no-such-option"], &["run", "--no-such-option"]);
    fails(2, &["temperature"], &["run", "--model", &tiny, "--temp", "-1", "hello"]);
    fails(2, &["top_p"], &["run", "--model", &tiny, "--top-p", "1.5", "hello"]);
    for how in ["slide=", "slide=0", "slide=x", "dump=", "drop"] {
        fails(2, &["--overflow", how], &["run", "--model", &tiny, "--overflow", how, "hello"]);
    }
    fails(2, &["--kv", "f32"], &["run", "--model", &tiny, "--kv", "q9", "hello"]);
    fails(2, &["prompt"], &["run", "--model", &tiny]);
    fails(2, &["99999999"], &["logits", "--model", &tiny, "--ids", "99999999", "--out", "-"]);
    fails(2, &["Q4_K"], &["dequantize", "--type", "Q4_L", "--in", "-", "--out", "-"]);
    fails(2, &["--text", "--file"], &["tokenize", "--model", &tiny]);
}

#[test]
fn failures_end_with_1_and_name_the_file() {
    let dir = Dir::new();
    let missing = dir.path("missing.gguf");
    let garbage = dir.write("garbage.gguf", "this is no model");
    for verb in ["run", "chat", "tokenize", "logits", "perplexity", "bench"] {
        let rest: &[&str] = match verb {
            "run" => &["hello"],
            "tokenize" => &["--text", "hello"],
            "logits" => &["--ids", "1", "--out", "-"],
            "perplexity" => &["--ids", "1,2,3"],
            _ => &[],
        };
        fails(1, &["missing.gguf"], &[&[verb, "--model", &missing], rest].concat());
        fails(1, &["GGUF"], &[&[verb, "--model", &garbage], rest].concat());
    }
    fails(1, &["missing.gguf"], &["inspect", &missing]);
    fails(1, &["offset 0", "GGUF"], &["inspect", &garbage]);
    fails(1, &["missing.lmem"], &["memory", "info", &dir.path("missing.lmem")]);
    fails(1, &["memory"], &["memory", "verify", &garbage]);
}

#[test]
fn help_and_version_go_to_stdout() {
    assert_eq!(text(&["--version"]), format!("loci {}\n", env!("CARGO_PKG_VERSION")));
    let help = text(&["--help"]);
    for verb in ["run", "chat", "remember", "recall", "memory", "inspect", "tokenize", "perplexity", "bench", "130"] {
        assert!(help.contains(verb), "--help does not name {verb}");
    }
}

#[test]
#[cfg(unix)]
fn a_closed_pipe_ends_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_loci"))
        .args(["inspect", "--tensors", "--full", &utf8(common::smollm2())])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start loci");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("wait");
    assert_eq!(out.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}

#[test]
fn inspect_lists_what_the_file_holds() {
    let dir = Dir::new();
    let options = TinyOptions::default();
    let (n_layer, n_embd, n_vocab) = (options.n_layer, options.n_embd, options.n_vocab);
    let seen = json(&["inspect", "--json", "--tensors", &dir.tiny()]);
    assert_eq!(seen["version"], 3);
    assert_eq!(seen["metadata"]["general.architecture"]["value"], "llama");
    assert_eq!(seen["metadata"]["llama.block_count"]["value"], n_layer);
    let tensors = seen["tensors"].as_array().expect("tensors");
    assert_eq!(seen["tensor_count"], tensors.len());
    let embedding = tensors.iter().find(|t| t["name"] == "token_embd.weight").expect("token_embd.weight");
    assert_eq!(embedding["dims"], serde_json::json!([n_embd, n_vocab]));

    // The list is there without being asked for; long arrays are cut unless asked for.
    for options in [&["inspect", "--json"][..], &["inspect", "--json", "--no-tensors"]] {
        assert_eq!(json(&[options, &[&dir.tiny()]].concat())["tensors"], seen["tensors"]);
    }
    let tokens = |seen: &Value| seen["metadata"]["tokenizer.ggml.tokens"]["value"].clone();
    assert_eq!(tokens(&seen)["len"], n_vocab);
    assert_eq!(tokens(&json(&["inspect", "--json", "--full", &dir.tiny()])).as_array().map(Vec::len), Some(n_vocab));
    let lines = text(&["inspect", &dir.tiny()]);
    assert!(lines.contains("general.architecture (string) = \"llama\""), "{lines}");
    for t in tensors {
        let name = t["name"].as_str().expect("name");
        assert!(lines.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} is not listed: {lines}");
    }
    let short = text(&["inspect", "--no-tensors", &dir.tiny()]);
    assert!(lines.starts_with(&short) && !short.contains("token_embd.weight"), "{short}");
}

#[test]
fn tokens_survive_the_way_there_and_back() {
    let model = utf8(common::smollm2());
    let dir = Dir::new();
    let ids = json(&["tokenize", "--model", &model, "--text", "Hello, world!"]);
    let file = dir.write("ids.json", ids.to_string());
    assert_eq!(text(&["tokenize", "--model", &model, "--detokenize", &file]), "Hello, world!");
    let both = dir.write("texts.json", r#"["Hello, world!", {"text": "  zwei\n"}]"#);
    let all = json(&["tokenize", "--model", &model, "--json", &both]);
    assert_eq!(all[0], ids);
    let back = dir.write("all.json", all.to_string());
    assert_eq!(json(&["tokenize", "--model", &model, "--detokenize", &back]), serde_json::json!(["Hello, world!", "  zwei\n"]));
    let control = |special: &[&str]| json(&[&["tokenize", "--model", &model, "--text", "<|im_end|>"], special].concat());
    assert_eq!(control(&["--special"]).as_array().map(Vec::len), Some(1));
    assert!(control(&[]).as_array().is_some_and(|ids| ids.len() > 1));
    let bad = dir.write("bad.json", r#"[1, "two"]"#);
    fails(1, &["bad.json", "two"], &["tokenize", "--model", &model, "--detokenize", &bad]);
}

#[test]
fn templates_render_from_json() {
    let dir = Dir::new();
    let template = dir.write("t.jinja", "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }};{% endfor %}{{ extra }}");
    let vars = dir.write("v.json", r#"{"messages": [{"role": "user", "content": "hi"}], "bos_token": "<s>", "extra": "!"}"#);
    assert_eq!(text(&["render", "--template", &template, "--vars", &vars]), "<s>[user] hi;!");
    let broken = dir.write("broken.jinja", "{% for %}");
    fails(1, &[], &["render", "--template", &broken, "--vars", &vars]);
    let no_json = dir.write("v.txt", "{");
    fails(1, &["v.txt", "JSON"], &["render", "--template", &template, "--vars", &no_json]);
}

#[test]
fn dequantize_decodes_blocks() {
    let dir = Dir::new();
    // Q8_0: a half-precision scale, then 32 signed bytes.
    let mut block = half::f16::from_f32(0.5).to_le_bytes().to_vec();
    block.extend((0..32).map(|i| (i - 16) as i8 as u8));
    let blocks = dir.write("blocks", &block);
    let bytes = stdout(&["dequantize", "--type", "q8_0", "--in", &blocks, "--out", "-"]);
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(values, (0..32).map(|i| (i - 16) as f32 * 0.5).collect::<Vec<_>>());
    fails(
        1,
        &["34 bytes", "33"],
        &["dequantize", "--type", "Q8_0", "--in", &dir.write("short", &block[..33]), "--count", "32", "--out", "-"],
    );
    fails(2, &["--count", "32"], &["dequantize", "--type", "Q8_0", "--in", &blocks, "--count", "31", "--out", "-"]);
}

#[test]
fn logits_of_every_position_and_what_they_say_agree_with_run_and_perplexity() {
    let dir = Dir::new();
    let tiny = dir.tiny();
    let n_vocab = TinyOptions::default().n_vocab;
    let ids = tiny::ids(16, n_vocab, 5);
    let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let out = dir.path("logits.f32");
    stdout(&["logits", "--model", &tiny, "--ids", &list, "--kv", "f32", "--out", &out]);
    let bytes = std::fs::read(&out).expect("logits");
    let logits: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(logits.len(), ids.len() * n_vocab);
    assert_eq!(stdout(&["logits", "--model", &tiny, "--ids", &list, "--kv", "f32", "--out", "-"]), bytes);

    let row = |at: usize| &logits[at * n_vocab..(at + 1) * n_vocab];
    let run = json(&["run", "--model", &tiny, "--ids", &list, "--kv", "f32", "--temp", "0", "-n", "1", "--ignore-eos", "--json"]);
    assert_eq!(run["ids"], serde_json::json!([common::argmax(row(15))]));
    assert_eq!(run["finish"], "length");

    // Two chunks of 8; BOS takes the first place of the second one, so only the first can be recomputed from these logits.
    let seen = json(&["perplexity", "--model", &tiny, "--ids", &list, "--ctx", "8", "--chunks", "1", "--kv", "f32", "--json"]);
    let nll: f64 = (4..7).map(|at| common::log_sum_exp(row(at)) - row(at)[ids[at + 1] as usize] as f64).sum::<f64>() / 3.0;
    let ppl = seen["perplexity"].as_f64().expect("perplexity");
    assert!((ppl / nll.exp() - 1.0).abs() < 1e-4, "perplexity {ppl}, from the logits {}", nll.exp());
    assert_eq!(seen["scored_tokens"], 3);
    let lines = text(&["perplexity", "--model", &tiny, "--ids", &list, "--ctx", "8", "--kv", "f32"]);
    assert!(lines.lines().last().is_some_and(|line| line.starts_with("PPL = ") && line.contains(" +/- ")), "{lines}");
    fails(2, &["16 tokens", "--ctx 17"], &["perplexity", "--model", &tiny, "--ids", &list, "--ctx", "17"]);
}

#[test]
fn run_completes_and_says_why_it_ended() {
    let model = utf8(common::smollm2());
    let answer = json(&["run", "--model", &model, "--temp", "0", "-n", "4", "--json", "--logprobs", "2", "The capital of France is"]);
    assert!(answer["text"].as_str().is_some_and(|text| text.starts_with(" Paris")), "{answer}");
    assert_eq!(answer["finish"], "length");
    let first = &answer["logprobs"][0];
    assert_eq!(first["id"], first["best"][0]["id"], "greedy takes the best");
    assert_eq!(first["best"].as_array().map(Vec::len), Some(2));
    let stopped = json(&["run", "--model", &model, "--temp", "0", "--json", "--stop", "4", "Count: 1, 2,"]);
    assert_eq!(stopped["finish"], "stop");
    assert!(!stopped["text"].as_str().expect("text").contains('4'));
    let plain = text(&["run", "--model", &model, "--temp", "0", "-n", "5", "Count: 1, 2,"]);
    assert!(plain.starts_with(" 3"), "{plain:?}");
    // Sliding by its default goes on where a window that may not overflow ends with an error.
    let long = "one two three four ".repeat(40);
    let small = ["run", "--model", &model, "--temp", "0", "-n", "2", "--ctx", "128", &long];
    fails(1, &["128"], &small);
    assert!(!text(&[&small[..], &["--overflow", "slide"]].concat()).is_empty());
    let seeded = |seed: &str| text(&["run", "--model", &model, "--seed", seed, "-n", "12", "Once upon a time"]);
    assert_eq!(seeded("1"), seeded("1"));
}

#[test]
fn chat_reads_turns_from_a_pipe() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_loci"))
        .args(["chat", "--model", &utf8(common::smollm2()), "--temp", "0", "-n", "24"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start loci");
    let turns = b"My name is Ada.\nWhat is my name?\n/stats\n/quit\nnever read\n";
    child.stdin.take().expect("stdin").write_all(turns).expect("write");
    let out = child.wait_with_output().expect("wait");
    assert!(out.status.success());
    let (answers, notes) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(answers.lines().count() >= 2, "two questions, but: {answers}");
    let reused = notes.split(" reused").next().and_then(|s| s.rsplit(' ').next()).and_then(|n| n.parse::<u64>().ok());
    assert!(reused.is_some_and(|n| n > 0), "the second turn computed the first one again: {notes}");
}

/// The model is trained to look words up; what the reference implementation answered is in the data.
#[test]
fn what_one_process_remembers_another_one_recalls() {
    let dir = Dir::new();
    let (model, memory) = (dict_model(), dir.path("dict.lmem"));
    let source = utf8(common::data("fot_dict/dict_8192.txt"));
    let expected: Value = serde_json::from_slice(&std::fs::read(common::data("fot_dict/dict_expected.json")).expect("read")).expect("JSON");
    let queries = expected
        .as_array()
        .and_then(|all| all.iter().find(|one| one["prompt"] == "dict_8192.txt"))
        .and_then(|one| one["queries"].as_array())
        .expect("queries");

    let stored = json(&["remember", &source, "--memory", &memory, "--model", &model, "--json"]);
    let tokens = stored["tokens"].as_u64().expect("tokens");
    assert!(tokens >= 8192, "{stored}");
    let info = json(&["memory", "info", &memory, "--json"]);
    assert_eq!(info["tokens"], tokens);
    json(&["memory", "verify", &memory, "--json"]);

    for query in queries.iter().take(5) {
        let question = query["q"].as_str().expect("q");
        let seen = json(&["recall", "--raw", question, "--memory", &memory, "--model", &model, "--temp", "0", "-n", "4", "--json"]);
        assert_eq!(seen["answer"], query["reference_answer"], "{question}");
        assert_eq!(seen["stats"]["memory_tokens"], tokens);
    }

    // The model reads all of its memory, so there are no passages to name.
    let question = queries[0]["q"].as_str().expect("q");
    let options = ["recall", "--raw", question, "--memory", &memory, "--model", &model, "--temp", "0", "-n", "4"];
    let lines = text(&options);
    assert!(lines.contains(&format!("all {tokens} tokens of {memory} were read\n  {source}, tokens 0..{tokens}\n")), "{lines}");
    let whole = &json(&[&options[..], &["--json"]].concat())["read_whole"];
    assert_eq!(whole[0]["tokens"], tokens);
    assert_eq!(whole[0]["sources"][0]["label"], source);

    // A second text is appended; the first stays.
    let more = dir.write("more.txt", "zzzz=1234;");
    let stored = json(&["remember", &more, "--memory", &memory, "--model", &model, "--json"]);
    assert_eq!(stored["tokens_before"], tokens);
    let question = queries[0]["q"].as_str().expect("q");
    assert!(
        text(&["recall", "--raw", question, "--memory", &memory, "--model", &model, "--temp", "0", "-n", "4"])
            .contains(queries[0]["reference_answer"].as_str().expect("answer"))
    );

    // Another model's memory is refused, a damaged one is noticed.
    let tiny = dir.tiny();
    fails(1, &["mismatch"], &["recall", "--raw", "x", "--memory", &memory, "--model", &tiny]);
    damage(Path::new(&memory));
    fails(1, &["dict.lmem"], &["memory", "verify", &memory]);
}

/// A question longer than the window leaves it in part, and its first part is read back like any other memory.
#[test]
fn recall_names_what_left_its_own_window() {
    let dir = Dir::new();
    let (model, memory) = (utf8(common::smollm2()), dir.path("note.lmem"));
    let note = dir.write("note.txt", "The blue safe opens with 6944. Nobody else knows.\n");
    stdout(&["remember", &note, "--memory", &memory, "--model", &model]);
    let counts: String = (0..30).map(|day| format!("On day {day} the keeper counted {} ships. ", day * 7 % 31)).collect();
    let question = format!("{counts}How many ships came on day 5?");
    let options =
        ["recall", "--raw", &question, "--memory", &memory, "--model", &model, "--temp", "0", "-n", "2", "--ctx", "256", "--passages", "9"];
    let seen = json(&[&options[..], &["--json"]].concat());
    let passages = seen["passages"].as_array().expect("passages");
    let own: Vec<&Value> = passages.iter().filter(|p| p["memory"] == "this conversation").collect();
    assert!(!own.is_empty(), "nothing that left the window was read: {seen}");
    for p in own {
        let text = p["text"].as_str().expect("text");
        assert!(!text.is_empty() && counts.contains(text), "{text:?} is not from the question");
    }
    assert!(passages.iter().all(|p| p["memory"] == "this conversation" || p["memory"] == memory), "{seen}");
    assert!(text(&options).contains("\n  this conversation, tokens "), "{seen}");
}

/// Flips a bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("read");
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).expect("write");
}

#[test]
fn bench_reports_in_every_format() {
    let dir = Dir::new();
    let tiny = dir.tiny();
    let arguments = ["bench", "--model", &tiny, "--pp", "8", "--tg", "4", "--depth", "0,40", "-r", "3", "--format"];
    let seen = json(&[&arguments[..], &["json"]].concat());
    let rows = seen["tests"].as_array().expect("tests");
    let tests: Vec<&str> = rows.iter().filter_map(|t| t["test"].as_str()).collect();
    assert_eq!(tests, ["pp8", "tg4", "pp8@d40", "tg4@d40"]);
    let limits: Vec<f64> =
        ["read_bytes_per_second", "dot_operations_per_second"].iter().filter_map(|k| seen["limits"][k].as_f64()).collect();
    assert!(limits.len() == 2 && limits.iter().all(|v| *v > 0.0), "{limits:?}");
    for row in rows {
        assert_eq!(row["all"].as_array().map(Vec::len), Some(3));
        let [least, median, most] = ["min", "median", "max"].map(|k| row[k].as_f64().expect("a number"));
        assert!(0.0 < least && least <= median && median <= most);
    }
    // What a decoded token reads: every weight once but the embeddings, and its keys and values.
    let needed =
        |row: &Value, limit: f64| row["share_of_limit"].as_f64().expect("a share") * limit / row["median"].as_f64().expect("a number");
    let o = TinyOptions::default();
    let weights = seen["weight_bytes"].as_f64().expect("bytes") - (o.n_vocab * o.n_embd * 4) as f64;
    let token = (o.n_layer * o.n_head_kv * o.head_dim * 2 * 2) as f64;
    for (row, context) in [(&rows[1], 2.0), (&rows[3], 42.0)] {
        assert!((needed(row, limits[0]) / (weights + context * token) - 1.0).abs() < 1e-9, "{row}");
    }
    // Float weights are not multiplied as integers; of others, each in the layers twice a token, and the head's once.
    assert!(rows[0]["share_of_limit"].is_null());
    let q8 = dir.write("q8.gguf", tiny::llama(TinyOptions::of_type(loci::gguf::TensorType::Q8_0)));
    let seen = json(&["bench", "--model", &q8, "--pp", "8", "--tg", "0", "-r", "1", "--format", "json"]);
    let rate = seen["limits"]["dot_operations_per_second"].as_f64().expect("a number");
    let heads = o.head_dim * (2 * o.n_head + 2 * o.n_head_kv);
    let operations = 2 * (8 * o.n_layer * o.n_embd * (heads + 3 * o.n_ff) + o.n_vocab * o.n_embd);
    assert!((8.0 * needed(&seen["tests"][0], rate) / operations as f64 - 1.0).abs() < 1e-9, "{seen}");
    let csv = text(&[&arguments[..], &["csv"]].concat());
    assert_eq!(csv.lines().count(), 5);
    assert!(csv.lines().all(|line| line.split(',').count() == 11), "{csv}");
    assert!(text(&[&arguments[..], &["table"]].concat()).contains("| tg4@d40"));
    fails(2, &["--repetitions"], &["bench", "--model", &tiny, "-r", "0"]);
}

#[test]
fn quantize_converts_matrices_and_keeps_the_rest() {
    let dir = Dir::new();
    let (from, to) = (dir.tiny(), dir.path("q8.gguf"));
    stdout(&["quantize", &from, &to, "Q8_0"]);
    let (before, after) = (json(&["inspect", "--json", "--tensors", &from]), json(&["inspect", "--json", "--tensors", &to]));
    assert_eq!(before["metadata"]["tokenizer.ggml.tokens"], after["metadata"]["tokenizer.ggml.tokens"]);
    let of = |seen: &Value, name: &str| -> Value {
        let tensors = seen["tensors"].as_array().expect("tensors");
        tensors.iter().find(|t| t["name"] == name).expect("tensor")["type"].clone()
    };
    assert_eq!(of(&after, "blk.0.attn_q.weight"), "Q8_0");
    assert_eq!(of(&after, "blk.0.attn_norm.weight"), of(&before, "blk.0.attn_norm.weight"));
    fails(1, &["q8.gguf", "--force"], &["quantize", &from, &to, "Q8_0"]);
    stdout(&["run", "--model", &to, "--temp", "0", "-n", "2", "hello"]);
}
