//! What a memory file promises when things go wrong: a power cut at any moment, an error from any call, any byte flipped, any
//! length cut off. Nothing acknowledged is lost, nothing wrong is read in silence, nothing panics.

#[path = "common/disk.rs"]
mod disk;

use disk::{Disk, Failure, Fate, Moment, Op, Rng};
use loci::Error;
use loci::memory::{Access, Codec, ExtentRoom, Fingerprint, Geometry, LayerKv, Memory, Side, SketchRoom, Source, SourceSpan};

const PAGE: usize = 4096;

fn geometry() -> Geometry {
    Geometry {
        layers: vec![1, 3],
        head_count_kv: 2,
        key_length: 4,
        value_length: 3,
        block_tokens: 4,
        codec: Codec::F16,
        sketched: vec![1, 3],
    }
}

fn fingerprint() -> Fingerprint {
    Fingerprint { architecture: "llama".into(), hash: [9; 32] }
}

/// A token is known by its seed, from which its id and its rows follow; no two tokens of a test have the same one, so that what is
/// left over from a lost commit cannot pass for what was written later.
type Seed = u32;

fn row(seed: Seed, slot: usize, head: usize, side: Side, length: usize) -> Vec<f32> {
    let salt = slot * 8 + head * 4 + (side == Side::Values) as usize * 2;
    // Exact in half precision.
    (0..length).map(|d| ((seed as usize * 97 + salt * 31 + d * 7) % 2039) as f32 - 1000.0).collect()
}

fn append(m: &mut Memory, seeds: &[Seed]) -> loci::Result<()> {
    let g = m.geometry().clone();
    let side = |slot, side, length: u32| -> Vec<f32> {
        let heads = 0..g.head_count_kv as usize;
        seeds.iter().flat_map(|s| heads.clone().flat_map(|h| row(*s, slot, h, side, length as usize))).collect()
    };
    let rows: Vec<_> =
        (0..g.layers.len()).map(|slot| (side(slot, Side::Keys, g.key_length), side(slot, Side::Values, g.value_length))).collect();
    let layers: Vec<_> = rows.iter().map(|(keys, values)| LayerKv { keys, values }).collect();
    let text = u64::from(seeds[0])..u64::from(seeds[0]) + seeds.len() as u64;
    m.append(seeds, Some(Source { label: "a book", text }), &layers)
}

/// Everything in `m` is what these tokens say; the first thing that is not, or the first error, otherwise.
fn compare(m: &Memory, seeds: &[Seed]) -> Result<(), String> {
    let g = m.geometry();
    let text = |e: Error| e.to_string();
    if m.tokens(0..m.len()).map_err(text)? != seeds {
        return Err("other tokens".into());
    }
    let mut at = 0;
    for block in 0..m.blocks() {
        let span = m.block(block).map_err(text)?;
        if span.first_token != at as u64 || span.len == 0 {
            return Err(format!("block {block} is {span:?}"));
        }
        for slot in 0..g.layers.len() {
            for head in 0..g.head_count_kv as usize {
                let mut mean = vec![0.0_f64; g.key_length as usize];
                for (side, length) in [(Side::Keys, g.key_length as usize), (Side::Values, g.value_length as usize)] {
                    let mut rows = vec![0.0; span.len * length];
                    m.rows(side, slot, head, block).map_err(text)?.decode(&mut rows);
                    let expected: Vec<f32> = seeds[at..at + span.len].iter().flat_map(|s| row(*s, slot, head, side, length)).collect();
                    if rows != expected {
                        return Err(format!("other {side:?} in block {block}"));
                    }
                    if side == Side::Keys {
                        for (i, x) in rows.iter().enumerate() {
                            mean[i % length] += *x as f64 / span.len as f64;
                        }
                    }
                }
                let stored = &m.mean_keys(slot).map_err(text)?[(block * 2 + head) * 4..][..4];
                // In half precision.
                if mean.iter().zip(stored).any(|(a, b)| (a - f64::from(*b)).abs() > a.abs() / 2048.0 + 1e-3) {
                    return Err(format!("another mean in block {block}"));
                }
            }
        }
        at += span.len;
    }
    let covered: u64 = m.sources().map_err(text)?.iter().map(|s| s.tokens.end - s.tokens.start).sum();
    if at != seeds.len() || covered != at as u64 {
        return Err(format!("blocks of {at} and sources of {covered} tokens"));
    }
    Ok(())
}

fn check(m: &Memory, seeds: &[Seed]) {
    assert_eq!(m.len(), seeds.len() as u64);
    compare(m, seeds).unwrap();
}

fn open(disk: &Disk, access: Access) -> loci::Result<Memory> {
    Memory::open_on(disk.storage(), Some(&fingerprint()), access)
}

fn seeds(next: &mut Seed, n: u32) -> Vec<Seed> {
    *next += n;
    (*next - n..*next).collect()
}

/// Commits of these sizes, each in two appends, with a restart in between: the disk and the tokens after each commit.
fn written(sizes: &[u32], reopen_after: usize) -> (Disk, Vec<Vec<Seed>>) {
    let disk = Disk::default();
    let mut m = Memory::create_on(disk.storage(), geometry(), fingerprint()).unwrap();
    let (mut next, mut all, mut states) = (100, Vec::new(), vec![Vec::new()]);
    for (i, n) in sizes.iter().enumerate() {
        let new = seeds(&mut next, *n);
        let (a, b) = new.split_at(new.len().div_ceil(2));
        append(&mut m, a).unwrap();
        if !b.is_empty() {
            append(&mut m, b).unwrap();
        }
        m.commit().unwrap();
        all.extend(new);
        states.push(all.clone());
        if i == reopen_after {
            m = open(&disk, Access::Write).unwrap();
        }
    }
    check(&m, &all);
    (disk, states)
}

/// A power cut left `image`. It must open to one of `states[acknowledged..]` (`states` are the tokens after each commit), read right, take another
/// commit, and survive power cuts during that.
fn recover(image: Vec<u8>, states: &[Vec<Seed>], acknowledged: usize, rng: &mut Rng, again: usize) -> usize {
    let reader = open(&Disk::with(image.clone()), Access::Read).unwrap();
    let reached = states.iter().position(|s| s.len() as u64 == reader.len()).expect("not a state that was ever committed");
    assert!(reached >= acknowledged, "commit {acknowledged} was acknowledged, only {reached} is there");
    check(&reader, &states[reached]);

    let disk = Disk::with(image.clone());
    let mut m = open(&disk, Access::Write).unwrap();
    assert!(disk.state().log.is_empty(), "recovery writes nothing");
    let mut all = states[reached].clone();
    check(&m, &all);
    let new = seeds(&mut 50_000, 6);
    append(&mut m, &new).unwrap();
    m.commit().unwrap();
    all.extend(new);
    check(&m, &all);
    check(&open(&disk, Access::Write).unwrap(), &all);
    if again > 0 {
        let states = [states[reached].clone(), all];
        let log = disk.state().log.clone();
        let mut moment = Moment::of(image);
        let mut done = 0;
        for op in &log {
            moment.apply(op);
            done += matches!(op, Op::Sync) as usize;
            for _ in 0..again {
                recover(random_image(&moment, rng), &states, done, rng, 0);
            }
        }
        assert_eq!(done, 1);
    }
    reached
}

fn random_image(moment: &Moment, rng: &mut Rng) -> Vec<u8> {
    let fates = [Fate::Old, Fate::New, Fate::Torn, Fate::Garbage];
    // Sometimes nearly all is new, sometimes nearly all is old: those are the states that look right.
    let (usual, rare) = (fates[rng.below(2)], rng.below(12) + 1);
    let seed = rng.next();
    let mut choice = Rng(rng.next());
    moment.image(|_| if choice.below(rare) == 0 { fates[choice.below(4)] } else { usual }, rng.below(4) > 0, seed)
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_acknowledged() {
    let (disk, states) = written(&[6, 1, 4, 9, 3], 2);
    let log = disk.state().log.clone();
    let (mut rng, mut moment, mut syncs) = (Rng(1), Moment::default(), 0);
    let (mut images, mut ahead, mut unopened) = (0, 0, 0);
    for op in &log {
        moment.apply(op);
        syncs += matches!(op, Op::Sync) as usize;
        let mut tried = Vec::new();
        // One sector apart from all the others, in every way; then any mixture.
        for usual in [Fate::New, Fate::Old] {
            for keep_len in [true, false] {
                tried.push(moment.image(|_| usual, keep_len, 0));
            }
            for odd in 0..moment.unsure().len() {
                for fate in [Fate::Old, Fate::New, Fate::Torn, Fate::Garbage] {
                    if fate != usual {
                        tried.push(moment.image(|i| if i == odd { fate } else { usual }, true, odd as u64));
                    }
                }
            }
        }
        tried.extend((0..40).map(|_| random_image(&moment, &mut rng)));
        for image in tried {
            images += 1;
            match syncs.checked_sub(1) {
                // Creation was not acknowledged: there may be no memory yet, but if it opens it is an empty one.
                None => match open(&Disk::with(image), Access::Read) {
                    Ok(m) => check(&m, &[]),
                    Err(e) => {
                        assert!(matches!(e, Error::Format { .. } | Error::Corrupt { .. }), "{e}");
                        unopened += 1;
                    }
                },
                Some(acknowledged) => {
                    let again = (images % 64 == 0) as usize;
                    ahead += (recover(image, &states, acknowledged, &mut rng, again) > acknowledged) as usize;
                }
            }
        }
    }
    assert_eq!(syncs, states.len());
    assert!(images > 5000 && ahead > 10 && unopened > 10, "{images} images, {ahead} ahead of their sync, {unopened} before the first");
}

/// Runs a scripted life of a memory during which the disk fails as told; at most one retry of each commit. Returns the tokens that
/// were acknowledged, and those that were on their way.
fn live(disk: &Disk) -> Option<(Vec<Seed>, Vec<Seed>)> {
    let mut m = Memory::create_on(disk.storage(), geometry(), fingerprint()).ok()?;
    let (mut next, mut acknowledged) = (100, Vec::new());
    for n in [5, 8, 2] {
        let new = seeds(&mut next, n);
        append(&mut m, &new).unwrap();
        let on_the_way = [&acknowledged[..], &new].concat();
        if m.commit().is_err() {
            // Still readable, still there to be tried again (unless the sync failed).
            assert_eq!(m.len(), on_the_way.len() as u64);
            assert_eq!(m.committed_len(), acknowledged.len() as u64);
            if m.commit().is_err() {
                return Some((acknowledged, on_the_way));
            }
        }
        acknowledged = on_the_way;
    }
    Some((acknowledged.clone(), acknowledged))
}

#[test]
fn an_error_of_any_call_loses_nothing_acknowledged() {
    let whole = Disk::default();
    let (all, _) = live(&whole).unwrap();
    let calls = whole.state().calls;
    let (mut rng, mut outcomes, mut taken_for_durable) = (Rng(2), [0; 3], 0);
    for call in 0..calls {
        for failure in [Failure::Eio, Failure::NoSpace, Failure::Short, Failure::Late, Failure::Interrupted] {
            for count in [1, 2, u64::MAX] {
                let disk = Disk::default();
                disk.state().fail = Some((call, count, failure));
                let Some((acknowledged, on_the_way)) = live(&disk) else {
                    outcomes[0] += 1;
                    continue;
                };
                outcomes[1 + (acknowledged == all) as usize] += 1;
                disk.state().fail = None;
                let mut states = vec![acknowledged];
                if on_the_way != states[0] {
                    states.push(on_the_way);
                }
                // The process died, the machine did not: what the disk shows is what was written.
                recover(disk.bytes(), &states, 0, &mut rng, 0);
                // Or the machine dies, too.
                let mut moment = Moment::default();
                disk.state().log.iter().for_each(|op| moment.apply(op));
                for _ in 0..6 {
                    recover(random_image(&moment, &mut rng), &states, 0, &mut rng, 0);
                }
                // Or a new process goes on, on the same disk, which may have lost what a failed sync covered; then the power fails.
                let mut m = open(&disk, Access::Write).unwrap();
                let failed_sync = disk.state().log.iter().any(|op| matches!(op, Op::FailedSync));
                if failed_sync && states.len() == 2 && m.len() == states[1].len() as u64 {
                    // Neither could it be synced nor its commit page be taken back: the format's document names this limit.
                    assert!(count > 1);
                    taken_for_durable += 1;
                    continue;
                }
                let mut gone_on = states.iter().find(|s| s.len() as u64 == m.len()).unwrap().clone();
                let before = gone_on.clone();
                let new = seeds(&mut 20_000, 3);
                append(&mut m, &new).unwrap();
                m.commit().unwrap();
                gone_on.extend(new);
                let mut moment = Moment::default();
                disk.state().log.iter().for_each(|op| moment.apply(op));
                for _ in 0..6 {
                    recover(random_image(&moment, &mut rng), &[before.clone(), gone_on.clone()], 1, &mut rng, 0);
                }
            }
        }
    }
    assert!(outcomes.iter().all(|n| *n > 10), "creation failed, a commit failed, all went well: {outcomes:?}");
    assert!(taken_for_durable < 40, "{taken_for_durable}");
}

#[test]
fn what_a_killed_writer_left_unsynced_is_never_vouched_for_before_it_is_durable() {
    // A writer that was killed between a commit page and its sync: another process finds the commit in the system's memory.
    let (disk, states) = written(&[6, 5], 9);
    let log = disk.state().log.clone();
    let killed = log.iter().rposition(|op| matches!(op, Op::Sync)).unwrap();
    let mut start = Moment::default();
    log[..killed].iter().for_each(|op| start.apply(op));
    assert!(!start.unsure().is_empty());
    let seen = Disk::with(start.image(|_| Fate::New, true, 0));
    let mut m = open(&seen, Access::Write).unwrap();
    check(&m, &states[2]);
    assert_eq!(m.forget("a book").unwrap(), 11);
    let (mut rng, mut moment, mut syncs, mut lost) = (Rng(4), start, 0, 0);
    let log = seen.state().log.clone();
    for op in std::iter::once(None).chain(log.iter().map(Some)) {
        if let Some(op) = op {
            moment.apply(op);
            syncs += matches!(op, Op::Sync) as usize;
        }
        for _ in 0..60 {
            let m = open(&Disk::with(random_image(&moment, &mut rng)), Access::Write).unwrap();
            assert!(m.len() == 11 || m.len() == 6 && syncs == 0, "{} tokens after {syncs} syncs", m.len());
            lost += usize::from(m.len() == 6);
        }
    }
    assert!(lost > 10 && syncs == 4, "{lost} {syncs}");
}

#[test]
fn a_reader_goes_on_after_an_error_of_any_call_of_its_refresh() {
    let (disk, states) = written(&[6], 9);
    // What the writer adds meanwhile: more than before, so that maps are joined over it.
    let (mut next, mut all) = (5000, states[1].clone());
    let (before, mut m) = (disk.bytes(), open(&disk, Access::Write).unwrap());
    for n in [1, 9, 2, 30] {
        let new = seeds(&mut next, n);
        append(&mut m, &new).unwrap();
        m.commit().unwrap();
        all.extend(new);
    }
    let after = disk.bytes();
    let (mut failed, mut call) = (0, 0);
    loop {
        let disk = Disk::with(before.clone());
        let mut reader = open(&disk, Access::Read).unwrap();
        check(&reader, &states[1]);
        disk.state().bytes = after.clone();
        let now = disk.state().calls;
        disk.state().fail = Some((now + call, 1, Failure::Eio));
        let refreshed = reader.refresh();
        disk.state().fail = None;
        if refreshed.is_ok() {
            break;
        }
        failed += 1;
        check(&reader, &all[..reader.len() as usize]);
        reader.refresh().unwrap();
        check(&reader, &all);
        call += 1;
    }
    assert!(failed > 8, "{failed}");
}

#[test]
fn verify_finds_under_an_open_handle_what_the_next_open_would_find_and_more() {
    let (disk, _) = written(&[6, 3], 9);
    let mut m = open(&disk, Access::Write).unwrap();
    assert_eq!(m.forget("a book").unwrap(), 9);
    append(&mut m, &[1, 2, 3]).unwrap();
    m.commit().unwrap();
    drop(m);
    let good = disk.bytes();
    let (mut refused, mut both, mut found) = (0, 0, 0);
    let pages: Vec<usize> = (0..good.len()).step_by(PAGE).filter(|p| good[*p..].starts_with(b"LOCI")).collect();
    assert_eq!(pages.len(), 2 + 2 * 4, "two superblocks; headers and commit pages, those of a record among them");
    let records = pages[2 + 2 * 2];
    for page in pages.clone() {
        for at in (page..page + PAGE).step_by(37) {
            let disk = Disk::with(good.clone());
            let m = open(&disk, Access::Read).unwrap();
            disk.state().bytes[at] ^= 1 << (at % 8);
            if page < 2 * PAGE && at % 2 == 0 {
                // The other copy as well: one alone is no loss.
                disk.state().bytes[PAGE - page] ^= 1;
                both += 1;
            }
            let damages = m.verify(|_, _| true).unwrap();
            let opened = open(&disk, Access::Read);
            if page < 2 * PAGE {
                assert_eq!(damages.is_empty(), opened.is_ok(), "byte {at}: {damages:?}");
                refused += usize::from(opened.is_err());
            } else {
                // Opening needs the last page, and the one with records.
                let needed = [pages[pages.len() - 1], records].contains(&page);
                assert_eq!((damages.len(), opened.unwrap().stats().damaged_pages), (1, usize::from(needed)), "byte {at}: {damages:?}");
                found += 1;
            }
        }
    }
    assert!(found > 800 && refused == both && both > 50, "{found} {refused} {both}");
}

#[test]
fn an_error_while_reading_is_an_error_and_passes() {
    let (disk, states) = written(&[6, 5], 9);
    let all = states.last().unwrap();
    // The newer superblock is lost: what cannot be read behind the older one might be acknowledged, and is no torn tail.
    disk.state().bytes[100] ^= 1;
    let clean = Disk::with(disk.bytes());
    check(&open(&clean, Access::Write).unwrap(), all);
    let calls = clean.state().calls;
    let mut failed_later = 0;
    for call in 0..calls {
        let disk = Disk::with(disk.bytes());
        disk.state().fail = Some((call, 1, Failure::Eio));
        match open(&disk, Access::Write) {
            Err(e) => assert!(matches!(e, Error::Io { .. }), "an input error is not a damage: {e}"),
            Ok(m) => {
                assert_eq!(m.len(), all.len() as u64);
                failed_later += compare(&m, all).is_err() as usize;
                check(&m, all);
            }
        }
    }
    assert!(failed_later > 0);
}

#[test]
fn a_failed_sync_ends_writing_but_not_reading() {
    let (disk, states) = written(&[6], 9);
    let mut m = open(&disk, Access::Write).unwrap();
    append(&mut m, &[7, 8]).unwrap();
    let calls = {
        let probe = Disk::with(disk.bytes());
        let mut m = open(&probe, Access::Write).unwrap();
        append(&mut m, &[7, 8]).unwrap();
        let before = probe.state().calls;
        m.commit().unwrap();
        probe.state().calls - before
    };
    let now = disk.state().calls;
    disk.state().fail = Some((now + calls - 2, 1, Failure::Eio)); // the last but one call of a commit is its sync
    assert!(matches!(m.commit(), Err(Error::Io { .. })));
    assert!(matches!(disk.state().log.iter().rev().find(|op| !matches!(op, Op::Write(..))), Some(Op::FailedSync)));
    let all = [&states[1][..], &[7, 8]].concat();
    check(&m, &all);
    assert!(matches!(m.commit(), Err(Error::Io { .. })));
    assert!(matches!(append(&mut m, &[9]), Err(Error::Io { .. })));
    check(&m, &all);
    check(&open(&disk, Access::Read).unwrap(), &states[1]);
}

#[test]
fn any_flipped_bit_is_reported_or_harmless() {
    let (disk, states) = written(&[6, 3], 9);
    let (good, all) = (disk.bytes(), &states[2]);
    let whole = open(&disk, Access::Read).unwrap();
    let sources: Vec<SourceSpan> = whole.sources().unwrap();
    let (mut reported, mut harmless, mut proposals_lost) = (0, 0, 0);
    for at in 0..good.len() {
        for flip in [1 << (at % 8), 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            // Either copy of the superblock will do, and each page of the chain follows from the rest.
            let m = open(&Disk::with(bytes), Access::Read).unwrap();
            assert_eq!(m.len(), all.len() as u64, "byte {at}");
            let damages = m.verify(|_, _| true).unwrap();
            // Each part is right or an error; a damaged extent costs no more than itself.
            let mut bad = m.stats().damaged_pages;
            for block in 0..m.blocks() {
                for slot in 0..2 {
                    let mut bad_rows = 0;
                    for (head, side) in [(0, Side::Keys), (0, Side::Values), (1, Side::Keys), (1, Side::Values)] {
                        match m.rows(side, slot, head, block) {
                            Ok(view) => assert_eq!(view.bytes, whole.rows(side, slot, head, block).unwrap().bytes, "byte {at}"),
                            Err(e) => {
                                assert!(matches!(e, Error::Corrupt { .. }), "byte {at}: {e}");
                                bad_rows += 1;
                            }
                        }
                    }
                    assert!(bad_rows == 0 || bad_rows == 4);
                    bad += bad_rows / 4;
                }
            }
            let others = [
                m.tokens(0..m.len()).map(|t| assert_eq!(t, *all)),
                m.mean_keys(0).map(|k| assert_eq!(k, whole.mean_keys(0).unwrap())),
                m.mean_keys(1).map(|k| assert_eq!(k, whole.mean_keys(1).unwrap())),
                m.radii(1).map(|r| assert_eq!(r, whole.radii(1).unwrap())),
            ];
            // Damaged sources are counted, and those of the other commit stay.
            let found = m.sources().unwrap();
            let damaged = m.stats().damaged_sections;
            assert!(found.len() + damaged == sources.len() && found.iter().all(|s| sources.contains(s)), "byte {at}");
            bad += damaged;
            for e in others.into_iter().filter_map(|r| r.err()) {
                assert!(matches!(e, Error::Corrupt { .. }), "byte {at}: {e}");
                bad += 1;
            }
            // A search reads its own way: the right bytes, or none and a word about it; the groups of the other heads stay.
            let mut without = 0;
            for (slot, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let scan = |m: &Memory| -> Vec<Option<(Vec<u8>, Vec<u8>)>> {
                    let mut room = SketchRoom::default();
                    let mut read = |block: usize| {
                        let read = m.read_sketches(slot, head, block, &mut room).unwrap();
                        read.map(|s| (s.means.to_vec(), s.tiles.to_vec()))
                    };
                    m.sketched_blocks(slot).map(|blocks| read(blocks.start)).collect()
                };
                let (found, right) = (scan(&m), scan(&whole));
                assert!(found.len() == right.len() && right.iter().all(Option::is_some));
                assert!(found.iter().zip(&right).all(|(found, right)| found.is_none() || found == right), "byte {at}");
                without += found.iter().filter(|found| found.is_none()).count();
                for block in 0..m.blocks() {
                    let mut room = ExtentRoom::default();
                    match (m.extent(slot, block, &mut room), m.rows(Side::Keys, slot, head, block)) {
                        (Ok(extent), Ok(view)) => assert_eq!(extent.rows(Side::Keys, head).bytes, view.bytes, "byte {at}"),
                        (Err(Error::Corrupt { .. }), Err(_)) => {}
                        // Of a damaged table of checksums a search reads what it wants alone.
                        (Ok(extent), Err(_)) => {
                            assert_eq!(extent.rows(Side::Keys, head).bytes, whole.rows(Side::Keys, slot, head, block).unwrap().bytes);
                        }
                        (extent, _) => panic!("byte {at}: {:?}", extent.map(|_| ()).err()),
                    }
                }
            }
            assert!(without <= 1 && (without == 0 || bad > 0), "byte {at}");
            proposals_lost += without;
            let of_chain = [b"LOCISEG\n", b"LOCICMT\n"].iter().any(|magic| good[at / PAGE * PAGE..].starts_with(*magic));
            assert_eq!(bad > 0 || of_chain, !damages.is_empty(), "byte {at}: verify finds what reading finds, and all of the chain");
            if let [only] = &damages[..]
                && only.layer_slot.is_some()
            {
                assert_eq!((bad, only.blocks.len()), (1, 1), "byte {at}: the other blocks stay readable");
            }
            *(if !damages.is_empty() { &mut reported } else { &mut harmless }) += 1;
        }
    }
    assert!(proposals_lost > 2 * 2 * 4 * 8, "{proposals_lost}");
    // Superblock copies, gaps between sections and behind the last extent are harmless, the rest is reported.
    assert!(reported >= 2 * 5 * PAGE && harmless >= 2 * 2 * PAGE, "{reported} {harmless}");
}

#[test]
fn any_cut_is_an_error() {
    let (disk, states) = written(&[6, 3], 9);
    let good = disk.bytes();
    for len in 0..good.len() {
        for access in [Access::Read, Access::Write] {
            match open(&Disk::with(good[..len].to_vec()), access) {
                Err(Error::Corrupt { .. }) => {}
                Err(Error::Format { .. }) if len < 8 => {}
                Err(e) => panic!("{len} bytes: {e}"),
                Ok(_) => panic!("{len} of {} bytes were taken for the whole", good.len()),
            }
        }
    }
    // What is appended by somebody else is not part of it.
    let longer = [&good[..], &[0xa5; 10_000]].concat();
    check(&open(&Disk::with(longer), Access::Read).unwrap(), &states[2]);
}

#[test]
fn a_file_cut_under_a_reader_is_an_error_not_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.lmem");
    let mut m = Memory::create(&path, geometry(), fingerprint()).unwrap();
    let all: Vec<Seed> = (0..40).collect();
    append(&mut m, &all).unwrap();
    m.commit().unwrap();
    drop(m);
    let mut reader = Memory::open_read_only(&path, None).unwrap();
    let late = Memory::open_read_only(&path, None).unwrap();
    reader.keys(0, 0, 0).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(3 * PAGE as u64).unwrap();
    assert!(matches!(reader.keys(1, 0, 9), Err(Error::Corrupt { .. })));
    assert!(matches!(late.keys(0, 0, 0), Err(Error::Corrupt { .. })));
    assert!(matches!(late.tokens(0..1), Err(Error::Corrupt { .. })));
    assert!(matches!(reader.refresh(), Err(Error::Corrupt { .. })));
    assert!(matches!(reader.verify(|_, _| true), Err(Error::Corrupt { .. })));
}

#[test]
fn opening_reads_few_pages() {
    let (disk, states) = written(&[40, 1, 80], 9);
    let disk = Disk::with(disk.bytes());
    let m = open(&disk, Access::Write).unwrap();
    let read: u64 = disk.state().read.iter().map(|r| r.end - r.start).sum();
    // The superblocks, and the last commit page, which tells of all commits.
    assert_eq!(read, (2 + 1) * PAGE as u64);
    check(&m, &states[3]);
}

fn reseal(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[..PAGE - 4]);
    page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn features_of_the_future_are_refused_or_read_only_or_ignored() {
    let (disk, states) = written(&[6], 9);
    let with = |at: usize, flag: u8, copies: std::ops::Range<usize>| {
        let mut bytes = disk.bytes();
        for page in copies.map(|c| c * PAGE) {
            bytes[page + at] ^= flag;
            reseal(&mut bytes[page..page + PAGE]);
        }
        Disk::with(bytes)
    };
    let (version, compat, ro_compat, incompat) = (8, 16, 24, 32);
    for copies in [0..2, 0..1, 1..2] {
        for (at, flag) in [(version, 3), (incompat, 32), (incompat + 7, 0x80)] {
            let disk = with(at, flag, copies.clone());
            assert!(matches!(open(&disk, Access::Read), Err(Error::Unsupported(_))));
            assert!(matches!(open(&disk, Access::Write), Err(Error::Unsupported(_))));
        }
    }
    // Sketches without mean keys in codes, around which they are made, and sectors, which came later; those of some layers without sectors, and
    // with those of all.
    for flag in [2, 8, 4] {
        let without = open(&with(incompat, flag, 0..2), Access::Read);
        assert!(matches!(without, Err(Error::Format { ref field, .. }) if field == "incompat"), "{flag}: {:?}", without.err());
    }
    check(&open(&with(ro_compat + 3, 4, 0..2), Access::Read).unwrap(), &states[1]);
    assert!(matches!(open(&with(ro_compat + 3, 4, 0..2), Access::Write), Err(Error::Unsupported(_))));
    let disk = with(compat, 16, 0..2);
    let mut m = open(&disk, Access::Write).unwrap();
    check(&m, &states[1]);
    append(&mut m, &[5]).unwrap();
    m.commit().unwrap();
    let superblocks = disk.bytes();
    assert!([16, PAGE + 16].iter().all(|at| superblocks[*at] == 16), "an unknown compatible flag is kept");
}

#[test]
fn no_field_can_make_it_panic_or_hang_or_allocate_without_bound() {
    let (disk, states) = written(&[6, 3], 9);
    let good = disk.bytes();
    let pages: Vec<usize> = (0..good.len()).step_by(PAGE).filter(|p| good[*p..].starts_with(b"LOCI")).collect();
    assert_eq!(pages.len(), 6, "two superblocks, two headers, two commit pages");
    let mut opened = 0;
    for (i, page) in pages.iter().enumerate() {
        for at in (0..PAGE - 4).step_by(4) {
            for word in [0, 1, 2, 5, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                let mut bytes = good.clone();
                bytes[page + at..page + at + 4].copy_from_slice(&word.to_le_bytes());
                reseal(&mut bytes[*page..page + PAGE]);
                if i < 2 {
                    // The same change in both copies.
                    bytes[PAGE * (1 - i) + at..][..4].copy_from_slice(&word.to_le_bytes());
                    reseal(&mut bytes[PAGE * (1 - i)..PAGE * (2 - i)]);
                }
                if at >= 256 && at % 256 != 0 && !(3000..3200).contains(&at) {
                    continue; // padding: a sample of it will do
                }
                let m = Memory::open_on(Disk::with(bytes).storage(), None, Access::Write);
                if let Ok(m) = m {
                    opened += 1;
                    assert!(m.len() <= 9);
                    let _ = (compare(&m, &states[2]), m.verify(|_, _| true).map(|d| d.len()), m.stats());
                }
            }
        }
    }
    assert!(opened > 100);
}

/// Makes all checksums of the file's first and only commit right again.
fn forge(bytes: &mut [u8]) {
    let header = 2 * PAGE;
    let commit = (header + PAGE..bytes.len()).step_by(PAGE).find(|p| bytes[*p..].starts_with(b"LOCICMT\n")).unwrap();
    let u32_at = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let tokens = header + PAGE..header + PAGE + 4 * u32_at(bytes, header + 64);
    let spans = tokens.end.next_multiple_of(64)..tokens.end.next_multiple_of(64) + u32_at(bytes, header + 72);
    for (i, section) in [tokens, spans].into_iter().enumerate() {
        let crc = crc32c::crc32c(&bytes[section]);
        bytes[header + 76 + 4 * i..][..4].copy_from_slice(&crc.to_le_bytes());
        bytes[commit + 88 + 4 * i..][..4].copy_from_slice(&crc.to_le_bytes());
    }
    reseal(&mut bytes[header..header + PAGE]);
    let before: [u8; 8] = bytes[commit + 56..commit + 64].try_into().unwrap();
    let hashed = before.iter().chain(&bytes[header..header + PAGE]);
    let hash = hashed.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    bytes[commit + 64..commit + 72].copy_from_slice(&hash.to_le_bytes());
    reseal(&mut bytes[commit..commit + PAGE]);
    // The superblock that names the old hash; the other one, from before the commit, says nothing of it.
    bytes[PAGE..2 * PAGE].fill(0);
}

#[test]
fn no_word_of_the_token_ids_and_sources_can_make_it_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("forged.lmem");
    let mut m = Memory::create(&path, geometry(), fingerprint()).unwrap();
    for (label, seeds) in [("first", 100..120), ("second", 120..127), ("first", 127..140)] {
        let (rows, ids) = (vec![0.5; seeds.len() * 8], seeds.clone().collect::<Vec<u32>>());
        let layers = vec![LayerKv { keys: &rows, values: &rows[..seeds.len() * 6] }; 2];
        m.append(&ids, Some(Source { label, text: u64::from(seeds.start)..u64::from(seeds.end) }), &layers).unwrap();
    }
    m.commit().unwrap();
    let sources = m.sources().unwrap();
    drop(m);
    let good = std::fs::read(&path).unwrap();
    let mut forged = good.clone();
    forge(&mut forged);
    check_forged(&path, &forged, Some(&sources));
    let spans = 3 * PAGE + 192;
    assert_eq!(good[spans..spans + 16], [3u64, 0].map(u64::to_le_bytes).concat());
    let (mut changed, mut unread) = (0, 0);
    for at in (3 * PAGE..3 * PAGE + 160).step_by(20).chain((spans..spans + 8 + 3 * 40 + 16).step_by(2)) {
        for word in [0u64, 1, 5, 10, 19, 20, 21, 27, 39, 40, 1 << 40, 1 << 63, u64::MAX] {
            let mut bad = good.clone();
            bad[at..at + 8].copy_from_slice(&word.to_le_bytes());
            forge(&mut bad);
            unread += usize::from(check_forged(&path, &bad, None));
            changed += 1;
        }
    }
    // The sources of two parts of a text may not overlap: the second one, of tokens 20 to 27, moved before the first one's end.
    let second = spans + 8 + 40 + "first".len();
    assert_eq!(good[second..second + 16], [20u64, 27].map(u64::to_le_bytes).concat());
    let mut bad = good.clone();
    bad[second..second + 16].copy_from_slice(&[5u64, 10].map(u64::to_le_bytes).concat());
    forge(&mut bad);
    assert!(check_forged(&path, &bad, None), "overlapping sources");
    assert!(changed > 800 && unread > 200, "{unread} of {changed}");
}

/// Does all that can be done to a memory with these bytes. True if its sources cannot be read.
fn check_forged(path: &std::path::Path, bytes: &[u8], sources: Option<&[SourceSpan]>) -> bool {
    std::fs::write(path, bytes).unwrap();
    let mut m = Memory::open(path, None).unwrap();
    assert_eq!((m.len(), m.verify(|_, _| true).unwrap().len()), (40, 0), "every checksum is right");
    let found = m.sources().unwrap();
    assert!(sources.is_none_or(|s| s == found));
    assert!(found.windows(2).all(|w| w[0].tokens.end <= w[1].tokens.start) && found.iter().all(|s| s.tokens.end <= 40));
    let unread = m.stats().damaged_sections > 0;
    assert_eq!(m.forget("second").is_err(), unread);
    drop(m);
    let plain = Memory::compact(path, None, Default::default(), |_, _| true);
    assert_eq!(plain.is_err(), unread, "{plain:?}");
    if unread {
        assert!(matches!(plain, Err(Error::Format { .. })), "{plain:?}");
        let options = loci::memory::CompactOptions { drop_damaged: true, ..Default::default() };
        assert_eq!(Memory::compact(path, None, options, |_, _| true).unwrap().tokens, 40);
    }
    unread
}

#[test]
fn verify_can_be_stopped_and_counts_up() {
    let (disk, _) = written(&[6, 3], 9);
    let m = open(&disk, Access::Read).unwrap();
    let mut last = 0;
    let all_well = m.verify(|done, total| {
        assert!(last <= done && done <= total);
        last = done;
        true
    });
    assert!(all_well.unwrap().is_empty() && last > 0);
    assert!(matches!(m.verify(|_, _| false), Err(Error::Cancelled)));
}

/// Lives of random memories, cut anywhere: `LOCI_CRASH_STATES` states in all. One in sixteen is written on, one in 128 of those crashes
/// again while it recovers. `make crash` has a million.
#[test]
fn states_of_random_lives_recover() {
    let most: u64 = std::env::var("LOCI_CRASH_STATES").map_or(6000, |n| n.parse().unwrap());
    let (mut rng, mut states_tried, mut ahead, mut again, mut slowest) = (Rng(most), 0u64, 0u64, 0u64, std::time::Duration::ZERO);
    while states_tried < most {
        let sizes: Vec<u32> = (0..1 + rng.below(5)).map(|_| 1 + rng.below(11) as u32).collect();
        let (disk, states) = written(&sizes, rng.below(6));
        let log = disk.state().log.clone();
        let (mut moment, mut syncs) = (Moment::default(), 0);
        for op in &log {
            moment.apply(op);
            syncs += matches!(op, Op::Sync) as usize;
            let Some(acknowledged) = syncs.checked_sub(1) else { continue };
            for _ in 0..24 {
                states_tried += 1;
                let image = random_image(&moment, &mut rng);
                if states_tried % 16 == 0 {
                    let twice = usize::from(states_tried % 2048 == 0);
                    again += u64::from(twice > 0);
                    recover(image, &states, acknowledged, &mut rng, twice);
                    continue;
                }
                let start = std::time::Instant::now();
                let m = open(&Disk::with(image), Access::Read).unwrap();
                slowest = slowest.max(start.elapsed());
                let reached = states.iter().position(|s| s.len() as u64 == m.len()).expect("not a state that was ever committed");
                assert!(reached >= acknowledged, "commit {acknowledged} was acknowledged, only {reached} is there");
                check(&m, &states[reached]);
                ahead += u64::from(reached > acknowledged);
            }
        }
    }
    println!("{states_tried} states, {ahead} ahead of their sync, {again} crashed again in recovery; the slowest opened in {slowest:?}");
    assert!(ahead > 10 && (again > 0 || most < 2048));
}
