//! The local context: keys and values of the last tokens, as segments that attention reads.
