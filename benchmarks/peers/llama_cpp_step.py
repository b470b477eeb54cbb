"""llama.cpp through its Python package: a Llama of a given shape with random weights in GGUF, decoded greedily."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

CONTEXT = 256


def available() -> bool:
    """Whether both packages that this needs are installed."""
    return find_spec("llama_cpp") is not None and find_spec("gguf") is not None


def write_model(path: Path, width: int, layers: int, heads: int, vocabulary: int, hidden: int, form: str) -> None:
    """A Llama with random matrices in a format of llama.cpp (Q8_0, Q4_0, F32) and a tied head."""
    import gguf

    kind = gguf.GGMLQuantizationType[form]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        value = random.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(value, kind), raw_dtype=kind)

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    matrix("token_embd", vocabulary, width)
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}", width, width)
        for name, rows, columns in (("gate", hidden, width), ("up", hidden, width), ("down", width, hidden)):
            matrix(f"blk.{layer}.ffn_{name}", rows, columns)
        ones(f"blk.{layer}.attn_norm")
        ones(f"blk.{layer}.ffn_norm")
    ones("output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decoder(path: Path, vocabulary: int, threads: int, tokens: int) -> Callable[[], None]:
    """Decodes some tokens greedily from token 0, through the C interface alone."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = CONTEXT, threads, threads
    context = llama_cpp.llama_init_from_model(model, settings)

    def run(_: object = silent) -> None:  # keeps the callback alive
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        token = 0
        for _ in range(tokens):
            batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
            if llama_cpp.llama_decode(context, batch) != 0:
                raise RuntimeError("llama.cpp could not decode a token")
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(vocabulary,))
            token = int(logits.argmax())

    return run
