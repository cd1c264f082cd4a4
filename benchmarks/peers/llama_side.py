"""llama.cpp through its C API: seconds of a prefill and of decode steps, as llama-batched-bench counts them.

Weights come from the same GGUF file; nothing is sampled, logits are computed for the rows that would be.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp

from peers.rows import SETTLE

PIECE = 512  # tokens a call at most, and the size of llama.cpp's own micro-batch
# The ways to run that may be fastest, one cache for all sequences or one each; the first where nothing is tried.
WAYS = (
    {"flash_attention": True, "unified_kv": False},
    {"flash_attention": True, "unified_kv": True},
    {"flash_attention": False, "unified_kv": False},
)
TRIAL_LENGTH, TRIAL_STEPS = 1024, 8  # longer ones would take minutes to try
TYPES = {"Q4_0": 2, "Q8_0": 7, "BF16": 32}  # llama_ftype
FIRST_TOKEN = 100

# errors only
_log = llama_cpp.llama_log_callback(lambda level, text, _: print(text.decode(), end="") if level == 4 else None)


def requantize(source: Path, target: Path, format_name: str) -> None:
    """Write `source` in another format, by llama.cpp's own quantizer."""
    llama_cpp.llama_log_set(_log, ctypes.c_void_p())
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TYPES[format_name]
    params.allow_requantize = True
    partial = target.with_suffix(".partial")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not make {target.name} from {source}")
    partial.rename(target)


class Context:
    """One llama_context with room for `sequences` of `length` tokens each."""

    def __init__(self, model: Any, *, sequences: int, length: int, threads: int, way: dict[str, bool]) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * -(-length // 256) * 256
        params.n_batch = params.n_ubatch = PIECE
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(way["flash_attention"])
        params.kv_unified = way["unified_kv"]
        params.swa_full = False
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp refused a context of {sequences} sequences of {length} tokens")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(PIECE, 0, 1)
        self.sequences = sequences

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)

    def rewind(self, position: int) -> None:
        """Forget every sequence's tokens from `position` on."""
        for sequence in range(self.sequences):
            if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, position, -1):
                raise SystemExit("llama.cpp cannot rewind this cache")

    def prefill(self, tokens: int) -> None:
        """The first sequence's tokens from position 0 on; logits of the last one."""
        for start in range(0, tokens, PIECE):
            count = min(PIECE, tokens - start)
            last = start + count == tokens
            self._run([(0, start + i) for i in range(count)], logits_from=count - 1 if last else count)

    def share(self) -> None:
        """Give every sequence the first one's tokens, in cells of its own."""
        size = llama_cpp.llama_state_seq_get_size(self._context, 0)
        state = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self._context, state, size, 0)
        for sequence in range(1, self.sequences):
            if not llama_cpp.llama_state_seq_set_data(self._context, state, size, sequence):
                raise SystemExit("llama.cpp could not copy a sequence")

    def step(self, position: int) -> None:
        """One token of every sequence."""
        self._run([(sequence, position) for sequence in range(self.sequences)], logits_from=0)

    def _run(self, cells: list[tuple[int, int]], *, logits_from: int) -> None:
        batch = self._batch
        batch.n_tokens = len(cells)
        for i, (sequence, position) in enumerate(cells):
            batch.token[i] = FIRST_TOKEN + (sequence * 131 + position * 17) % 9000
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i >= logits_from
        if llama_cpp.llama_decode(self._context, batch):
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(self._context)


class LlamaSide:
    """The engine that a worker measures. options: one of WAYS, to try no other."""

    def __init__(self, path: str, *, threads: int, options: dict[str, Any]) -> None:
        self._ways = [options] if options else list(WAYS)
        self._threads = threads
        llama_cpp.llama_log_set(_log, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot open {path}")
        self._shape = (0, 0, 0)
        self._context: Context | None = None
        self._chosen: dict[str, dict[str, bool]] = {}

    def about(self) -> dict[str, Any]:
        """Versions, and the fastest way found for each shape so far."""
        system = llama_cpp.llama_print_system_info().decode().strip()
        return {"llama-cpp-python": llama_cpp.__version__, "system": system, "ways": self._chosen}

    def prefill(self, tokens: int) -> float:
        """Seconds from the prompt's ids to the logits of its last token."""
        return _prefill(self._prepare(sequences=1, filled=0, tokens=tokens), tokens)

    def decode(self, sequences: int, context: int, steps: int) -> float:
        """Seconds of `steps` steps of every sequence, after `context` tokens each and the steps to settle."""
        start = context + SETTLE
        return _decode(self._prepare(sequences=sequences, filled=start, tokens=steps), start, steps)

    def close(self) -> None:
        self._drop()
        llama_cpp.llama_free_model(self._model)

    def _drop(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context = None

    def _prepare(self, *, sequences: int, filled: int, tokens: int) -> Context:
        """The context of this shape, the fastest of the ways to run it; only the last shape's is kept."""
        shape = (sequences, filled, tokens)
        if self._context is None or shape != self._shape:
            self._drop()
            self._context, self._shape = self._fastest(sequences, filled, tokens), shape
        return self._context

    def _fastest(self, sequences: int, filled: int, tokens: int) -> Context:
        ways = self._ways if filled + tokens <= TRIAL_LENGTH else self._ways[:1]
        if sequences == 1:  # one sequence has one cache
            ways = [way for way in ways if not way["unified_kv"]] or ways
        tried: list[tuple[float, dict[str, bool]]] = []
        for way in ways:
            context = self._open(sequences, filled, tokens, way)
            if len(ways) == 1:
                self._chosen[f"{sequences}x{filled}+{tokens}"] = way
                return context
            steps = min(tokens, TRIAL_STEPS)
            trial = [_decode(context, filled, steps) if filled else _prefill(context, tokens) for _ in range(2)]
            tried.append((min(trial), way))
            context.close()
        best = min(tried, key=lambda pair: pair[0])[1]
        self._chosen[f"{sequences}x{filled}+{tokens}"] = best
        return self._open(sequences, filled, tokens, best)

    def _open(self, sequences: int, filled: int, tokens: int, way: dict[str, bool]) -> Context:
        context = Context(self._model, sequences=sequences, length=filled + tokens, threads=self._threads, way=way)
        if filled:
            context.prefill(filled)
            context.share()
            _decode(context, filled, 1)
        return context


def _prefill(context: Context, tokens: int) -> float:
    context.clear()
    start = time.perf_counter()
    context.prefill(tokens)
    return time.perf_counter() - start


def _decode(context: Context, position: int, steps: int) -> float:
    context.rewind(position)
    start = time.perf_counter()
    for i in range(steps):
        context.step(position + i)
    return time.perf_counter() - start
