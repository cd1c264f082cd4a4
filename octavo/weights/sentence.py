"""sentence-transformers' files beside a checkpoint in; how its vectors are made out of hidden states, out.

modules.json lists the modules: Transformer, Pooling, Normalize. Others (Dense ...) would change the vectors: refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.weights.files import read_json, read_text

MODULES = "modules.json"
# sentence-transformers' names of poolings -> ours
_MODES: dict[str, Literal["cls", "mean", "last"]] = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "lasttoken": "last",
}


@dataclass(frozen=True)
class SentenceFiles:
    """kind: how states are pooled.  normalize: vectors get length 1.  max_length: tokens of a text, where told.

    prompts: what a kind of text ("query", "document" ...) begins with.
    """

    kind: Literal["cls", "mean", "last"]
    normalize: bool
    max_length: int | None
    prompts: dict[str, str] = field(default_factory=dict)


def read_sentence_files(folder: Path) -> SentenceFiles | None:
    """None where there is no modules.json. ModelFormatError, UnsupportedError name the file and the key."""
    if not (folder / MODULES).is_file():
        return None
    pooling: dict[str, Any] | None = None
    normalize, where = False, ""
    for path, kind in _modules(folder):
        if kind == "Pooling":
            where = f"{path}/config.json" if path else "config.json"
            pooling = read_json(folder / where)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedError(
                f"{MODULES}: modules of type {kind[:60]!r} are not supported; supported are Transformer, Pooling and "
                "Normalize",
                param="model",
            )
    if pooling is None:
        return None  # a cross-encoder's, or a model whose states are not pooled
    return SentenceFiles(_kind(pooling, where), normalize, _max_length(folder), _prompts(folder))


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Path and type of each module; the type without its package."""
    try:
        listed = json.loads(read_text(folder / MODULES))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{MODULES} is not valid JSON ({error}); download it again") from error
    found = []
    for entry in listed if isinstance(listed, list) else [None]:
        path, kind = (entry.get("path"), entry.get("type")) if isinstance(entry, dict) else (None, None)
        if not isinstance(path, str) or not isinstance(kind, str):
            raise ModelFormatError(f"{MODULES} must be a list of objects with a path and a type; download it again")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelFormatError(f"{MODULES}: path {path[:60]!r} leaves the model's folder")
        found.append((path, kind.rpartition(".")[2]))
    return found


def _kind(config: dict[str, Any], where: str) -> Literal["cls", "mean", "last"]:
    modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    if isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in _MODES:
        shown = " + ".join(modes)[:60] or "nothing"
        raise UnsupportedError(
            f"{where}: pooling by {shown} is not supported; supported is one of {', '.join(_MODES)}",
            param="pooling_mode",
        )
    if config.get("include_prompt", True) is not True:
        raise UnsupportedError(f"{where}: include_prompt false is not supported", param="include_prompt")
    return _MODES[modes[0]]


def _max_length(folder: Path) -> int | None:
    """max_seq_length of the first sentence_*_config.json that is there."""
    for path in sorted(folder.glob("sentence_*_config.json")):
        config = read_json(path)
        if config.get("do_lower_case"):
            raise UnsupportedError(f"{path.name}: do_lower_case true is not supported", param="do_lower_case")
        length = config.get("max_seq_length")
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise ModelFormatError(f"{path.name}: max_seq_length must be an integer from 1, got {str(length)[:60]}")
        return length
    return None


def _prompts(folder: Path) -> dict[str, str]:
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts")
    if prompts is None:
        return {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelFormatError("config_sentence_transformers.json: prompts must map names to texts")
    return prompts
