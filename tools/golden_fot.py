#!/usr/bin/env python3
"""golden_fot.py SOURCE_DIR DEST_DIR: golden vectors of the FoT test models, from .npz to the flat file that the tests read.

Reads NAME.plain.npz, .onewindow, .windows, .gen_bf16, .gen_f32, .edge, .greedy_f32, .pi4, .gen (fot_gqa) and writes one
little-endian blob, arrays.bin, plus index.json {arrays: {name: {dtype, shape, offset}}}. To stay small: logits that are compared
at 3e-3 or coarser (bf16 memory) are stored as f16, the others as f32; of the step logits compared at f32 accuracy every
third row and the rows around each dump are kept, of the final memory of long runs every fourth token (index `X_rows`
names them). Everything else is whole. Arrays with equal contents share their bytes.
"""
import hashlib, json, os, sys
import numpy as np

source, dest = sys.argv[1:3]
os.makedirs(dest, exist_ok=True)
arrays, by_hash, blob = {}, {}, bytearray()
KINDS = {np.dtype("<f4"): "f32", np.dtype("<f2"): "f16", np.dtype("<u2"): "u16", np.dtype("<i8"): "i64"}


def put(name, value, half=False):
    value = np.ascontiguousarray(value)
    if value.dtype.kind == "f":
        value = value.astype("<f2" if half else "<f4")
    raw = value.tobytes()
    kind = KINDS[value.dtype]
    key = hashlib.sha256(raw).hexdigest() + kind
    if key not in by_hash:
        blob.extend(bytes(-len(blob) % 8))
        by_hash[key] = len(blob)
        blob.extend(raw)
    arrays[name] = {"dtype": kind, "shape": list(value.shape), "offset": by_hash[key]}


def load(name):
    return np.load(os.path.join(source, name + ".npz"))


def put_rows(name, value, rows, axis=0, half=False):
    put(name, np.take(value, rows, axis=axis), half)
    put(name + "_rows", np.array(rows, dtype="<i8"))


def step_rows(state):
    """Every third step, and the two on either side of each dump (where the local length falls)."""
    local = state[:, 0]
    dumps = [i for i in range(len(local) - 1) if local[i + 1] < local[i]]
    near = {i + d for i in dumps for d in (-1, 0, 1, 2)}
    return sorted(i for i in near | set(range(0, len(local) - 1, 3)) if 0 <= i < len(local) - 1)


for part in ("plain", "onewindow"):
    z = load(f"fot_a.{part}")
    for k in z.files:
        put(f"{part}.{k}", z[k])

z = load("fot_a.windows")
for k in z.files:
    put(f"windows.{k}", z[k], half=k == "logits")

z = load("fot_a.gen_bf16")
for k in z.files:
    if k.startswith("bf16_mem"):
        put_rows(f"gen_bf16.{k}", z[k], list(range(0, z[k].shape[1], 4)), axis=1)
    else:
        put(f"gen_bf16.{k}", z[k], half=True)

z = load("fot_a.gen_f32")
for k in z.files:
    if k == "step_logits":
        put_rows(f"gen_f32.{k}", z[k], step_rows(z["state"]))
    else:
        put(f"gen_f32.{k}", z[k])

z = load("fot_a.edge")
for k in z.files:
    if z[k].dtype == np.uint16:
        put_rows(f"edge.{k}", z[k], list(range(0, z[k].shape[1], 4)), axis=1)
    else:
        put(f"edge.{k}", z[k])

for part in ("greedy_f32", "pi4"):
    z = load(f"fot_a.{part}")
    for k in z.files:
        put(f"{part}.{k}", z[k])

z = load("fot_gqa.gen")
for k in z.files:
    if k == "step_logits_f32":
        put_rows(f"gqa.{k}", z[k], step_rows(z["state"]))
    elif k == "plain_logits":
        put_rows(f"gqa.{k}", z[k], list(range(1, 64, 2)))
    else:
        put(f"gqa.{k}", z[k], half=k.endswith("_bf16"))

with open(os.path.join(dest, "arrays.bin"), "wb") as f:
    f.write(blob)
with open(os.path.join(dest, "index.json"), "w") as f:
    f.write('{"arrays": {\n')
    f.write(",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(arrays.items())))
    f.write("\n}}\n")
