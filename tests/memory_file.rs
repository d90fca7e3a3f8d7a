//! What a memory file promises: what was appended is read back, bit for bit in its codec, at once, after a commit, after a
//! restart, by other handles; and what does not fit is refused. Crashes and damage: `memory_crash.rs`.

use loci::Error;
use loci::memory::{Codec, Fingerprint, Geometry, LayerKv, Memory, Side, Source, SourceSpan};
use proptest::prelude::*;
use std::path::PathBuf;

fn geometry(codec: Codec) -> Geometry {
    // Odd lengths, as LongLLaMA's head_dim of 100 is: rows that do not fill cache lines.
    Geometry { layers: vec![1, 3, 7], head_count_kv: 2, key_length: 10, value_length: 6, block_tokens: 8, codec, sketched: vec![1, 3, 7] }
}

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "llama".into(), hash: std::array::from_fn(|i| i as u8) }
}

/// A number for each (token, layer slot, side, head, dimension): of many magnitudes, most of them not exact in 16 bits.
fn number(token: u64, slot: usize, side: Side, head: usize, dim: usize) -> f32 {
    let seed = [token, slot as u64, (side == Side::Values) as u64, head as u64, dim as u64];
    let mut h = seed.iter().fold(0x9e37_79b9_7f4a_7c15_u64, |h, x| (h ^ x).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(29));
    h ^= h >> 31;
    let unit = (h >> 40) as f32 / (1 << 23) as f32 - 1.0;
    unit * ((h & 31) as f32 - 20.0).exp2()
}

fn token_id(token: u64) -> u32 {
    (token * 2_654_435_761 % 32_000) as u32
}

/// Keys and values of tokens `from..from + n`, in the shape of `append`.
fn rows(g: &Geometry, from: u64, n: u64) -> Vec<(Vec<f32>, Vec<f32>)> {
    let side = |slot, side: Side, length: u32| {
        let mut v = Vec::new();
        for t in from..from + n {
            for head in 0..g.head_count_kv as usize {
                v.extend((0..length as usize).map(|d| number(t, slot, side, head, d)));
            }
        }
        v
    };
    (0..g.layers.len()).map(|slot| (side(slot, Side::Keys, g.key_length), side(slot, Side::Values, g.value_length))).collect()
}

fn append(m: &mut Memory, n: u64, source: Option<Source<'_>>) {
    let from = m.len();
    let rows = rows(m.geometry(), from, n);
    let layers: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    let ids: Vec<u32> = (from..from + n).map(token_id).collect();
    m.append(&ids, source, &layers).unwrap();
    assert_eq!(m.len(), from + n);
}

/// What a codec makes of a number, from the definition: the nearest number of so many bits, ties to even.
fn rounded(codec: Codec, x: f32) -> f64 {
    let x = f64::from(x);
    let (digits, least_exponent) = match codec {
        Codec::F32 => return x,
        Codec::F16 => (11, -14),
        _ => (8, -126),
    };
    if x == 0.0 {
        return x;
    }
    let exponent = (((x.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(least_exponent);
    let quantum = f64::from(exponent - digits + 1).exp2();
    (x / quantum).round_ties_even() * quantum
}

/// The number that the stored bits stand for, from the definition of the format.
fn meaning(codec: Codec, bytes: &[u8]) -> f64 {
    let (bits, exponent_bits, digits) = match codec {
        Codec::F32 => (u32::from_le_bytes(bytes.try_into().unwrap()), 8, 23),
        Codec::F16 => (u16::from_le_bytes(bytes.try_into().unwrap()).into(), 5, 10),
        _ => (u16::from_le_bytes(bytes.try_into().unwrap()).into(), 8, 7),
    };
    let sign = if bits >> (exponent_bits + digits) == 1 { -1.0 } else { 1.0 };
    let exponent = (bits >> digits) as i32 & ((1 << exponent_bits) - 1);
    let fraction = f64::from(bits & ((1 << digits) - 1)) / f64::from(digits).exp2();
    let bias = (1 << (exponent_bits - 1)) - 1;
    assert!(exponent < 2 * bias + 1, "not a finite number");
    sign * if exponent == 0 { fraction * f64::from(1 - bias).exp2() } else { (1.0 + fraction) * f64::from(exponent - bias).exp2() }
}

fn decoded(m: &Memory, side: Side, slot: usize, head: usize, block: usize) -> Vec<f32> {
    let view = m.rows(side, slot, head, block).unwrap();
    let mut out = vec![0.0; view.len * view.length];
    view.decode(&mut out);
    out
}

/// Compares everything that `m` holds with what was appended; blocks may be cut anywhere.
fn check(m: &Memory, tokens: u64) {
    let g = m.geometry().clone();
    assert_eq!(m.len(), tokens);
    assert_eq!(m.tokens(0..tokens).unwrap(), (0..tokens).map(token_id).collect::<Vec<_>>());
    let mut next = 0;
    for block in 0..m.blocks() {
        let span = m.block(block).unwrap();
        assert_eq!(span.first_token, next);
        assert!((1..=g.block_tokens as usize).contains(&span.len));
        next += span.len as u64;
        for slot in 0..g.layers.len() {
            for head in 0..g.head_count_kv as usize {
                for (side, length) in [(Side::Keys, g.key_length as usize), (Side::Values, g.value_length as usize)] {
                    let view = m.rows(side, slot, head, block).unwrap();
                    assert_eq!((view.len, view.length, view.codec), (span.len, length, g.codec));
                    assert_eq!(view.bytes.as_ptr() as usize % 64, 0, "a run starts at a cache line");
                    let element = view.bytes.len() / (span.len * length);
                    assert_eq!(element * span.len * length, view.bytes.len());
                    let read = decoded(m, side, slot, head, block);
                    for (i, (bytes, read)) in view.bytes.chunks(element).zip(read).enumerate() {
                        let given = number(span.first_token + (i / length) as u64, slot, side, head, i % length);
                        let expected = rounded(g.codec, given);
                        assert_eq!(meaning(g.codec, bytes), expected, "{given} in block {block}");
                        assert_eq!(f64::from(read), expected);
                    }
                }
                check_summary(m, slot, head, block);
            }
        }
    }
    assert_eq!(next, tokens);
}

/// The mean and the radius against their definition; keys of this length have their means in half precision.
fn check_summary(m: &Memory, slot: usize, head: usize, block: usize) {
    let (heads, length) = (m.geometry().head_count_kv as usize, m.geometry().key_length as usize);
    assert_eq!(m.mean_keys(slot).unwrap().len(), m.blocks() * heads * length);
    assert_eq!(m.radii(slot).unwrap().len(), m.blocks() * heads);
    let mean = &m.mean_keys(slot).unwrap()[(block * heads + head) * length..][..length];
    let radius = f64::from(m.radii(slot).unwrap()[block * heads + head]);
    let keys = decoded(m, Side::Keys, slot, head, block);
    let count = (keys.len() / length) as f64;
    let mut farthest = 0.0_f64;
    for (d, mean) in mean.iter().enumerate() {
        let expected: f64 = keys.iter().skip(d).step_by(length).map(|k| f64::from(*k)).sum::<f64>() / count;
        assert!((f64::from(*mean) - expected).abs() <= expected.abs() * 0.5_f64.powi(11) + 0.5_f64.powi(24));
    }
    for key in keys.chunks(length) {
        let squares: f64 = key.iter().zip(mean).map(|(k, m)| (f64::from(*k) - f64::from(*m)).powi(2)).sum();
        farthest = farthest.max(squares.sqrt());
    }
    assert!(farthest <= radius && radius <= farthest * (1.0 + 1e-6) + 1e-30, "{farthest} {radius}");
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("book.lmem");
    (dir, path)
}

const CODECS: [Codec; 3] = [Codec::F32, Codec::F16, Codec::Bf16];

#[test]
fn every_codec_reads_back_exactly_before_and_after_commit_and_restart() {
    for codec in CODECS {
        let (_dir, path) = place();
        let mut m = Memory::create(&path, geometry(codec), fingerprint()).unwrap();
        let mut total = 0;
        for n in [1, 3, 30, 8, 5] {
            append(&mut m, n, None);
            total += n;
            check(&m, total);
            if n % 2 == 0 {
                m.commit().unwrap();
                assert_eq!(m.committed_len(), total);
                check(&m, total);
            }
        }
        m.commit().unwrap();
        check(&m, total);
        drop(m);
        let mut m = Memory::open(&path, Some(&fingerprint())).unwrap();
        check(&m, total);
        append(&mut m, 9, None);
        check(&m, total + 9);
        drop(m); // not committed: not there
        check(&Memory::open(&path, None).unwrap(), total);
    }
}

#[test]
fn every_half_and_bfloat16_comes_back_with_its_own_bits() {
    for codec in [Codec::F16, Codec::Bf16] {
        let g =
            Geometry { layers: vec![0], head_count_kv: 1, key_length: 1, value_length: 1, block_tokens: 4096, codec, sketched: Vec::new() };
        let mut m = Memory::in_ram(g, fingerprint()).unwrap();
        let value = |bits: u16| match codec {
            Codec::F16 => half::f16::from_bits(bits).to_f32(),
            _ => half::bf16::from_bits(bits).to_f32(),
        };
        let bits: Vec<u16> = (0..=u16::MAX).filter(|b| value(*b).is_finite()).collect();
        assert!(bits.len() > 60_000);
        let exact: Vec<f32> = bits.iter().map(|b| value(*b)).collect();
        // Half way to the next one, and one float to either side of that: `rounded` says where they belong.
        let half_way = if codec == Codec::F16 { 0x1000 } else { 0x8000 };
        let near = |x: &f32| [half_way - 1, half_way, half_way + 1].map(|low| f32::from_bits(x.to_bits() | low));
        let between: Vec<f32> = exact.iter().flat_map(near).filter(|x| codec.holds(*x)).collect();
        m.append(&vec![0; exact.len()], None, &[LayerKv { keys: &exact, values: &exact }]).unwrap();
        m.append(&vec![0; between.len()], None, &[LayerKv { keys: &between, values: &between }]).unwrap();
        let mut stored = Vec::new();
        for block in 0..m.blocks() {
            stored.extend(m.keys(0, 0, block).unwrap().bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)));
        }
        assert_eq!(&stored[..bits.len()], bits);
        for (bits, x) in stored[bits.len()..].iter().zip(&between) {
            assert_eq!(meaning(codec, &bits.to_le_bytes()), rounded(codec, *x), "{x:e}");
        }
    }
}

/// All that can be seen of a memory but where its blocks are cut.
fn contents(m: &Memory) -> Vec<Vec<u32>> {
    let g = m.geometry();
    let mut out = vec![m.tokens(0..m.len()).unwrap()];
    for slot in 0..g.layers.len() {
        for head in 0..g.head_count_kv as usize {
            for side in [Side::Keys, Side::Values] {
                out.push((0..m.blocks()).flat_map(|b| decoded(m, side, slot, head, b)).map(f32::to_bits).collect());
            }
        }
    }
    out
}

fn index(m: &Memory) -> Vec<Vec<u32>> {
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect();
    (0..m.geometry().layers.len()).flat_map(|s| [bits(m.mean_keys(s).unwrap()), bits(m.radii(s).unwrap())]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_read_the_same_as_one_append(
        pieces in prop::collection::vec((0u64..20, any::<bool>(), any::<bool>()), 1..12),
        ask_first in any::<bool>(),
    ) {
        let (_dir, path) = place();
        let mut whole = Memory::in_ram(geometry(Codec::Bf16), fingerprint()).unwrap();
        let mut ram = Memory::in_ram(geometry(Codec::Bf16), fingerprint()).unwrap();
        let mut file = Memory::create(&path, geometry(Codec::Bf16), fingerprint()).unwrap();
        if ask_first {
            // The index is then kept up by each append and commit instead of being loaded at the end.
            prop_assert_eq!(index(&ram).len() + index(&file).len(), 12);
        }
        let total = pieces.iter().map(|p| p.0).sum();
        append(&mut whole, total, None);
        for (n, commit, reopen) in pieces {
            append(&mut ram, n, None);
            append(&mut file, n, None);
            ram.commit().unwrap();
            if commit || reopen {
                file.commit().unwrap();
            }
            if reopen {
                drop(file);
                file = Memory::open(&path, None).unwrap();
            }
        }
        prop_assert_eq!(contents(&ram), contents(&whole));
        prop_assert_eq!(contents(&file), contents(&whole));
        prop_assert_eq!(index(&ram), index(&whole));
        let kept = index(&file);
        file.commit().unwrap();
        prop_assert_eq!(contents(&file), contents(&whole));
        prop_assert_eq!(&index(&file), &kept);
        prop_assert!(file.verify(|_, _| true).unwrap().is_empty());
        drop(file);
        let file = Memory::open_read_only(&path, None).unwrap();
        prop_assert_eq!(contents(&file), contents(&whole));
        prop_assert_eq!(&index(&file), &kept);
        check(&file, total);
    }
}

#[test]
fn small_appends_fill_blocks_and_ranges_of_tokens_cross_commits() {
    let (_dir, path) = place();
    let mut m = Memory::create(&path, geometry(Codec::F16), fingerprint()).unwrap();
    for _ in 0..20 {
        append(&mut m, 1, None);
    }
    assert_eq!((m.blocks(), m.block(2).unwrap().len), (3, 4));
    m.commit().unwrap();
    m.commit().unwrap(); // nothing new: no empty commit
    append(&mut m, 5, None);
    m.commit().unwrap();
    append(&mut m, 6, None);
    assert_eq!(m.stats().commits, 2);
    assert_eq!((m.blocks(), m.block(3).unwrap().len, m.block(4).unwrap().first_token), (5, 5, 25));
    for from in 0..=31 {
        for to in from..=31 {
            assert_eq!(m.tokens(from..to).unwrap(), (from..to).map(token_id).collect::<Vec<_>>());
        }
    }
    assert!(matches!(m.tokens(3..32), Err(Error::Argument { name: "range", .. })));
    assert!(matches!(m.block(5), Err(Error::Argument { name: "block", .. })));
    assert!(matches!(m.keys(3, 0, 0), Err(Error::Argument { name: "layer_slot", .. })));
    assert!(matches!(m.keys(0, 2, 0), Err(Error::Argument { name: "head", .. })));
    assert!(matches!(m.values(0, 0, 5), Err(Error::Argument { name: "block", .. })));
    assert!(matches!(m.mean_keys(3), Err(Error::Argument { .. })));
}

#[test]
fn sources_are_kept_joined_where_they_go_on() {
    let (_dir, path) = place();
    let mut m = Memory::create(&path, geometry(Codec::F16), fingerprint()).unwrap();
    append(&mut m, 3, Some(Source { label: "dir/größe.txt", text: 0..11 }));
    append(&mut m, 4, Some(Source { label: "dir/größe.txt", text: 11..30 }));
    append(&mut m, 2, None);
    append(&mut m, 1, Some(Source { label: "dir/größe.txt", text: 30..31 }));
    m.commit().unwrap();
    append(&mut m, 5, Some(Source { label: "other", text: 100..200 }));
    let span = |label: &str, tokens, text| SourceSpan { label: label.into(), tokens, text };
    let expected = vec![span("dir/größe.txt", 0..7, 0..30), span("dir/größe.txt", 9..10, 30..31), span("other", 10..15, 100..200)];
    assert_eq!(m.sources().unwrap(), expected);
    m.commit().unwrap();
    drop(m);
    assert_eq!(Memory::open_read_only(&path, None).unwrap().sources().unwrap(), expected);
}

#[test]
fn readers_follow_a_writer_and_a_second_writer_is_refused() {
    let (_dir, path) = place();
    let mut writer = Memory::create(&path, geometry(Codec::F16), fingerprint()).unwrap();
    let mut reader = Memory::open_read_only(&path, Some(&fingerprint())).unwrap();
    assert!(matches!(Memory::open(&path, None), Err(Error::Busy(_))));
    assert!(matches!(Memory::create(&path, geometry(Codec::F16), fingerprint()), Err(Error::Io { .. })));
    assert!(!reader.refresh().unwrap());
    assert!(reader.mean_keys(0).unwrap().is_empty());
    let mut total = 0;
    for n in [40, 1, 1, 17, 300] {
        append(&mut writer, n, None);
        assert!(!reader.refresh().unwrap(), "not committed, not seen");
        writer.commit().unwrap();
        check(&reader, total);
        total += n;
        assert!(reader.refresh().unwrap());
        check(&reader, total);
        check(&Memory::open_read_only(&path, None).unwrap(), total);
    }
    assert!(matches!(reader.append(&[], None, &[]), Err(Error::Argument { name: "memory", .. })));
    drop(writer);
    let other = Fingerprint { architecture: "llama".into(), hash: [7; 32] };
    match Memory::open(&path, Some(&other)) {
        Err(Error::Mismatch { expected, found, .. }) => {
            assert_eq!((expected, found), (other.to_string(), fingerprint().to_string()));
        }
        _ => panic!("another model's memory was taken"),
    }
    check(&Memory::open(&path, None).unwrap(), total); // the lock went with the writer
}

#[test]
fn many_threads_read_one_handle() {
    let (_dir, path) = place();
    let mut m = Memory::create(&path, geometry(Codec::F16), fingerprint()).unwrap();
    append(&mut m, 100, None);
    m.commit().unwrap();
    drop(m);
    let m = Memory::open_read_only(&path, None).unwrap();
    std::thread::scope(|s| (0..4).for_each(|_| drop(s.spawn(|| check(&m, 100)))));
}

#[test]
fn many_commits_need_few_maps() {
    let (_dir, path) = place();
    let g = Geometry {
        layers: vec![0],
        head_count_kv: 1,
        key_length: 4,
        value_length: 4,
        block_tokens: 4,
        codec: Codec::F16,
        sketched: vec![0],
    };
    let mut m = Memory::create(&path, g, fingerprint()).unwrap();
    for _ in 0..300 {
        append(&mut m, 1, None);
        m.commit().unwrap();
        m.keys(0, 0, m.blocks() - 1).unwrap();
    }
    check(&m, 300);
    let stats = m.stats();
    assert!(stats.maps <= 10, "{stats:?}");
    assert_eq!(stats.mapped_bytes, stats.file_bytes - 8192);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), stats.file_bytes);
}

#[test]
fn what_a_memory_cannot_hold_is_refused_and_nothing_of_it_appended() {
    let mut m = Memory::in_ram(geometry(Codec::F16), fingerprint()).unwrap();
    append(&mut m, 9, None);
    let good = rows(m.geometry(), 9, 2);
    let with = |slot: usize, i: usize, x: f32| {
        let mut bad = good.clone();
        bad[slot].1[i] = x;
        bad
    };
    let mut short = good.clone();
    short[2].0.pop();
    let fewer = good[..2].to_vec();
    for bad in [with(0, 0, f32::NAN), with(2, 23, f32::INFINITY), with(1, 5, 65520.0), with(1, 5, -1e30), short, fewer] {
        let layers: Vec<_> = bad.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
        assert!(matches!(m.append(&[1, 2], None, &layers), Err(Error::Argument { .. })));
        check(&m, 9);
    }
    let layers: Vec<_> = good.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    assert!(m.append(&[1], None, &layers).is_err());
    let long = "x".repeat(4097);
    assert!(m.append(&[1, 2], Some(Source { label: &long, text: 0..1 }), &layers).is_err());
    check(&m, 9);
    append(&mut m, 2, None);
    check(&m, 11);
    // The largest numbers that each codec holds, and the first ones that round to infinity.
    for (codec, last) in [(Codec::F32, f32::MAX), (Codec::F16, 65520.0f32.next_down()), (Codec::Bf16, f32::from_bits(0x7f7f_7fff))] {
        assert!(codec.holds(last) && codec.holds(-last) && !codec.holds(last.next_up()));
    }
}

#[test]
fn impossible_shapes_are_refused() {
    let good = geometry(Codec::F16);
    let bad = [
        Geometry { layers: vec![], ..good.clone() },
        Geometry { layers: vec![3, 1], ..good.clone() },
        Geometry { layers: vec![3, 3], ..good.clone() },
        Geometry { layers: (0..513).collect(), ..good.clone() },
        Geometry { layers: vec![u32::MAX], ..good.clone() },
        Geometry { head_count_kv: 0, ..good.clone() },
        Geometry { key_length: u32::MAX, ..good.clone() },
        Geometry { value_length: 0, ..good.clone() },
        Geometry { block_tokens: 0, ..good.clone() },
        Geometry { head_count_kv: 1024, key_length: 4096, value_length: 4096, block_tokens: 4096, ..good.clone() },
    ];
    for g in bad {
        let (_dir, path) = place();
        assert!(matches!(Memory::create(&path, g, fingerprint()), Err(Error::Argument { .. })));
        assert!(!path.exists());
    }
    for architecture in ["x".repeat(33), "a\0b".into()] {
        let bad = Fingerprint { architecture, hash: [0; 32] };
        assert!(matches!(Memory::in_ram(good.clone(), bad), Err(Error::Argument { .. })));
    }
    let widest = Fingerprint { architecture: "x".repeat(32), hash: [0; 32] };
    let (_dir, path) = place();
    drop(Memory::create(&path, good, widest.clone()).unwrap());
    assert_eq!(*Memory::open(&path, Some(&widest)).unwrap().fingerprint(), widest);
}

/// The sketches of a file are those of the keys as they are stored, around the mean keys as they are kept.
#[test]
fn sketches_are_those_of_the_stored_keys() {
    let dir = tempfile::tempdir().unwrap();
    for codec in [Codec::F32, Codec::F16, Codec::Bf16, Codec::K8V4, Codec::K4V4] {
        let small = geometry(codec);
        let (key_length, value_length) = if codec.to_string().contains('k') { (32, 32) } else { (small.key_length, small.value_length) };
        let g = Geometry { key_length, value_length, block_tokens: 20, ..small };
        let path = dir.path().join(format!("{codec}.lmem"));
        {
            let mut m = Memory::create(&path, g.clone(), fingerprint()).unwrap();
            // Commits that end in blocks of all lengths, of one tile and of two.
            for n in [47, 1, 20, 16, 37] {
                let rows: Vec<(Vec<f32>, Vec<f32>)> = rows(&g, m.len(), n)
                    .into_iter()
                    .map(|(k, v)| (k.iter().map(|x| x.clamp(-900.0, 900.0)).collect(), v.iter().map(|x| x.clamp(-900.0, 900.0)).collect()))
                    .collect();
                let layers: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
                m.append(&vec![7; n as usize], None, &layers).unwrap();
                // What is not committed has none.
                let sketched: usize = m.sketches(0, 0).unwrap().iter().map(|s| s.blocks.len()).sum();
                assert!(sketched < m.blocks());
                m.commit().unwrap();
            }
        }
        let m = Memory::open_read_only(&path, Some(&fingerprint())).unwrap();
        assert_eq!(m.geometry(), &g);
        let length = g.key_length as usize;
        for (slot, head) in (0..3).flat_map(|slot| (0..2).map(move |head| (slot, head))) {
            let mut next = 0;
            for sketches in m.sketches(slot, head).unwrap() {
                assert_eq!(sketches.blocks.start, next);
                next = sketches.blocks.end;
                for block in sketches.blocks.clone() {
                    let (len, row, found) = sketches.of(block);
                    assert_eq!(len, m.block(block).unwrap().len);
                    let mut mean = vec![0.0; length];
                    loci::quant::dequantise(m.mean_type(), row, &mut mean).unwrap();
                    let of_index = &m.mean_keys(slot).unwrap()[(block * 2 + head) * length..][..length];
                    assert_eq!(mean, of_index, "{codec}, block {block}");
                    let mut keys = vec![0.0; len * length];
                    m.keys(slot, head, block).unwrap().decode(&mut keys);
                    let mut expected = vec![0; loci::kernels::sketch::bytes(length, len)];
                    loci::kernels::sketch::encode(&mut keys, &mean, &mut expected);
                    assert!(expected == found, "{codec}, block {block} of slot {slot}, head {head}");
                }
            }
            assert_eq!(next, m.blocks(), "{codec}");
        }
        assert!(m.verify(|_, _| true).unwrap().is_empty());
        assert!(m.sketches(3, 0).is_err() && m.sketches(0, 2).is_err());

        // One bit of one of them: nobody uses the section, everybody can still read the keys, and repairing brings it back.
        let last = |m: &Memory| m.sketches(2, 1).unwrap().last().unwrap().of(m.blocks() - 1).2.to_vec();
        let wanted = last(&m);
        drop(m);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(wanted.len()).rposition(|w| w == wanted).unwrap();
        bytes[at] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        let m = Memory::open_read_only(&path, Some(&fingerprint())).unwrap();
        assert!(m.sketches(0, 0).unwrap().last().unwrap().blocks.end < m.blocks(), "{codec}: left out");
        assert_eq!(m.stats().damaged_sections, 1);
        assert!(m.is_readable(m.blocks() - 1) && m.keys(2, 1, m.blocks() - 1).is_ok());
        drop(m);
        let mut m = Memory::open(&path, Some(&fingerprint())).unwrap();
        assert_eq!(m.heal_sections().unwrap(), 1);
        drop(m);
        let m = Memory::open_read_only(&path, Some(&fingerprint())).unwrap();
        assert_eq!(last(&m), wanted);
    }
}
