"""`octavo plan MODEL`: sizes, arithmetic and how many sequences fit, computed from the headers alone."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from octavo.api.build import Model, open_model
from octavo.api.devices import choose_device, device_memory, element_bytes, kv_bytes_per_token
from octavo.api.log import set_up_logging
from octavo.api.quantization import weight_bytes
from octavo.base.config.config import EngineConfig
from octavo.base.config.resolve import resolve
from octavo.cli.flags import Parser, add_engine, add_model, take_engine

if TYPE_CHECKING:
    from octavo.models.plan import PlanReport

EXIT_NO_FIT = 1


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
    if as_json:
        json.dump({"device": device, **dataclasses.asdict(report)}, sys.stdout, indent=2)
        print()
    else:
        print(f"{config.model.model} on {device} ({'; '.join(reasons)})")
        print(render(report))
    return 0 if report.sequences else EXIT_NO_FIT


def make_report(config: EngineConfig, model: Model) -> tuple[PlanReport, str, list[str]]:
    """What an opened model takes on the device that the config means here; the device, and why that one."""
    from octavo.models.plan import plan_report

    config = resolve(config, max_position=model.spec.max_position, pooling=model.spec.pooling is not None)
    device, reasons = choose_device(config.device)
    memory, element = device_memory(device), element_bytes(config.model.dtype, device=device, stored=model.spec.dtype)
    reserve = int(memory.total * (1.0 - config.device.gpu_memory_utilization))
    report = plan_report(
        model.spec,
        weight_bytes=weight_bytes(model, device=device, element=element),
        kv_bytes_per_token=kv_bytes_per_token(config, model.spec, device=device),
        max_model_len=config.model.max_model_len or model.spec.max_position,
        free_bytes=max(0, memory.free - reserve),
        stored_bytes=model.stored_bytes,
    )
    return report, device, reasons
