//! The promise to who looks after a memory: what is forgotten is not read any more and leaves with the next compaction; a damaged part
//! costs no more than itself and can be brought back; a document that a crash interrupts is resumed, none of its tokens lost.

#![allow(clippy::single_range_in_vec_init)] // lists of ranges of tokens, one often

mod common;
#[path = "common/disk.rs"]
mod disk;

use common::tiny::{self, TinyOptions};
use disk::{Disk, Fate, Moment, Op, Rng};
use loci::Error;
#[cfg(unix)]
use loci::bytes::{FileStorage, Map, Storage};
use loci::memory::{Access, Codec, CompactOptions, Fingerprint, Geometry, LayerKv, Memory, Side, Source};
use loci::model::{Model, ModelOptions};
use loci::sampler::SamplerOptions;
use loci::session::{Session, SessionOptions, SharedMemory};
use std::ops::ControlFlow::{self, Break, Continue};
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

fn geometry(codec: Codec) -> Geometry {
    Geometry { layers: vec![0, 1], head_count_kv: 2, key_length: 32, value_length: 32, block_tokens: 8, codec, sketched: vec![0, 1] }
}

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "llama".into(), hash: [9; 32] }
}

/// Rows that say which token they are.
fn rows(g: &Geometry, ids: &[u32]) -> Vec<(Vec<f32>, Vec<f32>)> {
    let side = |slot: usize, salt: usize| -> Vec<f32> {
        let row = |id: u32| (0..64).map(move |d| ((id as usize * 31 + slot * 7 + salt + d * 3) % 113) as f32 - 56.0);
        ids.iter().flat_map(|id| row(*id)).collect()
    };
    (0..g.layers.len()).map(|slot| (side(slot, 0), side(slot, 11))).collect()
}

fn append(m: &mut Memory, ids: &[u32], label: Option<&str>) {
    let rows = rows(m.geometry(), ids);
    let layers: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    let at = u64::from(ids[0]) * 3;
    let source = label.map(|label| Source { label, text: at..at + 3 * ids.len() as u64 });
    m.append(ids, source, &layers).unwrap();
}

/// What can be read: token ids, and the keys and values of all layers, of blocks that are to be read.
fn readable(m: &Memory) -> (Vec<u32>, Vec<f32>) {
    let (mut ids, mut numbers) = (Vec::new(), Vec::new());
    for block in (0..m.blocks()).filter(|b| m.is_readable(*b)) {
        let span = m.block(block).unwrap();
        ids.extend(m.tokens(span.first_token..span.first_token + span.len as u64).unwrap());
        let mut parts = Vec::new();
        for slot in 0..2 {
            for side in [Side::Keys, Side::Values] {
                for head in 0..2 {
                    let mut out = vec![0.0; span.len * 32];
                    m.rows(side, slot, head, block).unwrap().decode(&mut out);
                    parts.push(out);
                }
            }
        }
        for token in 0..span.len {
            parts.iter().for_each(|p| numbers.extend(&p[token * 32..][..32]));
        }
    }
    (ids, numbers)
}

/// Three documents of two commits each, the second one under two labels.
fn library(path: &Path, codec: Codec) -> Memory {
    let mut m = Memory::create(path, geometry(codec), fingerprint()).unwrap();
    for (label, ids) in [("a", 0..21), ("a", 21..30), ("b", 30..47), ("c", 47..60), ("b", 60..100), ("a", 100..101)] {
        append(&mut m, &ids.collect::<Vec<_>>(), Some(label));
        m.commit().unwrap();
    }
    m
}

fn ids_of(ranges: &[std::ops::Range<u32>]) -> Vec<u32> {
    ranges.iter().cloned().flatten().collect()
}

#[test]
fn a_forgotten_document_is_not_read_any_more_by_anybody_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.lmem");
    let mut m = library(&path, Codec::F16);
    let mut reader = Memory::open_read_only(&path, None).unwrap();
    let early = std::fs::read(&path).unwrap();
    assert_eq!(m.forget("b").unwrap(), 17 + 40);
    assert_eq!((m.forget("b").unwrap(), m.forget("nobody").unwrap()), (0, 0));
    let left = ids_of(&[0..30, 47..60, 100..101]);
    assert_eq!(readable(&m).0, left);
    assert!(reader.refresh().unwrap());
    assert_eq!(readable(&reader).0, left);
    assert!(m.sources().unwrap().iter().all(|s| s.label != "b"));
    assert_eq!((m.len(), m.stats().forgotten_tokens), (101, 57), "tokens keep their numbers");
    // A document of the same name may come again, and be forgotten with the first.
    append(&mut m, &[200, 201], Some("b"));
    assert_eq!(readable(&m).0, [&left[..], &[200, 201]].concat());
    assert_eq!(m.forget("b").unwrap(), 2, "what is pending is committed first");
    drop(m);
    let m = Memory::open(&path, None).unwrap();
    assert_eq!((readable(&m).0, m.stats().forgotten_tokens), (left, 59));
    assert!(m.verify(|_, _| true).unwrap().is_empty());
    // The flag that keeps older programs out is set with the first record, and not before; what form the file has is said from the start.
    assert_eq!((early[32], std::fs::read(&path).unwrap()[32], std::fs::read(&path).unwrap()[4096 + 32]), (26, 27, 27));
}

#[test]
fn a_memory_in_ram_forgets_too_and_reader_handles_cannot() {
    let mut m = Memory::in_ram(geometry(Codec::F32), fingerprint()).unwrap();
    append(&mut m, &ids_of(&[0..16]), Some("a"));
    append(&mut m, &ids_of(&[16..24]), Some("b"));
    assert_eq!(m.forget("a").unwrap(), 16);
    assert_eq!(readable(&m).0, ids_of(&[16..24]));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.lmem");
    drop(library(&path, Codec::F16));
    let mut reader = Memory::open_read_only(&path, None).unwrap();
    assert!(matches!(reader.forget("a"), Err(Error::Argument { .. })));
}

#[test]
fn a_handle_leaves_out_what_it_is_told_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.lmem");
    drop(library(&path, Codec::F16));
    let (mut reader, other) = (Memory::open_read_only(&path, None).unwrap(), Memory::open_read_only(&path, None).unwrap());
    let all = readable(&other);
    // Whole blocks go, however little of them is meant.
    reader.leave_out(&[9..10, 20..22]);
    let left: Vec<bool> = (0..reader.blocks()).map(|b| reader.is_readable(b)).collect();
    let meant = |b: usize| {
        let span = reader.block(b).unwrap();
        [9, 20, 21].iter().all(|t| !(span.first_token..span.first_token + span.len as u64).contains(t))
    };
    assert_eq!(left, (0..reader.blocks()).map(meant).collect::<Vec<_>>());
    assert!(left.contains(&false) && left.contains(&true));
    reader.leave_out(&[]);
    assert_eq!((readable(&reader), readable(&other)), (all.clone(), all));
}

#[test]
fn a_power_cut_while_forgetting_forgets_all_or_nothing() {
    let start = Disk::default();
    let mut m = Memory::create_on(start.storage(), geometry(Codec::F16), fingerprint()).unwrap();
    append(&mut m, &ids_of(&[0..12]), Some("a"));
    m.commit().unwrap();
    append(&mut m, &ids_of(&[12..30]), Some("b"));
    m.commit().unwrap();
    drop(m);
    let disk = Disk::with(start.bytes());
    let mut m = Memory::open_on(disk.storage(), None, Access::Write).unwrap();
    m.forget("a").unwrap();
    append(&mut m, &[99], Some("c"));
    m.commit().unwrap();
    drop(m);
    let log = disk.state().log.clone();
    let (mut rng, mut moment, mut syncs, mut seen) = (Rng(3), Moment::of(start.bytes()), 0, [0; 3]);
    for op in &log {
        moment.apply(op);
        syncs += matches!(op, Op::Sync) as usize;
        for try_ in 0..60 {
            let fates = [Fate::Old, Fate::New, Fate::Torn, Fate::Garbage];
            let usual = fates[rng.below(2)];
            let rare = rng.below(8) + 1;
            let mut choice = Rng(rng.next());
            let image = moment.image(|_| if choice.below(rare) == 0 { fates[choice.below(4)] } else { usual }, try_ % 4 > 0, rng.next());
            let mut m = Memory::open_on(Disk::with(image).storage(), None, Access::Write).unwrap();
            let (ids, _) = readable(&m);
            let stage = match (m.len(), m.stats().forgotten_tokens) {
                (30, 0) => 0,
                (30, 12) => 1,
                (31, 12) => 2,
                other => panic!("{other:?}"),
            };
            seen[stage] += 1;
            assert_eq!(ids, [ids_of(&[0..30]), ids_of(&[12..30]), ids_of(&[12..30, 99..100])][stage]);
            // One sync of what was found, two for the flag in both superblocks, one for the record, one for the commit.
            assert!(stage >= [0, 0, 0, 0, 1, 2][syncs], "after {syncs} syncs");
            append(&mut m, &[77], None);
            m.commit().unwrap();
        }
    }
    assert!(syncs == 5 && seen.iter().all(|n| *n > 50), "{syncs} {seen:?}");
}

#[test]
fn compacting_keeps_what_is_left_bit_for_bit_and_frees_the_rest() {
    for codec in Codec::ALL {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("library.lmem");
        let mut m = library(&path, codec);
        m.forget("b").unwrap();
        let before = readable(&m);
        let (sources, bytes) = (m.sources().unwrap(), m.stats().file_bytes);
        // Who is writing keeps the file to himself.
        assert!(matches!(Memory::compact(&path, None, CompactOptions::default(), |_, _| true), Err(Error::Busy(_))));
        drop(m);
        let reader = Memory::open_read_only(&path, None).unwrap();
        std::fs::write(dir.path().join("library.lmem.compact"), b"left by a crash").unwrap();
        let done = Memory::compact(&path, Some(&fingerprint()), CompactOptions::default(), |_, _| true).unwrap();
        assert_eq!((done.tokens_before, done.tokens, done.bytes_before, done.dropped_blocks), (101, 44, bytes, 0));
        let new = Memory::open(&path, Some(&fingerprint())).unwrap();
        assert_eq!(done.bytes, new.stats().file_bytes);
        assert_eq!(readable(&new), before, "{codec}");
        assert!(new.verify(|_, _| true).unwrap().is_empty());
        let labels = |s: &[loci::memory::SourceSpan]| s.iter().map(|s| (s.label.clone(), s.text.clone())).collect::<Vec<_>>();
        // The two spans of the first document have become one.
        assert_eq!(labels(&new.sources().unwrap())[0], ("a".into(), 0..90));
        assert_eq!(labels(&new.sources().unwrap())[1..], labels(&sources)[2..]);
        assert_eq!(readable(&reader), before, "a reader goes on with the old file");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[cfg(unix)]
#[test]
fn links_stay_links_and_what_stands_beside_a_file_is_for_the_same_eyes() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let is_link = |path: &Path| std::fs::symlink_metadata(path).unwrap().is_symlink();
    std::fs::create_dir(at("disk")).unwrap();
    let (real, link) = (at("disk/notes.lmem"), at("link.lmem"));
    drop(library(&real, Codec::F16));
    symlink(&real, &link).unwrap();
    // The log stands beside the file, whatever name it was opened by, and nobody reads it who may not read the memory.
    for wanted in [0o600, 0o640] {
        set_mode(&real, wanted);
        let mut m = Memory::open(&link, None).unwrap();
        assert!(m.begin(Some("d"), &ids_of(&[300..310])).unwrap());
        let log = at("disk/notes.lmem.log");
        assert_eq!(mode(&log), wanted);
        drop(m);
        assert!(matches!(Memory::compact(&link, None, CompactOptions::default(), |_, _| true), Err(Error::Argument { .. })));
        let mut m = Memory::open(&real, None).unwrap();
        assert_eq!(m.unfinished().unwrap().unwrap().tokens, ids_of(&[300..310]));
        m.finish().unwrap();
        assert!(!log.exists());
        drop(m);
        let before = std::fs::read(&real).unwrap();
        Memory::compact(&link, None, CompactOptions::default(), |_, _| true).unwrap();
        assert!(is_link(&link) && !is_link(&real) && std::fs::read(&real).unwrap() != before);
        assert_eq!(mode(&real), wanted);
    }
    // A new snapshot is private; one in the place of another is for whom that was.
    let model = model(vec![]);
    let mut s = session(&model);
    s.prefill(&ids(20, 1), &mut quiet()).unwrap();
    let (snapshot, link) = (at("disk/session"), at("session"));
    s.save(&snapshot).unwrap();
    assert_eq!(mode(&snapshot), 0o600);
    set_mode(&snapshot, 0o644);
    symlink(&snapshot, &link).unwrap();
    s.prefill(&ids(20, 2), &mut quiet()).unwrap();
    s.save(&link).unwrap();
    assert!(is_link(&link) && mode(&snapshot) == 0o644);
    assert_eq!(Session::load(model, &snapshot, &[]).unwrap().len(), 40);
    assert_eq!(std::fs::read_dir(at("disk")).unwrap().count(), 2);
}

#[test]
fn compacting_can_change_the_codec_and_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.lmem");
    drop(library(&path, Codec::F32));
    let before = std::fs::read(&path).unwrap();
    let cancelled = Memory::compact(&path, None, CompactOptions::default(), |done, _| done < 50);
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    assert!(std::fs::read(&path).unwrap() == before && std::fs::read_dir(dir.path()).unwrap().count() == 1);
    let options = CompactOptions { codec: Some(Codec::K8V4), ..CompactOptions::default() };
    Memory::compact(&path, None, options, |_, _| true).unwrap();
    let m = Memory::open(&path, None).unwrap();
    assert_eq!((m.geometry().codec, readable(&m).0), (Codec::K8V4, ids_of(&[0..101])));
}

/// Spoils one byte of the extent of a block, as it lies in the file now.
fn spoil(path: &Path, m: &Memory, slot: usize, block: usize) {
    let bytes = m.keys(slot, 0, block).unwrap().bytes.to_vec();
    let mut file = std::fs::read(path).unwrap();
    let at = (0..file.len()).step_by(512).find(|at| file[*at..].starts_with(&bytes)).expect("the extent is in the file");
    file[at + 5] ^= 0x10;
    std::fs::write(path, file).unwrap();
}

#[test]
fn compacting_refuses_damage_unless_told_to_leave_it_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.lmem");
    let m = library(&path, Codec::F16);
    spoil(&path, &m, 1, 2);
    drop(m);
    let refused = Memory::compact(&path, None, CompactOptions::default(), |_, _| true);
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
    let done = Memory::compact(&path, None, CompactOptions { drop_damaged: true, ..Default::default() }, |_, _| true).unwrap();
    // Block 2 is the last of the first commit: tokens 16 to 20.
    assert_eq!((done.dropped_blocks, done.tokens), (1, 96));
    assert_eq!(readable(&Memory::open(&path, None).unwrap()).0, ids_of(&[0..16, 21..101]));
}

/// Spoils one bit of the only place in the file where these bytes stand.
fn spoil_bytes(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::read(path).unwrap();
    let at: Vec<usize> = (0..file.len() - bytes.len()).filter(|at| file[*at..].starts_with(bytes)).collect();
    assert_eq!(at.len(), 1);
    file[at[0]] ^= 0x10;
    std::fs::write(path, file).unwrap();
}

/// Token ids as a file has them.
fn as_stored(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// A source span as a file has it: the token `from` of its segment, the bytes that `append` gives, and the label.
fn span_as_stored(tokens: u64, first_id: u64, label: &str) -> Vec<u8> {
    let words = [0, tokens, 3 * first_id, 3 * (first_id + tokens), label.len() as u64];
    [&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>()[..], label.as_bytes()].concat()
}

#[test]
fn damaged_token_ids_cost_no_more_than_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.lmem");
    let whole = library(&path, Codec::F16);
    let sources = whole.sources().unwrap();
    spoil_bytes(&path, &as_stored(&ids_of(&[30..47])));
    drop(whole);
    let mut m = Memory::open(&path, None).unwrap();
    let damages = m.verify(|_, _| true).unwrap();
    assert!(matches!(&damages[..], [d] if d.layer_slot.is_none() && d.blocks == (5..8)), "{damages:?}");
    assert_eq!(m.sources().unwrap(), sources);
    assert_eq!(m.tokens(0..30).unwrap(), ids_of(&[0..30]));
    assert!(matches!(m.tokens(29..31), Err(Error::Corrupt { .. })));
    let (ids, gaps) = m.tokens_and_gaps(25..50).unwrap();
    assert_eq!((&ids[..5], &ids[22..], gaps), (&ids_of(&[25..30])[..], &ids_of(&[47..50])[..], vec![30..47]));
    assert_eq!(m.tokens_and_gaps(40..101).unwrap().1, [40..47]);
    assert_eq!((m.stats().damaged_sections, m.stats().dropped_blocks), (1, 0), "its keys are still read");
    assert!((0..m.blocks()).all(|b| m.is_readable(b) && m.keys(1, 1, b).is_ok()));
    assert_eq!(m.forget("c").unwrap(), 13);
    drop(m);
    assert!(matches!(Memory::compact(&path, None, CompactOptions::default(), |_, _| true), Err(Error::Corrupt { .. })));
    let drop_damaged = CompactOptions { drop_damaged: true, ..Default::default() };
    let done = Memory::compact(&path, None, drop_damaged, |_, _| true).unwrap();
    assert_eq!((done.dropped_blocks, done.unlabelled_blocks, done.tokens), (3, 0, 101 - 17 - 13));
    let mut m = Memory::open(&path, None).unwrap();
    assert_eq!(readable(&m).0, ids_of(&[0..30, 60..101]));
    // What is forgotten may be damaged: nobody reads it.
    spoil_bytes(&path, &as_stored(&ids_of(&[60..100])));
    assert_eq!(m.forget("b").unwrap(), 40);
    drop(m);
    assert_eq!(Memory::compact(&path, None, CompactOptions::default(), |_, _| true).unwrap().tokens, 31);
}

#[test]
fn damaged_sources_cost_no_more_than_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.lmem");
    let whole = library(&path, Codec::F16);
    let sources = whole.sources().unwrap();
    spoil_bytes(&path, &span_as_stored(17, 30, "b"));
    drop(whole);
    let mut m = Memory::open(&path, None).unwrap();
    let damages = m.verify(|_, _| true).unwrap();
    assert!(matches!(&damages[..], [d] if d.layer_slot.is_none() && d.blocks == (5..8)), "{damages:?}");
    let left: Vec<_> = sources.iter().filter(|s| s.tokens != (30..47)).cloned().collect();
    assert_eq!((m.sources().unwrap(), m.stats().damaged_sections), (left, 1));
    assert_eq!(readable(&m).0, ids_of(&[0..101]));
    // Whether they are of "b" nobody can say, so the caller is told; what can be found is forgotten all the same.
    assert!(matches!(m.forget("b"), Err(Error::Corrupt { .. })));
    drop(m);
    let m = Memory::open(&path, None).unwrap();
    assert_eq!((readable(&m).0, m.stats().forgotten_tokens), (ids_of(&[0..60, 100..101]), 40));
    drop(m);
    assert!(matches!(Memory::compact(&path, None, CompactOptions::default(), |_, _| true), Err(Error::Corrupt { .. })));
    let done = Memory::compact(&path, None, CompactOptions { drop_damaged: true, ..Default::default() }, |_, _| true).unwrap();
    assert_eq!((done.dropped_blocks, done.unlabelled_blocks, done.tokens), (0, 3, 61));
    let mut m = Memory::open(&path, None).unwrap();
    assert_eq!(readable(&m).0, ids_of(&[0..60, 100..101]));
    assert!(m.sources().unwrap().iter().all(|s| !s.tokens.contains(&40)));
    assert_eq!(m.forget("a").unwrap(), 31);
}

#[test]
fn a_session_reads_on_around_damaged_token_ids_and_sources() {
    let model = model(vec![]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.lmem");
    let g = model.memory_geometry();
    let row = (g.head_count_kv * g.key_length) as usize;
    let mut m = Memory::create(&path, g.clone(), model.fingerprint().clone()).unwrap();
    let mut rng = tiny::Rng(5);
    // More blocks than are looked at one by one.
    for part in 0..5 {
        let rows: Vec<f32> = (0..4096 * row).map(|_| rng.normal()).collect();
        let layers = vec![LayerKv { keys: &rows, values: &rows }; g.layers.len()];
        let label = format!("part {part}");
        m.append(&ids(4096, 10 + part), Some(Source { label: &label, text: 0..4096 }), &layers).unwrap();
        m.commit().unwrap();
    }
    assert!(m.blocks() > 512);
    drop(m);
    let ask = || {
        let memory = shared(Memory::open_read_only(&path, None).unwrap());
        let mut s = session(&model);
        s.attach_memory(memory.clone()).unwrap();
        s.prefill(&ids(4096, 13)[1000..1030], &mut quiet()).unwrap();
        (memory, s)
    };
    assert!(ask().1.passages().unwrap().iter().all(|p| p.source.is_some()));
    spoil_bytes(&path, &as_stored(&ids(4096, 11)[..8]));
    spoil_bytes(&path, b"part 2");
    let (memory, s) = ask();
    let passages = s.passages().unwrap();
    let labelled = passages.iter().filter(|p| p.source.is_some()).count();
    let of_two = passages.iter().filter(|p| (2 * 4096..3 * 4096).contains(&p.first_token)).count();
    assert_eq!(labelled, passages.len() - of_two, "the others keep their labels: {passages:?}");
    assert!(labelled > 0 && s.logits().unwrap().iter().all(|x| x.is_finite()));
    assert_eq!(memory.read().unwrap().tokens_and_gaps(0..5 * 4096).unwrap().1, [4096..2 * 4096], "who wants the ids is told of the damage");
    assert_eq!((memory.read().unwrap().stats().damaged_sections, memory.read().unwrap().stats().dropped_blocks), (2, 0));
    drop(s);
    // An extent besides: what can be brought back is, around what cannot.
    let (disk, log) = (Disk::default(), Disk::default());
    let m = Memory::create_on(disk.storage(), g, model.fingerprint().clone()).unwrap();
    let memory = shared(m.with_log_on(log.storage()));
    let mut s = session(&model);
    for (label, seed) in [("one", 1), ("two", 2), ("three", 3)] {
        s.remember(&memory, &ids(300, seed), Some(label), &mut quiet()).unwrap();
    }
    let mut bytes = disk.bytes();
    let place = |bytes: &[u8], what: &[u8]| (0..bytes.len()).find(|at| bytes[*at..].starts_with(what)).unwrap();
    let keys = |block| memory.read().unwrap().keys(1, 0, block).unwrap().bytes.to_vec();
    for what in [&as_stored(&ids(300, 1)[..8])[..], b"two", &keys(2), &keys(12), &keys(22)] {
        let at = place(&bytes, what);
        bytes[at] ^= 1;
    }
    drop(memory);
    let memory = shared(Memory::open_on(Disk::with(bytes).storage(), None, Access::Write).unwrap());
    let done = s.repair(&memory, &mut quiet()).unwrap();
    assert_eq!((done.extents, done.lost.len()), (1, 4), "{done:?}");
}

#[test]
fn a_wound_back_reader_still_knows_its_sources() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("library.lmem");
    let mut m = library(&path, Codec::F16);
    assert_eq!(m.forget("c").unwrap(), 13);
    append(&mut m, &[500, 501], Some("d"));
    m.commit().unwrap();
    let mut reader = Memory::open_read_only(&path, None).unwrap();
    for (tokens, labels) in [(103, 6), (101, 5), (60, 3), (30, 2), (0, 0)] {
        reader.rewind(tokens).unwrap();
        assert_eq!((reader.len(), reader.sources().unwrap().len(), reader.stats().damaged_sections), (tokens, labels, 0));
        assert!(reader.verify(|_, _| true).unwrap().is_empty());
        let all: Vec<u32> = ids_of(&[0..47, 60..101, 500..502]);
        let left = all.iter().filter(|id| **id < 500 && u64::from(**id) < tokens || **id >= 500 && tokens == 103).count();
        assert_eq!(readable(&reader).0, all[..left]);
    }
    assert!(reader.refresh().unwrap());
    assert_eq!((reader.len(), readable(&reader).0), (103, readable(&m).0));
}

#[test]
fn indices_and_tables_of_checksums_heal_from_the_keys() {
    let (disk, clean) = (Disk::default(), Disk::default());
    for d in [&disk, &clean] {
        let mut m = Memory::create_on(d.storage(), geometry(Codec::K4V4), fingerprint()).unwrap();
        append(&mut m, &ids_of(&[0..29]), None);
        m.commit().unwrap();
    }
    let good = disk.bytes();
    // Sections stand between the header and the first extent, 64 bytes apart at least.
    let mut healed = 0;
    for at in (8192 + 4096..8192 + 8192).step_by(61) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        let spoilt = Disk::with(bad);
        let mut m = Memory::open_on(spoilt.storage(), None, Access::Write).unwrap();
        let damages = m.verify(|_, _| true).unwrap();
        let n = m.heal_sections().unwrap();
        assert!(n <= damages.len());
        healed += n;
        assert_eq!(m.verify(|_, _| true).unwrap().is_empty(), n == damages.len());
        assert!(n == 0 || spoilt.bytes() == good);
    }
    assert!(healed > 10, "{healed}");
}

#[test]
fn a_section_that_cannot_be_healed_keeps_no_other_from_it() {
    let disk = Disk::default();
    let mut m = Memory::create_on(disk.storage(), geometry(Codec::K4V4), fingerprint()).unwrap();
    append(&mut m, &ids_of(&[0..29]), None);
    m.commit().unwrap();
    let good = disk.bytes();
    let heal = |spoilt: &[usize]| {
        let mut bytes = good.clone();
        spoilt.iter().for_each(|at| bytes[*at] ^= 4);
        Memory::open_on(Disk::with(bytes).storage(), None, Access::Write).unwrap().heal_sections().unwrap()
    };
    let sections: Vec<usize> = (8192 + 4096..8192 + 8192).step_by(61).filter(|at| heal(&[*at]) == 1).collect();
    let (first, last) = (sections[0], sections[sections.len() - 1]);
    assert_eq!(heal(&[first, last]), 2, "both at once, the index and the table of checksums");
    // With a damaged extent the table cannot be made again; the index can, if the damage is in the values.
    let extents = (good.len() - 3 * 4096..good.len() - 4096).step_by(97);
    let left: Vec<usize> = extents.map(|at| heal(&[first, last, at])).collect();
    assert!(left.contains(&1), "{left:?}");
}

fn model(memory_layers: Vec<u32>) -> Arc<Model> {
    let options = TinyOptions { n_layer: 3, memory_layers, ..TinyOptions::default() };
    Model::open_bytes(tiny::llama(options), &ModelOptions::default()).unwrap()
}

fn session(model: &Arc<Model>) -> Session {
    let options = SessionOptions { threads: 2, batch: 16, sampler: SamplerOptions::greedy(), ..SessionOptions::default() };
    Session::new(model.clone(), options).unwrap()
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    tiny::ids(n, tiny::VOCAB_MIN, seed)
}

fn quiet() -> impl FnMut(usize, usize) -> ControlFlow<()> {
    |_, _| Continue(())
}

fn shared(memory: Memory) -> SharedMemory {
    Arc::new(RwLock::new(memory))
}

#[test]
fn a_session_reads_on_around_damage_and_says_so_and_repair_brings_it_back() {
    for codec in [Codec::F16, Codec::F32] {
        let model = model(vec![]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.lmem");
        let g = Geometry { codec, ..model.memory_geometry() };
        let memory = shared(Memory::create(&path, g, model.fingerprint().clone()).unwrap());
        let mut s = session(&model);
        for (label, seed) in [("one", 1), ("two", 2)] {
            s.remember(&memory, &ids(300, seed), Some(label), &mut quiet()).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        let ask = |memory: &SharedMemory| {
            let mut s = session(&model);
            s.attach_memory(memory.clone()).unwrap();
            s.prefill(&ids(300, 2)[100..130], &mut quiet()).unwrap();
            (s.logits().unwrap().to_vec(), s.passages().unwrap()[0].first_token)
        };
        let (expected, best) = ask(&memory);
        let block = (0..).find(|b| memory.read().unwrap().block(*b).unwrap().first_token == best).unwrap();
        spoil(&path, &memory.read().unwrap(), 1, block);
        drop(memory);
        let memory = shared(Memory::open(&path, None).unwrap());
        let (got, found) = ask(&memory);
        assert!(found != best && got != expected && got.iter().all(|x| x.is_finite()));
        assert_eq!(memory.read().unwrap().stats().dropped_blocks, 1);
        // The same bits as before, computed from the document's tokens.
        let done = s.repair(&memory, &mut quiet()).unwrap();
        assert_eq!((done.sections, done.extents, done.lost.len()), (0, 1, 0), "{codec}");
        assert!(std::fs::read(&path).unwrap()[8192..] == whole[8192..]);
        assert_eq!(memory.read().unwrap().stats().dropped_blocks, 0);
        drop(memory);
        assert!(ask(&shared(Memory::open(&path, None).unwrap())) == (expected, best));
    }
}

#[test]
fn forgotten_documents_reach_no_model() {
    for layers in [vec![], vec![0, 2]] {
        let model = model(layers);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.lmem");
        let memory = shared(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap());
        let only = shared(Memory::in_ram(model.memory_geometry(), model.fingerprint().clone()).unwrap());
        let mut s = session(&model);
        s.remember(&memory, &ids(250, 1), Some("kept"), &mut quiet()).unwrap();
        s.remember(&only, &ids(250, 1), Some("kept"), &mut quiet()).unwrap();
        s.remember(&memory, &ids(300, 2), Some("secret"), &mut quiet()).unwrap();
        let ask = |memory: &SharedMemory| {
            let mut s = session(&model);
            s.attach_memory(memory.clone()).unwrap();
            s.prefill(&ids(300, 2)[100..130], &mut quiet()).unwrap();
            s.logits().unwrap().to_vec()
        };
        assert!(ask(&memory) != ask(&only));
        assert_eq!(memory.write().unwrap().forget("secret").unwrap(), 300);
        let (forgotten, without) = (ask(&memory), ask(&only));
        assert!(common::max_abs_diff(&forgotten, &without) < 1e-4, "as if it had never been read");
    }
}

#[test]
fn a_file_cut_under_a_session_is_an_error_not_a_signal() {
    let model = model(vec![0, 2]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.lmem");
    let memory = shared(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let mut s = session(&model);
    s.remember(&memory, &ids(300, 1), None, &mut quiet()).unwrap();
    s.attach_memory(memory.clone()).unwrap();
    s.prefill(&ids(20, 2), &mut quiet()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
    // All of it has been mapped, checked and read before.
    let e = s.prefill(&ids(20, 3), &mut quiet()).expect_err("cut short");
    assert!(matches!(e, Error::Corrupt { .. }), "{e}");
    assert_eq!((s.len(), memory.read().unwrap().stats().dropped_blocks), (20, 0), "no block is to blame");
}

/// A file that is cut short as soon as somebody has asked how long it is, once it is told to be.
#[cfg(unix)]
struct CutAfterTheLook {
    file: FileStorage,
    path: std::path::PathBuf,
    armed: Arc<std::sync::atomic::AtomicBool>,
}

#[cfg(unix)]
impl Storage for CutAfterTheLook {
    fn len(&self) -> std::io::Result<u64> {
        let len = self.file.len()?;
        if self.armed.swap(false, std::sync::atomic::Ordering::SeqCst) {
            std::fs::OpenOptions::new().write(true).open(&self.path)?.set_len(8192)?;
        }
        Ok(len)
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_all_at(buf, offset)
    }
    fn sync(&mut self) -> std::io::Result<()> {
        self.file.sync()
    }
    fn map(&self, offset: u64, len: usize) -> std::io::Result<Map> {
        self.file.map(offset, len)
    }
}

#[cfg(unix)]
#[test]
fn a_file_cut_in_the_middle_of_a_pass_is_an_error_not_a_signal() {
    let model = model(vec![0, 2]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.lmem");
    let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let storage = CutAfterTheLook { file: FileStorage::create(&path).unwrap(), path, armed: armed.clone() };
    let memory = shared(Memory::create_on(Box::new(storage), model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let mut s = session(&model);
    s.remember(&memory, &ids(300, 1), None, &mut quiet()).unwrap();
    memory.write().unwrap().commit().unwrap();
    s.attach_memory(memory.clone()).unwrap();
    let kept = s.prefill(&ids(20, 2), &mut quiet()).map(|_| s.len()).unwrap();
    armed.store(true, std::sync::atomic::Ordering::SeqCst);
    let e = s.prefill(&ids(20, 3), &mut quiet()).expect_err("cut short while it is read");
    assert!(matches!(e, Error::Corrupt { .. }) && e.to_string().contains("truncated"), "{e}");
    assert_eq!((s.len(), armed.load(std::sync::atomic::Ordering::SeqCst)), (kept, false));
    // The session itself is as it was, and lives on without that memory.
    s.detach_memories();
    s.prefill(&ids(20, 3), &mut quiet()).unwrap();
    assert_eq!(s.len(), kept + 20);
}

/// Reads a document into a memory on disks and stops as a crash would, after `until` tokens; gives the disks.
fn interrupted(model: &Arc<Model>, document: &[u32], until: usize) -> (Disk, Disk) {
    let (disk, log) = (Disk::default(), Disk::default());
    let m = Memory::create_on(disk.storage(), model.memory_geometry(), model.fingerprint().clone()).unwrap();
    let memory = shared(m.with_log_on(log.storage()));
    let mut s = session(model);
    s.remember(&memory, &ids(70, 9), Some("before"), &mut quiet()).unwrap();
    let mut crashed = None;
    let _ = s.remember(&memory, document, Some("book"), &mut |done, _| {
        if done >= until {
            // What a commit in between would have done.
            crashed = Some((Disk::with(disk.bytes()), Disk::with(log.bytes())));
            return Break(());
        }
        memory.write().unwrap().commit().unwrap();
        Continue(())
    });
    crashed.unwrap()
}

#[test]
fn a_document_that_a_crash_interrupted_is_resumed_to_its_last_token() {
    for layers in [vec![], vec![0, 2]] {
        let model = model(layers);
        let document = ids(900, 4);
        let fresh = shared(Memory::in_ram(model.memory_geometry(), model.fingerprint().clone()).unwrap());
        let mut s = session(&model);
        for until in [1, 200, 500, 899] {
            let (disk, log) = interrupted(&model, &document, until);
            let m = Memory::open_on(disk.storage(), None, Access::Write).unwrap().with_log_on(log.storage());
            let stored = m.len() - 70;
            let unfinished = m.unfinished().unwrap().expect("it was acknowledged");
            assert_eq!((&unfinished.tokens, unfinished.label.as_deref(), unfinished.first_token), (&document, Some("book"), 70));
            assert!(until < 300 || stored > 0, "{stored} of {until}");
            let memory = shared(m);
            let mut first = None;
            let resumed = s.resume(&memory, &mut |done, total| {
                assert_eq!(total, 900);
                first.get_or_insert(done);
                Continue(())
            });
            assert!(resumed.unwrap());
            assert!(first.unwrap() <= stored as usize + 16, "it goes on where it stopped");
            let m = memory.read().unwrap();
            assert_eq!((m.len(), m.committed_len()), (970, 970));
            assert_eq!(m.tokens(70..970).unwrap(), document);
            let spans: Vec<_> = m.sources().unwrap().into_iter().filter(|s| s.label == "book").collect();
            assert_eq!((spans[0].tokens.start, spans.last().unwrap().tokens.end, spans[0].text.start), (70, 970, 0));
            assert!(spans.windows(2).all(|w| w[0].tokens.end == w[1].tokens.start && w[0].text.end == w[1].text.start));
            assert!(m.unfinished().unwrap().is_none());
            drop(m);
            assert!(!s.resume(&memory, &mut quiet()).unwrap(), "there is nothing more");
        }
        drop(fresh);
    }
}

/// Keys and values of tokens `from..`, by token, as they are stored.
fn rows_by_token(m: &Memory, from: u64) -> Vec<Vec<f32>> {
    let g = m.geometry();
    let mut out = Vec::new();
    for block in (0..m.blocks()).filter(|b| m.block(*b).unwrap().first_token >= from) {
        let len = m.block(block).unwrap().len;
        let mut tokens = vec![Vec::new(); len];
        for slot in 0..g.layers.len() {
            for (side, length) in [(Side::Keys, g.key_length as usize), (Side::Values, g.value_length as usize)] {
                for head in 0..g.head_count_kv as usize {
                    let mut rows = vec![0.0; len * length];
                    m.rows(side, slot, head, block).unwrap().decode(&mut rows);
                    tokens.iter_mut().zip(rows.chunks_exact(length)).for_each(|(token, row)| token.extend_from_slice(row));
                }
            }
        }
        out.extend(tokens);
    }
    out
}

#[test]
fn what_is_resumed_near_its_beginning_is_what_it_would_have_been() {
    let model = model(vec![]);
    let document = ids(300, 4);
    let whole = shared(Memory::in_ram(model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let mut s = session(&model);
    s.remember(&whole, &document, Some("book"), &mut quiet()).unwrap();
    let whole = rows_by_token(&whole.read().unwrap(), 0);
    // Of a window of 128 tokens 32 leave at once: so many, or 64, are stored when it stops.
    for until in [150, 200] {
        let (disk, log) = interrupted(&model, &document, until);
        let m = Memory::open_on(disk.storage(), None, Access::Write).unwrap().with_log_on(log.storage());
        let stored = m.len() - 70;
        assert!((1..=96).contains(&stored), "{stored}");
        let memory = shared(m);
        assert!(s.resume(&memory, &mut quiet()).unwrap());
        assert!(rows_by_token(&memory.read().unwrap(), 70) == whole, "resumed with {stored} tokens there");
    }
}

#[test]
fn a_break_with_the_last_report_comes_too_late() {
    let model = model(vec![]);
    let memory = shared(Memory::in_ram(model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let mut at_the_end = |done: usize, total: usize| if done == total { Break(()) } else { Continue(()) };
    let mut s = session(&model);
    s.remember(&memory, &ids(100, 1), None, &mut at_the_end).unwrap();
    assert_eq!(memory.read().unwrap().len(), 100);
    s.prefill(&ids(50, 1), &mut at_the_end).unwrap();
    assert_eq!(s.len(), 50);
}

#[test]
fn an_ended_session_computes_nothing_more() {
    let model = model(vec![]);
    let mut s = session(&model);
    s.prefill(&ids(20, 1), &mut quiet()).unwrap();
    s.cancel_handle().end();
    for _ in 0..2 {
        assert!(matches!(s.prefill(&ids(20, 1), &mut quiet()), Err(Error::Cancelled)));
    }
    assert_eq!(s.len(), 20);
}

#[cfg(unix)]
#[test]
fn an_empty_file_that_a_killed_process_left_is_taken_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.lmem");
    std::fs::write(&path, b"").unwrap();
    let mut m = Memory::create(&path, geometry(Codec::F16), fingerprint()).unwrap();
    append(&mut m, &ids_of(&[0..29]), None);
    m.commit().unwrap();
    assert!(Memory::create(&path, geometry(Codec::F16), fingerprint()).is_err());
    drop(m);
    assert!(Memory::create(&path, geometry(Codec::F16), fingerprint()).is_err());
    assert_eq!(Memory::open(&path, None).unwrap().len(), 29);
    let other = dir.path().join("letter.txt");
    std::fs::write(&other, b"Dear").unwrap();
    assert!(Memory::create(&other, geometry(Codec::F16), fingerprint()).is_err());
    assert_eq!(std::fs::read(&other).unwrap(), b"Dear");
}

/// Space that a document did not need goes back with its end, where the file system reserves at all.
#[cfg(target_os = "linux")]
#[test]
fn a_document_that_was_given_up_keeps_no_space() {
    use std::os::unix::fs::MetadataExt;
    let model = model(vec![]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.lmem");
    let memory = shared(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let (before, mut during) = (allocated(), 0);
    let stopped = session(&model).remember(&memory, &ids(20_000, 1), None, &mut |_, _| {
        during = allocated();
        Break(())
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let (after, len) = (allocated(), std::fs::metadata(&path).unwrap().len());
    assert!(after <= len.next_multiple_of(4096) + (64 << 10), "{after} bytes allocated of {len}; {before} before, {during} meanwhile");
}

#[test]
fn a_power_cut_at_any_moment_of_reading_keeps_every_acknowledged_token() {
    let model = model(vec![]);
    let document = ids(200, 5);
    let (disk, log) = (Disk::default(), Disk::default());
    let m = Memory::create_on(disk.storage(), model.memory_geometry(), model.fingerprint().clone()).unwrap();
    let memory = shared(m.with_log_on(log.storage()));
    let acknowledged = |disk: &Disk, log: &Disk| (disk.state().log.len(), log.state().log.len());
    let start = acknowledged(&disk, &log);
    let mut begun = None;
    session(&model)
        .remember(&memory, &document, Some("book"), &mut |_, _| {
            begun.get_or_insert_with(|| acknowledged(&disk, &log));
            memory.write().unwrap().commit().unwrap();
            Continue(())
        })
        .unwrap();
    let (begun, mut rng, mut unfinished) = (begun.unwrap(), Rng(8), 0);
    assert!(begun.1 > start.1, "the log was written before the first token");
    let (writes, logged) = (disk.state().log.clone(), log.state().log.clone());
    for cut in start.0..=writes.len() {
        let mut moment = Moment::default();
        writes[..cut].iter().for_each(|op| moment.apply(op));
        for ops in [begun.1, logged.len()].into_iter().filter(|ops| *ops == begun.1 || cut == writes.len()) {
            let mut tokens = Moment::default();
            logged[..ops].iter().for_each(|op| tokens.apply(op));
            for _ in 0..4 {
                let fates = [Fate::Old, Fate::New, Fate::Torn];
                let image = |moment: &Moment, rng: &mut Rng| {
                    let mut choice = Rng(rng.next());
                    moment.image(|_| fates[choice.below(3)], true, 0)
                };
                let (image, log_image) = (image(&moment, &mut rng), image(&tokens, &mut rng));
                let m = Memory::open_on(Disk::with(image).storage(), None, Access::Write).unwrap();
                let m = m.with_log_on(Disk::with(log_image).storage());
                match m.unfinished().unwrap() {
                    Some(rest) => {
                        assert_eq!(rest.tokens, document);
                        unfinished += 1;
                    }
                    None => assert_eq!(m.tokens(0..m.len()).unwrap(), document, "{cut} of {}", writes.len()),
                }
            }
        }
    }
    assert!(unfinished > 20, "{unfinished}");
}

#[test]
fn a_full_disk_interrupts_a_document_and_its_handle_goes_on_when_there_is_room() {
    for layers in [vec![], vec![0, 2]] {
        let model = model(layers);
        let document = ids(400, 4);
        let (disk, log) = (Disk::default(), Disk::default());
        let m = Memory::create_on(disk.storage(), model.memory_geometry(), model.fingerprint().clone()).unwrap();
        let memory = shared(m.with_log_on(log.storage()));
        let mut s = session(&model);
        s.remember(&memory, &ids(70, 9), Some("before"), &mut quiet()).unwrap();
        let full = s.remember(&memory, &document, Some("book"), &mut |done, _| {
            if (200..216).contains(&done) {
                memory.write().unwrap().commit().unwrap();
            }
            if done == 400 {
                let now = disk.state().calls;
                disk.state().fail = Some((now, u64::MAX, disk::Failure::NoSpace));
            }
            Continue(())
        });
        assert!(matches!(full, Err(Error::Io { .. })), "{full:?}");
        let (committed, pending) = (memory.read().unwrap().committed_len(), memory.read().unwrap().pending_len());
        assert!(committed > 70 && pending > 0 && committed + pending == 470, "{committed} {pending}");
        assert!(s.resume(&memory, &mut quiet()).is_err(), "there is still no room");
        disk.state().fail = None;
        // All that was computed is in RAM yet, and is not computed, nor appended, a second time.
        s.resume(&memory, &mut |_, _| panic!("it is all there")).unwrap();
        assert_eq!((memory.read().unwrap().len(), memory.read().unwrap().pending_len()), (470, 0));
        assert_eq!(memory.read().unwrap().tokens(70..470).unwrap(), document);
        // The next documents are begun as ever: logged, and in blocks of their own.
        let mut logged = false;
        s.remember(&memory, &ids(40, 6), Some("next"), &mut |_, _| {
            logged |= memory.read().unwrap().unfinished().unwrap().is_some();
            Continue(())
        })
        .unwrap();
        s.remember(&memory, &ids(40, 7), Some("last"), &mut quiet()).unwrap();
        let mut m = memory.write().unwrap();
        assert!(logged && m.committed_len() == 550);
        assert_eq!(m.forget("next").unwrap(), 40);
        let left: Vec<u32> = [&ids(70, 9)[..], &document, &ids(40, 7)].concat();
        let read = (0..m.blocks()).filter(|b| m.is_readable(*b)).flat_map(|b| {
            let span = m.block(b).unwrap();
            m.tokens(span.first_token..span.first_token + span.len as u64).unwrap()
        });
        assert_eq!(read.collect::<Vec<_>>(), left);
    }
}

#[test]
fn what_a_full_disk_stopped_halfway_is_resumed_once() {
    let model = model(vec![]);
    let document = ids(6000, 4);
    let (disk, log) = (Disk::default(), Disk::default());
    let m = Memory::create_on(disk.storage(), model.memory_geometry(), model.fingerprint().clone()).unwrap();
    let memory = shared(m.with_log_on(log.storage()));
    let mut s = session(&model);
    let full = s.remember(&memory, &document, Some("book"), &mut |done, _| {
        if done == 160 {
            memory.write().unwrap().commit().unwrap();
            let now = disk.state().calls;
            disk.state().fail = Some((now, u64::MAX, disk::Failure::NoSpace));
        }
        Continue(())
    });
    assert!(matches!(full, Err(Error::Io { .. })), "{full:?}");
    let len = memory.read().unwrap().len();
    assert!(len < 6000 && memory.read().unwrap().pending_len() > 1000, "the commit after 4096 tokens failed, {len} were there");
    disk.state().fail = None;
    assert!(s.resume(&memory, &mut quiet()).unwrap());
    assert_eq!(memory.read().unwrap().tokens(0..memory.read().unwrap().len()).unwrap(), document);
    assert!(!s.resume(&memory, &mut quiet()).unwrap());
}

#[test]
fn a_document_that_is_being_read_cannot_be_resumed() {
    let model = model(vec![]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.lmem");
    let memory = shared(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let (mut s, mut other) = (session(&model), session(&model));
    let mut refused = 0;
    s.remember(&memory, &ids(400, 1), Some("a"), &mut |_, _| {
        refused += usize::from(matches!(other.resume(&memory, &mut quiet()), Err(Error::Busy(_))));
        Continue(())
    })
    .unwrap();
    assert!(refused > 10);
    assert_eq!(memory.read().unwrap().tokens(0..memory.read().unwrap().len()).unwrap(), ids(400, 1));
    assert!(!other.resume(&memory, &mut quiet()).unwrap());
}

#[test]
fn giving_up_a_document_is_no_crash() {
    let model = model(vec![]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.lmem");
    let memory = shared(Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap());
    let mut s = session(&model);
    let log = dir.path().join("notes.lmem.log");
    let mut seen = false;
    let stopped = s.remember(&memory, &ids(400, 1), Some("a"), &mut |done, _| {
        seen |= log.exists();
        if done > 100 { Break(()) } else { Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)) && seen && !log.exists());
    assert!(!s.resume(&memory, &mut quiet()).unwrap());
    let m = memory.read().unwrap();
    assert!(m.len() > 100 && m.committed_len() == m.len());
}

/// The shape of SmolLM2-135M.
fn smollm2(codec: Codec) -> Geometry {
    Geometry { layers: (0..30).collect(), head_count_kv: 3, key_length: 64, value_length: 64, block_tokens: 32, codec, sketched: vec![17] }
}

#[test]
fn little_more_is_written_than_is_kept() {
    // Commits as a session makes them.
    for (codec, most) in [(Codec::F16, 1.01), (Codec::K8V4, 1.04), (Codec::K4V4, 1.05)] {
        let disk = Disk::default();
        let log = Disk::default();
        let mut m = Memory::create_on(disk.storage(), smollm2(codec), fingerprint()).unwrap().with_log_on(log.storage());
        let tokens = 4096;
        m.begin(Some("book"), &vec![1; tokens]).unwrap();
        let rows = vec![0.5; 512 * 192];
        let layers = vec![LayerKv { keys: &rows, values: &rows }; 30];
        for _ in 0..tokens / 512 {
            m.append(&[1; 512], Some(Source { label: "book", text: 0..0 }), &layers).unwrap();
        }
        m.finish().unwrap();
        let written: usize =
            [&disk, &log].iter().flat_map(|d| d.state().log.clone()).map(|op| if let Op::Write(_, b) = op { b.len() } else { 0 }).sum();
        let kept = tokens * 30 * 3 * (m.geometry().row_bytes(Side::Keys) + m.geometry().row_bytes(Side::Values));
        let (to_rows, to_file) = (written as f64 / kept as f64, written as f64 / m.stats().file_bytes as f64);
        println!("{codec}: {to_rows:.4} bytes written for each byte of keys and values, {to_file:.4} for each byte of the file");
        assert!(to_rows < most && to_file < 1.001 && to_rows > 1.0, "{codec}: {to_rows} {to_file}");
    }
}

/// Prints what a durable append costs in the shape of SmolLM2-135M, and how long opening takes: `-- --ignored --nocapture what_it_costs`.
#[test]
#[ignore = "a measurement"]
fn what_it_costs() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = tiny::Rng(1);
    let rows: Vec<f32> = (0..512 * 192).map(|_| rng.normal()).collect();
    let layers = vec![LayerKv { keys: &rows, values: &rows }; 30];
    for codec in [Codec::F16, Codec::K8V4, Codec::K4V4] {
        let path = dir.path().join(codec.name());
        let mut m = Memory::create(&path, smollm2(codec), fingerprint()).unwrap();
        let (mut appending, mut committing, tokens) = (Duration::ZERO, Duration::ZERO, 16384);
        for i in 0..tokens / 512 {
            let start = Instant::now();
            m.append(&[1; 512], Some(Source { label: "book", text: 0..0 }), &layers).unwrap();
            appending += start.elapsed();
            if i % 8 == 7 {
                let start = Instant::now();
                m.commit().unwrap();
                committing += start.elapsed();
            }
        }
        let each = |t: Duration| t.as_secs_f64() * 1e3 / tokens as f64;
        let size = m.stats().file_bytes as f64 / tokens as f64;
        println!("{codec}: {:.4} ms a token to append, {:.4} to commit, {size:.0} bytes a token", each(appending), each(committing));
        drop(m);
        let start = Instant::now();
        drop(Memory::open(&path, None).unwrap());
        println!("{codec}: opened in {:?}", start.elapsed());
    }
    for commits in [1000, 10_000] {
        let disk = Disk::default();
        let small = Geometry { layers: vec![0], head_count_kv: 1, key_length: 32, value_length: 32, ..geometry(Codec::F16) };
        let mut m = Memory::create_on(disk.storage(), small, fingerprint()).unwrap();
        let row = [0.5; 32];
        for _ in 0..commits {
            m.append(&[1], None, &[LayerKv { keys: &row, values: &row }]).unwrap();
            m.commit().unwrap();
        }
        let path = dir.path().join(format!("{commits}.lmem"));
        std::fs::write(&path, disk.bytes()).unwrap();
        let start = Instant::now();
        drop(Memory::open_read_only(&path, None).unwrap());
        println!("{commits} commits: opened in {:?}", start.elapsed());
    }
}
