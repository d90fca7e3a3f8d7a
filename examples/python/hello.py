#!/usr/bin/env python3
"""hello.py MODEL.gguf [QUESTION]: an answer, as it is written."""
import sys

import loci

if len(sys.argv) < 2:
    sys.exit(f"usage: {sys.argv[0]} MODEL.gguf [QUESTION]")
with loci.Model(sys.argv[1]) as model, loci.Session(model) as session:
    session.prompt(model.chat([("user", sys.argv[2] if len(sys.argv) > 2 else "Why is the sky blue?")]))
    for text in session.generate(max_tokens=200):
        print(text, end="", flush=True)
    print()
