"""--config FILE: options in YAML (or JSON, which is YAML), by their names without dashes, in; what was given out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.base.errors import ConfigError, OctavoError
from octavo.cli.flags import Parser
from octavo.cli.output import as_path

_NOT_THERE = ("config", "debug", "help", "json")


def with_file(parser: Parser, values: dict[str, Any]) -> dict[str, Any]:
    """`values` of the command line, over those of the file that they name; ConfigError names file, line and key."""
    path = values.pop("config", None)
    if path is None:
        return values
    given = {name: value for name, value in values.items() if value is not None}
    found = {name: value for name, value in _read(parser, as_path(path)).items() if value is not None}
    if given.keys() & {"model", "model_argument"}:
        found.pop("model", None)
    return {**found, **given}


def _read(parser: Parser, path: Path) -> dict[str, Any]:
    import yaml  # few starts need it

    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}", param="config") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}", param="config") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"--config {path}: options are told as `name: value`, a line each", param="config")
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for key, _ in node.value:
        name = key.value.replace("-", "_")
        where = f"--config {path}, line {key.start_mark.line + 1}: {key.value}"
        # of a merge key (<<) the content holds what it brought, not the key
        if name in seen or key.value.startswith("-") or name in _NOT_THERE or key.value not in content:
            fault = "is there twice" if name in seen else "is no option; options are named without dashes before them"
            raise ConfigError(f"{where} {fault}", param=name)
        seen.add(name)
        try:
            read = parser.parse(_arguments(parser, "--" + key.value.replace("_", "-"), content[key.value]))
        except OctavoError as error:
            raise type(error)(f"{where}: {error.message}", param=name) from None
        found.update((option, value) for option, value in read.items() if value is not None)
    return found


def _arguments(parser: Parser, flag: str, value: Any) -> list[str]:
    """As they would stand on the command line."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag.removeprefix("--")]
    if not isinstance(value, list):
        return [f"{flag}={_text(value)}"]
    if not parser.takes_list(flag):
        return [f"{flag}={json.dumps(value)}"]
    return [f"{flag}={_text(item)}" for item in value]


def _text(value: Any) -> str:
    try:
        return json.dumps(value) if isinstance(value, dict | list) else str(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{error}") from None
