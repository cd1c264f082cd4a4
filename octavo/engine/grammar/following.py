"""A form's regexes followed for a while at random: whether an answer could meet the library's limits on its way.

Counts within counts are not compiled at once: each token of an answer makes more of them.
"""

from __future__ import annotations

import json
import random
import re
import time

from llguidance import LLTokenizer

from octavo.base.errors import InputError, OctavoError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.gbnf import is_gbnf
from octavo.engine.grammar.gbnf_lark import gbnf_to_lark
from octavo.engine.grammar.grammar import GrammarError
from octavo.engine.grammar.llguidance import LlguidanceGrammar, compile_matcher

MOST_BYTES, MOST_S = 1024, 0.5
"""Of each regex, and seconds of the processor for all of a form; what is left then passes."""
_PRINTABLE = range(32, 127)
_COUNT = re.compile(r"\{[0-9,]")
_PATTERN = re.compile(r'"pattern"\s*:\s*("(?:[^"\\\n]|\\.)*")')
_TERMINAL = re.compile(r"/((?:[^/\\\n]|\\.)+)/")


def check_followable(params: StructuredOutputsParams, tokenizer: LLTokenizer) -> None:
    """Raises InputError, naming the field. tokenizer: of a vocabulary that begins with the 256 bytes."""
    end = time.process_time() + MOST_S
    for regex in regexes(params):
        if time.process_time() > end:
            return
        try:
            matcher = compile_matcher(tokenizer, StructuredOutputsParams(regex=regex), ())
        except OctavoError:  # none that stands alone, as in a comment or a constant
            continue
        grammar = LlguidanceGrammar(matcher, -(-tokenizer.vocab_size // 32) * 4)
        try:
            _follow(grammar, end)
        except GrammarError:
            name = f"structured_outputs.{params.kind}"
            raise InputError(
                f"{name}: an answer of {grammar.num_taken} bytes by the regex {regex[:80]!r} would meet the limits of "
                "matching; make it simpler, or what is counted in it smaller",
                param=name,
            ) from None


def regexes(params: StructuredOutputsParams) -> list[str]:
    """Those with counts, each once: the form itself, of its schemas' strings, a grammar's terminals."""
    if params.regex is not None:
        return [params.regex] if _COUNT.search(params.regex) else []
    if isinstance(params.json, dict):
        text = json.dumps(params.json)
    else:
        text = params.json or params.grammar or params.structural_tag or ""
        text = gbnf_to_lark(text) if params.grammar is not None and is_gbnf(text) else text
    found = [json.loads(string, strict=False) for string in _PATTERN.findall(text)]
    if params.grammar is not None:
        found += [terminal.replace("\\/", "/") for terminal in _TERMINAL.findall(text)]
    return [regex for regex in dict.fromkeys(found) if _COUNT.search(regex)]


def _follow(grammar: LlguidanceGrammar, end: float) -> None:
    rng = random.Random(0)  # the same answer for the same form
    while grammar.num_taken < MOST_BYTES and time.process_time() < end and not grammar.over():
        mask = grammar.mask()
        free = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if not free:
            return
        grammar.take([rng.choice([byte for byte in free if byte in _PRINTABLE] or free)])
