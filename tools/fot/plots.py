"""Draws the figures of docs/fot.md from what train.py and evaluate.py wrote, as SVG.

    python3 plots.py training RUN/log.jsonl OUT_DIR [NAME]
    python3 plots.py accuracy ACCURACY.jsonl OUT_DIR      lines of evaluate.py
    python3 plots.py negatives ACCURACY.jsonl OUT_DIR     lines of evaluate.py; their labels tell models apart
    python3 plots.py window WINDOW.jsonl OUT_DIR          lines of window.py; their labels tell models apart
    python3 plots.py runtime LOOKUP.jsonl OUT_DIR         lines of examples/lookup_accuracy.rs
"""
import json
import math
import sys
from functools import partial
from pathlib import Path

COLOURS = ["#1f6fb4", "#d1581b", "#2b8a4b", "#8a4fb0", "#7a7a7a", "#b8860b"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 330, 58, 190, 34, 44


def chart(title, across, up, lines, x_log=False, y_range=(0, 1), x_ticks=None, y_ticks=None, y_format="{:g}"):
    """lines: (label, [(x, y)], dashed). Returns the SVG."""
    xs = [x for _, points, _ in lines for x, _ in points]
    fx = (lambda x: math.log2(x)) if x_log else (lambda x: x)
    low, high = fx(min(xs)), fx(max(xs))
    high = high if high > low else low + 1

    def px(x):
        return LEFT + (fx(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def py(y):
        share = (min(max(y, y_range[0]), y_range[1]) - y_range[0]) / (y_range[1] - y_range[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>', f'<text x="{LEFT}" y="20" font-size="14">{title}</text>']
    steps = y_ticks or [y_range[0] + (y_range[1] - y_range[0]) * i / 5 for i in range(6)]
    for y in steps:
        out.append(f'<line x1="{LEFT}" y1="{py(y):.1f}" x2="{WIDTH - RIGHT}" y2="{py(y):.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y_format.format(y)}</text>')
    for x in x_ticks or sorted(set(xs)):
        name = f"{x // 1048576}M" if x >= 1048576 else f"{x // 1024}k" if x >= 1024 and x_log else f"{x:g}"
        out.append(f'<text x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{name}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{across}</text>')
    out.append(f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">{up}</text>')
    for i, (label, points, dashed) in enumerate(lines):
        colour, dash = COLOURS[i % len(COLOURS)], ' stroke-dasharray="5 4"' if dashed else ""
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if len(points) <= 12:
            out += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        y = TOP + 12 + 18 * i
        out.append(f'<line x1="{WIDTH - RIGHT + 10}" y1="{y - 4}" x2="{WIDTH - RIGHT + 32}" y2="{y - 4}" stroke="{colour}" stroke-width="2"{dash}/>')
        out.append(f'<text x="{WIDTH - RIGHT + 38}" y="{y}">{label}</text>')
    return "\n".join(out + ["</svg>", ""])


def read(path):
    return [json.loads(line) for line in open(path)]


def training(log, out, figure="training"):
    rows = list({r["step"]: r for r in read(log)}.values())  # what was done again after an interruption counts once
    rows.sort(key=lambda r: r["step"])
    ticks = [rows[0]["step"]] + [s for s in range(500, rows[-1]["step"], 500)] + [rows[-1]["step"]]
    series = [(name, [(r["step"], r[key]) for r in rows], False) for name, key in
              (("answers", "answers"), ("text", "text"), ("attention, right entry", "attention"))]
    (out / f"fot-{figure}-loss.svg").write_text(chart("Loss in training", "step", "nats", series, y_range=(0, 5), x_ticks=ticks))
    series = [("digits right", [(r["step"], r["accuracy"]) for r in rows if "accuracy" in r], False)]
    (out / f"fot-{figure}-accuracy.svg").write_text(chart("Answers in training (memory grows with the phases)", "step", "share", series, x_ticks=ticks))


NAMES = {"log": "codes in prose", "pass": "pass key in prose", "dictionary": "nothing but codes"}


def accuracy(path, out, figure="memory"):
    rows = read(path)
    groups = {}
    for r in rows:
        groups.setdefault((r.get("label", ""), r["kind"], r["top_k"]), []).append(r)
    for key, value, title in (("exact", "exact", "Exact answers against tokens of memory"), ("mass", "mass", "Attention on the right entry")):
        lines = []
        for (label, kind, k), group in groups.items():
            name = NAMES[kind] + (f", best {k}" if k else "") + (f", {label}" if label else "")
            lines.append((name, sorted((r["length"], r[value]) for r in group), bool(label)))
        (out / f"fot-{figure}-{key}.svg").write_text(chart(title, "tokens of memory", "share", lines, x_log=True))


def window(path, out):
    groups = {}
    for r in read(path):
        groups.setdefault(r["label"], []).append(r)
    most = 20 * math.ceil(max(r["perplexity"] for group in groups.values() for r in group) / 20)
    for key, title, up, y_range in (("pass", "Pass keys found in the window", "share", (0, 1)), ("perplexity", "Perplexity of a byte", "", (0, most))):
        lines = [(label, sorted((r["window"], r[key]) for r in group), False) for label, group in groups.items()]
        (out / f"fot-window-{key}.svg").write_text(chart(title, "tokens of the window", up, lines, x_log=True, y_range=y_range, x_ticks=[256, 512, 1024]))


def runtime(path, out):
    groups = {}
    for r in (r for r in read(path) if "codec" in r):
        groups.setdefault((r["codec"], r["top_k"]), []).append((r["length"], r["right"] / r["questions"]))
    lines = [(codec + (f", best {k}" if k else ", all"), sorted(points), k > 0) for (codec, k), points in groups.items()]
    (out / "fot-runtime-exact.svg").write_text(
        chart("Exact answers from a memory file", "tokens of memory", "share", lines, x_log=True, y_range=(0.9, 1), y_format="{:.2f}"))


if __name__ == "__main__":
    target = Path(sys.argv[3])
    target.mkdir(parents=True, exist_ok=True)
    {"training": training, "accuracy": accuracy, "negatives": partial(accuracy, figure="negatives"), "window": window,
     "runtime": runtime}[sys.argv[1]](sys.argv[2], target, *sys.argv[4:])
