"""Reads an ordinary LLaMA to go on from: a GGUF file, or a directory as Hugging Face's save_pretrained writes it.

A model of bytes only: its tokens are unknown, begin, end, and 256 bytes, as data.py has them. Whatever it was trained on, it becomes a
Focused Transformer by training with memory (train.py --from). A GGUF's llama.fot.* keys are taken over; a file without them has no memory
layer yet: the last one will be it, with RoPE, so that the model is what it was as long as its memory is empty.
"""
import os
import struct
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import data
import model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import convert_longllama as hugging_face  # reads config.json and safetensors

TYPES = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
OURS = {"attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
THEIRS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def load(path):
    """(parameters, config) of a checkpoint of train.py (.npz), a GGUF file, or a directory."""
    if str(path).endswith(".npz"):
        return model.load(path)
    tensors, config = from_directory(path) if os.path.isdir(path) else from_gguf(path)
    tensors.setdefault("output", tensors["token_embd"])  # tied: from here on two matrices
    parameters = {n: jnp.asarray(tensors.pop(n)) for n in ("token_embd", "output", "output_norm")}
    parameters["layers"] = [{n: jnp.asarray(tensors.pop(f"{i}/{n}")) for n in sorted(OURS)} for i in range(config.layers)]
    if tensors:
        raise SystemExit(f"{path}: not a plain LLaMA: {', '.join(sorted(tensors))}")
    shapes = {n: v.shape for n, v in {**parameters, **parameters["layers"][-1]}.items() if n != "layers"}
    q, kv, d, f = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.width, config.feed_forward
    wanted = {"token_embd": (data.VOCABULARY, d), "output": (data.VOCABULARY, d), "output_norm": (d,), "attn_norm": (d,), "ffn_norm": (d,), "attn_q": (q, d),
              "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q), "ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise SystemExit(f"{path}: {name}: expected shape {shape}, found {shapes[name]}")
    return parameters, config


def read_gguf(path):
    """(metadata, tensors) of a GGUF file, the tensors as f32."""
    raw, at = Path(path).read_bytes(), 0

    def number(form):
        nonlocal at
        at += struct.calcsize(form)
        return struct.unpack_from(form, raw, at - struct.calcsize(form))[0]

    def string():
        nonlocal at
        length = number("<Q")
        at += length
        return raw[at - length:at].decode("utf-8", "replace")

    def value(kind):
        if kind == 9:
            kind, count = number("<I"), number("<Q")
            return [value(kind) for _ in range(count)]
        return string() if kind == 8 else number(SCALARS[kind])

    if raw[:4] != b"GGUF":
        raise SystemExit(f"{path}: neither .npz nor GGUF")
    at = 4
    _, tensors, entries = number("<I"), number("<Q"), number("<Q")
    metadata = {}
    for _ in range(entries):
        key = string()
        metadata[key] = value(number("<I"))
    table = []
    for _ in range(tensors):
        name = string()
        dims = [number("<Q") for _ in range(number("<I"))]
        table.append((name, dims[::-1], number("<I"), number("<Q")))
    align = metadata.get("general.alignment", 32)
    base = -(-at // align) * align
    return metadata, {name: decoded(path, raw, name, shape, kind, base + offset) for name, shape, kind, offset in table}


def decoded(path, raw, name, shape, kind, offset):
    count = int(np.prod(shape))
    if kind not in TYPES:
        raise SystemExit(f"{path}: {name}: expected one of {', '.join(TYPES.values())}, found type {kind}")
    if TYPES[kind] == "Q8_0":
        blocks = np.frombuffer(raw, [("d", "<f2"), ("q", "i1", 32)], count // 32, offset)
        return (blocks["d"].astype(np.float32)[:, None] * blocks["q"]).reshape(shape)
    numbers = np.frombuffer(raw, hugging_face.NUMPY_KINDS[TYPES[kind]], count, offset)
    return hugging_face.to_f32(numbers, TYPES[kind]).reshape(shape)


def halves(weight, head_dim):
    """Rows of a query or key matrix as model.py wants them: RoPE turns i and i + head_dim / 2 here, 2 i and 2 i + 1 in GGUF."""
    return weight.reshape(-1, head_dim // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def from_gguf(path):
    m, found = read_gguf(path)
    if m.get("general.architecture") != "llama":
        raise SystemExit(f"{path}: expected architecture llama, found {m.get('general.architecture')}")
    tokens, first = m.get("tokenizer.ggml.tokens", []), data.FIRST_BYTE
    names = [t.replace("\u2581", "<0x20>") for t in tokens[first:]]
    if names != [f"<0x{b:02X}>" for b in range(256)]:
        raise SystemExit(f"{path}: {len(tokens)} tokens that are not the {data.VOCABULARY} of a model of bytes: data.py writes bytes, so Page.tokens "
                         "and the places that batch() names would have to follow another vocabulary first")
    scaling = m.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", "linear") or "rope_freqs.weight" in found:
        raise SystemExit(f"{path}: expected RoPE without scaling or with a linear one, found {scaling}")
    memory_layers = m.get("llama.fot.memory_layers") or [m["llama.block_count"] - 1]
    if len(memory_layers) > 1:
        raise SystemExit(f"{path}: expected one memory layer, found {memory_layers}")
    heads = m["llama.attention.head_count"]
    config = model.Config(
        vocabulary=len(tokens), width=m["llama.embedding_length"], layers=m["llama.block_count"], heads=heads,
        kv_heads=m.get("llama.attention.head_count_kv", heads), head_dim=m.get("llama.attention.key_length", m["llama.embedding_length"] // heads),
        feed_forward=m["llama.feed_forward_length"], rope_theta=m.get("llama.rope.freq_base", 10000.0),
        epsilon=m["llama.attention.layer_norm_rms_epsilon"], window=m.get("llama.fot.window_length", m["llama.context_length"]),
        memory_positionals=m.get("llama.fot.memory_positionals", True), memory_at=memory_layers[0],
        interpolation=m.get("llama.rope.scaling.factor", 1.0) if scaling == "linear" else 1.0)
    if m.get("llama.rope.dimension_count", config.head_dim) != config.head_dim:
        raise SystemExit(f"{path}: expected RoPE over all {config.head_dim} numbers of a head, found {m['llama.rope.dimension_count']}")
    tensors = {}
    for name, values in found.items():
        stem = name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, i, stem = stem.split(".", 2)
            tensors[f"{i}/{stem}"] = halves(values, config.head_dim) if stem in ("attn_q", "attn_k") else values
        else:
            tensors[stem] = values
    return tensors, config


def from_directory(path):
    try:
        c = hugging_face.Config(os.path.join(path, "config.json"))
        found = hugging_face.read_checkpoint(path)
    except hugging_face.Refused as e:
        raise SystemExit(str(e)) from None
    if c.vocab != data.VOCABULARY or c.rope.get("rope_type", c.rope.get("type", "default")) != "default" or (c.fot and len(c.fot["layers"]) > 1):
        raise SystemExit(f"{path}: expected {data.VOCABULARY} tokens (a model of bytes), no scaling of RoPE and at most one memory layer")
    config = model.Config(
        vocabulary=c.vocab, width=c.width, layers=c.layers, heads=c.heads, kv_heads=c.heads_kv, head_dim=c.head, feed_forward=c.ffn, rope_theta=c.theta,
        epsilon=c.epsilon, window=c.context, memory_positionals=c.fot["positionals"] if c.fot else True,
        memory_at=c.fot["layers"][0] if c.fot else c.layers - 1)
    tensors = {}
    for ours, theirs in [("token_embd", "model.embed_tokens"), ("output", "lm_head"), ("output_norm", "model.norm")] + [
            (f"{i}/{ours}", f"model.layers.{i}.{theirs}") for i in range(c.layers) for ours, theirs in THEIRS.items()]:
        source = found.pop(f"{theirs}.weight", None)
        if source is not None:
            tensors[ours] = hugging_face.to_f32(np.array(source.raw()), source.dtype)
        elif ours != "output" or not c.tied:
            raise SystemExit(f"{path}: no tensor {theirs}.weight")
    left = [n for n in found if not n.endswith("rotary_emb.inv_freq")]
    if left:
        raise SystemExit(f"{path}: not a plain LLaMA: {', '.join(sorted(left))}")
    return tensors, config
