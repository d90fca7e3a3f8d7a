//! What a memory file promises to several processes: a writer that is killed at any moment loses nothing it has acknowledged and leaves no
//! lock behind, readers beside it see whole commits only, and however many they are, the data are in RAM once.
//!
//! The children are this program again, told by the environment what to do. `LOCI_KILLS` is how often the writer is killed.
#![cfg(target_os = "linux")]

mod common;

use loci::memory::{Codec, Fingerprint, Geometry, LayerKv, Memory, Side};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

fn geometry() -> Geometry {
    Geometry {
        layers: vec![0, 5],
        head_count_kv: 2,
        key_length: 32,
        value_length: 16,
        block_tokens: 16,
        codec: Codec::F16,
        sketched: Vec::new(),
    }
}

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "llama".into(), hash: [4; 32] }
}

fn token_id(token: u64) -> u32 {
    (token * 2_654_435_761 % 50_000) as u32
}

/// Exact in half precision.
fn number(token: u64, slot: usize, side: Side, i: usize) -> f32 {
    ((token * 97 + slot as u64 * 31 + (side == Side::Values) as u64 * 11 + i as u64 * 7) % 2039) as f32 - 1000.0
}

fn append(m: &mut Memory, n: u64) {
    let g = m.geometry().clone();
    let tokens = m.len()..m.len() + n;
    let side = |slot, side: Side, length: u32| -> Vec<f32> {
        let row = (g.head_count_kv * length) as usize;
        tokens.clone().flat_map(|t| (0..row).map(move |i| number(t, slot, side, i))).collect()
    };
    let rows: Vec<_> = (0..g.layers.len()).map(|s| (side(s, Side::Keys, g.key_length), side(s, Side::Values, g.value_length))).collect();
    let layers: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    m.append(&tokens.clone().map(token_id).collect::<Vec<_>>(), None, &layers).unwrap();
}

/// Compares the blocks from number `from` on with what was appended.
fn check(m: &Memory, from: usize) {
    let g = m.geometry();
    assert_eq!(m.tokens(0..m.len()).unwrap(), (0..m.len()).map(token_id).collect::<Vec<_>>());
    for block in from..m.blocks() {
        let span = m.block(block).unwrap();
        for slot in 0..g.layers.len() {
            for head in 0..g.head_count_kv as usize {
                for (side, length) in [(Side::Keys, g.key_length as usize), (Side::Values, g.value_length as usize)] {
                    let mut read = vec![0.0; span.len * length];
                    m.rows(side, slot, head, block).unwrap().decode(&mut read);
                    for (i, x) in read.into_iter().enumerate() {
                        assert_eq!(x, number(span.first_token + (i / length) as u64, slot, side, head * length + i % length));
                    }
                }
            }
        }
    }
}

const JOB: &str = "LOCI_TEST_JOB";
const FILE: &str = "LOCI_TEST_FILE";

fn child(job: &str, file: &Path) -> Child {
    let mut command = common::this_program();
    command.args(["--exact", "what_a_child_does", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(JOB, job).env(FILE, file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().unwrap()
}

#[test]
#[ignore = "the children of the other tests"]
fn what_a_child_does() {
    let (Ok(job), Ok(file)) = (std::env::var(JOB), std::env::var(FILE)) else { return };
    let file = Path::new(&file);
    match job.as_str() {
        "write" => write_for_ever(file),
        "follow" => follow(file),
        "measure" => measure(file),
        other => panic!("{other}"),
    }
}

/// Appends and commits until it is killed; says what is acknowledged.
fn write_for_ever(file: &Path) {
    let mut m = Memory::open(file, Some(&fingerprint())).unwrap();
    let mut seed = u64::from(std::process::id());
    loop {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        append(&mut m, 1 + (seed >> 33) % 40);
        m.commit().unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "acknowledged {}", m.len()).unwrap();
        out.flush().unwrap();
    }
}

/// Follows a writer until its input ends; everything it ever sees is right, and it never sees less than before.
fn follow(file: &Path) {
    let stop = std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let mut m = Memory::open_read_only(file, Some(&fingerprint())).unwrap();
    let (mut checked, mut rounds) = (0, 0u64);
    loop {
        let before = m.len();
        m.refresh().unwrap();
        assert!(m.len() >= before);
        check(&m, checked);
        checked = m.blocks();
        rounds += 1;
        if stop.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("followed {} {rounds}", m.len());
}

/// Reads all of a memory, then says by how much its own anonymous memory has grown.
fn measure(file: &Path) {
    let m = Memory::open_read_only(file, None).unwrap();
    let before = anonymous_bytes();
    let mut sum = 0u64;
    let mut read = 0u64;
    for block in 0..m.blocks() {
        for slot in 0..m.geometry().layers.len() {
            for head in 0..m.geometry().head_count_kv as usize {
                for view in [m.keys(slot, head, block).unwrap(), m.values(slot, head, block).unwrap()] {
                    sum += view.bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
                    read += view.bytes.len() as u64;
                }
            }
        }
    }
    println!("measured {} {read} {sum}", anonymous_bytes().saturating_sub(before));
    std::io::stdout().flush().unwrap();
    // Stays as it is until all have measured.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(m);
}

fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// The numbers behind `word` in a child's line.
fn numbers(line: &str, word: &str) -> Option<Vec<u64>> {
    line.split_once(word).map(|(_, rest)| rest.split_whitespace().map(|n| n.parse().unwrap()).collect())
}

#[test]
fn a_writer_killed_at_any_moment_loses_nothing_acknowledged_and_readers_go_on() {
    let kills: u64 = std::env::var("LOCI_KILLS").map_or(25, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("killed.lmem");
    drop(Memory::create(&path, geometry(), fingerprint()).unwrap());
    let readers: Vec<Child> = (0..2).map(|_| child("follow", &path)).collect();
    let (mut checked, mut total, mut ahead) = (0, 0, 0);
    for kill in 0..kills {
        let mut writer = child("write", &path);
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut acknowledged = total;
        // Let it begin, then strike after anything from nothing to some commits.
        for _ in 0..1 + kill % 5 {
            acknowledged = lines.find_map(|l| numbers(&l, "acknowledged ")).expect("the writer ended by itself")[0];
        }
        std::thread::sleep(Duration::from_micros(kill * 7919 % 3000));
        writer.kill().unwrap();
        writer.wait().unwrap();
        // A line may have been cut short by the kill, but not one before it.
        let last = lines.filter(|l| l.len() > 12).filter_map(|l| numbers(&l, "acknowledged ")).last();
        let acknowledged = last.map_or(acknowledged, |n| n[0].max(acknowledged));
        let m = Memory::open(&path, Some(&fingerprint())).unwrap();
        assert!(m.len() >= acknowledged, "kill {kill}: {acknowledged} tokens were acknowledged, {} are there", m.len());
        ahead += u64::from(m.len() > acknowledged);
        check(&m, checked);
        checked = m.blocks();
        total = m.len();
    }
    println!("{kills} kills, {total} tokens, {ahead} times a commit further than acknowledged");
    for mut reader in readers {
        drop(reader.stdin.take());
        let out = reader.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}");
        let seen = numbers(text.lines().find(|l| l.contains("followed")).unwrap(), "followed ").unwrap();
        assert!(seen[1] > 0 && seen[0] <= total);
    }
    let m = Memory::open_read_only(&path, None).unwrap();
    assert!(m.verify(|_, _| true).unwrap().is_empty());
    check(&m, 0);
}

#[test]
fn eight_readers_have_the_data_in_ram_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.lmem");
    let g = Geometry { layers: (0..8).collect(), head_count_kv: 4, key_length: 64, value_length: 64, ..geometry() };
    let mut m = Memory::create(&path, g.clone(), fingerprint()).unwrap();
    for _ in 0..4 {
        append_plain(&mut m, 1024);
        m.commit().unwrap();
    }
    drop(m);
    let data = 4096 * 8 * 4 * 64 * 2 * 2;
    let mut readers: Vec<Child> = (0..8).map(|_| child("measure", &path)).collect();
    // The pipes stay open to the end: a child that cannot speak fails.
    let (mut sums, mut pipes) = (Vec::new(), Vec::new());
    for reader in &mut readers {
        let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines().map(Result::unwrap);
        let found = lines.find_map(|l| numbers(&l, "measured ")).unwrap();
        assert_eq!(found[1], data);
        assert!(found[0] < data / 20, "{} bytes of its own for {data} bytes read", found[0]);
        sums.push(found[2]);
        pipes.push(lines);
    }
    assert!(sums.windows(2).all(|w| w[0] == w[1]));
    for mut reader in readers {
        drop(reader.stdin.take());
        assert!(reader.wait().unwrap().success());
    }
}

fn append_plain(m: &mut Memory, n: usize) {
    let row = (m.geometry().head_count_kv * m.geometry().key_length) as usize;
    let rows: Vec<f32> = (0..n * row).map(|i| (i % 251) as f32).collect();
    let layers = vec![LayerKv { keys: &rows, values: &rows }; m.geometry().layers.len()];
    m.append(&vec![1; n], None, &layers).unwrap();
}

#[test]
fn reading_needs_nothing_but_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("media.lmem");
    let mut m = Memory::create(&path, geometry(), fingerprint()).unwrap();
    append(&mut m, 100);
    m.commit().unwrap();
    drop(m);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let before = (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap());
    let readers: Vec<Memory> = (0..3).map(|_| Memory::open_read_only(&path, Some(&fingerprint())).unwrap()).collect();
    for m in &readers {
        check(m, 0);
        assert!(m.verify(|_, _| true).unwrap().is_empty() && m.unfinished().unwrap().is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no file beside it");
    }
    assert!((std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap()) == before);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
}
