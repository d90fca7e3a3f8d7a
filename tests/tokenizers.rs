//! Tokenizers agree with the `tokenizers` crate, with a plain evaluation of their definitions, and survive bad vocabularies.

use loci::gguf::Gguf;
use loci::tokenizer::{Tokenizer, TokenizerOptions};
use std::path::{Path, PathBuf};

/// llama.cpp's own vocabulary tests: `ggml-vocab-*.gguf` with their `.inp` and `.out` beside them.
#[test]
#[ignore = "set LOCI_VOCAB_TESTS to a directory with llama.cpp's ggml-vocab-*.gguf, .inp and .out"]
fn vocabulary_tests_of_llama_cpp_pass() {
    let dir = std::env::var_os("LOCI_VOCAB_TESTS").expect("LOCI_VOCAB_TESTS is not set");
    let (mut files, mut cases, mut failed) = (0, 0, 0);
    for entry in std::fs::read_dir(Path::new(&dir)).unwrap() {
        let path = entry.unwrap().path();
        let with = |suffix: &str| PathBuf::from(format!("{}.{suffix}", path.display()));
        if path.extension().is_none_or(|e| e != "gguf") || !with("inp").exists() {
            continue;
        }
        let tokenizer = match Tokenizer::from_gguf(&Gguf::open(&path).unwrap(), &TokenizerOptions::default()) {
            Ok(t) => t,
            Err(e) => {
                println!("{}: {e}", path.display());
                assert!(matches!(e, loci::Error::Unsupported(_)), "{}: {e}", path.display());
                continue;
            }
        };
        let input = String::from_utf8(std::fs::read(with("inp")).unwrap()).unwrap();
        let output = std::fs::read_to_string(with("out")).unwrap();
        let inputs: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
        let outputs: Vec<Vec<u32>> = output.lines().map(|l| l.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
        assert!(inputs.len() == outputs.len() || (inputs.len() == outputs.len() + 1 && inputs.last() == Some(&"")), "{}", path.display());
        for (text, expected) in inputs.iter().zip(&outputs) {
            cases += 1;
            let ids = tokenizer.encode(text, false, false);
            if ids != *expected {
                println!("{}: {text:?}\n  expected {expected:?}\n  found    {ids:?}", path.display());
                failed += 1;
            }
            assert_eq!(String::from_utf8_lossy(&tokenizer.decode(&ids, false)), *text, "{}", path.display());
        }
        files += 1;
    }
    println!("{cases} cases of {files} vocabularies, {failed} failed");
    assert!(files > 0 && failed == 0);
}
