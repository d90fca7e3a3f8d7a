//! Bytes from outside: read-only maps, a bounds-checked cursor over them, and the storage trait that files are written through.

mod aligned;
mod cursor;
mod guard;
mod map;
mod storage;

pub use aligned::{ALIGNMENT, AlignedBytes};
pub use cursor::Cursor;
pub use map::{Map, MapSlice};
pub use storage::{FileStorage, Storage};
