"""Constrained rows on each backend: what comes has the form, whatever else the request asks and whoever runs beside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parity.drive import GPUS

from octavo import LLM, RequestOutput, SamplingParams, StructuredOutputsParams
from octavo.base.errors import InputError
from octavo.base.types.sampling import RequestOutputKind

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "name": {"type": "string", "maxLength": 4},
    },
    "required": ["kind", "ages"],
    "additionalProperties": False,
}
REGEX = "[a-f]{3,8}-[0-9]{2,6}"
ARGUMENTS = {"max_model_len": 96, "block_size": 8, "max_num_seqs": 8}


def form(**fields: Any) -> StructuredOutputsParams:
    return StructuredOutputsParams(**fields)


@pytest.fixture(scope="module", params=["cpu", "torch:cpu", *GPUS])
def arguments(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> dict[str, Any]:
    return {"model": str(checkpoint("llama")), "device": request.param, **ARGUMENTS}


@pytest.fixture(scope="module")
def llm(arguments: dict[str, Any]) -> Iterator[LLM]:
    with LLM(**arguments) as made:
        yield made


def texts(output: RequestOutput) -> list[str]:
    assert output.error is None
    return [one.text for one in output.outputs]


@pytest.mark.parametrize("delta", [False, True])
def test_lenient_answers_are_judged(llm: LLM, delta: bool) -> None:
    schema = {"type": "array", "items": {"const": "a"}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    kind = RequestOutputKind.DELTA if delta else RequestOutputKind.CUMULATIVE
    params = SamplingParams(max_tokens=20, structured_outputs=form(json=schema, lenient=True), output_kind=kind)
    if delta:
        last = [output.outputs[0] for output in llm.stream("a", params)][-1]
    else:
        last = llm.generate("a", params, use_tqdm=False)[0].outputs[0]
        free = llm.generate("a", SamplingParams(max_tokens=1), use_tqdm=False)[0].outputs[0]
        assert free.structured_outputs_valid is None
    assert last.structured_outputs_valid is False


CROWD = [
    SamplingParams(
        temperature=0,
        max_tokens=70,
        n=1,
        structured_outputs=form(json=SCHEMA, disable_any_whitespace=True),
        logprobs=2,
    ),
    SamplingParams(temperature=0.9, seed=1, max_tokens=40, n=3, structured_outputs=form(regex=REGEX)),
    SamplingParams(
        temperature=0.7,
        seed=2,
        max_tokens=40,
        structured_outputs=form(regex=REGEX),
        presence_penalty=1.0,
        repetition_penalty=1.2,
        top_p=0.9,
        logit_bias={40: 5.0},
        logprobs=0,
    ),
    SamplingParams(temperature=0, max_tokens=12),
    SamplingParams(temperature=0, max_tokens=12, structured_outputs=form(choice=["yes", "no", "maybe so"])),
    SamplingParams(temperature=0, max_tokens=40, structured_outputs=form(regex="ab{200,}")),
    SamplingParams(temperature=0, max_tokens=40, structured_outputs=form(regex="[a-c]{4}STOP[a-c]{9}"), stop="STOP"),
]


def run_crowd(llm: LLM) -> list[RequestOutput]:
    prompts = [f"{'The quick brown fox. ' * (i % 3)}{i}:" for i in range(len(CROWD))]
    return llm.generate(prompts, CROWD, use_tqdm=False)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [one.token_ids for output in outputs for one in output.outputs]


def test_every_row_has_its_form(llm: LLM) -> None:
    schema, several, penalized, _, choice, cut, stopped = run_crowd(llm)
    found = json.loads(texts(schema)[0])
    assert found["kind"] in ("cat", "dog")
    assert len(schema.outputs[0].logprobs or []) == len(schema.outputs[0].token_ids)
    assert len(texts(several)) == 3
    for text in (*texts(several), *texts(penalized)):
        assert re.fullmatch(REGEX, text)
    assert texts(choice)[0] in ("yes", "no", "maybe so")
    assert re.fullmatch("ab+", texts(cut)[0])
    assert cut.outputs[0].finish_reason == "length"
    assert re.fullmatch("[a-c]{4}", texts(stopped)[0])
    assert stopped.outputs[0].stop_reason == "STOP"
    assert llm._open_engine().call("check")


@pytest.mark.parametrize(
    "variant",
    [
        {"num_gpu_blocks_override": 14},
        {"async_scheduling": False},
        {"max_num_batched_tokens": 8, "enable_prefix_caching": False},
    ],
    ids=["preempted", "lockstep", "chunked"],
)
def test_the_same_tokens_however_it_is_run(llm: LLM, arguments: dict[str, Any], variant: dict[str, Any]) -> None:
    with LLM(**{**arguments, **variant}) as other:
        assert tokens(run_crowd(other)) == tokens(run_crowd(llm))
        if "num_gpu_blocks_override" in variant:
            assert other._engine.stats().num_preemptions > 0


def test_a_form_that_admits_the_answer_changes_nothing(llm: LLM) -> None:
    tokenizer = llm.tokenizer
    assert tokenizer is not None
    plain = [i for i in range(tokenizer.vocab_size) if re.fullmatch(rb"[ -~]+", tokenizer.token_bytes(i))]
    special = set(tokenizer.special_ids().values())
    options: dict[str, Any] = {
        "allowed_token_ids": [i for i in plain if i not in special],
        "temperature": 0,
        "max_tokens": 24,
        "logprobs": 3,
    }
    free, held = llm.generate(
        ["Hello", "Hello"],
        [SamplingParams(**options), SamplingParams(**options, structured_outputs=form(regex="[ -~]*"))],
        use_tqdm=False,
    )
    assert free.outputs[0].token_ids == held.outputs[0].token_ids
    for mine, theirs in zip(free.outputs[0].logprobs or [], held.outputs[0].logprobs or [], strict=True):
        assert mine.keys() == theirs.keys()
        for token, entry in mine.items():
            assert entry.logprob == pytest.approx(theirs[token].logprob, abs=1e-4)


def test_bad_forms_are_refused_before_anything_runs(llm: LLM) -> None:
    for bad, param in (
        (form(json={"not": {"pattern": "a"}}), "json"),
        (form(regex="("), "regex"),
        (form(grammar="x"), "grammar"),
    ):
        with pytest.raises(InputError) as caught:
            llm.generate("a", SamplingParams(structured_outputs=bad), use_tqdm=False)
        assert caught.value.param == f"structured_outputs.{param}"
    with pytest.raises(InputError, match="needs a tokenizer"), LLM(**textless(llm)) as other:
        other.generate({"prompt_token_ids": [1]}, SamplingParams(detokenize=False, structured_outputs=form(regex="a")))


def textless(llm: LLM) -> dict[str, Any]:
    return {"model": llm.config.model.model, "device": llm.config.device.device, "skip_tokenizer_init": True}
