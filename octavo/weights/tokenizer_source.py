"""Where a checkpoint's tokenizer and chat template come from: a folder's files, or the keys of a GGUF header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.base.errors import ModelFormatError
from octavo.weights.files import read_json, read_text

DEFAULT, TOOL_USE = "default", "tool_use"
ADDITIONAL = "additional_chat_templates"


@dataclass(frozen=True)
class TokenizerFiles:
    """path: tokenizer.json.  config: tokenizer_config.json, completed by special_tokens_map.json."""

    path: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class GgufTokenizer:
    """model: ggml's kind of vocabulary (gpt2, llama, ...).  metadata: every `tokenizer.*` key, the lists included.

    scores and token_types are parallel to tokens or empty; merges are "left right", best first, or empty.
    """

    model: str
    tokens: list[str] = field(repr=False)
    scores: list[float] = field(repr=False)
    token_types: list[int] = field(repr=False)
    merges: list[str] = field(repr=False)
    metadata: Mapping[str, Any] = field(repr=False)


def folder_tokenizer(folder: Path) -> TokenizerFiles | None:
    """None if the folder has no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    config = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
    return TokenizerFiles(path, config)


def folder_chat_template(folder: Path) -> str | None:
    """chat_template.jinja, or tokenizer_config.json's chat_template: a string, or the "default" of a list."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    return _config_template(folder, DEFAULT)


def folder_tool_template(folder: Path) -> str | None:
    """additional_chat_templates/tool_use.jinja, or "tool_use" of tokenizer_config.json's list of templates.

    As with Transformers, a template in a file of its own means that the list does not count.
    """
    own = folder / ADDITIONAL / f"{TOOL_USE}.jinja"
    if own.is_file():
        return read_text(own)
    if (folder / "chat_template.jinja").is_file() or any((folder / ADDITIONAL).glob("*.jinja")):
        return None
    return _config_template(folder, TOOL_USE)


def _config_template(folder: Path, name: str) -> str | None:
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = next((t.get("template") for t in template if isinstance(t, dict) and t.get("name") == name), None)
    elif isinstance(template, str) and name != DEFAULT:
        return None
    if template is not None and not isinstance(template, str):
        raise ModelFormatError("tokenizer_config.json: chat_template must be a string or a list of named templates")
    return template


def gguf_tokenizer(metadata: Mapping[str, Any]) -> GgufTokenizer | None:
    """None if the file carries no vocabulary. Raises ModelFormatError for keys of a wrong type or length."""
    own = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    tokens = _list(own, "tokens", str)
    if not tokens:
        return None
    model = own.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        raise ModelFormatError("the GGUF file's tokenizer.ggml.model must be a string; convert the model again")
    scores, types = _list(own, "scores", float), _list(own, "token_type", int)
    for key, values in (("scores", scores), ("token_type", types)):
        if values and len(values) != len(tokens):
            raise ModelFormatError(
                f"the GGUF file's tokenizer.ggml.{key} has {len(values)} entries for {len(tokens)} tokens"
            )
    return GgufTokenizer(model, tokens, scores, types, _list(own, "merges", str), own)


def gguf_chat_template(metadata: Mapping[str, Any]) -> str | None:
    """tokenizer.chat_template, if the file has one."""
    return _gguf_template(metadata, "tokenizer.chat_template")


def gguf_tool_template(metadata: Mapping[str, Any]) -> str | None:
    """tokenizer.chat_template.tool_use, if the file has one."""
    return _gguf_template(metadata, f"tokenizer.chat_template.{TOOL_USE}")


def _gguf_template(metadata: Mapping[str, Any], key: str) -> str | None:
    template = metadata.get(key)
    if template is not None and not isinstance(template, str):
        raise ModelFormatError(f"the GGUF file's {key} must be a string; convert the model again")
    return template


def _list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """A GGUF array has one type throughout, so its first element tells."""
    values = metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(values, list) or (values and type(values[0]) is not kind):
        raise ModelFormatError(
            f"the GGUF file's tokenizer.ggml.{key} must be a list of {kind.__name__}; convert the model again"
        )
    return values
