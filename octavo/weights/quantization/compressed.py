"""quant_method compressed-tensors: groups of modules, each with a format and how its weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.base.types.tensor import MatrixScheme
from octavo.weights.quantization.fp8 import float_scheme
from octavo.weights.quantization.int4 import packed_scheme
from octavo.weights.quantization.rules import Rule, bad, matcher, names_of

FORMATS: dict[str, Callable[[Mapping[str, Any]], MatrixScheme]] = {
    "float-quantized": float_scheme,
    "pack-quantized": packed_scheme,
}
"""A format's name -> from a group's `weights` to a scheme."""


def compressed_rules(config: Mapping[str, Any]) -> list[Rule]:
    """One rule a group, without the modules that are to be ignored."""
    if (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise bad("sparsity_config", config["sparsity_config"], "dense")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise bad("config_groups", groups, "an object of groups")
    ignored = matcher(names_of(config, "ignore"), inside=False)
    return [_rule(group, group.get("format") or config.get("format"), ignored) for group in groups.values()]


def _rule(group: Mapping[str, Any], form: Any, ignored: Callable[[str], bool]) -> Rule:
    weights = group.get("weights")
    if form not in FORMATS:
        raise bad("format", form, " or ".join(FORMATS))
    if not isinstance(weights, dict):
        raise bad("weights", weights, "an object")
    if form == "pack-quantized" and group.get("input_activations"):
        raise bad("input_activations", group["input_activations"], "none beside packed weights")
    targets = names_of(group, "targets")
    wanted = matcher(targets, inside=False)
    every = "Linear" in targets
    return Rule(lambda module: not ignored(module) and (every or wanted(module)), FORMATS[form](weights))
