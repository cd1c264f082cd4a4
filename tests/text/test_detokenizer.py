"""Streaming text equals text decoded at once, however it is cut; stop strings against a naive search."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.base.types.sampling import SamplingParams
from octavo.text.detokenizer import Detokenizer
from octavo.text.stops import StopMatcher
from octavo.text.tokenizer import Tokenizer

SOME = settings(deadline=None, max_examples=150)
IDS = st.lists(st.integers(0, 620), max_size=25)


def _cut(items: Any, places: list[int]) -> list[Any]:
    edges = [0, *sorted(place % (len(items) + 1) for place in places), len(items)]
    return [items[start:stop] for start, stop in pairwise(edges)]


def _push(detokenizer: Detokenizer, ids: list[int]) -> str:
    """What becomes visible, up to a stop string."""
    shown = ""
    for token in ids:
        if detokenizer.stopped is None:
            shown += detokenizer.feed(token)
    return shown


@SOME
@given(ids=IDS, prompt=IDS, places=st.lists(st.integers(0, 1000), max_size=6), skip=st.booleans())
def test_deltas_join_to_the_whole(
    byte_level: Tokenizer, sentence_piece: Tokenizer, ids: list[int], prompt: list[int], places: list[int], skip: bool
) -> None:
    params = SamplingParams(skip_special_tokens=skip)
    for tokenizer in (byte_level, sentence_piece):
        detokenizer = Detokenizer(tokenizer, params, [])
        deltas = [_push(detokenizer, part) for part in _cut(ids, places)]
        for delta in deltas:
            delta.encode()
        assert "".join(deltas) + detokenizer.finish() == tokenizer.decode(ids, skip_special_tokens=skip)
        assert detokenizer.num_tokens == len(ids)
        # After a prompt: what the tokens add to the prompt's text, but for a character that the prompt left half.
        detokenizer = Detokenizer(tokenizer, params, prompt)
        text = _push(detokenizer, ids) + detokenizer.finish()
        whole = tokenizer.decode(prompt + ids, skip_special_tokens=skip)
        before = tokenizer.decode(prompt, skip_special_tokens=skip)
        assert whole.endswith(text)
        known = whole.removesuffix(text)
        assert before == known or before in (known + "\ufffd", known + "\ufffd" * 2, known + "\ufffd" * 3)


def test_a_character_appears_when_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, SamplingParams(), tokenizer.encode("the"))
    shown = [_push(detokenizer, [token]) for token in ids]
    assert len(ids) >= 2
    assert "".join(shown[:-1]).strip() == ""
    assert shown[-1] == "😀"
    _push(detokenizer, ids[:-1])
    assert detokenizer.finish() == "\ufffd"


def test_a_prompt_that_ends_inside_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x😀", add_special_tokens=False)
    for split in (1, 2, 3):
        detokenizer = Detokenizer(tokenizer, SamplingParams(), ids[:-split])
        assert _push(detokenizer, ids[-split:]) == "😀"


def test_a_text_after_a_prompt_keeps_its_space(sentence_piece: Tokenizer) -> None:
    ids = sentence_piece.encode("the dog", add_special_tokens=False)
    assert _push(Detokenizer(sentence_piece, SamplingParams(), []), ids) == "the dog"
    assert _push(Detokenizer(sentence_piece, SamplingParams(), [1]), ids) == "the dog"
    assert _push(Detokenizer(sentence_piece, SamplingParams(), ids), ids) == " the dog"


def _naive(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@SOME
@given(
    text=st.text("ab<\n", max_size=30),
    stops=st.lists(st.text("ab<\n", min_size=1, max_size=6), min_size=1, max_size=4),
    places=st.lists(st.integers(0, 1000), max_size=6),
    include=st.booleans(),
)
def test_stop_strings_against_a_naive_search(
    byte_level: Tokenizer, text: str, stops: list[str], places: list[int], include: bool
) -> None:
    ids = byte_level.encode_parts([text])
    detokenizer = Detokenizer(byte_level, SamplingParams(stop=stops, include_stop_str_in_output=include), [])
    shown = ""
    for part in _cut(ids, places):
        shown += _push(detokenizer, part)
        assert detokenizer.num_held < max(map(len, stops))
    shown += detokenizer.finish()
    assert (shown, detokenizer.stopped) == _naive(text, stops, include=include)
    if detokenizer.stopped:
        consumed = byte_level.decode(ids[: detokenizer.num_tokens])
        assert _naive(consumed, stops, include=include) == (shown, detokenizer.stopped)
        assert _naive(byte_level.decode(ids[: detokenizer.num_tokens - 1]), stops, include=include)[1] is None
        assert detokenizer.finish() == ""
    else:
        assert detokenizer.num_tokens == len(ids)


def test_every_short_stop_in_every_short_text() -> None:
    def words(longest: int) -> list[str]:
        return ["".join(letters) for length in range(1, longest + 1) for letters in product("ab", repeat=length)]

    for stop, text in product(words(5), words(7)):
        matcher = StopMatcher([stop])
        ends = [end for end in range(1, len(text) + 1) if text[:end].endswith(stop)]
        found = [end for end, char in enumerate(text, start=1) if matcher.feed(char)]
        assert found == ends


def test_text_that_may_become_a_stop_is_held_and_then_released(byte_level: Tokenizer) -> None:
    ids = [byte_level.encode(char)[0] for char in "xENxENDy"]
    detokenizer = Detokenizer(byte_level, SamplingParams(stop=["END"]), [])
    assert [_push(detokenizer, [token]) for token in ids] == ["x", "", "", "ENx", "", "", "", ""]
    assert (detokenizer.stopped, detokenizer.num_tokens) == ("END", 7)
    detokenizer = Detokenizer(byte_level, SamplingParams(stop=["END"]), [])
    assert _push(detokenizer, ids[:3]) == "x"
    assert detokenizer.finish() == "EN"


def test_a_token_of_which_only_the_end_may_become_a_stop(byte_level: Tokenizer) -> None:
    [the] = byte_level.encode(" the")
    detokenizer = Detokenizer(byte_level, SamplingParams(stop=["he the!", "hex"]), [])
    assert [_push(detokenizer, [the]) for _ in range(3)] == [" t", "", "he t"]
    assert detokenizer.num_held == len("he the")
    assert detokenizer.finish() == "he the"


@pytest.mark.parametrize(
    ("min_tokens", "text", "count"), [(0, "", 2), (1, "", 2), (2, "aba", 5), (3, "aba", 5), (5, "abaaba", 8)]
)
def test_min_tokens_lets_early_stops_pass(byte_level: Tokenizer, min_tokens: int, text: str, count: int) -> None:
    ids = [byte_level.encode(char)[0] for char in "abaabaab"]
    detokenizer = Detokenizer(byte_level, SamplingParams(stop="ab", min_tokens=min_tokens, max_tokens=9), [])
    shown = "".join(_push(detokenizer, [token]) for token in ids) + detokenizer.finish()
    assert (shown, detokenizer.num_tokens, detokenizer.stopped) == (text, count, "ab")


def test_a_stop_that_ends_in_the_last_half_character(byte_level: Tokenizer) -> None:
    half = byte_level.encode("é")[:1]
    ids = byte_level.encode("a") + [token for token in half if byte_level.token_bytes(token) == b"\xc3"]
    detokenizer = Detokenizer(byte_level, SamplingParams(stop=["\ufffd"]), [])
    if len(ids) == 2:
        assert _push(detokenizer, ids) + detokenizer.finish() == "a"
        assert detokenizer.stopped == "\ufffd"


def test_work_per_character_is_bounded() -> None:
    """A stop string that almost matches all the time: steps of the automaton, not seconds, are counted."""
    stop = "a" * 5000 + "b"
    matcher = StopMatcher([stop])
    automaton = matcher._automata[0]
    calls = 0
    border = automaton._border

    def counted(length: int) -> int:
        nonlocal calls
        calls += 1
        return border(length)

    automaton._border = counted  # type: ignore[method-assign]
    text = "a" * 20_000
    for char in text:
        assert matcher.feed(char) is None
        assert matcher.held <= 5000
    assert calls <= 2 * len(text)
    assert len(automaton._borders) <= len(stop) + 1
    assert matcher.feed("b") is not None


def test_tables_grow_with_the_text_and_not_with_the_stop_string() -> None:
    matcher = StopMatcher(["ab" * 1_000_000])
    assert matcher.feed("xxabab") is None
    assert matcher.held == 4
    assert len(matcher._automata[0]._borders) < 10


def test_no_rescanning_of_held_text(byte_level: Tokenizer) -> None:
    """Ten thousand tokens that all stay held are kept as they came, and shown at once when the stop fails."""
    token = byte_level.encode("a")[0]
    detokenizer = Detokenizer(byte_level, SamplingParams(stop=["a" * 20_000], max_tokens=None), [])
    for _ in range(10_000):
        assert _push(detokenizer, [token]) == ""
    assert detokenizer.num_held == 10_000
    assert _push(detokenizer, byte_level.encode(".")) == "a" * 10_000 + "."
