"""In: a ModelSpec. Out: its forward pass as a list of ops, their registers, and how weights are packed for them.

A program is walked once a step; nothing in it depends on the step. Arguments are names: registers, packed weights,
the layer caches `keys.{i}` and `values.{i}`, the step's own `tokens, positions, types, slots, plan, cos.{i}, sin.{i},
tails`, and what comes of it beside the logits: `finite, tails_finite, best`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octavo.models.spec import (
    MLP,
    Attention,
    GatedMLP,
    Head,
    Layer,
    LayerNorm,
    LearnedEmbedding,
    ModelSpec,
    MoE,
    RMSNorm,
    Rope,
)

_PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Instruction:
    """ops.OPS[op](*arguments, **options); an argument of None is passed as None."""

    op: str
    arguments: tuple[str | None, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """A packed weight: the parameters `sources` (ModelSpec.parameters) one after the other, as an array of `shape`.

    Matrices are turned: sources of [out, in] lie side by side in [in, outs]. With few tokens OpenBLAS reads that up to
    twice as fast. Vectors are joined, then seen as `shape`.
    exact: activations are never rounded for products with it.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    exact: bool = False


@dataclass(frozen=True)
class Program:
    """body: all tokens, from `tokens` to the keys and values of the last layer.  tail: chosen tokens, from there to
    `logits`; empty in a model that pools, whose body ends with all tokens' final states in register `states`.

    registers: name -> shape a token; those of the tail are kept apart, since it runs for some tokens after others.
    ropes: distinct, cos.{i} belongs to ropes[i].  caches: (kv_heads, head_dim) by layer.  heads: most query heads of
    a layer.
    """

    body: tuple[Instruction, ...]
    tail: tuple[Instruction, ...]
    registers: dict[str, tuple[int, ...]]
    tail_registers: dict[str, tuple[int, ...]]
    packs: dict[str, Pack]
    ropes: tuple[Rope, ...]
    caches: tuple[tuple[int, int], ...]
    heads: int
    states: str


def build_program(spec: ModelSpec) -> Program:
    """Write the forward pass of a spec."""
    builder = _Builder(spec)
    builder.embed()
    for index, layer in enumerate(spec.layers):
        builder.layer(index, layer)
    states = builder.final_norm()
    if spec.head:
        builder.head(spec.head, states)
    met = {name for instruction in builder.body for name in instruction.arguments}
    return Program(
        body=tuple(builder.body),
        tail=tuple(builder.tail),
        registers={name: shape for name, shape in builder.registers.items() if name in met},
        tail_registers=builder.tail_registers,
        packs=builder.packs,
        ropes=tuple(builder.ropes),
        caches=tuple((layer.mixer.kv_heads, layer.mixer.head_dim) for layer in spec.layers if layer.mixer.causal),
        heads=max(layer.mixer.heads for layer in spec.layers),
        states=states,
    )


class _Builder:
    """The residual stream is register `x`; a branch's result waits in `y` until the next norm adds it.

    In the tail each register stands for its like there.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.body: list[Instruction] = []
        self.tail: list[Instruction] = []
        self.tail_registers: dict[str, tuple[int, ...]] = {}
        hidden = (spec.hidden_size,)
        self.registers: dict[str, tuple[int, ...]] = {"x": hidden, "h": hidden, "y": hidden}
        self.packs: dict[str, Pack] = {}
        self.ropes: list[Rope] = []
        self.waiting = False
        self.shapes = spec.parameters()

    def embed(self) -> None:
        self._pack("embed", "embed")
        self._emit("embed", "x", "tokens", "embed", scale=self.spec.embedding_scale)
        if self.spec.learned:
            self._learned(self.spec.learned)

    def layer(self, index: int, layer: Layer) -> None:
        prefix = f"layers.{index}."
        self._attention(index, layer.mixer, self._norm_in(prefix + "pre_mixer", layer.pre_mixer))
        self._norm_out(prefix + "post_mixer", layer.post_mixer)
        self._norm_after(prefix + "after_mixer", layer.after_mixer)
        source = self._norm_in(prefix + "pre_ffn", layer.pre_ffn)
        if isinstance(layer.ffn, MoE):
            self._experts(prefix, layer.ffn, source)
        elif isinstance(layer.ffn, MLP):
            self._plain_mlp(prefix, layer.ffn, source)
        else:
            self._mlp(prefix, layer.ffn, source, "y")
        self._norm_out(prefix + "post_ffn", layer.post_ffn)
        self._norm_after(prefix + "after_ffn", layer.after_ffn)

    def final_norm(self) -> str:
        """The register that the head reads, or what is pooled."""
        return self._norm_in("final_norm", self.spec.final_norm)

    def head(self, head: Head, states: str) -> None:
        weight = "embed" if head.tied else self._pack("head", "head")
        self.registers["logits"] = (self.spec.vocab_size,)
        self._emit("head", "logits", states, weight, scale=head.scale, softcap=head.softcap)
        self._emit("scan", "tails_finite", "best", "logits")

    def _learned(self, learned: LearnedEmbedding) -> None:
        places = self._pack("embed_positions", "positions")
        self._emit("embed", "y", "positions", places, scale=1.0, offset=learned.offset)
        self._emit("add", "x", "y")
        self._emit("embed", "y", "types", self._pack("embed_types", "token_types"), scale=1.0)
        self._norm_after("embed_norm", learned.norm)

    def _norm_after(self, name: str, norm: LayerNorm | None) -> None:
        """Add `y` to `x`, then norm `x` itself."""
        if norm is not None:
            weights = (self._pack(name, name), self._pack(f"{name}_bias", f"{name}_bias"))
            self._emit("layer_norm", "x", "x", *weights, "y", eps=norm.eps)
            self.waiting = False

    def _attention(self, index: int, a: Attention, source: str) -> None:
        prefix = f"layers.{index}."
        qkv = self._register("qkv", a.heads + 2 * a.kv_heads, a.head_dim)
        attended = self._register("attended", a.heads, a.head_dim)
        weight = self._pack(prefix + "qkv", *(prefix + part for part in _PARTS))
        bias = self._pack(prefix + "qkv_bias", *(f"{prefix}{part}_bias" for part in _PARTS)) if a.qkv_bias else None
        self._emit("linear", qkv, source, weight, bias)
        if a.qk_norm is not None:
            sources = (prefix + "q_norm",) * a.heads + (prefix + "k_norm",) * a.kv_heads
            self.packs[prefix + "qk_norm"] = Pack(sources, (a.heads + a.kv_heads, a.head_dim))
            self._emit("qk_norm", qkv, prefix + "qk_norm", eps=a.qk_norm.eps, offset=a.qk_norm.offset)
        if a.rope is not None:
            if a.rope not in self.ropes:
                self.ropes.append(a.rope)
            which = self.ropes.index(a.rope)
            tables = (f"cos.{which}", f"sin.{which}")
            self._emit("rope", qkv, *tables, heads=a.heads + a.kv_heads, interleaved=a.rope.interleaved)
        if a.causal:
            keys, values = f"keys.{index}", f"values.{index}"
            self._emit("write_kv", keys, values, qkv, "slots")
            if self.spec.head and index == len(self.spec.layers) - 1:
                self._keep_tails("x", qkv)
            options: dict[str, Any] = {"scale": a.scale, "window": a.window, "softcap": a.softcap}
            self._emit("paged_attention", attended, qkv, keys, values, "plan", **options)
        else:
            self._emit("span_attention", attended, qkv, "plan", scale=a.scale, window=a.window)
        output_bias = self._pack(prefix + "o_bias", prefix + "o_bias") if a.output_bias else None
        self._emit("linear", "y", attended, self._pack(prefix + "o", prefix + "o"), output_bias)

    def _keep_tails(self, *registers: str) -> None:
        """The rest is the tail: other tokens have left all that anything asks of them in the cache."""
        self._emit("check", "finite", "x")
        self.tail += [Instruction("gather", (self._of_tails(name), name, "tails")) for name in registers]

    def _of_tails(self, name: str) -> str:
        self.tail_registers[f"tail.{name}"] = self.registers[name]
        return f"tail.{name}"

    def _plain_mlp(self, prefix: str, f: MLP, source: str) -> None:
        up, wide = self._register("up", f.width), self._register("wide", f.width)
        biases = [self._pack(f"{prefix}{name}_bias", f"{prefix}{name}_bias") for name in ("up", "down") if f.bias]
        up_bias, down_bias = biases or (None, None)
        self._emit("linear", up, source, self._pack(prefix + "up", prefix + "up"), up_bias)
        self._emit("activate", wide, up, act=f.act)
        self._emit("linear", "y", wide, self._pack(prefix + "down", prefix + "down"), down_bias)

    def _mlp(self, prefix: str, f: GatedMLP, source: str, out: str) -> None:
        gate_up = self._register("gate_up", 2 * f.width)
        wide = self._register("wide", f.width)
        weight = self._pack(prefix + "gate_up", prefix + "gate", prefix + "up")
        bias = self._pack(prefix + "gate_up_bias", prefix + "gate_bias", prefix + "up_bias") if f.bias else None
        self._emit("linear", gate_up, source, weight, bias)
        self._emit("gated", wide, gate_up, act=f.act)
        down_bias = self._pack(prefix + "down_bias", prefix + "down_bias") if f.bias else None
        self._emit("linear", out, wide, self._pack(prefix + "down", prefix + "down"), down_bias)

    def _experts(self, prefix: str, f: MoE, source: str) -> None:
        """The choice of experts is exact: a rounding could turn it, and with it all that follows."""
        logits = self._exact_linear(prefix + "router", source, f.experts)
        matrices = [f"{prefix}experts.{e}." for e in range(f.experts)]
        gate_up = self._pack(prefix + "experts.gate_up", *(m + part for m in matrices for part in ("gate", "up")))
        down = self._pack(prefix + "experts.down", *(m + "down" for m in matrices))
        options: dict[str, Any] = {"act": f.act, "top_k": f.top_k, "renormalize": f.renormalize}
        self._emit("experts", "y", source, logits, gate_up, down, **options)
        if f.shared_width is not None:
            shared = self._register("shared", self.spec.hidden_size)
            self._mlp(prefix + "shared.", GatedMLP(f.shared_width, f.act), source, shared)
            self._emit("add_gated", "y", shared, self._exact_linear(prefix + "shared_router", source, 1))

    def _exact_linear(self, weight: str, source: str, outputs: int) -> str:
        out = self._register(weight.rsplit(".", 1)[-1], outputs)
        self.packs[weight] = Pack((weight,), (self.spec.hidden_size, outputs), exact=True)
        self._emit("linear", out, source, weight, None)
        return out

    def _norm_in(self, name: str, norm: RMSNorm | None) -> str:
        """Add what waits to `x`, then norm it into `h`; returns the register that the branch reads."""
        delta = "y" if self.waiting else None
        self.waiting = False
        if norm is not None:
            self._emit("rms_norm", "h", "x", self._pack(name, name), delta, eps=norm.eps, offset=norm.offset)
            return "h"
        if delta is not None:
            self._emit("add", "x", delta)
        return "x"

    def _norm_out(self, name: str, norm: RMSNorm | None) -> None:
        if norm is not None:
            self._emit("rms_norm", "y", "y", self._pack(name, name), eps=norm.eps, offset=norm.offset)
        self.waiting = True

    def _register(self, kind: str, *shape: int) -> str:
        """A register of this shape; layers of equal shape share it."""
        name = f"{kind}.{'x'.join(map(str, shape))}"
        self.registers[name] = shape
        return name

    def _pack(self, name: str, *sources: str) -> str:
        shapes = [self.shapes[source].shape for source in sources]
        self.packs[name] = Pack(sources, (*shapes[0][1:], sum(shape[0] for shape in shapes)))
        return name

    def _emit(self, op: str, *arguments: str | None, **options: Any) -> None:
        if self.tail:
            arguments = tuple(self._of_tails(name) if name in self.registers else name for name in arguments)
        (self.tail or self.body).append(Instruction(op, arguments, options))
