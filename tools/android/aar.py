#!/usr/bin/env python3
"""Packs what tools/android/build.sh has built into an Android archive, and checks what it has packed.

    aar.py --version 0.1.0 --classes DIR --libraries build/android --out build/android

OUT gets loci-VERSION.aar, and a Maven repository with it (maven/), which Gradle can name. In the archive: the classes of dev.loci (compiled
before, tools/android/kotlin.sh), libloci.so and libloci_jni.so of every ABI, a prefab module for C and C++ apps (headers and libloci.so),
rules that keep what JNI looks up by name. Libraries that were linked against stand-ins make an archive that says so in its name."""
import argparse
import io
import json
import os
import shutil
import sys
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
API = 21
NDK = 27
PAGE = 16384
PROGUARD = """# Called from native code, by name.
-keepclasseswithmembernames class dev.loci.** { native <methods>; }
-keep class dev.loci.LociException { <init>(int, byte[]); }
-keep class dev.loci.Progress { boolean onProgress(long, long); }
-keepclassmembers class * implements dev.loci.Progress { boolean onProgress(long, long); }
"""
MANIFEST = f"""<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="dev.loci">
    <uses-sdk android:minSdkVersion="{API}" />
</manifest>
"""
METADATA = f"aarFormatVersion=1.0\naarMetadataVersion=1.0\nminCompileSdk={API}\nminAndroidGradlePluginVersion=4.1.0\n"
POM = """<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>dev.loci</groupId>
  <artifactId>loci</artifactId>
  <version>{version}</version>
  <packaging>aar</packaging>
  <dependencies>
    <dependency>
      <groupId>org.jetbrains.kotlin</groupId>
      <artifactId>kotlin-stdlib</artifactId>
      <version>2.2.0</version>
      <scope>compile</scope>
    </dependency>
    <dependency>
      <groupId>org.jetbrains.kotlinx</groupId>
      <artifactId>kotlinx-coroutines-android</artifactId>
      <version>1.9.0</version>
      <scope>compile</scope>
    </dependency>
  </dependencies>
</project>
"""


class Zip:
    """A zip file that is the same whenever it is made of the same content."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.file = zipfile.ZipFile(self.buffer, "w", zipfile.ZIP_DEFLATED)

    def add(self, name, content):
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        self.file.writestr(info, content if isinstance(content, bytes) else content.encode())

    def bytes(self):
        self.file.close()
        return self.buffer.getvalue()


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def jar(classes):
    out = Zip()
    for directory, subdirectories, files in os.walk(classes):
        subdirectories.sort()
        for name in sorted(files):
            if name.endswith((".class", ".kotlin_module")):
                path = os.path.join(directory, name)
                out.add(os.path.relpath(path, classes), read(path))
    return out.bytes()


def pack(version, classes, libraries, abis):
    out = Zip()
    out.add("AndroidManifest.xml", MANIFEST)
    out.add("META-INF/com/android/build/gradle/aar-metadata.properties", METADATA)
    out.add("R.txt", "")
    out.add("proguard.txt", PROGUARD)
    out.add("classes.jar", jar(classes))
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        out.add("assets/licences/loci/" + name, read(ROOT, name))
    for abi in abis:
        for library in ("libloci.so", "libloci_jni.so"):
            out.add(f"jni/{abi}/{library}", read(libraries, abi, library))
    out.add("prefab/prefab.json", json.dumps({"schema_version": 2, "name": "loci", "version": version, "dependencies": []}, indent=2))
    module = "prefab/modules/loci"
    out.add(f"{module}/module.json", json.dumps({"export_libraries": [], "library_name": "libloci", "android": {}}, indent=2))
    for header in ("loci.h", "loci.hpp"):
        out.add(f"{module}/include/{header}", read(ROOT, "include", header))
    for abi in abis:
        about = {"abi": abi, "api": API, "ndk": NDK, "stl": "none", "static": False}
        out.add(f"{module}/libs/android.{abi}/abi.json", json.dumps(about, indent=2))
        out.add(f"{module}/libs/android.{abi}/libloci.so", read(libraries, abi, "libloci.so"))
    return out.bytes()


def alignment(library):
    """The least alignment of the loaded segments of an ELF file of either size."""
    bits, order = library[4], "little"
    number = lambda at, n: int.from_bytes(library[at : at + n], order)
    headers, size, count = (number(0x20, 8), number(0x36, 2), number(0x38, 2)) if bits == 2 else (number(0x1C, 4), number(0x2A, 2), number(0x2C, 2))
    segments = [headers + i * size for i in range(count)]
    return min(number(s + (0x30 if bits == 2 else 0x1C), 8 if bits == 2 else 4) for s in segments if number(s, 4) == 1)


def check(path, abis):
    """What Gradle and an app will look for is there, and opens."""
    wrong = []

    def expect(true, what):
        if not true:
            wrong.append(what)

    with zipfile.ZipFile(path) as file:
        expect(file.testzip() is None, "a damaged entry")
        names = file.namelist()
        expect(len(names) == len(set(names)), "an entry twice")
        for name in ("AndroidManifest.xml", "classes.jar", "R.txt", "proguard.txt", "prefab/prefab.json"):
            expect(name in names, f"no {name}")
        expect({n.split("/")[1] for n in names if n.startswith("jni/")} == set(abis), "not the ABIs that were built")
        for abi in abis:
            here, there = file.read(f"jni/{abi}/libloci.so"), file.read(f"prefab/modules/loci/libs/android.{abi}/libloci.so")
            expect(here == there, f"{abi}: two different libloci.so")
            for library in ("libloci.so", "libloci_jni.so"):
                content = file.read(f"jni/{abi}/{library}")
                expect(content[:4] == b"\x7fELF" and alignment(content) >= PAGE, f"{abi}/{library}: segments not aligned to 16 KiB")
            about = json.loads(file.read(f"prefab/modules/loci/libs/android.{abi}/abi.json"))
            expect(about["abi"] == abi and about["api"] == API and not about["static"], f"{abi}: abi.json")
        expect(json.loads(file.read("prefab/prefab.json"))["schema_version"] == 2, "prefab.json")
        expect(json.loads(file.read("prefab/modules/loci/module.json"))["library_name"] == "libloci", "module.json")
        with zipfile.ZipFile(io.BytesIO(file.read("classes.jar"))) as classes:
            expect(classes.testzip() is None, "a damaged class")
            for name in ("Native", "Progress", "LociException", "Model", "Session", "Memory"):
                entry = f"dev/loci/{name}.class"
                expect(entry in classes.namelist() and classes.read(entry)[:4] == b"\xca\xfe\xba\xbe", f"no class dev.loci.{name}")
            expect(not any("Test" in name for name in classes.namelist()), "test classes")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", required=True)
    parser.add_argument("--classes", required=True)
    parser.add_argument("--libraries", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    abis = sorted(d for d in os.listdir(args.libraries) if os.path.exists(os.path.join(args.libraries, d, "libloci_jni.so")))
    if not abis:
        sys.exit(f"aar.py: nothing is built in {args.libraries}: run tools/android/build.sh")
    stand_ins = any(os.path.exists(os.path.join(args.libraries, abi, "NOT-FOR-DEVICES")) for abi in abis)
    version = args.version + ("-not-for-devices" if stand_ins else "")
    path = os.path.join(args.out, f"loci-{version}.aar")
    with open(path, "wb") as file:
        file.write(pack(args.version, args.classes, args.libraries, abis))
    wrong = check(path, abis)
    if wrong:
        sys.exit("\n".join(f"{path}: {line}" for line in wrong))
    maven = os.path.join(args.out, "maven/dev/loci/loci", version)
    os.makedirs(maven, exist_ok=True)
    shutil.copy(path, maven)
    with open(os.path.join(maven, f"loci-{version}.pom"), "w", encoding="utf-8") as file:
        file.write(POM.format(version=version))
    print(f"{path}: {os.path.getsize(path)} bytes, {' '.join(abis)}")


if __name__ == "__main__":
    main()
