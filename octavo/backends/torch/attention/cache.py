"""The paged KV cache on a device: keys and values in, by slot; blocks copied, slots gathered.

One tensor a layer, so that layers may differ in heads and width:
    [2 (k, v), num_blocks, block_size, kv_heads, head_dim]      slot = block * block_size + offset
E4M3 (torch.float8_e4m3fn) has a scale of 1: K and V as they are, rounded to 3 bits of mantissa, within -448 .. 448.

Where kernels multiply all of a block's values, the unseen by zero, values must be finite: 0 * NaN would reach another
sequence. Then the cache is zeros at first, and a value that is not finite is kept as 0 with NaN for its key: every
token sees its own key (or its keys and values are looked at, layers/decoder.py), so the row at fault fails, and it
alone, as unseen keys are never used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.backends.torch.device.transfer import upload
from octavo.models.spec import ModelSpec


class KVCache:
    """All layers' keys and values."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        finite: bool = False,
    ) -> None:
        self.num_blocks, self.block_size, self.dtype, self.device = num_blocks, block_size, dtype, device
        self.finite = finite
        # otherwise slots that no token was written to are never read, and cost no memory on a CPU
        make = torch.zeros if finite else torch.empty
        self._layers = [
            make((2, num_blocks, block_size, layer.mixer.kv_heads, layer.mixer.head_dim), dtype=dtype, device=device)
            for layer in spec.layers
            if layer.mixer.causal  # an encoder's layers keep nothing
        ]

    def layer(self, layer: int) -> Tensor:
        """[2, num_blocks, block_size, kv_heads, head_dim]."""
        return self._layers[layer]

    def slots(self, layer: int) -> Tensor:
        """[2, num_blocks * block_size, kv_heads, head_dim], a view."""
        return self._layers[layer].flatten(1, 2)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """k, v: [tokens, kv_heads, head_dim] into slots [tokens], rounded to the cache's type.

        E4M3 saturates; NaN and infinities, which it has none of, become NaN.
        """
        if self.finite:
            good = v.isfinite().all(-1, keepdim=True)
            k, v = torch.where(good, k, float("nan")), torch.where(v.isfinite(), v, 0.0)
        for kept, new in zip(_movable(self.slots(layer)), (k, v), strict=True):
            if self.dtype.itemsize == 1:
                largest = torch.finfo(self.dtype).max
                new = new.clamp(-largest, largest) + (new - new)
            kept.index_copy_(0, slots, _movable(new.to(self.dtype)))

    def read(self, layer: int, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """k, v: [n, kv_heads, head_dim] of slots [n], as dtype."""
        kept = _movable(self.slots(layer))
        k, v = (kept[i].index_select(0, slots).view(self.dtype).to(dtype) for i in range(2))
        return k, v

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """(source, destination) blocks; all sources are read before any destination is written."""
        if not copies:
            return
        pairs = upload(copies, torch.int64, self.device)
        source, destination = pairs[:, 0], pairs[:, 1]
        for tensor in map(_movable, self._layers):
            tensor.index_copy_(1, destination, tensor.index_select(1, source))


def _movable(tensor: Tensor) -> Tensor:
    """The tensor, or its bytes where PyTorch cannot index the type."""
    return tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor
