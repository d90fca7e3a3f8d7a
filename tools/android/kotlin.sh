#!/usr/bin/env bash
# Compiles the Java and Kotlin of examples/android/loci, and prints the class path that the classes need to run:
#
#   tools/android/kotlin.sh CLASSES_DIR [MORE_SOURCES_DIR...]
#
# The compiler is the one in KOTLIN_HOME (with kotlinx-coroutines-core-jvm.jar in its lib, as the distribution has it), else that of the npm
# package kotlin-compiler, which is fetched into build/kotlin once.
set -euo pipefail
out=$(realpath -m "$1")
shift
more=()
for dir in "$@"; do more+=("$(realpath "$dir")"); done
cd "$(dirname "$0")/../.."
version=2.4.20
home=${KOTLIN_HOME:-build/kotlin/node_modules/kotlin-compiler}
if [ ! -e "$home/lib/kotlin-compiler.jar" ]; then
    [ -z "${KOTLIN_HOME:-}" ] || {
        echo "kotlin.sh: KOTLIN_HOME=$KOTLIN_HOME has no lib/kotlin-compiler.jar" >&2
        exit 1
    }
    tools/setup.sh npm >&2
    mkdir -p build/kotlin
    (cd build/kotlin && npm install --silent --no-audit --no-fund --no-save "kotlin-compiler@$version" >&2)
fi
tools/setup.sh javac >&2
sources=examples/android/loci/src/main
libraries=$(realpath "$home/lib/kotlinx-coroutines-core-jvm.jar"):$(realpath "$home/lib/kotlin-stdlib.jar")
rm -rf "$out"
mkdir -p "$out"
# As Kotlin 2.2 writes it, so that apps with an older compiler than this one can read it.
bash "$home/bin/kotlinc" -Werror -language-version 2.2 -api-version 2.2 -Xsuppress-version-warnings -jvm-target 17 \
    -cp "${libraries%%:*}" -d "$out" $sources/kotlin $sources/java "${more[@]}" >&2
# The Kotlin compiler has read the Java sources, and leaves compiling them to Java's.
javac -Xlint:all -Werror --release 17 -cp "$out" -d "$out" $sources/java/dev/loci/*.java >&2
echo "$libraries"
