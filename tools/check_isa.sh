#!/usr/bin/env bash
# Checks in the disassembly that instructions which not every CPU has stay below the function that looked for them:
#
#   tools/check_isa.sh PROGRAM...        (ELF for x86-64 or AArch64)
#
# Kernels are generic over a level; what runs them is one function per level that is compiled with the level's instructions and
# entered only after a look at the CPU (src/simd). An instruction above the baseline in any other function is a leak: on a CPU
# without it the program dies, and not in a test. The opposite is a fault too: an intrinsic that was not inlined, because the code
# around it was compiled for less, costs a call for every instruction.
#
# Each instruction is classed by its encoding (x86: VEX, EVEX) or its name (AArch64), and each function by its name. C and Rust
# libraries that look at the CPU themselves are allowed theirs, by name, below. Last, the check is given leaks of every class in a
# program of its own and must find them.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

# check PROGRAM: prints the leaks, one function a line, then a summary to stderr; fails if there are any.
check() {
    local machine objdump=objdump
    machine=$(LC_ALL=C readelf -h "$1" | sed -n 's/ *Machine: *//p')
    case $machine in
        *X86-64*) machine=x86 ;;
        AArch64)
            machine=arm
            if command -v aarch64-linux-gnu-objdump > /dev/null; then objdump=aarch64-linux-gnu-objdump; fi
            ;;
        *)
            echo "$1: $machine has no levels" >&2
            return 1
            ;;
    esac
    LC_ALL=C $objdump -d -C --wide "$1" | awk -F '\t' -v machine=$machine -v program="$1" '
        # The classes, as bits. One function may be allowed several.
        BEGIN {
            AVX = 1; VNNI = 2; EVEX = 4                       # VEX-encoded; of these vpdp*; EVEX-encoded
            DOT = 8; I8MM = 16; SVE = 32; OTHER = 64          # sdot, udot; 8-bit matrix products; SVE; bf16, fp16, LSE
            split("avx vnni evex dot i8mm sve other", class_name, " ")
        }
        function allowed(f) {
            # Where a level of ours begins.
            if (f ~ /^<?loci::simd::avx2::run_avx2(::|$)/) return AVX
            if (f ~ /^<?loci::simd::avx2::run_avxvnni(::|$)/) return AVX + VNNI
            if (f ~ /^<?loci::simd::avx512::run(::|$)/) return AVX + EVEX
            if (f ~ /^<?loci::simd::neon::run_dotprod(::|$)/) return DOT
            if (f ~ /^<?loci::simd::neon::run_i8mm(::|$)/) return DOT + I8MM
            # simsimd, in C, chooses by cpuid or by the kernel: one suffix per level.
            if (f ~ /^simsimd_.*_haswell$/) return AVX
            if (f ~ /^simsimd_.*_sierra$/) return AVX + VNNI
            if (f ~ /^(simsimd_|_simsimd_).*_(skylake|ice|genoa|sapphire|turin)$/) return AVX + EVEX
            if (f ~ /^_?simsimd_.*_neon(_|$)/ || f ~ /^_?simsimd_.*neon/) return DOT + I8MM + OTHER
            if (f ~ /^_?simsimd_.*_sve/) return DOT + I8MM + SVE + OTHER
            # Rust libraries that look themselves.
            if (f ~ /^half::binary16::arch::x86::.*_f16c$/) return AVX
            if (f ~ /^<?memchr::arch::x86_64::/ || f ~ /memchr::memmem::searcher::.*avx2/) return AVX
            # (crc32c does not inline its instruction on ARM: a call per 8 bytes, still many times faster than a table.)
            if (f ~ /^crc32c::hw_aarch64::/ || f ~ /::__crc32cd$/) return OTHER
            # The compiler'"'"'s own choice of atomics, made at run time.
            if (f ~ /^__aarch64_(cas|swp|ld)/) return OTHER
            return 0
        }
        function classify(    b, op, rest) {
            if (machine == "x86") {
                b = $2
                # Prefixes that may come before VEX and EVEX: segment and address size.
                sub(/^ */, "", b)
                while (b ~ /^(26|2e|36|3e|64|65|67) /) b = substr(b, 4)
                if (b ~ /^62 /) return EVEX
                if (b ~ /^c[45] /) return $3 ~ /vpdp/ ? AVX + VNNI : AVX
                return 0
            }
            op = $3
            rest = $4
            if (op ~ /^[su]dot$/ && rest ~ /^v/) return DOT
            if (op ~ /^(smmla|ummla|usmmla|usdot|sudot)$/ && rest ~ /^v/) return I8MM
            if (rest ~ /(^|[ ,{])[z][0-9]+\./ || op ~ /^(ptrue|whilel|cntb|cnth|cntw|cntd|rdvl|inc[bhwd]|addvl)/) return SVE
            if (op ~ /^bf/ && op !~ /^bf(i|xil|m|c)$/) return OTHER
            if (rest ~ /\.[48]h/ && op ~ /^f(add|sub|mul|mla|mls|div|max|min|abs|neg|sqrt|cm|rint|addp|mlal|mlsl)/) return OTHER
            if (rest ~ /(^|, )h[0-9]+/ && op ~ /^f(add|sub|mul|madd|msub|nmul|div|max|min|abs|neg|sqrt|cmp|rint)/) return OTHER
            if (op ~ /^(cas|swp|ldadd|ldclr|ldset|ldeor|stadd|stclr|stset)/ || op ~ /^crc32/ || op ~ /^(aes|pmull|sha)/ && rest !~ /8h/) return OTHER
            return 0
        }
        function has(set, bit) { return int(set / bit) % 2 }
        /^[0-9a-f]+ <.*>:$/ {
            name = $0
            sub(/^[0-9a-f]+ </, "", name)
            sub(/>:$/, "", name)
            ok = allowed(name)
            functions++
            if (name ~ /core_arch::(x86|arm_shared|aarch64)/ && name !~ /detect|cpuid|xgetbv|__crc32cd$/) {
                printf "%s: %s: an intrinsic that was not inlined\n", program, name
                faults++
            }
            next
        }
        $3 != "" {
            c = classify()
            if (c == 0) next
            for (i = 1; i <= 7; i++) {
                bit = 2 ^ (i - 1)
                if (!has(c, bit)) continue
                if (has(ok, bit) || (bit == VNNI && has(ok, EVEX))) gated[i]++
                else if (!((name, i) in seen)) {
                    seen[name, i] = 1
                    printf "%s: %s: %s: %s %s\n", program, name, class_name[i], $3, $4
                    faults++
                }
            }
        }
        END {
            for (i = 1; i <= 7; i++) if (gated[i]) said = said ", " gated[i] " " class_name[i]
            printf "%s: %d functions, %d leaks; behind their gates%s\n", program, functions, faults, said ? ":" substr(said, 2) : " nothing" > "/dev/stderr"
            exit faults > 0 || functions == 0
        }'
}

# plant MACHINE: one leak of every class the check knows, and two functions that may do what they do. Prints how many leaks.
plant() {
    local level=_ZN4loci4simd source=$work/$1.s
    case $1 in
        x86)
            cat > "$source" << END
leak_avx: vaddps %ymm0, %ymm1, %ymm2
leak_vnni: {vex} vpdpbusd %ymm0, %ymm1, %ymm2
leak_evex: vpaddd %zmm0, %zmm1, %zmm2
${level}4avx28run_avx217h0123456789abcdefE: vpdpbusd %ymm16, %ymm1, %ymm2
${level}4avx211run_avxvnni17h0123456789abcdefE: {vex} vpdpbusd %ymm0, %ymm1, %ymm2
    ret
${level}6avx5123run17h0123456789abcdefE: vpdpbusd %zmm0, %zmm1, %zmm2
    ret
END
            as --64 "$source" -o "$work/$1.o"
            # leak_vnni is a leak of two classes.
            echo 5
            ;;
        arm)
            cat > "$source" << END
.arch armv8.2-a+dotprod+i8mm+sve+bf16+fp16
leak_dot: sdot v0.4s, v1.16b, v2.16b
leak_i8mm: smmla v0.4s, v1.16b, v2.16b
leak_sve: add z0.s, z1.s, z2.s
leak_other: fmla v0.8h, v1.8h, v2.8h
${level}4neon11run_dotprod17h0123456789abcdefE: smmla v0.4s, v1.16b, v2.16b
${level}4neon8run_neon17h0123456789abcdefE: sdot v0.4s, v1.16b, v2.16b
${level}4neon8run_i8mm17h0123456789abcdefE: smmla v0.4s, v1.16b, v2.16b
    sdot v0.4s, v1.16b, v2.16b
    ret
END
            aarch64-linux-gnu-as "$source" -o "$work/$1.o"
            echo 6
            ;;
    esac
}

[ $# -gt 0 ] || {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '$d' >&2
    exit 2
}
machines=
for program in "$@"; do
    check "$program"
    case $(LC_ALL=C readelf -h "$program") in *AArch64*) machines="$machines arm" ;; *) machines="$machines x86" ;; esac
done
for machine in $(printf '%s\n' $machines | sort -u); do
    planted=$(plant "$machine")
    if found=$(check "$work/$machine.o" 2> /dev/null); then
        echo "FAILED: planted leaks were not found: the check checks nothing" >&2
        exit 1
    fi
    if [ "$(echo "$found" | wc -l)" -ne "$planted" ]; then
        printf 'FAILED: %d leaks were planted, and these found:\n%s\n' "$planted" "$found" >&2
        exit 1
    fi
    echo "$machine: all $planted planted leaks were found" >&2
done
