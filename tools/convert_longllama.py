#!/usr/bin/env python3
"""Converts a LongLLaMA or plain LLaMA checkpoint in Hugging Face's layout to GGUF version 3.

usage: convert_longllama.py CHECKPOINT_DIR OUT.gguf [--type f32|f16|bf16|q8_0] [--pre NAME] [--name NAME] [--dry-run]

Reads config.json, model.safetensors or the shards that model.safetensors.index.json names, and tokenizer.model or
tokenizer.json. Needs Python 3.9 and numpy, nothing else. A LongLLaMA becomes a file of architecture `llama` with the keys
`llama.fot.*`; docs/fot.md lists them.

Formats: safetensors, GGUF (ggml's docs/gguf.md), sentencepiece_model.proto. Invariants: every tensor's shape is checked
against config.json before a byte is written; the output appears whole or not at all.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import struct
import sys

try:
    import numpy as np
except ImportError:
    sys.exit("convert_longllama: numpy is missing: install python3-numpy, or run `python3 -m pip install numpy`")


class Refused(Exception):
    """The checkpoint cannot be converted; the text says why."""


def mismatch(file, what, expected, found):
    return Refused(f"{file}: {what}: expected {expected}, found {found}")


def note(text):
    print(f"convert_longllama: {text}", file=sys.stderr)


def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except (OSError, ValueError) as e:
        raise Refused(f"{path}: {e}") from None
    if not isinstance(value, dict):
        raise mismatch(path, "top level", "a JSON object", type(value).__name__)
    return value


# ---------------------------------------------------------------- safetensors

ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
NUMPY_KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
HEADER_MAX = 100 << 20


class SourceTensor:
    """A tensor in a safetensors file. `raw` maps it; bf16 comes as u16."""

    def __init__(self, file, name, entry, data_start, data_len):
        self.file, self.name = file, name
        try:
            self.dtype, self.shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise mismatch(file, name, "dtype, shape and data_offsets", entry) from None
        if not all(isinstance(n, int) and n >= 0 for n in (*self.shape, begin, end)):
            raise mismatch(file, name, "whole numbers as shape and offsets", entry)
        size = math.prod(self.shape) * ELEMENT_BYTES.get(self.dtype, 0)
        if self.dtype in ELEMENT_BYTES and (end - begin != size or end > data_len):
            raise mismatch(file, name, f"{size} bytes within {data_len}", f"bytes {begin} to {end}")
        self.offset = data_start + begin

    def raw(self):
        return np.memmap(self.file, mode="r", dtype=NUMPY_KINDS[self.dtype], offset=self.offset, shape=self.shape)


def read_safetensors(path):
    """The tensors of one file, by name."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            first = f.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 2 <= length <= min(HEADER_MAX, size - 8):
                raise mismatch(path, "header length", f"2 to {min(HEADER_MAX, max(size - 8, 0))}", length)
            header = json.loads(f.read(length).decode("utf-8"))
    except (OSError, ValueError) as e:
        raise Refused(f"{path}: {e}") from None
    if not isinstance(header, dict):
        raise mismatch(path, "header", "a JSON object", type(header).__name__)
    header.pop("__metadata__", None)
    return {name: SourceTensor(path, name, entry, 8 + length, size - 8 - length) for name, entry in header.items()}


def read_checkpoint(directory):
    """All tensors of a checkpoint, by name."""
    single = os.path.join(directory, "model.safetensors")
    index = os.path.join(directory, "model.safetensors.index.json")
    if os.path.isfile(index):
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise mismatch(index, "weight_map", "names of tensors and their files", where)
        tensors = {}
        for file in sorted(set(map(str, where.values()))):
            if os.path.basename(file) != file:
                raise mismatch(index, "weight_map", "files beside the index", file)
            for name, tensor in read_safetensors(os.path.join(directory, file)).items():
                if where.get(name) == file:
                    tensors[name] = tensor
        for name, file in where.items():
            if name not in tensors:
                raise mismatch(os.path.join(directory, file), name, "the tensor the index names", "no such tensor")
        return tensors
    if os.path.isfile(single):
        return read_safetensors(single)
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    if any(n.startswith("pytorch_model") and n.endswith(".bin") for n in names):
        raise Refused(
            f"{directory}: only pytorch_model.bin, which is a pickle: reading one can run any code. Convert it where you trust it: "
            "safetensors.torch.save_file(torch.load('pytorch_model.bin', weights_only=True), 'model.safetensors')"
        )
    if any(n.endswith(".safetensors") for n in names):
        raise Refused(f"{directory}: shards without model.safetensors.index.json")
    raise Refused(f"{directory}: no model.safetensors and no model.safetensors.index.json")


# ---------------------------------------------------------------- config.json


class Config:
    """What config.json says, checked."""

    def __init__(self, path):
        self.path, self.json = path, read_json(path)
        kind = self.json.get("model_type")
        if kind not in ("longllama", "llama"):
            raise mismatch(path, "model_type", "longllama or llama", kind)
        if self.json.get("hidden_act", "silu") != "silu":
            raise mismatch(path, "hidden_act", "silu", self.json["hidden_act"])
        self.width = self.size("hidden_size")
        self.ffn = self.size("intermediate_size")
        self.layers = self.size("num_hidden_layers")
        self.heads = self.size("num_attention_heads")
        self.heads_kv = self.size("num_key_value_heads", self.heads)
        self.vocab = self.size("vocab_size")
        self.context = self.size("max_position_embeddings", 2048)
        if self.heads % self.heads_kv:
            raise mismatch(path, "num_key_value_heads", f"a divisor of {self.heads}", self.heads_kv)
        if "head_dim" not in self.json and self.width % self.heads:
            raise mismatch(path, "num_attention_heads", f"a divisor of hidden_size {self.width}", self.heads)
        self.head = self.size("head_dim", self.width // self.heads)
        if self.head % 2:
            raise mismatch(path, "head_dim", "an even number", self.head)
        self.epsilon = self.number("rms_norm_eps", 1e-6)
        rope, scaling = self.json.get("rope_parameters") or {}, self.json.get("rope_scaling") or {}
        if not isinstance(rope, dict) or not isinstance(scaling, dict):
            raise mismatch(path, "rope_scaling, rope_parameters", "objects", f"{scaling!r}, {rope!r}")
        self.theta = self.number("rope_theta", rope.get("rope_theta", 10000.0))
        self.rope = scaling or {k: v for k, v in rope.items() if k != "rope_theta"}
        self.tied = bool(self.json.get("tie_word_embeddings", False))
        self.fot = self.read_fot()

    def size(self, key, default=None):
        value = self.json.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 1 << 31:
            raise mismatch(self.path, key, "a whole number above 0", value)
        return value

    def number(self, key, default):
        value = self.json.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise mismatch(self.path, key, "a number above 0", value)
        return float(value)

    def read_fot(self):
        """The keys below `llama.fot`, or None where no layer has memory."""
        layers = self.json.get("mem_layers") or []
        if not isinstance(layers, list) or any(type(n) is not int or not 0 <= n < self.layers for n in layers):
            raise mismatch(self.path, "mem_layers", f"layers below {self.layers}", layers)
        if not layers:
            return None
        if self.context < 2:
            raise mismatch(self.path, "max_position_embeddings", "2 or more (the window)", self.context)
        if self.rope.get("rope_type", self.rope.get("type", "default")) != "default":
            raise mismatch(self.path, "rope_scaling", "none in a model with memory layers", self.rope)
        dtype = str(self.json.get("mem_dtype", "bfloat16"))
        short = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(dtype[6:] if dtype.startswith("torch.") else dtype)
        if short is None:
            raise mismatch(self.path, "mem_dtype", "bfloat16, float16 or float32", dtype)
        positionals = self.json.get("mem_positionals", True)
        if type(positionals) is not bool:
            raise mismatch(self.path, "mem_positionals", "true or false", positionals)
        return {"layers": sorted(set(layers)), "positionals": positionals, "dtype": short, "last": self.size("last_context_length", 1024)}

    def rope_metadata(self):
        """(metadata, frequency divisors or None) of the scaling."""
        kind = self.rope.get("rope_type", self.rope.get("type", "default"))
        if kind == "default":
            return [], None
        try:
            factor = float(self.rope["factor"])
            if kind == "linear":
                return [("llama.rope.scaling.type", "str", "linear"), ("llama.rope.scaling.factor", "f32", factor)], None
            if kind == "llama3":
                low, high = float(self.rope["low_freq_factor"]), float(self.rope["high_freq_factor"])
                return [], self.llama3_divisors(factor, low, high, float(self.rope["original_max_position_embeddings"]))
        except (KeyError, TypeError, ValueError) as e:
            raise mismatch(self.path, "rope_scaling", f"the numbers of {kind}", f"{self.rope} ({e!r})") from None
        raise mismatch(self.path, "rope_scaling", "default, linear or llama3", kind)

    def llama3_divisors(self, factor, low, high, original):
        """Llama 3.1: slow pairs are interpolated, fast ones left alone, those between mixed by their wavelength."""
        turns = original * self.theta ** (-np.arange(0, self.head, 2) / self.head) / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1.0 / ((1.0 - kept) / factor + kept)).astype("<f4")


# ---------------------------------------------------------------- tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"


def fields(data, what):
    """The (number, value) pairs of a protobuf message: int for varints, bytes for the rest."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise Refused(f"{what}: a broken number at byte {at}")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, varint()
            continue
        length = {1: lambda: 8, 2: varint, 5: lambda: 4}.get(wire)
        if length is None:
            raise mismatch(what, f"byte {at}", "a wire type of 0, 1, 2 or 5", wire)
        length = length()
        if length > len(data) - at:
            raise mismatch(what, f"byte {at}", f"{length} bytes", f"{len(data) - at}")
        yield tag >> 3, bytes(data[at : at + length])
        at += length


def signed(value):
    return value - (1 << 64) if value >> 63 else value


class Vocabulary:
    """What goes into `tokenizer.ggml.*`."""

    def __init__(self, file, model):
        self.file, self.model = file, model
        self.tokens, self.scores, self.types = [], [], []
        self.merges, self.pre = None, None
        self.flags, self.ids = {}, {}

    def find(self, text):
        return self.tokens.index(text) if text in self.tokens else None

    def put(self, token, text, kind, score=0.0):
        """Sets a token, with holes before it where ids are left out."""
        if type(token) is not int or not 0 <= token < 1 << 24:
            raise mismatch(self.file, f"id of token {text!r}", "a whole number", token)
        while len(self.tokens) <= token:
            self.tokens.append(f"<unused_{len(self.tokens)}>".encode())
            self.types.append(UNUSED)
            self.scores.append(-1e9)
        self.tokens[token], self.types[token], self.scores[token] = text.encode() if isinstance(text, str) else text, kind, score

    def finish(self, vocab, config):
        """One token for each row of the embedding, each once."""
        if len(self.tokens) > vocab:
            raise mismatch(self.file, "tokens", f"at most vocab_size {vocab}", len(self.tokens))
        if len(self.tokens) < vocab:
            note(f"{self.file}: {len(self.tokens)} tokens for {vocab} rows of the embedding; the rest are marked unused")
            self.put(vocab - 1, f"<unused_{vocab - 1}>", UNUSED, -1e9)
        seen = {}
        for i, text in enumerate(self.tokens):
            if seen.setdefault(text, i) != i:
                raise mismatch(self.file, f"token {i}", "each text once", f"{text!r}, which is token {seen[text]} too")
        for role in ("bos", "eos"):
            ids = config.json.get(f"{role}_token_id")
            ids = ids[:1] if isinstance(ids, list) else [ids]
            if role not in self.ids and type(ids[0]) is int and 0 <= ids[0] < vocab:
                self.ids[role] = ids[0]

    def apply_tokenizer_config(self, directory):
        """Added tokens, roles and flags of tokenizer_config.json and added_tokens.json; returns the chat template."""
        path = os.path.join(directory, "added_tokens.json")
        for text, token in (read_json(path) if os.path.isfile(path) else {}).items():
            if type(token) is int and token >= len(self.tokens):
                self.put(token, text, USER_DEFINED)
        path = os.path.join(directory, "tokenizer_config.json")
        config = read_json(path) if os.path.isfile(path) else {}
        for token, entry in (config.get("added_tokens_decoder") or {}).items():
            if not token.isdigit() or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
                raise mismatch(path, f"added_tokens_decoder.{token}", "an id and its content", entry)
            token = int(token)
            if token >= len(self.tokens) or self.types[token] in (UNUSED, USER_DEFINED):
                self.put(token, entry["content"], CONTROL if entry.get("special") else USER_DEFINED)
        for role in ("bos", "eos", "unk", "pad"):
            text = config.get(f"{role}_token")
            text = text.get("content") if isinstance(text, dict) else text
            token = self.find(text.encode()) if isinstance(text, str) else None
            if token is not None:
                self.ids[role] = token
        for flag in ("add_bos_token", "add_eos_token"):
            if type(config.get(flag)) is bool:
                self.flags[flag] = config[flag]
        template = config.get("chat_template")
        if isinstance(template, list):
            template = next((t.get("template") for t in template if t.get("name") == "default"), None)
        path = os.path.join(directory, "chat_template.jinja")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as f:
                template = f.read()
        return template


def read_sentencepiece(path):
    """tokenizer.model"""
    with open(path, "rb") as f:
        data = f.read()
    v = Vocabulary(path, "llama")
    trainer, normalizer = {}, {}
    for number, value in fields(memoryview(data), path):
        if number == 1 and isinstance(value, bytes):
            piece = dict(fields(value, f"{path}: piece {len(v.tokens)}"))
            text, score, kind = piece.get(1, b""), piece.get(2, bytes(4)), piece.get(3, NORMAL)
            if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or kind not in range(1, 7):
                raise mismatch(path, f"piece {len(v.tokens)}", "a text, a score and a type of 1 to 6", piece)
            v.put(len(v.tokens), text, kind, struct.unpack("<f", score)[0])
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(fields(value, f"{path}: trainer_spec"))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(fields(value, f"{path}: normalizer_spec"))
    if not v.tokens:
        raise mismatch(path, "pieces", "at least one", "none")
    if trainer.get(3, 1) != 2:
        raise mismatch(path, "trainer_spec.model_type", "2 (BPE)", trainer.get(3, 1))
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise mismatch(path, "spaces", "escaped, and before words", "otherwise")
    if normalizer.get(2):
        note(f"{path}: the character map {normalizer.get(1, b'').decode()!r} is left out: only text it does not change is read the same")
    for role, field, default in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1)):
        token = signed(trainer.get(field, default))
        if 0 <= token < len(v.tokens):
            v.ids[role] = token
    v.flags = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": bool(normalizer.get(3, 1)),
        "remove_extra_whitespaces": bool(normalizer.get(4, 1)),
    }
    return v


def parts(entry):
    """A normalizer, pre-tokenizer, decoder or post-processor of tokenizer.json, sequences opened."""
    if not isinstance(entry, dict):
        return []
    inner = entry.get("normalizers") or entry.get("pretokenizers") or entry.get("decoders") or entry.get("processors")
    return [p for e in inner for p in parts(e)] if entry.get("type") == "Sequence" and inner else [entry]


def read_tokenizer_json(path, pre):
    """tokenizer.json: BPE over bytes, or over text as SentencePiece does it."""
    whole = read_json(path)
    model = whole.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise mismatch(path, "model.type", "BPE", model.get("type"))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model.get("merges") or []]
    if any(len(m) != 2 for m in merges):
        raise mismatch(path, "model.merges", "pairs", next(m for m in merges if len(m) != 2))
    pieces = {key: parts(whole.get(key)) for key in ("normalizer", "pre_tokenizer", "decoder", "post_processor")}
    kinds = {p.get("type") for key in ("pre_tokenizer", "decoder") for p in pieces[key]}
    byte_level = "ByteLevel" in kinds
    v = Vocabulary(path, "gpt2" if byte_level else "llama")
    for text, token in model["vocab"].items():
        v.put(token, text, NORMAL)
    for entry in whole.get("added_tokens") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise mismatch(path, "added_tokens", "ids and contents", entry)
        v.put(entry.get("id"), entry["content"], CONTROL if entry.get("special") else USER_DEFINED)
    if byte_level:
        if not pre:
            raise Refused(
                f"{path}: a byte-level vocabulary: GGUF names how text is split before merging, this file only describes it. "
                "Name it with --pre: llama-bpe (Llama 3), gpt-2, qwen2, smollm, starcoder, deepseek-llm ..."
            )
        v.pre, v.merges = pre, [f"{a} {b}" for a, b in merges]
    else:
        spm_from_merges(v, path, model, merges, pieces)
    template = next((p for p in pieces["post_processor"] if p.get("type") == "TemplateProcessing"), None)
    first = ((template or {}).get("single") or [{}])[0]
    if template is not None:
        v.flags["add_bos_token"] = "SpecialToken" in first
    if "SpecialToken" in first:
        bos = v.find(str(first["SpecialToken"].get("id")).encode())
        v.ids.update({} if bos is None else {"bos": bos})
    return v


def spm_from_merges(v, path, model, merges, pieces):
    """Scores under which merging by score is merging by the list; refused where there are none."""
    spaced = any(p.get("type") == "Replace" and p.get("content") == SPACE for p in pieces["normalizer"])
    metaspace = [p for p in pieces["pre_tokenizer"] if p.get("type") == "Metaspace"]
    if not model.get("byte_fallback") or not (spaced or metaspace):
        raise Refused(f"{path}: neither a byte-level BPE nor one as SentencePiece makes it (byte_fallback, spaces as {SPACE})")
    special = {i for i, kind in enumerate(v.types) if kind != NORMAL}
    for i, text in enumerate(v.tokens):
        if len(text) == 6 and text.startswith(b"<0x") and text.endswith(b">") and i not in special:
            v.types[i] = BYTE
            special.add(i)
    unknown = v.find((model.get("unk_token") or "").encode())
    if unknown is not None:
        v.types[unknown], v.ids["unk"] = UNKNOWN, unknown
    vocab, pairs, rank = model["vocab"], set(merges), {}
    last = None
    for a, b in merges:
        if a + b not in vocab:
            raise mismatch(path, f"merge {a!r} {b!r}", "a result in the vocabulary", "none")
        if a + b != last and a + b in rank:
            raise Refused(f"{path}: token {a + b!r} is merged at two places of the list: no scores say that. Use tokenizer.model")
        last = a + b
        rank.setdefault(last, len(rank))
    for text, token in vocab.items():
        v.scores[token] = -float(rank.get(text, 0))
        splits = () if token in special or token == unknown else range(1, len(text))
        for at in splits:
            pair = (text[:at], text[at:])
            if pair[0] in vocab and pair[1] in vocab and pair not in pairs:
                raise Refused(
                    f"{path}: {pair[0]!r} and {pair[1]!r} make token {text!r}, but no merge says so: no scores say that. "
                    "Use tokenizer.model"
                )
    prepends = any(p.get("type") == "Prepend" for p in pieces["normalizer"])
    scheme = metaspace[0].get("prepend_scheme", "always") if metaspace else "never"
    v.flags["add_space_prefix"] = prepends or scheme != "never"


def read_tokenizer(directory, config, pre):
    """(vocabulary, chat template)"""
    model, whole = (os.path.join(directory, n) for n in ("tokenizer.model", "tokenizer.json"))
    if os.path.isfile(model):
        v = read_sentencepiece(model)
    elif os.path.isfile(whole):
        v = read_tokenizer_json(whole, pre)
    else:
        raise Refused(f"{directory}: neither tokenizer.model nor tokenizer.json")
    template = v.apply_tokenizer_config(directory)
    v.finish(config.vocab, config)
    return v, template


# ---------------------------------------------------------------- tensors

TYPE_IDS = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}


def to_f32(raw, dtype):
    if dtype == "BF16":
        return (raw.astype("<u4") << 16).view("<f4")
    return raw.astype("<f4")


def to_bf16(x):
    """Round to nearest, ties to even."""
    bits = x.view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def to_q8_0(x):
    """Blocks of 32: an f16 scale, then 32 i8."""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    out = np.empty(len(blocks), dtype=[("d", "<f2"), ("q", "i1", 32)])
    out["d"] = scale[:, 0]
    out["q"] = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    return out


class OutputTensor:
    """A tensor of the GGUF: where it comes from, what it becomes. `heads` > 0: rows are reordered per head."""

    def __init__(self, name, source, wanted, heads=0, data=None):
        self.name, self.source, self.heads, self.data = name, source, heads, data
        self.shape = source.shape if source else data.shape
        self.type = "f32" if len(self.shape) == 1 else wanted
        if self.type == "q8_0" and self.shape[-1] % 32:
            note(f"{name}: rows of {self.shape[-1]} are no multiple of 32: stored as f16")
            self.type = "f16"
        n = math.prod(self.shape)
        self.bytes = {"f32": n * 4, "f16": n * 2, "bf16": n * 2, "q8_0": n // 32 * 34}[self.type]

    def chunks(self):
        """The encoded bytes, some MiB at a time."""
        if self.source is None:
            yield self.data.tobytes()
            return
        raw = self.source.raw()
        if self.heads:
            # rotate_half pairs dimension i of a head with i + d/2, GGUF's llama 2i with 2i + 1.
            rows, rest = raw.shape[0], raw.shape[1:]
            raw = raw.reshape(self.heads, 2, rows // self.heads // 2, *rest).swapaxes(1, 2).reshape(rows, *rest)
        step = max(1, (4 << 20) // max(1, math.prod(self.shape[1:])))
        for at in range(0, self.shape[0], step):
            x = np.ascontiguousarray(to_f32(raw[at : at + step], self.source.dtype))
            self.check(np.isfinite(x).all(), "finite numbers", "NaN or infinity")
            largest = float(np.abs(x).max()) if x.size else 0.0
            limit = {"f16": 65504.0, "q8_0": 65504.0 * 127, "bf16": 3.389e38}.get(self.type, math.inf)
            self.check(largest <= limit, f"numbers that fit {self.type}", largest)
            yield {"f32": lambda a: a, "f16": lambda a: a.astype("<f2"), "bf16": to_bf16, "q8_0": to_q8_0}[self.type](x).tobytes()

    def check(self, good, expected, found):
        if not good:
            raise mismatch(self.source.file, self.source.name, expected, found)


def map_tensors(tensors, c, wanted, divisors):
    """The tensors of the output, in its order; every shape is checked, and nothing may be left over."""
    q, kv = c.heads * c.head, c.heads_kv * c.head
    left, out = dict(tensors), []
    files = sorted({t.file for t in tensors.values()})
    where = files[0] if len(files) == 1 else f"{os.path.dirname(c.path)}: all shards"

    def take(source, name, shape, heads=0, optional=False):
        tensor = left.pop(source, None)
        if tensor is None:
            if optional:
                return
            raise mismatch(where, source, f"shape {list(shape)}", "no such tensor")
        if tensor.shape != shape:
            raise mismatch(tensor.file, source, f"shape {list(shape)}", f"shape {list(tensor.shape)}")
        if tensor.dtype not in ELEMENT_BYTES:
            raise mismatch(tensor.file, source, "F32, F16 or BF16", tensor.dtype)
        out.append(OutputTensor(name, tensor, wanted, heads))

    take("model.embed_tokens.weight", "token_embd.weight", (c.vocab, c.width))
    if divisors is not None:
        out.append(OutputTensor("rope_freqs.weight", None, "f32", data=divisors))
    for l in range(c.layers):
        theirs, ours = f"model.layers.{l}.", f"blk.{l}."
        take(theirs + "input_layernorm.weight", ours + "attn_norm.weight", (c.width,))
        for source, name, shape, heads in (
            ("self_attn.q_proj", "attn_q", (q, c.width), c.heads),
            ("self_attn.k_proj", "attn_k", (kv, c.width), c.heads_kv),
            ("self_attn.v_proj", "attn_v", (kv, c.width), 0),
            ("self_attn.o_proj", "attn_output", (c.width, q), 0),
            ("mlp.gate_proj", "ffn_gate", (c.ffn, c.width), 0),
            ("mlp.up_proj", "ffn_up", (c.ffn, c.width), 0),
            ("mlp.down_proj", "ffn_down", (c.width, c.ffn), 0),
        ):
            take(f"{theirs}{source}.weight", f"{ours}{name}.weight", shape, heads)
            take(f"{theirs}{source}.bias", f"{ours}{name}.bias", shape[:1], heads, optional=True)
        take(theirs + "post_attention_layernorm.weight", ours + "ffn_norm.weight", (c.width,))
        # Older checkpoints store the frequencies, which the configuration gives.
        left.pop(theirs + "self_attn.rotary_emb.inv_freq", None)
    take("model.norm.weight", "output_norm.weight", (c.width,))
    if c.tied:
        left.pop("lm_head.weight", None)
    else:
        take("lm_head.weight", "output.weight", (c.vocab, c.width))
    for name, tensor in left.items():
        raise mismatch(tensor.file, name, "a tensor of a LLaMA with the sizes of config.json", f"shape {list(tensor.shape)}")
    return out


# ---------------------------------------------------------------- GGUF

ALIGNMENT = 32
VALUE_TYPES = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?"), "str": (8, None)}


def encode_string(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def encode_value(kind, value):
    return encode_string(value) if kind == "str" else struct.pack(VALUE_TYPES[kind][1], value)


def encode_entry(key, kind, value):
    head = encode_string(key)
    if kind.startswith("["):
        kind = kind[1:-1]
        body = b"".join(encode_value(kind, v) for v in value)
        return head + struct.pack("<IIQ", 9, VALUE_TYPES[kind][0], len(value)) + body
    return head + struct.pack("<I", VALUE_TYPES[kind][0]) + encode_value(kind, value)


def aligned(n):
    return -(-n // ALIGNMENT) * ALIGNMENT


def encode_header(metadata, tensors):
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    out += [encode_entry(*entry) for entry in metadata]
    offset = 0
    for t in tensors:
        dims = t.shape[::-1]
        out.append(encode_string(t.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, TYPE_IDS[t.type], offset))
        offset += aligned(t.bytes)
    header = b"".join(out)
    return header + bytes(aligned(len(header)) - len(header))


def write_gguf(path, metadata, tensors):
    """Writes beside `path`, then renames: `path` is never half a file."""
    temporary = f"{path}.{os.getpid()}.tmp"
    total, done = sum(aligned(t.bytes) for t in tensors), 0
    end = "\r" if sys.stderr.isatty() else "\n"
    try:
        with open(temporary, "xb") as f:
            f.write(encode_header(metadata, tensors))
            for i, t in enumerate(tensors):
                written = sum(f.write(chunk) for chunk in t.chunks())
                if written != t.bytes:
                    raise mismatch(path, t.name, f"{t.bytes} bytes", written)
                f.write(bytes(aligned(written) - written))
                done += aligned(written)
                print(f"[{i + 1}/{len(tensors)}] {done / max(total, 1):4.0%} {t.name:<40}", end=end, file=sys.stderr)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise Refused(f"{path}: {e}") from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def describe(c, v, template, name, wanted, rope):
    """The metadata, as (key, type, value)."""
    m = [
        ("general.architecture", "str", "llama"),
        ("general.name", "str", name),
        ("general.file_type", "u32", FILE_TYPES[wanted]),
        ("general.quantization_version", "u32", 2),
        ("llama.context_length", "u32", c.context),
        ("llama.embedding_length", "u32", c.width),
        ("llama.block_count", "u32", c.layers),
        ("llama.feed_forward_length", "u32", c.ffn),
        ("llama.attention.head_count", "u32", c.heads),
        ("llama.attention.head_count_kv", "u32", c.heads_kv),
        ("llama.attention.key_length", "u32", c.head),
        ("llama.attention.value_length", "u32", c.head),
        ("llama.attention.layer_norm_rms_epsilon", "f32", c.epsilon),
        ("llama.rope.dimension_count", "u32", c.head),
        ("llama.rope.freq_base", "f32", c.theta),
        ("llama.vocab_size", "u32", c.vocab),
        *rope,
    ]
    if c.fot:
        m += [
            ("llama.fot.memory_layers", "[u32]", c.fot["layers"]),
            ("llama.fot.memory_positionals", "bool", c.fot["positionals"]),
            ("llama.fot.window_length", "u32", c.context),
            ("llama.fot.last_context_length", "u32", c.fot["last"]),
            ("llama.fot.memory_dtype", "str", c.fot["dtype"]),
        ]
    m.append(("tokenizer.ggml.model", "str", v.model))
    if v.pre:
        m.append(("tokenizer.ggml.pre", "str", v.pre))
    m += [("tokenizer.ggml.tokens", "[str]", v.tokens), ("tokenizer.ggml.token_type", "[i32]", v.types)]
    m.append(("tokenizer.ggml.merges", "[str]", v.merges) if v.merges is not None else ("tokenizer.ggml.scores", "[f32]", v.scores))
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    m += [(f"tokenizer.ggml.{names[role]}_token_id", "u32", i) for role, i in v.ids.items()]
    m += [(f"tokenizer.ggml.{flag}", "bool", on) for flag, on in v.flags.items()]
    if isinstance(template, str):
        m.append(("tokenizer.chat_template", "str", template))
    return m


def main():
    parser = argparse.ArgumentParser(description="Converts a LongLLaMA or LLaMA checkpoint to GGUF.")
    parser.add_argument("checkpoint", help="directory with config.json, safetensors and a tokenizer")
    parser.add_argument("output", help="the GGUF file to write")
    parser.add_argument("--type", choices=sorted(TYPE_IDS), default="f16", help="of the matrices; vectors stay f32 (default: f16)")
    parser.add_argument("--pre", help="how a byte-level vocabulary splits text: tokenizer.ggml.pre (llama-bpe, gpt-2, qwen2 ...)")
    parser.add_argument("--name", help="general.name (default: the directory's)")
    parser.add_argument("--dry-run", action="store_true", help="check everything and list what would be written")
    args = parser.parse_args()
    config = Config(os.path.join(args.checkpoint, "config.json"))
    rope, divisors = config.rope_metadata()
    tensors = map_tensors(read_checkpoint(args.checkpoint), config, args.type, divisors)
    vocabulary, template = read_tokenizer(args.checkpoint, config, args.pre)
    name = args.name or os.path.basename(os.path.abspath(args.checkpoint))
    metadata = describe(config, vocabulary, template, name, args.type, rope)
    total = sum(t.bytes for t in tensors)
    if args.dry_run:
        for key, kind, value in metadata:
            print(f"{key} = {f'{len(value)} entries' if kind.startswith('[') and len(value) > 64 else repr(value)}")
        for t in tensors:
            print(f"{t.name}: {t.type} {list(t.shape)}")
        print(f"{len(tensors)} tensors, {total} bytes; nothing written")
        return
    write_gguf(args.output, metadata, tensors)
    memory = f"memory in layers {config.fot['layers']}" if config.fot else "no memory layers"
    note(f"{args.output}: {len(tensors)} tensors, {total} bytes, {memory}")


if __name__ == "__main__":
    try:
        main()
    except Refused as e:
        sys.exit(f"convert_longllama: error: {e}")
