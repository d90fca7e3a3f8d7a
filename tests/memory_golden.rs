//! The promise to those who have a memory file: every form that was ever written opens and reads as it was written. The files in
//! `tests/data/memory` are of the version that they are named after, with mean keys as floats or (`codes`) as they are searched, and
//! (`sketches`) with sketches of the keys, (`sectors`) with blocks padded to sectors, (`searched`) with sketches of some layers as they are searched;
//! what they must hold follows from a formula.

use loci::Error;
use loci::memory::{Codec, CompactOptions, Fingerprint, Geometry, LayerKv, Memory, Side, SketchRoom, Source, SourceSpan};
use std::path::{Path, PathBuf};

/// Tokens of each commit; blocks are of twenty.
const COMMITS: [u64; 3] = [25, 1, 7];

fn geometry(codec: Codec, features: u8) -> Geometry {
    let sketched = match (features & SKETCHES, features & SEARCHED) {
        (0, 0) => Vec::new(),
        (_, 0) => vec![0, 2],
        _ => vec![2],
    };
    Geometry { layers: vec![0, 2], head_count_kv: 1, key_length: 32, value_length: 32, block_tokens: 20, codec, sketched }
}

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "golden".into(), hash: std::array::from_fn(|i| 3 * i as u8) }
}

fn token_id(token: u64) -> u32 {
    (token * 2_654_435_761 % 32_000) as u32
}

fn hash(token: u64, slot: usize, side: Side, d: usize) -> u64 {
    (token * 31 + slot as u64 * 17 + (side == Side::Values) as u64 * 7 + d as u64 * 13) * 2_654_435_761 % 1_000_003
}

/// Bits of an element of a codec that quantises: 8 or 4.
fn bits(codec: Codec, side: Side) -> Option<u32> {
    match (codec, side) {
        (Codec::K8V4, Side::Keys) => Some(8),
        (Codec::K8V4 | Codec::K4V4, _) => Some(4),
        _ => None,
    }
}

/// A row that the codec holds as it is. Floats: multiples of 1/8 between -8 and 8. 8 bits: multiples of 1/8 as well, up to 127 of them, and
/// one that is 127. 4 bits: what the codes -8 to 7, one of them -8, are turned back to: Sylvester's matrix of 32 over its root.
fn row(codec: Codec, token: u64, slot: usize, side: Side) -> Vec<f32> {
    let code = |d: usize, from: i64, to: i64| from + (hash(token, slot, side, d) % (to - from + 1) as u64) as i64;
    let extreme = hash(token, slot, side, 99) as usize % 32;
    match bits(codec, side) {
        None => (0..32).map(|d| code(d, -64, 64) as f32 / 8.0).collect(),
        Some(8) => (0..32).map(|d| if d == extreme { 127 } else { code(d, -127, 127) } as f32 / 8.0).collect(),
        Some(_) => {
            let codes: Vec<f64> = (0..32).map(|d| if d == extreme { -8 } else { code(d, -8, 7) } as f64 / 4.0).collect();
            let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            (0..32).map(|i| (codes.iter().enumerate().map(|(j, c)| sign(i, j) * c).sum::<f64>() / 32f64.sqrt()) as f32).collect()
        }
    }
}

fn rows(codec: Codec, from: u64, n: u64, slot: usize, side: Side) -> Vec<f32> {
    (from..from + n).flat_map(|t| row(codec, t, slot, side)).collect()
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/memory").join(name)
}

fn append(m: &mut Memory, n: u64, label: &str) {
    let from = m.len();
    let codec = m.geometry().codec;
    let rows: Vec<_> = (0..2).map(|slot| (rows(codec, from, n, slot, Side::Keys), rows(codec, from, n, slot, Side::Values))).collect();
    let layers: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    let ids: Vec<u32> = (from..from + n).map(token_id).collect();
    m.append(&ids, Some(Source { label, text: from * 4..(from + n) * 4 }), &layers).unwrap();
}

fn near(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= tolerance, "{what}, element {i}: {found}, not {expected}");
    }
}

/// The sketch of a key, from the definition: how it differs from the mean, rotated; four levels of a step.
fn check_sketch(tile: &[u8], slot: usize, key: &[f32], mean: &[f32], what: &str) {
    let residual: Vec<f64> = key.iter().zip(mean).map(|(k, m)| f64::from(*k) - f64::from(*m)).collect();
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let rotated: Vec<f64> = (0..32).map(|i| residual.iter().enumerate().map(|(j, x)| sign(i, j) * x).sum::<f64>() / 32f64.sqrt()).collect();
    let squares: f64 = rotated.iter().map(|x| x * x).sum();
    let deviation = 0.9957 * (squares / 32.0).sqrt();
    let mut along = 0.0;
    for (i, x) in rotated.iter().enumerate() {
        let code = tile[i / 16 * 64 + 4 * slot + i % 4] >> (i % 16 / 4 * 2) & 3;
        let place = (x / deviation + 2.0).clamp(0.0, 3.999);
        // Rounding may decide on the border of two levels.
        let near = (place - place.round()).abs() < 1e-3 && (place.round() as u8).abs_diff(code) <= 1;
        assert!(place as u8 == code || near, "{what}, element {i}: code {code}, at {place}");
        along += x * (f64::from(code) - 1.5);
    }
    let step = half::f16::from_le_bytes([tile[128 + 2 * slot], tile[129 + 2 * slot]]);
    assert!((f64::from(step) - squares / along).abs() <= 1e-3 * squares / along, "{what}: step {step}, not {}", squares / along);
}

fn check(m: &Memory, codec: Codec, features: u8) {
    let codes = features & CODES != 0;
    let tokens = COMMITS.iter().sum();
    assert_eq!((m.len(), m.geometry(), m.fingerprint()), (tokens, &geometry(codec, features), &fingerprint()));
    assert_eq!(m.tokens(0..tokens).unwrap(), (0..tokens).map(token_id).collect::<Vec<_>>());
    let span =
        |label: &str, tokens: std::ops::Range<u64>| SourceSpan { label: label.into(), text: tokens.start * 4..tokens.end * 4, tokens };
    assert_eq!(m.sources().unwrap(), [span("größe.txt", 0..25), span("größe.txt", 25..26), span("other", 26..33)]);
    let lens: Vec<_> = (0..m.blocks()).map(|b| (m.block(b).unwrap().first_token, m.block(b).unwrap().len)).collect();
    assert_eq!(lens, [(0, 20), (20, 5), (25, 1), (26, 7)]);
    for (block, (first, len)) in lens.into_iter().enumerate() {
        for slot in 0..2 {
            for side in [Side::Keys, Side::Values] {
                let mut read = vec![0.0; len * 32];
                m.rows(side, slot, 0, block).unwrap().decode(&mut read);
                let expected: Vec<f64> = rows(codec, first, len as u64, slot, side).into_iter().map(f64::from).collect();
                // Turning back rounds.
                let tolerance = if bits(codec, side) == Some(4) { 1e-5 } else { 0.0 };
                near(&read, &expected, tolerance, &format!("{side:?} of slot {slot}, block {block}"));
            }
            let keys = rows(codec, first, len as u64, slot, Side::Keys);
            let mean = |d: usize| keys.iter().skip(d).step_by(32).map(|x| f64::from(*x)).sum::<f64>() / len as f64;
            let means: Vec<f64> = (0..32).map(mean).collect();
            // Codes of 8 bits, to the nearest.
            let step = means.iter().fold(0.0_f64, |a, x| a.max(x.abs())) / 127.0;
            if features & SEARCHED != 0 && slot == 0 {
                assert!(matches!(m.mean_keys(slot), Err(Error::Argument { .. })));
                continue;
            }
            let found = &m.mean_keys(slot).unwrap()[block * 32..][..32];
            near(found, &means, if codes { 0.501 * step + 1e-5 } else { 1e-5 }, &format!("mean of slot {slot}, block {block}"));
            let distance = |key: &[f32]| key.iter().zip(found).map(|(k, m)| f64::from(k - m).powi(2)).sum::<f64>().sqrt();
            let farthest = keys.chunks(32).map(distance).fold(0.0, f64::max);
            near(&m.radii(slot).unwrap()[block..][..1], &[farthest], 1e-4, "radius");
        }
    }
    let mut sketched = 0;
    for slot in 0..2 {
        // What a search reads, in the form that has it.
        let searched: Vec<_> = m.sketched_blocks(slot).collect();
        assert_eq!(searched, if features & SEARCHED != 0 && slot == 1 { vec![0..2, 2..3, 3..4] } else { Vec::new() });
        for (blocks, in_place) in searched.into_iter().zip(m.sketches(slot, 0).unwrap()) {
            let mut room = SketchRoom::default();
            let read = m.read_sketches(slot, 0, blocks.start, &mut room).unwrap().expect("sketches");
            assert_eq!((&read.blocks, read.keys, read.tiles), (&in_place.blocks, in_place.keys, in_place.tiles));
            assert_eq!((read.means, read.means.len()), (in_place.means, 34 * blocks.len()));
        }
        for of_segment in m.sketches(slot, 0).unwrap() {
            for block in of_segment.blocks.clone() {
                let (len, _, tiles) = of_segment.of(block);
                sketched += len;
                let mut keys = vec![0.0; len * 32];
                m.keys(slot, 0, block).unwrap().decode(&mut keys);
                let mean = &m.mean_keys(slot).unwrap()[block * 32..][..32];
                for (i, key) in keys.chunks(32).enumerate() {
                    // A lone key in 8 bits is next to its mean: nothing of note is left of it.
                    if len > 1 {
                        check_sketch(&tiles[i / 16 * 160..], i % 16, key, mean, &format!("sketch of slot {slot}, block {block}, key {i}"));
                    }
                }
            }
        }
    }
    assert_eq!(sketched, m.geometry().sketched.len() * tokens as usize);
    assert!(m.verify(|_, _| true).unwrap().is_empty());
}

/// Incompatible features: mean keys are codes, all keys are sketched, blocks are padded to sectors, keys of some layers are sketched.
const CODES: u8 = 2;
const SKETCHES: u8 = 4;
const SECTORS: u8 = 8;
const SEARCHED: u8 = 16;

/// Name, codec, features.
const VERSION_1: [(&str, Codec, u8); 16] = [
    ("v1-f32.lmem", Codec::F32, 0),
    ("v1-f16.lmem", Codec::F16, 0),
    ("v1-bf16.lmem", Codec::Bf16, 0),
    ("v1-codes-f32.lmem", Codec::F32, CODES),
    ("v1-codes-f16.lmem", Codec::F16, CODES),
    ("v1-codes-k8v4.lmem", Codec::K8V4, CODES),
    ("v1-codes-k4v4.lmem", Codec::K4V4, CODES),
    ("v1-sketches-f16.lmem", Codec::F16, CODES | SKETCHES),
    ("v1-sketches-k4v4.lmem", Codec::K4V4, CODES | SKETCHES),
    ("v1-sectors-f16.lmem", Codec::F16, CODES | SECTORS),
    ("v1-sectors-k8v4.lmem", Codec::K8V4, CODES | SECTORS),
    ("v1-sectors-sketches-f16.lmem", Codec::F16, CODES | SKETCHES | SECTORS),
    ("v1-sectors-sketches-k4v4.lmem", Codec::K4V4, CODES | SKETCHES | SECTORS),
    ("v1-searched-f16.lmem", Codec::F16, CODES | SECTORS | SEARCHED),
    ("v1-searched-k8v4.lmem", Codec::K8V4, CODES | SECTORS | SEARCHED),
    ("v1-searched-k4v4.lmem", Codec::K4V4, CODES | SECTORS | SEARCHED),
];

/// The file's incompatible features, but for records.
fn features(path: &Path) -> u8 {
    std::fs::read(path).unwrap()[32] & !1
}

#[test]
fn files_of_version_1_read_as_they_were_written() {
    for (name, codec, of_file) in VERSION_1 {
        assert_eq!(features(&file(name)), of_file, "{name}");
        check(&Memory::open_read_only(&file(name), Some(&fingerprint())).unwrap(), codec, of_file);
    }
}

#[test]
fn files_of_version_1_can_be_written_on_and_compacted() {
    for (name, codec, of_file) in VERSION_1 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::copy(file(name), &path).unwrap();
        let mut m = Memory::open(&path, None).unwrap();
        check(&m, codec, of_file);
        append(&mut m, 3, "later");
        m.commit().unwrap();
        drop(m);
        let m = Memory::open_read_only(&path, None).unwrap();
        assert_eq!(m.len(), 36);
        assert_eq!(m.sources().unwrap()[3].label, "later");
        assert!(m.verify(|_, _| true).unwrap().is_empty());
        assert_eq!(features(&path), of_file, "the form stays");
        let read = |m: &Memory| -> Vec<f32> {
            let of = |block| {
                let mut out = vec![0.0; m.block(block).unwrap().len * 32];
                m.keys(1, 0, block).unwrap().decode(&mut out);
                out
            };
            (0..m.blocks()).flat_map(of).collect()
        };
        let before = read(&m);
        drop(m);
        Memory::compact(&path, None, CompactOptions::default(), |_, _| true).unwrap();
        let m = Memory::open_read_only(&path, None).unwrap();
        assert_eq!((features(&path), read(&m)), (CODES | SECTORS | SEARCHED, before.clone()), "a new file has the present form");
        assert_eq!(m.geometry(), &geometry(codec, of_file), "and sketches of the layers of which the old one had them");
        assert!(m.verify(|_, _| true).unwrap().is_empty());
        drop(m);
        let sketched = CompactOptions { sketched: Some(vec![0]), ..CompactOptions::default() };
        Memory::compact(&path, None, sketched, |_, _| true).unwrap();
        let m = Memory::open_read_only(&path, None).unwrap();
        assert_eq!((&m.geometry().sketched[..], read(&m)), (&[0][..], before), "or of those that are asked for");
        assert_eq!(m.sketched_blocks(0).map(|blocks| blocks.len()).sum::<usize>(), m.blocks());
        drop(m);
        let none_such = CompactOptions { sketched: Some(vec![1]), ..CompactOptions::default() };
        assert!(matches!(Memory::compact(&path, None, none_such, |_, _| true), Err(Error::Argument { name: "sketched", .. })));
    }
}

/// Writes the files of the present form that are not there. Run once for each, on purpose: `-- --ignored write_the_files`.
#[test]
#[ignore = "writes tests/data/memory"]
fn write_the_files() {
    for (name, codec, features) in VERSION_1.into_iter().filter(|(name, ..)| !file(name).exists()) {
        let mut m = Memory::create(&file(name), geometry(codec, features), fingerprint()).unwrap();
        for (i, n) in COMMITS.into_iter().enumerate() {
            append(&mut m, n, if i < 2 { "größe.txt" } else { "other" });
            m.commit().unwrap();
        }
    }
}
