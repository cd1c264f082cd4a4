"""One grammar over llguidance: a text of schema.py and a Vocabulary in, a matcher that follows a sequence out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NoReturn

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from octavo.base.errors import ConfigError, OctavoError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.grammar import GrammarError, Vocabulary
from octavo.engine.grammar.schema import explain, make_grammar

_TEXT = r'[^"\\\x00-\x1F\x7F]'
_SLICES = [r"[\x20\x0A\x0D\x09]+", *(f"{_TEXT}{{1,{size}}}" for size in (4, 8, 12, 16, 30)), f"{_TEXT}+"]
"""Tokens taken together where a grammar admits all texts of such a form: blanks, and insides of JSON's strings of
up to so many characters. The library's own are of 10 and 30: where maxLength leaves 21 to 30 characters a mask takes
9 times as long with them, 11 to 20 twice (49,152 tokens)."""

MAX_ROW_ITEMS = 8000  # four for each property that an object may have next: 2,000 of them; a mask takes 50 ms then
MAX_LEXER_STATES = 32_000  # 1 to 2 kB each: 64 MB


def parser_limits() -> LLParserLimits:
    """What a grammar may use, while it is compiled and at each token."""
    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, max_items_in_row=MAX_ROW_ITEMS, verbose_errors=False)


def make_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """The vocabulary as a trie. ConfigError where no token ends a text: no grammar could end."""
    ends = [token for token in vocabulary.eos_token_ids if token < vocabulary.size]
    if not ends:
        raise ConfigError("structured outputs need an end-of-text token, and the model names none", param="model")
    return LLTokenizer(
        TokenizerWrapper(_Source(vocabulary, ends[0])),
        n_vocab=vocabulary.size,
        eos_token=ends,
        slices=_SLICES,
    )


class _Source:
    """What TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, eos_token_id: int) -> None:
        size = vocabulary.size
        self.eos_token_id = eos_token_id
        self.tokens = [*vocabulary.tokens[:size], *[b""] * (size - len(vocabulary.tokens))]
        self.special_token_ids = sorted(token for token in vocabulary.special.values() if token < size)
        self._by_byte = {token: i for i, token in reversed(list(enumerate(self.tokens))) if len(token) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens of a text, byte by byte; asked for only where tokens are forced, which schema.py forbids."""
        data = text.encode() if isinstance(text, str) else text
        return [self._by_byte[data[i : i + 1]] for i in range(len(data)) if data[i : i + 1] in self._by_byte]


def compile_matcher(tokenizer: LLTokenizer, params: StructuredOutputsParams, special: Collection[str]) -> LLMatcher:
    """A matcher at the beginning of the grammar. Raises InputError naming the field. Holds no lock while it works."""
    text = make_grammar(params, special)
    try:
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=parser_limits())
    except BaseException as error:
        _raise(error)
    if matcher.is_error():
        raise explain(params, matcher.get_error())
    return matcher


def _raise(error: BaseException) -> NoReturn:
    """What the library raises becomes the request's error; its panics are no Exception, and would end the engine."""
    if isinstance(error, KeyboardInterrupt | SystemExit | OctavoError):
        raise error
    raise GrammarError(f"the grammar of structured_outputs failed ({type(error).__name__})") from error


class LlguidanceGrammar:
    """A matcher, and the masks of one sequence."""

    def __init__(self, matcher: LLMatcher, mask_bytes: int) -> None:
        self._matcher = matcher
        self._mask_bytes = mask_bytes
        self.num_taken = 0

    def take(self, tokens: Sequence[int]) -> None:
        """Go on by these tokens."""
        try:
            taken = not tokens or self._matcher.consume_tokens(list(tokens))
        except BaseException as error:
            _raise(error)
        if not taken:
            raise self._error()
        self.num_taken += len(tokens)

    def over(self) -> bool:
        """True if nothing but the end of the text may follow."""
        try:
            return bool(self._matcher.is_stopped() and not self._matcher.is_error())
        except BaseException as error:
            _raise(error)

    def mask(self) -> bytes:
        """A bit a token."""
        try:
            mask: bytes = self._matcher.compute_bitmask()
        except BaseException as error:
            _raise(error)
        if self._matcher.is_error():
            raise self._error()
        return mask[: self._mask_bytes]

    def _error(self) -> GrammarError:
        words = " ".join(self._matcher.get_error().partition("\n<state>")[0].split())
        return GrammarError(f"the grammar of structured_outputs cannot go on: {words[:200]}")
