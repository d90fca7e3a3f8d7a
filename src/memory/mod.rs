//! Context that outlives the window: an append-only file of key and value blocks, its index and its reader.
