"""Rotary frequencies: a config's rope keys in, a spec.Rope out. Double precision, pure Python.

Equal to Transformers' ROPE_INIT_FUNCTIONS (modeling_rope_utils.py) within float32 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from octavo.base.errors import UnsupportedError
from octavo.models.config import Config, show
from octavo.models.spec import Rope

LAYER_TYPES = ("sliding_attention", "full_attention")


def rope(
    config: Config,
    *,
    head_dim: int,
    layer_type: str = "full_attention",
    theta_key: str = "rope_theta",
    default_theta: float = 10_000.0,
    scaled: bool = True,
) -> Rope:
    """The rope of one layer type, from the old keys (`rope_scaling`, `rope_theta`) or the new `rope_parameters`.

    rope_parameters may be one object for all layers or one for each layer type.  scaled=False: this layer type
    takes no part in the old form's rope_scaling.  partial_rotary_factor turns the first share of each head only.
    rope_freq_factors (GGUF: llama3's scaling as one divisor per frequency) and rope_interleaved are honoured.
    Raises UnsupportedError for an unknown rope_type, ModelFormatError for a missing or impossible value.
    """
    keys = _keys(config, layer_type, scaled)
    kind = keys.text("rope_type", default=keys.text("type", default="default"))
    if kind not in KINDS:
        raise UnsupportedError(
            f"config.json: {keys.where}rope_type {show(kind)} is not supported; supported are {', '.join(KINDS)}",
            param="rope_type",
        )
    theta = (keys if keys.has("rope_theta") else config).number(
        "rope_theta" if keys.has("rope_theta") else theta_key, default=default_theta, lowest=1.0
    )
    share = keys if keys.has("partial_rotary_factor") else config
    # Truncated as Transformers does; the small sum undoes the rounding of a share that was made by a division.
    dim = int(head_dim * share.number("partial_rotary_factor", default=1.0, highest=1.0) + 1e-6)
    if dim < 2 or dim % 2:
        raise UnsupportedError(
            f"config.json: head_dim {head_dim} leaves {dim} elements to rotate; rope needs an even number from 2 up",
            param="partial_rotary_factor" if share.has("partial_rotary_factor") else "head_dim",
        )
    plain = Rope(dim, tuple(theta ** (-2 * j / dim) for j in range(dim // 2)))
    result = KINDS[kind](replace(plain, interleaved=config.flag("rope_interleaved")), theta, keys, config)
    if config.has("rope_freq_factors"):
        divisors = config.numbers("rope_freq_factors", length=dim // 2)
        result = replace(result, inv_freq=tuple(f / d for f, d in zip(result.inv_freq, divisors, strict=True)))
    return result


def max_position(config: Config, *, default: int) -> int:
    """Longest context in tokens. Yarn's is factor x the original where max_position_embeddings was left as it was."""
    length = config.integer("max_position_embeddings", default=default)
    keys = _keys(config, "full_attention", True)
    if keys.text("rope_type", default=keys.text("type", default="default")) != "yarn" or not keys.has("factor"):
        return length
    return max(length, int(keys.number("factor", highest=1e6) * _original_length(keys, config)))


def _keys(config: Config, layer_type: str, scaled: bool) -> Config:
    """Of a layer type. rope_scaling wins, but for a rope_theta that rope_parameters alone has."""
    old, new = (_part(config.section(key), layer_type, scaled) for key in ("rope_scaling", "rope_parameters"))
    return Config({"rope_theta": new.values.get("rope_theta"), **old.values}, old.where) if old.values else new


def _part(keys: Config, layer_type: str, scaled: bool) -> Config:
    if any(name in keys.values for name in LAYER_TYPES):
        return keys.section(layer_type)
    return keys if scaled else Config({})


def _original_length(keys: Config, config: Config) -> int:
    key = "original_max_position_embeddings"
    if config.has(key):
        return config.integer(key)
    return keys.integer(key) if keys.has(key) else config.integer("max_position_embeddings")


def _factor(keys: Config) -> float:
    return keys.number("factor", highest=1e6)


def _default(plain: Rope, theta: float, keys: Config, config: Config) -> Rope:
    return plain


def _linear(plain: Rope, theta: float, keys: Config, config: Config) -> Rope:
    factor = _factor(keys)
    return replace(plain, inv_freq=tuple(f / factor for f in plain.inv_freq))


def _dynamic(plain: Rope, theta: float, keys: Config, config: Config) -> Rope:
    """NTK scaling by the current length. Up to max_position_embeddings it is the default rope, and beyond it the
    frequencies would change under keys that are already in the cache: so the context stays the original one."""
    _factor(keys)
    return plain


def _llama3(plain: Rope, theta: float, keys: Config, config: Config) -> Rope:
    """Llama 3.1: wavelengths above original / low are divided by factor, those below original / high stay, with a
    linear blend in between."""
    factor, original = _factor(keys), _original_length(keys, config)
    low, high = keys.number("low_freq_factor"), keys.number("high_freq_factor")
    if high <= low:
        raise keys.wrong("high_freq_factor", f"above low_freq_factor ({low:g})")

    def scale(freq: float) -> float:
        turns = original * freq / (2 * math.pi)
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - keep) * freq / factor + keep * freq

    return replace(plain, inv_freq=tuple(scale(f) for f in plain.inv_freq))


def _yarn(plain: Rope, theta: float, keys: Config, config: Config) -> Rope:
    """YaRN (arXiv 2309.00071): frequencies that turn often stay, slow ones are divided by factor, a ramp between;
    cos and sin are multiplied by an attention factor."""
    original = _original_length(keys, config)
    ratio = config.integer("max_position_embeddings", default=original) / original
    factor = keys.number("factor", default=ratio, highest=1e6)
    fast, slow = (keys.number(key, default=value) for key, value in (("beta_fast", 32.0), ("beta_slow", 1.0)))

    def dimension(turns: float) -> float:
        return plain.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    start, stop = dimension(fast), dimension(slow)
    if keys.flag("truncate", default=True):
        start, stop = math.floor(start), math.ceil(stop)
    start, stop = max(start, 0), min(stop, plain.dim - 1)
    width = stop - start or 0.001

    def scale(j: int, freq: float) -> float:
        ramp = min(max((j - start) / width, 0.0), 1.0)
        return freq / factor * ramp + freq * (1 - ramp)

    frequencies = tuple(scale(j, f) for j, f in enumerate(plain.inv_freq))
    return replace(plain, inv_freq=frequencies, attention_factor=_yarn_attention_factor(keys, factor))


def _yarn_attention_factor(keys: Config, factor: float) -> float:
    if keys.has("attention_factor"):
        return keys.number("attention_factor", highest=1e6)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weight, weight_all = (keys.number(k, default=0.0, above=False) for k in ("mscale", "mscale_all_dim"))
    if weight and weight_all:
        return magnitude(weight) / magnitude(weight_all)
    return magnitude(1.0)


KINDS: dict[str, Callable[[Rope, float, Config, Config], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""rope_type -> (plain rope, theta, the rope's own keys, the whole config) -> scaled rope"""
