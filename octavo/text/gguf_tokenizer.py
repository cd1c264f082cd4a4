"""The vocabulary of a GGUF file in, a `tokenizers.Tokenizer` that cuts text as llama.cpp does out.

Two kinds: "gpt2" (byte-level BPE, merges in the file) and "llama" (SentencePiece BPE: scores in the file, from which
the merges follow; they are kept under OCTAVO_CACHE, since large vocabularies take seconds).
"""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from octavo.base.config import env
from octavo.base.errors import ModelFormatError, UnsupportedError
from octavo.text.splits import Split, split_of
from octavo.weights.checkpoint import GgufTokenizer

logger = logging.getLogger(__name__)

DIGEST = 16  # bytes before the ids in a cached file
SPACE = "\u2581"  # SentencePiece's visible space

Merges = list[tuple[str, str]]


class TokenType(IntEnum):
    """tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# What llama.cpp takes as the end of a turn or text by its spelling; control tokens, whatever the file says.
END_TOKENS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>"),
    "<｜end▁of▁sentence｜>",
)


def build_tokenizer(gguf: GgufTokenizer) -> Tokenizer:
    """Raises UnsupportedError (a kind or pre-tokenizer that is not known), ModelFormatError (damaged metadata)."""
    if gguf.model not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"tokenizer.ggml.model {gguf.model[:80]!r} is not supported (known: gpt2, llama); give a Hugging Face "
            "folder of the same model as the tokenizer",
            param="tokenizer",
        )
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(gguf.tokens)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise ModelFormatError(f"tokenizer.ggml.tokens holds {twice[:80]!r} twice; convert the model again")
    types = _types(gguf, vocabulary)
    if gguf.model == "gpt2":
        split = split_of(_string(gguf, "pre", "default"))
        tokenizer = _byte_level(gguf, vocabulary, split)
        add_bos = split.add_bos
    else:
        tokenizer = _sentence_piece(gguf, tokens, vocabulary, types)
        add_bos = True
    _add_tokens(tokenizer, tokens, types)
    tokenizer.post_processor = _post_processor(gguf, tokens, add_bos)
    return tokenizer


def named_id(gguf: GgufTokenizer, name: str) -> int | None:
    """The token id that the file gives a role (bos, eos, eot, unknown, padding ...), with llama.cpp's defaults.

    None where there is none, or it lies outside the vocabulary (llama.cpp passes over such ids as well).
    """
    default = {"bos": 1, "eos": 2, "unknown": 0}.get(name) if gguf.model == "llama" else None
    value = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id", default)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelFormatError(f"tokenizer.ggml.{name}_token_id must be an integer, got {str(value)[:80]!r}")
    return value if 0 <= value < len(gguf.tokens) else None


def _string(gguf: GgufTokenizer, name: str, default: str) -> str:
    value = gguf.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, str):
        raise ModelFormatError(f"tokenizer.ggml.{name} must be a string, got {str(value)[:80]!r}")
    return value or default


def _flag(gguf: GgufTokenizer, name: str, default: bool) -> bool:
    value = gguf.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise ModelFormatError(f"tokenizer.ggml.{name} must be true or false, got {str(value)[:80]!r}")
    return value


def _types(gguf: GgufTokenizer, vocabulary: dict[str, int]) -> list[int]:
    types = list(gguf.token_types) or [int(TokenType.NORMAL)] * len(vocabulary)
    for token in END_TOKENS:
        if token in vocabulary:
            types[vocabulary[token]] = int(TokenType.CONTROL)
    return types


def _byte_level(gguf: GgufTokenizer, vocabulary: dict[str, int], split: Split) -> Tokenizer:
    tokenizer = Tokenizer(_bpe(vocabulary, _stored_merges(gguf), ignore_merges=split.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _stored_merges(gguf: GgufTokenizer) -> Merges:
    if not gguf.merges:
        raise ModelFormatError("the GGUF file has no tokenizer.ggml.merges, which a gpt2 tokenizer needs")
    merges = []
    for merge in gguf.merges:
        # A token may begin with a space, so the border is the first one after the first character.
        border = merge.find(" ", 1)
        if border < 0:
            raise ModelFormatError(f'tokenizer.ggml.merges holds {merge[:80]!r}; each must be "left right"')
        merges.append((merge[:border], merge[border + 1 :]))
    return merges


def _sentence_piece(gguf: GgufTokenizer, tokens: list[str], vocabulary: dict[str, int], types: list[int]) -> Tokenizer:
    if not gguf.scores:
        raise ModelFormatError("the GGUF file has no tokenizer.ggml.scores, which a llama tokenizer needs")
    unknown = named_id(gguf, "unknown")
    merges = _cached_merges(tokens, gguf.scores, types)
    tokenizer = Tokenizer(_bpe(vocabulary, merges, unknown=None if unknown is None else tokens[unknown]))
    spaces = normalizers.Replace(" ", SPACE)
    undo: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if _flag(gguf, "add_space_prefix", True):
        # As llama.cpp has it, each text between control tokens gets the prefix.
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        undo.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer


def _bpe(
    vocabulary: dict[str, int], merges: Merges, *, unknown: str | None = None, ignore_merges: bool = False
) -> models.BPE:
    try:
        return models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=unknown,
            fuse_unk=unknown is not None,
            byte_fallback=unknown is not None,
            ignore_merges=ignore_merges,
        )
    except Exception as error:  # the library raises a bare Exception
        raise ModelFormatError(f"the GGUF file's vocabulary does not fit its merges: {error}") from None


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Control tokens, and user-defined ones, which are cut out of any text before all else."""

    added = [(tokens[index], kind) for index, kind in enumerate(types) if kind != TokenType.NORMAL]
    control = [token for token, kind in added if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    user_defined = [token for token, kind in added if kind == TokenType.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in user_defined])


def _post_processor(gguf: GgufTokenizer, tokens: list[str], add_bos: bool) -> processors.TemplateProcessing:
    template = ["$A"]
    used = []
    for name, default, place in (("bos", add_bos, 0), ("eos", False, 2)):
        if not _flag(gguf, f"add_{name}_token", default):
            continue
        index = named_id(gguf, name)
        if index is None:
            raise ModelFormatError(f"tokenizer.ggml.add_{name}_token is true, but the file has no {name}_token_id")
        template.insert(place, tokens[index])
        used.append((tokens[index], index))
    return processors.TemplateProcessing(single=template, pair=None, special_tokens=used)


def _cached_merges(tokens: list[str], scores: list[float], types: list[int]) -> Merges:
    """_score_merges, remembered in a file of token id pairs named by a hash of what they follow from."""
    digest = hashlib.sha256("\0".join(tokens).encode("utf-8", "surrogatepass"))
    digest.update(array("d", scores).tobytes() + array("q", types).tobytes())
    folder = env.find_cache_folder()
    if folder is None:
        return _spelled(tokens, _flat(_score_merges(tokens, scores, types)))
    path = folder / "tokenizers" / f"{digest.hexdigest()}.merges"
    ids = array("I")
    try:
        stored = path.read_bytes()
        ids.frombytes(stored[DIGEST:])
        if stored[:DIGEST] == _digest(ids):
            return _spelled(tokens, ids)
    except (OSError, ValueError):
        logger.debug("%s is not there, or damaged: made anew", path)
    ids = _flat(_score_merges(tokens, scores, types))
    _write(path, _digest(ids) + ids.tobytes())
    return _spelled(tokens, ids)


def _flat(pairs: Iterable[tuple[int, int]]) -> array[int]:
    ids = array("I")
    for pair in pairs:
        ids.extend(pair)
    return ids


def _digest(ids: array[int]) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=DIGEST).digest()


def _spelled(tokens: list[str], ids: array[int]) -> Merges:
    return list(zip(map(tokens.__getitem__, ids[0::2]), map(tokens.__getitem__, ids[1::2]), strict=True))


def _score_merges(tokens: list[str], scores: list[float], types: list[int]) -> Iterable[tuple[int, int]]:
    """Every way to put a token together from two others, best score first; ties go by the parts' ids.

    Only normal tokens take part: no merge leads to a control token, so plain text cannot turn into one.
    """
    usable = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.NORMAL, TokenType.UNUSED)
    }
    find = usable.get
    for whole in sorted(usable.values(), key=scores.__getitem__, reverse=True):
        token = tokens[whole]
        ways = []
        for border in range(1, len(token)):
            left = find(token[:border])
            if left is not None:
                right = find(token[border:])
                if right is not None:
                    ways.append((left, right))
        ways.sort()
        yield from ways


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all; a cache that cannot be written costs time, not the model."""
    import tempfile  # only here: it brings compression libraries along

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError as error:
        logger.info("tokenizer cache not written: %s", error)
