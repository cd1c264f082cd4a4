"""A repository's list of files in, those that a model needs out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatch

from octavo.base.errors import ModelFormatError, ModelNotFoundError
from octavo.weights.gguf import gguf_models, is_gguf, split_parts
from octavo.weights.quantization.read import OWN_FILES
from octavo.weights.safetensors import INDEX, WHOLE

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    *OWN_FILES,
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template*.jinja",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "*_Dense/config.json",
    INDEX,
)
DENSE = f"*_Dense/{WHOLE}"
"""Weights of sentence-transformers' layers behind a model."""
TOKENIZER = "tokenizer.json"
SHARD = re.compile(r"^[^/]+-\d{5}-of-\d{5}\.safetensors$")


def choose(
    repo: str, sizes: Mapping[str, int], file: str | None, *, indexed: Collection[str] = ()
) -> tuple[list[str], str | None]:
    """From a repository's files: those to download, and the .gguf to open (None: the folder itself).

    file: a .gguf, or the format that its name ends in, as llama.cpp, Ollama and vLLM have it.
    indexed: the files that the safetensors' index names, where it was read.
    """
    if file is not None:
        file = file if is_gguf(file) else _of_format(repo, sizes, file)
        folder, _, name = file.rpartition("/")
        parts = [f"{folder}/{part}" if folder else part for part in split_parts(name)]
        if missing := [part for part in parts if part not in sizes]:
            there = ", ".join(sorted(filter(is_gguf, sizes))[:20]) or "none"
            raise ModelNotFoundError(f"{repo} has no file {missing[0]}; its .gguf files are: {there}", param="model")
        return parts, file
    weights = [name for name in sizes if "/" not in name and name.endswith(".safetensors")]
    if indexed and sizes.keys() >= set(indexed):
        weights = sorted(indexed)
    elif WHOLE in weights and (indexed or INDEX not in sizes):
        weights = [WHOLE]  # beside an index that names what is not there: left over from before
    elif INDEX in sizes:
        weights = [name for name in weights if SHARD.match(name)] or weights
    if weights and "config.json" in sizes:
        dense = [name for name in sizes if fnmatch(name, DENSE)]
        return weights + dense + small_files(sizes), None
    ggufs = gguf_models(sorted(sizes))
    if len(ggufs) == 1:
        return choose(repo, sizes, ggufs[0])
    if ggufs:
        listed = ", ".join(f"{repo}:{name}" for name in ggufs[:20])
        raise ModelNotFoundError(f"{repo} holds {len(ggufs)} .gguf files; give one of {listed}", param="model")
    raise ModelFormatError(
        f"{repo} holds no safetensors (with config.json) and no .gguf files; pickled weights (.bin, .pt) are never "
        "read because loading them can run code. Take another repository or revision",
        param="model",
    )


def _of_format(repo: str, sizes: Mapping[str, int], wanted: str) -> str:
    """The .gguf whose name, without the number of a part, ends in this format; letters may be large or small."""
    ending = re.compile(rf"(^|[-._/]){re.escape(wanted)}(-\d{{5}}-of-\d{{5}})?\.gguf$", re.I)
    ggufs = gguf_models(sorted(sizes))
    found = [name for name in ggufs if ending.search(name)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{repo}:{name}" for name in (found or ggufs)[:20]) or "none"
    many = f"{len(found)} .gguf files" if found else "no .gguf file"
    raise ModelNotFoundError(f"{repo} has {many} of the format {wanted}; its files are: {listed}", param="model")


def is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or is_gguf(name)


def small_files(sizes: Mapping[str, int]) -> list[str]:
    return [name for name in sizes if any(fnmatch(name, small) for small in SMALL_FILES)]
