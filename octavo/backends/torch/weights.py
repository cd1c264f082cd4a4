"""Stored tensors in, the decoder's weights on a device out: q, k, v fused into one matrix, gate and up into another.

What is stored quantized stays so where all that is fused is; else it is dequantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from octavo.backends.torch.quant import JOINS, ONLINE, REQUANTIZE, Matrix, Quantize, QuantizedMatrix
from octavo.backends.torch.quant.experts import Experts, QuantizedExperts
from octavo.backends.torch.quant.int4 import Int4Matrix
from octavo.backends.torch.quant.scaled import ScaledMatrix
from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.base.types.ports import Progress
from octavo.base.types.tensor import MatrixScheme, QuantizedTensor, StoredTensor, Weights
from octavo.models.spec import MLP, GatedMLP, Layer, LayerNorm, ModelSpec, MoE, RMSNorm
from octavo.quant.scheme import dequantize
from octavo.weights.dummy import STANDARD_DEVIATION, DummyWeights

_PLAIN: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class MlpWeights:
    """Matrices are [out, in], here and below.  gate_up: [2 * width, hidden], gate's rows first; of an MLP up alone."""

    gate_up: Matrix
    down: Matrix
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True)
class MoEWeights:
    """router: [experts, hidden].  gate_up: [experts, 2 * width, hidden].  down: [experts, hidden, width].

    shared_router: [1, hidden].
    """

    router: Tensor
    gate_up: Experts
    down: Experts
    shared: MlpWeights | None = None
    shared_router: Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """Norm weights are float32 with the norm's offset added. Absent ones are None.

    qkv: [(heads + 2 * kv_heads) * head_dim, hidden], q's rows first.  after_mixer, after_ffn: [2, hidden], w and b.
    """

    qkv: Matrix
    o: Matrix
    ffn: MlpWeights | MoEWeights
    qkv_bias: Tensor | None = None
    o_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    pre_mixer: Tensor | None = None
    post_mixer: Tensor | None = None
    pre_ffn: Tensor | None = None
    post_ffn: Tensor | None = None
    after_mixer: Tensor | None = None
    after_ffn: Tensor | None = None


@dataclass(frozen=True)
class ModelWeights:
    """embed, head: [vocab, hidden], one tensor if tied or if there is no head.  num_bytes: on the device, counted once.

    more: what an encoder and a pooling have besides, by internal name (spec.ModelSpec.parameters); float32, but for the
    tables that are looked up.
    """

    embed: Tensor
    head: Tensor
    final_norm: Tensor | None
    layers: tuple[LayerWeights, ...]
    num_bytes: int
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def quantized(self) -> list[QuantizedMatrix]:
        """Those that are, but for experts."""
        matrices = [matrix for layer in self.layers for matrix in _matrices(layer)]
        return [matrix for matrix in matrices if not isinstance(matrix, Tensor | QuantizedExperts)]


def load_weights(
    spec: ModelSpec,
    weights: Weights,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str | None = None,
    progress: Progress | None = None,
) -> ModelWeights:
    """All of spec.parameters() on the device. Raises ModelFormatError for one that is missing or of another shape.

    quantization: of quant.ONLINE, what to make of the layers' matrices that are stored plainly.
    """
    source: _Source = (
        _Drawn(weights) if isinstance(weights, DummyWeights) and device.type != "cpu" else _Stored(weights)
    )
    _check(spec, source)
    quantize = None if quantization is None else ONLINE[quantization]
    loader = _Loader(source, dtype=dtype, device=device, quantize=quantize, report=_reporter(spec, source, progress))
    if isinstance(weights, DummyWeights):
        loader.schemes = weights.quantized
    embed = loader.dense("embed")
    layers = tuple(_load_layer(loader, f"layers.{i}.", layer) for i, layer in enumerate(spec.layers))
    final_norm = loader.norm("final_norm", spec.final_norm) if spec.final_norm else None
    head = embed if spec.head is None or spec.head.tied else loader.dense("head")
    tables, rest = ("positions", "token_types"), ("embed_norm", "dense", "classifier")
    more = {name: loader.dense(name) for name in spec.parameters() if name in tables}
    more |= {name: loader.plain(name) for name in spec.parameters() if _outer(name) in rest}
    model = ModelWeights(embed, head, final_norm, layers, 0, more)
    return replace(model, num_bytes=_count_bytes(model))


def _outer(name: str) -> str:
    """Of a weight beside the layers: without its number, and of a bias the weight's."""
    return name.removesuffix("_bias").partition(".")[0]


def to_torch(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A new host tensor of the stored shape; plain formats are cast directly, quantized ones by way of float32."""
    plain = _PLAIN.get(stored.scheme.name)
    if plain is None:
        return torch.from_numpy(dequantize(stored)).to(dtype)
    raw = torch.empty(stored.data.nbytes, dtype=torch.uint8)
    raw.numpy()[:] = np.frombuffer(stored.data, np.uint8)
    return raw.view(plain).reshape(stored.shape).to(dtype)


class _Source(Protocol):
    """Where tensors come from; KeyError for a name that is not there."""

    def shape(self, name: str) -> tuple[int, ...]:
        """As stored."""

    def nbytes(self, name: str) -> int:
        """For the progress."""

    def title(self, name: str) -> str:
        """The file's own name for it."""

    def quantized(self, name: str) -> QuantizedTensor | None:
        """The matrix in parts, if it is stored so."""

    def fill(self, name: str, out: Tensor) -> None:
        """Write it to `out`, of its shape, on any device and of any float type."""


class _Stored:
    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights[name].shape

    def nbytes(self, name: str) -> int:
        return self._weights[name].nbytes

    def title(self, name: str) -> str:
        return self._weights[name].name

    def quantized(self, name: str) -> QuantizedTensor | None:
        stored = self._weights[name]
        return stored if isinstance(stored, QuantizedTensor) else None

    def fill(self, name: str, out: Tensor) -> None:
        stored = self._weights[name]
        if isinstance(stored, QuantizedTensor):
            out.copy_(_dequantized(stored, out))
        else:
            out.copy_(to_torch(stored, out.dtype))


class _Drawn:
    """Random weights drawn where they are to lie: other numbers than the host's, of the same distribution."""

    def __init__(self, weights: DummyWeights) -> None:
        self._weights = weights

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def nbytes(self, name: str) -> int:
        return 2 * prod(self._weights.shape(name))

    def title(self, name: str) -> str:
        return name

    def quantized(self, name: str) -> QuantizedTensor | None:
        return None

    def fill(self, name: str, out: Tensor) -> None:
        if self._weights.is_norm(name):
            out.fill_(1.0)
            return
        generator = torch.Generator(out.device).manual_seed(self._weights.key(name) >> 65)
        out.normal_(0.0, STANDARD_DEVIATION, generator=generator)


class _Loader:
    """Tensors are made on the device at once, so that the host never holds more than one stored tensor."""

    def __init__(
        self,
        source: _Source,
        *,
        dtype: torch.dtype,
        device: torch.device,
        quantize: Quantize | None,
        report: Callable[[str], None],
    ) -> None:
        self._source, self._dtype, self._device, self._report = source, dtype, device, report
        self._quantize = quantize
        self.schemes: Mapping[str, MatrixScheme] = {}
        """Matrices that are to be made so."""

    def matrix(self, *names: str) -> Matrix:
        """The named matrices one below the other; quantized if all of them are, or to be made so."""
        parts = [part for name in names if (part := self._source.quantized(name)) is not None]
        if len(parts) == len(names) and len({part.scheme.layout for part in parts}) == 1:
            joined = JOINS[parts[0].scheme.layout](parts, self._device)
            if joined is not None:
                for name in names:
                    self._report(name)
                return joined
        whole, schemes = self.dense(*names), {self.schemes.get(name) for name in names}
        scheme = schemes.pop()
        if scheme is not None and not schemes:
            return REQUANTIZE[scheme.layout](whole, scheme)
        return whole if self._quantize is None or parts else self._quantize(whole)

    def dense(self, *names: str) -> Tensor:
        """The named tensors one below the other, in the arithmetic type."""
        shapes = [self._source.shape(name) for name in names]
        rows = sum(shape[0] for shape in shapes)
        return self._fill(torch.empty((rows, *shapes[0][1:]), dtype=self._dtype, device=self._device), names)

    def experts(self, count: int, *names: str) -> Experts:
        """For each number the named matrices, which have a place for it, one below the other; dequantized where columns
        are in an order of their own.
        """
        whole = self.matrix(*(name.format(i) for i in range(count) for name in names))
        if isinstance(whole, Int4Matrix) and whole.order is not None:
            whole = whole.dequantize(self._dtype)
        if isinstance(whole, ScaledMatrix | Int4Matrix):
            return QuantizedExperts(whole, count)
        return cast("Tensor", whole).view(count, -1, whole.shape[1])

    def norm(self, name: str, norm: RMSNorm) -> Tensor:
        """offset + w in float32."""
        weight = torch.empty(self._source.shape(name), dtype=torch.float32, device=self._device)
        return self._fill(weight, (name,)) + norm.offset

    def plain(self, name: str) -> Tensor:
        """In float32."""
        return self._fill(torch.empty(self._source.shape(name), dtype=torch.float32, device=self._device), (name,))

    def _fill(self, whole: Tensor, names: Sequence[str]) -> Tensor:
        at = 0
        for name in names:
            end = at + self._source.shape(name)[0]
            self._source.fill(name, whole[at:end])
            self._report(name)
            at = end
        return whole


def _load_layer(loader: _Loader, prefix: str, layer: Layer) -> LayerWeights:
    def matrix(*names: str) -> Matrix:
        return loader.matrix(*(prefix + name for name in names))

    def bias(*names: str) -> Tensor:
        return loader.dense(*(f"{prefix}{name}_bias" for name in names))

    def norm(name: str, word: RMSNorm | None) -> Tensor | None:
        return loader.norm(prefix + name, word) if word else None

    def after(name: str, word: LayerNorm | None) -> Tensor | None:
        return torch.stack([loader.plain(f"{prefix}{name}{part}") for part in ("", "_bias")]) if word else None

    mixer, ffn = layer.mixer, layer.ffn
    return LayerWeights(
        qkv=matrix("q", "k", "v"),
        o=matrix("o"),
        ffn=_load_moe(loader, prefix, ffn) if isinstance(ffn, MoE) else _load_mlp(loader, prefix, ffn),
        qkv_bias=bias("q", "k", "v") if mixer.qkv_bias else None,
        o_bias=bias("o") if mixer.output_bias else None,
        q_norm=norm("q_norm", mixer.qk_norm),
        k_norm=norm("k_norm", mixer.qk_norm),
        pre_mixer=norm("pre_mixer", layer.pre_mixer),
        post_mixer=norm("post_mixer", layer.post_mixer),
        pre_ffn=norm("pre_ffn", layer.pre_ffn),
        post_ffn=norm("post_ffn", layer.post_ffn),
        after_mixer=after("after_mixer", layer.after_mixer),
        after_ffn=after("after_ffn", layer.after_ffn),
    )


def _load_mlp(loader: _Loader, prefix: str, ffn: GatedMLP | MLP) -> MlpWeights:
    sides = ("up",) if isinstance(ffn, MLP) else ("gate", "up")
    return MlpWeights(
        gate_up=loader.matrix(*(prefix + side for side in sides)),
        down=loader.matrix(prefix + "down"),
        gate_up_bias=loader.dense(*(f"{prefix}{side}_bias" for side in sides)) if ffn.bias else None,
        down_bias=loader.dense(prefix + "down_bias") if ffn.bias else None,
    )


def _load_moe(loader: _Loader, prefix: str, moe: MoE) -> MoEWeights:
    """Beside the experts plain matrices: quantized ones are dequantized."""
    expert = prefix + "experts.{}."
    shared = None
    if moe.shared_width is not None:
        gate_up = loader.dense(prefix + "shared.gate", prefix + "shared.up")
        shared = MlpWeights(gate_up, loader.dense(prefix + "shared.down"))
    return MoEWeights(
        router=loader.dense(prefix + "router"),
        gate_up=loader.experts(moe.experts, expert + "gate", expert + "up"),
        down=loader.experts(moe.experts, expert + "down"),
        shared=shared,
        shared_router=loader.dense(prefix + "shared_router") if shared else None,
    )


def _check(spec: ModelSpec, source: _Source) -> None:
    for name, parameter in spec.parameters().items():
        try:
            shape = source.shape(name)
        except KeyError:
            raise ModelFormatError(
                f"the checkpoint has no tensor for {name} ({spec.family}); is it complete?"
            ) from None
        if shape != parameter.shape:
            raise ModelFormatError(
                f"tensor {source.title(name)} ({name}) has shape {list(shape)}, the config asks for "
                f"{list(parameter.shape)}"
            )


def _reporter(spec: ModelSpec, source: _Source, progress: Progress | None) -> Callable[[str], None]:
    """A function to be called with the name of each tensor done; tells progress in stored bytes."""
    total = sum(source.nbytes(name) for name in spec.parameters())
    done = 0

    def report(name: str) -> None:
        nonlocal done
        done += source.nbytes(name)
        if progress is not None:
            progress("weights", done, total)

    return report


def _count_bytes(model: ModelWeights) -> int:
    outer = [model.embed, *model.more.values()] + ([] if model.head is model.embed else [model.head])
    outer += [] if model.final_norm is None else [model.final_norm]
    inner = [matrix for layer in model.layers for matrix in _matrices(layer)]
    return sum(tensor.nbytes for matrix in (*outer, *inner) for tensor in _tensors(matrix))


def _tensors(matrix: Matrix | QuantizedExperts) -> tuple[Tensor, ...]:
    return (matrix,) if isinstance(matrix, Tensor) else matrix.tensors()


def _matrices(weights: LayerWeights | MlpWeights | MoEWeights) -> Iterator[Matrix | QuantizedExperts]:
    """Vectors too."""
    for each in fields(weights):
        value = getattr(weights, each.name)
        if isinstance(value, MlpWeights | MoEWeights):
            yield from _matrices(value)
        elif value is not None:
            yield value


def _dequantized(stored: QuantizedTensor, like: Tensor) -> Tensor:
    """On like's device, of its type."""
    matrix = JOINS[stored.scheme.layout]([stored], like.device)
    if matrix is None:
        raise UnsupportedError(f"tensor {stored.name}: the torch backend cannot read {stored.scheme}")
    return matrix.dequantize(like.dtype)
