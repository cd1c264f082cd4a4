"""Kernels that start while the ones before them end (kernels/pdl.py): what a pass over a model's layers gains by it.

    PYTHONPATH=. python benchmarks/gpu/pdl.py [--rows 1,8,32] [--context 600]

Qwen3-0.6B's 28 layers, random weights, as FusedOps and the attention kernels run them, in one captured graph a mode.
One JSON line a case: microseconds of a pass by mode, and whether results, a burst of replays with fresh inputs each,
are the same bit by bit as those without. `best`: the faster one that has none that differ, for pdl.ENABLED.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.paged import KernelAttention
from octavo.backends.torch.device.compile import compile_only
from octavo.backends.torch.kernels import pdl
from octavo.backends.torch.ops.fused import FusedOps
from octavo.backends.torch.ops.port import Stream
from octavo.backends.torch.weights import LayerWeights, MlpWeights
from octavo.models.registry import build_spec
from octavo.models.spec import ModelSpec

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
}
BLOCK_SIZE = 16
NAMES = {False: "off", True: "on"}
BURST, BURSTS = 24, 3
DEADLINE = 21.0
"""Seconds after the start at which no further mode is begun."""


class Model:
    """Layers' weights and cache, and a pass over them."""

    def __init__(self, spec: ModelSpec, most: int, context: int, device: torch.device) -> None:
        self.spec, self.context, self.device = spec, context, device
        self.per_row = -(-(context + 1) // BLOCK_SIZE)
        self.ops = FusedOps(spec, device=device, max_model_len=context + 1, max_num_seqs=most)
        self.cache = KVCache(
            spec, num_blocks=most * self.per_row, block_size=BLOCK_SIZE, dtype=torch.bfloat16, device=device
        )
        for i in range(len(spec.layers)):
            self.cache.layer(i).normal_()
        self.attention = KernelAttention(
            {i: layer.mixer for i, layer in enumerate(spec.layers)}, self.cache, max_num_seqs=most
        )
        self.weights = [self._layer(layer) for layer in spec.layers]
        self.x = torch.empty((most, spec.hidden_size), dtype=torch.bfloat16, device=device)
        rows = torch.arange(most, device=device)
        self.tables = torch.randperm(most * self.per_row, device=device).to(torch.int32).view(most, self.per_row)
        self.slots = self.tables[rows, (context - 1) // BLOCK_SIZE].long() * BLOCK_SIZE + (context - 1) % BLOCK_SIZE

    def _layer(self, layer: Any) -> LayerWeights:
        mixer, hidden, width = layer.mixer, self.spec.hidden_size, layer.ffn.width

        def matrix(n: int, k: int) -> Tensor:
            return torch.randn((n, k), dtype=torch.bfloat16, device=self.device) * k**-0.5

        def norm(n: int) -> Tensor:
            return torch.rand(n, device=self.device) + 0.5

        return LayerWeights(
            qkv=matrix((mixer.heads + 2 * mixer.kv_heads) * mixer.head_dim, hidden),
            o=matrix(hidden, mixer.heads * mixer.head_dim),
            ffn=MlpWeights(gate_up=matrix(2 * width, hidden), down=matrix(hidden, width)),
            q_norm=norm(mixer.head_dim),
            k_norm=norm(mixer.head_dim),
            pre_mixer=norm(hidden),
            pre_ffn=norm(hidden),
        )

    def batch(self, size: int) -> Any:
        """What the operations read of a batch of single tokens, each at the end of its context."""
        every = torch.arange(size, dtype=torch.int32, device=self.device)
        return SimpleNamespace(
            steps=[],
            num_single=size,
            rows=every,
            seq_lens=torch.full_like(every, self.context),
            positions=torch.full_like(every, self.context - 1),
            slots=self.slots[:size].contiguous(),
            block_tables=self.tables,
        )

    def run(self, batch: Any, layers: int) -> Tensor:
        """[size, hidden]: the residual stream of self.x after so many layers."""
        ops, size = self.ops, batch.num_single
        self.attention.plan(batch)
        stream = Stream(self.x[:size].clone(), None)
        for i in range(layers):
            w, layer = self.weights[i], self.spec.layers[i]
            norm = layer.pre_mixer
            x, qkv = ops.norm_linear(stream, w.pre_mixer, norm, w.qkv, None)
            q = ops.attention_inputs(qkv, w, layer.mixer, batch, cache=self.cache, layer=i)
            delta = ops.linear(self.attention.run(q, i).flatten(1), w.o, None)
            x, delta = ops.norm_mlp(Stream(x, delta), w.pre_ffn, norm, w.ffn, layer.ffn.act)
            stream = Stream(x, delta)
        return stream.total()

    def written(self, size: int) -> Tensor:
        """What the layers' caches hold of the batch's tokens: [layers, 2, size, kv_heads, head_dim]."""
        return torch.stack([self.cache.slots(i)[:, self.slots[:size]] for i in range(len(self.spec.layers))])


def capture(model: Model, batch: Any, mode: bool) -> Callable[[], Tensor]:
    """A graph of one pass in this mode; what it returns replays it and gives its output (the next replay's too)."""
    pdl.ENABLED = mode
    layers = len(model.spec.layers)
    model.run(batch, 2)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model.run(batch, layers)

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def microseconds(replay: Callable[[], Tensor]) -> float:
    """Of a pass, alone between two events, eight passes long; the median of seven."""
    taken = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(8):
            replay()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) * 1e3 / 8)
    return statistics.median(taken)


def differences(model: Model, size: int, one: Callable[[], Tensor], other: Callable[[], Tensor]) -> int:
    """Replays, of bursts without a pause, whose output or cache differs between the two; each has inputs of its own."""
    inputs = torch.randn((BURST, size, model.spec.hidden_size), dtype=torch.bfloat16, device=model.device)
    wrong = 0
    for burst in range(BURSTS):
        results = []
        for replay in (one, other) if burst % 2 else (other, one):
            got = []
            for x in inputs:
                model.x[:size] = x
                # both outputs and the cache last hold another input's values, so a read too early shows
                out = replay().clone()
                got.append((out, model.written(size)))
            torch.cuda.synchronize()
            results.append(got)
        for (out, kept), (other_out, other_kept) in zip(*results, strict=True):
            same = torch.equal(out, other_out) and torch.equal(kept, other_kept) and bool(out.isfinite().all())
            wrong += not same
    return wrong


def measure(model: Model, size: int, start: float) -> dict[str, Any]:
    """Every mode, the modes' passes timed in turn, twice."""
    batch = model.batch(size)
    replays, wrong, errors = {}, {}, {}
    for mode, name in NAMES.items():
        if time.perf_counter() - start > DEADLINE:
            errors[name] = "no time left"
            continue
        try:
            replays[mode] = capture(model, batch, mode)
            wrong[name] = differences(model, size, replays[False], replays[mode])
        except Exception as error:
            errors[name] = repr(error)[:300]
    us: dict[bool, list[float]] = {mode: [] for mode in replays}
    for _ in range(2):
        for mode, replay in replays.items():
            us[mode].append(microseconds(replay))
    best = min((m for m in us if wrong.get(NAMES[m]) == 0), key=lambda mode: min(us[mode]), default=False)
    return {
        "us": {NAMES[mode]: round(min(times), 1) for mode, times in us.items()},
        "replays": BURST * BURSTS,
        "differing": wrong,
        "best": best,
        "gain_us": round(min(us[False]) - min(us[best]), 1),
        "error": errors or None,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=600)
    args = parser.parse_args()
    faulthandler.dump_traceback_later(60, exit=True)  # should kernels wait for each other for ever
    start = time.perf_counter()
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.inference_mode():
        model = Model(build_spec(CONFIG), max(args.rows), args.context, device)
        with compile_only():
            for mode in NAMES:
                pdl.ENABLED = mode
                for size in args.rows:
                    model.run(model.batch(size), 2)
        torch.cuda.synchronize()
        ready = {"kernel": "pdl", "case": "ready", "s": round(time.perf_counter() - start, 1)}
        print(json.dumps({**ready, "supported": pdl.options()["PDL"]}), flush=True)
        for size in args.rows:
            try:
                figures = measure(model, size, start)
            except Exception as error:
                figures = {"error": repr(error)[:300]}
            print(json.dumps({"kernel": "pdl", "case": f"0.6b.layers.{size}", **figures}), flush=True)


if __name__ == "__main__":
    main()
