"""How far rounded activations, and rounded K and V, of a backend on a CPU are from float32 on the same weights.

Mean KL divergence, perplexities and equal best tokens over the first 2,000 tokens of this repository's own prose.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from octavo.api.build import locate
from octavo.backends.cpu.runner import CpuBackend
from octavo.base.config.config import EngineConfig, ModelConfig
from octavo.base.types.plan import RowBegin, RowSampling, RowStep, StepPlan
from octavo.base.types.ports import Backend
from octavo.models.registry import build_spec, find_family
from octavo.text.tokenizer import Tokenizer
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.names import map_names

CHUNK, BLOCK = 250, 16
TEXTS = ("LICENSE", "docs/life-of-a-request.md", "README.md", "CONTRIBUTING.md", "docs/adding-a-model.md")


def text_chunks(checkpoint: Checkpoint, count: int) -> list[list[int]]:
    """`count` tokens of prose in chunks, each behind what the tokenizer puts before a text."""
    root = Path(__file__).parents[1]
    text = "\n\n".join((root / name).read_text(encoding="utf-8") for name in TEXTS)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    before = tokenizer.encode("")
    tokens = tokenizer.encode(text, add_special_tokens=False)[:count]
    return [before + tokens[at : at + CHUNK] for at in range(0, len(tokens), CHUNK)]


def make_backend(device: str, activation_dtype: str, kv_cache_dtype: str) -> Backend:
    sizes = {
        "max_num_seqs": 1,
        "max_model_len": 2 * CHUNK,
        "max_num_batched_tokens": 2 * CHUNK,
        "block_size": BLOCK,
        "kv_cache_dtype": kv_cache_dtype,
    }
    if device == "cpu":
        return CpuBackend(**sizes, activation_dtype=activation_dtype)
    from octavo.backends.torch.runner import TorchBackend

    return TorchBackend(**sizes)


class Logits:
    """log_softmax of every position of a chunk, through the backend's own steps."""

    def __init__(self, checkpoint: Checkpoint, device: str, activation_dtype: str, kv_cache_dtype: str) -> None:
        spec = build_spec(checkpoint.config)
        names = find_family(checkpoint.config).names(spec)
        shapes = {name: parameter.shape for name, parameter in spec.parameters().items()}
        self._backend = make_backend(device, activation_dtype, kv_cache_dtype)
        self._backend.load(spec, map_names(checkpoint, names, shapes))
        self._backend.allocate(2 * CHUNK // BLOCK)
        self._step = 0

    def __call__(self, tokens: list[int]) -> np.ndarray:
        self._step += 1
        blocks = list(range(-(-len(tokens) // BLOCK)))
        begin = RowBegin(0, tokens, len(tokens), blocks, RowSampling(prompt_logprobs=-1))
        plan = StepPlan(step=self._step, rows=[RowStep(0, 0, len(tokens), False)], begins=[begin], ended=[0])
        self._backend.begin(plan)
        _, entries = self._backend.finish().prompt_logprobs[0]
        rows = np.empty((len(entries), len(entries[0].token_ids) - 1))
        for row, entry in zip(rows, entries, strict=True):
            row[entry.token_ids[1:]] = entry.logprobs[1:]
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--device", choices=["cpu", "torch:cpu"], default="cpu", help="torch:cpu has exact activations")
    parser.add_argument("--activation-dtype", default="auto")
    parser.add_argument("--kv-cache-dtype", default="auto")
    arguments = parser.parse_args()
    path = Path(locate(EngineConfig(model=ModelConfig(model=arguments.model))).model.model)
    checkpoint = open_checkpoint(path)
    chunks = text_chunks(checkpoint, arguments.tokens)
    exact = Logits(checkpoint, arguments.device, "float32", "float32")
    ours = Logits(checkpoint, arguments.device, arguments.activation_dtype, arguments.kv_cache_dtype)
    divergence, surprise, agree = [], [], []
    for chunk in chunks:
        p, q = exact(chunk), ours(chunk)
        divergence += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        agree += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
        place = (np.arange(len(p)), chunk[1:])
        surprise.append((-p[place], -q[place]))
    perplexity = [float(np.exp(np.concatenate(side).mean())) for side in zip(*surprise, strict=True)]
    figures = {
        "model": path.name,
        "device": arguments.device,
        "activation_dtype": arguments.activation_dtype,
        "kv_cache_dtype": arguments.kv_cache_dtype,
        "tokens": len(divergence),
        "kl_mean": float(np.mean(divergence)),
        "kl_max": float(np.max(divergence)),
        "same_best": float(np.mean(agree)),
        "perplexity_float32": perplexity[0],
        "perplexity": perplexity[1],
        "perplexity_change_percent": 100 * (perplexity[1] / perplexity[0] - 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
