//! Live handles. A handle is an odd number that is never given out twice; what it stands for is looked up here, and lives through an
//! `Arc` for as long as a call uses it. So a handle that was freed, is freed twice, or never was one is recognised, from any thread.

use crate::status::{Fail, Outcome};
use crate::types::LOCI_INVALID_HANDLE;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What handles of one C type stand for.
pub trait Object: Sized + Send + Sync + 'static {
    /// The C type behind the pointer.
    type Opaque;
    /// Its name, for errors.
    const NAME: &'static str;
    /// Puts it into an entry.
    fn wrap(this: Arc<Self>) -> Entry;
    /// Takes it out of an entry, if it is of this type.
    fn of(entry: &Entry) -> Option<&Arc<Self>>;
}

/// What a handle stands for.
pub enum Entry {
    /// `loci_model`
    Model(Arc<crate::model::ModelObject>),
    /// `loci_session`
    Session(Arc<crate::session::SessionObject>),
    /// `loci_memory`
    Memory(Arc<crate::memory::MemoryObject>),
}

/// Entries and how often each must still be freed.
type Shard = RwLock<BTreeMap<usize, (Entry, usize)>>;

/// Power of two; calls on different handles rarely meet.
const SHARDS: usize = 16;

static LIVE: LazyLock<[Shard; SHARDS]> = LazyLock::new(Default::default);
/// Starts above what programs write by mistake for a pointer.
static NEXT: AtomicUsize = AtomicUsize::new(0x10c1_0000);

fn shard(id: usize) -> &'static Shard {
    &LIVE[(id >> 1) % SHARDS]
}

// Nothing that can panic runs under these locks; if it did, the map would still be whole.
fn read(id: usize) -> RwLockReadGuard<'static, BTreeMap<usize, (Entry, usize)>> {
    shard(id).read().unwrap_or_else(PoisonError::into_inner)
}

fn write(id: usize) -> RwLockWriteGuard<'static, BTreeMap<usize, (Entry, usize)>> {
    shard(id).write().unwrap_or_else(PoisonError::into_inner)
}

/// A handle for `object`, to be freed once.
pub fn insert<T: Object>(object: T) -> *mut T::Opaque {
    let mut entry = Some(T::wrap(Arc::new(object)));
    loop {
        // Odd: no pointer to anything but a byte looks like it. On 32 bits the numbers come round after two thousand million
        // handles; those still alive are passed over.
        let id = NEXT.fetch_add(1, Ordering::Relaxed) << 1 | 1;
        let mut live = write(id);
        if id != 1
            && !live.contains_key(&id)
            && let Some(entry) = entry.take()
        {
            live.insert(id, (entry, 1));
            return std::ptr::without_provenance_mut(id);
        }
    }
}

fn stale<T: Object>() -> Fail {
    Fail::new(LOCI_INVALID_HANDLE, format!("not a live {}: freed before, or a handle of another type", T::NAME))
}

/// What `handle` stands for, alive until the `Arc` is dropped.
pub fn get<T: Object>(handle: *const T::Opaque) -> Outcome<Arc<T>> {
    if handle.is_null() {
        return Err(Fail::argument(T::NAME, "a handle", "NULL"));
    }
    let id = handle.addr();
    read(id).get(&id).and_then(|(entry, _)| T::of(entry)).cloned().ok_or_else(stale::<T>)
}

/// One more [`release`] is needed before the handle ends.
pub fn retain<T: Object>(handle: *const T::Opaque) -> Outcome {
    if handle.is_null() {
        return Err(Fail::argument(T::NAME, "a handle", "NULL"));
    }
    let id = handle.addr();
    let mut live = write(id);
    let (_, count) = live.get_mut(&id).filter(|(entry, _)| T::of(entry).is_some()).ok_or_else(stale::<T>)?;
    *count = count.checked_add(1).ok_or_else(|| Fail::argument("retain", "fewer references", usize::MAX))?;
    Ok(())
}

/// Frees the handle once. If that ended it, what it stood for is answered, so that it is dropped with no lock held.
pub fn release<T: Object>(handle: *const T::Opaque) -> Option<Arc<T>> {
    let id = handle.addr();
    let mut live = write(id);
    let (entry, count) = live.get_mut(&id)?;
    T::of(entry)?;
    *count -= 1;
    if *count > 0 {
        return None;
    }
    live.remove(&id).and_then(|(entry, _)| T::of(&entry).cloned())
}
