#!/usr/bin/env python3
"""Uses contexts of libllama through its C API as bindings do, one command for each line read from standard input.

  use_contexts.py LIB MODEL [--backends DIR]

Prints `READY pid`, then after each command `OUT [prompt tokens, generated tokens]` of it, or `ERR message`:

  new                  a context; the one before is freed
  feed N K             N tokens in pieces of K, without positions (llama_batch_get_one); nothing is sampled
  say N                N tokens, one after the other, each sampled
  embed N TIMES        N tokens TIMES times, the memory cleared before each, the embeddings looked at after each
  clear                the memory is cleared
  cut N                all positions from N on are removed
"""
import argparse, ctypes as C, os, sys

args = argparse.ArgumentParser()
args.add_argument('lib'); args.add_argument('model')
args.add_argument('--backends')
args = args.parse_args()


class Block(C.Structure):      # larger than any *_params struct of the API
    _fields_ = [('words', C.c_uint64 * 64)]


class Batch(C.Structure):      # llama_batch: 56 bytes today, 72 in 2024
    _fields_ = [('words', C.c_uint64 * 9)]


lib = C.CDLL(os.path.abspath(args.lib), C.RTLD_GLOBAL)


def fn(name, result, *types):
    f = getattr(lib, name)
    f.restype, f.argtypes = result, list(types)
    return f


if hasattr(lib, 'ggml_backend_load_all_from_path'):
    where = args.backends or os.path.dirname(os.path.abspath(args.lib))
    fn('ggml_backend_load_all_from_path', None, C.c_char_p)(where.encode())
fn('llama_backend_init', None)()
model = fn('llama_model_load_from_file', C.c_void_p, C.c_char_p, Block)(
    args.model.encode(), fn('llama_model_default_params', Block)())
assert model, 'the model does not load'
default = fn('llama_context_default_params', Block)
make = fn('llama_init_from_model', C.c_void_p, C.c_void_p, Block)
free = fn('llama_free', None, C.c_void_p)
decode = fn('llama_decode', C.c_int32, C.c_void_p, Batch)
one = fn('llama_batch_get_one', Batch, C.POINTER(C.c_int32), C.c_int32)
memory_of = fn('llama_get_memory', C.c_void_p, C.c_void_p)
clear_memory = fn('llama_memory_clear', None, C.c_void_p, C.c_bool)
remove = fn('llama_memory_seq_rm', C.c_bool, C.c_void_p, C.c_int32, C.c_int32, C.c_int32)
embeddings = fn('llama_get_embeddings', C.c_void_p, C.c_void_p)
want_embeddings = fn('llama_set_embeddings', None, C.c_void_p, C.c_bool)
chain = fn('llama_sampler_chain_init', C.c_void_p, C.c_bool)(True)
fn('llama_sampler_chain_add', None, C.c_void_p, C.c_void_p)(chain, fn('llama_sampler_init_greedy', C.c_void_p)())
sample = fn('llama_sampler_sample', C.c_int32, C.c_void_p, C.c_void_p, C.c_int32)

ctx = memory = None


def run(tokens):
    kept = (C.c_int32 * len(tokens))(*tokens)      # the batch only points to it
    status = decode(ctx, one(kept, len(tokens)))
    assert status == 0, f'decode returned {status}'


def command(word, *numbers):
    global ctx, memory
    numbers = [int(number) for number in numbers]
    if word == 'new':
        if ctx: free(ctx)
        ctx = make(model, default())
        assert ctx, 'no context'
        memory = memory_of(ctx)                    # once, as the Python binding does
        return [0, 0]
    if word == 'feed':
        n, k = numbers
        tokens = [360 + i * 7 % 150 for i in range(n)]
        for at in range(0, n, k): run(tokens[at:at + k])
        return [n, 0]
    if word == 'say':
        token = 400
        for _ in range(numbers[0]):
            run([token]); token = sample(chain, ctx, -1)
        return [1, numbers[0]]
    if word == 'embed':
        n, times = numbers
        want_embeddings(ctx, True)
        for _ in range(times):
            clear_memory(memory, True)
            run([1] + [400] * (n - 1)); embeddings(ctx)
        want_embeddings(ctx, False)
        return [n * times, 0]
    if word == 'clear':
        clear_memory(memory, True)
        return [0, 0]
    if word == 'cut':
        assert remove(memory, 0, numbers[0], -1), 'not removed'
        return [0, 0]
    raise ValueError(word)


print('READY', os.getpid(), flush=True)
for line in sys.stdin:
    try:
        print('OUT', command(*line.split()), flush=True)
    except Exception as error:
        print('ERR', error, flush=True)
