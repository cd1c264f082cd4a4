"""num_blocks: what was ordered, what fits, what can ever be used."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.base.config.config import CacheConfig
from octavo.base.errors import ConfigError
from octavo.base.types.ports import DeviceMemory
from octavo.engine.cache.sizing import HOST_CACHE_BYTES, longest_context, num_blocks

MIB = 2**20


def memory(free: int, total: int = 1000) -> DeviceMemory:
    """MiB."""
    return DeviceMemory(total=total * MIB, free=free * MIB, weights=0)


def size(**changes: Any) -> int:
    cache = CacheConfig(**{name: changes.pop(name) for name in list(changes) if name in CacheConfig.__struct_fields__})
    fields: dict[str, Any] = {
        "memory": memory(900),
        "on_host": False,
        "utilization": 0.9,
        "max_model_len": 1024,
        "max_num_seqs": 1000,
    } | changes
    return num_blocks(fields.pop("kv_bytes_per_token", 65536), cache=cache, **fields)


def test_an_override_wins() -> None:
    assert size(num_gpu_blocks_override=64, kv_cache_memory_bytes=1) == 64


def test_ordered_bytes_are_rounded_down_to_blocks() -> None:
    assert size(kv_cache_memory_bytes=100 * MIB + 12345) == 100
    assert size(kv_cache_memory_bytes=100 * MIB, block_size=32, max_model_len=512) == 50


def test_memory_left_after_the_part_that_is_not_ours() -> None:
    assert size() == 800
    assert size(utilization=0.5, max_model_len=512) == 400


def test_no_more_than_the_limits_can_use() -> None:
    assert size(max_num_seqs=2) == 2 * 64
    assert size(max_num_seqs=2, max_model_len=1025) == 2 * 65


def test_the_machines_own_memory_is_taken_modestly() -> None:
    plenty = memory(90_000, 100_000)
    assert size(memory=plenty, max_num_seqs=10_000, on_host=True) == HOST_CACHE_BYTES // MIB
    assert size(memory=plenty, max_num_seqs=10_000, on_host=True, max_model_len=16 * 5000) == 5000
    assert size(memory=plenty, max_num_seqs=10_000, on_host=True, kv_cache_memory_bytes=8000 * MIB) == 8000


def test_a_devices_own_memory_is_taken_whole() -> None:
    assert size(memory=memory(90_000, 100_000), max_num_seqs=10_000) == 80_000


@pytest.mark.parametrize("ordered", [{"num_gpu_blocks_override": 2000}, {"kv_cache_memory_bytes": 2000 * MIB}])
def test_more_than_the_device_has_is_refused_by_the_field_that_orders_it(ordered: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"orders 1\.95 GiB of KV cache, and the device has 0\.98 GiB") as caught:
        size(**ordered)
    assert [caught.value.param] == list(ordered)


def test_exactly_one_context_is_enough() -> None:
    assert size(num_gpu_blocks_override=64) == 64


@pytest.mark.parametrize(
    ("changes", "have", "remedy"),
    [
        ({"num_gpu_blocks_override": 63}, "63 MiB", "--num-gpu-blocks-override"),
        ({"kv_cache_memory_bytes": 10 * MIB}, "10 MiB", "--kv-cache-memory-bytes"),
        ({"memory": memory(110)}, "10 MiB", "--gpu-memory-utilization"),
        ({"memory": memory(0)}, "0 MiB", "--gpu-memory-utilization"),
    ],
)
def test_too_little_names_numbers_and_flags(changes: dict[str, Any], have: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        size(**changes)
    message = caught.value.message
    assert "1024 tokens takes 64 MiB" in message
    assert f"room for {have}" in message
    assert message.endswith(f"raise {remedy}")
    assert ("--max-model-len to" in message) == (have != "0 MiB")
    assert caught.value.param == "max_model_len"


def test_the_length_it_proposes_fits() -> None:
    with pytest.raises(ConfigError, match="--max-model-len to 160 or less"):
        size(kv_cache_memory_bytes=10 * MIB)
    assert size(kv_cache_memory_bytes=10 * MIB, max_model_len=160) == 10


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({"kv_cache_memory_bytes": 10 * MIB}, 160),
        ({"num_gpu_blocks_override": 3, "block_size": 32}, 96),
        ({"memory": memory(110)}, 160),
        ({"memory": memory(110), "on_host": True}, 160),
        ({"memory": memory(90_000, 100_000), "on_host": True, "max_model_len": 16 * 5000}, 16 * 5000),
        ({"max_model_len": 1001}, 1001),
        ({"kv_bytes_per_token": 0}, 1024),
    ],
)
def test_the_longest_context_fits(changes: dict[str, Any], longest: int) -> None:
    own = {name: changes[name] for name in changes if name in CacheConfig.__struct_fields__}
    rest = {name: changes[name] for name in changes if name not in own}
    sizes: dict[str, Any] = {"memory": memory(900), "on_host": False, "utilization": 0.9, "max_model_len": 1024} | rest
    assert longest_context(sizes.pop("kv_bytes_per_token", 65536), cache=CacheConfig(**own), **sizes) == longest
    assert size(**{**changes, "max_model_len": longest}) * own.get("block_size", 16) >= longest


def test_no_context_at_all_is_refused() -> None:
    none: dict[str, Any] = {"memory": memory(0), "on_host": False, "utilization": 0.9}
    longest = longest_context(65536, cache=CacheConfig(), max_model_len=1024, **none)
    with pytest.raises(ConfigError, match="room for 0 MiB"):
        size(**none, max_model_len=longest)
