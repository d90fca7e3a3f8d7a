#!/usr/bin/env python3
"""Checks the libraries of build/android/ABI: what they ask Android for, what they show, how their pages lie.

    check.py [--readelf llvm-readelf] DIR...

Every undefined name, but weak ones, must be in bionic.txt with an API level of at most 21; the shared library and the archive show the functions of
include/loci.h and no others, the JNI layer those that Native.java declares; segments are aligned for pages of 16 KiB; nothing is
written to code. A wrong library ends in status 1."""
import argparse
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
API = 21
MACHINES = {"arm64-v8a": "AArch64", "armeabi-v7a": "ARM", "x86_64": "X86-64"}
# What the system has; libunwind is linked in.
SYSTEM = {"libc.so", "libdl.so", "libm.so", "liblog.so"}


def lines(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()


def bionic():
    """Names that may be undefined, by library."""
    names = {}
    with open(os.path.join(ROOT, "tools/android/bionic.txt"), encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                name, library, api = line.split()
                names[name] = (library + ".so" if library != "libunwind" else library, int(api))
    return names


def natives():
    """The functions that Native.java declares, as JNI names them."""
    with open(os.path.join(ROOT, "examples/android/loci/src/main/java/dev/loci/Native.java"), encoding="utf-8") as file:
        return {"Java_dev_loci_Native_" + name for name in re.findall(r"static native \S+ (\w+)\(", file.read())}


def symbols(readelf, table, path):
    """Names that others may link to, and names that others must provide."""
    shown, asked = set(), set()
    for line in lines(readelf, "--wide", table, path):
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit() or fields[4] not in ("GLOBAL", "WEAK"):
            continue
        name = fields[7].split("@")[0]
        if fields[6] == "UND":
            # What is asked for weakly may be missing: the standard library looks before it calls (getrandom, of API 28).
            if fields[4] == "GLOBAL":
                asked.add(name)
        elif fields[5] in ("DEFAULT", "PROTECTED"):
            shown.add(name)
    return shown, asked


class Check:
    def __init__(self, readelf, directory):
        self.readelf, self.directory, self.wrong = readelf, directory, []
        self.known = bionic()

    def expect(self, true, what):
        if not true:
            self.wrong.append(what)

    def same(self, name, found, wanted):
        self.expect(found == wanted, f"{name}: shows {sorted(found - wanted)} too, and not {sorted(wanted - found)}")

    def provided(self, name, asked, libraries):
        for symbol in sorted(asked):
            library, api = self.known.get(symbol, (None, 0))
            self.expect(library is not None, f"{name}: asks for {symbol}, which bionic.txt does not have")
            self.expect(api <= API, f"{name}: asks for {symbol}, which came with API {api}")
            self.expect(library is None or library in libraries, f"{name}: asks for {symbol} of {library}, which it does not name as needed")

    def shared(self, name, soname, shows, others=(), other_names=frozenset()):
        path = os.path.join(self.directory, name)
        header = "\n".join(lines(self.readelf, "--file-header", path))
        machine = MACHINES.get(os.path.basename(os.path.normpath(self.directory)))
        self.expect(re.search(rf"Machine:\s+.*\b{machine}\b", header), f"{name}: is not for {machine}")
        segments = lines(self.readelf, "--wide", "--segments", path)
        loads = [line.split() for line in segments if line.split()[:1] == ["LOAD"]]
        self.expect(loads and all(int(load[-1], 16) >= 0x4000 for load in loads), f"{name}: segments are not aligned to 16 KiB")
        self.expect(not any({"W", "E"} <= set("".join(load[6:-1])) for load in loads), f"{name}: a segment is written and run")
        self.expect(any(line.split()[:1] == ["GNU_RELRO"] for line in segments), f"{name}: no GNU_RELRO")
        dynamic = "\n".join(lines(self.readelf, "--wide", "--dynamic", path))
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
        self.expect(needed <= SYSTEM | set(others), f"{name}: needs {sorted(needed)}")
        self.expect(f"[{soname}]" in dynamic, f"{name}: its SONAME is not {soname}")
        self.expect("TEXTREL" not in dynamic, f"{name}: relocations in code")
        shown, asked = symbols(self.readelf, "--dyn-syms", path)
        self.same(name, shown, shows)
        self.provided(name, asked - set(other_names), needed)
        return f"{name} {os.path.getsize(path)} bytes, {len(shown)} functions, {len(asked - set(other_names))} names of {' '.join(sorted(needed))}"

    def archive(self, name, shows):
        path = os.path.join(self.directory, name)
        shown, asked = symbols(self.readelf, "--syms", path)
        self.same(name, shown, shows)
        self.provided(name, asked, SYSTEM | {"libunwind"})
        return f"{name} {os.path.getsize(path)} bytes, {len(asked)} names of the system and its unwinder"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readelf", default="llvm-readelf")
    parser.add_argument("directories", nargs="+", metavar="DIR")
    args = parser.parse_args()
    functions = set(lines("tools/exports.sh"))
    failed = False
    for directory in args.directories:
        check = Check(args.readelf, os.path.abspath(directory))
        found = [check.shared("libloci.so", "libloci.so", functions), check.archive("libloci.a", functions)]
        found.append(check.shared("libloci_jni.so", "libloci_jni.so", natives(), ["libloci.so"], functions))
        for line in check.wrong:
            print(f"{directory}: {line}", file=sys.stderr)
        failed = failed or bool(check.wrong)
        if not check.wrong:
            print("\n".join(f"{directory}: {line}" for line in found))
    sys.exit(failed)


if __name__ == "__main__":
    main()
