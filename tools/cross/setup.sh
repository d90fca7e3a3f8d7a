#!/usr/bin/env bash
# Makes sure that this x86-64 machine can build for a target, and writes what cargo has to know to a file, whose name is the last line
# printed:
#
#   . "$(tools/cross/setup.sh armv7-unknown-linux-gnueabihf | tail -n 1)"
#   cargo build --release -p loci-ffi --target armv7-unknown-linux-gnueabihf
#
#   *-linux-gnu*        Debian's compiler and C library for it, and qemu's user-mode emulator to run what was built
#   *-linux-android*    the NDK in ANDROID_NDK_HOME (API 21); without one clang and lld, and stand-ins for the system's libraries
#   *-apple-ios*        Xcode; without it clang and lld, and a stand-in for the SDK
#
# With the stand-ins (tools/android/stubs.sh, tools/apple/stubs.sh) everything compiles and links as it would on the real thing, which
# proves what is needed from the system; what comes out of a link is not to be shipped. The Rust side is in rust.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/cross/rust.sh
target=${1:?usage: setup.sh TARGET}
mkdir -p "$home"

# What cargo and the crates that compile C call a target in the names of variables.
under=${target//-/_}
upper=$(echo "$under" | tr '[:lower:]' '[:upper:]')

# clang, lld and LLVM's tools, of one release, the newest that is here; installed if there is none since 16. Sets $llvm to -NN.
need_llvm() {
    local newest n
    newest=$({ compgen -c clang- || true; } | sed -n 's/^clang-\(1[6-9]\|[2-9][0-9]\)$/\1/p' | sort -nu | while read -r n; do
        if command -v "ld.lld-$n" > /dev/null && command -v "llvm-nm-$n" > /dev/null; then echo "$n"; fi
    done | tail -n 1)
    if [ -z "$newest" ]; then
        $sudo apt-get update -qq > /dev/null || true
        newest=$(apt-cache search --names-only '^lld-[0-9]+$' | cut -d' ' -f1 | sort -t- -k2 -n | tail -n 1 | cut -d- -f2)
        install "clang-$newest" "lld-$newest" "llvm-$newest"
    fi
    llvm=-$newest
}

case $target in
    *-linux-gnu*)
        [ "$(uname -sm)" = "Linux x86_64" ] || fail "this is $(uname -sm), not an x86-64 Linux: on the machine itself use make test"
        case $target in
            aarch64-*) gnu=aarch64-linux-gnu debian=arm64 emulator=qemu-aarch64 ;;
            armv7-*) gnu=arm-linux-gnueabihf debian=armhf emulator=qemu-arm ;;
            *) fail "no C compiler known for $target" ;;
        esac
        packages=()
        command -v $gnu-gcc > /dev/null || packages+=(gcc-$gnu)
        command -v $gnu-g++ > /dev/null || packages+=(g++-$gnu)
        [ -e /usr/$gnu/include/stdio.h ] || packages+=(libc6-dev-$debian-cross)
        command -v $emulator > /dev/null || packages+=(qemu-user)
        [ ${#packages[@]} -eq 0 ] || install "${packages[@]}"
        cc=$gnu-gcc cxx=$gnu-g++ ar=$gnu-ar linker=$gnu-gcc
        extra="export CARGO_TARGET_${upper}_RUNNER=\"$emulator -L /usr/$gnu\" EMULATOR=\"$emulator -L /usr/$gnu\" CROSS=$gnu-"
        ;;
    *-linux-android*)
        # The names of C compilers say armv7a where Rust says armv7.
        triple=${target/#armv7-/armv7a-}
        if [ -n "${ANDROID_NDK_HOME:-}" ]; then
            bin=$(ls -d "$ANDROID_NDK_HOME"/toolchains/llvm/prebuilt/*/bin 2> /dev/null | head -n 1)
            [ -x "$bin/${triple}21-clang" ] || fail "ANDROID_NDK_HOME=$ANDROID_NDK_HOME has no compiler ${triple}21-clang"
            cc=$bin/${triple}21-clang cxx=$bin/${triple}21-clang++ ar=$bin/llvm-ar linker=$cc
            extra="export LLVM=\"$bin/llvm-\" LD=\"$bin/ld.lld\""
        else
            need_llvm
            stubs=$home/android/$target
            tools/android/stubs.sh "$triple" "$llvm" "$stubs" >&2
            cc=$stubs/cc cxx=$stubs/cc ar=llvm-ar$llvm linker=$stubs/linker
            extra="export LLVM_SUFFIX=$llvm LD=ld.lld$llvm"
        fi
        ;;
    *-apple-*)
        if command -v xcodebuild > /dev/null; then
            cc=cc cxx=c++ ar=ar linker=cc
            extra="export IPHONEOS_DEPLOYMENT_TARGET=13.0"
        else
            need_llvm
            stubs=$home/apple/$target
            tools/apple/stubs.sh "$target" "$llvm" "$stubs" >&2
            cc=$stubs/bin/cc cxx=$stubs/bin/cc ar=llvm-ar$llvm linker=$stubs/bin/ld
            extra="export LLVM_SUFFIX=$llvm SDKROOT=\"$stubs\" PATH=\"\$PATH:$stubs/bin\" IPHONEOS_DEPLOYMENT_TARGET=13.0
export RANLIB_$under=llvm-ranlib$llvm"
        fi
        ;;
    *) fail "no set-up known for $target" ;;
esac
rust_for "$target"

cat > "$home/env-$target.new" << END
export RUSTC="$RUSTC" RUSTDOC="$RUSTDOC"
export CARGO_TARGET_${upper}_LINKER="$linker"
export CC_$under="$cc" CXX_$under="$cxx" AR_$under="$ar"
$extra
# Two compilers in one directory would build everything again and again.
case "\${CARGO_TARGET_DIR:-}" in */cross) ;; *) export CARGO_TARGET_DIR="\${CARGO_TARGET_DIR:-target}/cross" ;; esac
END
mv "$home/env-$target.new" "$home/env-$target"
echo "$home/env-$target"
