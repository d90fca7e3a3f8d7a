"""A longer local window: perplexity and pass keys inside it, by plain extrapolation and by position interpolation, a line of JSON each.

    python3 window.py CHECKPOINT.npz [--windows 256,512,1024] [--interpolation 1,2,4] [--texts 64] [--questions 100]

Nothing is in memory here: all of a text is in the window. Positions are divided by `interpolation` (arXiv 2306.15595); 1 is plain
extrapolation to positions that training never saw. `perplexity` is that of a byte of prose, at the places past the half of the window, so
that every window is judged by what it adds; `pass` the share of pass keys found in as much prose as the window holds, asked at its end,
all digits right, in phrasings that training never saw. Checkpoints that train.py adapted have their own window and interpolation: give these.
"""
import argparse
import json
import os
from dataclasses import replace
from functools import partial

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=" + ("true" if os.environ.get("FOT_THREADS", "1") != "1" else "false"))
import jax
import jax.numpy as jnp
import numpy as np

import data
import model

SEED = 3_000_000  # far from those of training and of evaluate.py
QUESTION = 64     # room for the question and the answer


@partial(jax.jit, static_argnames="config")
def logits(p, tokens, at, config):
    none = jnp.zeros((1, config.kv_heads, config.head_dim))
    blind = jnp.ones(tokens.shape[0], bool)
    return model.read(p, model.lower(p, tokens, config), at, none, none, blind, config)[0]


def perplexity(p, config, texts, r):
    """Of bytes past the half of the window, of prose."""
    total, count, half = 0.0, 0, config.window // 2
    at = np.arange(half - 1, config.window - 1)[None]
    for _ in range(texts):
        page = data.memory_page(r, config.window, "prose", iter(()))[0]
        tokens = page.tokens()[None]
        out = np.asarray(logits(p, tokens, at, config)[0], np.float64)
        nats = np.logaddexp.reduce(out, -1) - out[np.arange(len(out)), tokens[0, half:]]
        used = nats[:max(0, len(page.text) - half)]  # not the line feeds that fill the page
        total, count = total + used.sum(), count + len(used)
    return float(np.exp(total / count))


def passes(p, config, questions, r):
    right = []
    for _ in range(questions):
        secret = data.digits(r, data.PASS_DIGITS)
        page = data.memory_page(r, config.window - QUESTION, "prose", iter(()), "held-out", passed=secret)[0]
        page.length = config.window
        assert page.ask(data.choose(r, data.PASS_QUESTIONS["held-out"]), "pass", secret, "local")
        at = page.asked[0][0] - 1 + np.arange(len(secret) + 1)  # its digits and the end of the line
        tokens = page.tokens()[None]
        best = np.asarray(logits(p, tokens, at[None], config)[0]).argmax(-1)
        right.append((best == tokens[0, at + 1]).all())
    return float(np.mean(right))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--windows", default="256,512,1024")
    parser.add_argument("--interpolation", default="1,2,4")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--label", default="", help="goes into every line")
    parser.add_argument("--out", help="append the lines to this file too")
    options = parser.parse_args()
    p, trained = model.load(options.checkpoint)
    for window in map(int, options.windows.split(",")):
        for factor in map(float, options.interpolation.split(",")):
            config = replace(trained, window=window, interpolation=factor)
            r = np.random.default_rng([SEED, window])
            line = {"window": window, "interpolation": factor, "perplexity": perplexity(p, config, options.texts, r),
                    "pass": passes(p, config, options.questions, r), "questions": options.questions, "label": options.label}
            print(json.dumps(line), flush=True)
            if options.out:
                with open(options.out, "a") as f:
                    f.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
