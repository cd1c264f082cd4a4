"""`octavo complete MODEL "text"`: a text in (argument or stdin), its continuation out, streaming."""

from __future__ import annotations

import sys

import msgspec

from octavo.base.errors import InputError
from octavo.base.types.sampling import SamplingParams
from octavo.cli.flags import Parser, add_engine, add_model, add_sampling, shift_model, take_sampling
from octavo.cli.session import open_llm, take_varied, write_answer
from octavo.cli.streams import PIPED, read_stdin

MAX_TOKENS = 256


def main(arguments: list[str]) -> int:
    """Print the continuation; the exit code."""
    parser = Parser("complete", "Continue a text, streaming.")
    add_model(parser)
    parser.add_argument("text", nargs="?", metavar="TEXT", help=f"what to continue; {PIPED}")
    add_sampling(parser, max_tokens=MAX_TOKENS)
    add_engine(parser)
    values = parser.parse(arguments)
    shift_model(values, "text")
    config, text = take_varied(values), values.pop("text")
    take_sampling(values, SamplingParams())  # a mistake ends it before a text is asked for, or the model loaded
    if text in (None, "-"):
        text = read_stdin().removesuffix("\n")
    elif not sys.stdin.isatty():
        text = read_stdin() + text
    if not text:
        raise InputError("the text to continue is empty", param="text")
    with open_llm(config) as llm:
        default = msgspec.structs.replace(llm.get_default_sampling_params(), max_tokens=MAX_TOKENS)
        write_answer(llm, text, take_sampling(values, default), speed=sys.stderr.isatty())
    return 0
