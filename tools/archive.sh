#!/bin/sh
# Makes a static library that has no global names but the functions of include/loci.h, from the one that cargo makes:
#
#   tools/archive.sh target/release/libloci.a OUT.a
#
# A static library that rustc makes has the standard library's names and those of C dependencies in it, and two such libraries, or one
# beside a program's own copy of a dependency, clash at link time (always so on iOS). So everything that the exported functions reach is
# linked into one relocatable object, all other names become local, and what nobody reaches is dropped.
#
# CROSS is a prefix of the binutils (aarch64-linux-gnu-); LD, OBJCOPY, AR and READELF name them one by one.
set -eu
cd "$(dirname "$0")/.."
in=$1
out=$2
ld=${LD:-${CROSS:-}ld}
objcopy=${OBJCOPY:-${CROSS:-}objcopy}
ar=${AR:-${CROSS:-}ar}
readelf=${READELF:-${CROSS:-}readelf}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

tools/exports.sh > "$dir/names"
sed 's/^/--undefined=/' "$dir/names" > "$dir/roots"
"$ld" --relocatable --gc-sections "@$dir/roots" -o "$dir/loci.o" "$in"
# Bitcode that the standard library's objects carry is of no use to anyone here, and stops tools with an older LLVM.
"$objcopy" --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd --keep-global-symbols="$dir/names" "$dir/loci.o"

"$readelf" --symbols --wide "$dir/loci.o" | awk '($5 == "GLOBAL" || $5 == "WEAK") && $7 != "UND" { print $8 }' | LC_ALL=C sort > "$dir/global"
cmp -s "$dir/global" "$dir/names" || {
    echo "archive.sh: the archive's global names are not those of loci.h:" >&2
    diff "$dir/global" "$dir/names" >&2 || true
    exit 1
}
rm -f "$out"
"$ar" rcsD "$out" "$dir/loci.o"
