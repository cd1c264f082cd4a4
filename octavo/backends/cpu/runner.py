"""In: StepPlans. Out: StepResults, computed on this machine's cores: the backend port's cpu side."""

from __future__ import annotations

from math import prod
from typing import Any

from octavo.backends.cpu.cache import CELLS, cache_dtype
from octavo.backends.cpu.host import memory_bytes, take_threads
from octavo.backends.cpu.machine import Machine
from octavo.backends.cpu.native import Pool, library, rounds
from octavo.backends.cpu.native_machine import NativeMachine
from octavo.backends.cpu.packed import load_packed
from octavo.backends.cpu.pooling import Pooler
from octavo.backends.cpu.program import Program, build_program
from octavo.backends.cpu.rows import Rows
from octavo.backends.cpu.step import Steps
from octavo.backends.cpu.team import Team
from octavo.backends.cpu.weights import check_weights, load_packs
from octavo.backends.cpu.worker import Worker
from octavo.base.config import env
from octavo.base.errors import ConfigError, UnsupportedError
from octavo.base.types.plan import StepPlan, StepResult
from octavo.base.types.ports import DeviceMemory, Progress
from octavo.base.types.tensor import Weights
from octavo.models.spec import ModelSpec

MAX_BEGUN = 2


class CpuBackend:
    """base.types.ports.Backend. Steps run one after the other on a thread of their own.

    threads: those that share a step; the cores that this process may use where None. NumPy's BLAS is held to one.
    native: run native kernels, where they were built; else, and where False, NumPy computes every op.
    activation_dtype: as DeviceConfig's; auto is int8 with native kernels, else float32.
    kv_cache_dtype: of cache.CELLS; auto is bfloat16 where activations are rounded, else float32, as for float32 models.
    Raises UnsupportedError for another kv_cache_dtype, ConfigError for int8 without native kernels.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_num_batched_tokens: int,
        block_size: int,
        threads: int | None = None,
        native: bool = True,
        activation_dtype: str = "auto",
        kv_cache_dtype: str = "auto",
    ) -> None:
        self._library = library() if native else None
        self._exact = self._library is None or not rounds(activation_dtype)
        self._kv_cache_dtype = kv_cache_dtype
        if kv_cache_dtype not in ("auto", *CELLS):
            raise UnsupportedError(
                f"kv_cache_dtype={kv_cache_dtype} is not supported on the cpu backend; use auto or {', '.join(CELLS)}",
                param="kv_cache_dtype",
            )
        self._max_num_seqs = max_num_seqs
        self._max_model_len = max_model_len
        self._max_tokens = max_num_batched_tokens
        self._block_size = block_size
        self._threads = take_threads(threads)
        if activation_dtype == "int8" and self._library is None:
            raise ConfigError(
                "activation_dtype=int8 needs the native kernels, which were not built; install a C++ compiler and "
                "Octavo again, or leave activation_dtype out",
                param="activation_dtype",
            )
        self._machine: Machine | NativeMachine | None = None
        self._steps: Steps | None = None
        self._pooler: Pooler | None = None
        self._vocab_size = 0
        self._num_begun = 0
        self._unmasked = False
        self._worker: Worker[StepResult] = Worker("octavo-cpu")

    def load(self, spec: ModelSpec, weights: Weights, progress: Progress | None = None) -> None:
        """Pack the weights; NumPy needs them as float32. Raises ModelFormatError for missing or misshapen ones,
        ConfigError for steps that the memory cannot hold."""
        check_weights(spec, weights)
        program = build_program(spec)
        self._check_steps(program)
        kv_cache_dtype = cache_dtype(self._kv_cache_dtype, rounds=not self._exact, stored=spec.dtype)
        self._vocab_size = spec.vocab_size
        self._pooler = Pooler(spec.pooling, weights) if spec.pooling else None
        if self._library is not None:
            pool = Pool(self._library, self._threads)
            try:
                self._machine = self._native(program, weights, pool, kv_cache_dtype, progress)
            except BaseException:
                pool.close()
                raise
            return
        self._machine = Machine(
            program,
            load_packs(program.packs, weights, threads=self._threads, progress=progress),
            team=Team(self._threads),
            max_tokens=self._max_tokens,
            max_model_len=self._max_model_len,
            block_size=self._block_size,
            kv_cache_dtype=kv_cache_dtype,
        )

    def _native(
        self, program: Program, weights: Weights, pool: Pool, kv_cache_dtype: str, progress: Progress | None
    ) -> NativeMachine:
        packed = load_packed(
            program.packs, weights, pool=pool, exact=self._exact, folder=env.packed_folder(), progress=progress
        )
        return NativeMachine(
            program,
            packed,
            pool=pool,
            max_tokens=self._max_tokens,
            block_size=self._block_size,
            kv_cache_dtype=kv_cache_dtype,
        )

    def _check_steps(self, program: Program) -> None:
        """Before the weights are packed, which may take minutes."""
        short = {step.arguments[1] for step in program.body if step.op == "gated"}  # native code fills a part of them
        width = sum(prod(shape) for name, shape in program.registers.items() if name not in short)
        need, (total, _) = 4 * width * self._max_tokens, memory_bytes()
        if need > total:
            raise ConfigError(
                f"max_num_batched_tokens={self._max_tokens}: a step of so many tokens takes {need / 2**30:.1f} GiB, of "
                f"{total / 2**30:.1f} GiB of memory in all; lower --max-num-batched-tokens",
                param="max_num_batched_tokens",
            )

    def memory(self) -> DeviceMemory:
        """Bytes now; what a step may still come to take, mapped weights among it, is not counted as free."""
        total, free = memory_bytes()
        machine = self._loaded()
        free -= machine.work_bytes + machine.mapped_bytes
        return DeviceMemory(total=total, free=max(0, free), weights=machine.weight_bytes)

    def allocate(self, num_blocks: int) -> None:
        """Make the KV cache. Raises ConfigError where num_blocks is below 1."""
        machine = self._loaded()
        if num_blocks < 1:
            raise ConfigError(
                f"the KV cache would have {num_blocks} blocks; give it memory with --kv-cache-memory-bytes",
                param="kv_cache_memory_bytes",
            )
        machine.allocate(num_blocks)
        rows = Rows(
            self._max_num_seqs,
            max_model_len=self._max_model_len,
            block_size=self._block_size,
            num_blocks=num_blocks,
            vocab_size=self._vocab_size,
        )
        self._steps = Steps(machine, rows, self._pooler)

    def begin(self, plan: StepPlan) -> None:
        """Hand a step to the worker; at most two are begun and unfinished."""
        if self._steps is None:
            raise RuntimeError("begin before allocate")
        self._mask({})
        if self._num_begun >= MAX_BEGUN:
            raise RuntimeError(f"{MAX_BEGUN} steps are begun and unfinished")
        self._worker.begin(self._steps.start if plan.masked else self._steps.run, plan)
        self._num_begun += 1
        self._unmasked = bool(plan.masked)

    def mask(self, masks: dict[int, bytes]) -> None:
        """Let the step that was begun last sample."""
        if not self._unmasked:
            raise RuntimeError("no step waits for masks")
        self._mask(masks)

    def _mask(self, masks: dict[int, bytes]) -> None:
        if self._unmasked and self._steps is not None:
            self._unmasked = False
            self._worker.begin(self._steps.sample, masks)

    def finish(self) -> StepResult:
        """Wait for the oldest unfinished step; raises what that step raised."""
        if not self._num_begun:
            raise RuntimeError("finish without begin")
        if self._num_begun == 1:
            self._mask({})
        self._num_begun -= 1
        return self._worker.finish()

    def call(self, name: str, **arguments: Any) -> Any:
        """`describe`: what runs the model, as a dict. Raises UnsupportedError for any other name."""
        if name == "describe" and not arguments:
            return self._loaded().describe()
        raise UnsupportedError(f"the cpu backend does not know {name}", param="name")

    def close(self) -> None:
        """Let the steps that were begun end, then free everything; idempotent."""
        self._worker.close()
        if self._machine is not None:
            self._machine.close()
        self._num_begun = 0
        self._machine = self._steps = None

    def _loaded(self) -> Machine | NativeMachine:
        if self._machine is None:
            raise RuntimeError("load comes first")
        return self._machine
