"""What examples/python/loci.py promises. Arguments: MODEL.gguf DIRECTORY. Says nothing and ends with 0."""
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../examples/python"))
import loci

path, directory = sys.argv[1:]


def raises(kind, work):
    try:
        work()
    except kind as e:
        return e
    raise AssertionError(f"{kind.__name__} was not raised")


error = raises(loci.Error, lambda: loci.Model(os.path.join(directory, "missing.gguf")))
assert "missing.gguf" in str(error) and "LOCI_IO" in str(error), error

model = loci.Model(path)
tokens = model.tokenize("the key is here")
assert tokens and "the key is here" in model.detokenize(tokens)
assert model.tokenize("") == [] and model.detokenize([]) == ""
assert model.chat([("user", "hello")]) == "<s>[user]hello[assistant]"

error = raises(TypeError, lambda: loci.Session(model, contxt=5))
assert "context_length" in str(error), error
session = loci.Session(model, context_length=256)
session.prompt("the key is")
first = "".join(session.generate(max_tokens=12, ignore_eos=1))
assert session.finish == "length", session.finish
session.reset()
session.prompt("the key is")
assert "".join(session.generate(max_tokens=12, ignore_eos=1)) == first

# A loop that is left, and one that is cancelled from another thread.
session.reset()
session.prompt("the key is")
for text in session.generate(max_tokens=200, ignore_eos=1):
    break
session.reset()
session.prompt("the key is")
stopper = threading.Thread(target=lambda: (time.sleep(0.05), session.cancel()))
stopper.start()
for text in session.generate(max_tokens=240, ignore_eos=1):
    time.sleep(0.01)
stopper.join()
assert session.finish == "cancelled", session.finish

# Progress: what it raises comes out, False stops.
long = "the key is here and there. " * 5
seen = []
session.reset()
session.prompt(long, progress=lambda done, total: seen.append((done, total)))
assert seen and seen[-1][0] == seen[-1][1] == len(session), seen


def fail(done, total):
    raise KeyError("mine")


session.reset()
raises(KeyError, lambda: session.prompt(long, progress=fail))
batches = loci.Session(model, batch=8)
error = raises(loci.Error, lambda: batches.prompt(long, progress=lambda done, total: False))
assert error.status == loci.CANCELLED and len(batches) == 8, (error, len(batches))

vector = session.embed(tokens)
assert abs(sum(v * v for v in vector) - 1) < 1e-4 and vector != session.embed(tokens, last=True)

file = os.path.join(directory, "python.lmem")
with loci.Memory.create(model, file) as memory:
    session.remember(memory, "the key is under the stone. " * 30, source="notes")
    memory.commit()
    held = len(memory)
memory = loci.Memory.open(model, file, read_only=True)
assert len(memory) == held > 0
session.attach(memory)
session.prompt("where is the key?")
passages = session.passages()
assert passages and all(source == "notes" for source, *_ in passages), passages
session.close()
session.close()
