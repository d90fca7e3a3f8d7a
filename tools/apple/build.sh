#!/usr/bin/env bash
# Builds the static libraries for iOS, checks them, and lays out build/apple/CLoci.xcframework for the Swift package in examples/apple.
#
#   tools/apple/build.sh [TARGET...]         PROFILE=release builds faster than dist
#
# With Xcode: device, simulator and macOS. Without: device and simulator, with clang and lld against a stand-in for the SDK (stubs.sh). Those
# are real Mach-O archives, linked once to prove that libSystem is all they need, but never run and not signed. One difference: Xcode's
# linker joins them into one object whose other names are local; without it the names that are not the header's get a prefix
# (_loci_private_), so that they clash with nobody's.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${PROFILE:-dist}
tools/setup.sh cargo cc python3
xcode=
! command -v xcodebuild > /dev/null || xcode=yes
[ $# -gt 0 ] || set -- aarch64-apple-ios aarch64-apple-ios-sim ${xcode:+aarch64-apple-darwin}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=build/apple
mkdir -p $out
tools/exports.sh | sed 's/^/_/' > $out/names

for target in "$@"; do
    (
        . "$(tools/cross/setup.sh "$target" | tail -n 1)"
        cargo rustc --profile "$profile" -p loci-ffi --target "$target" --crate-type staticlib
        built=$CARGO_TARGET_DIR/$target/$profile/libloci.a
        mkdir -p "$out/$target"
        library=$out/$target/libloci.a
        case $target in
            *-ios-sim) platform=ios-simulator sdk=iphonesimulator least=14.0 ;;
            *-ios) platform=ios sdk=iphoneos least=13.0 ;;
            *) platform=macos sdk=macosx least=11.0 ;;
        esac
        if [ -n "$xcode" ]; then
            xcrun -sdk $sdk ld -r -arch arm64 -platform_version $platform $least "$(xcrun -sdk $sdk --show-sdk-version)" \
                -exported_symbols_list $out/names $(sed 's/^/-u /' $out/names) "$built" -o "$out/$target/loci.o"
            rm -f "$library"
            xcrun -sdk $sdk libtool -static -o "$library" "$out/$target/loci.o"
            rm "$out/$target/loci.o"
            nm=(xcrun nm) readobj=
        else
            nm=("llvm-nm$LLVM_SUFFIX") readobj=llvm-readobj$LLVM_SUFFIX
            # Bitcode that the standard library's objects carry is of no use, and nm would read its names instead of the object's.
            "llvm-objcopy$LLVM_SUFFIX" --strip-debug --remove-section=__LLVM,__bitcode --remove-section=__LLVM,__cmdline "$built" "$library"
            "${nm[@]}" --defined-only --extern-only --no-sort --format=just-symbols --quiet "$library" 2> /dev/null | grep '^_' | LC_ALL=C sort -u |
                LC_ALL=C comm -23 - $out/names | sed 's/\(.*\)/\1 _loci_private\1/' > "$out/$target/renamed"
            "llvm-objcopy$LLVM_SUFFIX" --redefine-syms="$out/$target/renamed" "$library"
            # Everything that the header's functions reach, linked: a name that libSystem does not have is an error here.
            "ld64.lld$LLVM_SUFFIX" -dylib -arch arm64 -platform_version $platform $least 17.0 -dead_strip -exported_symbols_list $out/names \
                $(sed 's/^/-u /' $out/names) -install_name @rpath/libloci.dylib -syslibroot "$SDKROOT" -lSystem "$library" \
                -o "$out/$target/proof.dylib"
        fi
        python3 tools/apple/check.py --nm "${nm[*]}" --readobj "$readobj" --names $out/names --platform $platform --least $least "$out/$target"
    )
done
python3 tools/apple/xcframework.py --version "$version" --out $out/CLoci.xcframework "${@/#/$out/}"
rm -rf examples/apple/CLoci.xcframework
cp -R $out/CLoci.xcframework examples/apple/
