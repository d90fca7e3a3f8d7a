//! The C ABI keeps what `include/loci.h` promises: the header and the libraries agree, and C and C++ programs that use all of it run
//! clean under valgrind, linked either way.
//!
//! The programs are `tests/c/*.c`. They need `cc`, `c++`, `nm`, `readelf` and `valgrind`, which `make test` installs; a missing one is a
//! failure, never a skip.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../ffi/src/types.rs"]
mod types;

use common::native::{self, libraries, output, root, run};
use common::tiny::{self, TinyOptions};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The header without comments.
fn header() -> String {
    let text = std::fs::read_to_string(root().join("include/loci.h")).expect("include/loci.h");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find("/*") {
        out.push_str(&rest[..start]);
        let end = rest[start..].find("*/").expect("comments end");
        rest = &rest[start + end + 2..];
    }
    out + rest
}

/// Names of the functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = header();
    let declarations = header.split(';').filter_map(|s| s.rsplit_once("LOCI_API ").map(|(_, declaration)| declaration));
    let names = declarations.filter_map(|d| d.split_once('(').map(|(head, _)| head));
    names.map(|head| head.rsplit([' ', '*', '\n']).next().unwrap_or("").to_owned()).filter(|name| name.starts_with("loci_")).collect()
}

/// Global defined symbols as `nm` lists them.
fn symbols(args: &[&str], library: &str) -> BTreeSet<String> {
    let listing = run(Command::new("nm").args(args).arg(libraries().join(library)));
    let symbol = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, kind, name] if kind.chars().all(char::is_uppercase) => Some(name.to_owned()),
        _ => None,
    };
    listing.lines().filter_map(symbol).collect()
}

#[test]
fn the_header_and_the_exported_symbols_agree() {
    let declared = declared();
    assert!(declared.len() > 60 && declared.contains("loci_session_generate"), "the header was not understood: {declared:?}");
    assert_eq!(symbols(&["-D", "--defined-only"], "libloci.so"), declared, "libloci.so exports other functions than loci.h declares");
    let mut archive = symbols(&["--defined-only", "--extern-only"], "libloci.a");
    archive.retain(|name| name.starts_with("loci_"));
    assert_eq!(archive, declared, "libloci.a has other functions than loci.h declares");
}

#[test]
fn the_version_is_one() {
    let header = header();
    let define = |name: &str| {
        let line = header.lines().find_map(|l| l.strip_prefix(&format!("#define {name} "))).unwrap_or_else(|| panic!("no {name}"));
        line.trim().trim_matches('"').to_owned()
    };
    assert_eq!(define("LOCI_VERSION"), env!("CARGO_PKG_VERSION"));
    let parts = ["LOCI_VERSION_MAJOR", "LOCI_VERSION_MINOR", "LOCI_VERSION_PATCH"].map(define);
    assert_eq!(parts.join("."), env!("CARGO_PKG_VERSION"));
    let dynamic = run(Command::new("readelf").args(["--dynamic", "--wide"]).arg(libraries().join("libloci.so")));
    let soname = format!("[libloci.so.{}]", parts[0]);
    assert!(dynamic.lines().any(|l| l.contains("(SONAME)") && l.ends_with(&soname)), "{dynamic}");
}

#[test]
fn segments_are_aligned_for_pages_of_16_kib() {
    let segments = run(Command::new("readelf").args(["--segments", "--wide"]).arg(libraries().join("libloci.so")));
    let loads: Vec<&str> = segments.lines().filter(|l| l.trim_start().starts_with("LOAD")).collect();
    assert!(!loads.is_empty(), "{segments}");
    for load in loads {
        let align = load.split_whitespace().last().and_then(|a| u64::from_str_radix(a.trim_start_matches("0x"), 16).ok());
        assert!(align.is_some_and(|a| a >= 0x4000), "{load}");
    }
}

#[test]
fn the_header_compiles_in_every_standard() {
    let said = run(&mut Command::new(root().join("tools/check_header.sh")));
    assert!(said.contains("-std=c99") && said.contains("-std=c++17"), "{said}");
}

/// A C program whose assertions are the offsets and constants of `ffi/src/types.rs`.
#[test]
fn structs_and_constants_agree() {
    let mut source = String::from("#include \"loci.h\"\n");
    let mut claim = |condition: String| source.push_str(&format!("_Static_assert({condition}, \"{condition}\");\n"));
    for &(name, size, fields) in types::STRUCTS.iter().chain(types::PAIRS) {
        claim(format!("sizeof({name}) == {size}"));
        for f in fields {
            claim(format!("offsetof({name}, {}) == {}", f.name, f.offset));
            claim(format!("sizeof((({name} *)0)->{}) == {}", f.name, f.size));
        }
    }
    let constants: Vec<_> = [types::STATUSES, types::FINISHES, types::VALUES].concat();
    for (name, value) in &constants {
        claim(format!("(int){} == {value}", name.to_str().unwrap()));
    }
    let header = header();
    let known: BTreeSet<&str> = constants.iter().map(|(name, _)| name.to_str().unwrap()).collect();
    let macros = header.lines().filter_map(|l| l.strip_prefix("#define LOCI_")).filter_map(|l| l.split_whitespace().next());
    for name in macros.filter(|n| !["H", "API", "NUL_TERMINATED"].contains(n) && !n.starts_with("VERSION")) {
        assert!(known.contains(&*format!("LOCI_{name}")), "the library does not know LOCI_{name}");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("layout.c");
    std::fs::write(&file, source).expect("layout.c");
    run(Command::new("cc").args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"]).arg(root().join("include")).arg(&file));
}

/// How a program is compiled and linked.
#[derive(Clone, Copy, Debug)]
struct Way {
    cpp: bool,
    archive: bool,
}

const WAYS: [Way; 4] = [
    Way { cpp: false, archive: false },
    Way { cpp: false, archive: true },
    Way { cpp: true, archive: false },
    Way { cpp: true, archive: true },
];

/// Compiles a C program into `dir`, every warning an error.
fn compile(source: &str, way: Way, dir: &Path) -> PathBuf {
    let exe = dir.join(format!("{}-{}-{}", Path::new(source).file_stem().unwrap().to_str().unwrap(), way.cpp, way.archive));
    let mut cc = if way.cpp { Command::new("c++") } else { Command::new("cc") };
    cc.args(if way.cpp { ["-x", "c++", "-std=c++17"] } else { ["-x", "c", "-std=c99"] });
    cc.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-O1", "-pthread", "-I"]).arg(root().join("include"));
    cc.arg(root().join(source)).args(["-x", "none", "-o"]).arg(&exe);
    if way.archive {
        cc.arg(libraries().join("libloci.a")).args(["-lgcc_s", "-lutil", "-lrt", "-ldl"]);
    } else {
        // The name under which programs look it up is the SONAME; the build leaves only the plain one.
        let soname = dir.join("libloci.so.0");
        if !soname.exists() {
            std::os::unix::fs::symlink(libraries().join("libloci.so"), &soname).expect("libloci.so.0");
        }
        cc.arg(&soname).arg("-Wl,-rpath").arg(format!("-Wl,{}", dir.display()));
    }
    run(cc.arg("-lm"));
    exe
}

/// Models as files: an ordinary one, the same among other bytes, another one, and a Focused Transformer.
struct Models {
    dir: tempfile::TempDir,
    len: usize,
}

/// Where the model starts in `padded`: as unaligned as a file can be.
const OFFSET: usize = 4099;

impl Models {
    fn new() -> Models {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = native::chat_options;
        let plain = tiny::llama(options());
        let mut padded = vec![0x5a; OFFSET];
        padded.extend_from_slice(&plain);
        padded.extend_from_slice(b"what comes after");
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("a model file");
        write("plain.gguf", &plain);
        write("padded", &padded);
        write("other.gguf", &tiny::llama(TinyOptions { seed: 2, ..options() }));
        let fot = tiny::llama(TinyOptions { memory_layers: vec![1], ..options() });
        write("fot.gguf", &fot);
        let mut padded = vec![0x5a; OFFSET];
        padded.extend_from_slice(&fot);
        write("padded-fot", &padded);
        Models { len: plain.len(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// valgrind in front of a program: errors and definite leaks end it with 99 (memory that statics keep on purpose, and threads of a pool
/// that are still ending, count as possible ones). It does not know AVX-512, so that level is peeled off.
fn valgrind(program: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command
        .args(["--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite", "--show-leak-kinds=definite", "--quiet"])
        .arg(program);
    command.env("LOCI_SIMD", if cfg!(target_arch = "x86_64") { "avx2" } else { "portable" });
    command
}

/// Runs a program that must succeed and say nothing, neither on stdout nor on stderr.
fn run_silent(command: &mut Command) {
    let out = output(command);
    let said = [out.stdout, out.stderr].concat();
    assert!(out.status.success() && said.is_empty(), "{command:?} ended with {}\n{}", out.status, String::from_utf8_lossy(&said));
}

/// A new directory for the files of one run.
fn fresh(models: &Models, name: &str, run: usize) -> PathBuf {
    let dir = models.path(&format!("{name}-{run}"));
    std::fs::create_dir(&dir).expect("a directory");
    dir
}

#[test]
fn the_common_job_runs_clean() {
    let models = Models::new();
    for (i, way) in WAYS.into_iter().enumerate() {
        let exe = compile("tests/c/job.c", way, models.dir.path());
        // The length of the model within the file, or 0 for the rest of it.
        let (model, padded, len) = if way.cpp { ("fot.gguf", "padded-fot", 0) } else { ("plain.gguf", "padded", models.len) };
        let mut command = valgrind(&exe);
        command.arg(models.path(model)).arg(models.path(padded)).args([OFFSET.to_string(), len.to_string()]);
        run_silent(command.arg(fresh(&models, "job", i)));
    }
}

#[test]
fn the_contracts_hold() {
    let models = Models::new();
    for (i, way) in WAYS.into_iter().enumerate() {
        let exe = compile("tests/c/contracts.c", way, models.dir.path());
        let (model, other) = if way.cpp { ("fot.gguf", "plain.gguf") } else { ("plain.gguf", "other.gguf") };
        run_silent(valgrind(&exe).arg(models.path(model)).arg(models.path(other)).arg(fresh(&models, "contracts", i)));
        // The Focused Transformer of the golden vectors.
        let (model, other) = (common::data("fot/fot_a.f16.gguf"), common::data("fot/fot_gqa.f16.gguf"));
        run_silent(Command::new(&exe).arg(model).arg(other).arg(fresh(&models, "golden", i)));
    }
}

/// 64 threads with NULL, wrong sizes, freed and foreign handles, and cancellation. Without valgrind, which runs one thread at a time.
#[test]
fn nothing_crashes_under_the_hammer() {
    let models = Models::new();
    for (way, model, seed) in [(WAYS[0], "plain.gguf", "1"), (WAYS[3], "fot.gguf", "2"), (WAYS[0], "plain.gguf", "3")] {
        let exe = compile("tests/c/hammer.c", way, models.dir.path());
        run(Command::new(exe).arg(models.path(model)).arg(models.dir.path()).args(["64", "1500", seed]));
    }
}

#[test]
fn memories_are_shared_without_a_deadlock() {
    let models = Models::new();
    let exe = compile("tests/c/shared.c", WAYS[0], models.dir.path());
    for model in ["plain.gguf", "fot.gguf"] {
        run_silent(Command::new(&exe).arg(models.path(model)).arg("60"));
    }
}

/// The example that the README shows.
#[test]
fn the_example_answers() {
    let models = Models::new();
    let exe = compile("examples/c/hello.c", WAYS[1], models.dir.path());
    let said = run(Command::new(&exe).arg(models.path("plain.gguf")).arg("Where is the key?"));
    assert!(!said.is_empty());
    let out = output(Command::new(&exe).arg(models.path("missing.gguf")));
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("missing.gguf"), "{out:?}");
}

/// And the one for programs with a loop of their own: to its end, and stopped by the user after five turns.
#[test]
fn the_pulling_example_answers_and_stops() {
    let models = Models::new();
    let exe = compile("examples/c/pull.c", WAYS[0], models.dir.path());
    let whole = run(Command::new(&exe).arg(models.path("plain.gguf")).arg("Where is the key?"));
    let out = output(Command::new(&exe).arg(models.path("plain.gguf")).args(["Where is the key?", "5"]));
    assert!(out.status.success(), "{out:?}");
    let (said, note) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(whole.starts_with(&said) && said.len() < whole.len(), "{said:?} of {whole:?}");
    assert!(note.contains("LOCI_FINISH_CANCELLED after 6 turns"), "{note}");
}

/// So does the one on the header's first screen.
#[test]
fn the_example_of_the_header_answers() {
    let models = Models::new();
    let header = std::fs::read_to_string(root().join("include/loci.h")).expect("include/loci.h");
    let (_, example) = header.split_once(" *   #include <loci.h>").expect("an example");
    let (example, _) = example.split_once(" * CONVENTIONS").expect("conventions after the example");
    let lines: Vec<&str> = example.lines().map(|l| l.trim_start_matches(" *").strip_prefix("   ").unwrap_or("")).collect();
    let source = format!("#include <loci.h>{}\n", lines.join("\n"));
    let file = models.path("first.c");
    std::fs::write(&file, source).expect("first.c");
    let exe = compile(file.to_str().unwrap(), WAYS[2], models.dir.path());
    assert!(!run(Command::new(exe).arg(models.path("plain.gguf"))).is_empty());
}
