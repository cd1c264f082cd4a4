"""A local file or folder in, a Checkpoint out: config, tokenizer sources and views of the tensors.

Only headers are read, but for an output matrix beside an embedding that it may be the same as; tensor bytes stay in the
mapped files. No code from the folder is run (auto_map is ignored).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from octavo.base.errors import ConfigError, ModelFormatError, ModelNotFoundError
from octavo.base.types.tensor import StoredTensor
from octavo.weights.files import map_file, read_json, release
from octavo.weights.gguf import (
    MAGIC,
    GgufFile,
    GgufHeader,
    TensorInfo,
    gguf_models,
    is_gguf,
    read_gguf,
    read_header,
    split_parts,
)
from octavo.weights.gguf_config import gguf_config, gguf_generation_config, hugging_face_name
from octavo.weights.quantization import Quantization, find_quantization
from octavo.weights.safetensors import INDEX, WHOLE, SafetensorsFile, read_index, read_safetensors
from octavo.weights.tokenizer_source import (
    GgufTokenizer,
    TokenizerFiles,
    folder_chat_template,
    folder_tokenizer,
    folder_tool_template,
    gguf_chat_template,
    gguf_tokenizer,
    gguf_tool_template,
)

__all__ = ["Checkpoint", "GgufTokenizer", "TokenizerFiles", "names_dtype", "open_checkpoint", "open_tokenizer"]

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FORMATS = ("auto", "safetensors", "gguf", "dummy")
PIECE = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, opened. Keys and tensor names are Hugging Face's, from GGUF too.

    path: the file or folder.  generation_config: {} if there is none.  total_bytes: of all tensors as stored, 0 if
    nothing here tells.  format "dummy": config and tokenizer only, tensors is empty (weights.dummy makes them).
    quantization: config.json's; None for GGUF, where every tensor says itself how it is stored.
    tool_template: the chat template for conversations with tools, where there is one of its own.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    generation_config: dict[str, Any]
    chat_template: str | None = field(repr=False)
    tokenizer: TokenizerFiles | GgufTokenizer | None = field(repr=False)
    total_bytes: int
    format: Literal["safetensors", "gguf", "dummy"]
    quantization: Quantization | None = None
    tool_template: str | None = field(default=None, repr=False)


def open_checkpoint(
    path: Path,
    *,
    load_format: str = "auto",
    hf_overrides: Mapping[str, Any] | None = None,
    with_weights: bool = True,
    with_tokenizer: bool = True,
) -> Checkpoint:
    """Open a .gguf file (the first part of a split one), or a folder with safetensors or exactly one .gguf.

    load_format: auto, safetensors, gguf or dummy.  hf_overrides: keys to replace in the config, and in its text_config.
    with_weights=False is content with the beginning of a .gguf file and with a folder that lacks safetensors; it and
    dummy leave `tensors` empty for those, and rope_freq_factors (which are a tensor) out of a .gguf file's config.
    with_tokenizer=False leaves `tokenizer` out: a vocabulary takes longer to read than all else.
    Raises ModelNotFoundError (no such path), ModelFormatError (damaged or of an unknown form), ConfigError
    (load_format contradicts what is there).
    """
    path = Path(path)
    if load_format not in FORMATS:
        raise ConfigError(f"load_format must be one of {', '.join(FORMATS)}, got {load_format!r}", param="load_format")
    if not path.exists():
        raise ModelNotFoundError(f"{path} does not exist; give a .gguf file or a model folder", param="model")
    gguf = _gguf_file(path, load_format)
    if gguf is not None:
        whole = with_weights and load_format != "dummy"
        return _from_gguf(gguf, load_format, dict(hf_overrides or {}), whole=whole, with_tokenizer=with_tokenizer)
    if path.is_file():
        raise ModelFormatError(f"{path.name} is not a .gguf file; give one, or a folder of safetensors")
    if load_format == "gguf":
        raise ConfigError(f"load_format is gguf, but {path} holds no .gguf file", param="load_format")
    opened = _from_folder(path, load_format, dict(hf_overrides or {}), with_weights=with_weights)
    return opened if with_tokenizer else replace(opened, tokenizer=None)


def open_tokenizer(path: Path) -> Checkpoint:
    """Only what a tokenizer needs, of a .gguf file or of a folder, which may lack config.json."""
    path = Path(path)
    source = folder_tokenizer(path)
    if source is None and (not path.is_dir() or _ggufs(path)):
        return open_checkpoint(path, load_format="dummy")
    return Checkpoint(
        path=path,
        config=read_json(path / "config.json"),
        tensors={},
        generation_config=read_json(path / "generation_config.json"),
        chat_template=folder_chat_template(path),
        tokenizer=source,
        total_bytes=0,
        format="dummy",
        tool_template=folder_tool_template(path),
    )


def _gguf_file(path: Path, load_format: str) -> Path | None:
    """The .gguf file to open, or None where the folder's safetensors (or config.json) are meant."""
    if path.is_file():
        if not is_gguf(path.name) and not _begins_as_gguf(path):
            return None
        if load_format == "safetensors":
            raise ConfigError(f"load_format is safetensors, but {path.name} is a GGUF file", param="load_format")
        return path
    has_config = (path / "config.json").is_file()
    if load_format == "safetensors" or (load_format == "dummy" and has_config):
        return None
    if load_format == "auto" and has_config and any(path.glob("*.safetensors")):
        return None
    files = _ggufs(path)
    models = gguf_models(files)
    if len(models) > 1:
        raise ModelFormatError(f"{path} holds {len(models)} models ({', '.join(models[:8])}); give one file's path")
    return path / (models or files)[0] if files else None


def _begins_as_gguf(path: Path) -> bool:
    """For files without the ending, as Ollama keeps models (blobs/sha256-...)."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelFormatError(f"{path.name} cannot be read: {error.strerror}") from error


def _ggufs(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*") if is_gguf(file.name))


def _from_gguf(
    path: Path, load_format: str, overrides: dict[str, Any], *, whole: bool, with_tokenizer: bool
) -> Checkpoint:
    names = split_parts(path.name)
    parts = [_read_part(path.with_name(name), whole=whole, vocabulary=with_tokenizer) for name in names]
    metadata = parts[0].metadata
    _check_split(path.name, metadata, parts)
    tensors: dict[str, StoredTensor | TensorInfo] = {}
    for part in parts:
        for name in part.tensors.keys() & tensors.keys():
            raise ModelFormatError(f"{path.name}: tensor {name!r} is in two parts; download them again")
        tensors.update(part.tensors)
    config = gguf_config(metadata, tensors)
    arch = metadata["general.architecture"]
    stored = {hugging_face_name(name, arch): t for name, t in tensors.items() if isinstance(t, StoredTensor)}
    return Checkpoint(
        path=path,
        config={**config, **overrides},
        tensors=stored,
        generation_config=gguf_generation_config(metadata),
        chat_template=gguf_chat_template(metadata),
        tokenizer=gguf_tokenizer(metadata) if with_tokenizer else None,
        total_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        format="dummy" if load_format == "dummy" else "gguf",
        tool_template=gguf_tool_template(metadata),
    )


def _read_part(path: Path, *, whole: bool, vocabulary: bool) -> GgufFile | GgufHeader:
    if not path.is_file():
        raise ModelFormatError(f"{path.name} is missing: all parts of a split model must lie in one folder")
    read = read_gguf if whole else read_header
    mapped = map_file(path)
    part = read(mapped, where=path.name, vocabulary=vocabulary)
    release(mapped)
    return part


def _check_split(name: str, metadata: Mapping[str, Any], parts: list[GgufFile | GgufHeader]) -> None:
    count = metadata.get("split.count", 0)
    if count not in (0, 1, len(parts)):
        raise ModelFormatError(
            f"{name} is one of {str(count)[:20]} parts, but its name says {len(parts)}; keep the names "
            "NAME-00001-of-0000N.gguf that the parts had, all in one folder"
        )
    total = metadata.get("split.tensors.count")
    if total is not None and count not in (0, 1) and total != sum(len(part.tensors) for part in parts):
        raise ModelFormatError(f"{name}: its parts hold {sum(len(p.tensors) for p in parts)} tensors, not {total}")


def _from_folder(folder: Path, load_format: str, overrides: dict[str, Any], *, with_weights: bool) -> Checkpoint:
    config = read_json(folder / "config.json")
    if not config:
        raise ModelFormatError(f"{folder} has no config.json; give a Hugging Face model folder or a .gguf file")
    dummy = load_format == "dummy"
    tensors = {} if dummy or (not with_weights and _lacks_weights(folder)) else _folder_tensors(folder)
    config = _overridden(_untied(config, tensors), overrides)
    return Checkpoint(
        path=folder,
        config=_with_dtype(config, tensors),
        tensors=tensors,
        generation_config=read_json(folder / "generation_config.json"),
        chat_template=folder_chat_template(folder),
        tokenizer=folder_tokenizer(folder),
        total_bytes=sum(tensor.data.nbytes for tensor in tensors.values()),
        format="dummy" if dummy else "safetensors",
        quantization=find_quantization(folder, config, tensors),
        tool_template=folder_tool_template(folder),
    )


def _overridden(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The config with these keys; of text_config, a config of its own, only the keys that are given are replaced."""
    old, new = config.get("text_config"), overrides.get("text_config")
    merged = {"text_config": {**old, **new}} if isinstance(old, dict) and isinstance(new, dict) else {}
    return {**config, **overrides, **merged}


def _untied(config: dict[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The config; as Transformers has it, an output matrix that is stored and is not the embedding is not tied to it,
    whatever tie_word_embeddings says. So models are saved whose output layer alone was trained further."""
    heads, embeddings = (
        [tensor for name, tensor in tensors.items() if name.endswith(end)]
        for end in ("lm_head.weight", "embed_tokens.weight")
    )
    if config.get("tie_word_embeddings") is False or len(heads) != 1 or len(embeddings) != 1:
        return config
    head, embedding = heads[0], embeddings[0]
    if head.shape != embedding.shape or _same_bytes(head.data, embedding.data):
        return config
    if config.get("tie_word_embeddings"):
        _log.warning("config.json: tie_word_embeddings is true, but %s differs from %s", head.name, embedding.name)
    return {**config, "tie_word_embeddings": False}


def _same_bytes(one: memoryview, other: memoryview) -> bool:
    """Piece by piece: views are compared element by element, bytes all at once."""
    pieces = range(0, max(one.nbytes, other.nbytes), PIECE)
    return all(one[at : at + PIECE].tobytes() == other[at : at + PIECE].tobytes() for at in pieces)


def _with_dtype(config: dict[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The config; one that names no dtype, with that of most bytes of the weights, as far as they are here."""
    if names_dtype(config):
        return config
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.scheme.name in DTYPES:
            sizes[DTYPES[tensor.scheme.name]] += tensor.nbytes
    return {**config, "dtype": sizes.most_common(1)[0][0]} if sizes else config


def names_dtype(config: Mapping[str, Any]) -> bool:
    """Whether a config tells the weights' element type."""
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    return any(keys.get(key) is not None for keys in places for key in ("dtype", "torch_dtype"))


def _lacks_weights(folder: Path) -> bool:
    """No safetensors, or not all of them: as headers-only and broken-off downloads leave a folder."""
    if files := set(_weight_map(folder).values()):
        return not all((folder / file).is_file() for file in files)
    return not any(path.suffix in (".safetensors", *PICKLED) for path in folder.iterdir())


def _folder_tensors(folder: Path) -> Mapping[str, StoredTensor]:
    if weight_map := _weight_map(folder):
        return _sharded(folder, weight_map)
    files = sorted(folder.glob("*.safetensors"))
    whole = folder / WHOLE
    if whole in files:
        files = [whole]
    if len(files) > 1:
        raise ModelFormatError(f"{folder} holds {len(files)} safetensors files and no {INDEX}; download it too")
    if files:
        return read_safetensors(map_file(files[0]), where=files[0].name).tensors
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        raise ModelFormatError(
            f"{folder} holds pickled weights only ({', '.join(pickled[:4])}), which are never read because loading "
            "them can run code; take a revision with safetensors files, or convert them"
        )
    raise ModelFormatError(f"{folder} holds no safetensors files; download the model again")


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file of a checkpoint in shards. {}: none, or beside a whole one an index whose files are gone."""
    if not (folder / INDEX).is_file():
        return {}
    found = read_index(map_file(folder / INDEX).tobytes(), where=INDEX)
    stale = (folder / WHOLE).is_file() and not all((folder / file).is_file() for file in set(found.values()))
    return {} if stale else found


def _sharded(folder: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    shards: dict[str, SafetensorsFile] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise ModelFormatError(f"{file} is missing, though {INDEX} names it; download the model again")
        shards[file] = read_safetensors(map_file(folder / file), where=file)
    tensors = {}
    for name, file in weight_map.items():
        if name in shards[file].tensors:
            tensors[name] = shards[file].tensors[name]
        elif name not in shards[file].buffers:
            raise ModelFormatError(f"{INDEX} says that tensor {name[:80]!r} is in {file}, but it is not there")
    return tensors
