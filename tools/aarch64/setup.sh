#!/usr/bin/env bash
# Makes sure that this x86-64 machine can build programs for AArch64 Linux and run them, and writes what cargo has to know to a
# file, whose name is the last line printed:
#
#   tools/aarch64/setup.sh [llvm]
#   . "$(tools/aarch64/setup.sh | tail -n 1)"
#   QEMU_CPU=cortex-a76 cargo test --release --target aarch64-unknown-linux-gnu
#
# It is tools/cross/setup.sh's set-up; with `llvm` also llvm-objdump and llvm-mca of a release that models the cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/cross/rust.sh
target=aarch64-unknown-linux-gnu
env=$(tools/cross/setup.sh $target | tail -n 1)

# The models of the cores grow better with every LLVM: the newest that apt offers, and none before 19.
llvm=
if [ "${1:-}" = llvm ]; then
    newest() { sort -t- -k"$1" -n | tail -n 1; }
    [ -n "$(compgen -c llvm-mca- | grep -E '^llvm-mca-(19|[2-9][0-9])$')" ] || install "$(apt-cache search --names-only '^llvm-[0-9]+$' | cut -d' ' -f1 | newest 2)"
    llvm=$(compgen -c llvm-mca- | grep -E '^llvm-mca-[0-9]+$' | newest 3)
    llvm=${llvm#llvm-mca}
    [ "${llvm#-}" -ge 19 ] || fail "llvm-mca${llvm} is too old: its models of these cores are not of use"
fi

echo "export LLVM_SUFFIX=\"$llvm\"" >> "$env"
echo "$env"
