#!/usr/bin/env python3
"""Whole models, loci beside other runtimes, interleaved in one run; kernels beside ggml's. Called by `make bench`.

One sample is one process of one engine: open the model, warm up, run the test (--reps times). A round takes one sample of every engine for
every test, the engines of a test one right after the other in an order that changes, so that what slows the machine slows all of
them alike. What counts are the medians over all rounds and the ratios between them.

A test is ppN (N tokens computed at once) or tgN (N tokens computed one at a time), with @dD after D tokens. On a model's last rows
more threads than cores compete: pp and tg with twice as many (--oversubscribe).

ik_llama.cpp runs with flash attention, with and without repacking at load (-rtr 1); the faster of the two in the first round goes on
and counts. Its llama-bench times generation at depth by -gp, and has no prefill at depth.

The models' files are dropped from the system's cache once at the start, so that all engines see their pages as they come from disk,
not as a copy or a download left them.

Everything is written to RECORD/<target>-<level>-<date>.csv, in place of what an earlier run of the day measured of the same, and, where there
was a peer, as a plot beside it (.svg). Python's standard library is all that this needs.
"""
import argparse, csv, datetime, json, math, os, platform, random, re, resource, statistics, subprocess, sys, tempfile

FIELDS = ["kind", "model", "test", "threads", "engine", "unit", "median", "min", "max", "samples", "loci_is_faster", "share_of_limit",
          "disturbed", "cpu", "simd"]
ENGINES = {"loci": "#e8590c", "llama.cpp": "#868e96", "ik_llama.cpp": "#228be6"}


class Test:
    def __init__(self, text):
        match = re.fullmatch(r"(pp|tg)(\d+)(?:@d(\d+))?", text)
        if not match:
            sys.exit(f"bench.py: expected a test like pp512, tg128 or tg32@d8192, found {text!r}")
        self.text, self.kind, self.tokens, self.depth = text, match[1], int(match[2]), int(match[3] or 0)
        self.pp, self.tg = (self.tokens, 0) if self.kind == "pp" else (0, self.tokens)


def commands(args, model, test, threads):
    """The command lines of every engine that can do this test, by engine: several where the fastest is to count."""
    p, n, d = str(test.pp), str(test.tg), str(test.depth)
    common = ["-m", model, "-t", str(threads), "-r", str(args.reps)]
    out = {"loci": [[args.loci, "bench", *common, "--pp", p, "--tg", n, "--depth", d, "--format", "json"]]}
    if args.llama_bench:
        out["llama.cpp"] = [[args.llama_bench, *common, "-o", "json", "-p", p, "-n", n, "-d", d]]
    if args.ik_bench and not (test.pp and test.depth):
        what = ["-p", "0", "-n", "0", "-gp", f"{d},{n}"] if test.depth else ["-p", p, "-n", n]
        out["ik_llama.cpp"] = [[args.ik_bench, *common, "-o", "json", "-fa", "1", *rtr, *what] for rtr in ([], ["-rtr", "1"])]
    return out


def busy_seconds():
    """Processor seconds that this machine has spent on anything so far."""
    with open("/proc/stat") as f:
        fields = [int(x) for x in f.readline().split()[1:]]
    return sum(fields[i] for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def sample(command, timeout):
    """(tokens/s of each repetition, share of the machine's limit or None, cores that others used meanwhile)"""
    linux = os.path.exists("/proc/stat")
    before = (busy_seconds(), own_seconds()) if linux else (0, 0)
    started = datetime.datetime.now()
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return None
        errors.seek(0)
        if done.returncode != 0:
            sys.exit(f"bench.py: {' '.join(command)} ended with {done.returncode}:\n{errors.read()[-2000:]}")
    seconds = (datetime.datetime.now() - started).total_seconds()
    others = (busy_seconds() - before[0] - (own_seconds() - before[1])) / seconds if linux else 0.0
    result = json.loads(done.stdout)
    if isinstance(result, dict):
        test = result["tests"][0]
        return test["all"], test["share_of_limit"], max(others, 0.0)
    speeds = [s for row in result for s in row.get("samples_ts") or [row["avg_ts"]]]
    return speeds, None, max(others, 0.0)


def fastest(samples, key):
    """Which variant of an engine is the fastest so far; None if no sample came back."""
    medians = {k[4]: statistics.median(s for g in got for s in g[0]) for k, got in samples.items() if k[:4] == key}
    return max(medians, key=medians.get, default=None)


def drop_from_cache(path):
    if hasattr(os, "posix_fadvise"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def models(args, jobs):
    """The rows of the whole-model tests."""
    for model in args.models:
        drop_from_cache(model)
    samples, shuffle = {}, random.Random(1)
    for turn in range(args.rounds):
        for model, test, threads in jobs:
            engines = list(commands(args, model, test, threads).items())
            shuffle.shuffle(engines)
            for engine, variants in engines:
                for variant, command in enumerate(variants):
                    key = (model, test.text, threads, engine, variant)
                    if turn > 0 and fastest(samples, key[:4]) != variant:
                        continue
                    got = sample(command, args.timeout)
                    if got and got[2] > args.quiet:
                        got = sample(command, args.timeout) or got
                    if got:
                        samples.setdefault(key, []).append(got)
                    shown = " ".join(f"{s:.2f}" for s in got[0]) if got else f"more than {args.timeout} s"
                    disturbed = f"   ({got[2]:.2f} cores used by others)" if got and got[2] > args.quiet else ""
                    print(f"{turn + 1}/{args.rounds} {os.path.basename(model)} {test.text} {threads} threads {engine}"
                          f"{' -rtr' if variant else ''}: {shown}{disturbed}", file=sys.stderr, flush=True)
    rows = []
    for model, test, threads in jobs:
        found = {}
        for (m, t, n, engine, _), got in samples.items():
            if (m, t, n) == (model, test.text, threads):
                speeds = [s for g in got for s in g[0]]
                if engine not in found or statistics.median(speeds) > found[engine][0]:
                    shares = [g[1] for g in got if g[1] is not None]
                    share = statistics.median(shares) if shares else None
                    found[engine] = (statistics.median(speeds), min(speeds), max(speeds), len(speeds), share, statistics.median(g[2] for g in got))
        peers = [f[0] for engine, f in found.items() if engine != "loci"]
        for engine in ENGINES:
            if engine in found:
                median, least, most, count, share, others = found[engine]
                against = max(peers, default=None) if engine == "loci" else median
                ratio = found["loci"][0] / against if against and "loci" in found else None
                rows.append(dict(kind="model", model=os.path.basename(model).removesuffix(".gguf"), test=test.text, threads=threads,
                                 engine=engine, unit="tokens/s", median=f"{median:.2f}", min=f"{least:.2f}", max=f"{most:.2f}", samples=count,
                                 loci_is_faster=f"{ratio:.3f}" if ratio else "", share_of_limit=f"{share:.3f}" if share else "",
                                 disturbed=f"{others:.2f}"))
    return rows


def kernels(command):
    """The rows of `cargo bench --bench kernels`, which prints a table: type, rows x cols, n, loci us, ggml us, ratio."""
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            cells = [c.strip() for c in line.strip().strip("|").split("|")]
            if len(cells) == 6 and re.fullmatch(r"[\d.]+", cells[3]):
                ty, shape, n, ours, theirs, ratio = cells
                for engine, time in (("loci", ours), ("ggml-sys", theirs)):
                    rows.append(dict(kind="kernel", model=f"{ty} {shape}", test=f"{n} rows", threads=1, engine=engine, unit="us", median=time,
                                     loci_is_faster=ratio))
    if process.returncode != 0:
        sys.exit(f"bench.py: {' '.join(command)} ended with {process.returncode}")
    return rows


def table(rows):
    """The whole-model rows for people."""
    print(f"\n| {'model':32} | {'test':10} | thr | {'engine':12} | {'tokens/s':>9} | {'least .. most':>18} | loci is | of the limit |")
    print(f"|{'-' * 34}|{'-' * 12}|----:|{'-' * 14}|{'-' * 10}:|{'-' * 19}:|--------:|-------------:|")
    for r in rows:
        if r["kind"] == "model":
            ratio = r["loci_is_faster"] and f"{float(r['loci_is_faster']):.2f} x"
            share = r["share_of_limit"] and f"{100 * float(r['share_of_limit']):.0f} %"
            print(f"| {r['model']:32} | {r['test']:10} | {r['threads']:>3} | {r['engine']:12} | {r['median']:>9} |"
                  f" {r['min'] + ' .. ' + r['max']:>18} | {ratio:>7} | {share:>12} |")
    print("(loci's own row: against the faster of the others)")


def plot(rows):
    """Dots on a line for each test: every engine's speed, the fastest peer being 1. Readable on white and on black."""
    tests = {}
    for r in rows:
        if r["kind"] == "model":
            tests.setdefault((r["model"], r["test"], r["threads"]), {})[r["engine"]] = r
    tests = {k: v for k, v in tests.items() if "loci" in v and len(v) > 1}
    if not tests:
        return None
    scale = {k: max(float(r["median"]) for e, r in v.items() if e != "loci") for k, v in tests.items()}
    values = [float(r["median"]) / scale[k] for k, v in tests.items() for r in v.values()]
    # Halvings and doublings of the fastest peer, as many as there are.
    low, high = max(-6, math.floor(math.log2(min(values)))), max(1, math.ceil(math.log2(max(values))))
    left, right, top, step = 350, 700, 64, 24
    x = lambda value: left + (right - left) * (min(max(math.log2(max(value, 1e-9)), low), high) - low) / (high - low)
    bottom = top + step * len(tests)
    cpu = rows[0]["cpu"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {bottom + 44}" font-family="system-ui, sans-serif" font-size="13">',
           "<style>text { fill: #57606a } .strong { font-weight: 600; fill: #1f2328 } line { stroke: #8b949e }",
           "@media (prefers-color-scheme: dark) { text { fill: #adb5bd } .strong { fill: #f1f3f5 } }</style>",
           f'<text x="12" y="22" class="strong">Speed beside the faster of the others (1 x), {cpu}</text>']
    at = 12
    for engine, colour in ENGINES.items():
        if any(engine in v for v in tests.values()):
            out.append(f'<circle cx="{at + 5}" cy="40" r="5" fill="{colour}"/><text x="{at + 16}" y="44">{engine}</text>')
            at += 36 + 8 * len(engine)
    for power in range(low, high + 1):
        name = ("1 x" if power == 0 else f"{2**power}") if power >= 0 else f"1/{2**-power}"
        strong = ' stroke-width="1.5"' if power == 0 else ' stroke-opacity="0.35"'
        out.append(f'<line x1="{x(2.0**power):.1f}" x2="{x(2.0**power):.1f}" y1="{top - 6}" y2="{bottom}"{strong}/>')
        out.append(f'<text x="{x(2.0**power):.1f}" y="{bottom + 18}" text-anchor="middle">{name}</text>')
    for i, (key, engines) in enumerate(tests.items()):
        model, test, threads = key
        y = top + step * i + step / 2
        out.append(f'<text x="{left - 14}" y="{y + 4:.1f}" text-anchor="end">{model}, {test}, {threads} thr</text>')
        for engine, r in sorted(engines.items(), key=lambda e: e[0] == "loci"):
            low_x, mid_x, high_x = (x(float(r[f]) / scale[key]) for f in ("min", "median", "max"))
            colour = ENGINES[engine]
            out.append(f'<line x1="{low_x:.1f}" x2="{high_x:.1f}" y1="{y:.1f}" y2="{y:.1f}" style="stroke: {colour}" stroke-width="2.5"'
                       ' stroke-opacity="0.55"/>')
            out.append(f'<circle cx="{mid_x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        ours = float(engines["loci"]["median"])
        out.append(f'<text x="{right + 14}" y="{y + 4:.1f}" class="strong">{ours / scale[key]:.2f} x</text>')
        out.append(f'<text x="868" y="{y + 4:.1f}" text-anchor="end">{ours:.0f} tokens/s</text>')
    out.append(f'<text x="12" y="{bottom + 38}">Dots: medians of interleaved rounds; bars: least to most.</text></svg>')
    return "\n".join(out) + "\n"


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="GGUF")
    parser.add_argument("--loci", default="target/release/loci", help="the loci command")
    parser.add_argument("--llama-bench", default="", help="llama.cpp's llama-bench")
    parser.add_argument("--ik-bench", default="", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--tests", default="pp512,tg128")
    parser.add_argument("--threads", default="", help="default: one per core, and 1")
    parser.add_argument("--oversubscribe", default="pp128,tg16", help="tests of the first model with twice as many threads as cores; empty: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reps", type=int, default=2, help="repetitions in each sample")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one sample may take")
    parser.add_argument("--quiet", type=float, default=0.1, help="a sample is taken again if others used more cores than that")
    parser.add_argument("--kernels", default="", help="the command that compares kernels")
    parser.add_argument("--record", default="benches/record", help="the directory of the records")
    parser.add_argument("--plot", metavar="CSV", help="only draw the plot of a record")
    args = parser.parse_args()
    if args.plot:
        with open(args.plot, newline="") as f:
            drawing = plot(list(csv.DictReader(f))) or sys.exit(f"bench.py: {args.plot} compares nothing")
        with open(args.plot.removesuffix(".csv") + ".svg", "w") as f:
            f.write(drawing)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = [int(t) for t in args.threads.split(",")] if args.threads else sorted({cores, 1}, reverse=True)
    tests = [Test(t) for t in args.tests.split(",") if t]
    jobs = [(model, test, n) for model in args.models for test in tests for n in threads]
    jobs += [(model, Test(t), 2 * cores) for model in args.models[:1] for t in args.oversubscribe.split(",") if t]
    rows = kernels(args.kernels.split()) if args.kernels else []
    rows += models(args, jobs)
    simd = subprocess.run([args.loci, "simd"], stdout=subprocess.PIPE, text=True).stdout.split()
    level = os.environ.get("LOCI_SIMD") or (simd or [""])[-1]
    for row in rows:
        row.update(cpu=cpu_name(), simd=level)
    table(rows)
    os.makedirs(args.record, exist_ok=True)
    name = f"{args.record}/{platform.machine()}-{platform.system().lower()}-{level}-{datetime.date.today()}"
    if os.path.exists(name + ".csv"):
        what = lambda row: (row["kind"], row["model"], row["test"], str(row["threads"]))
        measured = {what(row) for row in rows}
        with open(name + ".csv", newline="") as f:
            rows = [row for row in csv.DictReader(f) if what(row) not in measured] + rows
    with open(name + ".csv", "w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    drawing = plot(rows)
    if drawing:
        with open(name + ".svg", "w") as f:
            f.write(drawing)
    print(f"written: {name}.csv{' and .svg' if drawing else ''}")


main()
