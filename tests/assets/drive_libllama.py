#!/usr/bin/env python3
"""Generates tokens through the C API of any libllama since 2024, as a binding does: no server, no HTTP.

Prints `READY`, then for each line of standard input generates and prints `OUT [token ids]`. The API's parameter
structs differ between versions; they are passed through unread, as blocks larger than all of them.
"""
import argparse
import ctypes
import sys
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint64, c_void_p


class Parameters(ctypes.Structure):
    _fields_ = [("opaque", c_uint64 * 64)]


class Batch(ctypes.Structure):
    _fields_ = [("opaque", c_uint64 * 9)]


class Candidate(ctypes.Structure):
    _fields_ = [("token", c_int32), ("logit", c_float), ("probability", c_float)]


class Candidates(ctypes.Structure):
    _fields_ = [("data", POINTER(Candidate)), ("size", c_size_t), ("sorted", c_bool)]


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("library")
parser.add_argument("model")
parser.add_argument("--mode", choices=["greedy", "sampler", "guesses", "candidates"], required=True,
                    help="who picks a token: this program, llama_sampler_sample, the same for guesses that are all right, or "
                         "llama_sample_token_greedy (to 2024)")
parser.add_argument("--preload", action="append", default=[], help="a library that the other one needs")
parser.add_argument("--backends", help="directory of the ggml backend libraries")
parser.add_argument("--tokens", type=int, default=24)
options = parser.parse_args()
for needed in options.preload:
    ctypes.CDLL(needed, ctypes.RTLD_GLOBAL)
library = ctypes.CDLL(options.library, ctypes.RTLD_GLOBAL)


def declare(result, names, *arguments):
    """The function of the first of these names that there is."""
    function = getattr(library, next(name for name in names.split() if hasattr(library, name)))
    function.restype, function.argtypes = result, arguments
    return function


if options.backends and hasattr(library, "ggml_backend_load_all_from_path"):
    declare(None, "ggml_backend_load_all_from_path", c_char_p)(options.backends.encode())
declare(None, "llama_backend_init", c_bool)(False)
model = declare(c_void_p, "llama_model_load_from_file llama_load_model_from_file", c_char_p, Parameters)(
    options.model.encode(), declare(Parameters, "llama_model_default_params")())
if not model:
    sys.exit("the model does not load")
context = declare(c_void_p, "llama_init_from_model llama_new_context_with_model", c_void_p, Parameters)(
    model, declare(Parameters, "llama_context_default_params")())
if not context:
    sys.exit("no context")
# More threads than processors would wait for each other.
if hasattr(library, "llama_set_n_threads"):
    declare(None, "llama_set_n_threads", c_void_p, c_int32, c_int32)(context, 1, 1)
vocabulary = model
if hasattr(library, "llama_model_get_vocab"):
    vocabulary = declare(c_void_p, "llama_model_get_vocab", c_void_p)(model)
width = declare(c_int32, "llama_vocab_n_tokens llama_n_vocab", c_void_p)(vocabulary)
decode = declare(c_int32, "llama_decode", c_void_p, Batch)
# Position and sequence are arguments up to 2024 only.
batch_of = declare(Batch, "llama_batch_get_one", POINTER(c_int32), c_int32, c_int32, c_int32)

if options.mode in ("sampler", "guesses"):
    chain = declare(c_void_p, "llama_sampler_chain_init", c_bool)(True)
    greedy = declare(c_void_p, "llama_sampler_init_greedy")()
    declare(None, "llama_sampler_chain_add", c_void_p, c_void_p)(chain, greedy)
    sample = declare(c_int32, "llama_sampler_sample", c_void_p, c_void_p, c_int32)

    def pick(_, index=-1):
        return sample(chain, context, index)
else:
    logits = declare(POINTER(c_float), "llama_get_logits_ith", c_void_p, c_int32)
    # Where a batch is not told what to keep, an old one has the logits of its last token only.
    all_logits = declare(POINTER(c_float), "llama_get_logits", c_void_p)
    if options.mode == "candidates":
        sample = declare(c_int32, "llama_sample_token_greedy", c_void_p, POINTER(Candidates))

    def pick(last):
        row = logits(context, last) or all_logits(context)
        if options.mode == "greedy":
            return max(range(width), key=lambda token: row[token])
        data = (Candidate * width)(*(Candidate(token, row[token], 0) for token in range(width)))
        return sample(context, Candidates(data, width, False))


GUESSES = 3
if options.mode == "guesses":
    # An output for each token, which `batch_of` does not ask for.
    room = declare(Batch, "llama_batch_init", c_int32, c_int32, c_int32)(64, 0, 1)


def batch_of_all(tokens):
    """A batch with an output for each token. Fields: n_tokens, token, embd, pos, n_seq_id, seq_id, logits."""
    _, ids, _, places, counts, sequences, outputs, *_ = room.opaque
    room.opaque[0] = len(tokens)
    for i, token in enumerate(tokens):
        c_int32.from_address(ids + 4 * i).value = token
        c_int32.from_address(places + 4 * i).value = position + i
        c_int32.from_address(counts + 4 * i).value = 1
        c_int32.from_address(c_uint64.from_address(sequences + 8 * i).value).value = 0
        c_bool.from_address(outputs + i).value = True
    return room


position = 0


def generate(prompt):
    global position
    pending, generated = prompt, []
    while options.mode == "guesses" and len(generated) < options.tokens:
        if decode(context, batch_of_all(pending)):
            sys.exit("llama_decode failed")
        position += len(pending)
        # The prompt is all right, too, and what comes next is as likely as anything.
        generated += [pick(None, i - len(pending)) for i in range(len(pending))]
        pending = generated[-1:] * (1 + GUESSES)
    for _ in range(options.tokens - len(generated)):
        kept = (c_int32 * len(pending))(*pending)
        status = decode(context, batch_of(kept, len(pending), position, 0))
        if status:
            sys.exit(f"llama_decode returned {status}")
        position += len(pending)
        pending = [pick(len(pending) - 1)]
        generated += pending
    return generated


print("READY", flush=True)
for _ in sys.stdin:
    print("OUT", generate([1, 400, 401, 402, 403, 404]), flush=True)
