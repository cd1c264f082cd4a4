"""A command line in, config structs out. Flags are made from the structs: vLLM's names with dashes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from octavo.api.arguments import FOREIGN, Foreign, check_foreign, suggest
from octavo.base.config.config import PARTS, EngineConfig
from octavo.base.config.options import Option, options
from octavo.base.config.resolve import VALUE_NAMES, from_options
from octavo.base.errors import ConfigError, InputError
from octavo.base.types.sampling import SamplingParams

SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-sc": "--speculative-config",
    "-cc": "--compilation-config",
    "-O": "--optimization-level",
}
SAMPLING = {
    "max_tokens": "Most tokens of the answer.",
    "min_tokens": "Tokens before which the answer does not end.",
    "temperature": "0 takes the most likely token; higher is more varied.",
    "top_p": "Keep the most likely tokens up to this probability.",
    "top_k": "Keep this many tokens; 0 keeps all.",
    "min_p": "Drop tokens below this share of the most likely one's probability.",
    "presence_penalty": "Lower tokens that have occurred.",
    "frequency_penalty": "Lower tokens by how often they have occurred.",
    "repetition_penalty": "Divide the logits of tokens that have occurred.",
    "ignore_eos": "Go on after the end of the text.",
}
"""Fields of SamplingParams that are flags -> their help."""
UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError, suggests near names, and knows the flags that only vLLM has."""

    def __init__(self, command: str, text: str, *, foreign: dict[str, Foreign] | None = None) -> None:
        super().__init__(prog=f"octavo {command}", description=text, allow_abbrev=False)
        self._texts: dict[str, str] = {}
        self._foreign = FOREIGN if foreign is None else {**FOREIGN, **foreign}
        self.add_argument("--debug", action="store_true", help="show the trace of an error")

    def error(self, message: str) -> NoReturn:
        """argparse calls this for a mistake on the command line."""
        for name, text in self._texts.items():
            message = message.replace(name, text)
        # unknown flags were refused before: these are texts
        message = message.replace("unrecognized arguments", "too many arguments (a text of several words needs quotes)")
        raise ConfigError(f"{message} ({self.prog} --help lists the options)")

    def print_help(self, file: Any = None) -> None:
        """OSError where it cannot be written, which argparse passes over."""
        print(self.format_help(), end="", file=file)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What was given, by name; texts may stand before, between and after flags. ConfigError or UnsupportedError
        name the flag at fault."""
        own, texts = self._own(list(arguments))
        # argparse takes -x after -- for a flag where flags and texts are mixed: it is shown names of those texts
        self._texts = {f"\0 {number}": text for number, text in enumerate(texts)}
        values = vars(self.parse_intermixed_args([*own, *(["--", *self._texts] if texts else [])]))
        return {name: _renamed(value, self._texts) for name, value in values.items()}

    def takes_list(self, flag: str) -> bool:
        """Whether a flag that is known here takes several values."""
        action = self._option_string_actions.get(flag)
        return action is not None and action.nargs == "+"

    def _own(self, arguments: list[str]) -> tuple[list[str], list[str]]:
        """The arguments without vLLM's foreign flags, which are checked here, and the texts after --; an unknown flag
        is refused."""
        own: list[str] = []
        objects: dict[str, dict[str, Any]] = {}
        while arguments:
            argument = arguments.pop(0)
            if argument == "--":
                break
            flag, equals, value = argument.partition("=")
            if argument == "-" or not flag.startswith("-") or len(flag.split()) > 1 or _is_number(flag):
                own.append(argument)
                continue
            if flag[:2] == "-O" and flag[2:].isdigit():  # as compilers have it: -O3
                flag, equals, value = "-O", "=", flag[2:]
            head, dot, part = flag.partition(".")
            flag = SHORT.get(head, head) + dot + part
            if flag.startswith("--") and dot:
                _add_part(objects, flag, value if equals else None, arguments)
                continue
            if flag.startswith("--"):
                flag = flag.replace("_", "-")
            if flag in self._option_string_actions:
                own.append(flag + equals + value if flag.startswith("--") else argument)
                continue
            self._check_foreign(flag, value if equals else None, arguments)
        for flag, parts in objects.items():
            if any(argument.partition("=")[0] == flag for argument in own):
                raise ConfigError(f"{flag} is given whole and in parts ({flag}.KEY); give it in one way", param=flag)
            if flag in self._option_string_actions:
                own += [flag, json.dumps(parts)]
            else:
                self._check_foreign(flag, json.dumps(parts), [])
        return own, arguments

    def _check_foreign(self, flag: str, value: str | None, rest: list[str]) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        negated = name.startswith("no_") and name.removeprefix("no_") in self._foreign
        name = name.removeprefix("no_") if negated else name
        if name not in self._foreign:
            refused = ["--" + key.replace("_", "-") for key in self._foreign]
            hint = suggest(flag, [*self._option_string_actions], refused=refused)
            hint = hint or f" ({self.prog} --help lists the options)"
            raise ConfigError(f"unknown option {flag}{hint}", param=flag)
        parsed: Any = not negated
        if value is None and not negated and rest and not _looks_like_flag(rest[0]) and not self._is_switch(name):
            value = rest.pop(0)
        if value is not None:
            parsed = _literal(value)
        check_foreign(name, parsed, shown=flag, table=self._foreign)

    def _is_switch(self, name: str) -> bool:
        return any(isinstance(value, bool) for value in self._foreign[name].neutral)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    return names.get(value, value) if isinstance(value, str) else value


def _add_part(objects: dict[str, dict[str, Any]], flag: str, value: str | None, rest: list[str]) -> None:
    """--option.key.inner VALUE: one value of the JSON object that an option takes, as vLLM has it."""
    option, *keys = flag.split(".")
    if value is None and (not rest or _looks_like_flag(rest[0])):
        raise ConfigError(f"argument {flag}: expected one argument", param=flag)
    place = objects.setdefault(option.replace("_", "-"), {})
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{flag}: {key} has a value already", param=flag)
    place[keys[-1]] = _literal(rest.pop(0) if value is None else value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _looks_like_flag(text: str) -> bool:
    return text.startswith("-") and not _is_number(text)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"None": None, "True": True, "False": False}.get(text, text)


def add_model(parser: Parser) -> None:
    """The model as first argument, or as --model."""
    option = options(PARTS["model"])["model"]
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help=option.description)
    parser.add_argument("--model", help=argparse.SUPPRESS, default=None)


def add_engine(parser: Parser) -> None:
    """Every engine option."""
    for name, part in PARTS.items():
        group = parser.add_argument_group(f"{name} options")
        add_options(group, [option for option in options(part).values() if option.name != "model"])


def add_sampling(parser: Parser, **defaults: Any) -> None:
    """The sampling options that make sense for one command; defaults are the command's own."""
    group = parser.add_argument_group("sampling options", "where not given: the model's own recommendation")
    add_options(group, _options_of_sampling(), defaults=defaults)
    group.add_argument("--stop", action="append", metavar="TEXT", default=argparse.SUPPRESS, help="end at this text")


def _options_of_sampling() -> list[Option]:
    """SamplingParams' fields as Options; `stop` may be of two types and gets a flag of its own."""
    return [
        Option(
            name=name,
            kind=_sampling_kind(name),
            choices=(),
            optional=True,
            required=False,
            default=None,
            description=text,
        )
        for name, text in SAMPLING.items()
    ]


def _sampling_kind(name: str) -> Any:
    if name == "ignore_eos":
        return "bool"
    return "float" if isinstance(getattr(SamplingParams(), name), float) else "int"


def add_options(group: Any, rows: Sequence[Option], *, defaults: dict[str, Any] | None = None) -> None:
    """One flag for each Option; what is not given is absent from the result."""
    for option in rows:
        default = (defaults or {}).get(option.name, option.default)
        common: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, "help": _help(option, default)}
        if option.kind == "bool":
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **common)
        elif option.kind == "list":
            group.add_argument(option.flag, action="extend", nargs="+", metavar="TEXT", **common)
        else:
            group.add_argument(option.flag, type=_reader(option), metavar=_metavar(option), **common)


def _help(option: Option, default: Any) -> str:
    text = option.description
    if default not in (None, [], {}) and default is not msgspec.NODEFAULT:
        text = f"{text} [{json.dumps(default)}]"
    return text.replace("%", "%%")


def _metavar(option: Option) -> str:
    if option.kind == "choice":
        return "{" + ",".join(map(str, option.choices)) + "}"
    return {"int": "N", "float": "X", "object": "JSON"}.get(option.kind, "TEXT")


def _reader(option: Option) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if option.optional and text in ("None", "none"):
            return None
        if text in VALUE_NAMES.get(option.name, {}):
            return text
        if option.kind == "int" or (option.kind == "choice" and isinstance(option.choices[0], int)):
            return read_int(text)
        if option.kind == "float":
            return float(text)
        return read_object(text) if option.kind == "object" else text

    read.__name__ = {"int": "whole number", "float": "number", "object": "JSON object"}.get(option.kind, option.kind)
    return read


def read_int(text: str) -> int:
    """A whole number; 4k is 4000, 4K is 4096, as vLLM reads them."""
    try:
        return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1:] in UNITS else int(text)
    except (OverflowError, ValueError):
        reason = f"invalid whole number value: {text!r}; k, m, g behind it are thousands, K, M, G powers of 1024"
        raise argparse.ArgumentTypeError(reason) from None


def read_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def take_model(values: dict[str, Any]) -> str:
    """The model that was named; ConfigError for none or two."""
    positional, flag = values.pop("model_argument", None), values.pop("model", None)
    if positional and flag and positional != flag:
        raise ConfigError(f"two models are named, {positional} and {flag}; name one", param="model")
    if not (positional or flag):
        raise ConfigError("name a model: a path, a hub id, package:NAME or an alias such as smollm2", param="model")
    return str(positional or flag)


def shift_model(values: dict[str, Any], name: str) -> None:
    """Where --model names the model, what stands first is a text: that of `name`, or the first of its list."""
    first, flag, texts = values.get("model_argument"), values.get("model"), values.get(name)
    if first is None or flag in (None, first):
        return
    if isinstance(texts, list):
        values["model_argument"], values[name] = None, [first, *texts]
    elif texts is None:
        values["model_argument"], values[name] = None, first


def take_engine(values: dict[str, Any]) -> EngineConfig:
    """The EngineConfig of what was given, taken out of `values`."""
    names = [name for part in PARTS.values() for name in part.__struct_fields__ if name != "model"]
    own = {name: values.pop(name) for name in names if name in values}
    return from_options({**own, "model": take_model(values)})


def take_sampling(values: dict[str, Any], default: SamplingParams, **more: Any) -> SamplingParams:
    """`default` with what was given, and with `more`; ConfigError names the flag at fault."""
    own = {name: values[name] for name in (*SAMPLING, "stop") if name in values}
    try:
        return msgspec.structs.replace(default, **{**more, **own})
    except InputError as error:
        raise ConfigError(error.message, param=error.param) from None
