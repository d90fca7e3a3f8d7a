//! The vocabulary of a CPU: the few dozen operations that formats and kernels are written in, one file per instruction set.
