"""quant_method compressed-tensors: groups of modules, each with a format and how its weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.base.types.tensor import MatrixScheme
from octavo.weights.quantization.fp8 import float_scheme
from octavo.weights.quantization.integers import int_scheme, packed_scheme
from octavo.weights.quantization.rules import Rule, bad, matcher, names_of


def _naive_scheme(weights: Mapping[str, Any]) -> MatrixScheme:
    return (int_scheme if weights.get("type") == "int" else float_scheme)(weights)


FORMATS: dict[str, Callable[[Mapping[str, Any]], MatrixScheme]] = {
    "float-quantized": float_scheme,
    "int-quantized": int_scheme,
    "naive-quantized": _naive_scheme,
    "pack-quantized": packed_scheme,
}
"""A format's name -> from a group's `weights` to a scheme. The naive one stores numbers as the first two do."""

IN_WEIGHTS = ("weight_input", "weight_output")
"""Where a transform is multiplied into the weights; elsewhere activations are rotated while the model runs."""


def compressed_rules(config: Mapping[str, Any]) -> list[Rule]:
    """Without the modules that are to be ignored. As in compressed-tensors a group that names a module wins over one
    whose pattern matches it, and that over one of all Linear modules, whatever their order."""
    sparsity = config.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise bad("sparsity_config", sparsity, "an object with the format dense")
    if not _rotates_weights_only(config.get("transform_config") or {}):
        raise bad("transform_config", config["transform_config"], "rotations that the weights hold already")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise bad("config_groups", groups, "an object of groups")
    ignored = matcher(names_of(config, "ignore"), inside=False)
    found = [_rules(group, group.get("format") or config.get("format"), ignored) for group in groups.values()]
    return [rule for alike in zip(*found, strict=True) for rule in alike]


def _rotates_weights_only(transforms: Any) -> bool:
    """Whether every transform was made on weights before they were saved, so that a step has nothing to rotate."""
    groups = transforms.get("config_groups", {}) if isinstance(transforms, dict) else None
    if not isinstance(groups, dict) or transforms.keys() - {"config_groups"}:
        return False
    for group in groups.values():
        places = group.get("apply") if isinstance(group, dict) else None
        if not isinstance(places, list):
            return False
        if not all(isinstance(place, dict) and place.get("location") in IN_WEIGHTS for place in places):
            return False
    return True


def _rules(group: Mapping[str, Any], form: Any, ignored: Callable[[str], bool]) -> tuple[Rule, Rule, Rule]:
    """For the modules that the group names, those that its patterns match, and all, if it is of all."""
    weights = group.get("weights")
    if not isinstance(form, str) or form not in FORMATS:
        raise bad("format", form, " or ".join(FORMATS))
    if not isinstance(weights, dict):
        raise bad("weights", weights, "an object")
    if form == "pack-quantized" and group.get("input_activations"):
        raise bad("input_activations", group["input_activations"], "none beside packed weights")
    targets, scheme = names_of(group, "targets"), FORMATS[form](weights)
    named = matcher([name for name in targets if not name.startswith("re:")], inside=False)
    alike = matcher([name for name in targets if name.startswith("re:")], inside=False)
    every = "Linear" in targets
    return (
        Rule(lambda module: not ignored(module) and named(module), scheme),
        Rule(lambda module: not ignored(module) and alike(module), scheme),
        Rule(lambda module: not ignored(module) and every, scheme),
    )
