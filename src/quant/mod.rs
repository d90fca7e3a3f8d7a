//! Weight formats: what a block of bytes means, one file per format, and the register of those this build can compute with.
