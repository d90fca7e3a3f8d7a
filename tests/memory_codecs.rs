//! The promise of the quantised codecs of a memory: what they lose is bounded as stated here, what they hold is the same before and
//! after a commit and a restart, and every reader of a memory reads them.

mod common;

use common::tiny::{self, TinyOptions};
use common::{kl, max_abs_diff};
use loci::Error;
use loci::memory::{Codec, Fingerprint, Geometry, LayerKv, Memory, Side};
use loci::model::{Model, ModelOptions};
use loci::sampler::SamplerOptions;
use loci::session::{Session, SessionOptions, SharedMemory};
use loci::threads::Team;
use std::ops::ControlFlow::Continue;
use std::sync::{Arc, RwLock};

const QUANTISED: [Codec; 2] = [Codec::K8V4, Codec::K4V4];

/// Root mean square of the error over that of what was given, at most: rounding to 2^-8 and to 2^-4 of the largest of 32 elements that
/// vary about as normal numbers do.
fn tolerance(codec: Codec, side: Side) -> f64 {
    match (codec, side) {
        (Codec::K8V4, Side::Keys) => 0.015,
        _ => 0.11,
    }
}

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "llama".into(), hash: [3; 32] }
}

fn geometry(codec: Codec) -> Geometry {
    // Blocks that do not fill their tiles, heads of two sizes.
    Geometry { layers: vec![0, 4], head_count_kv: 2, key_length: 96, value_length: 64, block_tokens: 40, codec, sketched: vec![0, 4] }
}

/// About normal numbers, with the outliers that keys have: one element that is always large.
fn rows(rng: &mut tiny::Rng, n: usize, heads: usize, length: usize) -> Vec<f32> {
    (0..n * heads * length).map(|i| rng.normal() * if i % length == 5 { 12.0 } else { 1.0 }).collect()
}

fn decoded(m: &Memory, side: Side, slot: usize) -> Vec<f32> {
    let g = m.geometry();
    let length = if side == Side::Keys { g.key_length } else { g.value_length } as usize;
    let mut out = Vec::new();
    for block in 0..m.blocks() {
        let len = m.block(block).unwrap().len;
        let mut heads = vec![vec![0.0; len * length]; g.head_count_kv as usize];
        for (head, rows) in heads.iter_mut().enumerate() {
            m.rows(side, slot, head, block).unwrap().decode(rows);
        }
        for token in 0..len {
            heads.iter().for_each(|rows| out.extend(&rows[token * length..][..length]));
        }
    }
    out
}

#[test]
fn what_comes_back_is_as_near_as_stated_and_the_same_ever_after() {
    for codec in QUANTISED {
        let g = geometry(codec);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("codes.lmem");
        let mut rng = tiny::Rng(7);
        let given: Vec<(Vec<f32>, Vec<f32>)> = (0..2).map(|_| (rows(&mut rng, 131, 2, 96), rows(&mut rng, 131, 2, 64))).collect();
        let mut m = Memory::create(&path, g.clone(), fingerprint()).unwrap();
        let append = |m: &mut Memory, from: usize, to: usize| {
            let layers: Vec<_> =
                given.iter().map(|(k, v)| LayerKv { keys: &k[from * 192..to * 192], values: &v[from * 128..to * 128] }).collect();
            m.append(&vec![1; to - from], None, &layers).unwrap();
        };
        // Token by token and in pieces: what a tile holds of a token depends on that token alone.
        (0..30).for_each(|t| append(&mut m, t, t + 1));
        append(&mut m, 30, 90);
        let before: Vec<Vec<f32>> = (0..2).map(|slot| decoded(&m, Side::Keys, slot)).collect();
        m.commit().unwrap();
        append(&mut m, 90, 131);
        m.commit().unwrap();
        drop(m);
        let m = Memory::open_read_only(&path, Some(&fingerprint())).unwrap();
        assert_eq!((m.geometry(), m.len()), (&g, 131));
        let mut whole = Memory::in_ram(g, fingerprint()).unwrap();
        append(&mut whole, 0, 131);
        for slot in 0..2 {
            for (side, given) in [(Side::Keys, &given[slot].0), (Side::Values, &given[slot].1)] {
                let read = decoded(&m, side, slot);
                assert_eq!(read, decoded(&whole, side, slot), "however it was appended and committed");
                let error = common::rms_diff(&read, given) / common::rms_diff(&vec![0.0; given.len()], given);
                let most = tolerance(codec, side);
                assert!(error < most && error > most / 10.0, "{codec} {side:?}: {error}");
            }
            assert_eq!(decoded(&m, Side::Keys, slot)[..before[slot].len()], before[slot]);
            // The means are those of what is stored, rounded to 8 bits of the largest of 32 elements.
            let keys = decoded(&m, Side::Keys, slot);
            let mut first = 0;
            for block in 0..m.blocks() {
                let len = m.block(block).unwrap().len;
                let of = |i: usize| (first..first + len).map(|t| f64::from(keys[t * 192 + i])).sum::<f64>() / len as f64;
                let means: Vec<f64> = (0..192).map(of).collect();
                for (i, (mean, found)) in means.iter().zip(&m.mean_keys(slot).unwrap()[block * 192..]).enumerate() {
                    let largest = means[i / 32 * 32..][..32].iter().fold(0.0_f64, |a, x| a.max(x.abs()));
                    assert!((mean - f64::from(*found)).abs() <= largest / 127.0 * 0.501 + 1e-5, "block {block}, element {i}");
                }
                first += len;
            }
        }
        assert!(m.verify(|_, _| true).unwrap().is_empty());
    }
}

#[test]
fn a_team_keeps_what_one_thread_keeps() {
    let mut rng = tiny::Rng(17);
    for codec in [Codec::F16, Codec::K8V4, Codec::K4V4] {
        let g = geometry(codec);
        let layers: Vec<_> = (0..2).map(|_| (rows(&mut rng, 90, 2, 96), rows(&mut rng, 90, 2, 64))).collect();
        let layers: Vec<_> = layers.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
        let kept = |threads: usize| {
            let mut m = Memory::in_ram(g.clone(), fingerprint()).unwrap();
            Team::new(threads).unwrap().pass(|pass| m.append_on(pass, &[7; 90], None, &layers)).unwrap();
            let bytes: Vec<u8> = (0..3 * 2 * 2)
                .flat_map(|i| {
                    let (block, slot, head) = (i / 4, i / 2 % 2, i % 2);
                    [Side::Keys, Side::Values].map(|side| m.rows(side, slot, head, block).unwrap().bytes.to_vec()).concat()
                })
                .collect();
            (bytes, [0, 1].map(|slot| (m.mean_keys(slot).unwrap().to_vec(), m.radii(slot).unwrap().to_vec())))
        };
        let alone = kept(1);
        assert!(kept(2) == alone && kept(3) == alone, "{codec}");
        let mut m = Memory::in_ram(g.clone(), fingerprint()).unwrap();
        m.append(&[7; 90], None, &layers).unwrap();
        assert_eq!(m.mean_keys(1).unwrap(), alone.1[1].0);
    }
}

#[test]
fn the_bytes_of_a_token_are_those_of_the_codec() {
    let sizes = [
        (Codec::F32, 4.0, 4.0),
        (Codec::F16, 2.0, 2.0),
        (Codec::Bf16, 2.0, 2.0),
        (Codec::K8V4, 1.0625, 0.5625),
        (Codec::K4V4, 0.5625, 0.5625),
    ];
    for (codec, key, value) in sizes {
        let g = Geometry { codec, ..geometry(codec) };
        assert_eq!((g.row_bytes(Side::Keys), g.row_bytes(Side::Values)), ((96.0 * key) as usize, (64.0 * value) as usize), "{codec}");
        assert_eq!((Codec::from_name(codec.name()), Codec::from_id(codec.id()).ok()), (Some(codec), Some(codec)));
    }
    assert!(matches!(Codec::from_id(5), Err(Error::Unsupported(_))));
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    for codec in QUANTISED {
        for (key_length, value_length) in [(100, 64), (64, 10), (2048, 64)] {
            let g = Geometry { key_length, value_length, ..geometry(codec) };
            assert!(matches!(Memory::in_ram(g, fingerprint()), Err(Error::Argument { .. })), "{key_length} {value_length}");
        }
        let mut m = Memory::in_ram(geometry(codec), fingerprint()).unwrap();
        for bad in [f32::NAN, f32::INFINITY, 16376.5, -1e30] {
            let (mut keys, values) = (vec![0.0; 192], vec![0.0; 128]);
            keys[100] = bad;
            let layers = [LayerKv { keys: &keys, values: &values }; 2];
            assert!(matches!(m.append(&[1], None, &layers), Err(Error::Argument { .. })), "{bad}");
        }
        // The largest that is held, in every element: nothing overflows.
        let (keys, values) = (vec![16376.0; 192], vec![-16376.0; 128]);
        m.append(&[1], None, &[LayerKv { keys: &keys, values: &values }; 2]).unwrap();
        let near = |read: Vec<f32>, given: f32| read.iter().all(|x| (x - given).abs() <= given.abs() / 8.0);
        assert!(near(decoded(&m, Side::Keys, 1), 16376.0) && near(decoded(&m, Side::Values, 1), -16376.0));
    }
}

fn model(memory_layers: Vec<u32>) -> Arc<Model> {
    let options = TinyOptions { n_layer: 3, head_dim: 32, memory_layers, ..TinyOptions::default() };
    Model::open_bytes(tiny::llama(options), &ModelOptions::default()).unwrap()
}

fn remembered(model: &Arc<Model>, codec: Codec, path: &std::path::Path) -> SharedMemory {
    let memory = Memory::create(path, Geometry { codec, ..model.memory_geometry() }, model.fingerprint().clone()).unwrap();
    let memory = Arc::new(RwLock::new(memory));
    let options = SessionOptions { threads: 2, batch: 16, ..SessionOptions::default() };
    Session::new(model.clone(), options).unwrap().remember(&memory, &ids(700, 1), None, &mut |_, _| Continue(())).unwrap();
    memory.write().unwrap().commit().unwrap();
    memory
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    tiny::ids(n, tiny::VOCAB_MIN, seed)
}

fn asked(model: &Arc<Model>, memory: &SharedMemory, memory_top_k: usize) -> (Vec<f32>, Vec<u64>) {
    let options = SessionOptions { threads: 2, batch: 16, memory_top_k, sampler: SamplerOptions::greedy(), ..SessionOptions::default() };
    let mut s = Session::new(model.clone(), options).unwrap();
    s.attach_memory(memory.clone()).unwrap();
    s.prefill(&ids(700, 1)[300..330], &mut |_, _| Continue(())).unwrap();
    (s.logits().unwrap().to_vec(), s.passages().unwrap().iter().map(|p| p.first_token).collect())
}

#[test]
fn a_focused_transformer_reads_every_codec_and_all_of_its_keys_are_dense() {
    let model = model(vec![0, 2]);
    let dir = tempfile::tempdir().unwrap();
    let mut exact = None;
    for codec in Codec::ALL {
        let memory = remembered(&model, codec, &dir.path().join(codec.name()));
        let dense = asked(&model, &memory, 0).0;
        for k in [700, 100_000] {
            assert!(dense == asked(&model, &memory, k).0, "{codec}: k {k} of 700 keys is dense");
        }
        assert!(max_abs_diff(&dense, &asked(&model, &memory, 3).0) > 1e-6, "{codec}: three keys are not");
        let exact = exact.get_or_insert_with(|| dense.clone());
        let lost = kl(&dense, exact);
        assert!(lost < if codec.is_quantised() { 2e-2 } else { 1e-4 }, "{codec}: {lost}");
    }
}

#[test]
fn an_ordinary_model_recalls_from_every_codec() {
    let model = model(vec![]);
    let dir = tempfile::tempdir().unwrap();
    let (logits, passages) = asked(&model, &remembered(&model, Codec::F32, &dir.path().join("exact")), 0);
    for codec in Codec::ALL {
        let (got, from) = asked(&model, &remembered(&model, codec, &dir.path().join(codec.name())), 0);
        let lost = kl(&got, &logits);
        // The votes of a model of random weights lie so near to each other that four-bit keys may prefer another block.
        if codec == Codec::K4V4 {
            assert_eq!(from.len(), passages.len(), "{codec}");
            assert!(lost < 0.2, "{codec}: {lost}");
        } else {
            assert_eq!(from, passages, "{codec}: the blocks that the exact keys choose");
            assert!(lost < 5e-2, "{codec}: {lost}");
        }
    }
}
