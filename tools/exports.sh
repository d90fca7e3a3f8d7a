#!/bin/sh
# The functions that include/loci.h declares, a line each, sorted as bytes.
set -eu
cd "$(dirname "$0")/.."
tr '\n' ' ' < include/loci.h | sed 's@/\*@\n/*@g; s@\*/@*/\n@g' | grep -v '^/\*' | tr '\n' ' ' | tr ';' '\n' |
    sed -n 's/.*LOCI_API .*[ *]\(loci_[a-z0-9_]*\)(.*/\1/p' | LC_ALL=C sort -u
