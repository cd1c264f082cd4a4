"""A checkpoint's tokenizer files in; text to token ids and back, for everything above the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import tokenizers
from tokenizers import AddedToken, normalizers, processors

from octavo.base.errors import InputError, ModelFormatError, UnsupportedError
from octavo.text.control import ControlTokens, Span
from octavo.text.gguf_tokenizer import END_TOKENS, build_tokenizer, named_id
from octavo.text.pieces import Pieces, TextStream
from octavo.weights.checkpoint import Checkpoint, GgufTokenizer, TokenizerFiles

# tokenizer_config.json's names -> GGUF's, in the order in which Transformers adds the tokens that are missing
ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# tokenizer_config.json's names -> those of BERT's normalizer
NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
# what of tokenizer_config.json pretrained.py goes by
SETTINGS = (
    *("tokenizer_class", "model_max_length", "model_input_names", "padding_side", "truncation_side"),
    "clean_up_tokenization_spaces",
)
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")


class Tokenizer:
    """Text to ids and back. Never changed once made, so any number of threads may use it; encode releases the GIL.

    vocab_size: ids are below it.  special_tokens: role (bos_token ...) -> spelling, as templates want them.
    eos_token_ids: what ends a text or a turn, the tokenizer's own eos first.  backend: the library's own, which is not
    to be changed.  settings: SETTINGS of tokenizer_config.json, those that are there, and extra_special_tokens.
    control_spellings: what may be a control token in another text than find_control() was given, if anything may.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        vocab_size: int,
        special_tokens: Mapping[str, str],
        eos_token_ids: Iterable[int],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self._pieces = Pieces(backend)
        self._control = ControlTokens(backend)
        self._skipped = frozenset(self._control.ids.values())
        self.control_spellings = self._control.spellings
        self.vocab_size = vocab_size
        self.special_tokens = dict(special_tokens)
        self.settings = dict(settings or {})
        self.eos_token_ids: list[int] = [token for token in dict.fromkeys(eos_token_ids) if 0 <= token < vocab_size]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, lower_case: bool = False) -> Tokenizer:
        """lower_case: texts are read in small letters, whatever the files say.

        Raises ModelFormatError (damaged, or no tokenizer in it), UnsupportedError (of a kind that is not known)."""
        source = checkpoint.tokenizer
        if source is None:
            raise ModelFormatError(
                f"{checkpoint.path} has no tokenizer (tokenizer.json, or a vocabulary in the GGUF file); name one by "
                "tokenizer=..., or set skip_tokenizer_init",
                param="tokenizer",
            )
        if isinstance(source, GgufTokenizer):
            return _from_gguf(source, checkpoint.generation_config, lower_case=lower_case)
        generation = checkpoint.generation_config or checkpoint.config
        return _from_files(source, generation, lower_case=lower_case)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids. add_special_tokens: with the bos (eos) token that the tokenizer puts around a text."""
        check_text(text)
        # The batch call is the one that releases the GIL and leaves offsets out.
        return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def encode_whole(
        self, first: str, second: str | None = None, *, longest: int | None = None
    ) -> tuple[list[int], int]:
        """Token ids of a text or a pair, special tokens around them, and where the second's begin (0: not told apart).

        longest: cut to so many, at the end of each text and of a pair's longer one first, as Transformers'
        longest_first does; special tokens stay. InputError where there is room for those alone.
        """
        for text in (first, second or ""):
            check_text(text)
        (encoding,) = self.backend.encode_batch([first if second is None else (first, second)])
        ids, types = encoding.ids, encoding.type_ids
        if longest is not None and len(ids) > longest:
            kept = _kept(encoding.sequence_ids, longest)
            ids, types = [ids[i] for i in kept], [types[i] for i in kept]
        return ids, types.index(1) if second is not None and 1 in types else 0

    def cut(self, text: str, longest: int) -> str:
        """The text up to the end of its first `longest` tokens, without special ones; a character is kept whole."""
        check_text(text)
        (encoding,) = self.backend.encode_batch([text], add_special_tokens=False)
        return text if len(encoding.ids) <= longest else text[: encoding.offsets[longest - 1][1]]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Token ids of a text in parts: str is plain text, whatever it spells, int a control token (text/control.py).

        Nothing is added around it.
        """
        for part in parts:
            if isinstance(part, str):
                check_text(part)
        return self._control.encode(parts)

    def find_control(self, text: str) -> list[Span]:
        """The parts of a text that encode() would take for control tokens."""
        return self._control.find(text)

    def begins_control(self, text: str) -> bool:
        """True if more text could make a control token of this one's end."""
        return self._control.begun(text)

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Text. Ids outside the vocabulary stand for nothing; broken UTF-8 becomes U+FFFD."""
        skipped = self._skipped_ids(skip_special_tokens, spaces_between_special_tokens)
        return self._pieces.join(token_id for token_id in ids if token_id not in skipped)

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        kept_tokens: Set[int] = frozenset(),
    ) -> TextStream:
        """decode(), token by token, for a text that goes on from prompt_ids. kept_tokens are shown, special or not."""
        skipped = self._skipped_ids(skip_special_tokens, spaces_between_special_tokens)
        return TextStream(self._pieces, prompt_ids, skipped=skipped - kept_tokens if kept_tokens else skipped)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, which may be part of a character; b"" outside the vocabulary."""
        return self._pieces.raw(token_id)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token's text alone, special ones spelled out; U+FFFD where it is part of a character."""
        return [self._pieces.raw(token_id).decode("utf-8", "replace") for token_id in ids]

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it (not its text); None outside the vocabulary."""
        return self.backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self.backend.token_to_id(token)

    def special_ids(self) -> Mapping[str, int]:
        """Control tokens: spelling -> id. These are what skip_special_tokens skips."""
        return self._control.ids

    def _skipped_ids(self, skip_special_tokens: bool, spaces_between_special_tokens: bool) -> frozenset[int]:
        # Byte-level and SentencePiece decoders put no spaces between tokens, so both settings give the same text.
        if self._pieces.joined_by_spaces and not (skip_special_tokens or spaces_between_special_tokens):
            raise UnsupportedError(
                "spaces_between_special_tokens=false is not supported for a tokenizer without a decoder, whose tokens "
                "are words; leave it true",
                param="spaces_between_special_tokens",
            )
        return self._skipped if skip_special_tokens else frozenset()


def _kept(sequences: Sequence[int | None], longest: int) -> list[int]:
    """Places to keep of a text (0), or a pair (0 and 1), with special tokens (None) among them."""
    sizes = [sequences.count(0), sequences.count(1)]
    room = longest - sequences.count(None)
    if room < 1:
        raise InputError(
            f"truncate_prompt_tokens={longest} leaves no room beside {sequences.count(None)} special tokens",
            param="truncate_prompt_tokens",
        )
    short = 1 if sizes[1] < sizes[0] else 0
    sizes[short] = min(sizes[short], room // 2 if sizes[1] else room)
    sizes[1 - short] = min(sizes[1 - short], room - sizes[short])
    kept, seen = [], [0, 0]
    for place, sequence in enumerate(sequences):
        if sequence is not None:
            seen[sequence] += 1
            if seen[sequence] > sizes[sequence]:
                continue
        kept.append(place)
    return kept


def check_text(text: str) -> None:
    """InputError for text that is not Unicode: lone surrogates cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds half a surrogate pair at character {error.start}, which is no Unicode text; remove it"
        ) from None


def _from_gguf(source: GgufTokenizer, generation: Mapping[str, Any], *, lower_case: bool) -> Tokenizer:
    backend = build_tokenizer(source)
    if lower_case:
        _lower(backend)
    special = {}
    for role, name in ROLES.items():
        token_id = named_id(source, name)
        if token_id is not None:
            special[role] = backend.id_to_token(token_id) or ""
    named = [named_id(source, name) for name in ("eos", "eot", "eom")]
    ends = [*_ids(named), *_ids(generation.get("eos_token_id")), *_well_known_ends(backend)]
    control = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items()) if token.special]
    settings = {"extra_special_tokens": control}  # the file tells them apart from other tokens, and gives no more names
    return Tokenizer(
        backend, vocab_size=len(source.tokens), special_tokens=special, eos_token_ids=ends, settings=settings
    )


def _from_files(source: TokenizerFiles, generation: Mapping[str, Any], *, lower_case: bool) -> Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(source.path))
    except Exception as error:  # the library raises a bare Exception
        raise ModelFormatError(f"{source.path.name} is damaged or of an unknown form: {error}"[:500]) from None
    special = {role: spelling for role in ROLES if (spelling := _spelling(source.config.get(role)))}
    _set_normalizer(backend, source.config)
    _add_configured(backend, source.config)
    if lower_case:
        _lower(backend)
    if backend.post_processor is None:
        # Beside a tokenizer.json Transformers drops add_bos_token and add_eos_token: nothing stands around a text.
        backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    eos = special.get("eos_token")
    own = None if eos is None else backend.token_to_id(eos)
    ends = [*_ids(own), *_ids(generation.get("eos_token_id")), *_well_known_ends(backend)]
    vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    settings = {name: source.config[name] for name in SETTINGS if source.config.get(name) is not None}
    settings["extra_special_tokens"] = [token.content for token in _extra(source.config)]
    return Tokenizer(backend, vocab_size=vocab_size, special_tokens=special, eos_token_ids=ends, settings=settings)


def _lower(backend: tokenizers.Tokenizer) -> None:
    """Before all else, as sentence-transformers does it: control tokens in a text are found as they are."""
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def _set_normalizer(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """BERT's as tokenizer_config.json has it, which Transformers follows but for tokenizers of the generic class."""
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer) and config.get("tokenizer_class") not in GENERIC:
        for name, theirs in NORMALIZER.items():
            if isinstance(config.get(name), bool):
                setattr(normalizer, theirs, config[name])


def _spelling(value: Any) -> str | None:
    """A special token in tokenizer_config.json: its spelling, or an object that holds it as "content"."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise ModelFormatError(f"tokenizer_config.json: a special token must be a string, got {str(value)[:80]!r}")
    return value


def _add_configured(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Add what tokenizer.json lacks, or has with other flags than tokenizer_config.json, as Transformers does."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    before = {content: repr(token) for content, token in known.items()}
    tokens = {**known, **_listed(config)}
    for token in (*known.values(), *_named(config)):
        kept = tokens.setdefault(token.content, token)
        # The library goes on to skip a token that was special once.
        kept.special = kept.special or token.special
    for added in _extra(config):
        tokens.setdefault(added.content, added)
    backend.add_tokens([token for content, token in tokens.items() if repr(token) != before.get(content)])


def _extra(config: Mapping[str, Any]) -> list[AddedToken]:
    """Special tokens without a name. The older key counts where the newer one is empty."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    return [token for token in map(_special, extra if isinstance(extra, list) else ()) if token is not None]


def _listed(config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """added_tokens_decoder, by spelling in the order of the ids."""
    listed = config.get("added_tokens_decoder") or {}
    try:
        entries = [entry for _, entry in sorted(listed.items(), key=lambda item: int(item[0]))]
        tokens = [AddedToken(entry["content"], **_flags(entry)) for entry in entries]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelFormatError(
            f"tokenizer_config.json: added_tokens_decoder must be an object from ids to tokens, got {str(listed)[:80]}"
        ) from None
    return {token.content: token for token in tokens if token.content}


def _named(config: Mapping[str, Any]) -> list[AddedToken]:
    """Tokens with a role, and those that the model gives names of its own (image_token ...)."""
    values = [config.get(role) for role in ROLES]
    own = [value for key, value in config.items() if key.endswith("_token") and key not in ROLES]
    own = [value for value in own if isinstance(value, str | dict)]
    values += sorted(own, key=lambda value: isinstance(value, str))
    extra = config.get("extra_special_tokens")
    values += extra.values() if isinstance(extra, dict) else ()
    tokens = [token for token in map(_special, values) if token is not None]
    for token in tokens:
        token.special = True
    return tokens


def _special(value: Any) -> AddedToken | None:
    """A special token in any of its forms; an object with a type says itself whether it is one."""
    spelling = _spelling(value)
    if not spelling:
        return None
    if isinstance(value, dict):
        return AddedToken(spelling, **{"special": "__type" not in value, **_flags(value)})
    return AddedToken(spelling, special=True)


def _flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {name: bool(entry[name]) for name in FLAGS if name in entry}


def _well_known_ends(backend: tokenizers.Tokenizer) -> list[int]:
    """Tokens that end a turn by their spelling. In the harmony format <|end|> only ends a message: <|return|> ends."""
    special = {token.content: token_id for token_id, token in backend.get_added_tokens_decoder().items()}
    if {"<|call|>", "<|return|>"} <= special.keys() or {"<|calls|>", "<|flush|>"} <= special.keys():
        special.pop("<|end|>", None)
    return [special[token] for token in END_TOKENS if token in special]


def _ids(value: Any) -> list[int]:
    """eos_token_id in any of its forms (absent, one, a list) as a list."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool)]
