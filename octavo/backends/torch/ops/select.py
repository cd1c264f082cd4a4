"""Which implementation of the operations a device gets, and why, in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from octavo.backends.torch.ops.plain import PlainOps
from octavo.backends.torch.ops.port import Ops
from octavo.backends.torch.quant import QuantizedMatrix
from octavo.models.spec import ModelSpec

logger = logging.getLogger(__name__)


def choose_ops(
    spec: ModelSpec,
    *,
    device: torch.device,
    max_model_len: int,
    max_num_seqs: int,
    quantized: Sequence[QuantizedMatrix] = (),
) -> Ops:
    """Fused kernels on a GPU that has them, else plain PyTorch. quantized: the matrices that are, kernels for which
    are chosen ahead, as for steps of max_num_seqs rows.
    """
    if device.type == "cpu":
        return PlainOps()
    try:
        from octavo.backends.torch.ops.fused import FusedOps
    except ImportError as error:
        logger.warning("operations: plain PyTorch, several times slower (no kernels: %s)", error)
        return PlainOps()
    return FusedOps(spec, device=device, max_model_len=max_model_len, max_num_seqs=max_num_seqs, quantized=quantized)
