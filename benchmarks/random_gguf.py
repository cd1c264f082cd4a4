"""A GGUF file of random weights in a real model's shape, to time what no package carries.

    python benchmarks/random_gguf.py CONFIG.json OUT.gguf [--format Q8_0] [--tokenizer .models/SmolLM2...gguf]

CONFIG.json: a Hugging Face config of a Llama. The tokenizer is another GGUF file's, filled up to the vocabulary with
tokens that no text has. Formats are those that the package gguf writes (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16, F16, F32);
llama.cpp's own quantizer makes others from them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType, quants

DEVIATION = 0.02
TOKENIZER = Path(__file__).parents[1] / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def write(config: dict[str, Any], path: Path, scheme: GGMLQuantizationType, tokenizer: Path) -> None:
    """The whole file; random numbers are the same each time."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads, dim = config["num_key_value_heads"], config.get("head_dim") or hidden // heads
    width, vocab = config["intermediate_size"], config["vocab_size"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(min(config["max_position_embeddings"], 8192))
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    _copy_tokenizer(writer, GGUFReader(tokenizer), vocab)
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) * DEVIATION
        writer.add_tensor(f"{name}.weight", quants.quantize(values, scheme), raw_dtype=scheme)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    matrix("token_embd", vocab, hidden)
    norm("output_norm")
    if not config.get("tie_word_embeddings", False):
        matrix("output", vocab, hidden)
    for block in (f"blk.{i}." for i in range(config["num_hidden_layers"])):
        norm(block + "attn_norm")
        norm(block + "ffn_norm")
        matrix(block + "attn_q", heads * dim, hidden)
        matrix(block + "attn_k", kv_heads * dim, hidden)
        matrix(block + "attn_v", kv_heads * dim, hidden)
        matrix(block + "attn_output", hidden, heads * dim)
        matrix(block + "ffn_gate", width, hidden)
        matrix(block + "ffn_up", width, hidden)
        matrix(block + "ffn_down", hidden, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_tokenizer(writer: GGUFWriter, source: GGUFReader, vocab: int) -> None:
    def values(name: str) -> Any:
        return source.fields[f"tokenizer.ggml.{name}"].contents()

    tokens, types = values("tokens"), values("token_type")
    unused = vocab - len(tokens)
    writer.add_tokenizer_model(values("model"))
    writer.add_tokenizer_pre(values("pre"))
    writer.add_token_list([*tokens[:vocab], *(f"<|unused{i}|>" for i in range(unused))])
    writer.add_token_types([*types[:vocab], *[int(TokenType.UNUSED)] * unused])
    writer.add_token_merges(values("merges"))
    writer.add_bos_token_id(values("bos_token_id"))
    writer.add_eos_token_id(values("eos_token_id"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", default="Q8_0")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    arguments = parser.parse_args()
    scheme = GGMLQuantizationType[arguments.format]
    write(json.loads(arguments.config.read_text()), arguments.out, scheme, arguments.tokenizer)


if __name__ == "__main__":
    main()
