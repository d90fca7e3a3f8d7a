//! The head of a memory file: whose it is, its shape, its features, and a point that the commit chain has reached. See
//! `docs/memory-format.md`.

use super::form::Form;
use super::format::{FILE, FIRST_SEGMENT, PAGE, Tip, expect_u32, seal, unseal};
use super::geometry::{ARCHITECTURE_BYTES, PAGE_BYTES};
use super::segment::{file_len, read};
use super::{Codec, Fingerprint, Geometry};
use crate::bytes::Storage;
use crate::error::{Error, Result};

const SUPERBLOCK_MAGIC: [u8; 8] = *b"LOCIMEM\n";
const VERSION: u32 = 1;
/// Where the superblock's changing part stands.
const HINT_AT: usize = 3072;
/// Incompatible feature: there are segments without tokens, which hold records.
pub const RECORDS: u64 = 1;
/// Incompatible feature: indices keep mean keys as codes ([`Form::Codes`]), in every segment. Set when the file is created or never.
const CODES: u64 = 2;
/// Incompatible feature: indices keep a sketch of every key of every layer, in every segment; only with [`CODES`]. Set when the file
/// is created or never.
const SKETCHES_OF_ALL: u64 = 4;
/// Incompatible feature: extents are padded to sectors ([`Form::Sectors`]), in every segment; only with [`CODES`]. Set when the file is created or
/// never.
const SECTORS: u64 = 8;
/// Incompatible feature: the index is as in [`Form::Sketches`]; only with [`SECTORS`] and without [`SKETCHES_OF_ALL`]. Set when the file is
/// created or never.
const SKETCHES: u64 = 16;
const KNOWN_INCOMPAT: u64 = RECORDS | CODES | SKETCHES_OF_ALL | SECTORS | SKETCHES;
/// Of a stored layer's number: there are sketches of its keys. With [`SKETCHES`] alone.
const SKETCHED: u32 = 1 << 31;

/// The features of a new file.
pub const FEATURES_OF_NEW: u64 = CODES | SECTORS | SKETCHES;

/// The head of the file. There are two copies, rewritten alternately; the newest valid one counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Superblock {
    /// A reader may ignore any of these.
    pub compat: u64,
    /// A reader may ignore these, a writer may not.
    pub ro_compat: u64,
    /// Nobody may ignore these: of those in [`KNOWN_INCOMPAT`], which the file has.
    pub incompat: u64,
    /// Random, given at creation.
    pub uuid: [u8; 16],
    /// The model this memory belongs to.
    pub fingerprint: Fingerprint,
    /// The shape of every block.
    pub geometry: Geometry,
    /// Goes up with each rewriting of either copy.
    pub generation: u64,
    /// A commit that was durable before this copy was written: the chain cannot be shorter.
    pub durable: Tip,
}

impl Superblock {
    /// True if the page starts as a superblock does.
    pub fn is_magic(page: &[u8]) -> bool {
        page.starts_with(&SUPERBLOCK_MAGIC)
    }

    /// The form of the file's segments.
    pub fn form(&self) -> Form {
        match [CODES, SECTORS, SKETCHES].map(|feature| self.incompat & feature != 0) {
            [false, ..] => Form::Floats,
            [_, false, _] => Form::Codes,
            [.., false] => Form::Sectors,
            _ => Form::Sketches,
        }
    }

    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut p = Vec::with_capacity(PAGE_BYTES);
        p.extend(SUPERBLOCK_MAGIC);
        p.extend(VERSION.to_le_bytes());
        p.extend((PAGE_BYTES as u32).to_le_bytes());
        for flags in [self.compat, self.ro_compat, self.incompat] {
            p.extend(flags.to_le_bytes());
        }
        p.extend(self.uuid);
        let mut architecture = self.fingerprint.architecture.clone().into_bytes();
        architecture.resize(ARCHITECTURE_BYTES, 0);
        p.extend(architecture);
        p.extend(self.fingerprint.hash);
        let g = &self.geometry;
        for x in [g.codec.id(), g.head_count_kv, g.key_length, g.value_length, g.block_tokens, g.layers.len() as u32] {
            p.extend(x.to_le_bytes());
        }
        let flag = |layer: &u32| if self.form() == Form::Sketches && g.sketched.contains(layer) { SKETCHED } else { 0 };
        p.extend(g.layers.iter().flat_map(|l| (l | flag(l)).to_le_bytes()));
        p.resize(HINT_AT, 0);
        for x in [self.generation, self.durable.sequence, self.durable.end, self.durable.tokens, self.durable.hash] {
            p.extend(x.to_le_bytes());
        }
        seal(p)
    }

    /// Parses the page at `offset`. [`Error::Unsupported`] for a file that needs more than this build knows.
    pub fn parse(page: &[u8], offset: u64) -> Result<Superblock> {
        let mut c = unseal(page, offset, "superblock", SUPERBLOCK_MAGIC)?;
        let version = c.u32("version")?;
        if version != VERSION {
            return Err(Error::Unsupported(format!("memory file of version {version} (this build knows version {VERSION})")));
        }
        expect_u32(&mut c, "page_bytes", PAGE_BYTES as u32)?;
        let (compat, ro_compat, incompat) = (c.u64("compat")?, c.u64("ro_compat")?, c.u64("incompat")?);
        if incompat & !KNOWN_INCOMPAT != 0 {
            return Err(Error::Unsupported(format!("memory file with incompatible features {:#x}", incompat & !KNOWN_INCOMPAT)));
        }
        let uuid = c.array("uuid")?;
        let at = c.offset();
        let name = c.take("fingerprint.architecture", ARCHITECTURE_BYTES)?;
        let name = &name[..name.iter().position(|b| *b == 0).unwrap_or(name.len())];
        let architecture = match std::str::from_utf8(name) {
            Ok(name) => name.to_owned(),
            Err(_) => return Err(c.error_at(at, "fingerprint.architecture", "UTF-8", format!("{name:02x?}"))),
        };
        let fingerprint = Fingerprint { architecture, hash: c.array("fingerprint.hash")? };
        let at = c.offset();
        let codec = Codec::from_id(c.u32("codec")?)?;
        let mut field = |name| c.u32(name);
        let (head_count_kv, key_length) = (field("head_count_kv")?, field("key_length")?);
        let (value_length, block_tokens) = (field("value_length")?, field("block_tokens")?);
        let layer_count = field("layer_count")? as usize;
        let fits = (HINT_AT as u64 - (c.offset() - offset)) as usize / 4;
        if layer_count > fits {
            return Err(c.error_at(at, "layer_count", format!("at most {fits}"), layer_count));
        }
        let mut layers: Vec<u32> = c.take("layers", layer_count * 4)?.as_chunks().0.iter().map(|l| u32::from_le_bytes(*l)).collect();
        if incompat & (SKETCHES_OF_ALL | SECTORS | SKETCHES) != 0 && incompat & CODES == 0 {
            return Err(c.error_at(offset + 32, "incompat", "sketches and sectors only with mean keys as codes", format!("{incompat:#x}")));
        }
        if incompat & SKETCHES != 0 && incompat & (SKETCHES_OF_ALL | SECTORS) != SECTORS {
            return Err(c.error_at(offset + 32, "incompat", "sketches of one kind, and with sectors", format!("{incompat:#x}")));
        }
        let mut sketched = if incompat & SKETCHES_OF_ALL != 0 { layers.clone() } else { Vec::new() };
        if incompat & SKETCHES != 0 {
            sketched.extend(layers.iter().filter(|l| **l & SKETCHED != 0).map(|l| l & !SKETCHED));
            layers.iter_mut().for_each(|l| *l &= !SKETCHED);
        }
        let geometry = Geometry { layers, head_count_kv, key_length, value_length, block_tokens, codec, sketched };
        geometry.check().map_err(|(name, expected, found)| c.error_at(at, name, expected, found))?;
        let here = (c.offset() - offset) as usize;
        c.take("reserved", HINT_AT - here)?;
        let generation = c.u64("generation")?;
        let durable = Tip { sequence: c.u64("sequence")?, end: c.u64("end")?, tokens: c.u64("tokens")?, hash: c.u64("hash")? };
        Ok(Superblock { compat, ro_compat, incompat, uuid, fingerprint, geometry, generation, durable })
    }
}

/// The newest valid superblock, and which copy may be written next without putting the only durable one at risk.
pub fn read_superblocks(storage: &dyn Storage) -> Result<(Superblock, u64)> {
    let len = file_len(storage)?;
    let mut pages = [0; 2 * PAGE_BYTES];
    let n = len.min(FIRST_SEGMENT) as usize;
    read(storage, &mut pages[..n], 0)?;
    let (first, second) = pages.split_at(PAGE_BYTES);
    if !Superblock::is_magic(first) && !Superblock::is_magic(second) {
        let found = format!("{:02x?}, {len} bytes in all", &first[..8]);
        return Err(Error::Format { file: FILE, offset: 0, field: "magic".into(), expected: "\"LOCIMEM\\n\"".into(), found });
    }
    match (Superblock::parse(first, 0), Superblock::parse(second, PAGE)) {
        // A copy with features from the future is not a torn one: the older copy would lead to a wrong reading.
        (Err(e @ Error::Unsupported(_)), _) | (_, Err(e @ Error::Unsupported(_))) => Err(e),
        (Ok(a), Ok(b)) => {
            let one_file = a.uuid == b.uuid && a.geometry == b.geometry && a.fingerprint == b.fingerprint;
            if !one_file {
                let what = "the two superblocks belong to different memories".into();
                return Err(Error::Corrupt { file: FILE, offset: PAGE, what });
            }
            // The older copy is known to be durable, because the newer one was written after a sync; the newer one may yet be lost.
            Ok(if b.generation > a.generation { (b, 1) } else { (a, 0) })
        }
        (Ok(a), Err(_)) => Ok((a, 1)),
        (Err(_), Ok(b)) => Ok((b, 0)),
        (Err(e), Err(_)) => Err(e),
    }
}
