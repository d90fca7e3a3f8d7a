//! The promise: attention over any segments is the softmax it says it is, at every level; and its bits depend neither on the
//! number of threads nor on how tokens are put into batches.

use loci::kernels::attention::{Entries, KvSegment, Queries, QueryKind, Shape, Visibility, attention_at, best_scores_at};
use loci::kernels::codec::Codec;
use loci::kernels::tiles::{KvType, TILE_TOKENS, TileLayout};
use loci::simd::Level;
use loci::threads::Team;

fn floats(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A segment before it is encoded: `len` tokens with `gap` foreign elements between one head's entries and the next token's.
#[derive(Clone, Copy)]
struct Part {
    codec: Codec,
    len: usize,
    gap: usize,
    query: QueryKind,
    /// `None`: all see it. Else the sliding window (0 is none) of the segment that the batch's own tokens end.
    causal: Option<usize>,
}

const fn window(codec: Codec, len: usize, sliding: usize) -> Part {
    Part { codec, len, gap: 0, query: QueryKind::Local, causal: Some(sliding) }
}

const fn memory(codec: Codec, len: usize, gap: usize) -> Part {
    Part { codec, len, gap, query: QueryKind::Memory, causal: None }
}

struct Case {
    tokens: usize,
    heads_kv: usize,
    group: usize,
    key_length: usize,
    value_length: usize,
    top_k: usize,
    parts: &'static [Part],
}

const fn case(tokens: usize, heads_kv: usize, group: usize, length: usize, top_k: usize, parts: &'static [Part]) -> Case {
    Case { tokens, heads_kv, group, key_length: length, value_length: length, top_k, parts }
}

use Codec::{Bf16, F16, F32};

/// The first part of every case ends with the batch's own tokens.
const CASES: [Case; 20] = [
    case(1, 1, 1, 64, 0, &[window(F32, 1, 0)]),
    case(1, 3, 3, 64, 0, &[window(F16, 700, 0)]),
    case(5, 3, 3, 64, 0, &[window(F16, 1030, 0)]),
    case(40, 3, 3, 64, 0, &[window(F16, 130, 0)]),
    case(33, 1, 4, 256, 0, &[window(Bf16, 300, 100)]),
    case(2, 1, 4, 256, 0, &[window(F16, 600, 512)]),
    case(40, 2, 1, 32, 0, &[window(F32, 90, 3)]),
    case(7, 2, 8, 24, 0, &[window(F16, 77, 0)]),
    case(12, 2, 2, 80, 0, &[window(Bf16, 77, 1)]),
    case(3, 2, 5, 96, 0, &[window(F32, 65, 0)]),
    case(17, 3, 3, 100, 0, &[window(F16, 200, 0)]),
    case(17, 2, 1, 100, 0, &[window(F32, 200, 64)]),
    case(9, 2, 7, 128, 0, &[window(F16, 64, 0)]),
    case(4, 4, 1, 7, 0, &[window(Bf16, 20, 0)]),
    case(6, 4, 1, 32, 0, &[window(F32, 50, 0), memory(Bf16, 64, 0), memory(Bf16, 64, 0), memory(F16, 17, 8), memory(F32, 1, 3)]),
    case(20, 2, 2, 64, 0, &[window(F16, 600, 0), memory(Bf16, 1100, 0), memory(F16, 500, 16), memory(F16, 300, 0)]),
    case(3, 2, 2, 32, 10, &[window(F16, 30, 0), memory(Bf16, 600, 0), memory(F16, 33, 5)]),
    case(40, 1, 3, 48, 1, &[window(F32, 50, 8), memory(F32, 70, 0)]),
    case(11, 1, 2, 64, 1000, &[window(F16, 20, 0), memory(F16, 70, 0)]),
    Case {
        tokens: 19,
        heads_kv: 2,
        group: 3,
        key_length: 40,
        value_length: 72,
        top_k: 0,
        parts: &[window(F16, 140, 0), memory(Bf16, 40, 9)],
    },
];

/// A case with its numbers.
struct Data<'a> {
    case: &'a Case,
    local: Vec<f32>,
    memory: Vec<f32>,
    /// Per part: encoded keys and values, `(len, heads_kv, length + gap)`, the last gap left out.
    bytes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first part in tiles, `(tiles, heads_kv)`, if it is to be read that way.
    tiles: Option<(TileLayout, Vec<u8>)>,
}

impl<'a> Data<'a> {
    fn new(case: &'a Case) -> Data<'a> {
        let heads = case.heads_kv * case.group;
        // Some scores are large, so that maxima move; memory and window differ in size.
        let local = floats(case.tokens * heads * case.key_length, 1).iter().map(|q| q * 3.0).collect();
        let memory = floats(case.tokens * heads * case.key_length, 2).iter().map(|q| q * 4.0).collect();
        let encode = |part: &Part, length: usize, seed: u64| {
            let mut values = floats(part.len * case.heads_kv * (length + part.gap), seed);
            for gap in values.chunks_exact_mut(length + part.gap) {
                gap[length..].fill(f32::NAN);
            }
            values.truncate(values.len() - part.gap);
            let mut bytes = Vec::new();
            part.codec.append(&values, &mut bytes);
            bytes
        };
        let bytes = case.parts.iter().zip(10..);
        let bytes = bytes.map(|(p, seed)| (encode(p, case.key_length, seed), encode(p, case.value_length, seed + 50))).collect();
        Data { case, local, memory, bytes, tiles: None }
    }

    /// With the first part in tiles, as the window has it; what lies behind its last token is not a number.
    fn tiled(mut self, kv: KvType) -> Data<'a> {
        let c = self.case;
        let layout = TileLayout { keys: kv, values: kv, key_length: c.key_length, value_length: c.value_length };
        let mut tiles = vec![0xff; c.parts[0].len.div_ceil(TILE_TOKENS) * c.heads_kv * layout.bytes()];
        for (i, tile) in tiles.chunks_exact_mut(layout.bytes()).enumerate() {
            for slot in 0..TILE_TOKENS {
                let (token, head) = (i / c.heads_kv * TILE_TOKENS + slot, i % c.heads_kv);
                if token < c.parts[0].len {
                    let [key, value] = [false, true].map(|v| self.entry(0, token, head, v).iter().map(|x| *x as f32).collect::<Vec<_>>());
                    layout.put(tile, slot, &key, &value);
                }
            }
        }
        self.tiles = Some((layout, tiles));
        self
    }

    /// Key (or value) `token` of a head in quantised tiles, by the description of their layout.
    fn dequantised(&self, token: usize, head: usize, values: bool) -> Vec<f64> {
        let (layout, tiles) = self.tiles.as_ref().unwrap();
        let tile = &tiles[(token / 16 * self.case.heads_kv + head) * layout.bytes()..][..layout.bytes()];
        let (q4, slot) = (layout.keys == KvType::Q4, token % 16);
        let block_bytes = if q4 { 16 } else { 32 };
        let length = if values { layout.value_length } else { layout.key_length };
        let value_codes = layout.key_bytes() + length / 32 * 32;
        let element = |e: usize| {
            let (b, e) = (e / 32, e % 32);
            let byte = if q4 { e % 16 } else { e };
            let (scale, code) = if values {
                (layout.key_bytes() + b * 32, value_codes + slot * length / 32 * block_bytes + b * block_bytes + byte)
            } else {
                let block = b * 16 * (2 + block_bytes);
                (block, block + 32 + byte / 4 * 64 + slot * 4 + byte % 4)
            };
            let scale = half::f16::from_le_bytes([tile[scale + 2 * slot], tile[scale + 2 * slot + 1]]).to_f64();
            let code = tile[code];
            scale
                * match (q4, values) {
                    (true, _) if e < 16 => f64::from(code & 15) - 8.0,
                    (true, _) => f64::from(code >> 4) - 8.0,
                    (false, true) => f64::from(code) - 128.0,
                    (false, false) => f64::from(code as i8),
                }
        };
        let stored: Vec<f64> = (0..length).map(element).collect();
        if !q4 {
            return stored;
        }
        let n = 1 << length.trailing_zeros();
        let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        let rotated = |i: usize| (0..n).map(|j| stored[i / n * n + j] * sign(i % n, j)).sum::<f64>() / (n as f64).sqrt();
        (0..length).map(rotated).collect()
    }

    fn strides(&self, part: &Part) -> (usize, usize) {
        let c = self.case;
        (c.heads_kv * (c.key_length + part.gap), c.heads_kv * (c.value_length + part.gap))
    }

    /// The segments as they are when the first `fed` tokens of the batch are in the window, `new` of which make the batch.
    fn segments(&self, fed: usize, new: usize) -> Vec<KvSegment<'_>> {
        let c = self.case;
        let of_head = move |head: usize| {
            c.parts.iter().zip(&self.bytes).enumerate().map(move |(i, (p, (keys, values)))| {
                let (key_stride, value_stride) = self.strides(p);
                let each = p.codec.bytes();
                let (keys, values) = (&keys[head * (c.key_length + p.gap) * each..], &values[head * (c.value_length + p.gap) * each..]);
                let hidden = if i == 0 { c.tokens - fed } else { 0 };
                let rows = Entries::Rows {
                    codec: p.codec,
                    keys: &keys[..keys.len() - hidden * key_stride * each],
                    values: &values[..values.len() - hidden * value_stride * each],
                    key_stride,
                    value_stride,
                };
                let entries = self.tiles.as_ref().filter(|_| i == 0).map_or(rows, |(layout, tiles)| {
                    let (keys, stride) = (&tiles[head * layout.bytes()..], c.heads_kv * layout.bytes());
                    let values = &keys[layout.key_bytes()..];
                    Entries::Tiles { layout: *layout, keys, values, key_stride: stride, value_stride: stride }
                });
                KvSegment {
                    entries,
                    len: p.len - hidden,
                    query: p.query,
                    visibility: p.causal.map_or(Visibility::All, |window| Visibility::Causal { first: p.len - hidden - new, window }),
                }
            })
        };
        (0..c.heads_kv).flat_map(of_head).collect()
    }

    /// Attention of the tokens `from .. to` of the batch as a batch of their own.
    fn attention(&self, level: Level, team: &Team, from: usize, to: usize) -> Vec<f32> {
        let c = self.case;
        let heads = c.heads_kv * c.group;
        let shape = Shape {
            tokens: to - from,
            heads,
            heads_kv: c.heads_kv,
            key_length: c.key_length,
            value_length: c.value_length,
            scale: 1.0 / (c.key_length as f32).sqrt(),
            memory_top_k: c.top_k,
        };
        let rows = from * heads * c.key_length..to * heads * c.key_length;
        let queries = Queries { local: &self.local[rows.clone()], memory: &self.memory[rows] };
        let mut out = vec![f32::NAN; (to - from) * heads * c.value_length];
        team.pass(|pass| attention_at(level, pass, &shape, queries, &self.segments(to, to - from), &mut out)).unwrap();
        out
    }

    /// Key (or value) `token` of a head of a part, decoded.
    fn entry(&self, part: usize, token: usize, head: usize, values: bool) -> Vec<f64> {
        if part == 0 && self.tiles.as_ref().is_some_and(|(layout, _)| layout.keys.codec().is_none()) {
            return self.dequantised(token, head, values);
        }
        let (c, p) = (self.case, &self.case.parts[part]);
        let (length, stride) = if values { (c.value_length, self.strides(p).1) } else { (c.key_length, self.strides(p).0) };
        let bytes = if values { &self.bytes[part].1 } else { &self.bytes[part].0 };
        let at = (token * stride + head * (length + p.gap)) * p.codec.bytes();
        let mut out = vec![0.0; length];
        p.codec.decode(&bytes[at..at + length * p.codec.bytes()], &mut out);
        out.into_iter().map(f64::from).collect()
    }

    /// The definition, in f64.
    fn plain(&self) -> Vec<f64> {
        let c = self.case;
        let heads = c.heads_kv * c.group;
        let scale = 1.0 / (c.key_length as f64).sqrt();
        let mut out = Vec::new();
        for row in 0..c.tokens * heads {
            let (token, head) = (row / heads, row % heads / c.group);
            let mut seen = Vec::new();
            for (i, p) in c.parts.iter().enumerate() {
                let queries = if p.query == QueryKind::Local { &self.local } else { &self.memory };
                let query = &queries[row * c.key_length..][..c.key_length];
                for j in 0..p.len {
                    let me = p.len.wrapping_sub(c.tokens).wrapping_add(token);
                    if p.causal.is_some_and(|window| j > me || (window > 0 && j + window <= me)) {
                        continue;
                    }
                    let score: f64 = query.iter().zip(self.entry(i, j, head, false)).map(|(q, k)| f64::from(*q) * k).sum();
                    seen.push((p.query, score * scale, self.entry(i, j, head, true)));
                }
            }
            let mut remembered: Vec<f64> = seen.iter().filter(|s| s.0 == QueryKind::Memory).map(|s| s.1).collect();
            remembered.sort_by(|a, b| b.total_cmp(a));
            if c.top_k > 0 && remembered.len() > c.top_k {
                seen.retain(|s| s.0 == QueryKind::Local || s.1 >= remembered[c.top_k - 1]);
            }
            let max = seen.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = seen.iter().map(|s| (s.1 - max).exp()).sum();
            let mean = |d: usize| seen.iter().map(|s| (s.1 - max).exp() * s.2[d]).sum::<f64>() / sum;
            out.extend((0..c.value_length).map(mean));
        }
        out
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_level_computes_the_softmax_over_what_a_query_sees() {
    let teams = [1, 3].map(|n| Team::new(n).unwrap());
    for (i, case) in CASES.iter().enumerate() {
        let data = Data::new(case);
        let want = data.plain();
        for level in Level::available() {
            for team in &teams {
                let got = data.attention(level, team, 0, case.tokens);
                for (j, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert!((f64::from(*got) - want).abs() < 3e-6, "case {i}, {level:?}, output {j}: {got}, expected {want}");
                }
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_batches_nor_on_the_width_of_vectors() {
    let teams = [1, 2, 3, 4].map(|n| Team::new(n).unwrap());
    for (i, case) in CASES.iter().enumerate() {
        let (data, tiled) = (Data::new(case), Data::new(case).tiled(case.parts[0].codec.into()));
        let mut fused: Option<Vec<u32>> = None;
        for level in Level::available() {
            let whole = bits(&data.attention(level, &teams[0], 0, case.tokens));
            assert!(whole == bits(&tiled.attention(level, &teams[0], 0, case.tokens)), "case {i}, {level:?}, in tiles");
            for (team, data) in teams.iter().flat_map(|team| [(team, &data), (team, &tiled)]) {
                assert!(whole == bits(&data.attention(level, team, 0, case.tokens)), "case {i}, {level:?}, {} threads", team.threads());
                for size in [1, 3, 16] {
                    let batches = (0..case.tokens).step_by(size);
                    let single: Vec<f32> = batches.flat_map(|j| data.attention(level, team, j, case.tokens.min(j + size))).collect();
                    assert!(whole == bits(&single), "case {i}, {level:?}, {} threads, batches of {size}", team.threads());
                }
            }
            if level != Level::Portable {
                assert!(*fused.get_or_insert_with(|| whole.clone()) == whole, "case {i}, {level:?}");
            }
        }
    }
}

/// The cases whose heads can be quantised.
fn quantised() -> impl Iterator<Item = (usize, Data<'static>, KvType)> {
    let cases = CASES.iter().enumerate().filter(|(_, c)| c.key_length % 32 == 0 && c.value_length % 32 == 0);
    cases.flat_map(|(i, case)| [KvType::Q8_0, KvType::Q4].map(|kv| (i, Data::new(case).tiled(kv), kv)))
}

#[test]
fn quantised_tiles_mean_what_their_layout_says() {
    let teams = [1, 3].map(|n| Team::new(n).unwrap());
    for (i, data, kv) in quantised() {
        let want = data.plain();
        for level in Level::available() {
            for team in &teams {
                let got = data.attention(level, team, 0, data.case.tokens);
                for (j, (got, want)) in got.iter().zip(&want).enumerate() {
                    // Queries have 16 bits: a score of unit variance is off by some 1e-5.
                    assert!((f64::from(*got) - want).abs() < 6e-5, "case {i}, {kv:?}, {level:?}, output {j}: {got}, expected {want}");
                }
            }
        }
    }
}

#[test]
fn quantised_tiles_give_the_same_bits_for_any_threads_and_batches() {
    let teams = [1, 2, 4].map(|n| Team::new(n).unwrap());
    for (i, data, kv) in quantised() {
        let tokens = data.case.tokens;
        let mut fused: Option<Vec<u32>> = None;
        for level in Level::available() {
            let whole = bits(&data.attention(level, &teams[0], 0, tokens));
            for team in &teams {
                for size in [1, 3, 16, tokens] {
                    let batches = (0..tokens).step_by(size);
                    let single: Vec<f32> = batches.flat_map(|j| data.attention(level, team, j, tokens.min(j + size))).collect();
                    assert!(whole == bits(&single), "case {i}, {kv:?}, {level:?}, {} threads, batches of {size}", team.threads());
                }
            }
            if level != Level::Portable {
                assert!(*fused.get_or_insert_with(|| whole.clone()) == whole, "case {i}, {kv:?}, {level:?}");
            }
        }
    }
}

/// Memories in every pair of types beside windows of every type, each read with its own query, its values turned back or not: as the
/// definition says with what the tiles hold, and the same bits for any threads and batches.
#[test]
fn quantised_memories_stand_beside_any_window() {
    use KvType::{Q4, Q8_0};
    let (tokens, heads_kv, group, length) = (5, 2, 3, 64);
    let heads = heads_kv * group;
    let [local, remembering] = [1, 2].map(|seed| floats(tokens * heads * length, seed).iter().map(|q| q * 3.0).collect::<Vec<_>>());
    let teams = [1, 3].map(|n| Team::new(n).unwrap());
    // Lengths that do and do not fill tiles and parts; neighbours of one and of another kind.
    let memories = [(33, Q8_0, Q4), (32, Q8_0, Q4), (270, Q4, Q4), (5, Q4, Q4), (16, KvType::F16, KvType::F16), (40, Q8_0, Q8_0)];
    for window in KvType::ALL {
        for top_k in [0, 20, 4096] {
            let segments: Vec<(usize, KvType, KvType, QueryKind)> = [(50, window, window, QueryKind::Local)]
                .into_iter()
                .chain(memories.map(|(len, keys, values)| (len, keys, values, QueryKind::Memory)))
                .collect();
            // Per segment and head: tiles of keys, tiles of values.
            let mut stored = Vec::new();
            for (i, &(len, keys, values, _)) in segments.iter().enumerate() {
                let layout = TileLayout { keys, values, key_length: length, value_length: length };
                for head in 0..heads_kv {
                    let rows = floats(2 * len * length, (10 * i + head) as u64);
                    let tiles = len.div_ceil(TILE_TOKENS);
                    let (mut k, mut v) = (vec![0xff; tiles * layout.key_bytes()], vec![0xff; tiles * layout.value_bytes()]);
                    for (token, row) in rows.chunks_exact(2 * length).enumerate() {
                        let (tile, slot) = (token / TILE_TOKENS, token % TILE_TOKENS);
                        layout.put_key(&mut k[tile * layout.key_bytes()..][..layout.key_bytes()], slot, &row[..length]);
                        layout.put_value(&mut v[tile * layout.value_bytes()..][..layout.value_bytes()], slot, &row[length..]);
                    }
                    stored.push((layout, k, v));
                }
            }
            let mut of_heads = Vec::new();
            for head in 0..heads_kv {
                for (i, &(len, _, _, query)) in segments.iter().enumerate() {
                    let (layout, keys, values) = &stored[i * heads_kv + head];
                    let (key_stride, value_stride) = (layout.key_bytes(), layout.value_bytes());
                    let entries = Entries::Tiles { layout: *layout, keys, values, key_stride, value_stride };
                    let visibility = if i == 0 { Visibility::Causal { first: len - tokens, window: 0 } } else { Visibility::All };
                    of_heads.push(KvSegment { entries, len, query, visibility });
                }
            }
            let mut want = vec![0.0f64; tokens * heads * length];
            for (row, want) in want.chunks_exact_mut(length).enumerate() {
                let (token, head) = (row / heads, row % heads / group);
                let mut seen = Vec::new();
                for (i, &(len, _, _, query)) in segments.iter().enumerate() {
                    let (layout, keys, values) = &stored[i * heads_kv + head];
                    let visible = if i == 0 { len - tokens + token + 1 } else { len };
                    let q = if query == QueryKind::Local { &local } else { &remembering };
                    for at in 0..visible {
                        let (tile, slot) = (at / TILE_TOKENS, at % TILE_TOKENS);
                        let (mut k, mut v) = (vec![0.0; length], vec![0.0; length]);
                        layout.get_key(&keys[tile * layout.key_bytes()..][..layout.key_bytes()], slot, &mut k);
                        layout.get_value(&values[tile * layout.value_bytes()..][..layout.value_bytes()], slot, &mut v);
                        let score: f64 = q[row * length..][..length].iter().zip(&k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        seen.push((query, score / (length as f64).sqrt(), v));
                    }
                }
                let mut remembered: Vec<f64> = seen.iter().filter(|s| s.0 == QueryKind::Memory).map(|s| s.1).collect();
                remembered.sort_by(|a, b| b.total_cmp(a));
                if top_k > 0 && remembered.len() > top_k {
                    seen.retain(|s| s.0 == QueryKind::Local || s.1 >= remembered[top_k - 1]);
                }
                let max = seen.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = seen.iter().map(|s| (s.1 - max).exp()).sum();
                for (_, score, v) in &seen {
                    want.iter_mut().zip(v).for_each(|(w, v)| *w += (score - max).exp() / sum * f64::from(*v));
                }
            }
            let shape = Shape {
                tokens,
                heads,
                heads_kv,
                key_length: length,
                value_length: length,
                scale: 1.0 / (length as f32).sqrt(),
                memory_top_k: top_k,
            };
            let mut first: Option<Vec<u32>> = None;
            for level in Level::available() {
                for team in &teams {
                    let queries = Queries { local: &local, memory: &remembering };
                    let mut out = vec![f32::NAN; want.len()];
                    team.pass(|pass| attention_at(level, pass, &shape, queries, &of_heads, &mut out)).unwrap();
                    for (j, (got, want)) in out.iter().zip(&want).enumerate() {
                        let error = (f64::from(*got) - want).abs();
                        assert!(error < 6e-5, "window {window:?}, k {top_k}, {level:?}, output {j}: {got}, expected {want}");
                    }
                    if level != Level::Portable {
                        assert!(*first.get_or_insert_with(|| bits(&out)) == bits(&out), "{window:?}, {level:?}, {}", team.threads());
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_quantised_comes_back_nearly_as_it_was() {
    // Outliers in one element, as keys have them.
    let mut x = floats(20 * 96, 3);
    x.iter_mut().step_by(96).for_each(|x| *x *= 8.0);
    for (kv, most) in [(KvType::F32, 0.0), (KvType::F16, 3e-4), (KvType::Bf16, 2.5e-3), (KvType::Q8_0, 1e-2), (KvType::Q4, 0.1)] {
        let layout = TileLayout { keys: kv, values: kv, key_length: 96, value_length: 64 };
        let mut tiles = vec![0xff; 2 * layout.bytes()];
        for (i, row) in x.chunks_exact(96).enumerate() {
            layout.put(&mut tiles[i / 16 * layout.bytes()..][..layout.bytes()], i % 16, row, &row[32..]);
        }
        // The first three tokens leave.
        for i in 0..17 {
            layout.shift(&mut tiles, ((i + 3) / 16 * layout.bytes(), (i + 3) % 16), (i / 16 * layout.bytes(), i % 16));
        }
        let (mut error, mut all) = (0.0, 0.0);
        for (i, row) in x.chunks_exact(96).skip(3).enumerate() {
            let (mut key, mut value) = ([0.0; 96], [0.0; 64]);
            layout.get(&tiles[i / 16 * layout.bytes()..][..layout.bytes()], i % 16, &mut key, &mut value);
            for (got, want) in key.iter().zip(row).chain(value.iter().zip(&row[32..])) {
                error += f64::from(got - want).powi(2);
                all += f64::from(*want).powi(2);
            }
        }
        let error = (error / all).sqrt();
        assert!(error <= most && error > most * 0.3 || kv == KvType::F32 && error == 0.0, "{kv:?}: {error}");
    }
}

#[test]
fn head_sizes_that_cannot_be_quantised_are_named() {
    for kv in KvType::ALL {
        assert!(kv.check(64).is_ok() && kv.check(96).is_ok());
        let refused = kv.check(100).map_err(|e| e.to_string());
        match kv {
            KvType::Q8_0 | KvType::Q4 => assert!(refused.unwrap_err().contains("head size of 100")),
            _ => refused.unwrap(),
        }
    }
}

#[test]
fn what_a_query_does_not_see_cannot_spoil_it_and_what_it_sees_does() {
    const CASE: Case = case(10, 1, 3, 32, 0, &[window(F32, 150, 70)]);
    let clean = Data::new(&CASE);
    let team = Team::new(2).unwrap();
    let (width, stride) = (3 * 32, 4 * (32 + CASE.parts[0].gap));
    for level in Level::available() {
        let want = clean.attention(level, &team, 0, 10);
        for (poisoned, spoilt) in [(145, 5..10), (75, 0..5), (10, 0..0)] {
            let mut data = Data::new(&CASE);
            let (keys, values) = &mut data.bytes[0];
            for bytes in [keys, values] {
                bytes[poisoned * stride..][..128].as_chunks_mut::<4>().0.fill(f32::NAN.to_le_bytes());
            }
            let got = data.attention(level, &team, 0, 10);
            for token in 0..10 {
                let row = token * width..(token + 1) * width;
                if spoilt.contains(&token) {
                    assert!(got[row].iter().all(|v| v.is_nan()), "{level:?}: token {token} sees entry {poisoned}");
                } else {
                    assert_eq!(bits(&got[row.clone()]), bits(&want[row]), "{level:?}: token {token} does not see entry {poisoned}");
                }
            }
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let team = Team::new(1).unwrap();
    let shape = Shape { tokens: 2, heads: 2, heads_kv: 1, key_length: 8, value_length: 8, scale: 1.0, memory_top_k: 0 };
    let q = floats(32, 1);
    // No segments, and an empty one.
    let bytes = vec![0; 32 * 4];
    let nothing = KvSegment {
        entries: Entries::Rows { codec: F32, keys: &bytes, values: &bytes, key_stride: 8, value_stride: 8 },
        len: 0,
        query: QueryKind::Local,
        visibility: Visibility::Causal { first: 0, window: 0 },
    };
    for level in Level::available() {
        for segments in [vec![], vec![nothing]] {
            let mut out = vec![f32::NAN; 32];
            team.pass(|pass| attention_at(level, pass, &shape, Queries { local: &q, memory: &q }, &segments, &mut out)).unwrap();
            assert!(out.iter().all(|v| *v == 0.0));
        }
    }
}

/// With top-k the values of parts without any of the best keys are not looked at: they may be on a disk.
#[test]
fn values_that_top_k_leaves_out_are_not_read() {
    let (d, len, top_k) = (32, 256, 5);
    let encode = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    // The best keys lie in the second of three memories, in any order among them.
    let keys: Vec<Vec<u8>> =
        (0..3).map(|m| encode(&floats(len * d, m).iter().map(|v| v + if m == 1 { 4.0 } else { 0.0 }).collect::<Vec<_>>())).collect();
    let values: Vec<Vec<u8>> = (0..3).map(|m| encode(&if m == 1 { floats(len * d, 7) } else { vec![f32::NAN; len * d] })).collect();
    let segment = |m: usize| KvSegment {
        entries: Entries::Rows { codec: F32, keys: &keys[m], values: &values[m], key_stride: d, value_stride: d },
        len,
        query: QueryKind::Memory,
        visibility: Visibility::All,
    };
    for tokens in [1, 3, 40] {
        let q: Vec<f32> = floats(2 * tokens * d, 3).iter().map(|v| v + 1.5).collect();
        let shape = Shape { tokens, heads: 2, heads_kv: 1, key_length: d, value_length: d, scale: 0.3, memory_top_k: top_k };
        for (level, threads) in Level::available().into_iter().flat_map(|level| [1, 2].map(|threads| (level, threads))) {
            let team = Team::new(threads).unwrap();
            let run = |segments: &[KvSegment<'_>], k: usize| {
                let mut out = vec![f32::NAN; 2 * tokens * d];
                let shape = Shape { memory_top_k: k, ..shape };
                team.pass(|pass| attention_at(level, pass, &shape, Queries { local: &q, memory: &q }, segments, &mut out)).unwrap();
                out
            };
            let all = run(&[segment(0), segment(1), segment(2)], top_k);
            assert!(all.iter().all(|v| v.is_finite()), "{level:?}, {threads} threads, {tokens} tokens");
            assert_eq!(bits(&all), bits(&run(&[segment(1)], top_k)), "{level:?}, {threads} threads, {tokens} tokens");
            assert!(run(&[segment(0), segment(1), segment(2)], 0).iter().any(|v| v.is_nan()), "all of it is read without top-k");
        }
    }
}

/// What retrieval votes by: the best key of each block, against a plain evaluation of the keys as they decode.
#[test]
fn the_best_key_of_each_segment_is_found() {
    let (heads_kv, group, tokens, length, lens) = (2, 3, 4, 64, [32, 5, 300, 16]);
    let shape =
        Shape { tokens, heads: heads_kv * group, heads_kv, key_length: length, value_length: length, scale: 0.125, memory_top_k: 0 };
    let queries = floats(tokens * heads_kv * group * length, 3);
    for kv in [None, Some(KvType::F16), Some(KvType::Q8_0), Some(KvType::Q4)] {
        // For each head and segment the bytes, and the keys that they decode to.
        let made: Vec<(Vec<u8>, Vec<u8>, Vec<f32>)> = (0..heads_kv * lens.len())
            .map(|i| {
                let (len, keys) = (lens[i % lens.len()], floats(lens[i % lens.len()] * length, 100 + i as u64));
                let Some(kv) = kv else {
                    let (mut bytes, mut decoded) = (Vec::new(), vec![0.0; keys.len()]);
                    Codec::F16.append(&keys, &mut bytes);
                    Codec::F16.decode(&bytes, &mut decoded);
                    return (bytes.clone(), bytes, decoded);
                };
                let layout = TileLayout { keys: kv, values: kv, key_length: length, value_length: length };
                let mut bytes = vec![0; len.div_ceil(TILE_TOKENS) * layout.key_bytes()];
                let mut decoded = vec![0.0; keys.len()];
                for (t, (key, decoded)) in keys.chunks(length).zip(decoded.chunks_mut(length)).enumerate() {
                    let tile = &mut bytes[t / TILE_TOKENS * layout.key_bytes()..][..layout.key_bytes()];
                    layout.put_key(tile, t % TILE_TOKENS, key);
                    layout.get_key(tile, t % TILE_TOKENS, decoded);
                }
                (bytes, vec![0; len.div_ceil(TILE_TOKENS) * layout.value_bytes()], decoded)
            })
            .collect();
        let segments: Vec<KvSegment> = made
            .iter()
            .enumerate()
            .map(|(i, (keys, values, _))| {
                let entries = match kv {
                    None => Entries::Rows { codec: Codec::F16, keys, values, key_stride: length, value_stride: length },
                    Some(kv) => {
                        let layout = TileLayout { keys: kv, values: kv, key_length: length, value_length: length };
                        Entries::Tiles { layout, keys, values, key_stride: layout.key_bytes(), value_stride: layout.value_bytes() }
                    }
                };
                KvSegment { entries, len: lens[i % lens.len()], query: QueryKind::Local, visibility: Visibility::All }
            })
            .collect();
        for level in Level::available() {
            let mut found = vec![0.0; tokens * heads_kv * group * lens.len()];
            best_scores_at(level, &shape, Queries { local: &queries, memory: &[] }, &segments, &mut found).unwrap();
            for (row, found) in found.chunks(lens.len()).enumerate() {
                let query = &queries[row * length..][..length];
                for (segment, found) in found.iter().enumerate() {
                    let keys = &made[row % (heads_kv * group) / group * lens.len() + segment].2;
                    let score = |key: &[f32]| key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>() * 0.125;
                    let best = keys.chunks(length).map(score).fold(f64::NEG_INFINITY, f64::max);
                    assert!(
                        (f64::from(*found) - best).abs() < 2e-4,
                        "{level:?}, {kv:?}, row {row}, segment {segment}: {found}, not {best}"
                    );
                }
            }
        }
    }
}
