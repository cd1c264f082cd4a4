"""`octavo generate MODEL [PROMPT ...]`: prompts from arguments, a file or stdin in; texts or JSON lines out."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import Any

import msgspec

from octavo.api.llm import LLM
from octavo.base.errors import ConfigError, InputError
from octavo.base.types.sampling import SamplingParams
from octavo.cli.answers import Answers
from octavo.cli.flags import Parser, add_engine, add_model, add_sampling, shift_model, take_engine, take_sampling
from octavo.cli.interrupt import second_interrupt_exits, sigterm_interrupts
from octavo.cli.output import as_path, check_writable
from octavo.cli.session import open_llm
from octavo.cli.streams import read_stdin

MAX_TOKENS = 256
FAILED = 1


def main(arguments: list[str]) -> int:
    """Run all prompts as one batch; exit code 1 if any of them failed."""
    parser = Parser("generate", "Run prompts from arguments, a file or stdin (one a line) as one batch.")
    add_model(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="a prompt; several make a batch; -: stdin")
    parser.add_argument(
        "-i", "--input", metavar="FILE", help='one prompt a line; .jsonl: {"prompt": ...} or {"messages": ...} a line'
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write here in place of stdout, as answers come")
    parser.add_argument("--jsonl", action="store_true", help="write a JSON object a prompt in place of its text")
    parser.add_argument("-n", "--n", type=int, metavar="N", help="completions a prompt", default=1)
    add_sampling(parser, max_tokens=MAX_TOKENS)
    add_engine(parser)
    values = parser.parse(arguments)
    shift_model(values, "prompts")
    config, output = take_engine(values), values["output"]
    take_sampling(values, SamplingParams(max_tokens=MAX_TOKENS), n=values["n"])  # a mistake ends it before the model
    _check_output(values["input"], output)
    prompts = _read_prompts(values.pop("prompts"), values.pop("input"))
    answers = Answers(prompts, None if output == "-" else output, jsonl=values["jsonl"])
    with open_llm(config) as llm, closing(answers):
        default = msgspec.structs.replace(llm.get_default_sampling_params(), max_tokens=MAX_TOKENS)
        params = take_sampling(values, default, n=values["n"])
        _run(llm, prompts, params, answers)
    return FAILED if answers.failed else 0


def _read_prompts(given: list[str], path: str | None) -> list[Any]:
    if given == ["-"]:  # stdin, as for other commands
        given = []
    if given and path:
        raise ConfigError("prompts are given as arguments and as --input; give one of the two", param="--input")
    if given:
        return list(given)
    try:
        text = read_stdin() if path in (None, "-") else as_path(str(path)).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--input {path} cannot be read: {error}", param="--input") from None
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]  # no other character ends a line
    if not lines:
        raise InputError("there are no prompts: give them as arguments, by --input or on stdin", param="prompts")
    if path is not None and path.endswith(".jsonl"):
        return [_parse_line(number, line) for number, line in enumerate(lines, start=1)]
    return lines


def _parse_line(number: int, line: str) -> Any:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"--input line {number} is not JSON: {error}", param="--input") from None
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not ({"prompt", "prompt_token_ids", "messages"} & value.keys()):
        raise InputError(f"--input line {number} needs prompt, prompt_token_ids or messages", param="--input")
    if "messages" in value and len(value) > 1:
        others = ", ".join(sorted(map(str, value.keys() - {"messages"})))
        raise InputError(f"--input line {number} has {others} beside messages, which nothing reads", param="--input")
    return value


@second_interrupt_exits()
@sigterm_interrupts()
def _run(llm: LLM, prompts: list[Any], params: SamplingParams, answers: Answers) -> None:
    """What ends it early loses no answer that was made."""
    rows: list[Any] = [
        {"prompt_token_ids": llm.render_chat(prompt["messages"])}
        if isinstance(prompt, dict) and "messages" in prompt
        else prompt
        for prompt in prompts
    ]
    try:
        llm.generate(rows, params, use_tqdm=sys.stderr.isatty(), on_output=answers.add)
    except BaseException as error:
        if told := answers.stop():
            error.add_note(told)
        raise


def _check_output(given: str | None, path: str | None) -> None:
    """Before anything is run: the answers can be written, and not over the prompts."""
    if path in (None, "-"):
        return
    check_writable("--output", path)
    source, target = as_path(str(given)), as_path(str(path))
    if given not in (None, "-") and source.exists() and target.exists() and source.samefile(target):
        raise ConfigError(f"--output {path} is the input file, too; name another file", param="--output")
