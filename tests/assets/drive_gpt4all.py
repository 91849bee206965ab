#!/usr/bin/env python3
"""Generates tokens through the Python package gpt4all: `READY`, then `OUT [token ids]` for each line of standard input.

drive_gpt4all.py DIRECTORY_OF_THE_PACKAGE MODEL
"""
import pathlib
import sys

package, path = sys.argv[1], pathlib.Path(sys.argv[2])
sys.path.insert(0, package)

import gpt4all

model = gpt4all.GPT4All(path.name, model_path=path.parent, allow_download=False, device="cpu", n_ctx=512, n_threads=1)
print("READY", flush=True)
for _ in sys.stdin:
    generated = []
    model.generate("a b c", max_tokens=24, temp=0.0, callback=lambda token, _: generated.append(token) or True)
    print("OUT", generated, flush=True)
