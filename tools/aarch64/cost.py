#!/usr/bin/env python3
"""What a product costs on ARM cores, without one: executed instructions (qemu with count.so) and cycles (llvm-mca).

  cost.py --qemu QEMU_COMMAND --count count.so --llvm SUFFIX --loci PROGRAM --ggml BASE_PROGRAM DOTPROD_PROGRAM --csv FILE

Both programs take FORMAT ROWS COLS N CALLS and repeat one product CALLS times. Two runs with different CALLS differ by the product
alone, so everything that it executes is counted, and nothing else. Figures are per block of 32 weights and activation row.

Cycles: the executed instructions are put into the loops of the disassembly they belong to (innermost ones, and what outer loops add
around them); llvm-mca says how long one trip of each takes on a core, and the counts say how many trips there were. What is in no
loop counts at the mean rate of the rest. The model's caches always hit and its branches are always foretold: a lower bound, good for
comparing two programs, not for foretelling tokens per second.
"""
import argparse
import bisect
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

# (level, CPU that qemu plays, {core: llvm's model}). LLVM has one model (A57's) for A57 to A78: the Neoverse N1 is an A76 in a server.
# The A55 is not among qemu's CPUs; it runs the same code as an A76.
LEVELS = [
    ("neon", "cortex-a72", {"cortex-a72": "cortex-a72", "cortex-a53": "cortex-a53"}),
    ("dotprod", "cortex-a76", {"cortex-a76": "neoverse-n1", "cortex-a55": "cortex-a55"}),
    ("i8mm", "max", {"cortex-a710": "cortex-a710"}),
]
FORMATS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
OF_GGML = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
ROWS, COLS = 64, 2048
# A loop that executes less than this share of the instructions is not worth a model.
SHARE = 0.004
# Instructions whose last operand is an address.
TO_ADDRESS = r"(b(\.\w+)?|bl|cbn?z|tbn?z|adrp?)\s"


class Program:
    """An executable, its instructions by address."""

    def __init__(self, path, llvm):
        self.path = path
        out = run([f"llvm-readelf{llvm}", "-lW", path])
        code = [line.split() for line in out.splitlines() if re.match(r"\s*LOAD\s", line) and " R E " in line]
        self.code = int(code[0][2], 16)
        self.text, self.addresses, self.starts = {}, [], []
        out = run([f"llvm-objdump{llvm}", "-d", "--no-show-raw-insn", "--mattr=+all", path])
        for line in out.splitlines():
            instruction = re.match(r"\s*([0-9a-f]+):\s+(.*)", line)
            if instruction:
                at = int(instruction[1], 16)
                self.text[at] = re.sub(r"\s*(//|<).*", "", instruction[2]).strip()
                self.addresses.append(at)
            elif re.match(r"[0-9a-f]+ <", line):
                self.starts.append(int(line.split()[0], 16))


def run(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def executed(args, program, cpu, level, fmt, n, calls):
    """{address in the file: (instructions, executions)}; addresses of other files (the C library) are negative."""
    log = f"{args.work}/{os.path.basename(program.path)}-{cpu}-{fmt}-{n}-{calls}.log"
    run(
        [*args.qemu.split(), "-cpu", cpu, "-plugin", args.count, "-d", "plugin", "-D", log, program.path, fmt, str(ROWS), str(COLS), str(n), str(calls)],
        env=dict(os.environ, LOCI_SIMD=level),
    )
    blocks, base = {}, None
    with open(log) as lines:
        for line in lines:
            word = line.split()
            if word[0] == "code":
                base = int(word[1], 16) - program.code
            elif word[0] == "block":
                at = int(word[1], 16)
                at = at - base if at - base in program.text else -at
                key = (at, int(word[2]))
                blocks[key] = blocks.get(key, 0) + int(word[3])
    os.remove(log)
    return blocks


def counts(args, program, cpu, level, fmt, n):
    """Executions of every instruction in one call, and of all that lie elsewhere."""
    few, many = (3, 9) if n == 1 else (2, 4)
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda calls: executed(args, program, cpu, level, fmt, n, calls), (few, many))
    count, elsewhere = {}, 0.0
    for key in a.keys() | b.keys():
        times = (b.get(key, 0) - a.get(key, 0)) / (many - few)
        at, instructions = key
        if at < 0:
            elsewhere += times * instructions
            continue
        for i in range(instructions):
            count[at + 4 * i] = count.get(at + 4 * i, 0) + times
    return {at: times for at, times in count.items() if times > 0}, elsewhere


def loops(program, count):
    """[(trips, [addresses])]: the instructions of each executed loop that are in no loop inside it."""
    found = {}
    for at, times in count.items():
        branch = re.match(r"(?:b\.\w+|cbn?z|tbn?z|b)\s.*?0x([0-9a-f]+)$", program.text.get(at, ""))
        if not branch:
            continue
        to = int(branch[1], 16)
        same = bisect.bisect_right(program.starts, to) == bisect.bisect_right(program.starts, at)
        if to <= at and to in count and same:
            # Several branches back to one place (continue) are one loop.
            found[to] = max(found.get(to, 0), at)
    spans = sorted(found.items(), key=lambda span: span[1] - span[0])
    taken, out = set(), []
    for start, end in spans:
        own = [at for at in range(start, end + 4, 4) if at not in taken and at in count]
        taken.update(own)
        trips = max((count[at] for at in own), default=0)
        # Side ways that are rarely gone are not part of the trip.
        body = [at for at in own if count[at] > trips / 2]
        if trips:
            out.append((trips, body))
    return out


def cycles(args, program, count, elsewhere, model):
    """Cycles of one call, and the share of its instructions that the model has seen."""
    total = sum(count.values()) + elsewhere
    hot = [(trips, body) for trips, body in loops(program, count) if trips * len(body) > SHARE * total]

    def one(loop):
        trips, body = loop
        text = [re.sub(r"0x[0-9a-f]+$", ".L0", program.text[at]) if re.match(TO_ADDRESS, program.text[at]) else program.text[at] for at in body]
        key = (model, "\n".join(text))
        if key not in args.known:
            command = [f"llvm-mca{args.llvm}", "-mtriple=aarch64", f"-mcpu={model}", "-mattr=+all", "-iterations=100"]
            out = run(command, input=".L0:\n" + key[1] + "\n")
            args.known[key] = int(re.search(r"Total Cycles:\s+(\d+)", out)[1]) / 100
        return trips * args.known[key], trips * len(body)

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(one, hot))
    spent, seen = sum(part[0] for part in parts), sum(part[1] for part in parts)
    return (spent * total / seen, seen / total) if seen else (float("nan"), 0.0)


def main():
    parser = argparse.ArgumentParser()
    for name in ("qemu", "count", "llvm", "loci", "csv", "work"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--ggml", nargs=2, required=True)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--n", default="1,64")
    parser.add_argument("--levels", default=",".join(level for level, _, _ in LEVELS))
    args = parser.parse_args()
    args.known = {}
    loci = Program(args.loci, args.llvm)
    base, dotprod = (Program(path, args.llvm) for path in args.ggml)
    rows = ["format,n,level,core,loci_instructions,ggml_instructions,loci_cycles,ggml_cycles,loci_modelled,ggml_modelled"]
    print("Per block of 32 weights and activation row; ggml of May 2023 (no K formats); n = activation rows; ratio = ggml / loci.")
    print(f"{'':6} {'':>3} {'':8} | {'instructions':^22} | cycles")
    print(f"{'format':6} {'n':>3} {'level':8} | {'loci':>6} {'ggml':>7} {'ratio':>7} | {'core':12} {'loci':>6} {'ggml':>7} {'ratio':>7}")
    for level, cpu, cores in LEVELS:
        if level not in args.levels.split(","):
            continue
        for n in map(int, args.n.split(",")):
            for fmt in args.formats.split(","):
                blocks = ROWS * COLS // 32 * n
                measured = []
                for program in [loci] + ([base if level == "neon" else dotprod] if fmt in OF_GGML else []):
                    count, elsewhere = counts(args, program, cpu, level, fmt, n)
                    by_core = {core: cycles(args, program, count, elsewhere, model) for core, model in cores.items()}
                    measured.append(((sum(count.values()) + elsewhere) / blocks, {core: (c / blocks, share) for core, (c, share) in by_core.items()}))
                first = True
                for core in cores:
                    ours, (our_cycles, our_share) = measured[0][0], measured[0][1][core]
                    left = f"{fmt:6} {n:3} {level:8} | {ours:6.2f}" if first else f"{'':6} {'':3} {'':8} | {'':6}"
                    if len(measured) > 1:
                        theirs, (their_cycles, their_share) = measured[1][0], measured[1][1][core]
                        middle = f" {theirs:7.2f} {theirs / ours:7.2f}" if first else f" {'':7} {'':7}"
                        right = f"{our_cycles:6.2f} {their_cycles:7.2f} {their_cycles / our_cycles:7.2f}"
                        rows.append(
                            f"{fmt},{n},{level},{core},{ours:.3f},{theirs:.3f},{our_cycles:.3f},{their_cycles:.3f},{our_share:.3f},{their_share:.3f}"
                        )
                    else:
                        middle, right = f" {'':7} {'':7}", f"{our_cycles:6.2f}"
                        rows.append(f"{fmt},{n},{level},{core},{ours:.3f},,{our_cycles:.3f},,{our_share:.3f},")
                    print(f"{left}{middle} | {core:12} {right}", flush=True)
                    first = False
    with open(args.csv, "w") as out:
        out.write("\n".join(rows) + "\n")
    print(f"written to {args.csv}")


main()
