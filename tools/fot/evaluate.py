"""Accuracy against memory length: questions with phrasings and seeds that training never saw, a line of JSON per length and kind.

    python3 evaluate.py CHECKPOINT [--lengths 4096,65536] [--kinds log,pass,dictionary] [--memories 10] [--questions 20] [--top-k 0]

Kinds: `dictionary`, records without anything between them; `log`, records among prose; `pass`, one pass key in prose, at a random place that
is another one for every question. An answer counts if all of its digits are right and the line ends after them. `mass` is the attention weight on the right entry, of the
mean and of the best head, averaged over the digits. What is remembered is rounded to --store before it is read.
"""
import argparse
import json
import os
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=" + ("true" if os.environ.get("FOT_THREADS", "1") != "1" else "false"))
import jax.numpy as jnp
import numpy as np

import data
import llama
import model

SEED = 1_000_000  # far from those of training


def remembered(p, config, pages, store, batch=32):
    keys, values = [], []
    for i in range(0, len(pages), batch):
        block = pages[i:i + batch]
        full = np.concatenate([block, np.full((batch - len(block), block.shape[1]), data.FIRST_BYTE + 10, np.int32)]) if len(block) < batch else block
        k, v = model.embed(p, full, config)
        keys.append(np.asarray(k)[:len(block)].astype(store))
        values.append(np.asarray(v)[:len(block)].astype(store))
    return np.concatenate(keys), np.concatenate(values)


def ask(p, config, questions, keys, values, top_k, phrasing, r):
    """questions: (key, value, index of its first digit in memory). Returns arrays: exact, digits, mean mass, best head's mass."""
    length, rows = 96, []
    for key, value, entry in questions:
        page = data.Page(length)
        form = data.choose(r, data.PASS_QUESTIONS[phrasing] if key == "pass" else data.QUESTIONS[phrasing])
        assert page.ask(form, key, value, "memory")
        first, places = page.asked[0][0], np.arange(len(value) + 1)  # the digits and the end of the line, which has no entry
        rows.append((page.tokens(), first - 1 + places, length + entry + np.minimum(places, len(value) - 1)))
    tokens, at, entry = (np.stack(x) for x in zip(*rows))
    logits, mass = model.answer(p, tokens, at, entry, keys, values, config, top_k=top_k)
    right = np.asarray(logits.argmax(-1)) == np.take_along_axis(tokens, at + 1, 1)
    mass = np.exp(np.asarray(mass))[:, :-1]
    return right.all(1), right[:, :-1].mean(1), mass.mean((1, 2)), mass.max(2).mean(1)


def evaluate(p, config, kind, length, memories, questions, top_k=0, store=np.float16, phrasing="held-out", at_once=None, seed=SEED):
    window, results = config.window, []
    count = max(1, length // window)
    at_once = at_once or max(1, min(questions, (1 << 21) // length))
    for m in range(memories):
        r = np.random.default_rng([seed, m, length])
        if kind == "pass":
            pages = [data.memory_page(r, window, "prose", iter(()), phrasing)[0] for _ in range(count)]
        else:
            fresh = data.pairs(r, count * (window // 10 + 1), False)
            pages = [data.memory_page(r, window, kind, fresh, phrasing)[0] for _ in range(count)]
        facts = [(key, bytes(page.text[at:at + data.VALUE_DIGITS]).decode(), i * window + at) for i, page in enumerate(pages) for key, at in page.values.items()]
        keys, values = remembered(p, config, np.stack([page.tokens() for page in pages]), store)
        flat = (-1, config.kv_heads, config.head_dim)
        keys, values = keys.astype(np.float32), values.astype(np.float32)
        if kind == "pass":
            for _ in range(questions):
                i, secret = int(r.integers(count)), data.digits(r, data.PASS_DIGITS)
                page = data.memory_page(r, window, "prose", iter(()), phrasing, passed=secret)[0]
                kept = keys[i].copy(), values[i].copy()
                keys[i], values[i] = (x[0] for x in remembered(p, config, page.tokens()[None], store, 1))
                one = [("pass", secret, i * window + page.values["pass"])]
                results.append(ask(p, config, one, keys.reshape(flat), values.reshape(flat), top_k, phrasing, r))
                keys[i], values[i] = kept
        else:
            k, v = jnp.asarray(keys).reshape(flat), jnp.asarray(values).reshape(flat)
            picked = [facts[i] for i in r.permutation(len(facts))[:questions]]
            picked += [facts[int(r.integers(len(facts)))] for _ in range(questions - len(picked))]
            for i in range(0, questions, at_once):
                results.append(ask(p, config, picked[i:i + at_once], k, v, top_k, phrasing, r))
    exact, digits, mean, best = (np.concatenate(x) for x in zip(*results))
    return {"kind": kind, "length": count * window, "records": len(facts) or 1, "questions": len(exact), "top_k": top_k, "exact": float(exact.mean()),
            "digits": float(digits.mean()), "mass": float(mean.mean()), "mass_best_head": float(best.mean())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--lengths", default="4096,16384,65536,262144,1048576")
    parser.add_argument("--kinds", default="log,pass,dictionary")
    parser.add_argument("--memories", type=int, default=10)
    parser.add_argument("--questions", type=int, default=20, help="of each memory")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--store", default="float16")
    parser.add_argument("--phrasing", default="held-out")
    parser.add_argument("--label", default="", help="goes into every line")
    parser.add_argument("--out", help="append the lines to this file too")
    options = parser.parse_args()
    p, config = llama.load(options.checkpoint)
    for length in map(int, options.lengths.split(",")):
        for kind in options.kinds.split(","):
            began = time.time()
            line = evaluate(p, config, kind, length, options.memories, options.questions, options.top_k, np.dtype(options.store), options.phrasing)
            line |= {"phrasing": options.phrasing, "label": options.label, "seconds": round(time.time() - began, 1)}
            print(json.dumps(line), flush=True)
            if options.out:
                with open(options.out, "a") as f:
                    f.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
