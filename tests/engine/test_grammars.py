"""Constrained sequences through the engine: what comes is what the grammar and the scripted model together give."""

from __future__ import annotations

import gc
import re
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest
from simulation import Shape, make_engine, make_request

from octavo.base.errors import ConfigError, InputError
from octavo.base.types.output import Output
from octavo.base.types.plan import RowStep, StepPlan
from octavo.base.types.request import Request
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.engine import Engine
from octavo.engine.fake import ScriptedExecutor, mix, next_allowed
from octavo.engine.grammar import llguidance
from octavo.engine.grammar.compiler import COMPILE_THREADS, Compiler
from octavo.engine.grammar.grammar import Grammar, Vocabulary
from octavo.engine.grammar.llguidance import LlguidanceGrammar, make_tokenizer
from octavo.engine.sequence import make_sequences

EOS, VOCAB = 256, 257
VOCABULARY = Vocabulary([bytes([i]) for i in range(256)] + [b""], {"<eos>": EOS}, (EOS,), VOCAB)
SMALL = Shape(num_blocks=12, max_model_len=48, max_num_seqs=4, max_num_tokens=16)


@pytest.fixture(scope="module")
def grammars() -> Iterator[Compiler]:
    made = Compiler(lambda: VOCABULARY)
    made._mask_threads = 3  # whatever the machine
    yield made
    made.close()


def engine(grammars: Compiler | None, shape: Shape = SMALL, **executor: Any) -> Engine:
    script = ScriptedExecutor(
        num_blocks=shape.num_blocks, block_size=shape.block_size, vocab_size=VOCAB, seeded=True, **executor
    )
    return make_engine(shape, script, grammars)


def ask(name: str, regex: str, prompt: list[int], **fields: Any) -> Request:
    fields.setdefault("structured_outputs", StructuredOutputsParams(regex=regex))
    return make_request(name, prompt, eos_token_ids=[EOS], **{"max_tokens": 20, **fields})


def run(made: Engine) -> dict[tuple[str, int], tuple[list[int], Output]]:
    """Tokens and the last Output of each sequence."""
    tokens: dict[tuple[str, int], list[int]] = {}
    last: dict[tuple[str, int], Output] = {}
    while made.has_work():
        for out in made.step():
            tokens.setdefault((out.request_id, out.index), []).extend(out.token_ids)
            last[out.request_id, out.index] = out
        made.check()
    return {key: (tokens[key], last[key]) for key in last}


def expected(grammar: Grammar | None, request: Request, index: int) -> list[int]:
    """The tokens of one sequence, by definition, without an engine."""
    seq = make_sequences(request, 0)[index]
    state, found = 0, list[int]()
    for token in request.prompt_token_ids:
        state = mix(state, token)
    while len(found) < request.max_tokens and (not found or found[-1] != EOS):
        token = (mix(state, seq.sampling.seed) if seq.sampling.temperature else state) % VOCAB
        if grammar is not None:
            token = next_allowed(grammar.mask(), token)
            grammar.take([token] if token != EOS else [])
        found.append(token)
        state = mix(state, token)
    return found


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("blocks", [12, 30])
def test_rows_follow_their_grammars_beside_others(grammars: Compiler, ahead: bool, blocks: int) -> None:
    """Chunked prompts, preemption (12 blocks for four sequences), n > 1, free rows between."""
    made = engine(grammars, Shape(num_blocks=blocks, max_model_len=48, ahead=ahead))
    patterns = ["[a-c]{2,9}", "x(yz){3}", "[0-9]{1,30}", "(ja|nein)"]
    requests = [
        ask(f"r{i}", patterns[i % 4], [i + 1] * (3 + 5 * i), n=1 + i % 2 * 2, temperature=float(i % 3 > 0), seed=i)
        for i in range(6)
    ]
    free = [make_request(f"f{i}", [9, i], max_tokens=15, eos_token_ids=[EOS]) for i in range(3)]
    for request in [requests[0], free[0], *requests[1:], *free[1:]]:
        made.add(request)
    found = run(made)
    assert (made.scheduler.num_preemptions > 0) == (blocks == 12)
    for request in [*requests, *free]:
        for index in range(request.params.n):
            asked = request.params.structured_outputs
            grammar = None if asked is None else grammars.compile(asked).result()
            tokens, last = found[request.request_id, index]
            assert tokens == expected(grammar, request, index), request.request_id
            assert last.finish_reason == ("stop" if tokens[-1] == EOS else "length")
            if asked is not None and last.finish_reason == "stop":
                assert re.fullmatch(asked.regex or "", bytes(tokens[:-1]).decode())


def test_an_end_is_told_whatever_the_others_masks_meet(grammars: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """One grammar raises what is nobody's, in the step in which another is complete: it alone fails."""
    made = engine(grammars)
    made.add(ask("complete", "ab", [1], min_tokens=9))
    made.add(ask("broken", "[a-z]{9}", [2]))
    real = LlguidanceGrammar.over

    def over(self: LlguidanceGrammar) -> bool:
        if self.num_taken == 2 and not real(self):
            raise ZeroDivisionError
        return real(self)

    monkeypatch.setattr(LlguidanceGrammar, "over", over)
    found = run(made)
    assert found["complete", 0][1].finish_reason == "stop"
    assert "ZeroDivisionError" in (found["broken", 0][1].error or "")


def test_an_end_is_told_though_the_step_fails(grammars: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(grammars)
    made.add(ask("complete", "ab", [1], min_tokens=9))
    made.add(ask("other", "[a-z]{9}", [2]))
    wait(made._constraints._compiling)  # so that they run side by side
    real = made.executor.mask

    def mask(masks: dict[int, bytes]) -> None:
        if len(masks) == 1 and made.scheduler.num_steps > 2:
            raise ZeroDivisionError
        real(masks)

    monkeypatch.setattr(made.executor, "mask", mask)
    found = run(made)
    assert found["complete", 0][1].finish_reason == "stop"
    assert found["other", 0][1].finish_reason == "error"
    assert not made._requests


def test_a_finished_grammar_ends_where_the_end_token_may_not(grammars: Compiler) -> None:
    made = engine(grammars)
    made.add(ask("short", "ab", [1], min_tokens=5))
    made.add(ask("ignored", "ab", [1], ignore_eos=True))
    found = run(made)
    assert found["short", 0][0] == [97, 98]
    assert found["ignored", 0][0] == [97, 98]
    assert {last.finish_reason for _, last in found.values()} == {"stop"}
    assert all(last.times is not None for _, last in found.values())


def test_an_end_that_is_ignored_does_not_end_what_may_go_on(grammars: Compiler) -> None:
    made = engine(grammars)
    made.add(ask("long", "[a-z]*", [1], ignore_eos=True, allowed_token_ids=[98, EOS]))
    made.add(ask("bounded", "[a-z]{3,5}", [1], ignore_eos=True))
    made.add(ask("only", "[a-z]*", [1], ignore_eos=True, allowed_token_ids=[EOS]))
    made.add(ask("stops", "[a-z]?", [1], ignore_eos=True, allowed_token_ids=[EOS], stop_token_ids=[EOS]))
    found = run(made)
    assert found["long", 0][0] == [98] * 20
    assert (len(found["bounded", 0][0]), EOS in found["bounded", 0][0]) == (5, False)
    assert (found["stops", 0][0], found["stops", 0][1].stop_reason) == ([EOS], EOS)
    assert [found[name, 0][1].finish_reason for name in ("long", "bounded", "only")] == ["length", "stop", "error"]


def test_allowed_ids_and_the_grammar_hold_together(grammars: Compiler) -> None:
    made = engine(grammars)
    made.add(ask("a", "[a-z]{4}", [1], allowed_token_ids=[98, 99, EOS, 5]))
    made.add(ask("none", "[a-z]{4}", [1], allowed_token_ids=[5, EOS]))
    found = run(made)
    assert set(found["a", 0][0][:-1]) <= {98, 99}
    assert found["none", 0][1].finish_reason == "error"
    assert "leave no token" in (found["none", 0][1].error or "")
    assert found["none", 0][1].error_kind == "InputError"


def test_a_bad_grammar_ends_alone(grammars: Compiler) -> None:
    made = engine(grammars)
    made.add(ask("bad", "(", [1], n=2))
    made.add(ask("good", "ab", [1]))
    found = run(made)
    assert found["good", 0][0] == [97, 98, EOS]
    for index in (0, 1):
        assert found["bad", index][1].error_kind == "InputError"
        assert "structured_outputs.regex" in (found["bad", index][1].error or "")


NAME = {"type": "object", "properties": {"name": {"const": "x"}}, "required": ["name"], "additionalProperties": False}
TAG = '{"structures": [{"begin": "<f>{", "schema": {}, "end": "</f>"}], "triggers": ["<f"]}'


@pytest.mark.parametrize(
    ("asked", "begun", "wanted"),
    [
        ({"json": NAME, "disable_any_whitespace": True}, "", '{"'),
        ({"json": NAME, "disable_any_whitespace": True}, '{"', "name"),
        ({"choice": ["name", "name it"]}, "", "name"),
        ({"regex": "name[0-9]+"}, "", "na"),
        ({"grammar": 'start: "name"'}, "", "name"),
        ({"structural_tag": TAG}, "<f", ">{"),
    ],
)
def test_certain_text_comes_in_any_tokens(asked: dict[str, Any], begun: str, wanted: str) -> None:
    """As a model cuts it; not each of its bytes alone."""
    words = [b'{"', b"name", b"na", b">{"]
    tokens = [*(bytes([i]) for i in range(256)), *words, b""]
    made = Compiler(lambda: Vocabulary(tokens, {}, (len(tokens) - 1,), len(tokens)))
    try:
        grammar = made.compile(StructuredOutputsParams(**asked)).result()
        grammar.take(list(begun.encode()))
        mask = grammar.mask()
    finally:
        made.close()
    for token in (tokens.index(wanted.encode()), wanted.encode()[0]):
        assert mask[token // 8] >> token % 8 & 1


def test_without_grammars_it_is_refused() -> None:
    made = engine(None)
    with pytest.raises(InputError, match="need a tokenizer"):
        made.add(ask("a", "ab", [1]))
    assert not made.has_work()


def test_abort_while_it_is_compiled_and_while_it_runs(grammars: Compiler) -> None:
    made = engine(grammars)
    made.add(ask("gone", "[ab]+", [1]))
    made.abort(["gone"])
    made.add(ask("later", "[ab]+", [1], n=2, temperature=1.0))
    made.add(ask("stays", "abc", [2]))
    while not made.scheduler.running:
        made.step()
    made.step()
    made.abort(["later"])
    found = run(made)
    assert found["stays", 0][0][-2:] == [99, EOS]  # the first came before


@pytest.mark.parametrize("fails", [False, True])
def test_a_new_form_is_compiled_once(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """By whichever thread comes first; what failed is tried again when it is asked for again."""
    compiler, begun, go, compile_now = Compiler(lambda: VOCABULARY), [], threading.Event(), llguidance.compile_matcher

    def compile_late(tokenizer: Any, params: StructuredOutputsParams, special: Any) -> Any:
        begun.append(params.regex)
        go.wait(10)
        if fails:
            raise InputError("no", param="x")
        return compile_now(tokenizer, params, special)

    monkeypatch.setattr(llguidance, "compile_matcher", compile_late)
    futures = [compiler.compile(StructuredOutputsParams(regex="ab")) for _ in range(COMPILE_THREADS)]
    time.sleep(0.2)  # the other thread has come to it, too
    go.set()
    wait(futures)
    assert [isinstance(future.exception(), InputError) for future in futures] == [fails] * COMPILE_THREADS
    assert begun == ["ab"]
    again = compiler.compile(StructuredOutputsParams(regex="ab")).exception()
    assert (isinstance(again, InputError), len(begun)) == (fails, 1 + fails)
    compiler.close()


def test_what_is_compiled_for_nobody_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are under way when they are aborted; those behind them are not begun."""
    compiler, go, asked = Compiler(lambda: VOCABULARY), threading.Event(), []
    compile_now = compiler._compile

    def compile_late(params: StructuredOutputsParams) -> Grammar:
        asked.append(params.regex)
        go.wait(10)
        return compile_now(params)

    monkeypatch.setattr(compiler, "_compile", compile_late)
    made = engine(compiler)
    for i in range(12):
        made.add(ask(f"gone {i}", f"a{{{i}}}", [1]))
    made.abort([f"gone {i}" for i in range(12)])
    made.add(ask("stays", "abc", [1]))
    made.step()
    go.set()
    assert run(made)["stays", 0][1].finish_reason == "stop"
    made.close()
    assert len(asked) <= COMPILE_THREADS + 1


def test_a_failed_row_and_a_failed_step_end_their_own(grammars: Compiler) -> None:
    def fail_row(plan: StepPlan, step: RowStep) -> str | None:
        return "scripted" if plan.step == 3 and step.row == plan.rows[0].row else None

    made = engine(grammars, fail_row=fail_row)
    made.add(ask("a", "[ab]{9}", [1]))
    made.add(ask("b", "[ab]{9}", [2]))
    found = run(made)
    assert sorted(last.finish_reason or "" for _, last in found.values()) == ["error", "stop"]
    made = engine(grammars, fail_step=lambda plan: plan.step == 3)
    made.add(ask("a", "[ab]{9}", [1]))
    assert run(made)["a", 0][1].finish_reason == "error"
    made.add(ask("b", "ab", [2]))
    assert run(made)["b", 0][1].finish_reason == "stop"


def test_a_grammar_that_meets_a_limit_ends_alone(grammars: Compiler) -> None:
    class Failing:
        num_taken = 0

        def take(self, tokens: list[int]) -> None: ...

        def over(self) -> bool:
            return False

        def mask(self) -> bytes:
            from octavo.engine.grammar.grammar import GrammarError

            raise GrammarError("a limit was met")

    made = engine(grammars)
    made.add(ask("a", "[ab]{4}", [1]))
    made.add(ask("b", "[ab]{4}", [2]))
    while any(seq.waits_for_grammar for seq in made.scheduler.waiting):
        made._constraints.settle()
    next(iter(made.scheduler.waiting)).grammar = Failing()  # type: ignore[assignment]
    found = run(made)
    assert (found["a", 0][1].error, found["a", 0][1].error_kind) == ("a limit was met", "InputError")
    assert found["b", 0][1].finish_reason == "stop"


def test_a_model_without_an_end_token_is_told() -> None:
    with pytest.raises(ConfigError, match="end-of-text"):
        make_tokenizer(Vocabulary([b"a"], {}, (), 1))


def test_a_refusal_that_is_told_again_keeps_nobody_alive() -> None:
    """By a traceback, which grows each time that an error is raised again, and holds frames."""
    compiler = Compiler(lambda: Vocabulary([b"a"], {}, (), 1))
    made, alive = engine(compiler), []
    for i in range(5):
        made.add(ask(f"r{i}", "a", [1]))
        alive.append(weakref.ref(made._requests[f"r{i}"][0]))
        assert run(made)[f"r{i}", 0][1].error_kind == "ConfigError"
    made.close()
    gc.collect()
    assert sum(seq() is not None for seq in alive) <= 1
