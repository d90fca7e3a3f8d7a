"""Writes a text to remember and questions about it, for tests and for measuring the runtime.

    python3 cases.py OUT --length 65536 --questions 100 [--kind log|dictionary|pass] [--seed N] [--phrasing held-out]

OUT.txt is the text, whole pages of 256 bytes; OUT.tsv has a question and its answer per line. With `log`, one question in ten is about a
pass key that stands somewhere in the text.
"""
import argparse

import numpy as np

import data


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--length", type=int, default=65536)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--kind", choices=["log", "dictionary", "pass"], default="log")
    parser.add_argument("--phrasing", default="held-out")
    parser.add_argument("--seed", type=int, default=2_000_000)
    o = parser.parse_args()
    r = np.random.default_rng([o.seed, o.length])
    count = o.length // o.window
    fresh = data.pairs(r, count * (o.window // 10 + 1), False)
    told, text = [], b""
    secret, place = data.digits(r, data.PASS_DIGITS), int(r.integers(count))
    for i in range(count):
        kind = "prose" if o.kind == "pass" else o.kind
        page, said = data.memory_page(r, o.window, kind, fresh, o.phrasing, passed=secret if i == place and o.kind != "dictionary" else None)
        told += said.items()
        text += bytes(page.text) + b"\n" * page.room()
    with open(o.out + ".txt", "wb") as f:
        f.write(text)
    with open(o.out + ".tsv", "w", newline="\n") as f:
        picked = r.permutation(len(told))
        for n in range(o.questions):
            if o.kind == "pass" or (o.kind == "log" and n % 10 == 9):
                f.write(f"{data.choose(r, data.PASS_QUESTIONS[o.phrasing])}\t{secret}\n")
            else:
                key, value = told[picked[n % len(told)]]
                f.write(f"{data.choose(r, data.QUESTIONS[o.phrasing]).format(k=key)}\t{value}\n")


if __name__ == "__main__":
    main()
