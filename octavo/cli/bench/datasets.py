"""DatasetOptions in, Samples out: the same for the same seed. Lengths are in tokens."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.base.errors import ConfigError
from octavo.base.types.ports import TextTokenizer
from octavo.cli.bench.options import DatasetOptions

SETTLE_TRIES = 10
SHORTEST, LONGEST_PROMPT, LONGEST = 4, 1024, 2048  # what vLLM keeps of a ShareGPT file


@dataclass(frozen=True)
class Sample:
    """One request. prompt: text or token ids.  prompt_len: 0 where there is no tokenizer to count."""

    prompt: str | list[int]
    prompt_len: int
    output_len: int


@dataclass(frozen=True)
class Texts:
    """What makes prompts. render: a conversation's token ids, None where no template shall be used here.

    as_ids: random prompts stay token ids, exact in length; else they become a text that has about as many.
    """

    tokenizer: TextTokenizer | None
    render: Callable[[list[dict[str, Any]]], list[int]] | None = None
    as_ids: bool = True


def make_samples(options: DatasetOptions, texts: Texts, *, seed: int) -> list[Sample]:
    """options.num_prompts Samples (fewer with no_oversample and a short file). ConfigError names the flag at fault."""
    rng = random.Random(seed)
    if options.dataset_name in ("random", "prefix_repetition"):
        if options.dataset_path is not None:
            raise ConfigError(
                f"--dataset-path is given and --dataset-name is {options.dataset_name}, which reads no file; say "
                "--dataset-name sharegpt or custom",
                param="--dataset-path",
            )
        words = Words(_need(texts.tokenizer, options), rng)
        make = _random if options.dataset_name == "random" else _prefix_repetition
        return make(options, texts, words)
    if options.dataset_path is None:
        raise ConfigError(f"--dataset-name {options.dataset_name} needs --dataset-path FILE", param="--dataset-path")
    found = _sharegpt(options, texts, rng) if options.dataset_name == "sharegpt" else _custom(options, texts, rng)
    if not found:
        raise ConfigError(f"--dataset-path {options.dataset_path} has no usable prompt in it", param="--dataset-path")
    if len(found) < options.num_prompts and options.oversample:
        found += rng.choices(found, k=options.num_prompts - len(found))
    return found


def _need(tokenizer: TextTokenizer | None, options: DatasetOptions) -> TextTokenizer:
    if tokenizer is None:
        raise ConfigError(
            f"--dataset-name {options.dataset_name} needs a tokenizer; leave out --skip-tokenizer-init",
            param="--skip-tokenizer-init",
        )
    return tokenizer


class Words:
    """Draws tokens that are no special ones and are whole text by themselves, so that a text of them counts alike."""

    def __init__(self, tokenizer: TextTokenizer, rng: random.Random) -> None:
        self.tokenizer = tokenizer
        self.rng = rng
        self._special = frozenset(tokenizer.special_ids().values())
        self._known: dict[int, bool] = {}

    def draw(self, count: int) -> list[int]:
        """So many token ids."""
        found: list[int] = []
        while len(found) < count:
            token = self.rng.randrange(self.tokenizer.vocab_size)
            if token not in self._known:
                text = self.tokenizer.token_strings([token])[0]
                self._known[token] = token not in self._special and bool(text) and "\ufffd" not in text
            if self._known[token]:
                found.append(token)
        return found

    def sample(self, ids: list[int], output_len: int, *, as_ids: bool) -> Sample:
        """A Sample of these ids. As text: one that encodes to as many tokens, bos included, as nearly as it comes."""
        if as_ids:
            return Sample(ids, len(ids), output_len)
        around = len(self.tokenizer.encode(""))  # bos, where the server will add one
        length = max(1, len(ids) - around)
        ids = ids[:length]
        for _ in range(SETTLE_TRIES):
            text = self.tokenizer.decode(ids, skip_special_tokens=False)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == length:
                break
            ids = ids[:length] + self.draw(length - len(ids))
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return Sample(text, len(self.tokenizer.encode(text)), output_len)


def _random(options: DatasetOptions, texts: Texts, words: Words) -> list[Sample]:
    prompt, output = options.input_len or options.random_input_len, options.output_len or options.random_output_len
    prefix = words.draw(options.random_prefix_len)
    found = []
    for _ in range(options.num_prompts):
        ids = prefix + words.draw(_about(prompt, options.random_range_ratio, words.rng))
        length = _about(output, options.random_range_ratio, words.rng)
        found.append(words.sample(ids, length, as_ids=texts.as_ids))
    return found


def _about(length: int, ratio: float, rng: random.Random) -> int:
    return max(1, rng.randint(math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))))


def _prefix_repetition(options: DatasetOptions, texts: Texts, words: Words) -> list[Sample]:
    prefixes = [words.draw(options.prefix_repetition_prefix_len) for _ in range(options.prefix_repetition_num_prefixes)]
    output = options.output_len or options.prefix_repetition_output_len
    found = [
        words.sample(
            prefixes[number % len(prefixes)] + words.draw(options.prefix_repetition_suffix_len),
            output,
            as_ids=texts.as_ids,
        )
        for number in range(options.num_prompts)
    ]
    if not options.disable_shuffle:
        words.rng.shuffle(found)
    return found


def _sharegpt(options: DatasetOptions, texts: Texts, rng: random.Random) -> list[Sample]:
    """First turns of conversations: [{"conversations": [{"value": question}, {"value": answer}, ...]}, ...]."""
    tokenizer = _need(texts.tokenizer, options)
    rows = _parse(options, _read(options))
    if not isinstance(rows, list):
        raise _bad_file(options, "a ShareGPT file is a JSON list")
    rows = [row for row in rows if isinstance(row, dict) and isinstance(row.get("conversations"), list)]
    rows = [row for row in rows if len(row["conversations"]) >= 2]
    if not options.disable_shuffle:
        rng.shuffle(rows)
    fixed = options.output_len or options.sharegpt_output_len
    found: list[Sample] = []
    for row in rows:
        if len(found) == options.num_prompts:
            break
        try:
            question, answer = (str(turn["value"]) for turn in row["conversations"][:2])
        except (KeyError, TypeError) as error:
            raise _bad_file(options, f"a turn has no value ({error!r})") from None
        prompt_len, output_len = len(tokenizer.encode(question)), fixed or len(tokenizer.encode(answer))
        if prompt_len < SHORTEST or prompt_len > LONGEST_PROMPT or prompt_len + output_len > LONGEST:
            continue
        if fixed or output_len >= SHORTEST:
            found.append(Sample(question, prompt_len, output_len))
    return found


def _custom(options: DatasetOptions, texts: Texts, rng: random.Random) -> list[Sample]:
    """{"prompt": text} a line; with custom_output_len=-1 {"prompt": text, "output_tokens": number}."""
    rows = [_parse(options, line) for line in _read(options).split("\n") if line.strip()]
    if not all(isinstance(row, dict) and isinstance(row.get("prompt"), str) for row in rows):
        raise _bad_file(options, 'every line must be an object with a text "prompt"')
    if not options.disable_shuffle:
        rng.shuffle(rows)
    output_len = options.output_len or options.custom_output_len
    if not output_len:
        raise ConfigError("--custom-output-len=0: must be at least 1, or -1", param="--custom-output-len")
    found = []
    for row in rows[: options.num_prompts]:
        prompt: str | list[int] = row["prompt"]
        if texts.render is not None and not options.skip_chat_template:
            prompt = texts.render([{"role": "user", "content": prompt}])
        length = len(prompt) if isinstance(prompt, list) else 0
        if isinstance(prompt, str) and texts.tokenizer is not None:
            length = len(texts.tokenizer.encode(prompt))
        found.append(Sample(prompt, length, _output_tokens(options, row) if output_len == -1 else output_len))
    return found


def _output_tokens(options: DatasetOptions, row: dict[str, Any]) -> int:
    try:
        length = int(row.get("output_tokens", 0))
    except (ValueError, TypeError):
        length = 0
    if length < 1:
        raise _bad_file(options, "--custom-output-len is -1, so every line needs a number output_tokens, from 1")
    return length


def _read(options: DatasetOptions) -> str:
    try:
        return Path(str(options.dataset_path)).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--dataset-path {options.dataset_path} cannot be read: {error}", param="--dataset-path"
        ) from None


def _parse(options: DatasetOptions, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _bad_file(options, f"not JSON ({error})") from None


def _bad_file(options: DatasetOptions, reason: str) -> ConfigError:
    return ConfigError(f"--dataset-path {options.dataset_path}: {reason}", param="--dataset-path")
