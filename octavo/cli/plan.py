"""`octavo plan MODEL`: sizes, arithmetic and how many sequences fit, computed from the headers alone."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from octavo.api.build import open_model
from octavo.api.devices import (
    check_dtypes,
    choose_device,
    device_memory,
    element_bytes,
    kv_bytes_per_token,
    resolve_for,
)
from octavo.api.log import set_up_logging
from octavo.api.model import Model
from octavo.api.quantization import weight_bytes
from octavo.base.config.config import AUTO_LENGTH, EngineConfig
from octavo.base.config.resolve import DEFAULT_BLOCK_SIZE
from octavo.base.errors import ConfigError
from octavo.base.types.ports import DeviceMemory
from octavo.cli.flags import Parser, add_engine, add_model, take_engine

if TYPE_CHECKING:
    from octavo.models.plan import PlanReport

EXIT_NO_FIT = 1
GIB = 2**30


def main(arguments: list[str]) -> int:
    """Print the report; exit code 1 where the model does not fit."""
    from octavo.models.plan import render

    parser = Parser("plan", "What a model takes and whether it fits here. No weight is read or downloaded.")
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_engine(parser)
    values = parser.parse(arguments)
    as_json = values.pop("json")
    set_up_logging("WARNING")
    config = take_engine(values)
    report, device, reasons = make_report(config, open_model(config.model, with_text=False, with_weights=False))
    check_dtypes(device, config)
    if as_json:
        json.dump({"device": device, **dataclasses.asdict(report)}, sys.stdout, indent=2)
        print()
    else:
        print(f"{config.model.model} on {device} ({'; '.join(reasons)})")
        print(render(report))
    return 0 if report.sequences else EXIT_NO_FIT


def make_report(config: EngineConfig, model: Model) -> tuple[PlanReport, str, list[str]]:
    """What an opened model takes on the device that the config means here; the device, and why that one."""
    from octavo.engine.cache.sizing import longest_context
    from octavo.models.plan import plan_report

    device, reasons = choose_device(config.device)
    fitting = config.model.max_model_len == AUTO_LENGTH
    config = resolve_for(device, config, model.spec)
    memory, element = device_memory(device), element_bytes(config.model.dtype, device=device, stored=model.spec.dtype)
    reserve = int(memory.total * (1.0 - config.device.gpu_memory_utilization))
    activation = config.device.activation_dtype
    weights = weight_bytes(model, device=device, element=element, activation_dtype=activation)
    each = kv_bytes_per_token(config, model.spec, device=device)
    length = config.model.max_model_len or model.spec.max_position
    if fitting:
        length = longest_context(
            each,
            cache=config.cache,
            memory=DeviceMemory(total=memory.total, free=max(0, memory.free - weights), weights=weights),
            on_host=device != "cuda",
            utilization=config.device.gpu_memory_utilization,
            max_model_len=length,
        )
    report = plan_report(
        model.spec,
        weight_bytes=weights,
        kv_bytes_per_token=each,
        max_model_len=length,
        free_bytes=max(0, memory.free - reserve),
        stored_bytes=model.stored_bytes,
    )
    return _with_cache(report, config, memory, on_host=device != "cuda"), device, reasons


def _with_cache(report: PlanReport, config: EngineConfig, memory: DeviceMemory, *, on_host: bool) -> PlanReport:
    """The sequences of the cache that an engine would make beside the weights."""
    from octavo.engine.cache.sizing import num_blocks

    if not report.kv_bytes_per_token:
        return report
    left = max(0, memory.free - report.weight_bytes)
    try:
        blocks = num_blocks(
            report.kv_bytes_per_token,
            cache=config.cache,
            memory=DeviceMemory(total=memory.total, free=left, weights=report.weight_bytes),
            on_host=on_host,
            utilization=config.device.gpu_memory_utilization,
            max_model_len=report.max_model_len,
            max_num_seqs=config.scheduler.max_num_seqs,
        )
    except ConfigError as error:
        return dataclasses.replace(report, sequences=0, reason=error.message)
    size = config.cache.block_size or DEFAULT_BLOCK_SIZE
    cache = blocks * size * report.kv_bytes_per_token
    if cache > left:  # as ordered; what is not fits
        by_bytes = config.cache.num_gpu_blocks_override is None
        flag = "--kv-cache-memory-bytes" if by_bytes else "--num-gpu-blocks-override"
        reason = f"{flag} orders {cache / GIB:.2f} GiB, {left / GIB:.2f} GiB are left; lower it, or leave it out"
        return dataclasses.replace(report, sequences=0, reason=reason)
    sequences = blocks // -(-report.max_model_len // size)
    unasked = config.cache.num_gpu_blocks_override is None and config.cache.kv_cache_memory_bytes is None
    free = report.free_bytes if unasked else memory.free  # no share is held back from what is ordered
    return dataclasses.replace(report, sequences=sequences, cache_bytes=cache, free_bytes=free)
