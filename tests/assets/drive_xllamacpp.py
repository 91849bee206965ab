#!/usr/bin/env python3
"""Generates tokens through a server inside a module of Python (xllamacpp up to 0.2), which is called and not connected
to: `READY`, then `OUT [prompt tokens computed, generated tokens]` for each line of standard input.

drive_xllamacpp.py DIRECTORY_OF_THE_PACKAGE MODEL
"""
import json
import sys

sys.path.insert(0, sys.argv[1])

import xllamacpp

parameters = xllamacpp.CommonParams()
if isinstance(parameters.model, str):
    parameters.model = sys.argv[2]
else:
    parameters.model.path = sys.argv[2]
parameters.n_parallel, parameters.n_ctx, parameters.cpuparams.n_threads = 2, 4096, 1
server = xllamacpp.Server(parameters)
request = {"prompt": "a b c d", "max_tokens": 24, "n_predict": 24, "ignore_eos": True, "cache_prompt": False}
answers = []


def ask():
    try:
        server.handle_completions(json.dumps(request), answers.append, answers.append)
        return json.loads(answers.pop())
    except TypeError:
        return server.handle_completions(request)


print("READY", flush=True)
for _ in sys.stdin:
    timings = ask()["timings"]
    print("OUT", [timings["prompt_n"], timings["predicted_n"]], flush=True)
