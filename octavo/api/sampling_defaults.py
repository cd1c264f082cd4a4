"""generation_config.json and what replaces it in; the values of SamplingParams that requests do not give out."""

from __future__ import annotations

from typing import Any

from octavo.api.arguments import suggest
from octavo.base.config.config import ModelConfig
from octavo.base.errors import ConfigError, InputError, ModelFormatError
from octavo.base.types.sampling import SamplingParams

# generation_config.json's names -> SamplingParams'
_KEYS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_OPTION = "override_generation_config"


def sampling_defaults(config: ModelConfig, generation: dict[str, Any]) -> dict[str, Any]:
    """By SamplingParams' names. ModelFormatError names the file's key, ConfigError the option's."""
    override = config.override_generation_config
    for name in override:
        if name not in _KEYS:
            hint = suggest(name, [*_KEYS]) or f"; known are {', '.join(_KEYS)}"
            raise ConfigError(f"{_OPTION}: unknown key {name!r}{hint}", param=_OPTION)
    given = _named(override)
    try:
        SamplingParams(**given)
    except InputError as error:
        raise ConfigError(f"{_OPTION}: {_in_its_names(error)}", param=_OPTION) from None
    if config.generation_config == "vllm":
        return given
    values = _named({**generation, **override})
    try:
        SamplingParams(**values)
    except InputError as error:
        message = f"generation_config.json: {_in_its_names(error)}; correct the file, or use generation_config=vllm"
        raise ModelFormatError(message, param=error.param) from None
    return values


def _in_its_names(error: InputError) -> str:
    """The message, with the key that generation_config.json has for the parameter."""
    ours = error.param or ""
    return error.message.replace(ours, next((key for key, name in _KEYS.items() if name == ours), ours), 1)


def _named(generation: dict[str, Any]) -> dict[str, Any]:
    return {ours: generation[theirs] for theirs, ours in _KEYS.items() if generation.get(theirs) is not None}
