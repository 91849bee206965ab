#!/usr/bin/env python3
"""Generates tokens through the C API of any libllama, as a binding does: no server, no HTTP.

Prints `READY`, then for each line of standard input generates and prints `OUT [token ids]`. The API's parameter
structs differ between versions; they are passed through unread, as blocks larger than all of them.
"""
import argparse
import ctypes
import sys
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_uint64, c_void_p


class Parameters(ctypes.Structure):
    _fields_ = [("opaque", c_uint64 * 64)]


class Batch(ctypes.Structure):
    _fields_ = [("opaque", c_uint64 * 9)]


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("library")
parser.add_argument("model")
parser.add_argument("--mode", choices=["greedy", "sampler"], required=True)
parser.add_argument("--backends", help="directory of the ggml backend libraries")
parser.add_argument("--tokens", type=int, default=24)
options = parser.parse_args()
library = ctypes.CDLL(options.library, ctypes.RTLD_GLOBAL)


def declare(result, name, *arguments):
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


if options.backends:
    declare(None, "ggml_backend_load_all_from_path", c_char_p)(options.backends.encode())
model = declare(c_void_p, "llama_model_load_from_file", c_char_p, Parameters)(
    options.model.encode(), declare(Parameters, "llama_model_default_params")())
if not model:
    sys.exit("the model does not load")
context = declare(c_void_p, "llama_init_from_model", c_void_p, Parameters)(
    model, declare(Parameters, "llama_context_default_params")())
if not context:
    sys.exit("no context")
vocabulary = declare(c_void_p, "llama_model_get_vocab", c_void_p)(model)
width = declare(c_int32, "llama_vocab_n_tokens", c_void_p)(vocabulary)
decode = declare(c_int32, "llama_decode", c_void_p, Batch)
batch_of = declare(Batch, "llama_batch_get_one", POINTER(c_int32), c_int32)

if options.mode == "greedy":
    logits = declare(POINTER(c_float), "llama_get_logits_ith", c_void_p, c_int32)

    def pick():
        row = logits(context, -1)
        return max(range(width), key=lambda token: row[token])
else:
    chain = declare(c_void_p, "llama_sampler_chain_init", c_bool)(True)
    greedy = declare(c_void_p, "llama_sampler_init_greedy")()
    declare(None, "llama_sampler_chain_add", c_void_p, c_void_p)(chain, greedy)
    sample = declare(c_int32, "llama_sampler_sample", c_void_p, c_void_p, c_int32)

    def pick():
        return sample(chain, context, -1)


def generate(prompt):
    pending, generated = prompt, []
    for _ in range(options.tokens):
        kept = (c_int32 * len(pending))(*pending)
        status = decode(context, batch_of(kept, len(pending)))
        if status:
            sys.exit(f"llama_decode returned {status}")
        pending = [pick()]
        generated += pending
    return generated


print("READY", flush=True)
for _ in sys.stdin:
    print("OUT", generate([1, 400, 401, 402, 403, 404]), flush=True)
