#!/usr/bin/env bash
# Counts instructions and cycles of the products on AArch64 cores, beside ggml's; see cost.py, to which arguments go on.
#
#   tools/aarch64/cost.sh [--formats Q4_0,Q4_K] [--n 1,64] [--levels neon,dotprod,i8mm]
#
# The table is printed and written to benches/record/aarch64-cost-<date>.csv (CSV=FILE: elsewhere).
set -euo pipefail
cd "$(dirname "$0")/../.."
tools/setup.sh cargo cc python3
. "$(tools/aarch64/setup.sh llvm | tail -n 1)"
target=aarch64-unknown-linux-gnu
work=$CARGO_TARGET_DIR/cost
csv=${CSV:-benches/record/aarch64-cost-$(date -u +%F).csv}
mkdir -p "$work" "$(dirname "$csv")"

api=1
[ "$(qemu-aarch64 --version | sed -n 's/.*version \([0-9]*\).*/\1/p')" -lt 9 ] || api=2
cc -O2 -Wall -Wextra -Werror -shared -fPIC -DPLUGIN_API=$api tools/aarch64/count.c -o "$work/count.so"

# ggml as its crate carries it, for ARMv8.0 and with dotprod (its source has no other level).
ggml=$(cargo metadata --format-version 1 --filter-platform $target | grep -o '"manifest_path":"[^"]*/ggml-sys-[^"]*' | head -n 1 | cut -d'"' -f4)
ggml=$(dirname "$ggml")/ggml
for arch in armv8-a armv8.2-a+dotprod; do
    aarch64-linux-gnu-gcc -O3 -DNDEBUG -march=$arch -w -pthread -I "$ggml/include/ggml" tools/aarch64/ggml_cost.c "$ggml/src/ggml.c" \
        -lm -o "$work/ggml-$arch"
done

# The newest program of that name is the one just built; cargo says which.
program=$(cargo build --release --target $target --bench cost --message-format=json | grep -o '"executable":"[^"]*/cost-[^"]*"' | tail -n 1 | cut -d'"' -f4)
exec python3 tools/aarch64/cost.py --qemu "qemu-aarch64 -L /usr/aarch64-linux-gnu" --count "$work/count.so" --llvm "$LLVM_SUFFIX" \
    --loci "$program" --ggml "$work/ggml-armv8-a" "$work/ggml-armv8.2-a+dotprod" --csv "$csv" --work "$work" "$@"
