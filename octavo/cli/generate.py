"""`octavo generate MODEL [PROMPT ...]`: prompts from arguments, a file or stdin in; texts or JSON lines out."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from typing import Any, TextIO

import msgspec

from octavo.api.llm import LLM
from octavo.base.errors import ConfigError, InputError
from octavo.base.types.output import RequestOutput
from octavo.base.types.sampling import SamplingParams
from octavo.cli.flags import Parser, add_engine, add_model, add_sampling, shift_model, take_engine, take_sampling
from octavo.cli.interrupt import second_interrupt_exits
from octavo.cli.output import as_path, check_writable, replacing
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
    parser.add_argument("-o", "--output", metavar="FILE", help="write here in place of stdout")
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
    with open_llm(config) as llm:
        default = msgspec.structs.replace(llm.get_default_sampling_params(), max_tokens=MAX_TOKENS)
        params = take_sampling(values, default, n=values["n"])
        outputs = _run(llm, prompts, params)
    with nullcontext(sys.stdout) if output in (None, "-") else replacing(output) as out:
        for one in outputs:
            _write(out, one, jsonl=values["jsonl"])
    return FAILED if any(one.error is not None for one in outputs) else 0


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
def _run(llm: LLM, prompts: list[Any], params: SamplingParams) -> list[RequestOutput]:
    rows: list[Any] = [
        {"prompt_token_ids": llm.render_chat(prompt["messages"])}
        if isinstance(prompt, dict) and "messages" in prompt
        else prompt
        for prompt in prompts
    ]
    return llm.generate(rows, params, use_tqdm=sys.stderr.isatty())


def _check_output(given: str | None, path: str | None) -> None:
    """Before anything is run: the answers can be written, and not over the prompts."""
    if path in (None, "-"):
        return
    check_writable("--output", path)
    source, target = as_path(str(given)), as_path(str(path))
    if given not in (None, "-") and source.exists() and target.exists() and source.samefile(target):
        raise ConfigError(f"--output {path} is the input file, too; name another file", param="--output")


def _write(out: TextIO, output: RequestOutput, *, jsonl: bool) -> None:
    if output.error is not None:
        print(f"prompt {output.request_id} failed: {output.error}", file=sys.stderr)
    if not jsonl:
        for completion in output.outputs:
            out.write(completion.text + "\n")
        return
    row = {
        "prompt": output.prompt,
        "num_prompt_tokens": len(output.prompt_token_ids),
        "error": output.error,
        "outputs": [
            {
                "index": completion.index,
                "text": completion.text,
                "token_ids": completion.token_ids,
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion in output.outputs
        ],
    }
    out.write(json.dumps(row, ensure_ascii=False) + "\n")
