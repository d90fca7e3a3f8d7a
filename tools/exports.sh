#!/bin/sh
# The functions that include/loci.h declares, a line each, sorted as bytes:
#
#   tools/exports.sh                           their names
#   tools/exports.sh declarations [HEADER.h]   their declarations, in the header's order
set -eu
cd "$(dirname "$0")/.."
declarations() {
    tr '\n' ' ' < "$1" | sed 's@/\*@\n/*@g; s@\*/@*/\n@g' | grep -v '^/\*' | tr '\n' ' ' | sed 's/LOCI_API /\nLOCI_API /g' |
        sed -n 's/^LOCI_API \([^;#]*loci_[a-z0-9_]*([^;]*)\);.*/\1/p'
}
if [ "${1:-}" = declarations ]; then
    declarations "${2:-include/loci.h}"
else
    declarations include/loci.h | sed 's/(.*//; s/.*[ *]//' | LC_ALL=C sort -u
fi
