#!/usr/bin/env bash
# Runs every test of the workspace and ends with one line: N passed, N failed. Arguments go to cargo test.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --workspace --no-fail-fast "$@" 2>&1 | tee "$log"
status=$?
# A test binary that died has no result line: cargo says so, and it counts as one failure.
awk '
    /^test result:/ { passed += $4; failed += $6; if ($6 > 0) known++ }
    /^error: [0-9]+ target(s)? failed:/ { targets = $2 }
    END {
        if (targets > known) failed += targets - known
        printf "%d passed, %d failed\n", passed, failed
        exit !(failed == 0 && passed > 0)
    }
' "$log"
totals=$?
if [ "$status" -ne 0 ]; then exit "$status"; fi
exit "$totals"
