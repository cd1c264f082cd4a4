"""make_request: everything that depends on the model is checked here, and every refusal names its field."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from octavo.api.requests import Limits, make_request
from octavo.base.errors import InputError
from octavo.base.types.request import Request
from octavo.base.types.sampling import SamplingParams
from octavo.engine import process


class Words:
    """A tokenizer of one id a character: ord(c) - 32."""

    vocab_size = 90
    eos_token_ids = [2]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) - 32 for c in text]

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(i + 32) for i in ids)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        return [self.decode([i]) for i in ids]

    def token_bytes(self, token_id: int) -> bytes:
        return self.decode([token_id]).encode()

    def stream(self, prompt_ids: Sequence[int], **options: bool) -> Any:
        raise NotImplementedError

    def special_ids(self) -> dict[str, int]:
        return {}

    def token_to_id(self, token: str) -> int | None:
        return None


def limits(**more: Any) -> Limits:
    return Limits(**{"vocab_size": 90, "max_model_len": 32, "tokenizer": Words(), "eos_token_ids": (2,), **more})


def make(
    prompt: Any = (1, 2, 3), *, given: Limits | None = None, label: dict[str, Any] | None = None, **params: Any
) -> Request:
    return make_request(
        list(prompt) if isinstance(prompt, tuple) else prompt,
        SamplingParams(**params),
        limits=given or limits(),
        **{"request_id": "r", **(label or {})},
    )


@pytest.mark.parametrize(
    ("prompt", "params", "field", "words"),
    [
        ([], {}, "prompt", "empty"),
        ([90], {}, "prompt", "token id 90"),
        ([-1], {}, "prompt", "token id -1"),
        ([True], {}, "prompt", "True"),
        ([1.0], {}, "prompt", "1.0"),
        (["a"], {}, "prompt", "'a'"),
        ([[1]], {}, "prompt", "integers"),
        ([None], {}, "prompt", "None"),
        ("text", {}, "prompt", "list of token ids"),
        ([10**30], {}, "prompt", "token id 1000"),
        ([1] * 32, {}, "prompt", "32 tokens > 31 maximum"),
        ([1] * 500, {}, "prompt", "500 tokens > 31 maximum"),
        ([1], {"stop_token_ids": [90]}, "stop_token_ids", "90"),
        ([1], {"allowed_token_ids": [0, 2**40]}, "allowed_token_ids", str(2**40)),
        ([1], {"logit_bias": {91: 1.0}}, "logit_bias", "91"),
        ([1], {"logprobs": 21}, "logprobs", "max_logprobs=20"),
        ([1], {"logprobs": -1}, "logprobs", "max_logprobs=20"),
        ([1], {"prompt_logprobs": 21}, "prompt_logprobs", "max_logprobs=20"),
        ([1, 2], {"min_tokens": 31, "max_tokens": None}, "min_tokens", "32 tokens"),
    ],
)
def test_refusals_name_field_and_value(prompt: Any, params: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make(prompt, **params)
    assert caught.value.param == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("n", [0, 129, True, 1.0, None], [1, 128]),
        ("top_k", [-2, 2**63], [-1, 2**63 - 1]),
        ("seed", [-(2**63) - 1, 2**63], [None, -(2**63), 2**63 - 1]),
        ("max_tokens", [0], [1, None]),
        ("min_tokens", [-1, 17], [0, 16]),  # of max_tokens=16
        ("logprobs", [-2], [-1, 0]),
        ("thinking_token_budget", [-2, 2**31], [-1, 2**31 - 1]),
        ("temperature", [-0.1, 100.1, float("nan"), "1", True], [0, 100]),
        ("top_p", [0, 1.1], [0.1, 1]),
        ("min_p", [-0.1, 1.1], [0, 1]),
        ("presence_penalty", [-2.1, 2.1], [-2, 2]),
        ("repetition_penalty", [0, -1, 1e7, float("inf")], [0.1, 1e6]),
        ("ignore_eos", [1, None], [True]),
        ("output_kind", [1], []),
        ("stop", ["", [""], [7], ["x"] * 65], [None, "x", ["x"] * 64]),
        ("bad_words", ["x", [""], ["x"] * 129], [[], ["x"] * 128]),
        ("stop_token_ids", [7, [-1], [True], [2**63], [1] * 1025], [[], [2**63 - 1], [1] * 1024]),
        ("allowed_token_ids", [[], [1.0], "12"], [[0]]),
        ("logit_bias", [[1], {True: 1}, {-1: 1}, {2**63: 1}, {1: 101}, {1: float("nan")}], [{0: -100, 2**63 - 1: 100}]),
        ("structured_outputs", [{"regex": "a"}], []),
    ],
)
def test_what_a_field_takes(field: str, bad: list[Any], good: list[Any]) -> None:
    for value in good:
        assert getattr(SamplingParams(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(InputError) as caught:
            SamplingParams(**{field: value})
        assert caught.value.param == field, value


@pytest.mark.parametrize(
    ("label", "field"),
    [
        ({"priority": True}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 2**63}, "priority"),
        ({"cache_salt": "s" * 129}, "cache_salt"),
        ({"cache_salt": 7}, "cache_salt"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "r" * 257}, "request_id"),
        ({"request_id": 7}, "request_id"),
    ],
)
def test_labels(label: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        make(label=label)
    assert caught.value.param == field


def test_params_of_another_type() -> None:
    with pytest.raises(InputError, match="SamplingParams, got dict"):
        make_request([1], {"temperature": 0}, limits=limits(), request_id="r")  # type: ignore[arg-type]


def test_params_are_taken_as_they_are_now() -> None:
    params = SamplingParams()
    params.max_tokens = 5
    request = make_request([1], params, limits=limits(), request_id="r")
    params.max_tokens, params.temperature = 7, -1.0
    assert (request.params.max_tokens, request.max_tokens) == (5, 5)
    with pytest.raises(InputError, match="temperature must be between"):
        make_request([1], params, limits=limits(), request_id="r")
    with pytest.raises(AttributeError):
        params.max_new_tokens = 5  # type: ignore[attr-defined]


def test_logprobs_without_a_cap() -> None:
    unlimited = limits(max_logprobs=-1)
    assert make(given=unlimited, logprobs=-1).params.logprobs == -1
    with pytest.raises(InputError, match="vocabulary's 90"):
        make(given=unlimited, logprobs=91)


def test_logprobs_of_a_prompt_fit_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = limits(max_logprobs=-1)
    monkeypatch.setattr(process, "MAX_FRAME", 5000)
    assert make([1] * 3, given=unlimited, prompt_logprobs=-1).params.prompt_logprobs == -1
    assert make([1] * 30, given=unlimited, prompt_logprobs=9).params.prompt_logprobs == 9
    assert make([1] * 30, given=unlimited, logprobs=-1).params.logprobs == -1
    with pytest.raises(InputError, match=r"^prompt_logprobs=-1 \(all\): 90 alternatives .* 30 tokens") as caught:
        make([1] * 30, given=unlimited, prompt_logprobs=-1)
    assert caught.value.param == "prompt_logprobs"


@pytest.mark.parametrize(("asked", "resolved"), [(None, 29), (5, 5), (29, 29), (30, 29), (10**9, 29)])
def test_max_tokens_is_cut_to_the_context(asked: int | None, resolved: int) -> None:
    assert make(max_tokens=asked).max_tokens == resolved


def test_longest_prompt_leaves_one_token() -> None:
    assert make([1] * 31, max_tokens=None).max_tokens == 1


def test_bad_words_with_and_without_space() -> None:
    assert make(bad_words=["ab", " ab"]).bad_words_ids == [[65, 66], [0, 65, 66]]
    assert make(bad_words=[" "]).bad_words_ids == [[0]]
    # "~" has id 94, which the model cannot sample
    assert make(bad_words=["~"]).bad_words_ids == []


@pytest.mark.parametrize("field", ["stop", "bad_words"])
def test_text_fields_need_a_tokenizer(field: str) -> None:
    with pytest.raises(InputError) as caught:
        make(given=limits(tokenizer=None), **{field: ["x"]})
    assert caught.value.param == field


def test_seeds_are_drawn_from_the_engines_generator() -> None:
    def draw(**params: Any) -> list[int]:
        given = limits(seeds=random.Random(7))
        return [make(given=given, **params).seed for _ in range(3)]

    first = draw()
    assert first == draw() == draw(seed=-1)
    assert len(set(first)) == 3
    assert make(seed=-5).seed == -5


def test_end_of_text_ids_and_arrival() -> None:
    request = make()
    assert request.eos_token_ids == [2]
    assert request.arrival > 0
