"""Small model files for tests: GGUF through the gguf package's writer, safetensors byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 64, 96, 4, 2, 16, 2, 48
EXPERTS, TOP_K, EXPERT_WIDTH, SHARED_WIDTH = 5, 2, 32, 64
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def matrices(
    arch: str, *, layers: int = LAYERS, tied: bool = True, experts: bool = False
) -> dict[str, tuple[int, ...]]:
    """GGUF tensor names of an architecture -> shapes, outermost first. experts: a mixture in place of each MLP."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    table: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        table["output.weight"] = (VOCAB, HIDDEN)
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (HIDDEN,),
        "attn_q.weight": (q, HIDDEN),
        "attn_k.weight": (kv, HIDDEN),
        "attn_v.weight": (kv, HIDDEN),
        "attn_output.weight": (HIDDEN, q),
        "ffn_norm.weight": (HIDDEN,),
    }
    if experts:
        layer |= expert_matrices(EXPERT_WIDTH if arch.startswith("qwen") else WIDTH, shared=arch == "qwen2moe")
    else:
        layer |= mlp("", WIDTH)
    if arch in ("qwen2", "qwen2moe"):
        layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if arch in ("qwen3", "qwen3moe", "gemma3", "gemma-embedding"):
        layer |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
    if arch in ("gemma3", "gemma-embedding"):
        layer |= {"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)}
    return table | {f"blk.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}


def mlp(kind: str, width: int, *stack: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a gated MLP, or of a stack of them."""
    table = {"gate": (width, HIDDEN), "up": (width, HIDDEN), "down": (HIDDEN, width)}
    return {f"ffn_{name}{kind}.weight": (*stack, *shape) for name, shape in table.items()}


def expert_matrices(width: int, *, shared: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer's mixture of experts; llama.cpp keeps the shared one's gate as a vector."""
    table = {"ffn_gate_inp.weight": (EXPERTS, HIDDEN), **mlp("_exps", width, EXPERTS)}
    if shared:
        table |= {"ffn_gate_inp_shexp.weight": (HIDDEN,), **mlp("_shexp", SHARED_WIDTH)}
    return table


def add_experts(writer: GGUFWriter) -> None:
    """The keys of a mixture of experts, as llama.cpp's converter writes them for every architecture that has one."""
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(TOP_K)
    if writer.arch != "llama":
        writer.add_expert_feed_forward_length(EXPERT_WIDTH)
    if writer.arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(SHARED_WIDTH)


def random_tensors(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def gguf_writer(path: Path, arch: str, *, key_length: bool = True) -> GGUFWriter:
    """A writer with the keys that every decoder has; the caller adds tensors and closes it with `finish`."""
    writer = GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    if key_length:
        writer.add_key_length(HEAD_DIM)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{i}" for i in range(VOCAB - 1)] + ["héllo ▁"])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["t 0", "t 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(3)
    writer.add_chat_template(TEMPLATE)
    return writer


def finish(writer: GGUFWriter, tensors: Mapping[str, np.ndarray], *, kind: str = "F32") -> None:
    """Writes vectors and routers as F32 and other matrices as `kind`, then the file."""
    for name, values in tensors.items():
        if values.ndim < 2 or kind == "F32" or "ffn_gate_inp" in name:
            writer.add_tensor(name, values)
        else:
            wanted = GGMLQuantizationType[kind]
            writer.add_tensor(name, quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path: Path, arch: str = "llama", *, kind: str = "F32", tied: bool = True) -> dict[str, np.ndarray]:
    """A tiny model; returns its tensors by GGUF name, as they were before quantization."""
    tensors = random_tensors(matrices(arch, tied=tied))
    finish(gguf_writer(path, arch), tensors, kind=kind)
    return tensors


def write_experts_gguf(path: Path, arch: str, *, kind: str = "F32") -> dict[str, np.ndarray]:
    """As write_gguf, with a mixture of experts in every layer and outputs of about 1."""
    writer = gguf_writer(path, arch)
    add_experts(writer)
    tensors = random_tensors(matrices(arch, tied=False, experts=True))
    tensors = {name: array / np.float32(array.shape[-1] ** 0.5) for name, array in tensors.items()}
    finish(writer, tensors, kind=kind)
    return tensors


def safetensors_bytes(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], *, metadata: dict[str, str] | None = None
) -> bytes:
    """name -> (dtype, shape, bytes), laid out in order."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    position = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(raw)]}
        position += len(raw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values())


def small_safetensors(prefix: str = "", *, seed: int = 0) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """One tensor of each supported dtype."""
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}a": ("F32", (3, 4), rng.standard_normal((3, 4), np.float32).tobytes()),
        f"{prefix}b": ("F16", (5,), rng.standard_normal(5).astype(np.float16).tobytes()),
        f"{prefix}c": ("BF16", (2, 2, 2), rng.integers(0, 0x3F80, 8, np.uint16).tobytes()),
    }


def write_config(folder: Path, **keys: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **keys}))


def write_sharded(folder: Path) -> None:
    """Two shards of small_safetensors, their index and a config.json."""
    write_config(folder)
    weight_map = {}
    for number, prefix in ((1, "x."), (2, "y.")):
        name, tensors = f"model-{number:05d}-of-00002.safetensors", small_safetensors(prefix, seed=number)
        (folder / name).write_bytes(safetensors_bytes(tensors))
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 148}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
