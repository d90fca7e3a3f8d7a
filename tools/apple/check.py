#!/usr/bin/env python3
"""Checks build/apple/TARGET/libloci.a, and proof.dylib where there is one.

    check.py --nm "llvm-nm" --readobj llvm-readobj --names NAMES --platform ios --least 13.0 DIR

Every object is 64-bit ARM Mach-O for that platform and no later system; the global names are the header's, or begin with _loci_private_;
what is undefined is in libsystem.txt; what is linked depends on libSystem alone; and no function is asked for that Apple wants a reason
for (a "required reason API") which examples/apple's privacy manifest does not give."""
import argparse
import os
import plistlib
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PRIVACY = os.path.join(ROOT, "examples/apple/PrivacyInfo.xcprivacy")
PLATFORMS = {"ios": 2, "ios-simulator": 7, "macos": 1}
# Functions of C that Apple counts to a category.
REASONS = {
    "NSPrivacyAccessedAPICategoryFileTimestamp": "_stat _fstat _lstat _fstatat _getattrlist _fgetattrlist _getattrlistat _getattrlistbulk".split(),
    "NSPrivacyAccessedAPICategorySystemBootTime": ["_mach_absolute_time"],
    "NSPrivacyAccessedAPICategoryDiskSpace": "_statfs _statvfs _fstatfs _fstatvfs".split(),
}


def output(command):
    # Archives hold members without symbols, of which nm complains.
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def words(path):
    with open(path, encoding="utf-8") as file:
        return {line.strip() for line in file if line.strip() and not line.startswith("#")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nm", required=True)
    parser.add_argument("--readobj", default="")
    parser.add_argument("--names", required=True)
    parser.add_argument("--platform", required=True)
    parser.add_argument("--least", required=True)
    parser.add_argument("directory")
    args = parser.parse_args()
    library = os.path.join(args.directory, "libloci.a")
    proof = os.path.join(args.directory, "proof.dylib")
    names, system = words(args.names), words(os.path.join(ROOT, "tools/apple/libsystem.txt"))
    wrong = []

    def symbols(*flags):
        listed = output([*args.nm.split(), *flags, library]).splitlines()
        return {line.split()[-1] for line in listed if line.strip() and not line.endswith(":")}

    defined = symbols("-g", "-U")
    asked = symbols("-g", "-u") - defined
    if not names <= defined:
        wrong.append(f"not defined: {sorted(names - defined)}")
    strangers = sorted(n for n in defined - names if not n.startswith("_loci_private_"))
    if strangers:
        wrong.append(f"{len(strangers)} other global names: {strangers[:10]}")
    said = f"{library}: {os.path.getsize(library)} bytes"
    if args.readobj:
        headers = output([args.readobj, "--file-headers", "--macho-version-min", library])
        magics, builds = re.findall(r"^Format: (.*)$", headers, re.M), set(re.findall(r"Platform: (\S+)\s+Version: (\S+)", headers))
        for found in sorted(set(magics) - {"Mach-O arm64"}):
            wrong.append(f"an object that is {found}")
        for platform, version in builds:
            least = [int(n) for n in version.split(".")]
            # Compiler-rt's and the library's own objects may ask for less, never for more.
            if least > [int(n) for n in args.least.split(".")]:
                wrong.append(f"an object for {platform} {version}")
        said += f", {len(magics)} objects, {sorted(builds)}"
    if os.path.exists(proof):
        linked = output([args.readobj, "--needed-libs", "--file-headers", "--macho-version-min", proof])
        if "/usr/lib/libSystem.B.dylib" not in linked or re.search(r"^\s+/(?!usr/lib/libSystem)", linked, re.M):
            wrong.append(f"linked, it depends on other libraries:\n{linked}")
        if args.least not in linked:
            wrong.append(f"linked, it is not for {args.platform} {args.least}:\n{linked}")
        shown = {line.split()[-1] for line in output([*args.nm.split(), "-g", "-U", proof]).splitlines() if line.strip()}
        if shown != names:
            wrong.append(f"linked, it shows {sorted(shown - names)} too, and not {sorted(names - shown)}")
        asked = {line.split()[-1] for line in output([*args.nm.split(), "-u", proof]).splitlines() if line.strip()}
        said += f"; linked {os.path.getsize(proof)} bytes, {len(shown)} functions, {len(asked)} names of libSystem"
    for name in sorted(asked - system):
        wrong.append(f"asks for {name}, which libsystem.txt does not have")
    with open(PRIVACY, "rb") as file:
        given = {entry["NSPrivacyAccessedAPIType"] for entry in plistlib.load(file)["NSPrivacyAccessedAPITypes"]}
    for category, functions in REASONS.items():
        used = sorted(asked & {f for name in functions for f in (name, name + "$INODE64")})
        if used and category not in given:
            wrong.append(f"asks for {used}: the privacy manifest gives no reason for {category}")
        if not used and category in given:
            wrong.append(f"the privacy manifest gives a reason for {category}, which nothing uses")
    print(said)
    if wrong:
        sys.exit("\n".join(f"{args.directory}: {line}" for line in wrong))


if __name__ == "__main__":
    main()
