//! A disk that remembers what was done to it: what a power cut may leave of it can be built afterwards, for every moment.
//!
//! Model: writes are visible at once and become durable with the next successful sync, sector by sector (512 bytes). At a power
//! cut each sector that is not durable is old, new, half of each, or garbage; so is what a failed sync left behind, for good,
//! unless it is written again. The length may be the old or the new one.

#![allow(dead_code)]

use loci::bytes::Storage;
use std::collections::BTreeSet;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

pub const SECTOR: usize = 512;

#[derive(Clone)]
pub enum Op {
    Write(usize, Vec<u8>),
    Sync,
    FailedSync,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Failure {
    /// Nothing happens.
    Eio,
    /// Nothing happens.
    NoSpace,
    /// A write leaves half of its bytes; other calls do nothing.
    Short,
    /// A write leaves all of its bytes, and yet fails; other calls do nothing.
    Late,
    /// A signal comes in: a write leaves a quarter of its bytes, other calls do nothing.
    Interrupted,
}

#[derive(Default)]
pub struct State {
    pub bytes: Vec<u8>,
    pub log: Vec<Op>,
    pub calls: u64,
    pub read: Vec<Range<u64>>,
    /// From which call on, for how many calls, and how.
    pub fail: Option<(u64, u64, Failure)>,
}

/// Clones share the disk.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub fn with(bytes: Vec<u8>) -> Disk {
        Disk(Arc::new(Mutex::new(State { bytes, ..State::default() })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn storage(&self) -> Box<dyn Storage> {
        Box::new(self.clone())
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// Counts the call; the failure that it must meet with, if any.
    fn call(&self) -> (MutexGuard<'_, State>, Option<Failure>) {
        let mut s = self.state();
        let now = s.calls;
        s.calls += 1;
        let failure = s.fail.filter(|(from, count, _)| (*from..from.saturating_add(*count)).contains(&now)).map(|f| f.2);
        (s, failure)
    }
}

fn refused(failure: Failure) -> Error {
    match failure {
        Failure::NoSpace => ErrorKind::StorageFull.into(),
        Failure::Interrupted => ErrorKind::Interrupted.into(),
        _ => Error::other("simulated input/output error"),
    }
}

impl Storage for Disk {
    fn len(&self) -> Result<u64> {
        let (s, failure) = self.call();
        failure.map_or(Ok(s.bytes.len() as u64), |f| Err(refused(f)))
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (mut s, failure) = self.call();
        if let Some(f) = failure {
            return Err(refused(f));
        }
        let range = offset as usize..offset as usize + buf.len();
        buf.copy_from_slice(s.bytes.get(range).ok_or(ErrorKind::UnexpectedEof)?);
        s.read.push(offset..offset + buf.len() as u64);
        Ok(())
    }
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> Result<()> {
        let (mut s, failure) = self.call();
        let done = match failure {
            None | Some(Failure::Late) => buf.len(),
            Some(Failure::Short) => buf.len() / 2,
            Some(Failure::Interrupted) => buf.len() / 4,
            Some(_) => 0,
        };
        let at = offset as usize;
        if s.bytes.len() < at + done {
            s.bytes.resize(at + done, 0);
        }
        s.bytes[at..at + done].copy_from_slice(&buf[..done]);
        s.log.push(Op::Write(at, buf[..done].to_vec()));
        failure.map_or(Ok(()), |f| Err(refused(f)))
    }
    fn reserve(&mut self, _: u64, _: u64) -> Result<()> {
        let failure = self.call().1;
        failure.map_or(Ok(()), |f| Err(refused(f)))
    }
    fn sync(&mut self) -> Result<()> {
        let (mut s, failure) = self.call();
        s.log.push(if failure.is_some() { Op::FailedSync } else { Op::Sync });
        failure.map_or(Ok(()), |f| Err(refused(f)))
    }
}

/// What may become of one sector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Old,
    New,
    Torn,
    Garbage,
}

/// The disk at one moment of its log.
#[derive(Clone, Default)]
pub struct Moment {
    durable: Vec<u8>,
    visible: Vec<u8>,
    dirty: BTreeSet<usize>,
    limbo: BTreeSet<usize>,
}

impl Moment {
    pub fn of(bytes: Vec<u8>) -> Moment {
        Moment { durable: bytes.clone(), visible: bytes, ..Moment::default() }
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(at, bytes) => {
                let end = at + bytes.len();
                self.visible.resize(self.visible.len().max(end), 0);
                self.visible[*at..end].copy_from_slice(bytes);
                for sector in at / SECTOR..end.div_ceil(SECTOR) {
                    self.limbo.remove(&sector);
                    self.dirty.insert(sector);
                }
            }
            Op::Sync => {
                self.durable.resize(self.visible.len(), 0);
                for sector in std::mem::take(&mut self.dirty) {
                    let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.visible.len());
                    self.durable[range.clone()].copy_from_slice(&self.visible[range]);
                }
            }
            Op::FailedSync => self.limbo.append(&mut self.dirty),
        }
    }

    /// The sectors that a power cut now may leave in any state.
    pub fn unsure(&self) -> Vec<usize> {
        self.dirty.union(&self.limbo).copied().collect()
    }

    /// What the power cut leaves if sector `unsure()[i]` meets `fate(i)`, and the length is kept or not.
    pub fn image(&self, mut fate: impl FnMut(usize) -> Fate, keep_len: bool, seed: u64) -> Vec<u8> {
        let mut out = self.durable.clone();
        out.resize(self.visible.len(), 0);
        for (i, sector) in self.unsure().into_iter().enumerate() {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(out.len());
            match fate(i) {
                Fate::Old => {}
                Fate::New => out[range.clone()].copy_from_slice(&self.visible[range]),
                Fate::Torn => {
                    let half = range.start..range.start + range.len() / 2;
                    out[half.clone()].copy_from_slice(&self.visible[half]);
                }
                Fate::Garbage => {
                    let mut rng = Rng(seed ^ sector as u64);
                    out[range].iter_mut().for_each(|b| *b = rng.next() as u8);
                }
            }
        }
        if !keep_len {
            out.truncate(self.durable.len());
        }
        out
    }
}

/// A small generator (splitmix64): the same numbers in every run.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
