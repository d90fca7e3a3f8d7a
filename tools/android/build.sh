#!/usr/bin/env bash
# Builds the libraries for Android and checks them: libloci.so and libloci.a, and the JNI layer over them, into build/android/ABI.
#
#   tools/android/build.sh [ABI...]          arm64-v8a armeabi-v7a x86_64 unless named; PROFILE=release builds faster than dist
#
# With ANDROID_NDK_HOME the NDK's compiler links them, and they may be shipped. Without, they are linked against stand-ins (stubs.sh): the
# static library is the real one, the shared ones prove that nothing is asked for that Android 5.0 does not have; a file NOT-FOR-DEVICES
# lies beside them.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${PROFILE:-dist}
tools/setup.sh cargo cc javac python3
[ $# -gt 0 ] || set -- arm64-v8a armeabi-v7a x86_64
# jni.h is the same everywhere; the NDK has its own.
java=$(readlink -f "$(command -v javac)")
java=${java%/bin/javac}/include

for abi in "$@"; do
    case $abi in
        arm64-v8a) target=aarch64-linux-android ;;
        armeabi-v7a) target=armv7-linux-androideabi ;;
        x86_64) target=x86_64-linux-android ;;
        *)
            echo "android: no such ABI: $abi" >&2
            exit 2
            ;;
    esac
    (
        . "$(tools/cross/setup.sh $target | tail -n 1)"
        under=${target//-/_}
        upper=$(echo "$under" | tr '[:lower:]' '[:upper:]')
        cc=CC_$under linker=CARGO_TARGET_${upper}_LINKER
        tool() { echo "${LLVM:-llvm-}$1${LLVM_SUFFIX:-}"; }
        cargo build --profile "$profile" -p loci-ffi --target $target
        built=$CARGO_TARGET_DIR/$target/$profile
        out=build/android/$abi
        rm -rf "$out"
        mkdir -p "$out"
        OBJCOPY=$(tool objcopy) AR=$(tool ar) READELF=$(tool readelf) tools/archive.sh "$built/libloci.a" "$out/libloci.a"
        "$(tool strip)" --strip-unneeded -o "$out/libloci.so" "$built/libloci.so"
        jni=()
        [ -n "${ANDROID_NDK_HOME:-}" ] || jni=(-isystem "$java" -isystem "$java/linux")
        "${!cc}" -std=c99 -O2 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Iinclude "${jni[@]}" \
            -c examples/android/loci/src/main/cpp/loci_jni.c -o "$out/loci_jni.o"
        "${!linker}" -shared -Wl,-soname,libloci_jni.so -Wl,-z,max-page-size=16384 -Wl,-z,defs "$out/loci_jni.o" -L"$out" -lloci -lc -o "$out/libloci_jni.so"
        rm "$out/loci_jni.o"
        "$(tool strip)" --strip-unneeded "$out/libloci_jni.so"
        if [ -n "${ANDROID_NDK_HOME:-}" ]; then
            # Where the Gradle project in examples/android looks.
            sources=examples/android/loci/src/main
            install -D -m 644 "$out/libloci.so" "$sources/jniLibs/$abi/libloci.so"
            install -D -m 644 -t "$sources/cpp/include" include/loci.h
        else
            echo "linked against stand-ins for Android's libraries; the unwinder in it traps" > "$out/NOT-FOR-DEVICES"
        fi
        python3 tools/android/check.py --readelf "$(tool readelf)" "$out"
    )
done
