"""loci from Python, by ctypes: one file, nothing to build. include/loci.h is the manual; what is not wrapped here is reached by `lib`.

    import loci
    with loci.Model("model.gguf") as model, loci.Session(model) as session:
        session.prompt(model.chat([("user", "Why is the sky blue?")]))
        for text in session.generate(max_tokens=200):
            print(text, end="", flush=True)

The library is looked for as LOCI_LIBRARY says, then as libloci.so.0 (libloci.dylib, loci.dll) where the system looks.
"""
import ctypes as c
import os
import sys

_NAME = {"darwin": "libloci.dylib", "win32": "loci.dll"}.get(sys.platform, "libloci.so.0")
lib = c.CDLL(os.environ.get("LOCI_LIBRARY", _NAME))

ADD_SPECIAL, PARSE_SPECIAL, PRINT_SPECIAL = 1, 2, 4
BUFFER_TOO_SMALL, CANCELLED = -3, -12
FINISH = ["none", "eos", "stop", "length", "cancelled", "callback", "error"]


class Error(Exception):
    """A status that is not LOCI_OK, and what loci_last_error() says."""

    def __init__(self, status):
        self.status = status
        super().__init__(f"{lib.loci_status_name(status).decode()}: {lib.loci_last_error().decode()}")


def check(status):
    if status != 0:
        raise Error(status)


class _Sized(c.Structure):
    """A struct that begins with its size; `made` asks the library for its defaults."""

    def __init__(self):
        super().__init__()
        self.struct_size = c.sizeof(self)

    @classmethod
    def made(cls, init, changes):
        options = cls()
        check(init(c.byref(options), c.c_size_t(c.sizeof(options))))
        known = {name for name, _ in cls._fields_}
        for name, value in changes.items():
            if name not in known:
                raise TypeError(f"no option {name!r}; there are {', '.join(sorted(known - {'struct_size', 'reserved'}))}")
            setattr(options, name, value)
        return options


class SessionOptions(_Sized):
    _fields_ = [("struct_size", c.c_size_t)] + [
        (n, c.c_uint32 if t == "u" else c.c_int32 if t == "i" else c.c_float)
        for n, t in [
            ("context_length", "u"), ("batch", "u"), ("threads", "u"), ("kv_codec", "i"), ("overflow", "i"), ("slide_block", "u"),
            ("last_context_length", "u"), ("memory_top_k", "u"), ("retrieved_blocks", "u"), ("rope_scaling", "i"), ("rope_factor", "f"),
            ("rope_original_context_length", "u"), ("rope_freq_base", "f"), ("rope_ext_factor", "f"), ("rope_attn_factor", "f"),
            ("rope_beta_fast", "f"), ("rope_beta_slow", "f"), ("reserved", "u"),
        ]
    ] + [("memory_budget_bytes", c.c_uint64), ("reselect_tokens", c.c_uint32), ("reserved_more", c.c_uint32)]


class SamplerOptions(_Sized):
    _fields_ = [
        ("struct_size", c.c_size_t), ("seed", c.c_uint64), ("logit_bias", c.c_void_p), ("logit_bias_count", c.c_size_t),
        ("temperature", c.c_float), ("top_k", c.c_uint32), ("top_p", c.c_float), ("min_p", c.c_float), ("typical_p", c.c_float),
        ("repetition_penalty", c.c_float), ("presence_penalty", c.c_float), ("frequency_penalty", c.c_float),
        ("penalty_last_n", c.c_uint32), ("reserved", c.c_uint32),
    ]


class GenerateOptions(_Sized):
    _fields_ = [
        ("struct_size", c.c_size_t), ("stop", c.POINTER(c.c_char_p)), ("stop_count", c.c_size_t), ("max_tokens", c.c_uint32),
        ("ignore_eos", c.c_int32), ("log_probabilities", c.c_int32), ("reserved", c.c_uint32),
    ]


class Piece(_Sized):
    _fields_ = [
        ("struct_size", c.c_size_t), ("text", c.POINTER(c.c_char)), ("text_len", c.c_size_t), ("alternatives", c.c_void_p),
        ("alternative_count", c.c_size_t), ("token", c.c_int32), ("log_probability", c.c_float), ("finish", c.c_int32),
        ("reserved", c.c_uint32),
    ]


class Passage(_Sized):
    _fields_ = [
        ("struct_size", c.c_size_t), ("source", c.c_char_p), ("first_token", c.c_uint64), ("token_count", c.c_uint64),
        ("memory", c.c_uint32), ("score", c.c_float),
    ]


_ProgressFn = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_uint64, c.c_uint64)
_size, _text, _out = c.c_size_t, c.c_char_p, c.c_void_p

# What ctypes would not guess: pointers wider than an int, results that are not an int.
for _name, _result, _arguments in [
    ("loci_version", c.c_char_p, []),
    ("loci_system_info", c.c_char_p, []),
    ("loci_last_error", c.c_char_p, []),
    ("loci_status_name", c.c_char_p, [c.c_int32]),
    ("loci_model_open", c.c_int32, [_text, _out, _out]),
    ("loci_model_free", None, [_out]),
    ("loci_model_name", c.c_char_p, [_out]),
    ("loci_model_vocab_len", c.c_uint64, [_out]),
    ("loci_model_embedding_length", c.c_uint64, [_out]),
    ("loci_model_tokenize", c.c_int32, [_out, _text, _size, c.c_uint32, _out, _size, _out]),
    ("loci_model_detokenize", c.c_int32, [_out, _out, _size, c.c_uint32, _out, _size, _out]),
    ("loci_model_chat_render", c.c_int32, [_out, _out, _out, _size, c.c_int32, _out, _size, _out]),
    ("loci_session_options_init", c.c_int32, [_out, _size]),
    ("loci_sampler_options_init", c.c_int32, [_out, _size]),
    ("loci_generate_options_init", c.c_int32, [_out, _size]),
    ("loci_session_new", c.c_int32, [_out, _out, _out]),
    ("loci_session_free", None, [_out]),
    ("loci_session_reset", c.c_int32, [_out]),
    ("loci_session_len", c.c_int32, [_out, _out]),
    ("loci_session_set_sampler", c.c_int32, [_out, _out]),
    ("loci_session_prompt_text", c.c_int32, [_out, _text, _size, c.c_uint32, _out, _out]),
    ("loci_session_logits", c.c_int32, [_out, _out, _out]),
    ("loci_session_embed", c.c_int32, [_out, _out, _size, c.c_int32, _out, _out, _out, _size, _out]),
    ("loci_session_start", c.c_int32, [_out, _out]),
    ("loci_session_next", c.c_int32, [_out, _out]),
    ("loci_session_cancel", c.c_int32, [_out]),
    ("loci_session_attach_memory", c.c_int32, [_out, _out, _out]),
    ("loci_session_remember_text", c.c_int32, [_out, _out, _text, _size, c.c_uint32, _text, _out, _out]),
    ("loci_session_passages", c.c_int32, [_out, _out]),
    ("loci_session_passage", c.c_int32, [_out, _size, _out]),
    ("loci_memory_create", c.c_int32, [_out, _text, _out]),
    ("loci_memory_open", c.c_int32, [_out, _text, _out]),
    ("loci_memory_open_read_only", c.c_int32, [_out, _text, _out]),
    ("loci_memory_commit", c.c_int32, [_out]),
    ("loci_memory_refresh", c.c_int32, [_out, _out]),
    ("loci_memory_len", c.c_int32, [_out, _out]),
    ("loci_memory_free", None, [_out]),
]:
    _function = getattr(lib, _name)
    _function.restype, _function.argtypes = _result, _arguments


def _written(write, element=c.c_char, spare=1):
    """What a function writes to a buffer, whose length it is asked for first."""
    length = c.c_size_t()
    status = write(None, 0, c.byref(length))
    if status != BUFFER_TOO_SMALL:
        check(status)
    buffer = (element * (length.value + spare))()
    check(write(buffer, len(buffer), c.byref(length)))
    return buffer[: length.value]


def _progress(callback):
    """A Python callable of (done, total) as C wants it: what it raises stops the work and is raised again, False stops it."""
    raised = []

    def call(_user, done, total):
        try:
            return 0 if callback(done, total) is not False else 1
        except BaseException as e:  # nothing may unwind through C
            raised.append(e)
            return 1

    function = _ProgressFn(call) if callback else None

    def run(work):
        status = work(c.cast(function, c.c_void_p) if function else None)
        if raised:
            raise raised[0]
        check(status)

    return run


class _Handle:
    """Freed by close(), at the end of a with block, or with the object."""

    _free = None

    def __init__(self, handle):
        self.handle = handle

    def close(self):
        handle, self.handle = getattr(self, "handle", None), None
        if handle:
            type(self)._free(handle)

    __del__ = close

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _made(function, *arguments):
    out = c.c_void_p()
    check(function(*arguments, c.byref(out)))
    return out.value


class Model(_Handle):
    _free = lib.loci_model_free

    def __init__(self, path):
        super().__init__(_made(lib.loci_model_open, os.fsencode(path), None))

    def tokenize(self, text, flags=0):
        text = text.encode()
        return _written(lambda *out: lib.loci_model_tokenize(self.handle, text, len(text), flags, *out), c.c_int32, 0)

    def detokenize(self, tokens, flags=0):
        array = (c.c_int32 * len(tokens))(*tokens)
        return _written(lambda *out: lib.loci_model_detokenize(self.handle, array, len(tokens), flags, *out)).decode()

    def chat(self, messages, add_generation_prompt=True):
        """[(role, content), ...] as the model's chat template writes it."""
        roles = (c.c_char_p * len(messages))(*[role.encode() for role, _ in messages])
        contents = (c.c_char_p * len(messages))(*[content.encode() for _, content in messages])
        return _written(
            lambda *out: lib.loci_model_chat_render(self.handle, roles, contents, len(messages), int(add_generation_prompt), *out)
        ).decode()


class Memory(_Handle):
    _free = lib.loci_memory_free

    @classmethod
    def create(cls, model, path):
        return cls(_made(lib.loci_memory_create, model.handle, os.fsencode(path)))

    @classmethod
    def open(cls, model, path, read_only=False):
        function = lib.loci_memory_open_read_only if read_only else lib.loci_memory_open
        return cls(_made(function, model.handle, os.fsencode(path)))

    def commit(self):
        check(lib.loci_memory_commit(self.handle))

    def refresh(self):
        """True if the writer of a memory opened read-only has committed something since."""
        more = c.c_int32()
        check(lib.loci_memory_refresh(self.handle, c.byref(more)))
        return bool(more.value)

    def __len__(self):
        length = c.c_uint64()
        check(lib.loci_memory_len(self.handle, c.byref(length)))
        return length.value


class Session(_Handle):
    _free = lib.loci_session_free

    def __init__(self, model, **options):
        """Options are the fields of loci_session_options."""
        options = SessionOptions.made(lib.loci_session_options_init, options)
        super().__init__(_made(lib.loci_session_new, model.handle, c.byref(options)))

    def set_sampler(self, **options):
        check(lib.loci_session_set_sampler(self.handle, c.byref(SamplerOptions.made(lib.loci_sampler_options_init, options))))

    def prompt(self, text, flags=PARSE_SPECIAL, progress=None):
        """The whole conversation so far; what is held already is not computed again. progress(done, total) may return False."""
        text = text.encode()
        _progress(progress)(lambda fn: lib.loci_session_prompt_text(self.handle, text, len(text), flags, fn, None))

    def generate(self, stop=(), **options):
        """Yields text as it becomes certain. Leave the loop when you have enough. Afterwards self.finish says why it ended."""
        options = GenerateOptions.made(lib.loci_generate_options_init, options)
        stops = (c.c_char_p * len(stop))(*[s.encode() for s in stop])
        options.stop, options.stop_count = c.cast(stops, c.POINTER(c.c_char_p)), len(stop)
        self.finish = None
        check(lib.loci_session_start(self.handle, c.byref(options)))
        while True:
            piece = Piece()
            check(lib.loci_session_next(self.handle, c.byref(piece)))
            if piece.text_len:
                yield c.string_at(piece.text, piece.text_len).decode()
            if piece.finish:
                self.finish = FINISH[piece.finish]
                return

    def cancel(self):
        """From any thread."""
        lib.loci_session_cancel(self.handle)

    def embed(self, tokens, last=False):
        array = (c.c_int32 * len(tokens))(*tokens)
        return _written(
            lambda *out: lib.loci_session_embed(self.handle, array, len(tokens), int(last), None, None, *out), c.c_float, 0
        )

    def remember(self, memory, text, source=None, flags=0, progress=None):
        """Reads a text into a memory; commit the memory to keep it."""
        text, label = text.encode(), source.encode() if source is not None else None
        _progress(progress)(
            lambda fn: lib.loci_session_remember_text(self.handle, memory.handle, text, len(text), flags, label, fn, None)
        )

    def attach(self, memory):
        check(lib.loci_session_attach_memory(self.handle, memory.handle, None))

    def passages(self):
        """(source, first token, tokens, score) of what was read from memory for the last prompt, most wanted first."""
        count = c.c_size_t()
        check(lib.loci_session_passages(self.handle, c.byref(count)))
        out = []
        for i in range(count.value):
            p = Passage()
            check(lib.loci_session_passage(self.handle, i, c.byref(p)))
            out.append((p.source.decode() if p.source else None, p.first_token, p.token_count, p.score))
        return out

    def reset(self):
        check(lib.loci_session_reset(self.handle))

    def __len__(self):
        length = c.c_size_t()
        check(lib.loci_session_len(self.handle, c.byref(length)))
        return length.value
