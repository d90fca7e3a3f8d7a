#!/bin/sh
# Proves that the functions marked no_panic cannot panic, and that the proof is one. ELF systems only.
#
# A marked function whose panic the optimiser cannot rule out refers to a symbol that nobody defines. Three builds of the C library:
#   1. optimised, undefined symbols refused: it must link;
#   2. the same with a marked function that can panic: the linker must refuse it, by name. (Without unwinding, or where a shared
#      library may leave symbols open, it would not: then the first build has said nothing.)
#   3. not optimised, undefined symbols allowed: every mark in the sources must show up, or it is on a function that nothing in the
#      library calls, and was not checked.
set -u
cd "$(dirname "$0")/.." || exit 1
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/prove
export CARGO_TARGET_DIR
# The caller's flags could turn unwinding off.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
bad=loci_prove_that_proofs_can_fail
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# build FEATURE [CARGO ARGUMENT...] -- [RUSTC ARGUMENT...]
build() {
    feature=$1
    shift
    cargo rustc -q -p loci-ffi --lib --crate-type cdylib --profile prove --features "$feature" "$@" > "$log" 2>&1
}
# The names that the guards in a file carry.
names() { grep -a -o 'detected panic in function `[A-Za-z0-9_]*' "$1" | sed 's/.*`//' | sort -u; }

if ! build prove-no-panic -- -Clink-arg=-Wl,-z,defs; then
    cat "$log" >&2
    echo "FAILED: marked, but not proved: $(names "$log" | tr '\n' ' ')"
    exit 1
fi
if build prove-no-panic-bad -- -Clink-arg=-Wl,-z,defs; then
    echo "FAILED: $bad can panic, and was linked: the check checks nothing"
    exit 1
fi
if [ "$(names "$log")" != "$bad" ]; then
    cat "$log" >&2
    echo "FAILED: the linker was to refuse $bad and nothing else"
    exit 1
fi
if ! build prove-no-panic --config profile.prove.opt-level=0; then
    cat "$log" >&2
    echo "FAILED: the build that looks for the marks"
    exit 1
fi
marked=$(grep -rh -A 1 '"prove-no-panic", no_panic' src ffi/src | sed -n 's/.*fn \([A-Za-z0-9_]*\).*/\1/p' | sort -u)
reached=$(names "$CARGO_TARGET_DIR/prove/libloci.so")
if [ "$marked" != "$reached" ]; then
    echo "FAILED: marked: $(echo $marked); of these in the library: $(echo $reached)"
    exit 1
fi
echo "no panic: proved for $(echo "$reached" | wc -l) functions; one that can panic was refused"
