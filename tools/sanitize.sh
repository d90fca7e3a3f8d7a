#!/bin/bash
# The hammer of the tests (64 threads that call everything with everything) for some minutes on a library that a sanitizer watches:
#
#   tools/sanitize.sh thread 10        data races (ThreadSanitizer)
#   tools/sanitize.sh address 10       memory errors and leaks (AddressSanitizer)
#
# The standard library is compiled with it too, from source: what it does not watch it takes for a race. The compiler is Debian's, unpacked
# and not installed (tools/cross/rust.sh). Ends at the first report, with status 1.
set -eu
cd "$(dirname "$0")/.."
. tools/cross/rust.sh
kind=${1:?thread or address} minutes=${2:-10}
[ "$(uname -sm)" = "Linux x86_64" ] || fail "for Linux on x86-64"
case $kind in
    thread) short=tsan ;;
    address) short=asan ;;
    *) fail "thread or address, not $kind" ;;
esac
target=x86_64-unknown-linux-gnu dir=$PWD/build/sanitize/$kind
unpack_source
RUSTC=$home/bin/rustc RUSTDOC=$home/bin/rustdoc RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=$kind" \
    cargo rustc -p loci-ffi --lib --crate-type staticlib --target $target -Zbuild-std=std,panic_abort,panic_unwind --target-dir "$dir/target"
# The runtime is of Debian's newest Clang: GCC's lacks functions that this compiler calls.
runtime() { find "$home/usr/lib" -name "libclang_rt.$1-x86_64.a" | sort -V | tail -n 1; }
if [ -z "$(runtime "$short")" ]; then
    package=$(apt-cache search --names-only '^libclang-rt-[0-9]+-dev$' | cut -d' ' -f1 | sort -V | tail -n 1)
    download "${package:?no package libclang-rt-N-dev}"
fi
archives=$(runtime "$short")
[ "$kind" = thread ] || archives="$archives $(runtime asan_static)"
# shellcheck disable=SC2086 # a list of files
cc -std=c99 -O1 -g -pthread -Iinclude tests/c/hammer.c "$dir/target/$target/debug/libloci.a" -Wl,--whole-archive $archives \
    -Wl,--no-whole-archive -o "$dir/hammer" -lgcc_s -lm -ldl -lrt -lresolv -lstdc++

# Addresses of a report as functions and lines.
named() {
    while IFS= read -r line; do
        case $line in
            *'#'*'(hammer+0x'*)
                at=${line##*hammer+}
                echo "    ${line%%0x*}$(addr2line -fCsp -e "$dir/hammer" "${at%%)*}")"
                ;;
            *) echo "$line" ;;
        esac
    done
}

end=$((SECONDS + 60 * minutes)) seed=0
while [ $SECONDS -lt $end ]; do
    seed=$((seed + 1))
    rm -rf "$dir/files"
    mkdir -p "$dir/files"
    TSAN_OPTIONS="halt_on_error=1 exitcode=66" ASAN_OPTIONS="abort_on_error=0 exitcode=66" \
        "$dir/hammer" models/loci-fot-1m.Q8_0.gguf "$dir/files" 64 1500 $seed > "$dir/log" 2>&1 || {
        head -n 100 "$dir/log" | named
        fail "seed $seed: see $dir/log"
    }
done
echo "$kind sanitizer: $seed runs of the hammer with 64 threads in $minutes minutes, nothing to report"
