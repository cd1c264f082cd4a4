"""Unquantized elements (F32, F16, BF16) to float32."""

from __future__ import annotations

import numpy as np

from octavo.quant.scheme import dequantizer


@dequantizer("F32")
def _f32(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f4").astype(np.float32)


@dequantizer("F16")
def _f16(raw: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # signalling NaNs
        return raw.view("<f2").astype(np.float32)


@dequantizer("BF16")
def _bf16(raw: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    wide = raw.view("<u2").astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
