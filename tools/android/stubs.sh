#!/usr/bin/env bash
# Stand-ins for what a link for Android takes from an NDK: shared libraries with the names that bionic exports (bionic.txt), a static
# unwinder, a C compiler and a linker that use them.
#
#   tools/android/stubs.sh TRIPLE LLVM_SUFFIX DIR        aarch64-linux-android, -22, where to put them
#
# A library that links with these asks for nothing that Android 5.0 (API 21) does not have. It is a proof, not to be shipped: the unwinder
# traps, where the NDK's static libunwind would be.
set -euo pipefail
cd "$(dirname "$0")/../.."
triple=$1 llvm=$2 dir=$3
stamp=$(cat tools/android/stubs.sh tools/android/bionic.txt | cksum)
[ "$(cat "$dir/stamp" 2> /dev/null)" != "$stamp" ] || exit 0
rm -rf "$dir"
mkdir -p "$dir"
target=(--target="${triple}21")
# As the NDK has it: floats go through integer registers, and are computed by the unit that every ARMv7 phone has.
[[ $triple != armv7* ]] || target+=(-march=armv7-a -mfpu=vfpv3-d16 -mfloat-abi=softfp)
include=$PWD/tools/cross/include

for library in libc libm libdl liblog; do
    awk -v library=$library '!/^#/ && $2 == library { print "void " $1 "(void) {}" }' tools/android/bionic.txt > "$dir/$library.c"
    "clang$llvm" "${target[@]}" -w -ffreestanding -fno-builtin -fPIC -shared -nostdlib -fuse-ld=lld -Wl,-soname,$library.so "$dir/$library.c" -o "$dir/$library.so"
done
awk '!/^#/ && $2 == "libunwind" { print "__attribute__((visibility(\"hidden\"))) void " $1 "(void) { __builtin_trap(); }" }' tools/android/bionic.txt > "$dir/unwind.c"
"clang$llvm" "${target[@]}" -w -ffreestanding -fno-builtin -fPIC -c "$dir/unwind.c" -o "$dir/unwind.o"
"llvm-ar$llvm" rc "$dir/libunwind.a" "$dir/unwind.o"
rm "$dir"/*.c "$dir/unwind.o"

printf '#!/bin/sh\nexec clang%s %s -nostdlibinc -isystem "%s" "$@"\n' "$llvm" "${target[*]}" "$include" > "$dir/cc"
# Without the start files of an NDK; pages of 16 KiB; nothing undefined. (A linker that is called ld is not spoken to as a compiler by rustc.)
printf '#!/bin/sh\nexec clang%s %s -fuse-ld=lld -nostdlib -L"%s" -Wl,-z,max-page-size=16384,-z,defs,-z,separate-loadable-segments "$@"\n' \
    "$llvm" "${target[*]}" "$dir" > "$dir/linker"
chmod +x "$dir/cc" "$dir/linker"
echo "$stamp" > "$dir/stamp"
