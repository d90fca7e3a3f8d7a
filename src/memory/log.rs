//! The token log: the document that is being read into a memory file, durable before the first of its tokens is computed. After a crash
//! the keys and values that were not committed yet are computed again from it, and nothing that was acknowledged is lost.
//!
//! The log stands beside the memory (`NAME.lmem.log`) and holds one document: magic `LOCILOG\n`, version (u32), zero (u32), the memory's
//! uuid (16 bytes), the index of the document's first token (u64), bytes of the label (u64; all ones: none), number of tokens (u64), label,
//! token ids (u32 each), CRC32C of all that. It is written whole, synced, and only then acknowledged; one that does not verify was never
//! acknowledged. It is removed when the document is finished, and one that is left over is recognised: the memory has its tokens.

use super::format::LABEL_BYTES_MAX;
use crate::bytes::{Cursor, FileStorage, Storage};
use crate::error::{Error, Result, try_with_capacity, try_zeroed};
use std::path::{Path, PathBuf};

const FILE: &str = "token log";
const MAGIC: [u8; 8] = *b"LOCILOG\n";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 56;
/// Tokens of a document at most: a bound on what a log can make anybody allocate.
const TOKENS_MAX: u64 = 1 << 32;

/// A document that a crash has interrupted: see [`super::Memory::unfinished`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its label.
    pub label: Option<String>,
    /// All of its tokens.
    pub tokens: Vec<u32>,
    /// Index of its first token in the memory.
    pub first_token: u64,
}

/// Where the log of a memory is kept.
pub struct TokenLog {
    place: Place,
    /// A document is being read by this handle.
    pub active: bool,
}

enum Place {
    Path(PathBuf),
    Storage(Box<dyn Storage>),
}

impl TokenLog {
    /// The log of the memory at `path`.
    pub fn beside(path: &Path) -> TokenLog {
        let mut name = path.as_os_str().to_owned();
        name.push(".log");
        TokenLog { place: Place::Path(name.into()), active: false }
    }

    /// A log on any storage.
    pub fn on(storage: Box<dyn Storage>) -> TokenLog {
        TokenLog { place: Place::Storage(storage), active: false }
    }

    /// Writes a document, durably.
    pub fn write(&mut self, uuid: &[u8; 16], label: Option<&str>, tokens: &[u32], first_token: u64) -> Result<()> {
        let bytes = encode(uuid, label, tokens, first_token)?;
        let io = |source| Error::Io { what: "write the token log".into(), source };
        match &mut self.place {
            Place::Storage(storage) => storage.write_all_at(&bytes, 0).and_then(|()| storage.sync()).map_err(io),
            Place::Path(path) => {
                // A new file each time: what was left of an old one is not worth keeping.
                let _ = std::fs::remove_file(&*path);
                // It holds what the memory will hold: for the same eyes.
                let mut file = FileStorage::create_like(path, &path.with_extension(""))?;
                file.write_all_at(&bytes, 0).and_then(|()| file.sync()).map_err(io)?;
                file.sync_directory()
            }
        }
    }

    /// What is in it, if it is whole and of this memory. A log that cannot be read is an error, one that is not whole is none.
    pub fn read(&self, uuid: &[u8; 16]) -> Result<Option<Unfinished>> {
        let io = |source| Error::Io { what: "read the token log".into(), source };
        let bytes = match &self.place {
            Place::Storage(storage) => {
                let len = storage.len().map_err(io)?;
                let mut bytes: Vec<u8> = try_zeroed("the token log", len as usize)?;
                storage.read_exact_at(&mut bytes, 0).map_err(io)?;
                bytes
            }
            Place::Path(path) => match std::fs::read(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                bytes => bytes.map_err(io)?,
            },
        };
        Ok(parse(&bytes, uuid))
    }

    /// The document is finished, or given up: forgets it.
    pub fn clear(&mut self) -> Result<()> {
        self.active = false;
        match &mut self.place {
            Place::Storage(storage) => {
                let cleared = storage.write_all_at(&[0; 8], 0).and_then(|()| storage.sync());
                cleared.map_err(|source| Error::Io { what: "clear the token log".into(), source })
            }
            Place::Path(path) => match std::fs::remove_file(&*path) {
                // Or a power cut brings it back, and with it a document that was given up.
                Ok(()) => FileStorage::sync_directory_of(path),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(Error::io("remove", path, e)),
            },
        }
    }
}

fn encode(uuid: &[u8; 16], label: Option<&str>, tokens: &[u32], first_token: u64) -> Result<Vec<u8>> {
    let text = label.unwrap_or("");
    let mut out = try_with_capacity("the token log", HEAD_BYTES + text.len() + 4 * tokens.len() + 4)?;
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(uuid);
    let label_bytes = label.map_or(u64::MAX, |l| l.len() as u64);
    for x in [first_token, label_bytes, tokens.len() as u64] {
        out.extend(x.to_le_bytes());
    }
    out.extend(text.as_bytes());
    out.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    Ok(out)
}

/// The document, unless anything about it is not right. A longer file is: an older log may have been longer.
fn parse(bytes: &[u8], uuid: &[u8; 16]) -> Option<Unfinished> {
    let mut c = Cursor::new(FILE, bytes);
    let is_mine = c.array("magic").ok()? == MAGIC && c.u32("version").ok()? == VERSION && c.u32("zero").ok()? == 0;
    if !is_mine || c.array::<16>("uuid").ok()? != *uuid {
        return None;
    }
    let (first_token, label_bytes, count) = (c.u64("first_token").ok()?, c.u64("label").ok()?, c.u64("tokens").ok()?);
    let label = match label_bytes {
        u64::MAX => None,
        n if n <= LABEL_BYTES_MAX as u64 => Some(std::str::from_utf8(c.take("label", n as usize).ok()?).ok()?.to_owned()),
        _ => return None,
    };
    if count > TOKENS_MAX {
        return None;
    }
    let ids = c.take("tokens", usize::try_from(count).ok()?.checked_mul(4)?).ok()?;
    let end = c.offset() as usize;
    if c.u32("crc").ok()? != crc32c::crc32c(bytes.get(..end)?) {
        return None;
    }
    Some(Unfinished { label, tokens: ids.as_chunks().0.iter().map(|t| u32::from_le_bytes(*t)).collect(), first_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_is_nothing() {
        for label in [None, Some("größe.txt".to_owned())] {
            let document = Unfinished { label, tokens: (0..50).collect(), first_token: 7 };
            let good = encode(&[5; 16], document.label.as_deref(), &document.tokens, 7).unwrap();
            assert_eq!(parse(&good, &[5; 16]), Some(document.clone()));
            assert_eq!(parse(&[&good[..], b"left over"].concat(), &[5; 16]), Some(document));
            assert_eq!(parse(&good, &[6; 16]), None);
            for at in 0..good.len() {
                assert_eq!(parse(&good[..at], &[5; 16]), None, "cut at {at}");
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                assert_eq!(parse(&bad, &[5; 16]), None, "byte {at}");
            }
        }
    }
}
