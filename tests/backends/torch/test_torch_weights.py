"""Stored tensors to device tensors: number formats, fused matrices, norms, errors, progress."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_driver import arrays, layer, spec, stored

from octavo.backends.torch.weights import load_weights, to_torch
from octavo.base.errors import ModelFormatError
from octavo.base.types.tensor import SCHEMES, StoredTensor
from octavo.models.spec import Head, RMSNorm

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("scheme", "plain"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)]
)
def test_plain_formats(scheme: str, plain: torch.dtype, dtype: torch.dtype) -> None:
    source = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).to(plain)
    data = memoryview(source.view(torch.uint8).numpy().tobytes())
    made = to_torch(StoredTensor("t", SCHEMES[scheme], (6, 10), data), dtype)
    assert made.dtype == dtype
    assert torch.equal(made, source.to(dtype))


def test_quantized_format() -> None:
    rng = np.random.default_rng(0)
    scales = rng.standard_normal((4, 2)).astype(np.float16)
    values = rng.integers(-128, 128, (4, 2, 32), dtype=np.int8)
    raw = b"".join(scales[i, j].tobytes() + values[i, j].tobytes() for i in range(4) for j in range(2))
    made = to_torch(StoredTensor("t", SCHEMES["Q8_0"], (4, 64), memoryview(raw)), torch.float32)
    expected = (scales.astype(np.float32)[..., None] * values).reshape(4, 64)
    assert np.array_equal(made.numpy(), expected)


def test_fused_matrices_norms_and_size() -> None:
    norm = RMSNorm(1e-6, offset=1.0)
    model = spec(layer({"qkv_bias": True}, {"bias": True}, pre_ffn=norm), head=Head(tied=True))
    numbers = arrays(model)
    told: list[tuple[str, int, int]] = []
    weights = load_weights(
        model,
        {name: stored(name, array) for name, array in numbers.items()},
        dtype=torch.bfloat16,
        device=CPU,
        progress=lambda *step: told.append(step),
    )
    first = weights.layers[0]
    bf16 = {name: torch.from_numpy(array).bfloat16() for name, array in numbers.items()}
    assert torch.equal(first.qkv, torch.cat([bf16[f"layers.0.{name}"] for name in "qkv"]))
    assert first.qkv_bias is not None
    assert torch.equal(first.qkv_bias, torch.cat([bf16[f"layers.0.{name}_bias"] for name in "qkv"]))
    assert torch.equal(first.ffn.gate_up, torch.cat([bf16["layers.0.gate"], bf16["layers.0.up"]]))
    assert first.pre_ffn is not None
    assert first.pre_ffn.dtype == torch.float32
    np.testing.assert_array_equal(first.pre_ffn.numpy(), numbers["layers.0.pre_ffn"] + 1)
    assert weights.head is weights.embed
    assert weights.num_bytes == sum(
        a.nbytes if "norm" in n or "pre_" in n else a.nbytes // 2 for n, a in numbers.items()
    )
    total = sum(array.nbytes for array in numbers.values())
    assert told[-1] == ("weights", total, total)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_bad_checkpoint_is_named(damage: str) -> None:
    model = spec(layer())
    tensors = {name: stored(name, array) for name, array in arrays(model).items()}
    if damage == "missing":
        del tensors["layers.0.up"]
    else:
        tensors["layers.0.up"] = stored("model.up", np.zeros((3, 5), np.float32))
    with pytest.raises(ModelFormatError, match=r"layers\.0\.up"):
        load_weights(model, tensors, dtype=torch.float32, device=CPU)
