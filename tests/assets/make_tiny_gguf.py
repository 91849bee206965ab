#!/usr/bin/env python3
"""Writes a GGUF model with random weights, small enough to generate thousands of tokens a second on one core.

The vocabulary holds control tokens, every byte, every ASCII character and made-up words, so that any text can be
tokenized. Control and byte tokens get no weight in the output layer: what is generated is words, and the end of
text is next to never drawn. The same arguments give the same file. Needs the packages gguf and numpy.
"""
import argparse
import itertools

import gguf
import numpy

ROOT_SEED = 20240229
# Of a state space model, and of an adapter.
CONVOLUTION, STATE, RANK = 4, 16, 4
SPACE = "\u2581"
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output")
    parser.add_argument("--arch", choices=["llama", "gemma3", "bert", "mamba"], default="llama")
    parser.add_argument("--adapter", action="store_true", help="no model, but a LoRA for one of these sizes")
    for name, default in [("embd", 64), ("layers", 2), ("heads", 4), ("kv-heads", 2), ("ff", 128), ("vocab", 1024),
                          ("context", 32768), ("experts", 0)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def words():
    """Endless distinct words: three syllables, the first changing fastest."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    for third, second, first in itertools.product(syllables, repeat=3):
        yield first + second + third


def sentencepiece_vocabulary(size):
    """Returns (token, score, type) of each token, and how many of the first ones must not be generated."""
    kind = gguf.TokenType
    tokens = [("<unk>", 0.0, kind.UNKNOWN), ("<s>", 0.0, kind.CONTROL), ("</s>", 0.0, kind.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, kind.BYTE) for byte in range(256)]
    unspoken = len(tokens)
    tokens += [(SPACE, -1.0, kind.NORMAL)]
    tokens += [(chr(code), -2.0 - code / 100, kind.NORMAL) for code in range(33, 127)]
    for number, word in enumerate(itertools.islice(words(), size - len(tokens))):
        tokens.append((SPACE + word, -10.0 - number / 1000, kind.NORMAL))
    return tokens[:size], unspoken


def wordpiece_vocabulary(size):
    kind = gguf.TokenType
    tokens = [(name, 0.0, kind.CONTROL) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    tokens += [(start + chr(code), 0.0, kind.NORMAL) for start in (SPACE, "") for code in range(33, 127)]
    tokens += [(SPACE + word, 0.0, kind.NORMAL) for word in itertools.islice(words(), size - len(tokens))]
    return tokens[:size]


def write_tokenizer(out, arch, tokens):
    out.add_tokenizer_model("bert" if arch == "bert" else "llama")
    out.add_token_list([token.encode() for token, _, _ in tokens])
    out.add_token_types([int(kind) for _, _, kind in tokens])
    if arch == "bert":
        out.add_token_type_count(2)
        out.add_pad_token_id(0)
        out.add_unk_token_id(1)
        out.add_bos_token_id(2)
        out.add_sep_token_id(3)
        out.add_eos_token_id(3)
        out.add_mask_token_id(4)
    else:
        out.add_tokenizer_pre("default")
        out.add_token_scores([score for _, score, _ in tokens])
        out.add_unk_token_id(0)
        out.add_bos_token_id(1)
        out.add_eos_token_id(2)
        out.add_add_bos_token(True)
        out.add_chat_template(CHAT)


def write_sizes(out, arch, a):
    out.add_context_length(a.context)
    out.add_embedding_length(a.embd)
    out.add_block_count(a.layers)
    out.add_feed_forward_length(0 if arch == "mamba" else a.ff)
    out.add_head_count(0 if arch == "mamba" else a.heads)
    out.add_vocab_size(a.vocab)
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    if arch == "mamba":
        out.add_ssm_conv_kernel(CONVOLUTION)
        out.add_ssm_inner_size(2 * a.embd)
        out.add_ssm_state_size(STATE)
        out.add_ssm_time_step_rank(RANK)
        out.add_layer_norm_rms_eps(1e-5)
    elif arch == "bert":
        out.add_layer_norm_eps(1e-12)
        out.add_causal_attention(False)
        out.add_pooling_type(gguf.PoolingType.MEAN)
    else:
        width = a.embd // a.heads
        out.add_head_count_kv(a.kv_heads)
        out.add_key_length(width)
        out.add_value_length(width)
        out.add_rope_dimension_count(width)
        out.add_rope_freq_base(10000.0)
        out.add_layer_norm_rms_eps(1e-5)
    if a.experts:
        out.add_expert_count(a.experts)
        out.add_expert_used_count(2)


def tensors(arch, a, unspoken):
    """Yields (name, array); the rows of a matrix are its outputs."""
    random = numpy.random.default_rng(ROOT_SEED)

    def matrix(rows, columns, scale=None):
        return random.standard_normal((rows, columns)) * (scale or columns ** -0.5)

    bert, width = arch == "bert", a.embd // a.heads
    kv_rows = a.embd if bert else a.kv_heads * width
    norm = {"weight": numpy.ones(a.embd)} | ({"bias": numpy.zeros(a.embd)} if bert else {})
    yield "token_embd.weight", matrix(a.vocab, a.embd, 1.0)
    if bert:
        yield "position_embd.weight", matrix(a.context, a.embd, 0.1)
        yield "token_types.weight", matrix(2, a.embd, 0.1)
    else:
        head = matrix(a.vocab, a.embd, 0.4)
        head[:unspoken] = 0
        if arch in ("llama", "mamba"):
            yield "output.weight", head
    for part, value in norm.items():
        yield ("token_embd_norm." if bert else "output_norm.") + part, value
    norms = ["attn_output_norm", "layer_output_norm"] if bert else ["attn_norm", "ffn_norm"]
    if arch == "gemma3":
        norms += ["post_attention_norm", "post_ffw_norm"]
    shapes = {"attn_q": (a.embd, a.embd), "attn_k": (kv_rows, a.embd), "attn_v": (kv_rows, a.embd),
              "attn_output": (a.embd, a.embd), "ffn_up": (a.ff, a.embd), "ffn_down": (a.embd, a.ff)}
    if not bert:
        shapes["ffn_gate"] = (a.ff, a.embd)
    for layer in range(a.layers):
        block = f"blk.{layer}."
        if arch == "mamba":
            yield from state_space(block, a.embd, matrix)
            continue
        if a.experts:
            shapes = {name: shape for name, shape in shapes.items() if not name.startswith("ffn_")}
            yield block + "ffn_gate_inp.weight", matrix(a.experts, a.embd)
            for name, rows, columns in [("gate", a.ff, a.embd), ("up", a.ff, a.embd), ("down", a.embd, a.ff)]:
                yield f"{block}ffn_{name}_exps.weight", numpy.stack([matrix(rows, columns) for _ in range(a.experts)])
        for name, (rows, columns) in shapes.items():
            yield f"{block}{name}.weight", matrix(rows, columns)
            if bert:
                yield f"{block}{name}.bias", numpy.zeros(rows)
        for name in norms:
            for part, value in norm.items():
                yield f"{block}{name}.{part}", value
        if arch == "gemma3":
            yield block + "attn_q_norm.weight", numpy.ones(width)
            yield block + "attn_k_norm.weight", numpy.ones(width)


def state_space(block, width, matrix):
    """A layer of mamba."""
    inner = 2 * width
    yield block + "attn_norm.weight", numpy.ones(width)
    yield block + "ssm_in.weight", matrix(2 * inner, width)
    yield block + "ssm_conv1d.weight", matrix(inner, CONVOLUTION)
    yield block + "ssm_conv1d.bias", numpy.zeros(inner)
    yield block + "ssm_x.weight", matrix(RANK + 2 * STATE, inner)
    yield block + "ssm_dt.weight", matrix(inner, RANK)
    yield block + "ssm_dt.bias", numpy.zeros(inner)
    yield block + "ssm_a", -numpy.tile(numpy.arange(1, STATE + 1), (inner, 1))
    yield block + "ssm_d", numpy.ones(inner)
    yield block + "ssm_out.weight", matrix(width, inner)


def adapter(out, a):
    """Yields the two thin matrices that are added to each query matrix."""
    out.add_type("adapter")
    out.add_string("adapter.type", "lora")
    out.add_float32("adapter.lora.alpha", 8.0)
    random = numpy.random.default_rng(ROOT_SEED)
    for layer in range(a.layers):
        yield f"blk.{layer}.attn_q.weight.lora_a", random.standard_normal((RANK, a.embd)) * a.embd ** -0.5
        yield f"blk.{layer}.attn_q.weight.lora_b", random.standard_normal((a.embd, RANK))


def main():
    a = arguments()
    out = gguf.GGUFWriter(a.output, a.arch)
    out.add_name(f"tiny-{a.arch}")
    if a.adapter:
        parts = adapter(out, a)
    else:
        tokens, unspoken = (wordpiece_vocabulary(a.vocab), 0) if a.arch == "bert" else sentencepiece_vocabulary(a.vocab)
        write_sizes(out, a.arch, a)
        write_tokenizer(out, a.arch, tokens)
        parts = tensors(a.arch, a, unspoken)
    for name, array in parts:
        out.add_tensor(name, numpy.ascontiguousarray(array, dtype=numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


main()
