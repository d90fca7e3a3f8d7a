#!/usr/bin/env bash
# Builds the library for 32-bit ARM Linux and runs a set of tests and the C examples on an emulated CPU; ends with the totals.
#
#   tools/cross/armv7.sh                  TESTS="memory_file session_snapshot" runs these
#
# There is no Neon here: 32-bit ARM computes with the portable kernels. What the tests are for is the width: offsets beyond 4 GiB, maps that do
# not fit, layouts of the header's structs, files that a 64-bit machine has written.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=armv7-unknown-linux-gnueabihf
. "$(tools/cross/setup.sh $target | tail -n 1)"
tests=${TESTS:-kernels_agree quant_golden memory_file memory_golden session}
model=models/loci-fot-1m.Q8_0.gguf
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags=()
for test in $tests c_abi; do flags+=(--test "$test"); done
# Without the command: its libraries take as long to build as everything else.
cargo test --release --target $target --no-default-features --features chat --lib "${flags[@]}" --no-run 2>&1 | tee "$work/build" |
    grep -E '^(error|warning)|^ *Finished' || true
sed -n 's/^ *Executable \(unittests \)\{0,1\}\([^ ]*\) (\(.*\))$/\2 \3/p' "$work/build" > "$work/programs"
[ -s "$work/programs" ] || {
    tail -n 40 "$work/build" >&2
    exit 1
}
# c_abi asks the C compiler whether every struct of the header is laid out as the library's: the one for this target.
mkdir "$work/bin"
ln -s "$(command -v "${CROSS}gcc")" "$work/bin/cc"

status=0
while read -r source program; do
    name=$(basename "$source" .rs)
    only=()
    [ "$name" != c_abi ] || only=(structs_and_constants_agree)
    result=0
    PATH=$work/bin:$PATH $EMULATOR "$program" -q "${only[@]}" > "$work/out" 2>&1 < /dev/null || result=$?
    if [ $result -ne 0 ]; then
        tail -n 60 "$work/out"
        echo "FAILED: $name (status $result)"
        status=1
    fi
    grep '^test result' "$work/out" >> "$work/results" || true
    printf '  %-18s %s\n' "$name" "$(sed -n 's/^test result: [A-Za-z]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$work/out")"
done < "$work/programs"

# The C programs, linked both ways, with a memory on disk.
cargo build --release -p loci-ffi --target $target
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
tools/package/install.sh "$CARGO_TARGET_DIR/$target/release" "$version" "$work/prefix"
"${CROSS}gcc" -std=c99 -O2 -Wall -Wextra -Werror -I"$work/prefix/include" examples/c/lookup.c -o "$work/lookup" \
    -L"$work/prefix/lib" "-Wl,-rpath,$work/prefix/lib" -lloci
"${CROSS}gcc" -std=c99 -O2 -Wall -Wextra -Werror -I"$work/prefix/include" -Itests/c tests/c/snapshot.c -o "$work/snapshot" \
    "$work/prefix/lib/libloci.a" -lgcc_s -lpthread -lm -ldl
$EMULATOR "$work/lookup" write "$work/log.txt" 1024 > /dev/null
$EMULATOR "$work/lookup" remember $model "$work/log.txt" "$work/log.lmem" > /dev/null
$EMULATOR "$work/lookup" ask $model "$work/log.txt" "$work/log.lmem" > "$work/asked"
sed -n 's/^\([0-9]* of [0-9]* right\).*/  lookup.c           \1, from 1024 remembered tokens/p' "$work/asked"
$EMULATOR "$work/snapshot" save $model "$work/m.lmem" "$work/session" < /dev/null > "$work/saved" || true
$EMULATOR "$work/snapshot" load $model "$work/session" > "$work/loaded"
tail -n 1 "$work/saved" | cmp - "$work/loaded"
echo "  snapshot.c         another process went on with the same 64 tokens"

awk -v status=$status '
    /^test result:/ { passed += $4; failed += $6 }
    END {
        if (status && !failed) failed = 1
        printf "%d passed, %d failed\n", passed, failed
        exit !(failed == 0 && passed > 0)
    }' "$work/results"
