"""A LLaMA with one memory layer in JAX: no tensor that a LLaMA has not, and crossbatch attention to train it.

RMSNorm, RoPE (here of the pairs i, i + head_dim / 2; export.py reorders them to GGUF's), SwiGLU, grouped queries, no biases. The memory layer has no positions unless
`memory_positionals` is set: then its local part is rotated and memory stays at position 0, as in LongLLaMA. Since there is one memory layer only,
what is remembered does not depend on other memory; if it is the last layer, only the places that are trained on need its queries.
"""
from dataclasses import asdict, dataclass
from functools import partial
import json

import jax
import jax.numpy as jnp
import numpy as np

MASKED = -1e9
BLOCK = 64


@dataclass(frozen=True)
class Config:
    vocabulary: int = 259
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 384
    rope_theta: float = 10000.0
    epsilon: float = 1e-6
    window: int = 256
    memory_positionals: bool = False
    interpolation: float = 1.0  # positions are divided by it (position interpolation, arXiv 2306.15595)
    memory_at: int = -1         # the memory layer; -1: the last

    @property
    def memory_layer(self):
        return self.memory_at % self.layers


def initial(config, seed):
    rng = np.random.default_rng(seed)
    d, f, q, kv = config.width, config.feed_forward, config.heads * config.head_dim, config.kv_heads * config.head_dim

    def normal(rows, columns, scale):
        return jnp.asarray(rng.standard_normal((rows, columns)) * scale, jnp.float32)

    def layer():
        return {
            "attn_norm": jnp.ones(d), "ffn_norm": jnp.ones(d),
            "attn_q": normal(q, d, d ** -0.5), "attn_k": normal(kv, d, d ** -0.5), "attn_v": normal(kv, d, d ** -0.5),
            "attn_output": normal(d, q, (2 * config.layers * q) ** -0.5),
            "ffn_gate": normal(f, d, d ** -0.5), "ffn_up": normal(f, d, d ** -0.5), "ffn_down": normal(d, f, (2 * config.layers * f) ** -0.5),
        }

    return {"token_embd": normal(config.vocabulary, d, 1.0), "output": normal(config.vocabulary, d, d ** -0.5), "output_norm": jnp.ones(d),
            "layers": [layer() for _ in range(config.layers)]}


def save(path, parameters, config, **more):
    flat = {"/".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in at): np.asarray(v)
            for at, v in jax.tree_util.tree_flatten_with_path(parameters)[0]}
    np.savez(path, **flat, config=json.dumps(asdict(config)), **more)


def load(path):
    z = np.load(path)
    config = Config(**json.loads(str(z["config"])))
    p = {n: jnp.asarray(z[n]) for n in ("token_embd", "output", "output_norm")}
    names = [n.split("/")[2] for n in z.files if n.startswith("layers/0/")]
    p["layers"] = [{n: jnp.asarray(z[f"layers/{i}/{n}"]) for n in names} for i in range(config.layers)]
    return p, config


def norm(x, weight, epsilon):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def rotate(x, at, config):
    """RoPE of x [..., places, heads, head_dim] at `at` [..., places]."""
    inverse = config.rope_theta ** (-jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    angle = (at / config.interpolation)[..., None, None] * inverse
    a, b = x[..., :config.head_dim // 2], x[..., config.head_dim // 2:]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1)


def heads(x, weight, config):
    return (x @ weight.T).reshape(*x.shape[:-1], -1, config.head_dim)


def feed_forward(layer, x, config):
    h = norm(x, layer["ffn_norm"], config.epsilon)
    return x + (jax.nn.silu(h @ layer["ffn_gate"].T) * (h @ layer["ffn_up"].T)) @ layer["ffn_down"].T


def ordinary(layer, x, config):
    """A layer without memory, of windows x [n, places, width]."""
    places = x.shape[1]
    at = jnp.arange(places, dtype=jnp.float32)
    group = config.heads // config.kv_heads
    h = norm(x, layer["attn_norm"], config.epsilon)
    q = rotate(heads(h, layer["attn_q"], config), at, config)
    k = rotate(heads(h, layer["attn_k"], config), at, config)
    v = heads(h, layer["attn_v"], config)
    q = q.reshape(*q.shape[:2], config.kv_heads, group, config.head_dim) * config.head_dim ** -0.5
    o = []
    for start in range(0, places, BLOCK):  # a block of queries needs no keys after its end
        end = min(start + BLOCK, places)
        s = jnp.einsum("nqhgd,nkhd->nhgqk", q[:, start:end], k[:, :end])
        w = jax.nn.softmax(jnp.where(at[:end] <= at[start:end, None], s, MASKED), -1)
        o.append(jnp.einsum("nhgqk,nkhd->nqhgd", w, v[:, :end]))
    o = jnp.concatenate(o, 1).reshape(*x.shape[:2], -1)
    return feed_forward(layer, x + o @ layer["attn_output"].T, config)


def lower(p, tokens, config):
    """The layers below the memory layer: tokens [n, places] -> hidden [n, places, width]."""
    x = p["token_embd"][tokens]
    for layer in p["layers"][:config.memory_layer]:
        x = ordinary(layer, x, config)
    return x


def memory_entries(p, x, config):
    """Keys and values [n, places, kv_heads, head_dim] of hidden states, as the memory keeps them (at position 0)."""
    layer = p["layers"][config.memory_layer]
    h = norm(x, layer["attn_norm"], config.epsilon)
    return heads(h, layer["attn_k"], config), heads(h, layer["attn_v"], config)


def read(p, x, at, keys, values, blind, config, top_k=0, entry=None, crowd=None):
    """The memory layer, those above it, and the output at places `at` [n, q] of windows with hidden states x [n, places, width].

    keys, values: the memory, [m, kv_heads, head_dim] for all windows or [n, m, kv_heads, head_dim]; blind [n] bool: windows that see none
    of it. entry [n, q]: an index into the window followed by the memory. Returns logits [n, q, vocabulary] and the log of the attention
    weight that `entry` would have in every head, [n, q, heads], if each other entry of the memory were there `crowd` times."""
    layer, above, group = p["layers"][config.memory_layer], p["layers"][config.memory_layer + 1:], config.heads // config.kv_heads
    k, v = memory_entries(p, x, config)
    asked = at
    if above:  # they attend to every place
        at = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    picked = jnp.take_along_axis(x, at[..., None], 1)
    q = heads(norm(picked, layer["attn_norm"], config.epsilon), layer["attn_q"], config)
    if config.memory_positionals:
        q, k = rotate(q, at, config), rotate(k, jnp.arange(x.shape[1], dtype=jnp.float32), config)
    n, places = at.shape
    q = q.reshape(n, places, config.kv_heads, group, config.head_dim) * config.head_dim ** -0.5
    own = "n" if keys.ndim == 4 else ""
    local = jnp.einsum("nqhgd,nkhd->nhgqk", q, k)
    local = jnp.where((jnp.arange(x.shape[1]) <= at[..., None])[:, None, None], local, MASKED)
    remote = jnp.einsum(f"nqhgd,{own}mhd->nhgqm", q, keys)
    if blind is not None:
        remote = remote + jnp.where(blind, MASKED, 0.0)[:, None, None, None, None]
    if top_k:
        remote = jnp.where(remote >= jax.lax.top_k(remote, top_k)[0][..., -1:], remote, MASKED)
    top = jax.lax.stop_gradient(jnp.maximum(local.max(-1), remote.max(-1)))[..., None]
    el, er = jnp.exp(local - top), jnp.exp(remote - top)
    total = el.sum(-1) + er.sum(-1)
    o = jnp.einsum("nhgqk,nkhd->nhgqd", el, v) + jnp.einsum(f"nhgqm,{own}mhd->nhgqd", er, values)
    o = (o / total[..., None]).transpose(0, 3, 1, 2, 4).reshape(n, places, -1)
    y = feed_forward(layer, picked + o @ layer["attn_output"].T, config)
    norms = (top[..., 0] + jnp.log(total)).transpose(0, 3, 1, 2)  # the logarithm of the softmax's denominator
    remotes = (er.sum(-1) / total).transpose(0, 3, 1, 2)
    if above:
        for other in above:
            y = ordinary(other, y, config)
        y = jnp.take_along_axis(y, asked[..., None], 1)
        q = jnp.take_along_axis(q, asked[..., None, None, None], 1)
        norms, remotes = (jnp.take_along_axis(n, asked[..., None, None], 1) for n in (norms, remotes))
    logits = norm(y, p["output_norm"], config.epsilon) @ p["output"].T
    if entry is None:
        return logits, None
    here = jnp.take_along_axis(k, jnp.clip(entry, 0, x.shape[1] - 1)[..., None, None], 1)
    there = jnp.clip(entry - x.shape[1], 0, keys.shape[-3] - 1)
    there = jnp.take_along_axis(keys, there[..., None, None], 1) if own else keys[there]
    right = jnp.where((entry < x.shape[1])[..., None, None], here, there)
    right = jnp.einsum("nqhgd,nqhd->nqhg", q, right) - norms
    if crowd is None:
        return logits, right.reshape(*asked.shape, config.heads)
    others = jnp.maximum(remotes - jnp.where((entry < x.shape[1])[..., None, None], 0.0, jnp.exp(right)), 0.0)
    return logits, (right - jnp.log1p((crowd - 1) * others)).reshape(*asked.shape, config.heads)


def loss(p, b, config, weights, negatives, crowd=None):
    """Crossbatch: document i reads the pages of documents i ... i + negatives - 1, all of them differentiable. The loss is the
    cross-entropy of answers and of text, and, weighted by `weights["attention"]`, that of the attention to the right entry."""
    docs, pages = b["window"].shape[0], b["memory"].shape[0]
    x = lower(p, jnp.concatenate([b["memory"], b["window"]]), config)
    keys, values, entry = *memory_entries(p, x[:pages], config), b["entry"]
    if negatives < docs:
        seen = (jnp.arange(docs)[:, None] + jnp.arange(negatives)) % docs
        keys, values = (e.reshape(docs, -1, config.kv_heads, config.head_dim)[seen].reshape(docs, -1, config.kv_heads, config.head_dim)
                        for e in (keys, values))
    else:
        # All share one memory, in the order of the batch: what counted from a document's own pages counts from the first one's now.
        keys, values = (e.reshape(-1, config.kv_heads, config.head_dim) for e in (keys, values))
        length, own = b["window"].shape[1], keys.shape[0] // docs
        entry = jnp.where(entry < length, entry, length + (entry - length + jnp.arange(docs)[:, None] * own) % keys.shape[0])
    logits, mass = read(p, x[pages:], b["at"], keys, values, b["blind"], config, entry=entry, crowd=crowd)
    each = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, b["label"][..., None], -1)[..., 0]
    answers, text = jnp.maximum(b["answer"].sum(), 1), jnp.maximum(b["text"].sum(), 1)
    right = (logits.argmax(-1) == b["label"]) * b["answer"]
    digits = b["answer"] * (b["entry"] >= 0)  # not the ends of answers
    attention = -(mass.mean(-1) * digits).sum() / jnp.maximum(digits.sum(), 1)
    of_answers, of_text = (each * b["answer"]).sum() / answers, (each * b["text"]).sum() / text
    value = of_answers + weights["text"] * of_text + weights["attention"] * attention
    return value, {"answers": of_answers, "text": of_text, "attention": attention, "accuracy": right.sum() / answers}


@partial(jax.jit, static_argnames="config")
def embed(p, tokens, config):
    return memory_entries(p, lower(p, tokens, config), config)


@partial(jax.jit, static_argnames=("config", "top_k"))
def answer(p, tokens, at, entry, keys, values, config, top_k=0):
    return read(p, lower(p, tokens, config), at, keys, values, None, config, top_k, entry)
