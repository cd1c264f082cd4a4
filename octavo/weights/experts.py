"""An expert's tensor by name in, a view of it out, where a file keeps all experts of a layer in one tensor.

GGUF          blk.{i}.ffn_{gate,up,down}_exps.weight [experts, out, in], as gguf_config.py names them
Transformers  ....experts.gate_up_proj [experts, 2 * width, hidden], gate's rows first; ....experts.down_proj
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from octavo.base.types.tensor import StoredTensor

_EXPERT = re.compile(r"^(?P<prefix>.+\.experts)\.(?P<number>\d{1,6})\.(?P<part>\w+)\.weight$")
_HALVES = {"gate_proj": 0, "up_proj": 1}


def find_expert(tensors: Mapping[str, StoredTensor], name: str) -> StoredTensor | None:
    """The matrix `name` (PREFIX.experts.NUMBER.PART.weight) cut out of a stack; None where no stack has it."""
    match = _EXPERT.match(name)
    if match is None:
        return None
    prefix, number, part = match["prefix"], int(match["number"]), match["part"]
    for stacked in (f"{prefix}.{part}.weight", f"{prefix}.{part}"):
        if stacked in tensors:
            return _rows(tensors[stacked], number, 0, 1)
    fused = tensors.get(f"{prefix}.gate_up_proj")
    return None if fused is None or part not in _HALVES else _rows(fused, number, _HALVES[part], 2)


def _rows(stack: StoredTensor, number: int, half: int, of: int) -> StoredTensor | None:
    """Matrix `number` of the stack, or the half of its rows."""
    if len(stack.shape) != 3 or number >= stack.shape[0] or stack.shape[1] % of:
        return None
    rows = stack.shape[1] // of
    size = stack.data.nbytes // stack.shape[0] // of
    begin = (number * of + half) * size
    return StoredTensor(stack.name, stack.scheme, (rows, stack.shape[2]), stack.data.cast("B")[begin : begin + size])
