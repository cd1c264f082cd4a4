"""How many KV blocks: bytes a token and the device's memory in, a number of blocks out."""

from __future__ import annotations

from octavo.base.config.config import CacheConfig
from octavo.base.config.resolve import DEFAULT_BLOCK_SIZE
from octavo.base.errors import ConfigError
from octavo.base.types.ports import DeviceMemory

HOST_CACHE_BYTES = 4 << 30
"""Most that the cache takes by itself where the memory is the machine's own: other programs live there too."""


def longest_context(
    kv_bytes_per_token: int,
    *,
    cache: CacheConfig,
    memory: DeviceMemory,
    on_host: bool,
    utilization: float,
    max_model_len: int,
) -> int:
    """max_model_len, or the tokens that there is room for where those are fewer; arguments as for num_blocks.

    Where there is no room at all it is max_model_len, which num_blocks then refuses.
    """
    block_size = cache.block_size or DEFAULT_BLOCK_SIZE
    one_context = -(-max_model_len // block_size)
    if not kv_bytes_per_token:
        return max_model_len
    blocks, _ = _room(kv_bytes_per_token * block_size, cache, memory, on_host, utilization, one_context, one_context)
    return min(max_model_len, blocks * block_size) or max_model_len


def num_blocks(
    kv_bytes_per_token: int,
    *,
    cache: CacheConfig,
    memory: DeviceMemory,
    on_host: bool,
    utilization: float,
    max_model_len: int,
    max_num_seqs: int,
) -> int:
    """Blocks to allocate: what was ordered, else as much as the memory allows and the limits can ever use.

    memory: with the weights loaded.  on_host: it is the machine's own, of which no more than HOST_CACHE_BYTES (or one
    context, if that is more) is taken unasked.  utilization: share of all memory for weights and cache together.
    Raises ConfigError with the numbers where not even one context fits, and where more is ordered than there is memory.
    """
    block_size = cache.block_size or DEFAULT_BLOCK_SIZE
    block_bytes = kv_bytes_per_token * block_size
    one_context = -(-max_model_len // block_size)
    most = one_context * max_num_seqs
    if not block_bytes:  # an encoder's: blocks are counted and hold nothing
        return most
    blocks, flag = _room(block_bytes, cache, memory, on_host, utilization, one_context, most)
    if blocks * block_bytes > memory.total:
        order, have = blocks * block_bytes / 2**30, memory.total / 2**30
        raise ConfigError(
            f"{flag} orders {order:.2f} GiB of KV cache, and the device has {have:.2f} GiB in all; lower it, or leave "
            "it out",
            param=flag.removeprefix("--").replace("-", "_"),
        )
    if blocks < one_context:
        need, have = one_context * block_bytes / 2**20, blocks * block_bytes / 2**20
        shorter = f"lower --max-model-len to {blocks * block_size} or less, or " if blocks else ""
        raise ConfigError(
            f"a context of {max_model_len} tokens takes {need:.0f} MiB of KV cache, there is room for {have:.0f} MiB; "
            f"{shorter}raise {flag}",
            param="max_model_len",
        )
    return blocks


def _room(
    block_bytes: int,
    cache: CacheConfig,
    memory: DeviceMemory,
    on_host: bool,
    utilization: float,
    one_context: int,
    most: int,
) -> tuple[int, str]:
    """Blocks that were ordered, or there is room for; and the flag that says how many. one_context, most: blocks."""
    if cache.num_gpu_blocks_override is not None:
        return cache.num_gpu_blocks_override, "--num-gpu-blocks-override"
    if cache.kv_cache_memory_bytes is not None:
        return cache.kv_cache_memory_bytes // block_bytes, "--kv-cache-memory-bytes"
    budget = memory.free - int(memory.total * (1.0 - utilization))
    if on_host:
        budget = min(budget, max(HOST_CACHE_BYTES, one_context * block_bytes))
    return min(max(budget, 0) // block_bytes, most), "--gpu-memory-utilization"
