"""The process that grammars are tried out in: what passes, what ends it, and that it comes back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from octavo.base.errors import InputError, OverloadedError, UnsupportedError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar import checker as checker_module
from octavo.engine.grammar.checker import Checker

CHAIN = "start: r0\n" + "\n".join(f'r{i}: r{i + 1} "a" | r{i + 1}' for i in range(9000)) + '\nr9000: "a"'


@pytest.fixture
def checker() -> Iterator[Checker]:
    made = Checker({"<|im_end|>": 2})
    yield made
    made.close()


def test_what_passes_is_remembered(checker: Checker) -> None:
    params = StructuredOutputsParams(grammar='start: "a" <|im_end|>')
    checker.check(params)
    process = checker._process
    assert process is not None
    checker.close()
    checker.check(params)
    assert checker._process is None
    checker.check(StructuredOutputsParams(regex="a"))
    assert checker._process is not process


def test_errors_cross_with_class_and_field(checker: Checker) -> None:
    with pytest.raises(UnsupportedError, match="'not'") as caught:
        checker.check(StructuredOutputsParams(json={"not": {"pattern": "a"}}))
    assert caught.value.param == "structured_outputs.json"
    with pytest.raises(InputError, match="unknown special token"):
        checker.check(StructuredOutputsParams(grammar="start: <|other|>"))


def test_tokens_may_be_named_by_their_ids() -> None:
    checker = Checker({"<|im_end|>": 2}, size=9000)
    try:
        checker.check(StructuredOutputsParams(grammar="start: <[8999]> <[^7,8000-8100]>* <|im_end|>"))
        checker.check(StructuredOutputsParams(grammar="start: <[^0-8900]>"))
        with pytest.raises(InputError, match="Token range end too large"):
            checker.check(StructuredOutputsParams(grammar="start: <[9000]>"))
    finally:
        checker.close()


def test_one_that_ends_the_process_is_refused_and_the_next_passes(checker: Checker) -> None:
    with pytest.raises(InputError, match="nests too deeply, or takes more than 64 MB"):
        checker.check(StructuredOutputsParams(grammar=CHAIN))
    checker.check(StructuredOutputsParams(regex="a"))


COUNTED = "(a|b|[c-z]{1,20}){1,1000}"


@pytest.mark.parametrize(
    "form",
    [
        {"regex": COUNTED},
        {"regex": f"x({COUNTED})"},
        {"json": {"type": "object", "properties": {"a": {"type": "array", "items": {"pattern": f"^{COUNTED}$"}}}}},
        {"json": '{"type": "string", "pattern": "' + COUNTED + '"}'},
        {"grammar": f'start: "a" A\nA: /{COUNTED}/'},
        {"grammar": 'start: %json {"type": "string", "pattern": "' + COUNTED + '"}'},
    ],
)
def test_a_regex_that_an_answer_could_not_follow_is_refused(checker: Checker, form: dict[str, object]) -> None:
    params = StructuredOutputsParams(**form)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"answer of \d+ bytes by the regex .* would meet the limits") as caught:
        checker.check(params)
    assert caught.value.param == f"structured_outputs.{params.kind}"


@pytest.mark.parametrize(
    "regex", ["[a-z]{1,9000}", "(a|b|[c-z]{1,20}){1,100}", r"(\w+ ){1,500}", "é{1,3000}", r".*\n", r"\d{3}-\d{4}"]
)
def test_regexes_that_answers_can_follow(checker: Checker, regex: str) -> None:
    checker.check(StructuredOutputsParams(regex=regex))
    checker.check(StructuredOutputsParams(json={"type": "string", "pattern": regex}))
    # "pattern" as a property, and as a constant that is no regex
    checker.check(StructuredOutputsParams(json={"properties": {"pattern": {"const": {"pattern": "(", "a": regex}}}}))


PATTERNS = {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i + 1}}}$"} for i in range(1500)}
MANY = StructuredOutputsParams(json={"type": "object", "properties": PATTERNS})  # 0.7 s
SHORT = 0.1


def test_many_regexes_take_little_time(checker: Checker) -> None:
    checker.check(MANY)


def test_one_that_takes_too_long_is_refused(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "DEADLINE_S", SHORT)
    checker.check(StructuredOutputsParams(regex="a"))
    with pytest.raises(InputError, match=r"takes more than 0\.1 s"):
        checker.check(MANY)
    monkeypatch.undo()
    checker.check(StructuredOutputsParams(regex="b"))


def test_time_that_the_process_does_not_run_is_not_the_grammars(
    checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker_module, "DEADLINE_S", SHORT)
    checker.check(StructuredOutputsParams(regex="a"))
    process = checker._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    awake = threading.Timer(4 * SHORT, process.send_signal, (signal.SIGCONT,))
    awake.start()
    checker.check(StructuredOutputsParams(regex="b"))
    awake.join()
    assert checker._process is process
    monkeypatch.setattr(checker_module, "PATIENCE_S", SHORT)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    with pytest.raises(OverloadedError, match="too busy"):
        checker.check(StructuredOutputsParams(regex="c"))
    monkeypatch.undo()
    checker.check(StructuredOutputsParams(regex="c"))


def test_many_short_ones_do_not_add_up(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "DEADLINE_S", SHORT)
    for i in range(150):
        checker.check(StructuredOutputsParams(regex=f"[a-z]{{1,{i + 1}}}"))


def test_a_process_that_does_not_start_is_no_fault_of_the_grammars(
    checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker_module.sys, "executable", "false")
    with pytest.raises(OverloadedError, match="does not start"):
        checker.check(StructuredOutputsParams(regex="a"))
    assert checker._process is None
    monkeypatch.undo()
    checker.check(StructuredOutputsParams(regex="a"))


def test_many_that_wait_are_turned_away(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "QUEUE_S", 0.01)
    with checker._lock, pytest.raises(OverloadedError, match="wait to be checked"):
        checker.check(StructuredOutputsParams(regex="a"))


def test_memory_of_what_passed_is_bounded(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "MAX_KNOWN", 3)
    for i in range(10):
        checker.check(StructuredOutputsParams(choice=[str(i)]))
    assert len(checker._known) == 3


TAGS = StructuredOutputsParams(
    json={"type": "array", "items": {"type": "string", "format": "regex"}, "uniqueItems": True}, lenient=True
)


def test_what_a_lenient_form_left_out_is_judged_afterwards(checker: Checker) -> None:
    checker.check(TAGS)
    assert checker.holds(TAGS, '["a", "b"]')
    for text in ('["a", "a"]', '["("]', "[1]", '["a"', "[NaN]", "", "[" * 100_000):
        assert not checker.holds(TAGS, text)
    assert checker.holds(TAGS, "[]")


def test_what_takes_too_long_to_judge_does_not_hold(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "DEADLINE_S", SHORT)
    items = {"type": "string", "not": {"pattern": "^(?:a|b|ab)*(?=c)$"}}
    slow = StructuredOutputsParams(json={"type": "array", "items": items}, lenient=True)
    checker.check(slow)
    assert checker.holds(slow, '["abab"]')
    assert not checker.holds(slow, str(["ab" * 15] * 300).replace("'", '"'))  # 1 s
    monkeypatch.undo()
    assert checker.holds(TAGS, "[]")
    monkeypatch.setattr(checker_module, "QUEUE_S", 0.01)
    with checker._lock:
        assert not checker.holds(TAGS, "[]")


@pytest.mark.parametrize(
    "schema",
    [
        {"contains": {"$ref": "http://127.0.0.1:9/schema"}},
        {"not": {"$ref": "file:///etc/hostname"}},
        {"contains": {"type": "stsring"}},
        {"uniqueItems": True, "contains": {"pattern": "("}},
    ],
)
def test_a_lenient_form_that_cannot_be_judged_is_refused(checker: Checker, schema: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        checker.check(StructuredOutputsParams(json=schema, lenient=True))
    assert caught.value.param == "structured_outputs.json"
    assert "\n" not in caught.value.message
