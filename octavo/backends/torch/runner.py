"""TorchBackend: base.types.ports.Backend over PyTorch. StepPlans in, StepResults out, in the order begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import torch

from octavo.backends.torch.attention.cache import KVCache
from octavo.backends.torch.attention.flash4 import Flash4
from octavo.backends.torch.attention.select import AttentionStack
from octavo.backends.torch.batch import make_batch
from octavo.backends.torch.device import compile_workers
from octavo.backends.torch.device.compile import compile_only
from octavo.backends.torch.device.device import resolve_cache_dtype, resolve_device, resolve_dtype
from octavo.backends.torch.device.graph import Pool
from octavo.backends.torch.device.memory import (
    activation_bytes,
    device_bytes,
    explained,
    give_back,
    graph_bytes,
    pool_bytes,
    row_bytes,
)
from octavo.backends.torch.device.transfer import Staging
from octavo.backends.torch.forward_graphs import ForwardGraphs, graphed_tokens
from octavo.backends.torch.layers.decoder import Decoder, check_words
from octavo.backends.torch.layers.encoder import Encoder
from octavo.backends.torch.ops.select import choose_ops
from octavo.backends.torch.rows import Rows
from octavo.backends.torch.step import Launched, StepRunner, collect
from octavo.backends.torch.weights import load_weights
from octavo.base.errors import ConfigError, UnsupportedError
from octavo.base.types.plan import RowStep, StepPlan, StepResult
from octavo.base.types.ports import DeviceMemory, Progress
from octavo.base.types.tensor import Weights
from octavo.models.spec import ModelSpec, MoE

if TYPE_CHECKING:
    from octavo.backends.torch.graphs import DecodeSteps


MAX_UNFINISHED = 2
FEWER_WEIGHTS = "end what else uses the device, quantize (-q fp8), or take a smaller model"
FEWER_BLOCKS = (
    "end what else uses the device, or lower --gpu-memory-utilization, --kv-cache-memory-bytes or "
    "--num-gpu-blocks-override, whichever set its size"
)


class TorchBackend:
    """One device. Steps run on one worker thread; methods are to be called from one thread."""

    def __init__(
        self,
        *,
        device: str = "cpu",
        max_num_seqs: int,
        max_model_len: int,
        max_num_batched_tokens: int,
        block_size: int,
        dtype: str = "float32",
        threads: int | None = None,
        kv_cache_dtype: str = "auto",
    ) -> None:
        """device: as device/device.py names it.  threads: of one operation on a CPU.

        dtype, kv_cache_dtype: as ModelConfig and CacheConfig have them.  Raises ConfigError, UnsupportedError.
        """
        self._device = resolve_device(device)
        # wrong names are told now, not after loading
        arithmetic = resolve_dtype(dtype, device=self._device, stored="float32")
        resolve_cache_dtype(kv_cache_dtype, arithmetic=arithmetic, device=self._device)
        self._dtype_name, self._cache_dtype_name = dtype, kv_cache_dtype
        self._max_num_seqs, self._max_model_len = max_num_seqs, max_model_len
        self._max_num_tokens, self._block_size = max_num_batched_tokens, block_size
        self.graphs = self._device.type == "cuda"
        """Decode steps as graphs; to be turned off before `allocate`."""
        self.quantization: str | None = None
        """Of quant.ONLINE, what matrices that are stored plainly become; to be set before `load`."""
        self._decoder: Decoder | Encoder | None = None
        self._attention: AttentionStack | None = None
        self._flash: Flash4 | None = None
        self._runner: StepRunner | None = None
        self._unfinished: deque[Future[Launched]] = deque()
        self._unmasked = False
        self._staging = Staging()
        # on a GPU launching is all that a step does here, and a second thread would only pass it on
        on_host = self._device.type == "cpu"
        self._worker: Worker = ThreadPoolExecutor(1, "octavo-torch", _set_threads, (threads,)) if on_host else InPlace()

    def load(self, spec: ModelSpec, weights: Weights, progress: Progress | None = None) -> None:
        """Weights onto the device. ModelFormatError: a tensor is missing or misshapen; UnsupportedError: a word."""
        check_words(spec)
        dtype = resolve_dtype(self._dtype_name, device=self._device, stored=spec.dtype)
        cache_dtype = resolve_cache_dtype(self._cache_dtype_name, arithmetic=dtype, device=self._device)
        self._flash = Flash4(
            spec, device=self._device, dtype=dtype, cache_dtype=cache_dtype, block_size=self._block_size
        )
        with torch.inference_mode(), explained(self._device, "the weights", FEWER_WEIGHTS):
            loaded = load_weights(
                spec,
                weights,
                dtype=dtype,
                device=self._device,
                quantization=self.quantization,
                progress=progress,
            )
            if spec.learned:
                self._decoder = Encoder(spec, loaded, spec.learned)
            else:
                ops = choose_ops(
                    spec,
                    device=self._device,
                    max_model_len=self._max_model_len,
                    max_num_seqs=self._max_num_seqs,
                    quantized=loaded.quantized(),
                )
                self._decoder = Decoder(spec, loaded, ops)
        self.graphs = self.graphs and spec.pooling is None

    def memory(self) -> DeviceMemory:
        """`free` leaves room for the rows, a step's intermediate values, those of graphs, and a widened matrix."""
        decoder = self._loaded()
        total, free = device_bytes(self._device)
        sizes = {"rows": self._max_num_seqs, "element": decoder.weights.embed.element_size()}
        kernels = isinstance(decoder, Decoder) and decoder.ops.fused
        taken = activation_bytes(decoder.spec, tokens=self._max_num_tokens, kernels=kernels, **sizes)
        if self.graphs:
            taken += graph_bytes(decoder.spec, **self._graph_sizes(decoder))
        widened = max((prod(matrix.shape) for matrix in decoder.weights.quantized()), default=0)
        taken += widened * sizes["element"] * (2 if self.graphs else 1)
        taken += self._max_num_seqs * row_bytes(
            max_model_len=self._max_model_len, block_size=self._block_size, vocab_size=decoder.spec.vocab_size
        )
        return DeviceMemory(total=total, free=max(free - taken, 0), weights=decoder.weights.num_bytes)

    def allocate(self, num_blocks: int) -> None:
        """Make rows and cache. ConfigError where num_blocks is below 1."""
        decoder, flash = self._loaded(), self._flash
        if flash is None:
            raise RuntimeError("the model is not loaded, or was closed")
        if num_blocks < 1:
            raise ConfigError(
                f"the KV cache would have {num_blocks} blocks; give it memory with --kv-cache-memory-bytes",
                param="kv_cache_memory_bytes",
            )
        arithmetic = decoder.weights.embed.dtype
        kept = f"the KV cache of {num_blocks} blocks, beside it rows and graphs,"
        with torch.inference_mode(), self._staging.current(), explained(self._device, kept, FEWER_BLOCKS):
            cache = KVCache(
                decoder.spec,
                num_blocks=num_blocks,
                block_size=self._block_size,
                dtype=resolve_cache_dtype(self._cache_dtype_name, arithmetic=arithmetic, device=self._device),
                device=self._device,
                finite=flash.wanted,
            )
            rows = Rows(
                max_num_seqs=self._max_num_seqs,
                max_model_len=self._max_model_len,
                block_size=self._block_size,
                num_blocks=num_blocks,
                vocab_size=decoder.spec.vocab_size,
                device=self._device,
            )
            self._attention = AttentionStack(decoder.spec, cache, max_num_seqs=self._max_num_seqs)
            captured = self._captured_steps(decoder, rows, cache, self._attention)
            compile_workers.end_ahead()
            self._attention.use_flash(flash.kernels())  # last, as they may still be on their way
        self._runner = StepRunner(decoder, rows, cache, self._attention, *captured)

    def begin(self, plan: StepPlan) -> None:
        """Hand the step to the worker; returns at once."""
        runner = self._runner
        if runner is None:
            raise RuntimeError("begin before load and allocate, or after close")
        if len(self._unfinished) >= MAX_UNFINISHED:
            raise RuntimeError(f"{MAX_UNFINISHED} steps are begun and unfinished; call finish first")
        if plan.num_tokens > self._max_num_tokens:
            raise RuntimeError(f"step {plan.step} has {plan.num_tokens} tokens, the limit is {self._max_num_tokens}")
        self._mask({})
        self._unfinished.append(self._worker.submit(_launch, runner, self._staging, plan))
        self._unmasked = bool(plan.masked)

    def mask(self, masks: dict[int, bytes]) -> None:
        """Let the step that was begun last sample."""
        if not self._unmasked:
            raise RuntimeError("no step waits for masks")
        self._mask(masks)

    def _mask(self, masks: dict[int, bytes]) -> None:
        if self._unmasked and self._runner is not None:
            self._unmasked = False
            started = self._unfinished.pop()
            self._unfinished.append(self._worker.submit(_resume, self._runner, self._staging, started, masks))

    def finish(self) -> StepResult:
        """Wait for the oldest unfinished step; raises what the whole step raised."""
        if not self._unfinished:
            raise RuntimeError("finish without begin")
        if len(self._unfinished) == 1:
            self._mask({})
        return collect(self._unfinished.popleft().result())

    def call(self, name: str, **arguments: Any) -> Any:
        """The one name known is "describe": device, dtype; by layer, the attention of tokens and of spans of them."""
        if name != "describe" or arguments:
            known = "describe, which takes no arguments"
            raise UnsupportedError(f"the torch backend has no call {name}({', '.join(arguments)}); it has {known}")
        decoder = self._loaded()
        return {
            "device": str(self._device),
            "dtype": str(decoder.weights.embed.dtype).removeprefix("torch."),
            "attention": list(self._attention.names) if self._attention else [],
            "attention_of_spans": list(self._attention.spans) if self._attention else [],
        }

    def close(self) -> None:
        """Ends the worker after the step it is at, drops weights and cache, and gives their memory back."""
        compile_workers.end_ahead()
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._unfinished.clear()
        self._decoder = self._attention = self._flash = self._runner = None
        give_back(self._device)

    def _captured_steps(
        self, decoder: Decoder | Encoder, rows: Rows, cache: KVCache, attention: AttentionStack
    ) -> tuple[DecodeSteps, ForwardGraphs] | tuple[()]:
        """Nothing where there are no kernels."""
        if not attention.capturable or not isinstance(decoder, Decoder) or decoder.spec.pooling:
            return ()
        from octavo.backends.torch.graphs import DecodeStep, DecodeSteps

        pool = Pool(pool_bytes(decoder.spec, **self._graph_sizes(decoder))) if self.graphs else None
        decodes = DecodeSteps(DecodeStep(decoder, rows, cache, attention), rows, pool=pool)
        most = graphed_tokens(decoder.spec, self._max_num_tokens)
        forwards = ForwardGraphs(decoder, rows, cache, attention, most=most, pool=pool)
        if self._device.type == "cuda":
            with compile_only(), decoder.kinds_only():
                for count in self._walked_tokens(decoder):
                    decoder.forward(make_batch([RowStep(0, 0, count, True)], rows), cache, attention)
                decodes.warm()
        return decodes, forwards

    def _walked_tokens(self, decoder: Decoder) -> set[int]:
        """Numbers of tokens of prompts that between them meet all kernels of prompts."""
        from octavo.backends.torch.kernels.moe_matmul import unlike_tokens

        most, element = min(self._max_num_tokens, self._max_model_len), decoder.weights.embed.element_size()
        mixtures = {layer.ffn for layer in decoder.spec.layers if isinstance(layer.ffn, MoE)}
        met = {n for moe in mixtures for n in unlike_tokens(moe, most, element_size=element)}
        few = (32, 64) if decoder.weights.quantized() else ()  # of byte_matmul.many_bytes
        return {min(most, n) for n in (*few, 100, 2048)} | met

    def _graph_sizes(self, decoder: Decoder | Encoder) -> dict[str, int]:
        """As graph_bytes and pool_bytes take them."""
        most = graphed_tokens(decoder.spec, self._max_num_tokens)
        return {"tokens": most, "rows": self._max_num_seqs, "element": decoder.weights.embed.element_size()}

    def _loaded(self) -> Decoder | Encoder:
        if self._decoder is None:
            raise RuntimeError("the model is not loaded, or was closed")
        return self._decoder


class Worker(Protocol):
    """What is used of concurrent.futures.Executor."""

    def submit(self, function: Callable[..., Launched], /, *arguments: Any) -> Future[Launched]: ...
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class InPlace:
    """A Worker without a thread: what is submitted has run when `submit` returns."""

    def submit(self, function: Callable[..., Launched], /, *arguments: Any) -> Future[Launched]:
        """What the function returns or raises, in a Future."""
        future: Future[Launched] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing is left to end."""


def _set_threads(threads: int | None) -> None:
    """On the worker: torch keeps the number of threads by thread."""
    if threads is not None:
        torch.set_num_threads(threads)


def _launch(runner: StepRunner, staging: Staging, plan: StepPlan) -> Launched:
    staging.next_step()
    with torch.inference_mode(), staging.current():
        return runner.launch(plan)


def _resume(runner: StepRunner, staging: Staging, started: Future[Launched], masks: dict[int, bytes]) -> Launched:
    with torch.inference_mode(), staging.current():
        return runner.mask(started.result(), masks)
