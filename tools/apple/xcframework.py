#!/usr/bin/env python3
"""Lays out an XCFramework of static frameworks from build/apple/TARGET/libloci.a, and checks that it says of itself what is in it.

    xcframework.py --version 0.1.0 --out build/apple/CLoci.xcframework build/apple/aarch64-apple-ios...

As `xcodebuild -create-xcframework` would: a framework of each platform with the archive, loci.h, a module map, and the privacy manifest,
which a bare static library has no place for."""
import argparse
import os
import plistlib
import shutil
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Of a Rust target: the slice's name, platform, variant, least system, and what Info.plist calls the platform.
SLICES = {
    "aarch64-apple-ios": ("ios-arm64", "ios", None, "13.0", "iPhoneOS"),
    "aarch64-apple-ios-sim": ("ios-arm64-simulator", "ios", "simulator", "14.0", "iPhoneSimulator"),
    "aarch64-apple-darwin": ("macos-arm64", "macos", None, "11.0", "MacOSX"),
}
MODULE_MAP = 'framework module CLoci {\n    header "loci.h"\n    export *\n}\n'


def framework(where, library, version, least, platform):
    # Frameworks for macOS keep their content under Versions; static ones are taken flat as well, and are never in an app.
    for part in ("Headers", "Modules"):
        os.makedirs(os.path.join(where, part))
    shutil.copy(library, os.path.join(where, "CLoci"))
    shutil.copy(os.path.join(ROOT, "include/loci.h"), os.path.join(where, "Headers"))
    shutil.copy(os.path.join(ROOT, "examples/apple/PrivacyInfo.xcprivacy"), where)
    with open(os.path.join(where, "Modules/module.modulemap"), "w", encoding="utf-8") as file:
        file.write(MODULE_MAP)
    info = {
        "CFBundleDevelopmentRegion": "en",
        "CFBundleExecutable": "CLoci",
        "CFBundleIdentifier": "dev.loci.CLoci",
        "CFBundleInfoDictionaryVersion": "6.0",
        "CFBundleName": "CLoci",
        "CFBundlePackageType": "FMWK",
        "CFBundleShortVersionString": version,
        "CFBundleSupportedPlatforms": [platform],
        "CFBundleVersion": version,
        "MinimumOSVersion": least,
    }
    with open(os.path.join(where, "Info.plist"), "wb") as file:
        plistlib.dump(info, file)


def check(out):
    """What the package manager reads first, against what is there."""
    with open(os.path.join(out, "Info.plist"), "rb") as file:
        top = plistlib.load(file)
    slices = {entry["LibraryIdentifier"] for entry in top["AvailableLibraries"]}
    assert slices == {name for name in os.listdir(out) if os.path.isdir(os.path.join(out, name))}, slices
    for entry in top["AvailableLibraries"]:
        where = os.path.join(out, entry["LibraryIdentifier"], entry["LibraryPath"])
        for name in ("CLoci", "Headers/loci.h", "Modules/module.modulemap", "Info.plist", "PrivacyInfo.xcprivacy"):
            assert os.path.getsize(os.path.join(where, name)) > 0, name
        with open(os.path.join(where, "CLoci"), "rb") as file:
            assert file.read(8) == b"!<arch>\n", "not an archive"
        with open(os.path.join(where, "Info.plist"), "rb") as file:
            assert plistlib.load(file)["CFBundleExecutable"] == "CLoci"
        with open(os.path.join(where, "PrivacyInfo.xcprivacy"), "rb") as file:
            privacy = plistlib.load(file)
        assert privacy["NSPrivacyTracking"] is False and privacy["NSPrivacyCollectedDataTypes"] == []


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("directories", nargs="+", metavar="DIR")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    available = []
    for directory in args.directories:
        name, platform, variant, least, bundle = SLICES[os.path.basename(os.path.normpath(directory))]
        framework(os.path.join(args.out, name, "CLoci.framework"), os.path.join(directory, "libloci.a"), args.version, least, bundle)
        entry = {
            "BinaryPath": "CLoci.framework/CLoci",
            "LibraryIdentifier": name,
            "LibraryPath": "CLoci.framework",
            "SupportedArchitectures": ["arm64"],
            "SupportedPlatform": platform,
        }
        available.append(entry if variant is None else entry | {"SupportedPlatformVariant": variant})
    with open(os.path.join(args.out, "Info.plist"), "wb") as file:
        plistlib.dump({"AvailableLibraries": available, "CFBundlePackageType": "XFWK", "XCFrameworkFormatVersion": "1.0"}, file)
    check(args.out)
    print(f"{args.out}: {' '.join(entry['LibraryIdentifier'] for entry in available)}")


if __name__ == "__main__":
    sys.exit(main())
