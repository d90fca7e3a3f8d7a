//! What a damaged page of the chain of commits costs: nothing where it follows from the rest, else its own commit and never what lies behind
//! it; always reported, and never mistaken for a torn tail.

#[path = "common/disk.rs"]
mod disk;

use disk::Disk;
use loci::Error;
use loci::memory::{Access, Codec, CompactOptions, Fingerprint, Geometry, LayerKv, Memory, Side, SketchRoom, Source};
use std::ops::Range;

const PAGE: usize = 4096;

fn geometry() -> Geometry {
    Geometry {
        layers: vec![0, 2],
        head_count_kv: 2,
        key_length: 32,
        value_length: 32,
        block_tokens: 4,
        codec: Codec::K8V4,
        sketched: vec![0, 2],
    }
}

fn append(m: &mut Memory, ids: Range<u32>, label: &str) {
    let row = |id: u32, salt: u32| (0..64).map(move |i| ((id * 31 + i * 7 + salt) % 97) as f32 / 16.0 - 3.0);
    let all = |salt: u32| ids.clone().flat_map(|id| row(id, salt)).collect::<Vec<f32>>();
    let rows: Vec<_> = (0..2).map(|slot| (all(slot), all(slot + 50))).collect();
    let layers: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    let text = u64::from(ids.start)..u64::from(ids.end);
    m.append(&ids.clone().collect::<Vec<u32>>(), Some(Source { label, text }), &layers).unwrap();
}

/// Four commits of 9, 5, 6 and 12 tokens, the second of two sources; the offsets of each commit's header and commit page.
fn four() -> (Vec<u8>, Vec<[usize; 2]>) {
    let disk = Disk::default();
    let mut m = Memory::create_on(disk.storage(), geometry(), Fingerprint { architecture: "llama".into(), hash: [3; 32] }).unwrap();
    for parts in [vec![(0..9, "a")], vec![(9..12, "a longer name"), (12..14, "c")], vec![(14..20, "c")], vec![(20..32, "d")]] {
        parts.into_iter().for_each(|(ids, label)| append(&mut m, ids, label));
        m.commit().unwrap();
    }
    let bytes = disk.bytes();
    let pages = pages(&bytes);
    assert_eq!(pages.len(), 4);
    (bytes, pages)
}

fn pages(bytes: &[u8]) -> Vec<[usize; 2]> {
    let starting = |magic: &'static [u8]| (0..bytes.len()).step_by(PAGE).filter(move |at| bytes[*at..].starts_with(magic));
    starting(b"LOCISEG\n").zip(starting(b"LOCICMT\n")).map(|(a, b)| [a, b]).collect()
}

/// The file as a program would have left it that knew of no trails: commit pages say nothing of the commits before them.
fn without_trails(mut bytes: Vec<u8>) -> Vec<u8> {
    for [_, page] in pages(&bytes) {
        bytes[page + 72..page + PAGE - 4].fill(0);
        reseal(&mut bytes[page..page + PAGE]);
    }
    bytes
}

fn reseal(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[..PAGE - 4]);
    page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn open(bytes: Vec<u8>, access: Access) -> loci::Result<Memory> {
    Memory::open_on(Disk::with(bytes).storage(), None, access)
}

/// Every row of a range of blocks, or the first error.
fn rows(m: &Memory, blocks: Range<usize>) -> loci::Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    for block in blocks {
        for (slot, head, side) in [(0, 0, Side::Keys), (0, 1, Side::Values), (1, 0, Side::Values), (1, 1, Side::Keys)] {
            out.push(m.rows(side, slot, head, block)?.bytes.to_vec());
        }
    }
    Ok(out)
}

#[test]
fn one_damaged_page_costs_nothing_and_is_reported_and_healed() {
    let (good, pages) = four();
    one_damaged_page(good.clone(), &pages, |bytes| bytes);
    one_damaged_page(without_trails(good), &pages, without_trails);
}

/// `comparable`: healed pages have trails, whoever wrote them first.
fn one_damaged_page(good: Vec<u8>, pages: &[[usize; 2]], comparable: fn(Vec<u8>) -> Vec<u8>) {
    let whole = open(good.clone(), Access::Read).unwrap();
    let has_trails = comparable(good.clone()) != without_trails(good.clone());
    for page in pages.iter().flatten() {
        // One bit of each field and a sample of the rest; all of the page.
        for at in (0..128).step_by(3).chain((128..PAGE).step_by(509)).chain([PAGE - 1, usize::MAX]) {
            let mut bad = good.clone();
            if at == usize::MAX {
                bad[*page..page + PAGE].fill(0xe5);
            } else {
                bad[page + at] ^= 1 << (at % 8);
            }
            let disk = Disk::with(bad.clone());
            let mut m = Memory::open_on(disk.storage(), None, Access::Write).unwrap();
            // Opening goes by the last page of a file with trails and needs no other.
            let met = usize::from(!has_trails || *page == pages[3][1]);
            assert_eq!((m.len(), m.stats().damaged_pages, m.stats().lost_tokens), (32, met, 0));
            assert_eq!(m.tokens(0..32).unwrap(), (0..32).collect::<Vec<u32>>());
            assert_eq!(m.sources().unwrap(), whole.sources().unwrap());
            assert_eq!(rows(&m, 0..m.blocks()).unwrap(), rows(&whole, 0..whole.blocks()).unwrap());
            let damages = m.verify(|_, _| true).unwrap();
            assert!(matches!(&damages[..], [d] if d.layer_slot.is_none() && matches!(d.error, Error::Corrupt { .. })), "{damages:?}");
            assert!(disk.state().log.is_empty(), "nothing is written by opening and verifying");
            assert_eq!(m.heal_sections().unwrap(), 1);
            assert!(comparable(disk.bytes()) == good, "page {page}, byte {at}");
            assert_eq!((m.stats().damaged_pages, m.verify(|_, _| true).unwrap().len()), (0, 0));
        }
    }
}

#[test]
fn what_later_pages_tell_of_is_not_lost() {
    let (good, pages) = four();
    let whole = open(good.clone(), Access::Read).unwrap();
    for spoilt in
        [vec![pages[1][0], pages[1][1]], vec![pages[0][0], pages[0][1], pages[1][0], pages[1][1], pages[2][0], pages[2][1], pages[3][0]]]
    {
        let mut bad = good.clone();
        spoilt.iter().for_each(|at| bad[at + 40] ^= 0x11);
        let disk = Disk::with(bad.clone());
        let mut m = Memory::open_on(disk.storage(), None, Access::Write).unwrap();
        assert_eq!((m.len(), m.stats().damaged_pages, m.stats().lost_tokens), (32, 0, 0));
        assert_eq!(m.tokens(0..32).unwrap(), (0..32).collect::<Vec<u32>>());
        assert_eq!(m.sources().unwrap(), whole.sources().unwrap());
        assert_eq!(rows(&m, 0..m.blocks()).unwrap(), rows(&whole, 0..whole.blocks()).unwrap());
        assert!(!m.verify(|_, _| true).unwrap().is_empty(), "and it is said");
        append(&mut m, 32..40, "e");
        m.commit().unwrap();
        let again = open(disk.bytes(), Access::Read).unwrap();
        assert_eq!(again.tokens(0..40).unwrap(), (0..40).collect::<Vec<u32>>());
    }
}

#[test]
fn many_commits_are_opened_by_few_pages_and_go_on_as_one_trail() {
    let g = Geometry {
        layers: vec![0],
        head_count_kv: 1,
        key_length: 2,
        value_length: 2,
        block_tokens: 4,
        codec: Codec::F16,
        sketched: Vec::new(),
    };
    let disk = Disk::default();
    let mut m = Memory::create_on(disk.storage(), g, Fingerprint { architecture: "llama".into(), hash: [3; 32] }).unwrap();
    let commit = |m: &mut Memory, id: u32| {
        m.append(&[id], None, &[LayerKv { keys: &[1.0, id as f32], values: &[0.0, 2.0] }]).unwrap();
        m.commit().unwrap();
    };
    (0..150).for_each(|id| commit(&mut m, id));
    m.append(&[150], Some(Source { label: "gone", text: 0..1 }), &[LayerKv { keys: &[1.0, 1.0], values: &[0.0, 0.0] }]).unwrap();
    assert_eq!(m.forget("gone").unwrap(), 1);
    drop(m);
    // Writers come and go; each goes on where the last one stopped.
    for id in (151..500).step_by(13) {
        let mut m = Memory::open_on(disk.storage(), None, Access::Write).unwrap();
        (id..id + 13).for_each(|id| commit(&mut m, id));
    }
    let (good, commits) = (disk.bytes(), 151 + 1 + 351);
    let disk = Disk::with(good.clone());
    let mut m = Memory::open_on(disk.storage(), None, Access::Write).unwrap();
    // Superblocks, a page for 160 commits, and that of the records.
    let read: u64 = disk.state().read.iter().map(|r| r.end - r.start).sum();
    assert_eq!((m.stats().commits, read), (commits, (2 + 4 + 1) * PAGE as u64));
    assert_eq!((m.len(), m.stats().forgotten_tokens), (502, 1));
    assert_eq!(m.tokens(0..502).unwrap(), (0..502).collect::<Vec<u32>>());
    assert!(m.verify(|_, _| true).unwrap().is_empty());
    // What is written anew from a walk over all pages is what those writers wrote.
    let pages = pages(&good);
    for i in [3, 150, 151, 152, 163, 164, 310, 311, 312, 400, commits as usize - 1] {
        for page in pages[i] {
            if i == 151 && page == pages[i][0] {
                continue; // records follow from nothing
            }
            disk.state().bytes[page + 50] ^= 4;
            assert_eq!(m.heal_sections().unwrap(), 1, "commit {i}");
            assert!(disk.bytes() == good, "commit {i}");
        }
    }
    // Where the way back from the end sets its foot nothing is left: it goes around.
    for (spoilt, around) in [(vec![342], 1), (vec![342, 182, 22], 3), (vec![342, 343, 344, 184, 183], 5), ((190..349).collect(), 159)] {
        let mut bad = good.clone();
        spoilt.iter().flat_map(|i: &usize| pages[*i]).for_each(|at| bad[at + 40] ^= 0x11);
        let disk = Disk::with(bad);
        let m = Memory::open_on(disk.storage(), None, Access::Read).unwrap();
        let read: u64 = disk.state().read.iter().map(|r| r.end - r.start).sum();
        assert!(read <= (2 + 5 + 1 + 2 * around) * PAGE as u64, "{spoilt:?}: {read}");
        assert_eq!((m.len(), m.stats().lost_tokens, m.stats().forgotten_tokens), (502, 0, 1), "{spoilt:?}");
        assert_eq!(m.tokens(0..502).unwrap(), (0..502).collect::<Vec<u32>>());
    }
    // To any point, and on from there.
    let mut reader = open(good, Access::Read).unwrap();
    for tokens in [1, 150, 151, 152, 400, 502] {
        reader.rewind(tokens).unwrap();
        assert_eq!((reader.len(), reader.tokens(tokens - 1..tokens).unwrap()), (tokens, vec![tokens as u32 - 1]));
        assert_eq!(reader.refresh().unwrap(), tokens < 502);
        assert_eq!(reader.len(), 502);
    }
}

#[test]
fn a_trail_that_says_something_else_is_found_and_does_no_harm() {
    let (good, pages) = four();
    let whole = open(good.clone(), Access::Read).unwrap();
    let mut opened = 0;
    for (i, [_, page]) in pages.iter().enumerate() {
        for at in (72..80 + 24 * (i + 1)).step_by(4).filter(|at| *at != 76) {
            for word in [1u32, 2, 7, 161, 0x7fff_ffff, u32::MAX] {
                let mut bad = good.clone();
                let there = page + at..page + at + 4;
                let less = at == 72 && word <= i as u32;
                if bad[there.clone()] == word.to_le_bytes() {
                    continue;
                }
                bad[there].copy_from_slice(&word.to_le_bytes());
                reseal(&mut bad[*page..page + PAGE]);
                let m = open(bad, Access::Read).unwrap();
                assert_eq!((m.len(), m.stats().lost_tokens), (32, 0), "commit {i}, byte {at}: {word}");
                assert_eq!(m.verify(|_, _| true).unwrap().is_empty(), less, "commit {i}, byte {at}: {word}");
                let reads = (0..m.blocks()).map(|b| rows(&m, b..b + 1)).collect::<loci::Result<Vec<_>>>();
                match reads {
                    Ok(found) => assert_eq!(found.concat(), rows(&whole, 0..whole.blocks()).unwrap()),
                    Err(e) => assert!(matches!(e, Error::Corrupt { .. }), "{e}"),
                }
                opened += 1;
            }
        }
    }
    assert!(opened > 200, "{opened}");
}

#[test]
fn what_follows_from_nothing_is_lost_and_what_lies_behind_it_is_not() {
    let (good, pages) = four();
    let good = without_trails(good);
    let whole = open(good.clone(), Access::Read).unwrap();
    // Header and token ids; header and commit page; of two commits; of all but the first.
    let cases: [(Vec<usize>, Range<u64>); 6] = [
        (vec![pages[1][0], pages[1][0] + PAGE - 36], 9..14),
        (vec![pages[1][0], pages[1][1]], 9..14),
        (vec![pages[1][0], pages[1][1], pages[2][0]], 9..20),
        (vec![pages[1][0], pages[1][1], pages[2][0], pages[2][1]], 9..20),
        (vec![pages[3][0], pages[3][1]], 20..32),
        (vec![pages[0][0], pages[0][1]], 0..9),
    ];
    for (spoilt, lost) in cases {
        let mut bad = good.clone();
        spoilt.iter().for_each(|at| bad[at + 40] ^= 0x11);
        let disk = Disk::with(bad.clone());
        let mut m = Memory::open_on(disk.storage(), None, Access::Write).unwrap();
        assert_eq!((m.len(), m.stats().lost_tokens), (32, lost.end - lost.start), "{lost:?}");
        let (ids, gaps) = m.tokens_and_gaps(0..32).unwrap();
        assert_eq!(gaps, std::slice::from_ref(&lost));
        assert!((0..32).all(|t| lost.contains(&t) || ids[t as usize] == t as u32), "{lost:?}");
        let left: Vec<_> = whole.sources().unwrap().into_iter().filter(|s| !lost.contains(&s.tokens.start)).collect();
        assert_eq!(m.sources().unwrap(), left);
        let mut read = 0;
        for block in 0..m.blocks() {
            let span = m.block(block).unwrap();
            let twin = (0..whole.blocks()).find(|b| whole.block(*b).unwrap() == span);
            match rows(&m, block..block + 1) {
                Ok(found) => {
                    assert_eq!(found, rows(&whole, twin.unwrap()..twin.unwrap() + 1).unwrap());
                    read += span.len as u64;
                }
                Err(e) => assert!(matches!(e, Error::Corrupt { .. }) && lost.contains(&span.first_token), "{e}"),
            }
            let searched = m.sketched_blocks(1).any(|blocks| blocks.contains(&block));
            assert_eq!(searched, !lost.contains(&span.first_token));
            let sketches = m.read_sketches(1, 1, block, &mut SketchRoom::default()).unwrap().map(|s| s.blocks.contains(&block));
            assert_eq!(sketches, searched.then_some(true));
        }
        assert_eq!(read, 32 - (lost.end - lost.start));
        let damages = m.verify(|_, _| true).unwrap();
        assert!(matches!(&damages[..], [d] if m.block(d.blocks.start).unwrap().first_token == lost.start), "{damages:?}");
        assert_eq!(m.heal_sections().unwrap(), 0);
        assert_eq!(disk.bytes(), bad, "nothing is written over what is lost");
        // It is written on behind everything, and read again.
        append(&mut m, 32..40, "e");
        m.commit().unwrap();
        let written = disk.bytes();
        assert!(written[2 * PAGE..bad.len()] == bad[2 * PAGE..], "what was there stays");
        let again = open(written, Access::Read).unwrap();
        assert_eq!((again.len(), again.stats().lost_tokens), (40, lost.end - lost.start));
        assert_eq!(again.tokens(32..40).unwrap(), (32..40).collect::<Vec<u32>>());
    }
}

#[test]
fn readers_follow_and_wind_back_around_damage_and_compacting_leaves_it_out() {
    let (good, pages) = four();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spoilt.lmem");
    let mut bad = without_trails(good);
    [pages[1][0], pages[1][1]].iter().for_each(|at| bad[at + 40] ^= 0x11);
    bad[pages[2][0] + 40] ^= 0x11;
    std::fs::write(&path, &bad).unwrap();
    let mut reader = Memory::open_read_only(&path, None).unwrap();
    let lost = reader.stats().lost_tokens;
    assert_eq!(lost, 11, "with two commits in a row the second one's page says no more than where it ends");
    for (tokens, expected) in [(8, 0), (9, 9), (19, 9), (20, 20), (31, 20), (40, 32)] {
        reader.refresh().unwrap();
        reader.rewind(tokens).unwrap();
        assert_eq!(reader.len(), expected, "wound back to {tokens}");
    }
    let mut m = Memory::open(&path, None).unwrap();
    append(&mut m, 32..37, "e");
    m.commit().unwrap();
    assert!(reader.refresh().unwrap());
    assert_eq!(reader.stats().damaged_pages, 1);
    assert_eq!((reader.len(), reader.stats().lost_tokens), (37, lost));
    assert!(matches!(m.forget("a longer name"), Err(Error::Corrupt { .. })), "nobody can say whether there is more of it");
    drop(m);
    assert!(matches!(Memory::compact(&path, None, CompactOptions::default(), |_, _| true), Err(Error::Corrupt { .. })));
    let options = CompactOptions { drop_damaged: true, ..Default::default() };
    let done = Memory::compact(&path, None, options, |_, _| true).unwrap();
    assert_eq!((done.tokens, done.dropped_blocks), (37 - 11, 3));
    let m = Memory::open(&path, None).unwrap();
    let expected: Vec<u32> = (0..9).chain(20..37).collect();
    assert_eq!((m.tokens(0..26).unwrap(), m.verify(|_, _| true).unwrap().len()), (expected, 0));
}

#[test]
fn a_lost_record_is_reported_and_forgets_nothing_else() {
    let (good, _) = four();
    let disk = Disk::with(good);
    let mut m = Memory::open_on(disk.storage(), None, Access::Write).unwrap();
    assert_eq!(m.forget("a").unwrap(), 9);
    append(&mut m, 32..40, "e");
    m.commit().unwrap();
    let good = disk.bytes();
    let pages = pages(&good);
    assert_eq!(pages.len(), 6);
    for (spoilt, mends) in [(pages[4][0], false), (pages[4][1], true)] {
        let mut bad = good.clone();
        bad[spoilt + 100] ^= 2;
        let m = open(bad, Access::Read).unwrap();
        let (forgotten, met) = if mends { (9, 0) } else { (0, 1) };
        assert_eq!((m.len(), m.stats().forgotten_tokens, m.stats().damaged_pages, m.stats().lost_tokens), (40, forgotten, met, 0));
        assert_eq!(m.tokens(32..40).unwrap(), (32..40).collect::<Vec<u32>>());
        assert_eq!(m.verify(|_, _| true).unwrap().len(), 1);
    }
}

#[test]
fn behind_what_a_superblock_vouches_for_a_damaged_page_is_a_torn_tail() {
    let (good, pages) = four();
    for page in pages[3] {
        let mut bad = good.clone();
        // The newer superblock, which has the fourth commit, is lost with it.
        let newer = if bad[3072] > bad[PAGE + 3072] { 0 } else { PAGE };
        bad[newer + 200] ^= 1;
        let vouched = open(bad.clone(), Access::Read).unwrap();
        assert_eq!(vouched.len(), 32, "it is found all the same while it is whole");
        bad[page + 40] ^= 1;
        let m = open(bad, Access::Read).unwrap();
        assert_eq!((m.len(), m.stats().damaged_pages), (20, 0));
    }
}
