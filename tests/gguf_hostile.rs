//! Malformed GGUF files, some thousands of them: each must be refused with an error that says where, or be read; none may
//! panic, hang, or make the library allocate out of proportion.
//!
//! Every file is a good tiny model with one thing wrong. A case says who has to notice: the container (`Gguf::parse`), or
//! whoever loads the model. `DOORS` lists the ways in; each case is carried to every door.

mod common;

use common::raw::{self, Raw, Tensor};
use common::tiny::{self, Rng, TinyOptions};
use loci::bytes::Map;
use loci::error::{Error, Result};
use loci::gguf::{Array, Gguf, Value};
use loci::model::ModelOptions;
use loci::session::{Session, SessionOptions};
use loci::tokenizer::{Tokenizer, TokenizerOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// How much of a file a door looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    Container,
    Vocabulary,
    Model,
}

/// A way into the library: what takes the bytes of a file, and how deep it looks.
struct Door {
    name: &'static str,
    depth: Depth,
    open: fn(Vec<u8>) -> Result<()>,
}

/// `Model::open_bytes` belongs here, with `Depth::Model`.
const DOORS: &[Door] = &[
    Door { name: "Gguf::parse", depth: Depth::Container, open: parse_and_visit },
    Door { name: "Tokenizer::from_gguf", depth: Depth::Vocabulary, open: tokenize },
    Door { name: "Model::open_bytes", depth: Depth::Model, open: open_and_run },
];

/// Opens the model and computes a few tokens: what was let in must not fail later.
fn open_and_run(bytes: Vec<u8>) -> Result<()> {
    let model = loci::model::Model::open_bytes(bytes, &ModelOptions::default())?;
    let mut session = Session::new(model, SessionOptions { threads: 1, context_length: 16, ..SessionOptions::default() })?;
    session.prefill(&[1, 2, 3], &mut |_, _| ControlFlow::Continue(()))
}

/// Reads the container and everything in it.
fn parse_and_visit(bytes: Vec<u8>) -> Result<()> {
    let gguf = Gguf::parse(Arc::new(Map::owned(bytes)))?;
    visit(&gguf);
    Ok(())
}

/// Reads the vocabulary and works with it: what was let in must be fit for use.
fn tokenize(bytes: Vec<u8>) -> Result<()> {
    let gguf = Gguf::parse(Arc::new(Map::owned(bytes)))?;
    let tokenizer = Tokenizer::from_gguf(&gguf, &TokenizerOptions::default())?;
    let long = "the rest of the these teeth ".repeat(40);
    for text in ["", " ", "the", "  the\n\0 \u{2581}\u{1F600}</s><s>[MASK]", &long] {
        for special in [false, true] {
            let ids = tokenizer.encode(text, special, special);
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_len()), "an id beyond the vocabulary");
            tokenizer.decode(&ids, special);
        }
    }
    tokenizer.encode_bytes(b"\xff\xfe\xe2\x96", true, true);
    for id in (0..tokenizer.vocab_len().min(1000) as u32).chain([u32::MAX]) {
        tokenizer.token_bytes(id);
        tokenizer.token_kind(id);
    }
    Ok(())
}

fn visit(gguf: &Gguf) {
    fn walk(array: &Array) -> usize {
        let nested: usize = array.values().filter_map(|v| v.as_array().map(walk)).sum();
        assert_eq!(array.values().count(), array.len, "an array ends early");
        nested + array.strings().map(<[u8]>::len).sum::<usize>() + array.numbers().count()
    }
    for (key, value) in gguf.metadata() {
        assert!(format!("{value:?}").len() < 2000);
        assert!(gguf.value(key).is_some());
        if let Value::Array(array) = value {
            walk(array);
        }
    }
    for t in gguf.tensors() {
        assert_eq!(gguf.bytes(t).len(), t.ty.row_bytes(t.cols()).expect("whole blocks") * t.rows(), "{}", t.name);
    }
}

// --- What a case costs ---------------------------------------------------------------------------------------------------

/// The system's allocator with a count of live bytes and their peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator, whose contract is the one asked for; counting touches
// atomics only and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promise about `layout` is handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `p` came from `System.alloc` with this layout, for `alloc` hands out nothing else.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Live bytes beyond those of the file itself: a fixed amount (a loader's tables), and a multiple of the file.
const PEAK_BYTES_MAX: usize = 64 << 20;
const PEAK_FILE_MULTIPLE: usize = 40;
/// No file here takes a hundredth of it.
const HANG: Duration = Duration::from_secs(60);

// --- Cases ---------------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    /// The container is broken: every door refuses.
    Container,
    /// The container is sound and the vocabulary is not: `Gguf::parse` reads it, the tokenizer and whoever loads models refuse.
    Vocabulary,
    /// The container is sound and the model is not: `Gguf::parse` reads it, whoever loads models refuses.
    Model,
    /// Refused or read, as long as nothing worse happens.
    Any,
    /// Sound, and everybody must read it.
    Good,
}
use Expect::{Any, Container, Good, Model, Vocabulary};

struct Case {
    name: String,
    expect: Expect,
    bytes: Vec<u8>,
}

fn case(name: impl Into<String>, expect: Expect, bytes: Vec<u8>) -> Case {
    Case { name: name.into(), expect, bytes }
}

/// One at a time: peaks are counted for the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// Carries every case to every door, and returns how many there were.
fn run(cases: impl Iterator<Item = Case>) -> usize {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    // A watchdog that is told the name of each case and is not told the next one has a hang to report.
    let (begin, watch) = mpsc::channel::<String>();
    let dog = std::thread::spawn(move || {
        let mut current = String::from("the first case");
        loop {
            match watch.recv_timeout(HANG) {
                Ok(name) => current = name,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    eprintln!("hangs: {current}");
                    std::process::abort();
                }
            }
        }
    });
    let mut failures = Vec::new();
    let mut count = 0;
    for case in cases {
        count += 1;
        for door in DOORS {
            begin.send(format!("{} at {}", case.name, door.name)).expect("the watchdog lives");
            if let Err(what) = try_case(&case, door) {
                failures.push(format!("{} at {}: {what}", case.name, door.name));
            }
        }
    }
    drop(begin);
    dog.join().expect("the watchdog ends");
    assert!(failures.is_empty(), "{} of {count} cases:\n{}", failures.len(), failures.join("\n"));
    count
}

fn try_case(case: &Case, door: &Door) -> std::result::Result<(), String> {
    let bytes = case.bytes.clone();
    let len = bytes.len();
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| (door.open)(bytes))).map_err(|_| "panics".to_string())?;
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    if peak > PEAK_BYTES_MAX + PEAK_FILE_MULTIPLE * len {
        return Err(format!("allocates {peak} bytes for a file of {len}"));
    }
    let wrong_at = match case.expect {
        Container => Some(Depth::Container),
        Vocabulary => Some(Depth::Vocabulary),
        Model => Some(Depth::Model),
        Any | Good => None,
    };
    match (wrong_at, &result) {
        (Some(depth), Ok(())) if door.depth >= depth => return Err("is let in".into()),
        (Some(depth), Err(e)) if door.depth == Depth::Container && depth > door.depth => return Err(format!("is refused: {e}")),
        (None, Err(e)) if case.expect == Good => return Err(format!("is refused: {e}")),
        _ => {}
    }
    match result {
        Err(e) => is_clear(&e),
        Ok(()) => Ok(()),
    }
}

/// An error says what and where, on one line of decent length.
fn is_clear(e: &Error) -> std::result::Result<(), String> {
    let text = e.to_string();
    let speaks = match e {
        Error::Format { field, expected, found, .. } | Error::Model { field, expected, found } => {
            !field.is_empty() && !expected.is_empty() && !found.is_empty() && expected != found
        }
        Error::Unsupported(what) => !what.is_empty(),
        Error::Limit { what, .. } | Error::Mismatch { what, .. } => !what.is_empty(),
        other => return Err(format!("fails with an error of another kind: {other}")),
    };
    if !speaks || text.len() > 1000 || text.chars().any(char::is_control) {
        return Err(format!("has an unclear error ({} bytes): {:.300}", text.len(), text));
    }
    Ok(())
}

fn options() -> TinyOptions {
    TinyOptions { n_embd: 32, n_head: 2, n_head_kv: 1, head_dim: 16, n_ff: 48, n_layer: 2, memory_layers: vec![1], ..Default::default() }
}

fn llama() -> Raw {
    Raw::of(&tiny::llama(options()))
}

fn gemma3() -> Raw {
    Raw::of(&tiny::gemma3(options()))
}

fn u32s(v: &[u32]) -> Vec<u8> {
    raw::array(raw::U32, v.len() as u64, &v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

/// The key or name as text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("tiny models have plain names")
}

// --- The tests -----------------------------------------------------------------------------------------------------------

#[test]
fn the_models_that_the_cases_start_from_are_good() {
    for (name, raw) in [("llama", llama()), ("gemma3", gemma3())] {
        let original = if name == "llama" { tiny::llama(options()) } else { tiny::gemma3(options()) };
        assert_eq!(raw.bytes(), original, "{name} does not survive being taken apart");
        assert_eq!(run([case(name, Good, original)].into_iter()), 1);
    }
}

#[test]
fn truncated_anywhere() {
    let (bytes, bounds) = llama().bytes_and_bounds();
    let gguf = Gguf::parse(Arc::new(Map::owned(bytes.clone()))).unwrap();
    let end = gguf.tensors().iter().map(|t| t.range.end).max().unwrap();
    let mut cuts: Vec<usize> = bounds.iter().flat_map(|b| [b.saturating_sub(1), *b, b + 1]).collect();
    cuts.extend(gguf.tensors().iter().flat_map(|t| [t.range.end - 1, t.range.end]));
    let mut rng = Rng(11);
    cuts.extend((0..500).map(|_| rng.below(end)));
    cuts.retain(|cut| *cut < end);
    cuts.sort_unstable();
    cuts.dedup();
    assert!(cuts.len() > 700, "{}", cuts.len());
    run(cuts.into_iter().map(|cut| case(format!("cut to {cut}"), Container, bytes[..cut].to_vec())));
}

#[test]
fn wrong_headers() {
    let good = llama();
    let edit = |change: &dyn Fn(&mut Raw)| {
        let mut raw = good.clone();
        change(&mut raw);
        raw.bytes()
    };
    let mut cases = vec![case("no bytes", Container, Vec::new()), case("zeros", Container, vec![0; 4096])];
    cases.push(case("magic", Container, edit(&|r| r.magic = *b"GGUX")));
    for version in [0, 1, 4, 1 << 24, 2 << 24, 3 << 24, u32::MAX] {
        cases.push(case(format!("version {version:#x}"), Container, edit(&|r| r.version = version)));
    }
    let (tensors, keys) = (good.tensors.len() as u64, good.metadata.len() as u64);
    for huge in [u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 62, 1 << 61, 1 << 40, 1 << 32, 1 << 20, tensors * 1000] {
        cases.push(case(format!("{huge} tensors"), Container, edit(&|r| r.tensor_count = Some(huge))));
        cases.push(case(format!("{huge} keys"), Container, edit(&|r| r.metadata_count = Some(huge))));
        cases.push(case(format!("{huge} of both"), Container, edit(&|r| (r.tensor_count, r.metadata_count) = (Some(huge), Some(huge)))));
    }
    cases.push(case("a tensor more", Container, edit(&|r| r.tensor_count = Some(tensors + 1))));
    cases.push(case("a tensor less", Any, edit(&|r| r.tensor_count = Some(tensors - 1))));
    cases.push(case("a key more", Container, edit(&|r| r.metadata_count = Some(keys + 1))));
    cases.push(case("a key less", Container, edit(&|r| r.metadata_count = Some(keys - 1))));
    cases.push(case("no keys", Container, edit(&|r| r.metadata_count = Some(0))));
    cases.push(case("no tensors", Model, edit(&|r| r.tensor_count = Some(0))));
    // More entries than anybody has, each of them well-formed.
    let many = |n: u64| {
        let mut raw = Raw::empty();
        raw.metadata = (0..n).map(|i| raw::Entry { key: i.to_string().into(), ty: raw::U8, value: vec![0] }).collect();
        raw.bytes()
    };
    cases.push(case("65536 keys", Model, many(65536)));
    cases.push(case("65537 keys", Container, many(65537)));
    run(cases.into_iter());
}

#[test]
fn wrong_metadata_encodings() {
    let good = llama();
    let mut cases = Vec::new();
    let mut add = |name: &str, expect, ty: u32, value: Vec<u8>| {
        // At the front, so that a wrong length would run over everything that follows.
        let mut raw = good.clone();
        raw.metadata.insert(0, raw::Entry { key: "hostile".into(), ty, value });
        cases.push(case(name, expect, raw.bytes()));
    };
    for ty in [13, 14, 255, 1 << 16, u32::MAX] {
        add(&format!("value type {ty}"), Container, ty, vec![0; 8]);
        add(&format!("element type {ty}"), Container, raw::ARRAY, raw::array(ty, 0, &[]));
    }
    for byte in [2u8, 128, 255] {
        add(&format!("bool {byte}"), Container, raw::BOOL, vec![byte]);
        add(&format!("array with bool {byte}"), Container, raw::ARRAY, raw::array(raw::BOOL, 3, &[1, 0, byte]));
    }
    for len in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 62, 1 << 61, 1 << 60, 1 << 40, 1 << 33, 1 << 31] {
        add(&format!("string of {len}"), Container, raw::STRING, len.to_le_bytes().to_vec());
        add(&format!("string of {len} in an array"), Container, raw::ARRAY, raw::array(raw::STRING, 1, &len.to_le_bytes()));
        for ty in 0..=12 {
            add(&format!("array of {len} of type {ty}"), Container, raw::ARRAY, raw::array(ty, len, &[]));
        }
        let inner = raw::array(raw::U8, len, &[]);
        add(&format!("array of an array of {len}"), Container, raw::ARRAY, raw::array(raw::ARRAY, 1, &inner));
    }
    for ty in 0..=12 {
        add(&format!("empty array of type {ty}"), Good, raw::ARRAY, raw::array(ty, 0, &[]));
    }
    let nested = |depth: usize| {
        let mut value: Vec<u8> = (1..depth).flat_map(|_| raw::array(raw::ARRAY, 1, &[])).collect();
        value.extend(raw::array(raw::U8, 0, &[]));
        value
    };
    add("nested 8 deep", Good, raw::ARRAY, nested(8));
    for depth in [9, 10, 100, 10_000, 1_000_000] {
        add(&format!("nested {depth} deep"), Container, raw::ARRAY, nested(depth));
    }
    // Many empty arrays, and arrays of arrays that end inside the last one.
    let hollow = raw::array(raw::U8, 0, &[]).repeat(100_000);
    add("100000 empty arrays", Good, raw::ARRAY, raw::array(raw::ARRAY, 100_000, &hollow));
    add("bad UTF-8", Container, raw::STRING, raw::string(b"a\xff"));
    add("overlong UTF-8", Container, raw::STRING, raw::string(b"\xc0\x80"));
    add("a surrogate", Container, raw::STRING, raw::string(b"\xed\xa0\x80"));
    add("half a character", Container, raw::STRING, raw::string(b"\xe2\x96"));
    add("NaN", Good, raw::F32, f32::NAN.to_le_bytes().to_vec());
    add("a long string", Good, raw::STRING, raw::string(vec![b'x'; 1 << 20]));

    let key = |key: &[u8]| {
        let mut raw = good.clone();
        raw.metadata.insert(0, raw::Entry { key: key.to_vec(), ty: raw::U8, value: vec![0] });
        raw.bytes()
    };
    for (name, bytes) in [
        ("an empty key", b"".as_slice()),
        ("a key with a NUL", b"a\0b"),
        ("a key with a line break", b"a\nb"),
        ("a key with an escape", b"\x1b[2J"),
        ("a key that is not UTF-8", b"\xff"),
        ("general.architecture twice", b"general.architecture"),
        ("tokenizer.ggml.tokens twice", b"tokenizer.ggml.tokens"),
    ] {
        cases.push(case(name, Container, key(bytes)));
    }
    cases.push(case("a key of 65535", Good, key(&[b'k'; 65535])));
    cases.push(case("a key of 65536", Container, key(&[b'k'; 65536])));
    for alignment in [0u32, 1, 2, 4, 7, 12, 33, 48, (1 << 20) + 1, 1 << 21, 1 << 31, u32::MAX] {
        let raw = good.with("general.alignment", raw::U32, alignment.to_le_bytes().to_vec());
        cases.push(case(format!("alignment {alignment}"), Container, raw.bytes()));
    }
    for (ty, value) in
        [(raw::I32, (-32i32).to_le_bytes().to_vec()), (raw::F32, 32f32.to_le_bytes().to_vec()), (raw::STRING, raw::string("32"))]
    {
        cases.push(case(format!("alignment of type {ty}"), Container, good.with("general.alignment", ty, value).bytes()));
    }
    let u64_alignment = good.with("general.alignment", raw::U64, 32u64.to_le_bytes().to_vec());
    cases.push(case("alignment as uint64", Good, u64_alignment.bytes()));
    run(cases.into_iter());
}

#[test]
fn wrong_tensor_directories() {
    let good = llama();
    let mut cases = Vec::new();
    let last = good.tensors.len() - 1;
    let data = good.data.len() as u64;
    for i in [0, 3, last] {
        let name = text(&good.tensors[i].name);
        let mut add = |what: &str, expect, change: &dyn Fn(&mut Tensor)| {
            cases.push(case(format!("{name}: {what}"), expect, good.with_tensor(i, change).bytes()));
        };
        for n in [0, 5, 6, 255, 1 << 31, u32::MAX] {
            add(&format!("{n} dimensions"), Container, &|t| t.n_dims = Some(n));
        }
        for dims in [
            vec![0],
            vec![32, 0],
            vec![0, 32],
            vec![1, 1, 1, 0],
            vec![1 << 32, 1 << 32],
            vec![1 << 63],
            vec![u64::MAX],
            vec![u64::MAX, u64::MAX, u64::MAX, u64::MAX],
            vec![32, u64::MAX],
            vec![1 << 31, 1 << 31, 1 << 2],
            vec![1 << 61, 2],
            vec![32, 1 << 57],
            vec![32, 1 << 40],
            vec![data],
        ] {
            add(&format!("dimensions {dims:?}"), Container, &|t| t.dims = dims.clone());
        }
        for ty in [4, 5, 31, 32, 33, 36, 37, 38, 43, 44, 100, 133, 158, 202, 399, 400, 1000, 1 << 31, u32::MAX] {
            add(&format!("type {ty}"), Container, &|t| t.ty = ty);
        }
        for (ty, cols) in [(2, 31), (8, 16), (12, 32), (12, 255), (14, 128), (39, 48), (40, 32), (41, 64), (42, 32)] {
            add(&format!("rows of {cols} of type {ty}"), Container, &|t| (t.ty, t.dims) = (ty, vec![cols, 1]));
        }
        for offset in [1, 4, 8, 16, 31, 33] {
            add(&format!("offset + {offset}"), Container, &|t| t.offset += offset);
        }
        for offset in [data.next_multiple_of(32), data + (1 << 20), 1 << 40, 1 << 62, 1 << 63, !31, u64::MAX] {
            add(&format!("offset {offset}"), Container, &|t| t.offset = offset);
        }
        // Onto its neighbour, in part and in full.
        let neighbour = good.tensors[if i == 0 { 1 } else { i - 1 }].offset;
        add("at its neighbour's offset", Container, &|t| t.offset = neighbour);
        add("32 bytes into its neighbour", Container, &|t| t.offset = neighbour + 32);
        for (what, bytes) in [
            ("empty name", b"".as_slice()),
            ("name that is not UTF-8", b"\xff\xfe"),
            ("name with a NUL", b"a\0"),
            ("name with a line break", b"a\nerror: no"),
            ("name of 65", [b'n'; 65].as_slice()),
            ("name of 70000", vec![b'n'; 70000].as_slice()),
        ] {
            add(what, Container, &|t| t.name = bytes.to_vec());
        }
        let other = good.tensors[if i == last { 0 } else { last }].name.clone();
        add("another's name", Container, &|t| t.name = other.clone());
    }
    let shifted = |by: usize| {
        let mut raw = good.clone();
        raw.data = [vec![0; by], raw.data].concat();
        raw.data.truncate(good.data.len());
        raw.bytes()
    };
    cases.push(case("data moved by 32", Any, shifted(32)));
    run(cases.into_iter());
}

/// A name or a string that claims gigabytes, in a file that has them (as a hole that costs the sender nothing).
#[cfg(all(unix, target_pointer_width = "64"))]
#[test]
fn gigabytes_of_nothing() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    const GIB4: u64 = 4 << 30;
    let head = |tensors: u64, keys: u64| [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
    let entry = |ty: u32, value: &[u8]| [head(0, 1), raw::string("key"), ty.to_le_bytes().to_vec(), value.to_vec()].concat();
    let cases = [
        ("a key", [head(0, 1), GIB4.to_le_bytes().to_vec()].concat()),
        ("a tensor's name", [head(1, 0), GIB4.to_le_bytes().to_vec()].concat()),
        ("a string", entry(raw::STRING, &GIB4.to_le_bytes())),
        ("a string in an array", entry(raw::ARRAY, &raw::array(raw::STRING, 1, &GIB4.to_le_bytes()))),
    ];
    for (name, start) in cases {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), start).unwrap();
        file.as_file().set_len(GIB4 + 4096).unwrap();
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let error = Gguf::open(file.path()).err().unwrap_or_else(|| panic!("{name} of 4 GiB is read"));
        is_clear(&error).unwrap();
        let peak = PEAK.load(Relaxed).saturating_sub(before);
        assert!(peak < 1 << 20, "{name} of 4 GiB: {peak} bytes allocated");
    }
}

/// Every key of the model, with every type of value but its own.
#[test]
fn wrong_value_types() {
    let mut cases = Vec::new();
    for good in [llama(), gemma3()] {
        for entry in &good.metadata {
            let key = text(&entry.key);
            for ty in 0..=12 {
                if ty == entry.ty {
                    continue;
                }
                let value = match ty {
                    raw::STRING => raw::string("yes"),
                    raw::ARRAY => raw::strings(&["a", "b"]),
                    raw::F32 => 2.5f32.to_le_bytes().to_vec(),
                    raw::F64 => 2.5f64.to_le_bytes().to_vec(),
                    scalar => [vec![1], vec![0; raw::width(scalar) - 1]].concat(),
                };
                let integer = |ty: u32| [raw::U8, raw::I8, raw::U16, raw::I16, raw::U32, raw::I32, raw::U64, raw::I64].contains(&ty);
                // Numbers of another width may do, where they fit; what nobody computes with is nobody's business.
                let unread = key.ends_with(".vocab_size") || key.starts_with("general.") && key != "general.architecture";
                let number =
                    integer(entry.ty) && integer(ty) || entry.ty == raw::F32 && ty != raw::STRING && ty != raw::ARRAY && ty != raw::BOOL;
                let expect = if number || unread { Any } else { Model };
                cases.push(case(format!("{key} of type {ty}"), expect, good.with(&key, ty, value).bytes()));
            }
        }
    }
    assert!(cases.len() > 400, "{}", cases.len());
    run(cases.into_iter());
}

/// Values that have the right type and cannot be right.
#[test]
fn wrong_values() {
    let mut cases = Vec::new();
    for (arch, good) in [("llama", llama()), ("gemma3", gemma3())] {
        let int = |key: &str, v: u32| good.with(&format!("{arch}.{key}"), raw::U32, v.to_le_bytes().to_vec()).bytes();
        for key in ["embedding_length", "block_count", "feed_forward_length", "attention.head_count"] {
            for v in [0, 1, 3, 7, 31, 33, 1 << 15, 1 << 20, 1 << 30, 1 << 31, u32::MAX] {
                cases.push(case(format!("{arch}.{key} = {v}"), if (key, v) == ("block_count", 1) { Any } else { Model }, int(key, v)));
            }
        }
        for v in [0, 2, 3, 4, 1 << 20, 1 << 31, u32::MAX] {
            cases.push(case(format!("{arch}.attention.head_count_kv = {v}"), Model, int("attention.head_count_kv", v)));
        }
        for v in [1, 3, 15, 17, 18, 1 << 20, u32::MAX] {
            cases.push(case(format!("{arch}.rope.dimension_count = {v}"), Model, int("rope.dimension_count", v)));
        }
        for key in ["attention.key_length", "attention.value_length"] {
            for v in [0, 1, 8, 15, 17, 32, 1 << 20, 1 << 31, u32::MAX] {
                cases.push(case(format!("{arch}.{key} = {v}"), Model, int(key, v)));
            }
        }
        cases.push(case(format!("{arch}.context_length = 0"), Model, int("context_length", 0)));
        for (key, v) in
            [("context_length", 1), ("context_length", u32::MAX), ("attention.sliding_window", 0), ("attention.sliding_window", u32::MAX)]
        {
            cases.push(case(format!("{arch}.{key} = {v}"), Any, int(key, v)));
        }
        let float = |key: &str, v: f32| good.with(&format!("{arch}.{key}"), raw::F32, v.to_le_bytes().to_vec()).bytes();
        for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
            for key in ["attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor"] {
                cases.push(case(format!("{arch}.{key} = {v}"), Model, float(key, v)));
            }
        }
        cases.push(case(format!("{arch}.rope.freq_base = 0"), Model, float("rope.freq_base", 0.0)));
        for v in [f32::MIN_POSITIVE, f32::MAX, 1e-45] {
            cases.push(case(format!("{arch}.rope.freq_base = {v}"), Any, float("rope.freq_base", v)));
            cases.push(case(format!("{arch}.rope.scaling.factor = {v}"), Any, float("rope.scaling.factor", v)));
        }
        let scaling = |kind: &str| good.with(&format!("{arch}.rope.scaling.type"), raw::STRING, raw::string(kind));
        for kind in ["", "dynamic", "YARN", "linear\0"] {
            cases.push(case(format!("{arch} rope scaling {kind:?}"), Model, scaling(kind).bytes()));
        }
        // LongRoPE without its factors, YaRN without a size.
        cases.push(case(format!("{arch} longrope without tensors"), Any, scaling("longrope").bytes()));
        cases.push(case(
            format!("{arch} yarn of factor 0"),
            Any,
            scaling("yarn").with("rope.scaling.factor", raw::F32, vec![0; 4]).bytes(),
        ));
        for name in ["", "llamas", "LLAMA", "gemma9", &"x".repeat(100_000)] {
            let raw = good.with("general.architecture", raw::STRING, raw::string(name));
            cases.push(case(format!("{arch} calls itself {name:.20}"), Model, raw.bytes()));
        }
        for key in ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.layer_norm_rms_epsilon"] {
            let key = format!("{arch}.{key}");
            cases.push(case(format!("{key} is absent"), Model, good.without(&key).bytes()));
        }
        for key in ["general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.tokens"] {
            cases.push(case(format!("{arch}: {key} is absent"), Model, good.without(key).bytes()));
        }
        // Every other key may be absent, or not; nothing worse.
        for entry in &good.metadata {
            let key = text(&entry.key);
            cases.push(case(format!("{arch} without {key}"), Any, good.without(&key).bytes()));
        }
    }
    let good = llama();
    for (what, layers) in
        [("beyond the last", vec![2]), ("twice", vec![1, 1]), ("backwards", vec![1, 0]), ("far beyond", vec![0, u32::MAX])]
    {
        cases.push(case(format!("memory layers {what}"), Model, good.with("llama.fot.memory_layers", raw::ARRAY, u32s(&layers)).bytes()));
    }
    let negative = raw::array(raw::I32, 1, &(-1i32).to_le_bytes());
    cases.push(case("memory layer -1", Model, good.with("llama.fot.memory_layers", raw::ARRAY, negative).bytes()));
    for (key, values) in [("window_length", [0, 1, u32::MAX]), ("last_context_length", [0, 0, 0])] {
        for v in values {
            let raw = good.with(&format!("llama.fot.{key}"), raw::U32, v.to_le_bytes().to_vec());
            cases.push(case(format!("llama.fot.{key} = {v}"), Model, raw.bytes()));
        }
    }
    cases.push(case("memory of another dtype", Model, good.with("llama.fot.memory_dtype", raw::STRING, raw::string("int3")).bytes()));
    run(cases.into_iter());
}

#[test]
fn wrong_tensors() {
    let mut cases = Vec::new();
    for (arch, good) in [("llama", llama()), ("gemma3", gemma3())] {
        for (i, t) in good.tensors.iter().enumerate() {
            let name = format!("{arch} {}", text(&t.name));
            let mut add = |what: &str, expect, change: &dyn Fn(&mut Tensor)| {
                cases.push(case(format!("{name}: {what}"), expect, good.with_tensor(i, change).bytes()));
            };
            // llama with tied embeddings needs no output.weight.
            add("absent", if t.name == b"output.weight" { Any } else { Model }, &|t| t.name = b"something.else".to_vec());
            // The same number of bytes in other shapes and types.
            add("half as wide", Model, &|t| t.dims = [vec![t.dims[0] / 2, 2], t.dims[1..].to_vec()].concat());
            add("of integers", Model, &|t| t.ty = 26);
            add("of doubles", Model, &|t| (t.ty, t.dims[0]) = (28, t.dims[0] / 2));
            add("one column short", Model, &|t| t.dims[0] -= 1);
            add("one element", Model, &|t| t.dims = vec![1]);
            if t.dims.len() == 2 {
                add("one row short", Model, &|t| t.dims[1] -= 1);
                add("flat", Model, &|t| t.dims = vec![t.dims[0] * t.dims[1]]);
                if t.dims[0] != t.dims[1] {
                    add("transposed", Model, &|t| t.dims.reverse());
                }
                add("with a third dimension", Model, &|t| t.dims = vec![t.dims[0], t.dims[1] / 2, 2]);
            }
            // Half the bytes are a sound tensor of F16: another type is another model, not a broken one.
            add("of halves", Any, &|t| t.ty = 1);
        }
    }
    assert!(cases.len() > 300, "{}", cases.len());
    run(cases.into_iter());
}

#[test]
fn bad_vocabularies() {
    let good = llama();
    let n = options().n_vocab;
    let tokens: Vec<Vec<u8>> = {
        let gguf = Gguf::parse(Arc::new(Map::owned(good.bytes()))).unwrap();
        gguf.array("tokenizer.ggml.tokens").unwrap().unwrap().strings().map(<[u8]>::to_vec).collect()
    };
    let mut cases = Vec::new();
    let mut add = |what: &str, expect, key: &str, ty: u32, value: Vec<u8>| {
        cases.push(case(what, expect, good.with(&format!("tokenizer.ggml.{key}"), ty, value).bytes()));
    };
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut t = tokens.clone();
        change(&mut t);
        raw::strings(&t)
    };
    add("no tokens", Vocabulary, "tokens", raw::ARRAY, raw::strings::<&str>(&[]));
    add("a token less", Vocabulary, "tokens", raw::ARRAY, with(&|t| drop(t.pop())));
    add("a token more", Vocabulary, "tokens", raw::ARRAY, with(&|t| t.push(b"more".to_vec())));
    add("one token", Vocabulary, "tokens", raw::ARRAY, with(&|t| t.truncate(1)));
    add("tokens as numbers", Vocabulary, "tokens", raw::ARRAY, raw::array(raw::U32, n as u64, &vec![0; 4 * n]));
    add("tokens as arrays", Vocabulary, "tokens", raw::ARRAY, raw::array(raw::ARRAY, n as u64, &raw::array(raw::U8, 0, &[]).repeat(n)));
    add("all tokens empty", Any, "tokens", raw::ARRAY, raw::strings(&vec![""; n]));
    add("all tokens equal", Any, "tokens", raw::ARRAY, raw::strings(&vec!["the"; n]));
    let megabyte = vec![b'e'; 1 << 20];
    add("a token of a megabyte twice", Any, "tokens", raw::ARRAY, with(&|t| t[270..272].fill(megabyte.clone())));
    add("a token of line breaks twice", Any, "tokens", raw::ARRAY, with(&|t| t[270..272].fill(b"\n\r\x1b[2J".to_vec())));
    add("an unknown token of a megabyte", Vocabulary, "tokens", raw::ARRAY, with(&|t| t[0] = megabyte.clone()));
    add("a token of a megabyte", Any, "tokens", raw::ARRAY, with(&|t| t[270] = vec![b'e'; 1 << 20]));
    add("tokens that are not UTF-8", Any, "tokens", raw::ARRAY, with(&|t| t.iter_mut().for_each(|t| t.push(0xff))));
    add("no byte tokens", Any, "tokens", raw::ARRAY, with(&|t| (3..259).for_each(|i| t[i] = format!("w{i}").into())));
    add("byte tokens that are none", Any, "tokens", raw::ARRAY, with(&|t| (3..259).for_each(|i| t[i] = b"<0xZZ>".to_vec())));
    add("tokens with NULs", Any, "tokens", raw::ARRAY, with(&|t| t[265] = b"\0\0".to_vec()));
    for (what, len) in [("a score less", n - 1), ("a score more", n + 1), ("no scores", 0)] {
        let zeros = raw::array(raw::F32, len as u64, &vec![0; 4 * len]);
        add(what, Vocabulary, "scores", raw::ARRAY, zeros);
    }
    add("scores as strings", Vocabulary, "scores", raw::ARRAY, raw::strings(&vec!["0"; n]));
    for (what, score) in [("NaN", f32::NAN), ("infinite", f32::INFINITY), ("equal", 0.0)] {
        let scores: Vec<u8> = (0..n).flat_map(|_| score.to_le_bytes()).collect();
        add(&format!("{what} scores"), Any, "scores", raw::ARRAY, raw::array(raw::F32, n as u64, &scores));
    }
    for (what, len) in [("a type less", n - 1), ("a type more", n + 1), ("no types", 0)] {
        let ones: Vec<u8> = (0..len).flat_map(|_| 1i32.to_le_bytes()).collect();
        add(what, Vocabulary, "token_type", raw::ARRAY, raw::array(raw::I32, len as u64, &ones));
    }
    add("types as floats", Vocabulary, "token_type", raw::ARRAY, raw::array(raw::F32, n as u64, &vec![0; 4 * n]));
    for ty in [0i32, 2, 3, 4, 5, 6, 7, -1, i32::MAX, i32::MIN] {
        let types: Vec<u8> = (0..n).flat_map(|_| ty.to_le_bytes()).collect();
        add(&format!("all types {ty}"), Any, "token_type", raw::ARRAY, raw::array(raw::I32, n as u64, &types));
    }
    for key in ["bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "eot_token_id"] {
        for id in [n as u32, n as u32 + 1, 1 << 31, u32::MAX] {
            add(&format!("{key} = {id}"), Any, key, raw::U32, id.to_le_bytes().to_vec());
        }
    }
    for model in ["", "LLAMA", "bogus", "gpt2\0", "a\nb", &"x".repeat(100_000)] {
        add(&format!("tokenizer {model:.10?}"), Vocabulary, "model", raw::STRING, raw::string(model));
    }
    let mut byte_level = Vec::new();
    let long = ["e".repeat(1 << 20), format!("e {}", "e".repeat(1 << 20))];
    for (what, merges) in [
        ("good", vec!["h e", "i n"]),
        ("twice", vec!["h e", "h e"]),
        ("of a megabyte", vec![&long[0]]),
        ("of a megabyte and a letter", vec![&long[1]]),
        ("with controls", vec!["\n\x1b[2J"]),
        ("empty", vec![""]),
        ("one-sided", vec!["a"]),
        ("of unknown tokens", vec!["qq zz"]),
        ("with three", vec!["a b c"]),
    ] {
        add(&format!("merges {what}"), Any, "merges", raw::ARRAY, raw::strings(&merges));
        let bpe = good.with("tokenizer.ggml.model", raw::STRING, raw::string("gpt2"));
        let bpe = bpe.with("tokenizer.ggml.pre", raw::STRING, raw::string("gpt-2")).with(
            "tokenizer.ggml.merges",
            raw::ARRAY,
            raw::strings(&merges),
        );
        byte_level.push(case(format!("byte-level merges {what}"), if what == "good" { Good } else { Any }, bpe.bytes()));
    }
    run(cases.into_iter().chain(byte_level));
}

/// One byte of the header, the metadata or the directory at a time.
#[test]
fn flipped_bytes() {
    let good = llama();
    let bytes = good.bytes();
    let vocabulary = {
        let start = bytes.windows(21).position(|w| w == b"tokenizer.ggml.tokens").unwrap();
        start..bytes.windows(29).position(|w| w == b"tokenizer.ggml.unknown_token_").unwrap()
    };
    let mut flips = Vec::new();
    for at in 0..good.data_offset() {
        // The vocabulary is long and alike.
        if !vocabulary.contains(&at) || at % 7 == 0 {
            flips.extend([0x01, 0x80, 0xff].map(|mask| (at, mask)));
        }
    }
    assert!(flips.len() > 5000, "{}", flips.len());
    run(flips.into_iter().map(|(at, mask)| {
        let mut flipped = bytes.clone();
        flipped[at] ^= mask;
        case(format!("byte {at} ^ {mask:#x}"), Any, flipped)
    }));
}

/// Random bytes behind a good start, and random runs of random bytes anywhere.
#[test]
fn noise() {
    let good = llama().bytes();
    let data = llama().data_offset();
    run((0..1000u64).map(|seed| {
        let mut rng = Rng(seed);
        let mut bytes = good.clone();
        let at = if seed % 2 == 0 { 24 + rng.below(200) } else { rng.below(data) };
        let len = 1 + rng.below(if seed % 3 == 0 { bytes.len() - at } else { 16 });
        bytes[at..at + len].fill_with(|| rng.next() as u8);
        case(format!("noise {seed}: {len} bytes at {at}"), Any, bytes)
    }));
}
