#!/usr/bin/env bash
# A stand-in for the iOS SDK: libSystem by the names in libsystem.txt, a C compiler (clang), a linker (lld), and what rustc and the cc crate
# ask of xcrun.
#
#   tools/apple/stubs.sh TARGET LLVM_SUFFIX DIR        aarch64-apple-ios or aarch64-apple-ios-sim, -22, where to put it
#
# What links with it asks for nothing that libSystem does not have. Objects and static libraries made with it are ordinary ones.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$1 llvm=$2 dir=$3
case $target in
    aarch64-apple-ios) triple=arm64-apple-ios13.0 stub=arm64-ios ;;
    aarch64-apple-ios-sim) triple=arm64-apple-ios14.0-simulator stub=arm64-ios-simulator ;;
    *)
        echo "stubs.sh: no stand-in for $target" >&2
        exit 1
        ;;
esac
mkdir -p "$dir/usr/lib" "$dir/bin"
{
    printf -- "--- !tapi-tbd\ntbd-version: 4\ntargets: [ %s ]\ninstall-name: '/usr/lib/libSystem.B.dylib'\nexports:\n" $stub
    printf '  - targets: [ %s ]\n    symbols: [ %s ]\n...\n' $stub "$(grep -v '^#' tools/apple/libsystem.txt | LC_ALL=C sort -u | paste -sd, | sed 's/,/, /g')"
} > "$dir/usr/lib/libSystem.tbd"
for library in iconv m c objc; do cp "$dir/usr/lib/libSystem.tbd" "$dir/usr/lib/lib$library.tbd"; done
wrap() {
    printf '#!/bin/sh\n%s\n' "$2" > "$dir/bin/$1"
    chmod +x "$dir/bin/$1"
}
wrap cc "exec clang$llvm --target=$triple -nostdlibinc -isystem \"$PWD/tools/cross/include\" \"\$@\""
# rustc goes by the name of the linker.
wrap ld "exec ld64.lld$llvm \"\$@\""
wrap rust-objcopy "exec llvm-objcopy$llvm \"\$@\""
wrap xcrun "case \"\$*\" in *show-sdk-path*) echo \"$dir\" ;; *show-sdk-version*) echo 17.0 ;; *) exit 1 ;; esac"
