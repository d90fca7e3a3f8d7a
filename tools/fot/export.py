"""Writes a checkpoint as a GGUF file: architecture llama, f32, with llama.fot.* metadata and a vocabulary of bytes.

    python3 export.py CHECKPOINT.npz OUT.F32.gguf [--name NAME] [--ordinary]

`--ordinary` leaves out `llama.fot.*`: a LLaMA without memory, which is what such a checkpoint is as long as its memory is empty, if its memory layer
has positions. `loci quantize OUT.F32.gguf OUT.Q8_0.gguf Q8_0` then makes the files that are shipped.
"""
import argparse
import sys
from pathlib import Path

import numpy as np

import data
import model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import convert_longllama as gguf  # the GGUF writer

# A question as the training text puts it, so that chat programs can ask.
CHAT = "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\nA: {% elif m['role'] == 'assistant' %}{{ m['content'] }}\n" \
       "{% endif %}{% endfor %}"


class Tensor:
    type = "f32"

    def __init__(self, name, values):
        self.name, self.values = name, np.ascontiguousarray(values, np.float32)
        self.shape, self.bytes = self.values.shape, self.values.nbytes

    def chunks(self):
        yield self.values.astype("<f4").tobytes()


def pairs(weight, head_dim):
    """Rows of a query or key matrix in GGUF's order: RoPE turns 2 i and 2 i + 1 there, i and i + head_dim / 2 here."""
    w = np.asarray(weight)
    return w.reshape(-1, 2, head_dim // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def tensors(parameters, c):
    yield Tensor("token_embd.weight", parameters["token_embd"])
    for i, layer in enumerate(parameters["layers"]):
        for name, values in layer.items():
            yield Tensor(f"blk.{i}.{name}.weight", pairs(values, c.head_dim) if name in ("attn_q", "attn_k") else values)
    yield Tensor("output_norm.weight", parameters["output_norm"])
    yield Tensor("output.weight", parameters["output"])


def metadata(c, name):
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256  # unknown, control, bytes
    # SentencePiece writes a space as U+2581: that must be the one token, not the three bytes of its spelling.
    tokens[data.FIRST_BYTE + 32], types[data.FIRST_BYTE + 32] = "\u2581", 1
    assert len(tokens) == c.vocabulary and data.FIRST_BYTE == 3
    return [
        ("general.architecture", "str", "llama"),
        ("general.name", "str", name),
        ("general.description", "str", "A small Focused Transformer over bytes: finds pass keys and records in a memory of a million tokens"),
        ("general.license", "str", "MIT OR Apache-2.0"),
        ("llama.vocab_size", "u32", c.vocabulary),
        ("llama.context_length", "u32", c.window),
        *([] if c.interpolation == 1 else [
            ("llama.rope.scaling.type", "str", "linear"),
            ("llama.rope.scaling.factor", "f32", c.interpolation),
            ("llama.rope.scaling.original_context_length", "u32", int(c.window / c.interpolation)),
        ]),
        ("llama.embedding_length", "u32", c.width),
        ("llama.block_count", "u32", c.layers),
        ("llama.feed_forward_length", "u32", c.feed_forward),
        ("llama.attention.head_count", "u32", c.heads),
        ("llama.attention.head_count_kv", "u32", c.kv_heads),
        ("llama.attention.key_length", "u32", c.head_dim),
        ("llama.attention.value_length", "u32", c.head_dim),
        ("llama.attention.layer_norm_rms_epsilon", "f32", c.epsilon),
        ("llama.rope.dimension_count", "u32", c.head_dim),
        ("llama.rope.freq_base", "f32", c.rope_theta),
        ("llama.fot.memory_layers", "[u32]", [c.memory_layer]),
        ("llama.fot.memory_positionals", "bool", c.memory_positionals),
        ("llama.fot.window_length", "u32", c.window),
        ("llama.fot.last_context_length", "u32", c.window // 2),
        ("llama.fot.memory_dtype", "str", "f16"),
        ("tokenizer.ggml.model", "str", "llama"),
        ("tokenizer.ggml.tokens", "[str]", tokens),
        ("tokenizer.ggml.scores", "[f32]", [0.0] * len(tokens)),
        ("tokenizer.ggml.token_type", "[i32]", types),
        ("tokenizer.ggml.bos_token_id", "u32", 1),
        ("tokenizer.ggml.eos_token_id", "u32", 2),
        ("tokenizer.ggml.unknown_token_id", "u32", 0),
        ("tokenizer.ggml.add_bos_token", "bool", False),
        ("tokenizer.ggml.add_eos_token", "bool", False),
        ("tokenizer.ggml.add_space_prefix", "bool", False),
        ("tokenizer.chat_template", "str", CHAT),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--name", default="loci-fot")
    parser.add_argument("--ordinary", action="store_true", help="without memory layers")
    options = parser.parse_args()
    parameters, config = model.load(options.checkpoint)
    if options.ordinary and not config.memory_positionals:
        parser.error("without positions in its memory layer it is no ordinary LLaMA")
    entries = [e for e in metadata(config, options.name) if not (options.ordinary and e[0].startswith("llama.fot."))]
    gguf.write_gguf(options.out, entries, list(tensors(parameters, config)))


if __name__ == "__main__":
    main()
