"""thinking_token_budget as a grammar: what llguidance lets pass of it, walked at random."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from test_forced_calls import EOS, FUNCTIONS, MARKERS, Vocabularies

from octavo.base.errors import UnsupportedError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.text.reasoning import REASONINGS
from octavo.text.tools.bound import make_bound
from octavo.text.tools.choose import reasoning_format, tool_format
from octavo.text.tools.forced import bounded_form, forced_grammar, free_grammar
from octavo.text.tools.format import Format
from octavo.text.tools.formats import FORMATS

COUNTABLE = [
    *("mistral", "seed_oss", "hunyuan_a13b", "kimi_k2", "minimax_m2", "qwen3", "deepseek_v3", "deepseek_r1", "ernie45"),
    *("minimax_m3", "hy_v3", "cohere_command3", "cohere_command4", "solar_open", "apertus"),
]
TEXTUAL = ["openai_gptoss", "gemma4", "granite", "kimi_k3"]
THINK = ["[THINK]", "[/THINK]"]


@pytest.fixture(scope="module", params=["special", "others"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabularies:
    """Of most models the marks are tokens, and no special ones."""
    markers = [marker for marker in MARKERS if marker.endswith(">")]
    return Vocabularies([*markers, *THINK], special=request.param == "special")


def bound(name: str, vocabulary: Vocabularies, budget: int) -> Any:
    tokenizer: Any = SimpleNamespace(
        special_ids=lambda: {**vocabulary.special, "<image>": len(vocabulary.texts)}, token_to_id=vocabulary.tokens.get
    )
    return make_bound(budget, reasoning_format(name, ""), tokenizer, vocab_size=len(vocabulary.texts))


def test_every_way_is_told_of() -> None:
    assert sorted(COUNTABLE + TEXTUAL) == sorted(row.name for row in REASONINGS)


def bounded(name: str, vocabulary: Vocabularies, budget: int, **more: Any) -> str:
    about: Any = {"form": None, "opened": True, "special": vocabulary.special, **more}
    asked, reasoning = bound(name, vocabulary, budget), reasoning_format(name, "")
    assert reasoning is not None
    form = bounded_form(about.pop("form"), asked, reasoning=reasoning, **about)
    assert form is not None
    assert form.grammar is not None
    return form.grammar


def free(vocabulary: Vocabularies, matcher: Any) -> list[int]:
    mask = matcher.compute_bitmask()
    return [i for i in range(len(vocabulary.texts)) if mask[i // 8] >> i % 8 & 1]


@pytest.mark.parametrize("name", COUNTABLE)
@pytest.mark.parametrize("opened", [True, False])
def test_no_more_tokens_of_reasoning_than_that(name: str, opened: bool, vocabulary: Vocabularies) -> None:
    row = reasoning_format(name, "")
    assert row is not None
    begins, ends = ({vocabulary.tokens[marker] for marker in markers} for markers in (row.begins, row.ends))
    implied = {vocabulary.tokens[marker] for marker in row.implied if marker in vocabulary.tokens}
    for budget in (0, 1, 7):
        for seed in range(5):
            rng, matcher, spent = random.Random(seed), vocabulary.matcher(bounded(name, vocabulary, budget)), 0
            if not opened:
                matcher = vocabulary.matcher(bounded(name, vocabulary, budget, opened=False))
                assert begins | {EOS, ord("a")} <= set(free(vocabulary, matcher))
                assert matcher.consume_tokens([min(begins)])
            while spent < budget:
                there = free(vocabulary, matcher)
                assert ends <= set(there)
                assert not implied & set(there)
                plain = [token for token in there if 32 <= token < 127]
                assert matcher.consume_tokens([rng.choice(plain)])
                spent += 1
            left = set(free(vocabulary, matcher))
            assert left - begins == ends if spent == 0 and opened else left == ends
            assert matcher.consume_tokens([min(ends)])
            there = set(free(vocabulary, matcher))
            assert there == set(range(len(vocabulary.texts))) - begins
            assert vocabulary.texts[0xC3:0xC4] == [b"\xc3"]
            for token in (0xC3, ord("a"), *ends, EOS):  # half a character, too, as without a bound
                assert matcher.consume_tokens([token])
            assert matcher.is_stopped()


@pytest.mark.parametrize("name", TEXTUAL)
def test_reasoning_whose_tokens_cannot_be_counted_is_refused(name: str, vocabulary: Vocabularies) -> None:
    with pytest.raises(UnsupportedError, match="thinking_token_budget is not supported for this model") as refused:
        bounded(name, vocabulary, 5)
    assert refused.value.param == "thinking_token_budget"


def test_without_reasoning_or_its_tokens(vocabulary: Vocabularies) -> None:
    with pytest.raises(UnsupportedError, match="its answers mark no reasoning"):
        bounded("none", vocabulary, 5)
    with pytest.raises(UnsupportedError, match="by a token each"):
        bounded("qwen3", Vocabularies(["<think>"]), 5)
    form = StructuredOutputsParams(regex="a+")
    qwen: Any = {"special": vocabulary.special, "reasoning": reasoning_format("qwen3", "")}
    asked = bound("qwen3", vocabulary, 5)
    assert bounded_form(form, asked, opened=None, **qwen) is form
    assert not vocabulary.admits(bounded("qwen3", vocabulary, 5, opened=None), "So<think>")
    assert vocabulary.admits(bounded("qwen3", vocabulary, 5, opened=None), "So </think> it is")
    with pytest.raises(UnsupportedError, match="beside this form"):
        bounded_form(form, asked, opened=True, **qwen)


@pytest.mark.parametrize("opened", [True, False])
def test_a_form_or_calls_behind_it(opened: bool, vocabulary: Vocabularies) -> None:
    reasoning, tool = reasoning_format("qwen3", ""), tool_format("hermes", "")
    assert tool is not None
    about: Any = {
        "special": vocabulary.special,
        "reasoning": reasoning,
        "opened": opened,
        "bound": bound("qwen3", vocabulary, 3),
    }
    call = '<tool_call>\n{"name": "noop", "arguments": {}}\n</tool_call>'
    formed = bounded("qwen3", vocabulary, 3, opened=opened, form=StructuredOutputsParams(json_object=True))
    begin = "" if opened else "<think>"
    for grammar, said in (
        (formed, '{"a": 1}'),
        (forced_grammar(tool, FUNCTIONS, **about), call),
        (free_grammar(tool, FUNCTIONS, **about), f"So: {call}"),
    ):
        assert grammar is not None
        assert vocabulary.admits(grammar, f"{begin}Hm.</think>\n{said}")
        assert vocabulary.admits(grammar, f"{begin}</think>{said}")
        assert not vocabulary.admits(grammar, f"{begin}Hmm.</think>\n{said}")


@pytest.mark.parametrize("tool", [row for row in FORMATS if row.spelling is not None and not row.messages])
@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_none_begins_again_beside_strict_calls(tool: Format, name: str, vocabulary: Vocabularies) -> None:
    reasoning = reasoning_format(name, "")
    assert reasoning is not None
    (begin,), (end,) = reasoning.begins, reasoning.ends
    about: Any = {"special": vocabulary.special, "reasoning": reasoning, "opened": True}
    grammar = free_grammar(tool, FUNCTIONS, **about, bound=bound(name, vocabulary, 3))
    assert vocabulary.admits(grammar, f"Hm.{end}\nSo <thin [THIN")
    assert not vocabulary.admits(grammar, f"Hm.{end}\nSo {begin}")
    assert not vocabulary.admits(grammar, f"{end}{begin}a")


def test_where_a_prompt_stands(vocabulary: Vocabularies) -> None:
    asked = bound("qwen3", vocabulary, 5)
    begin, end = vocabulary.tokens["<think>"], vocabulary.tokens["</think>"]
    for prompt, inside in (([], False), ([7], False), ([begin, 7], True), ([begin, end], False), ([end, begin], True)):
        assert asked.left_open(prompt) is inside
