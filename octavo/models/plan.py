"""What running a model takes, from its spec alone: sizes, KV bytes, arithmetic and how many sequences fit."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from octavo.base.errors import ConfigError
from octavo.models.spec import ModelSpec, MoE

PARTS = ("embedding", "attention", "feed-forward", "norms", "head")


@dataclass(frozen=True)
class Part:
    """One kind of weights over all layers. flops: for one token, its products with these weights only."""

    name: str
    parameters: int
    flops: int


@dataclass(frozen=True)
class PlanReport:
    """Bytes unless a field says otherwise.

    active_parameters: those that one token meets, fewer than all where there are experts.
    weight_bytes: on the device.  stored_bytes: as the checkpoint stores them (None if not known).
    kv_bytes_full: K and V of one sequence of max_model_len tokens.
    flops_per_token: without a context;  flops_per_token_full: the last token of a full context, attention included.
    free_bytes: what weights and cache may take together;  sequences: full ones that fit in what the weights leave
    (None if free_bytes is not known); of a model that caches nothing 1, or 0 where the weights do not fit.
    reason: why there are none although the weights fit, with a remedy.
    cache_bytes: of the cache that an engine makes and these sequences fit in, which may be less than what the weights
    leave; None if not known.
    """

    family: str
    layers: int
    parameters: int
    active_parameters: int
    weight_bytes: int
    stored_bytes: int | None
    max_model_len: int
    kv_bytes_per_token: int
    kv_bytes_full: int
    flops_per_token: int
    flops_per_token_full: int
    free_bytes: int | None
    sequences: int | None
    parts: tuple[Part, ...]
    reason: str = ""
    cache_bytes: int | None = None


def plan_report(
    spec: ModelSpec,
    *,
    weight_bytes: int,
    kv_bytes_per_token: int,
    max_model_len: int,
    free_bytes: int | None,
    stored_bytes: int | None = None,
) -> PlanReport:
    """kv_bytes_per_token: of K and V in the cache, over all layers.

    Raises ConfigError if max_model_len is not from 1 to the model's own limit.
    """
    if not 1 <= max_model_len <= spec.max_position:
        raise ConfigError(
            f"max_model_len must be from 1 to {spec.max_position}, the model's own limit, got {max_model_len}",
            param="max_model_len",
        )
    parts = _parts(spec)
    token = sum(part.flops for part in parts)
    full = kv_bytes_per_token * max_model_len
    left = None if free_bytes is None else free_bytes - weight_bytes
    return PlanReport(
        family=spec.family,
        layers=len(spec.layers),
        parameters=spec.num_parameters(),
        active_parameters=spec.num_active_parameters(),
        weight_bytes=weight_bytes,
        stored_bytes=stored_bytes,
        max_model_len=max_model_len,
        kv_bytes_per_token=kv_bytes_per_token,
        kv_bytes_full=full,
        flops_per_token=token,
        flops_per_token_full=token + _attention_flops(spec, max_model_len),
        free_bytes=free_bytes,
        sequences=None if left is None else max(0, left) // full if full else int(left >= 0),
        parts=parts,
    )


def render(report: PlanReport) -> str:
    """The report as lines for a terminal."""
    active = f", {_count(report.active_parameters)} for a token" if report.active_parameters < report.parameters else ""
    lines = [
        f"{report.family}: {report.layers} layers, {_count(report.parameters)} parameters{active}",
        "",
        _line("weights", _bytes(report.weight_bytes)),
        *([] if report.stored_bytes is None else [_line("  as stored", _bytes(report.stored_bytes))]),
        _line("KV cache, a token", _bytes(report.kv_bytes_per_token)),
        _line(f"KV cache, {report.max_model_len:,} tokens", _bytes(report.kv_bytes_full)),
        _line("arithmetic, a token", f"{_count(report.flops_per_token)}FLOP"),
        _line("  at the end of that context", f"{_count(report.flops_per_token_full)}FLOP"),
        "",
        f"  {'part':<14}{'parameters':>16}{'share':>9}{'FLOP a token':>18}",
    ]
    for part in report.parts:
        share = part.parameters / report.parameters
        lines.append(f"  {part.name:<14}{part.parameters:>16,}{share:>9.1%}{part.flops:>18,}")
    return "\n".join([*lines, "", _verdict(report)])


def _verdict(report: PlanReport) -> str:
    if report.free_bytes is None or report.sequences is None:
        return "The memory of the device is not known: whether it fits is not said."
    free = _bytes(report.free_bytes)
    if report.weight_bytes > report.free_bytes and not report.sequences:
        return f"Does not fit: the weights take {_bytes(report.weight_bytes)}, {free} are free."
    if not report.kv_bytes_per_token:
        return f"Fits: {_bytes(report.weight_bytes)} of weights in {free}; nothing is cached."
    if not report.sequences:
        return f"The weights fit in {free}, a full context does not: {report.reason}."
    fits = f"Fits: {report.sequences:,} sequences of {report.max_model_len:,} tokens"
    if report.cache_bytes is None:
        return f"{fits} beside the weights in {free}."
    return f"{fits} in a KV cache of {_bytes(report.cache_bytes)}, beside the weights; {free} are free for both."


def _parts(spec: ModelSpec) -> tuple[Part, ...]:
    """Two operations for each element of a matrix; an embedding is looked up; a tied head multiplies by it.

    Of the experts, which are all alike, the first top_k count.
    """
    sizes, flops = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for name, parameter in spec.parameters().items():
        part, size = _part_of(name), prod(parameter.shape)
        sizes[part] += size
        if len(parameter.shape) == 2 and part != "embedding" and not _is_idle(spec, name):
            flops[part] += 2 * size
    if spec.head and spec.head.tied:
        flops["head"] = 2 * spec.vocab_size * spec.hidden_size
    return tuple(Part(name, sizes[name], flops[name]) for name in PARTS)


def _is_idle(spec: ModelSpec, name: str) -> bool:
    if ".experts." not in name:
        return False
    _, layer, _, expert, _ = name.split(".")
    ffn = spec.layers[int(layer)].ffn
    return isinstance(ffn, MoE) and int(expert) >= ffn.top_k


def _part_of(name: str) -> str:
    if name.startswith("dense."):
        return "head"
    name = name.rsplit(".", 1)[-1]
    if name in ("embed", "positions", "token_types"):
        return "embedding"
    if name.startswith(("head", "classifier")):
        return "head"
    if name.startswith(("gate", "up", "down", "router", "shared_router")):
        return "feed-forward"
    if name in ("q_norm", "k_norm", "final_norm") or name.startswith(("pre_", "post_", "after_", "embed_norm")):
        return "norms"
    return "attention"


def _attention_flops(spec: ModelSpec, context: int) -> int:
    """q.k and the weighted sum of v: 2 operations each for every element of every head and token seen."""
    total = 0
    for layer in spec.layers:
        seen = min(context, layer.mixer.window or context)
        total += 4 * layer.mixer.heads * layer.mixer.head_dim * seen
    return total


def _line(label: str, value: str) -> str:
    return f"  {label:<32}{value:>14}"


def _count(value: float) -> str:
    for unit in ("", "K", "M", "G"):
        if value < 1000:
            return f"{value:.4g}{' ' if unit else ''}{unit}"
        value /= 1000
    return f"{value:,.4g} T"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:,.4g} TiB"
