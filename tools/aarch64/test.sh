#!/usr/bin/env bash
# Builds the tests for AArch64 and runs them on emulated CPUs of every level; ends with the totals of each.
#
#   tools/aarch64/test.sh                each CPU at its own best level
#   tools/aarch64/test.sh levels         the kernel tests on the CPU that has everything, at each of its levels in turn,
#                                        and the disassembly: no instruction below its level
#
# CPUS="cortex-a76 max" tests these only; TESTS="gguf session" these tests only. An emulated float operation takes tens of times what
# a real one does, so not everything runs everywhere:
#   - what goes through the instructions of a level runs on every CPU: the tests in EVERYWHERE;
#   - the rest, which knows nothing of levels or takes long, runs on the last CPU;
#   - what computes with whole real models takes minutes each and is left out (SLOW). The tiny models of model_exact, session and
#     fot_golden go the same ways through the code;
#   - what compiles C with this machine's compiler and runs it is a test of the machine that builds, left out (NATIVE). The C programs of
#     these that matter here are run by examples.sh.
# Tests that compare levels compare all those of the CPU, the portable one included.
set -euo pipefail
cd "$(dirname "$0")/../.."
. "$(tools/aarch64/setup.sh | tail -n 1)"
target=aarch64-unknown-linux-gnu
# How tests start themselves again.
export LOCI_TEST_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
# CPU and the level it must choose. Cortex-A53 and A72 are a Raspberry Pi 3 and 4, A76 a Pi 5; i8mm is in phones since 2022 and
# in Apple's M2.
cpus=${CPUS:-cortex-a53 cortex-a76 max}
EVERYWHERE="unit-tests kernels_agree kernels_attention kernels_sketch quant_golden ggml_oracle ggml_operators model_exact reference session memory_file"
# Of model_exact; of footprint (what the kernel counts is the emulator's memory, too); of fot_golden; of fot_model; of cli; of tokenizers (a million characters, the same on every CPU).
SLOW="smollm2_is_close_to_exact gemma3_is_close_to_exact
    the_peak_is_within_five_percent_of_the_estimate
    the_dictionary_model_answers_from_a_reopened_memory
    looks_up_codes_and_the_pass_key_in_65536_tokens_of_a_file the_best_128_entries_answer_like_all
    quantised_files_are_close_to_the_one_they_come_from
    run_completes_and_says_why_it_ended chat_reads_turns_from_a_pipe recall_names_what_left_its_own_window
    logits_of_every_position_and_what_they_say_agree_with_run_and_perplexity
    long_runs_are_no_trouble"
NATIVE="bindings c_abi faults install snapshot_processes"
KERNELS="unit-tests kernels_agree kernels_sketch quant_golden model_exact"

level_of() {
    case $1 in
        cortex-a53 | cortex-a57 | cortex-a72) echo neon ;;
        cortex-a76 | neoverse-n1) echo dotprod ;;
        *) echo i8mm ;;
    esac
}
# shellcheck disable=SC2086 # a list of words
skips=$(printf -- '--skip %s ' $SLOW)
TIMEFORMAT='%0R s (%0U s of processor time)'
logs=$(mktemp -d)
trap 'rm -r "$logs"' EXIT

echo "building the tests for $target"
# Names and paths of the test programs, as cargo lists them: "Executable tests/gguf.rs (PATH)".
cargo test --workspace --release --target $target --no-run 2>&1 | tee "$logs/build" | grep -E '^(error|warning)|^ *Finished' || true
sed -n 's/^ *Executable \(unittests \)\{0,1\}\([^ ]*\) (\(.*\))$/\2 \3/p' "$logs/build" > "$logs/programs"
[ -s "$logs/programs" ] || {
    tail -n 40 "$logs/build" >&2
    exit 1
}
bin=$CARGO_TARGET_DIR/$target/release
# The tests of the command start it as a process, and the kernel here does not know AArch64 programs: a script in its place does.
exe=$bin/loci
if ! "$bin/loci" --version > /dev/null 2>&1; then
    exe=$bin/loci-aarch64
    mv -f "$bin/loci" "$bin/loci-aarch64"
    printf '#!/bin/sh\nexec qemu-aarch64 -L /usr/aarch64-linux-gnu "%s" "$@"\n' "$(realpath "$bin/loci-aarch64")" > "$bin/loci"
    chmod +x "$bin/loci"
    trap 'rm -r "$logs"; mv -f "$bin/loci-aarch64" "$bin/loci"' EXIT
fi

# name_of SOURCE PROGRAM: what a test is called here.
name_of() {
    case $1 in
        tests/*) basename "$1" .rs ;;
        *) echo unit-tests ;;
    esac
}
wanted() { [ -z "$2" ] || [[ " $2 " == *" $1 "* ]]; }

# run CPU LABEL TESTS: runs the tests (all if empty) on the CPU; prints the totals; fails if any failed.
run() {
    local cpu=$1 label=$2 tests=$3 source program name began=$SECONDS status died=0
    : > "$logs/$label"
    while read -r source program; do
        name=$(name_of "$source" "$program")
        [[ " $NATIVE " != *" $name "* ]] || continue
        wanted "$name" "$tests" || continue
        status=0
        # From the repository, as cargo does; CARGO_MANIFEST_DIR is compiled in.
        # shellcheck disable=SC2086 # a list of words
        { time QEMU_CPU=$cpu $LOCI_TEST_RUNNER "$program" -q $skips > "$logs/out" 2>&1 < /dev/null; } 2> "$logs/time" || status=$?
        grep '^test result' "$logs/out" >> "$logs/$label" || true
        if [ $status -ne 0 ]; then
            tail -n 60 "$logs/out"
            echo "FAILED on $cpu: $name (status $status)"
            grep -q '^test result' "$logs/out" || died=$((died + 1))
        fi
        printf '  %-18s %s, %s\n' "$name" "$(sed -n 's/^test result: [A-Za-z]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$logs/out")" "$(cat "$logs/time")"
    done < "$logs/programs"
    # A program that died has no result line, and counts as one failure.
    awk -v died=$died -v label="$label" -v seconds=$((SECONDS - began)) '
        /^test result:/ { passed += $4; failed += $6 }
        END {
            failed += died
            printf "%s: %d passed, %d failed, %d s\n", label, passed, failed, seconds
            exit !(failed == 0 && passed > 0)
        }' "$logs/$label" | tee -a "$logs/totals"
}

failed=0
if [ "${1:-}" = levels ]; then
    tools/check_isa.sh "$exe" || failed=1
    for level in portable neon dotprod i8mm; do
        echo "LOCI_SIMD=$level on max"
        LOCI_SIMD=$level run max "max-$level" "${TESTS:-$KERNELS}" || failed=1
    done
else
    last=${cpus##* }
    for cpu in $cpus; do
        tests=${TESTS:-$EVERYWHERE}
        [ "$cpu" != "$last" ] || tests=${TESTS:-}
        levels=$(QEMU_CPU=$cpu "$bin/loci" simd)
        echo "$cpu: $(echo $levels)"
        [ "$(echo "$levels" | tail -n 1)" = "$(level_of "$cpu")" ] || {
            echo "FAILED: $cpu must run at $(level_of "$cpu")"
            failed=1
        }
        run "$cpu" "$cpu-$(level_of "$cpu")" "$tests" || failed=1
    done
fi
echo
cat "$logs/totals"
exit $failed
