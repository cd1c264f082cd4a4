"""In: a program, packed weights, registers and caches. Out: the program as arrays of structs that native code walks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from octavo.backends.cpu import native
from octavo.backends.cpu.cache import Cells
from octavo.backends.cpu.native import ExpertMatrix, Experts, Group, Instruction, Lowered, pointer
from octavo.backends.cpu.packed import Matrix, Packed
from octavo.backends.cpu.program import Instruction as Step

JOINED = 64
"""Tokens from which on gate and up are one product: fewer lose more than not writing them gains."""


def short_registers(steps: tuple[Step, ...], packed: Packed) -> frozenset[str]:
    """The registers that are written for fewer than JOINED tokens only."""
    return frozenset(str(step.arguments[0]) for step, after in pairwise(steps) if _joins(step, after, packed))


def _joins(step: Step, after: Step, packed: Packed) -> bool:
    """Whether a linear step makes what the next one gates, of two matrices: nothing else reads that."""
    pair = step.op == "linear" and after.op == "gated" and after.arguments[1] == step.arguments[0]
    return pair and len(packed.matrices[str(step.arguments[2])]) == 2


@dataclass
class Lowering:
    """Turns steps of a program into native ones.

    arrays: registers [max tokens, ...], of short_registers [JOINED, ...]; `cos.{i}`, `sin.{i}` [max tokens, pairs],
    `inv_freq.{i}` [pairs].
    act(scheme, k, tails): a buffer for activations, of all tokens or of tails, in the form that products with this
    scheme read.
    room(experts): the memory that a mixture of experts works in.
    caches: `keys.{i}`, `values.{i}`, as csrc/program.h draws them.
    """

    arrays: dict[str, np.ndarray]
    packed: Packed
    act: Callable[[str, int, bool], np.ndarray]
    room: Callable[[Experts], np.ndarray]
    caches: dict[str, Cells] = field(default_factory=dict)
    _made: list[Instruction] = field(default_factory=list)
    _groups: list[tuple[int, int, bool]] = field(default_factory=list)
    _kept: list[object] = field(default_factory=list)
    _shapes: list[tuple[Any, ...]] = field(default_factory=list)
    _tails: bool = False

    def lower(self, body: tuple[Step, ...], tail: tuple[Step, ...] = (), *, factors: tuple[float, ...] = ()) -> Lowered:
        """factors: of the ropes whose tables are computed first."""
        for i, factor in enumerate(factors):
            cos, sin, inv_freq = (self.arrays[f"{name}.{i}"] for name in ("cos", "sin", "inv_freq"))
            self._rows("rope_table", k=len(inv_freq), a=factor, cos=cos, sin=sin, inv_freq=inv_freq)
        for steps in (body, tail):
            self._tails = steps is tail
            rest = iter(zip(steps, (*steps[1:], None), strict=False))
            for step, after in rest:
                if after is not None and _joins(step, after, self.packed):
                    self._gate_up(step, after)
                    next(rest)
                else:
                    getattr(self, f"_{step.op}")(*step.arguments, **step.options)
        groups = (Group * len(self._groups))()
        ends = [first for _, first, _ in self._groups[1:]] + [len(self._made)]
        for group, (kind, first, tails), end in zip(groups, self._groups, ends, strict=True):
            group.kind, group.first, group.count, group.tails = kind, first, end - first, tails
        at = sum(not tails for _, _, tails in self._groups)
        return Lowered((Instruction * len(self._made))(*self._made), groups, at, tuple(self._kept))

    def _add(self, x: str, delta: str) -> None:
        self._rows("add", k=self._width(x), out=self.arrays[x], in_=self.arrays[delta])

    def _embed(self, out: str, ids: str, weight: str, *, scale: float, offset: int = 0) -> None:
        (matrix,) = self.packed.matrices[weight]
        self._rows("embed", out=self.arrays[out], a=scale, flag=native.IDS[ids], window=offset, **_of(matrix))

    def _layer_norm(self, out: str, x: str, weight: str, bias: str, delta: str, *, eps: float) -> None:
        vectors = {"weight": self.packed.vectors[weight], "bias": self.packed.vectors[bias]}
        given = {"out": self.arrays[out], "in_": self.arrays[x], "delta": self.arrays[delta]}
        self._rows("layer_norm", k=self._width(x), a=eps, **given, **vectors)

    def _activate(self, out: str, x: str, *, act: str) -> None:
        given = {"out": self.arrays[out], "in_": self.arrays[x], "flag": native.ACTIVATIONS[act]}
        self._rows("activate", k=self._width(out), **given)

    def _span_attention(self, out: str, qkv: str, _plan: str, *, scale: float, window: int | None) -> None:
        heads, dim = self.arrays[out].shape[1:]
        kv_heads = (self.arrays[qkv].shape[1] - heads) // 2
        given = {"out": self.arrays[out], "in_": self.arrays[qkv], "ld_in": self._width(qkv), "a": scale}
        shape = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "window": window or 0}
        self._emit("span_attention", native.SPANS, **shape, **given)

    def _rms_norm(self, out: str, x: str, weight: str, delta: str | None = None, *, eps: float, offset: float) -> None:
        given = {"out": self.arrays[out], "in_": self.arrays[x], "bias": self.packed.vectors[weight]}
        self._rows("rms_norm", k=self._width(x), a=eps, b=offset, delta=self.arrays[delta] if delta else None, **given)

    def _linear(self, out: str, x: str, weight: str, bias: str | None) -> None:
        self._products(out, x, self.packed.matrices[weight], self.packed.vectors[bias] if bias else None)

    def _check(self, _finite: str, x: str) -> None:
        self._rows("check", k=self._width(x), in_=self.arrays[x])

    def _gather(self, last: str, x: str, _tails: str) -> None:
        self._rows("gather", k=self._width(x), out=self.arrays[last], in_=self.arrays[x])

    def _head(self, out: str, x: str, weight: str, *, scale: float, softcap: float | None) -> None:
        (matrix,) = self.packed.matrices[weight]
        act = self._quantized(matrix.act_scheme, matrix.k, self.arrays[x])
        given = {"out": self.arrays[out], "act": act, "ld_out": self._width(out), "a": scale, "b": softcap or 0.0}
        self._emit("head", native.PRODUCTS, **given, **_of(matrix))

    def _scan(self, _finite: str, _best: str, _logits: str) -> None:
        """Nothing: the head looks at its logits while they are near."""

    def _products(self, out: str, x: str, matrices: tuple[Matrix, ...], bias: np.ndarray | None) -> None:
        """Each matrix fills its own columns of `out`."""
        source, target, width = self.arrays[x], self.arrays[out], self._width(out)
        acts = self._quantized_once(matrices, source)
        flat, at = target.reshape(len(target), -1), 0
        for matrix in matrices:
            columns = slice(at, at + matrix.n)
            part = None if bias is None else bias[columns]
            given = {"out": flat[:, columns], "bias": part, "act": acts[matrix.act_scheme], "ld_out": width}
            self._emit("matmul", native.PRODUCTS, **given, **_of(matrix))
            at += matrix.n

    def _quantized_once(self, matrices: tuple[Matrix, ...], source: np.ndarray) -> dict[str, np.ndarray]:
        """By act_scheme: `source` as products of the matrices read it."""
        schemes = sorted({matrix.act_scheme for matrix in matrices})
        return {scheme: self._quantized(scheme, matrices[0].k, source) for scheme in schemes}

    def _quantized(self, scheme: str, k: int, source: np.ndarray) -> np.ndarray:
        act = self.act(scheme, k, self._tails)
        self._rows("quantize", scheme=native.SCHEME_IDS[scheme], k=k, in_=source, act=act)
        return act

    def _qk_norm(self, qkv: str, weight: str, *, eps: float, offset: float) -> None:
        vector, array = self.packed.vectors[weight], self.arrays[qkv]
        heads, dim = vector.shape
        given = {"heads": heads, "dim": dim, "ld_out": self._width(qkv), "out": array, "bias": vector}
        self._rows("qk_norm", a=eps, b=offset, **given)

    def _rope(self, qkv: str, cos: str, sin: str, *, heads: int, interleaved: bool) -> None:
        array, tables = self.arrays[qkv], {"cos": self.arrays[cos], "sin": self.arrays[sin]}
        given = {"heads": heads, "dim": array.shape[2], "ld_out": self._width(qkv), "out": array}
        self._rows("rope", k=self.arrays[cos].shape[1], flag=int(interleaved), **given, **tables)

    def _write_kv(self, keys: str, values: str, qkv: str, _slots: str) -> None:
        self._rows("write_kv", in_=self.arrays[qkv], ld_in=self._width(qkv), **self._cache(keys, values, qkv))

    def _paged_attention(
        self,
        out: str,
        qkv: str,
        keys: str,
        values: str,
        _plan: str,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        cache = self._cache(keys, values, qkv)
        shape = (cache["heads"], cache["kv_heads"], window, self._tails)
        if shape not in self._shapes:
            self._shapes.append(shape)
        given = {"out": self.arrays[out], "in_": self.arrays[qkv], "ld_in": self._width(qkv), "window": window or 0}
        numbers = {"a": scale, "b": softcap or 0.0, "shape": self._shapes.index(shape)}
        self._emit("attention", native.ATTEND, **given, **numbers, **cache)

    def _gated(self, out: str, gate_up: str, *, act: str, fewer: int = 0) -> None:
        """fewer: only for fewer tokens than that; 0: always."""
        given = {"out": self.arrays[out], "in_": self.arrays[gate_up], "flag": native.ACTIVATIONS[act]}
        self._rows("gated", k=self._width(out), window=fewer, **given)

    def _gate_up(self, linear: Step, gated: Step) -> None:
        """Both in one product, whose sides are written for few tokens only (csrc/program.h)."""
        sides, x, weight, bias = linear.arguments
        out = str(gated.arguments[0])
        gate, up = self.packed.matrices[str(weight)]
        acts = self._quantized_once((gate, up), self.arrays[str(x)])
        vector = self.packed.vectors[bias] if bias else None
        biases = (None, None) if vector is None else (vector[: gate.n], vector[gate.n :])
        second: dict[str, Any] = {"second_scheme": native.SCHEME_IDS[up.scheme], "second_weight": up.data}
        second |= {"second_act": acts[up.act_scheme], "second_bias": biases[1]}
        given = {"out": self.arrays[out], "act": acts[gate.act_scheme], "bias": biases[0], "ld_out": self._width(out)}
        given |= {"delta": self.arrays[str(sides)], "window": JOINED}
        flag = native.ACTIVATIONS[gated.options["act"]]
        self._emit("gate_up", native.PRODUCTS, flag=flag, **given, **second, **_of(gate))
        self._gated(out, str(sides), act=gated.options["act"], fewer=JOINED)

    def _add_gated(self, x: str, delta: str, logit: str) -> None:
        self._rows("add_gated", k=self._width(x), out=self.arrays[x], in_=self.arrays[delta], delta=self.arrays[logit])

    def _experts(
        self, out: str, x: str, router: str, gate_up: str, down: str, *, act: str, top_k: int, renormalize: bool
    ) -> None:
        pairs, downs = self.packed.matrices[gate_up], self.packed.matrices[down]
        trios = [m for e, last in enumerate(downs) for m in (pairs[2 * e], pairs[2 * e + 1], last)]
        made = (ExpertMatrix(pointer(m.data), native.SCHEME_IDS[m.scheme]) for m in trios)
        matrices = (ExpertMatrix * len(trios))(*made)
        mixture = Experts(
            experts=len(downs),
            top_k=top_k,
            act=native.ACTIVATIONS[act],
            renormalize=int(renormalize),
            hidden=downs[0].n,
            width=downs[0].k,
            x=pointer(self.arrays[x]),
            router=pointer(self.arrays[router]),
            out=pointer(self.arrays[out]),
            matrices=ctypes.addressof(matrices),
        )
        mixture.room = pointer(self.room(mixture))
        self._kept += [mixture, matrices]
        self._emit("experts", native.MIX, weight=ctypes.addressof(mixture))

    def _cache(self, keys: str, values: str, qkv: str) -> dict[str, Any]:
        k, v = self.caches[keys], self.caches[values]
        kv_heads, dim = v.data.shape[0], v.data.shape[3]
        shape = {"heads": self.arrays[qkv].shape[1] - 2 * kv_heads, "kv_heads": kv_heads, "dim": dim}
        arrays = {"keys": k.data, "values": v.data, "key_scales": k.scales, "value_scales": v.scales}
        return {**shape, **arrays, "flag": native.CELL_IDS[v.data.dtype]}

    def _width(self, name: str) -> int:
        array = self.arrays[name]
        return array[:1].size

    def _rows(self, op: str, **fields: Any) -> None:
        self._emit(op, native.ROWS, **fields)

    def _emit(self, op: str, kind: int, **fields: Any) -> None:
        # rows follow rows without a barrier, and so do the products of one linear step, as nothing stands between them
        alone = kind in (native.ATTEND, native.MIX, native.SPANS)
        if alone or not self._groups or self._groups[-1][::2] != (kind, self._tails):
            self._groups.append((kind, len(self._made), self._tails))
        values = {name: pointer(v) if isinstance(v, np.ndarray) else v for name, v in fields.items()}
        self._made.append(Instruction(op=native.OPS[op], **values))


def _of(matrix: Matrix) -> dict[str, Any]:
    return {"scheme": native.SCHEME_IDS[matrix.scheme], "n": matrix.n, "k": matrix.k, "weight": matrix.data}
