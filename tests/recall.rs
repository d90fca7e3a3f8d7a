//! Retrieval for ordinary models: two stages find what an evaluation of every key finds, what is read is counted and bounded, the
//! budget holds, a damaged block is left out, an answer reads at most a block a token.

mod common;

use common::tiny::{self, Rng, TinyOptions};
use loci::memory::{Geometry, LayerKv, Memory, SketchRoom};
use loci::model::recall::{BlockAddress, Recall, RecallOptions};
use loci::model::{Model, ModelOptions};
use loci::sampler::SamplerOptions;
use loci::session::{Session, SessionOptions};
use loci::threads::Team;
use std::ops::ControlFlow::Continue;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, RwLock};

/// Heads of 32 elements, so that mean keys are kept in 8 bits.
fn model(head_dim: usize) -> Arc<Model> {
    let options = TinyOptions { head_dim, n_layer: 3, n_ctx: 512, ..TinyOptions::default() };
    Model::open_bytes(tiny::llama(options), &ModelOptions::default()).unwrap()
}

/// Random keys and values for `tokens` tokens of every layer; `planted` are (token, layer slot, head, key).
fn fill(memory: &mut Memory, tokens: usize, seed: u64, planted: &[(usize, usize, usize, Vec<f32>)]) {
    let g = memory.geometry().clone();
    let (heads, length) = (g.head_count_kv as usize, g.key_length as usize);
    let mut rng = Rng(seed);
    let mut keys: Vec<Vec<f32>> = g.layers.iter().map(|_| (0..tokens * heads * length).map(|_| rng.normal()).collect()).collect();
    let values = keys.clone();
    for (token, slot, head, key) in planted {
        keys[*slot][(token * heads + head) * length..][..length].copy_from_slice(key);
    }
    let layers: Vec<LayerKv<'_>> = keys.iter().zip(&values).map(|(keys, values)| LayerKv { keys, values }).collect();
    // Ids that no question has.
    let ids: Vec<u32> = (0..tokens).map(|i| 100 + (i % 50) as u32).collect();
    memory.append(&ids, None, &layers).unwrap();
}

/// With sketches of the layer that searches.
fn sketched(model: &Model) -> Geometry {
    Geometry { sketched: vec![1], ..model.memory_geometry() }
}

/// The block with most votes.
fn best(recall: &Recall) -> BlockAddress {
    recall.chosen().iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
}

/// A file with so many tokens, of which the last are not committed: all the others have sketches.
fn in_file(model: &Model, path: &Path, tokens: usize, seed: u64, planted: &[(usize, usize, usize, Vec<f32>)]) -> Memory {
    let mut memory = Memory::create(path, sketched(model), model.fingerprint().clone()).unwrap();
    fill(&mut memory, tokens - tokens % 32, seed, planted);
    memory.commit().unwrap();
    if !tokens.is_multiple_of(32) {
        fill(&mut memory, tokens % 32, seed + 100, &[]);
    }
    memory
}

fn in_ram(model: &Model) -> Memory {
    Memory::in_ram(model.memory_geometry(), model.fingerprint().clone()).unwrap()
}

/// A query of every head, the same in all; and a key that it wants far more than any random one.
fn wanted(model: &Model, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let h = model.hparams();
    let mut rng = Rng(seed);
    let q: Vec<f32> = (0..h.key_length).map(|_| rng.normal()).collect();
    (q.repeat(h.head_count), q.iter().map(|x| 12.0 * x).collect())
}

const BLOCKS: usize = 1500;

fn options(blocks_max: usize, budget_bytes: usize) -> RecallOptions {
    RecallOptions { blocks_max, searching: vec![1], budget_bytes, reselect_tokens: 0 }
}

fn choose(model: &Model, options: RecallOptions, memories: &[&Memory], query: &[f32]) -> Recall {
    let mut recall = Recall::new(model.hparams().memory_layers.len(), 512, options);
    recall.note(model.hparams(), 1, query);
    Team::new(2).unwrap().pass(|pass| recall.choose(pass, model.hparams(), memories)).unwrap();
    recall
}

#[test]
fn the_block_that_holds_the_wanted_key_is_found_wherever_it_lies() {
    for head_dim in [16, 32] {
        let model = model(head_dim);
        let (query, key) = wanted(&model, 3);
        // In a memory in RAM, where every key is read, and in files, where sketches are: first, in the middle, in the very last block.
        for (memory, block) in [(0, 1), (0, 777), (0, BLOCKS - 1), (1, 1), (1, 40), (1, BLOCKS - 1), (2, 1), (2, 900)] {
            let dir = tempfile::tempdir().unwrap();
            let planted = |i: usize| if i == memory { vec![(block * 32 + 9, 1, 1, key.clone())] } else { Vec::new() };
            let mut first = in_ram(&model);
            fill(&mut first, BLOCKS * 32 - 3, 7, &planted(0));
            let [second, third] = [(1, BLOCKS * 32), (2, BLOCKS * 32 - 30)]
                .map(|(i, tokens)| in_file(&model, &dir.path().join(format!("{i}.lmem")), tokens, 7 + i as u64, &planted(i)));
            let recall = choose(&model, options(4, 64 << 20), &[&first, &second, &third], &query);
            assert_eq!(best(&recall), BlockAddress { memory, block }, "heads of {head_dim}: {:?}", recall.chosen());
            assert!(recall.stats().unread_share < 0.5, "{:?}", recall.stats());
        }
    }
}

#[test]
fn a_key_in_a_layer_that_does_not_search_is_not_looked_for() {
    let model = model(32);
    let (query, key) = wanted(&model, 4);
    let dir = tempfile::tempdir().unwrap();
    let memory = in_file(&model, &dir.path().join("m.lmem"), BLOCKS * 32, 8, &[(321 * 32, 0, 0, key)]);
    let recall = choose(&model, options(2, 64 << 20), &[&memory], &query);
    assert!(recall.chosen().iter().all(|c| c.0.block != 321), "{:?}", recall.chosen());
}

#[test]
fn what_a_choice_reads_is_counted_and_does_not_grow_with_the_layers_that_do_not_search() {
    let model = model(32);
    let (query, key) = wanted(&model, 5);
    let dir = tempfile::tempdir().unwrap();
    let memory = in_file(&model, &dir.path().join("m.lmem"), BLOCKS * 32, 9, &[(500 * 32, 1, 0, key)]);
    let recall = choose(&model, options(4, 64 << 20), &[&memory], &query);
    let g = memory.geometry();
    assert_eq!(g.sketched, [1]);
    let (heads, length, layers) = (g.head_count_kv as u64, u64::from(g.key_length), g.layers.len() as u64);
    // A mean key and the sketches of a block; extents are touched whole.
    let sketches = BLOCKS as u64 * heads * (length + length / 16 + 32 * (length / 4 + 2));
    let extent = 32 * heads * 2 * length * 2;
    let stats = recall.stats();
    assert_eq!((stats.choices, stats.blocks_read, stats.block_hits), (1, 5, 0));
    // One layer searches: of the candidates all keys are looked at once.
    assert_eq!(stats.bytes_read, sketches + 256 * extent + 5 * layers * extent);
}

#[test]
fn the_budget_holds() {
    let model = model(32);
    let (query, _) = wanted(&model, 6);
    let mut memory = in_ram(&model);
    fill(&mut memory, BLOCKS * 32, 10, &[]);
    let block = 3 * 32 * 2 * 2 * 32 * 2;
    for budget in [200_000, 400_000, 1 << 20] {
        let mut recall = Recall::new(3, 512, options(8, budget));
        let team = Team::new(2).unwrap();
        let h = model.hparams();
        for seed in 0..6 {
            recall.clear(1);
            recall.note(h, 1, &wanted(&model, seed).0);
            team.pass(|pass| recall.choose(pass, h, &[&memory])).unwrap();
            let rotary = loci::kernels::rotary::Rotary {
                frequencies: vec![0.01; 16],
                magnitude: 1.0,
                layout: loci::kernels::rotary::PairLayout::Adjacent,
            };
            (0..3).for_each(|slot| recall.prepare(h, slot, &rotary, 0).unwrap());
            assert!(recall.chosen().len() >= 2, "something comes back");
        }
        // One choice more is made only to drop what does not fit beside its copies.
        team.pass(|pass| recall.choose(pass, h, &[&memory])).unwrap();
        assert!(recall.bytes() <= budget, "{} of {budget}: a block takes {block}", recall.bytes());
    }
    let _ = query;
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_block_is_left_out_and_counted() {
    let model = model(32);
    let (query, key) = wanted(&model, 11);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.lmem");
    let mut memory = Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap();
    fill(&mut memory, BLOCKS * 32, 12, &[(700 * 32 + 3, 1, 0, key.clone())]);
    memory.commit().unwrap();
    drop(memory);
    let open = || Memory::open_read_only(&path, Some(model.fingerprint())).unwrap();
    assert!(choose(&model, options(2, 64 << 20), &[&open()], &query).chosen().iter().any(|c| c.0.block == 700));
    // The planted key, as it stands in the file.
    let mut stored = Vec::new();
    loci::kernels::codec::Codec::F16.append(&key, &mut stored);
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(stored.len()).position(|w| w == stored).expect("the key in the file");
    flip(&path, at);
    let recall = choose(&model, options(2, 64 << 20), &[&open()], &query);
    assert!(recall.chosen().iter().all(|c| c.0.block != 700), "{:?}", recall.chosen());
    assert!(recall.stats().blocks_damaged >= 1 && recall.chosen().len() >= 2, "{:?}", recall.stats());
}

#[test]
fn an_answer_reads_at_most_a_block_a_token_and_nothing_if_it_may_not_choose_again() {
    let model = model(32);
    for reselect_tokens in [0, 4] {
        let o = SessionOptions { threads: 2, sampler: SamplerOptions::greedy(), reselect_tokens, ..SessionOptions::default() };
        let mut s = Session::new(model.clone(), o).unwrap();
        let memory = Arc::new(RwLock::new(in_ram(&model)));
        s.remember(&memory, &tiny::ids(3000, tiny::VOCAB_MIN, 21), None, &mut |_, _| Continue(())).unwrap();
        s.attach_memory(memory).unwrap();
        s.prefill(&tiny::ids(20, tiny::VOCAB_MIN, 22), &mut |_, _| Continue(())).unwrap();
        let asked = s.stats();
        assert!(asked.memory_choices == 1 && asked.memory_blocks_read > 1, "{asked:?}");
        let mut before = asked;
        for token in tiny::ids(60, tiny::VOCAB_MIN, 23) {
            s.start(loci::session::GenerateOptions { ignore_eos: true, max_tokens: 2, ..Default::default() }).unwrap();
            while s.next().unwrap().finish.is_none() {}
            let after = s.stats();
            let computed = after.decode_tokens - before.decode_tokens;
            assert!(after.memory_blocks_read - before.memory_blocks_read <= computed, "token {token}: {before:?}, {after:?}");
            before = after;
        }
        assert_eq!(before.memory_bytes_read > asked.memory_bytes_read, reselect_tokens > 0);
        let per_token = (before.memory_bytes_read - asked.memory_bytes_read) as f64 / before.decode_tokens as f64;
        assert!(before.memory_bytes_per_token >= per_token, "{before:?}");
    }
}

#[test]
fn a_reader_sees_a_memory_as_it_was() {
    let model = model(32);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grown.lmem");
    let mut memory = Memory::create(&path, model.memory_geometry(), model.fingerprint().clone()).unwrap();
    for seed in 0..3 {
        fill(&mut memory, 100, seed, &[]);
        memory.commit().unwrap();
    }
    assert!(memory.rewind(100).is_err(), "a writer stays where it is");
    let whole = |m: &Memory| (m.len(), m.blocks(), m.mean_keys(2).unwrap().to_vec());
    let mut reader = Memory::open_read_only(&path, None).unwrap();
    let all = whole(&reader);
    for (tokens, left) in [(299, 200), (200, 200), (150, 100), (99, 0)] {
        reader.rewind(tokens).unwrap();
        assert_eq!((reader.len(), reader.blocks()), (left, left as usize / 100 * 4));
        assert_eq!(reader.mean_keys(2).unwrap(), &all.2[..reader.mean_keys(2).unwrap().len()]);
        assert!(reader.keys(0, 0, reader.blocks()).is_err());
        assert!(reader.refresh().unwrap());
        assert_eq!(whole(&reader), all);
        assert_eq!(reader.keys(0, 1, 11).unwrap().len, 4);
    }
}

/// A memory of three commits and a pending end, of 486 tokens in 18 blocks of every layer.
fn scanned(model: &Model, path: &Path) -> Memory {
    let mut memory = Memory::create(path, sketched(model), model.fingerprint().clone()).unwrap();
    for seed in 0..3 {
        fill(&mut memory, 130 + seed as usize * 32, seed, &[]);
        if seed < 2 {
            memory.commit().unwrap();
        }
    }
    memory
}

/// Of each of the stretches that a search reads of a layer slot and head: its blocks, and mean keys and sketches, if they are good.
fn searched(memory: &Memory, slot: usize, head: usize) -> Vec<(Range<usize>, Option<Vec<u8>>)> {
    let mut room = SketchRoom::default();
    let mut read = |block: usize| {
        let sketches = memory.read_sketches(slot, head, block, &mut room).unwrap()?;
        Some([sketches.means, sketches.tiles].concat())
    };
    memory.sketched_blocks(slot).map(|blocks| (blocks.clone(), read(blocks.start))).collect()
}

#[test]
fn what_a_search_reads_are_the_sketches_of_what_is_committed() {
    for head_dim in [16, 32] {
        let model = model(head_dim);
        let dir = tempfile::tempdir().unwrap();
        let memory = scanned(&model, &dir.path().join("m.lmem"));
        for head in 0..2 {
            let found = searched(&memory, 1, head);
            assert_eq!(found.iter().map(|f| f.0.clone()).collect::<Vec<_>>(), [0..5, 5..11]);
            for ((blocks, found), in_place) in found.into_iter().zip(memory.sketches(1, head).unwrap()) {
                let expected = [in_place.means, in_place.tiles].concat();
                assert_eq!((blocks, found), (in_place.blocks, Some(expected)));
            }
        }
        // Layers that do not look first have none.
        assert!(searched(&memory, 0, 0).is_empty() && searched(&memory, 2, 1).is_empty() && memory.sketches(0, 0).unwrap().is_empty());
        for (slot, block) in [(0, 3), (1, 17)] {
            assert!(memory.read_sketches(slot, 0, block, &mut SketchRoom::default()).unwrap().is_none());
        }
        for (slot, head, block) in [(3, 0, 0), (1, 2, 0), (1, 0, 18)] {
            assert!(memory.read_sketches(slot, head, block, &mut SketchRoom::default()).is_err());
        }
    }
}

#[test]
fn keys_are_read_where_sketches_are_damaged_and_they_heal() {
    let model = model(32);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.lmem");
    let (query, key) = wanted(&model, 3);
    let mut memory = in_file(&model, &path, 600 * 32, 30, &[]);
    fill(&mut memory, 600 * 32, 31, &[(500 * 32 + 7, 1, 1, key)]);
    memory.commit().unwrap();
    let at = BlockAddress { memory: 0, block: 1100 };
    let found = |m: &Memory| best(&choose(&model, options(4, 64 << 20), &[m], &query));
    let (whole, right) = (found(&memory), searched(&memory, 1, 1));
    assert_eq!((whole, right.len()), (at, 2));
    drop(memory);
    let file = std::fs::read(&path).unwrap();
    let wanted = &right[1].1.as_ref().unwrap()[600 * 34..][1000..1200];
    flip(&path, file.windows(200).position(|w| w == wanted).expect("sketches in the file"));
    let spoilt = Memory::open_read_only(&path, None).unwrap();
    for _ in 0..2 {
        assert_eq!(searched(&spoilt, 1, 1), [right[0].clone(), (600..1200, None)], "it stays so");
        assert!(searched(&spoilt, 1, 0).iter().all(|found| found.1.is_some()), "the other head is not touched");
        let recall = choose(&model, options(4, 64 << 20), &[&spoilt], &query);
        assert_eq!(best(&recall), at, "{:?}", recall.chosen());
        assert_eq!(recall.stats().blocks_damaged, 0);
    }
    assert_eq!(spoilt.verify(|_, _| true).unwrap().len(), 1);
    drop(spoilt);
    let mut healed = Memory::open(&path, None).unwrap();
    assert_eq!(searched(&healed, 1, 1)[1].1, None);
    assert_eq!(healed.heal_sections().unwrap(), 1);
    assert_eq!((found(&healed), searched(&healed, 1, 1)), (at, right));
    assert_eq!(std::fs::read(&path).unwrap(), file);
}

/// What is forgotten is not proposed, however well it fits, and takes no place of what is.
#[test]
fn what_is_forgotten_takes_no_place_among_candidates() {
    let model = model(32);
    let dir = tempfile::tempdir().unwrap();
    let (query, key) = wanted(&model, 3);
    let weaker: Vec<f32> = key.iter().map(|x| 0.8 * x).collect();
    let planted: Vec<_> = (100..700).map(|block| (block * 32, 1, 1, key.clone())).chain([(50 * 32, 1, 1, weaker)]).collect();
    let mut memory = in_file(&model, &dir.path().join("m.lmem"), BLOCKS * 32, 40, &planted);
    memory.leave_out(std::slice::from_ref(&(100 * 32..700 * 32)));
    let recall = choose(&model, options(4, 64 << 20), &[&memory], &query);
    assert_eq!(best(&recall).block, 50, "{:?}", recall.chosen());
}
