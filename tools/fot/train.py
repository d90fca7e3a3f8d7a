"""Trains a small Focused Transformer on text of data.py.

    python3 train.py OUT                        the model that is shipped (see README.md for the time)
    python3 train.py OUT --schedule short [--no-negatives]  in a quarter of an hour, to compare: crossbatch dimension 4, or 1 throughout
    python3 train.py OUT --from CHECKPOINT      continues from parameters of this program (.npz)
    python3 train.py OUT --from MODEL --schedule tune  makes an ordinary LLaMA (GGUF file or Hugging Face's directory) a Focused Transformer
    python3 train.py OUT --schedule ordinary    such a LLaMA: no memory, questions about what is in the window
    python3 train.py OUT --from CHECKPOINT.npz --schedule window --window 1024 [--interpolate]  a longer window, its positions interpolated
    python3 train.py OUT --resume               goes on where OUT/state.pkl stopped

The schedule goes from small windows without negatives, until answers come, to whole ones among many pages of other documents. Everything
is seeded; checkpoints go to OUT every few minutes, a line per 25 steps to OUT/log.jsonl.
"""
import argparse
import json
import os
import pickle
import time
from dataclasses import dataclass, replace
from functools import partial

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=" + ("true" if os.environ.get("FOT_THREADS", "1") != "1" else "false"))
import jax
import jax.numpy as jnp
import numpy as np
import optax

import data
import llama
import model


@dataclass(frozen=True)
class Phase:
    """One step of the schedule: `docs` documents of `pages` pages, each of `length` tokens; each sees `negatives` documents, itself included."""
    length: int
    docs: int
    pages: int
    negatives: int
    queries: int
    mixture: dict
    hard: float            # share of batches with near misses
    steps: int             # at most
    accuracy: float = 2.0  # ends before that when the running accuracy of digits passes this
    prose: float = 0.3     # share of prose among the questions
    rate: tuple = (1.0, 1.0)  # learning rate at its start and end, times --rate
    rise: int = 1          # steps over which it gets to the first
    alike: float = 0.0     # share of batches whose values begin alike
    ends: bool = False     # whether the line feed after an answer counts as part of it
    local: float = 0.15    # share of records in the window of questions
    blind: float = 0.05    # share of windows that see no memory
    crowd: float = 1.0     # the loss of attention counts each other entry so many times at most


FIRST = {"dictionary": 0.6, "records": 0.4}
MIXED = {"dictionary": 0.35, "records": 0.25, "log": 0.3, "prose": 0.1}
DENSE = {"dictionary": 0.45, "records": 0.2, "log": 0.25, "prose": 0.1}
PHASES = [
    Phase(64, 32, 1, 1, 48, FIRST, 0.0, 1500, 0.85, prose=0.0, local=0.0),
    Phase(64, 32, 1, 4, 48, FIRST, 0.5, 400, 0.90, prose=0.0, local=0.0),
    Phase(128, 8, 3, 8, 64, MIXED, 0.5, 400, 0.95),
    Phase(256, 4, 4, 4, 96, MIXED, 0.6, 800, rate=(0.8, 0.4), prose=0.15, local=0.1, alike=0.5),
    Phase(256, 4, 4, 4, 96, DENSE, 0.6, 1200, rate=(0.4, 0.004), prose=0.1, local=0.1, alike=0.7, ends=True),
    Phase(256, 4, 4, 4, 96, DENSE, 0.6, 2400, rate=(0.5, 0.004), rise=100, prose=0.1, local=0.1, alike=0.7, ends=True),
    Phase(256, 4, 4, 4, 96, DENSE, 0.6, 1200, rate=(0.3, 0.004), rise=50, prose=0.1, local=0.1, alike=0.7, ends=True),
    Phase(256, 4, 4, 4, 96, DENSE, 0.6, 3600, rate=(0.5, 0.004), rise=100, prose=0.1, local=0.1, alike=0.7, ends=True, crowd=64.0),
]


ORDINARY = [Phase(256, 8, 1, 1, 192, MIXED, 0.0, 600, local=0.35, blind=1.0, rate=(1.0, 0.1))]
TUNE = [  # small windows first, as from nothing: with whole ones answers were long in coming
    *PHASES[:2],
    Phase(256, 4, 4, 4, 96, MIXED, 0.5, 300, rate=(1.0, 0.004), prose=0.15, local=0.1, alike=0.5, ends=True),
]


def schedule(name, scale, window, negatives):
    if name == "window":  # about as many tokens in a batch, in longer windows
        docs = max(1, 2048 // window)
        return [Phase(window, docs, 2, docs, 192, MIXED, 0.5, int(200 * scale), rate=(0.3, 0.004), prose=0.15, local=0.2, alike=0.5, ends=True)]
    short = [*PHASES[:2], replace(PHASES[4], mixture=MIXED, steps=400, rate=(1.0, 0.004))]
    phases = {"focused": PHASES, "short": short, "ordinary": ORDINARY, "tune": [*TUNE[:-1], replace(TUNE[-1], length=window)]}[name]
    phases = [replace(p, steps=max(1, int(p.steps * scale)) if p.accuracy > 1 else p.steps) for p in phases]
    if not negatives:
        phases = [replace(p, negatives=1) for p in phases]
    return phases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--schedule", choices=["focused", "short", "window", "ordinary", "tune"], default="focused")
    parser.add_argument("--no-negatives", action="store_true", help="every document sees its own pages alone")
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of the phases without an aim")
    parser.add_argument("--from", dest="start", help="what to start from: .npz, .gguf, or a directory with config.json and safetensors")
    parser.add_argument("--first-phase", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--text", type=float, default=0.1, help="weight of the text's loss beside the answers'")
    parser.add_argument("--attention", type=float, default=1.0, help="weight of the loss of attention to the right entry; 0: none")
    parser.add_argument("--memory-positionals", action=argparse.BooleanOptionalAction, help="positions in the memory layer, LongLLaMA's way "
                        "(without --from: no; with it: as there, and in a LLaMA that has no memory layer yet: yes)")
    parser.add_argument("--memory-layer", type=int, help="which layer has memory, counted from 0 (without --from: the last; with it: as there)")
    parser.add_argument("--window", type=int, default=256, help="tokens of the window, with --schedule window and tune")
    parser.add_argument("--interpolate", action="store_true", help="divide positions by as much as --window is longer than what --from had")
    parser.add_argument("--rope-theta", type=float, default=10000.0)
    parser.add_argument("--minutes", type=float, help="be ready in so many minutes from now: phases end early, the learning rate falls in time")
    parser.add_argument("--benchmark", action="store_true", help="seconds per step of each phase, and nothing else")
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)

    config = model.Config(rope_theta=options.rope_theta)
    parameters = model.initial(config, options.seed)
    if options.start:
        parameters, config = llama.load(options.start)
    if options.schedule == "ordinary":
        config = replace(config, memory_positionals=True)
    if options.memory_positionals is not None:
        config = replace(config, memory_positionals=options.memory_positionals)
    if options.memory_layer is not None:
        if not 0 <= options.memory_layer < config.layers:
            parser.error(f"--memory-layer: 0 to {config.layers - 1}")
        config = replace(config, memory_at=options.memory_layer)
    if options.schedule == "tune":
        config = replace(config, window=options.window)
    if options.schedule == "window":
        factor = config.interpolation * options.window / config.window if options.interpolate else config.interpolation
        config = replace(config, window=options.window, interpolation=factor)
    weights = {"text": options.text, "attention": options.attention}
    # The rate of each step is given from outside, so that it can follow the phases.
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b1=0.9, b2=0.98), optax.add_decayed_weights(0.01))
    state = optimizer.init(parameters)
    phases, r = schedule(options.schedule, options.scale, options.window, not options.no_negatives), np.random.default_rng(options.seed + 1)
    phase, in_phase, step, running, tokens, spent = options.first_phase, 0, 0, {}, 0, 0.0
    if options.resume:
        with open(f"{options.out}/state.pkl", "rb") as f:
            parameters, state, r, phase, in_phase, step, running, tokens, spent = pickle.load(f)
        parameters, state = jax.tree.map(jnp.asarray, (parameters, state))

    @partial(jax.jit, static_argnames="negatives", donate_argnums=(0, 1))
    def update(parameters, state, b, rate, crowd, negatives):
        (_, parts), gradient = jax.value_and_grad(model.loss, has_aux=True)(parameters, b, config, weights, negatives, crowd)
        change, state = optimizer.update(gradient, state, parameters)
        return jax.tree.map(lambda p, c: p - rate * c, parameters, change), state, parts

    def checkpoint():
        with open(f"{options.out}/state.pkl.new", "wb") as f:
            pickle.dump((*jax.tree.map(np.asarray, (parameters, state)), r, phase, in_phase, step, running, tokens, time.time() - began), f)
        os.replace(f"{options.out}/state.pkl.new", f"{options.out}/state.pkl")
        model.save(f"{options.out}/parameters.npz", parameters, config, step=step)

    called = time.time()

    def spent_share(phase):
        """Of the time given to `phase`: 3/10 of what is given in all, the last one takes what is left."""
        if options.minutes is None:
            return 0.0
        past = (time.time() - called) / 60 / options.minutes
        return past / 0.3 if phase < len(phases) - 1 else (past - last_began) / max(1e-9, 1 - last_began)

    last_began = 0.0
    log = open(f"{options.out}/log.jsonl", "a" if options.resume else "w")
    began = time.time() - spent
    saved = time.time()
    print(f"{sum(x.size for x in jax.tree.leaves(parameters))} parameters; {config}", flush=True)
    while phase < len(phases):
        p = phases[phase]
        print(f"phase {phase}: {p}", flush=True)
        mark, mark_step = time.time(), step
        if phase == len(phases) - 1 and options.minutes:
            last_began = (time.time() - called) / 60 / options.minutes
        while in_phase < p.steps and spent_share(phase) < 1 and (running.get("accuracy", 0) < p.accuracy or in_phase < 40):
            # Every few batches without negatives, so that short memories stay easy (the paper samples its d as well).
            negatives = 1 if phase > 1 and r.random() < 0.1 else p.negatives
            hard, alike = r.random() < p.hard, r.random() < p.alike
            b = data.batch(r, p.docs, p.pages, p.length, p.queries, negatives, p.mixture, hard, alike, p.ends, p.local, p.prose, p.blind)
            crowd = p.crowd ** r.random() if p.crowd > 1 else 1.0
            share = max(in_phase / p.steps, min(1.0, spent_share(phase)))
            rise = min(1.0, (step + 1) / 100, (in_phase + 1) / p.rise)
            rate = options.rate * rise * (p.rate[1] + (p.rate[0] - p.rate[1]) * 0.5 * (1 + np.cos(np.pi * share)))
            parameters, state, parts = update(parameters, state, b, jnp.float32(rate), jnp.float32(crowd), negatives)
            parts = {k: float(v) for k, v in parts.items()}
            running = {k: 0.95 * running.get(k, v) + 0.05 * v for k, v in parts.items()}
            step, in_phase, tokens = step + 1, in_phase + 1, tokens + b["memory"].size + b["window"].size
            if options.benchmark:
                if in_phase == 3:
                    mark = time.time()
                if in_phase == 8:
                    print(f"{(time.time() - mark) / 5:.3f} s/step", flush=True)
                    break
                continue
            if step % 25 == 0:
                line = {"step": step, "phase": phase, "tokens": tokens, "seconds": round(time.time() - began, 1), "rate": rate,
                        "seen": negatives * p.pages * p.length} | {k: round(v, 5) for k, v in running.items()}
                log.write(json.dumps(line) + "\n")
                log.flush()
                if step % 50 == 0:
                    print(line, f"{(time.time() - mark) / (step - mark_step):.2f} s/step", flush=True)
            if time.time() - saved > 180:
                checkpoint()
                saved = time.time()
        phase, in_phase = phase + 1, 0
        running = {k: v for k, v in running.items() if k != "accuracy"} | {"accuracy": 0.0} if phase < len(phases) else running
        if not options.benchmark:
            checkpoint()
            model.save(f"{options.out}/phase{phase - 1}.npz", parameters, config, step=step)


if __name__ == "__main__":
    main()
