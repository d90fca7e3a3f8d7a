#!/usr/bin/env bash
# Runs the C library and its programs on emulated 64-bit ARM, as a Raspberry Pi would:
#
#   tools/aarch64/examples.sh            CPUS="cortex-a53 cortex-a76", LOG_TOKENS=8192
#
#   - the program of `make run-example`, with a log of LOG_TOKENS tokens: every CPU must give the same answers, byte for byte, though their
#     kernels differ (A53 and A72 have no sdot);
#   - hello.c, the example of loci.h, linked to the static library, the same;
#   - a session that is saved, its process killed, and continued by another process: the next 64 tokens are the same, with a memory attached.
set -euo pipefail
cd "$(dirname "$0")/../.."
. "$(tools/aarch64/setup.sh | tail -n 1)"
target=aarch64-unknown-linux-gnu
read -r -a cpus <<< "${CPUS:-cortex-a53 cortex-a76}"
log_tokens=${LOG_TOKENS:-8192}
profile=${PROFILE:-release}
model=models/loci-fot-1m.Q8_0.gguf
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --profile "$profile" -p loci-ffi --target $target
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
tools/package/install.sh "$CARGO_TARGET_DIR/$target/$profile" "$version" "$work/prefix"
compile() { "${CROSS}gcc" -std=c99 -O2 -Wall -Wextra -Werror -I"$work/prefix/include" -Itests/c "$1" -o "$work/$(basename "$1" .c)" "${@:2}"; }
shared=(-L"$work/prefix/lib" "-Wl,-rpath,$work/prefix/lib" -lloci)
compile examples/c/lookup.c "${shared[@]}"
compile tests/c/snapshot.c "${shared[@]}"
compile examples/c/hello.c "$work/prefix/lib/libloci.a" -lgcc_s -lpthread -lm -ldl
on() { QEMU_CPU=$cpu $EMULATOR "$@"; }

for cpu in "${cpus[@]}"; do
    dir=$work/$cpu
    mkdir "$dir"
    echo "$cpu: run-example's program, $log_tokens tokens"
    on "$work/lookup" write "$dir/log.txt" "$log_tokens" > /dev/null
    on "$work/lookup" remember $model "$dir/log.txt" "$dir/log.lmem" > "$dir/remember"
    on "$work/lookup" ask $model "$dir/log.txt" "$dir/log.lmem" | tee "$dir/ask" | sed -n '/right,/p'
    grep -E ' (right|wrong)$' "$dir/ask" > "$dir/answers"
    on "$work/hello" $model "Where is the key?" > "$dir/hello"

    mkfifo "$dir/pipe"
    QEMU_CPU=$cpu $EMULATOR "$work/snapshot" save $model "$dir/m.lmem" "$dir/session" < "$dir/pipe" > "$dir/saved" &
    writer=$!
    exec 9> "$dir/pipe"
    for ((i = 0; i < 600; i++)); do
        [ "$(wc -l < "$dir/saved")" -lt 2 ] || break
        kill -0 $writer
        sleep 0.5
    done
    kill -9 $writer
    wait $writer 2> /dev/null || true
    exec 9>&-
    on "$work/snapshot" load $model "$dir/session" > "$dir/loaded"
    [ "$(wc -w < "$dir/loaded")" -eq 64 ]
    tail -n 1 "$dir/saved" | cmp - "$dir/loaded"
    echo "$cpu: saved, killed, continued by another process: the same next 64 tokens"
done
for cpu in "${cpus[@]:1}"; do
    for said in answers hello loaded; do cmp "$work/${cpus[0]}/$said" "$work/$cpu/$said"; done
done
echo "${cpus[*]}: the same answers and tokens"
