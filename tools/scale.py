#!/usr/bin/env python3
"""A memory of a million tokens, measured: what is found in it, how long a question waits, what is read.

    tools/scale.py --loci LOCI --model GGUF --text BOOK --out DIR [--tokens 1m] [--threads 2] [--codec k8v4] [--rounds 5]

Reads BOOK (again from its start where it is too short) into DIR/large.lmem, which goes on where it was interrupted and is kept; asks
one question of DIR/empty.lmem with nothing in it, of DIR/small.lmem, the first 3,000 tokens, of the large one, and of it after its pages
were dropped, in turn (medians; every round is in DIR/scale.json); then asks for what is hidden in it (`loci eval`: pass keys and needles,
from 4k up to all of it). Needs 10 KB of disk a token of SmolLM2-135M, and an hour or so.
"""
import argparse
import json
import math
import os
import statistics
import subprocess

QUESTION = "Who was the father of Solomon?"
ANSWER_TOKENS = 120
SMALL_BYTES = 12000
LENGTHS = ["4k", "32k", "128k", "256k", "512k"]


def tokens_of(text):
    """`512k` and `1m` in numbers, as loci reads them."""
    unit = {"k": 1024, "m": 1_000_000}.get(text[-1].lower())
    return int(text[:-1]) * unit if unit else int(text)


def drop_pages(path):
    """The system forgets what it holds of the file, so that the next reader waits for the disk."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ask(options, memory):
    """Figures of one question in a process of its own, in seconds and bytes."""
    command = [options.loci, "recall", "-m", options.model, "--memory", memory, "--temp", "0", "--seed", "1", "-n", str(ANSWER_TOKENS),
               "--ignore-eos", "--json", "-t", str(options.threads), QUESTION]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    stats = said["stats"]
    return {"open": said["open_seconds"], "first": stats["first_token_seconds"], "median": said["pace"]["median"], "p99": said["pace"]["p99"],
            "each": said["pace"]["each"], "read": stats["memory_bytes_read"], "read_a_token": stats["memory_bytes_per_token"],
            "anonymous": stats["anonymous_bytes"], "tokens": stats["memory_tokens"]}


def beginning(options, name, length):
    """A memory of the first bytes of the text, made unless it is there."""
    memory, text = os.path.join(options.out, f"{name}.lmem"), os.path.join(options.out, f"{name}.txt")
    if not os.path.exists(memory):
        with open(options.text, "rb") as book, open(text, "wb") as out:
            out.write(book.read(length))
        command = [options.loci, "remember", "-m", options.model, "--memory", memory, "--codec", options.codec, "-t", str(options.threads), text]
        subprocess.run(command, check=True)
    return memory


def over_rounds(found):
    """Medians of the rounds. What takes long at one place of an answer in one round is the machine's; in most rounds, ours: so also the
    99th percentile of the tokens, each by its median over the rounds."""
    out = {k: statistics.median(r[k] for r in found) for k in found[0] if k != "each"}
    each = sorted(statistics.median(of_token) for of_token in zip(*(r["each"] for r in found)))
    out["p99_of_tokens"], out["median_of_tokens"] = each[math.ceil(0.99 * len(each)) - 1], statistics.median(each)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loci", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="a long text, a sentence or so in a line")
    parser.add_argument("--out", required=True)
    parser.add_argument("--tokens", default="1m")
    parser.add_argument("--codec", default="k8v4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-questions", action="store_true", help="times alone")
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    large = os.path.join(options.out, "large.lmem")

    lengths = [n for n in LENGTHS if tokens_of(n) < tokens_of(options.tokens)] + [options.tokens]
    evaluate = [options.loci, "eval", "-m", options.model, "--haystack", options.text, "--memory", large, "--codec", options.codec, "--reading-ctx", "512",
                "--lengths", ",".join(lengths), "--tasks", "passkey,needle", "--depths", "10", "--samples", "4", "-t", str(options.threads)]
    subprocess.run([*evaluate, "--remember"], check=True)
    asked = {"nothing": beginning(options, "empty", 0), "small": beginning(options, "small", SMALL_BYTES), "large": large, "large, cold": large}
    rounds = {name: [] for name in asked}
    for _ in range(options.rounds + 1):
        for name, memory in asked.items():
            if "cold" in name:
                drop_pages(memory)
            rounds[name].append(ask(options, memory))
    # The first round has found the model cold.
    medians = {name: over_rounds(found[1:]) for name, found in rounds.items()}
    print("\n| memory | tokens | open, ms | first token, ms | a token, ms | 99th percentile | of each token's median | bytes read | a token "
          "| anonymous, MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, m in medians.items():
        steady = f"{m['p99_of_tokens'] * 1e3:.1f}, {m['p99_of_tokens'] / m['median_of_tokens']:.2f} times their median"
        print(f"| {name} | {m['tokens']:,.0f} | {m['open'] * 1e3:.1f} | {m['first'] * 1e3:.0f} | {m['median'] * 1e3:.1f} | {m['p99'] * 1e3:.1f} | {steady} "
              f"| {m['read']:,.0f} | {m['read_a_token']:,.0f} | {m['anonymous'] / 2**20:.1f} |")
    with open(os.path.join(options.out, "scale.json"), "w") as f:
        json.dump({"medians": medians, "rounds": rounds}, f, indent=1)
    if not options.no_questions:
        print(flush=True)
        subprocess.run([*evaluate, "--modes", "memory", "--svg", os.path.join(options.out, "found.svg")], check=True)


if __name__ == "__main__":
    main()
