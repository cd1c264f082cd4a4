"""A small random model, its forward pass in float64, and a driver that feeds a TorchBackend plans by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch_forward import log_softmax

from octavo.backends.torch.runner import TorchBackend
from octavo.base.types.plan import BlockUpdate, RowBegin, RowSampling, RowStep, StepPlan, StepResult, TokenLogprobs
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.models.spec import Attention, GatedMLP, Head, Layer, ModelSpec, MoE, RMSNorm, Rope

VOCAB = 61
BLOCK = 8
MAX_LEN = 96
Arrays = dict[str, np.ndarray]


def rope(dim: int, **more: Any) -> Rope:
    return Rope(dim, tuple(10_000.0 ** (-2 * j / dim) for j in range(dim // 2)), **more)


def layer(mixer: dict[str, Any] | None = None, ffn: dict[str, Any] | None = None, **more: Any) -> Layer:
    attention = {"heads": 4, "kv_heads": 2, "head_dim": 8, "scale": 0.4, "rope": rope(8), **(mixer or {})}
    mlp = {"width": 40, "act": "silu", **(ffn or {})}
    word = MoE if "experts" in mlp else GatedMLP
    norms = {"pre_mixer": RMSNorm(1e-5), "pre_ffn": RMSNorm(1e-5), **more}
    return Layer(Attention(**attention), word(**mlp), **norms)


def spec(*layers: Layer, **more: Any) -> ModelSpec:
    words = {"final_norm": RMSNorm(1e-5), "head": Head(tied=False), "max_position": 512, **more}
    return ModelSpec("test", VOCAB, 32, layers or (layer(), layer()), **words)


def arrays(model: ModelSpec, seed: int = 0) -> Arrays:
    """float32 weights with which every part matters."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, parameter in model.parameters().items():
        noise = rng.standard_normal(parameter.shape)
        made[name] = (noise / parameter.shape[1] ** 0.5 * 1.5 if noise.ndim > 1 else 1 + 0.2 * noise).astype(np.float32)
    made["embed"] = rng.standard_normal(made["embed"].shape).astype(np.float32)
    return made


def stored(name: str, array: np.ndarray) -> StoredTensor:
    return StoredTensor(name, SCHEMES["F32"], array.shape, memoryview(np.ascontiguousarray(array).tobytes()))


class Driver:
    """Rows get shuffled blocks enough for MAX_LEN tokens; a row's blocks stay with it until it begins again."""

    def __init__(
        self,
        model: ModelSpec,
        weights: Arrays,
        *,
        rows: int = 8,
        spare: int = 4,
        quantization: str | None = None,
        **options: Any,
    ) -> None:
        defaults = {"max_num_seqs": rows, "max_model_len": MAX_LEN, "max_num_batched_tokens": 512, "block_size": BLOCK}
        self.backend = TorchBackend(**{**defaults, "threads": 1, **options})
        self.backend.quantization = quantization
        self.backend.load(model, {name: stored(name, array) for name, array in weights.items()})
        per_row = MAX_LEN // BLOCK
        blocks = np.random.default_rng(7).permutation(rows * per_row + spare).tolist()
        self.backend.allocate(len(blocks))
        self.blocks = [blocks[i * per_row : (i + 1) * per_row] for i in range(rows)]
        self.spare = blocks[rows * per_row :]
        self.steps = itertools.count(1)
        self.masked: set[int] = set()

    def begin(self, row: int, tokens: Sequence[int], num_prompt: int | None = None, **sampling: Any) -> RowBegin:
        sampling.setdefault("logprobs", -1)
        (self.masked.add if sampling.get("masked") else self.masked.discard)(row)
        count = len(tokens) if num_prompt is None else num_prompt
        return RowBegin(row, list(tokens), count, self.blocks[row], RowSampling(**sampling))

    def launch(
        self,
        rows: Sequence[tuple[int, int, int, bool]],
        begins: Sequence[RowBegin] = (),
        *,
        updates: Sequence[BlockUpdate] = (),
        ended: Sequence[int] = (),
        copies: Sequence[tuple[int, int]] = (),
    ) -> None:
        plan = StepPlan(
            step=next(self.steps),
            rows=[RowStep(*row) for row in rows],
            begins=list(begins),
            updates=list(updates),
            ended=list(ended),
            copies=list(copies),
            masked=[row for row, _, _, sample in rows if sample and row in self.masked],
        )
        self.backend.begin(plan)
        if plan.masked:
            self.backend.mask(
                {step.row: mask_at(step.start + step.count) for step in plan.rows if step.row in plan.masked}
            )

    def step(self, *plan: Any, **more: Any) -> StepResult:
        self.launch(*plan, **more)
        return self.backend.finish()

    def run(self, tokens: Sequence[int], *, row: int = 0, **sampling: Any) -> StepResult:
        """One new sequence, its whole prompt at once."""
        return self.step([(row, 0, len(tokens), True)], [self.begin(row, tokens, **sampling)])


def mask_at(position: int) -> bytes:
    """The mask of a token at a position: other tokens at each, a third of them."""
    bits = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    bits[[token for token in range(VOCAB) if token * 7 % 11 % 3 == position % 3]] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def vector(entry: TokenLogprobs | None) -> np.ndarray:
    """Log probabilities by token id, of an entry that holds the whole vocabulary."""
    assert entry is not None
    assert sorted(entry.token_ids[1:]) == list(range(len(entry.token_ids) - 1))
    by_id = np.empty(len(entry.token_ids) - 1)
    by_id[entry.token_ids[1:]] = entry.logprobs[1:]
    return by_id


def close(entry: TokenLogprobs | None, logits: np.ndarray, tolerance: float = 2e-5) -> None:
    """The entry's log probabilities are those of the reference's logits."""
    np.testing.assert_allclose(vector(entry), log_softmax(logits), rtol=0, atol=tolerance)
