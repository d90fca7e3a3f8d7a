//! The promise to those who have a memory file: every version that was ever released opens and reads as it was written. The files in
//! `tests/data/memory` were written by the release that they are named after; what they must hold follows from a formula.

use loci::memory::{Codec, Fingerprint, Geometry, LayerKv, Memory, Side, Source, SourceSpan};
use std::path::{Path, PathBuf};

/// Tokens of each commit; blocks are of twenty.
const COMMITS: [u64; 3] = [25, 1, 7];

fn geometry(codec: Codec) -> Geometry {
    Geometry { layers: vec![0, 2], head_count_kv: 1, key_length: 32, value_length: 32, block_tokens: 20, codec }
}

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "golden".into(), hash: std::array::from_fn(|i| 3 * i as u8) }
}

fn token_id(token: u64) -> u32 {
    (token * 2_654_435_761 % 32_000) as u32
}

/// Multiples of 1/8 between -8 and 8: exact in every encoding of floats.
fn number(token: u64, slot: usize, side: Side, d: usize) -> f32 {
    let h = (token * 31 + slot as u64 * 17 + (side == Side::Values) as u64 * 7 + d as u64 * 13) * 2_654_435_761 % 1_000_003;
    (h % 129) as f32 / 8.0 - 8.0
}

fn rows(from: u64, n: u64, slot: usize, side: Side) -> Vec<f32> {
    (from..from + n).flat_map(|t| (0..32).map(move |d| number(t, slot, side, d))).collect()
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/memory").join(name)
}

fn append(m: &mut Memory, n: u64, label: &str) {
    let from = m.len();
    let rows: Vec<_> = (0..2).map(|slot| (rows(from, n, slot, Side::Keys), rows(from, n, slot, Side::Values))).collect();
    let layers: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    let ids: Vec<u32> = (from..from + n).map(token_id).collect();
    m.append(&ids, Some(Source { label, text: from * 4..(from + n) * 4 }), &layers).unwrap();
}

fn check(m: &Memory, codec: Codec) {
    let tokens = COMMITS.iter().sum();
    assert_eq!((m.len(), m.geometry(), m.fingerprint()), (tokens, &geometry(codec), &fingerprint()));
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
                assert_eq!(read, rows(first, len as u64, slot, side), "{side:?} of slot {slot}, block {block}");
            }
            let keys = rows(first, len as u64, slot, Side::Keys);
            let mean = |d: usize| keys.iter().skip(d).step_by(32).map(|x| f64::from(*x)).sum::<f64>() / len as f64;
            for (d, found) in m.mean_keys(slot).unwrap()[block * 32..][..32].iter().enumerate() {
                assert!((mean(d) - f64::from(*found)).abs() < 1e-6);
            }
        }
    }
    assert!(m.verify(|_, _| true).unwrap().is_empty());
}

const VERSION_1: [(&str, Codec); 3] = [("v1-f32.lmem", Codec::F32), ("v1-f16.lmem", Codec::F16), ("v1-bf16.lmem", Codec::Bf16)];

#[test]
fn files_of_version_1_read_as_they_were_written() {
    for (name, codec) in VERSION_1 {
        check(&Memory::open_read_only(&file(name), Some(&fingerprint())).unwrap(), codec);
    }
}

#[test]
fn files_of_version_1_can_be_written_on() {
    for (name, codec) in VERSION_1 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::copy(file(name), &path).unwrap();
        let mut m = Memory::open(&path, None).unwrap();
        check(&m, codec);
        append(&mut m, 3, "later");
        m.commit().unwrap();
        drop(m);
        let m = Memory::open_read_only(&path, None).unwrap();
        assert_eq!(m.len(), 36);
        assert_eq!(m.sources().unwrap()[3].label, "later");
        assert!(m.verify(|_, _| true).unwrap().is_empty());
    }
}

/// Writes the files of the present version. Run once for each release, on purpose: `-- --ignored write_the_files`.
#[test]
#[ignore = "writes tests/data/memory"]
fn write_the_files() {
    for (name, codec) in VERSION_1 {
        let mut m = Memory::create(&file(name), geometry(codec), fingerprint()).unwrap();
        for (i, n) in COMMITS.into_iter().enumerate() {
            append(&mut m, n, if i < 2 { "größe.txt" } else { "other" });
            m.commit().unwrap();
        }
    }
}
