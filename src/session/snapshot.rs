//! Session snapshots: the whole session in a file, so that a process that is killed goes on where it was, to the bit.
//!
//! The file (`docs/session-format.md`): magic, version, flags; model; options; text; window; sampler; logits; memories; what retrieval
//! keeps; and at the end its length and a CRC32C of everything before. It is written beside its place, synced, renamed, and the
//! directory synced: a crash leaves the old snapshot or the new one. Memories on files are named, by path and uuid, not copied; those in
//! RAM are in the file.

use super::memories::read;
use super::options::{read_options, write_options};
use super::{Session, SharedMemory};
use crate::bytes::{Cursor, FileStorage, Map};
use crate::error::{Error, Result, try_reserve};
use crate::memory::Memory;
use crate::model::Model;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

/// What errors call this kind of file.
const FILE: &str = "session snapshot";
const MAGIC: [u8; 8] = *b"LOCISES\n";
const VERSION: u32 = 1;
/// The length and the checksum at the end.
const TRAILER_BYTES: usize = 12;
const PATH_BYTES_MAX: usize = 1 << 15;

const WRITTEN_AT_ONCE: usize = 1 << 16;

const IN_RAM: u32 = 0;
const ON_FILE: u32 = 1;
/// Never in a file: the memory that stands in the same place of the list given.
const SHARED: u32 = 2;

/// Counts and sums what goes into a file, or a buffer.
struct Out<W> {
    to: W,
    crc: u32,
    len: u64,
}

impl<W: Write> Out<W> {
    fn new(to: W) -> Out<W> {
        Out { to, crc: 0, len: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.len += bytes.len() as u64;
        self.to.write_all(bytes).map_err(|source| match source.kind() {
            ErrorKind::OutOfMemory => Error::OutOfMemory { what: "a copy of the session", bytes: self.len },
            _ => Error::Io { what: "write the session snapshot".into(), source },
        })
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(&(bytes.len() as u64).to_le_bytes())?;
        self.put(bytes)
    }

    /// [`Out::bytes`] of all of the words.
    fn words(&mut self, mut words: impl ExactSizeIterator<Item = [u8; 4]>) -> Result<()> {
        self.put(&(4 * words.len() as u64).to_le_bytes())?;
        words.try_for_each(|word| self.put(&word))
    }
}

/// A copy in RAM, which says so where there is no more of it.
struct InRam(Vec<u8>);

impl Write for InRam {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.try_reserve(bytes.len())?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Session {
    /// Saves the session to `path`, in the place of what is there. A generation that is under way is not part of it: after
    /// [`Session::load`] another one goes on from the same token.
    ///
    /// # Errors
    /// [`Error::Argument`] if an attached memory has tokens that are not committed; [`Error::Busy`] while somebody else saves to this path;
    /// [`Error::Io`], and then what was at `path` before is
    /// still there.
    pub fn save(&self, path: &Path) -> Result<()> {
        let path = &FileStorage::real_path(path);
        let mut name = path.as_os_str().to_owned();
        name.push(".saving");
        let new = PathBuf::from(name);
        // Locked until it has its name, or is gone.
        let file = FileStorage::create_alone(&new, path)?;
        let saved = self.save_to(&file, &new).and_then(|()| {
            std::fs::rename(&new, path).map_err(|e| Error::io("rename", &new, e))?;
            FileStorage::sync_directory_of(path)
        });
        if saved.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        saved
    }

    fn save_to(&self, file: &FileStorage, path: &Path) -> Result<()> {
        let mut out = Out::new(BufWriter::with_capacity(WRITTEN_AT_ONCE, file.file()));
        self.write(&mut out, &mut put_memory)?;
        let io = |e| Error::io("write", path, e);
        let file = out.to.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(|e| Error::io("sync", path, e))
    }

    /// Another session that goes on from here: what each of the two reads and answers from now on is its own. Attached memories are shared.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is no room for a second context; as for [`Session::new`].
    pub fn fork(&self) -> Result<Session> {
        let mut out = Out::new(InRam(Vec::new()));
        // The context is copied once more on the way.
        let room = self.window.bytes() + 4 * (self.tokens.len() + self.model.vocab_len());
        out.to.0.try_reserve(room).map_err(|_| Error::OutOfMemory { what: "a forked session", bytes: room as u64 })?;
        // Attached memories go from hand to hand; only what this session alone holds is written out.
        let attached = self.attached.clone();
        let mut held = 0;
        self.write(&mut out, &mut |memory, out| {
            held += 1;
            if held <= attached.len() { out.put(&SHARED.to_le_bytes()) } else { put_memory(memory, out) }
        })?;
        let mut forked = Session::restore(self.model.clone(), check(&out.to.0)?, &attached, true)?;
        forked.set_duty(self.duty())?;
        Ok(forked)
    }

    fn write<W: Write>(&self, out: &mut Out<W>, put_memory: &mut dyn FnMut(&Memory, &mut Out<W>) -> Result<()>) -> Result<()> {
        let mut head = Vec::new();
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend(0u32.to_le_bytes());
        out.put(&head)?;
        let fingerprint = self.model.fingerprint();
        out.bytes(fingerprint.architecture.as_bytes())?;
        out.put(&fingerprint.hash)?;
        out.bytes(&write_options(&self.options))?;

        out.words(self.tokens.iter().map(|t| t.to_le_bytes()))?;
        out.put(&u32::from(self.pending).to_le_bytes())?;

        out.put(&self.window.first().to_le_bytes())?;
        out.put(&(self.window.len() as u64).to_le_bytes())?;
        out.put(&(self.window.capacity() as u64).to_le_bytes())?;
        for (len, tiles) in self.window.contents() {
            out.put(&(len as u64).to_le_bytes())?;
            out.bytes(tiles)?;
        }
        out.bytes(&self.sampler.state())?;
        let logits = self.logits().unwrap_or(&[]);
        out.words(logits.iter().map(|x| x.to_le_bytes()))?;

        out.put(&(self.attached.len() as u64).to_le_bytes())?;
        out.put(&(self.overflow.iter().len() as u64).to_le_bytes())?;
        for memory in self.memories() {
            put_memory(&read(memory), out)?;
        }
        out.bytes(&self.recall.state()?)?;
        let trailer = [&out.len.to_le_bytes()[..], &out.crc.to_le_bytes()].concat();
        out.put(&trailer)
    }

    /// The session that was saved to `path`, of the same model. The memories it had attached are taken from `memories`, if they are
    /// among them (by uuid), and else opened by their paths, for reading.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another model or another memory than it had; [`Error::Corrupt`] or [`Error::Format`], with the offset, for
    /// a file that is damaged or was never a snapshot; [`Error::Unsupported`] for one of a newer version.
    pub fn load(model: Arc<Model>, path: &Path, memories: &[SharedMemory]) -> Result<Session> {
        let map = Map::open(path)?;
        Session::restore(model, check(&map)?, memories, false)
    }

    /// With `forked`, memories may be [`SHARED`].
    fn restore(model: Arc<Model>, body: &[u8], memories: &[SharedMemory], forked: bool) -> Result<Session> {
        let mut c = Cursor::new(FILE, body);
        c.take("head", MAGIC.len() + 8)?;
        let architecture = text(&mut c, "architecture", PATH_BYTES_MAX)?;
        let hash: [u8; 32] = c.array("fingerprint")?;
        let ours = model.fingerprint();
        if architecture != ours.architecture || hash != ours.hash {
            return Err(Error::mismatch("the model of the session snapshot", ours, format!("another {architecture:?}")));
        }
        let len = c.count("options", 1)?;
        let mut options = Cursor::with_base(FILE, c.clone().take("options", len)?, c.offset());
        c.take("options", len)?;
        let mut s = Session::new(model, read_options(&mut options)?)?;

        let len = c.count("tokens", 1)?;
        let tokens = c.take("tokens", len)?.as_chunks().0;
        try_reserve(&mut s.tokens, "the tokens of a session", tokens.len())?;
        s.tokens.extend(tokens.iter().map(|t| u32::from_le_bytes(*t)));
        s.check_tokens(&s.tokens)?;
        let at = c.offset();
        s.pending = match (c.u32("pending")?, s.tokens.is_empty()) {
            (0, _) => false,
            (1, false) => true,
            (n, _) => return Err(c.error_at(at, "pending", "0, or 1 after a token", n)),
        };
        s.load_window(&mut c)?;
        let len = c.count("sampler", 1)?;
        s.sampler.restore(c.take("sampler", len)?)?;
        let len = c.count("logits", 1)?;
        let at = c.offset();
        let logits = c.take("logits", len)?.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x));
        s.has_logits = len > 0;
        if s.has_logits {
            if len != 4 * s.model.vocab_len() || s.tokens.is_empty() {
                return Err(c.error_at(at, "logits", format!("{} bytes, or none", 4 * s.model.vocab_len()), len));
            }
            try_reserve(&mut s.scratch.logits, "logits", logits.len())?;
            s.scratch.logits.extend(logits);
        }
        let (attached, overflow) = (c.count("attached memories", 1)?, c.count("own memories", 1)?);
        for i in 0..attached {
            let memory = load_memory(&mut c, &s, memories, Some(i).filter(|_| forked), false)?;
            s.attach_memory(memory)?;
        }
        if overflow > 0 {
            let memory = load_memory(&mut c, &s, memories, None, true)?;
            s.check_memory(&read(&memory))?;
            s.overflow = Some(memory);
        }
        let len = c.count("retrieval", 1)?;
        let base = c.offset();
        let mut state = Cursor::with_base(FILE, c.take("retrieval", len)?, base);
        let blocks: Vec<usize> = s.memories().map(|m| read(m).blocks()).collect();
        s.recall.restore(s.model.hparams(), &blocks, &mut state)?;
        if state.remaining() > 0 {
            return Err(state.error("retrieval", "its end", format!("{} bytes more", state.remaining())));
        }
        Ok(s)
    }

    fn load_window(&mut self, c: &mut Cursor<'_>) -> Result<()> {
        let at = c.offset();
        let first = c.u64("window.first")? as i64;
        let (len, capacity) = (c.u64("window.len")? as usize, c.u64("window.capacity")? as usize);
        let seen = self.tokens.len() - usize::from(self.pending);
        let most = self.window.capacity().max(self.reference_capacity(self.options.last_context_length)).max(seen);
        if len > seen || len > capacity || capacity > most || first != (seen - len) as i64 {
            let expected = format!("the last of {seen} tokens, at most {most}");
            return Err(c.error_at(at, "window", expected, format!("{len} from {first}, capacity {capacity}")));
        }
        self.window.raise_capacity(capacity);
        let mut layers = Vec::new();
        for _ in 0..self.model.hparams().block_count {
            let tokens = c.u64("layer.len")? as usize;
            let bytes = c.count("layer.tiles", 1)?;
            layers.push((tokens, c.take("layer.tiles", bytes)?));
        }
        if !self.window.restore(first, len, &layers)? {
            return Err(c.error_at(at, "window", format!("layers of {len} tokens"), "other lengths"));
        }
        Ok(())
    }
}

/// What stands between the magic and the trailer, both included in the check; whole and undamaged.
fn check(bytes: &[u8]) -> Result<&[u8]> {
    let mut c = Cursor::new(FILE, bytes);
    let found: [u8; 8] = c.array("magic")?;
    if found != MAGIC {
        return Err(c.error_at(0, "magic", "\"LOCISES\\n\"", format!("{found:02x?}")));
    }
    let version = c.u32("version")?;
    if version != VERSION {
        return Err(Error::Unsupported(format!("session snapshot of version {version} (this build knows version {VERSION})")));
    }
    let flags = c.u32("flags")?;
    if flags != 0 {
        return Err(Error::Unsupported(format!("session snapshot with features {flags:#x}")));
    }
    let Some(at) = bytes.len().checked_sub(TRAILER_BYTES).filter(|at| *at >= MAGIC.len() + 8) else {
        return Err(c.error("trailer", format!("{TRAILER_BYTES} bytes"), "the end of the file"));
    };
    let (body, trailer) = bytes.split_at(at);
    let mut t = Cursor::with_base(FILE, trailer, at as u64);
    let (len, recorded, computed) = (t.u64("length")?, t.u32("crc")?, crc32c::crc32c(body));
    if len != at as u64 || recorded != computed {
        let what = format!("{at} bytes of CRC32C {computed:08x} where {len} of {recorded:08x} are recorded");
        return Err(Error::Corrupt { file: FILE, offset: at as u64, what });
    }
    Ok(body)
}

fn text(c: &mut Cursor<'_>, field: &str, most: usize) -> Result<String> {
    let at = c.offset();
    let len = c.count(field, 1)?;
    let bytes = c.take(field, len)?;
    match std::str::from_utf8(bytes) {
        Ok(text) if len <= most => Ok(text.to_owned()),
        _ => Err(c.error_at(at, field, format!("at most {most} bytes of UTF-8"), format!("{len} bytes"))),
    }
}

fn put_memory<W: Write>(memory: &Memory, out: &mut Out<W>) -> Result<()> {
    let (Some(uuid), Some(path)) = (memory.uuid(), memory.path()) else {
        out.put(&IN_RAM.to_le_bytes())?;
        return memory.write_image(&mut |bytes| out.put(bytes));
    };
    if memory.pending_len() > 0 {
        return Err(Error::argument("memory", "one that is committed", format!("{} tokens that are not", memory.pending_len())));
    }
    let absolute = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
    let Some(name) = absolute.to_str() else {
        return Err(Error::Unsupported(format!("a memory in a session snapshot whose path is not UTF-8: {}", absolute.display())));
    };
    out.put(&ON_FILE.to_le_bytes())?;
    out.put(uuid)?;
    out.put(&memory.committed_len().to_le_bytes())?;
    out.bytes(name.as_bytes())
}

fn load_memory(c: &mut Cursor<'_>, s: &Session, memories: &[SharedMemory], shared: Option<usize>, to_write: bool) -> Result<SharedMemory> {
    let at = c.offset();
    match c.u32("memory")? {
        IN_RAM => Ok(Arc::new(RwLock::new(Memory::read_image(c, s.model.fingerprint())?))),
        ON_FILE => {
            let uuid: [u8; 16] = c.array("memory.uuid")?;
            let tokens = c.u64("memory.tokens")?;
            let path = PathBuf::from(text(c, "memory.path", PATH_BYTES_MAX)?);
            let given = memories.iter().find(|m| read(m).uuid() == Some(&uuid));
            let memory = match given {
                Some(memory) => memory.clone(),
                None => {
                    let open = if to_write { Memory::open } else { Memory::open_read_only };
                    Arc::new(RwLock::new(open(&path, Some(s.model.fingerprint()))?))
                }
            };
            let (found, len) = {
                // One lock: a second one on this thread waits for whoever waits to write, who waits for the first.
                let memory = read(&memory);
                (memory.uuid().copied(), memory.committed_len())
            };
            // What others have added since may be read; what the session itself goes on with must be as it was.
            if found != Some(uuid) || len < tokens || to_write && len != tokens {
                let expected = format!("{} as it was: {tokens} tokens, uuid {uuid:02x?}", path.display());
                return Err(Error::mismatch("the memory of the session snapshot", expected, format!("{len} tokens, uuid {found:02x?}")));
            }
            Ok(memory)
        }
        n => match shared.and_then(|i| memories.get(i)) {
            Some(memory) if n == SHARED => Ok(memory.clone()),
            _ => Err(c.error_at(at, "memory", "0 or 1", n)),
        },
    }
}
