"""Typed reading of a checkpoint's config: a JSON object in, checked values out.

Every size has bounds, so that a damaged or hostile config ends in a typed error that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.base.errors import ModelFormatError

# Highest sane value of each size; the lowest is 1. Real models stay well below these.
LARGEST: dict[str, int] = {
    "vocab_size": 1 << 23,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1 << 13,
    "max_window_layers": 1 << 20,
    "num_experts": 1024,
    "num_local_experts": 1024,
    "num_experts_per_tok": 1024,
    "moe_intermediate_size": 1 << 20,
    "shared_expert_intermediate_size": 1 << 20,
}
LARGEST_OTHER = 1 << 31


def show(value: object) -> str:
    """The value as an error message quotes it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Config:
    """One JSON object of a config. A key that is missing or null takes `default`; without a default it is an error.

    where: the path of this object inside config.json, such as "rope_parameters.", for error messages.
    Every method raises ModelFormatError naming the key.
    """

    values: Mapping[str, Any]
    where: str = ""

    def wrong(self, key: str, need: str) -> ModelFormatError:
        """The error that says what this key has to be and what it is."""
        got = show(self.values[key]) if key in self.values else "nothing"
        return ModelFormatError(
            f"config.json: {self.where}{key} must be {need}, got {got}; download the model again or correct the key "
            "(hf_overrides)",
            param=key,
        )

    def has(self, key: str) -> bool:
        """True if the key is there and not null."""
        return self.values.get(key) is not None

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, *, default: int | None = None, lowest: int = 1) -> int:
        """A whole number between `lowest` and the key's bound in LARGEST."""
        value = self._value(key, default)
        highest = LARGEST.get(key, LARGEST_OTHER)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise self.wrong(key, f"an integer from {lowest} to {highest}")
        return value

    def number(
        self, key: str, *, default: float | None = None, lowest: float = 0.0, highest: float = 1e18, above: bool = True
    ) -> float:
        """A finite number up to `highest` and above `lowest` (with above=False: from `lowest`)."""
        value = self._value(key, default)
        # A NaN fails the comparison, as it must.
        inside = isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest
        if isinstance(value, int | float) and inside and not (above and value == lowest):
            return float(value)
        raise self.wrong(key, f"a number {'above' if above else 'from'} {lowest:g}, at most {highest:g}")

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def texts(self, key: str, *, length: int) -> list[str]:
        """A list of `length` strings."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != length or not all(isinstance(v, str) for v in value):
            raise self.wrong(key, f"a list of {length} strings")
        return value

    def numbers(self, key: str, *, length: int) -> list[float]:
        """A list (or tuple) of `length` finite numbers above 0."""
        value = self.values.get(key)
        if (
            not isinstance(value, list | tuple)
            or len(value) != length
            or not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e18 for v in value)
        ):
            raise self.wrong(key, f"a list of {length} numbers above 0")
        return [float(v) for v in value]

    def integers(self, key: str) -> list[int]:
        """A list of whole numbers from 0; an empty one if it is missing or null."""
        value = self._value(key, [])
        if not isinstance(value, list) or not all(isinstance(v, int) and type(v) is not bool and v >= 0 for v in value):
            raise self.wrong(key, "a list of integers from 0")
        return value

    def section(self, key: str) -> Config:
        """The object under this key; an empty one if it is missing or null."""
        value = self._value(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Config(value, f"{self.where}{key}.")
