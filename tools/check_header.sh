#!/bin/sh
# Compiles include/loci.h alone, in every C and C++ (and Objective-C) that the compilers found here know, warnings as errors.
# CC and CXX name the compilers; what is not installed is left out, but at least one C and one C++ compiler must be there.
set -u
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for ext in c cpp m; do printf '#include "loci.h"\n#include "loci.h"\nint loci_header_check;\n' > "$dir/header.$ext"; done

failed=0
checked_c=0
checked_cxx=0
# try COMPILER STANDARD EXTENSION: counts a standard that the compiler does not know as absent, not as a failure.
try() {
    command -v "$1" > /dev/null 2>&1 || return 0
    printf 'int x;\n' > "$dir/empty.$3"
    "$1" "-std=$2" -c "$dir/empty.$3" -o "$dir/empty.o" > /dev/null 2>&1 || return 0
    if "$1" "-std=$2" -Wall -Wextra -Werror -pedantic -Iinclude -c "$dir/header.$3" -o "$dir/header.o"; then
        echo "ok      $1 -std=$2 (.$3)"
        case $3 in
            c) checked_c=$((checked_c + 1)) ;;
            cpp) checked_cxx=$((checked_cxx + 1)) ;;
        esac
    else
        echo "FAILED  $1 -std=$2 (.$3)"
        failed=1
    fi
}

for cc in "${CC:-cc}" gcc clang; do
    for std in c89 c99 c11 c17 c2x c23; do try "$cc" "$std" c; done
    try "$cc" c99 m
done
for cxx in "${CXX:-c++}" g++ clang++; do
    for std in c++98 c++11 c++14 c++17 c++20 c++23; do try "$cxx" "$std" cpp; done
done

if [ "$checked_c" -eq 0 ] || [ "$checked_cxx" -eq 0 ]; then
    echo "no C or no C++ compiler found: install gcc and g++, or clang" >&2
    exit 1
fi
exit $failed
