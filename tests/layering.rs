//! The house stays a house: imports run downwards only, `unsafe` lives in the rooms that are meant for it and says why it is
//! sound, the library neither prints nor exits.

use std::path::{Path, PathBuf};

/// Modules from the ground up. A module may use those of lower floors; on one floor, only itself.
const FLOORS: &[&[&str]] = &[
    &["error"],
    &["bytes", "threads"],
    &["gguf", "simd"],
    &["quant"],
    &["kernels"],
    &["kv", "memory", "tokenizer", "sampler"],
    &["model"],
    &["session"],
];

const UNSAFE_ROOMS: &[&str] = &["src/bytes/guard.rs", "src/bytes/map.rs", "src/threads.rs", "src/simd/", "ffi/src/"];

fn sources(dir: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut out = Vec::new();
    let mut open = vec![root.join(dir)];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                out.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!out.is_empty(), "no sources in {dir}");
    out.sort();
    out
}

fn module(file: &str) -> Option<&str> {
    let rest = file.strip_prefix("src/")?;
    let name = rest.split('/').next()?;
    Some(name.strip_suffix(".rs").unwrap_or(name)).filter(|n| !["lib", "bin"].contains(n))
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|f| f.contains(&module))
}

/// Code without comments; good enough to look for words in.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, l)| (i + 1, l.split("//").next().unwrap_or("")))
}

#[test]
fn imports_run_downwards() {
    let mut upward = Vec::new();
    for (file, text) in sources("src") {
        let Some(module) = module(&file) else { continue };
        let here = floor(module).unwrap_or_else(|| panic!("{file}: {module} stands on no floor"));
        for (line, code) in code(&text) {
            for used in code.split("crate::").skip(1) {
                let name: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(there) = floor(&name)
                    && (there > here || there == here && name != module)
                {
                    upward.push(format!("{file}:{line}: {module} uses {name}"));
                }
            }
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn unsafe_stays_in_its_rooms_and_says_why() {
    let mut bad = Vec::new();
    for (file, text) in sources("src").into_iter().chain(sources("ffi/src")) {
        let allowed = UNSAFE_ROOMS.iter().any(|r| file.starts_with(r));
        let lines: Vec<&str> = text.lines().collect();
        for (line, code) in code(&text) {
            let is_block = code.contains("unsafe {") || code.contains("unsafe impl");
            if (is_block || code.contains("unsafe fn")) && !allowed {
                bad.push(format!("{file}:{line}: unsafe outside its rooms"));
            }
            let explained = lines[line.saturating_sub(8)..line].iter().any(|l| l.contains("SAFETY:"));
            if is_block && allowed && !explained {
                bad.push(format!("{file}:{line}: unsafe without a SAFETY comment"));
            }
        }
    }
    assert!(bad.is_empty(), "{} places, for example {:#?}", bad.len(), &bad[..bad.len().min(20)]);
}

#[test]
fn the_library_is_silent_and_stays_alive() {
    let words = ["println!", "eprintln!", "print!(", "eprint!(", "dbg!(", "process::exit", "process::abort", "todo!(", "unimplemented!("];
    let mut bad = Vec::new();
    for (file, text) in sources("src").into_iter().chain(sources("ffi/src")) {
        if file.starts_with("src/bin/") {
            continue;
        }
        for (line, code) in code(&text) {
            bad.extend(words.iter().filter(|w| code.contains(**w)).map(|w| format!("{file}:{line}: {w}")));
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}
