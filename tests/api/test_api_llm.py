"""LLM end to end on a small model: every form of prompt, every SamplingParams field, failures that stay alone."""

from __future__ import annotations

import math
import signal
import threading
from typing import Any

import pytest

from octavo import LLM, PromptType, RequestOutput, RequestOutputKind, SamplingParams, TextPrompt, TokensPrompt
from octavo.base.errors import ConfigError, InputError, ModelFormatError, ModelNotFoundError
from octavo.base.types.structured import StructuredOutputsParams

PROMPT = "The quick brown fox"


def run(llm: LLM, prompt: Any = PROMPT, **params: Any) -> RequestOutput:
    (output,) = llm.generate(prompt, SamplingParams(**{"temperature": 0, "max_tokens": 12, **params}), use_tqdm=False)
    return output


def tokens(llm: LLM, prompt: Any = PROMPT, **params: Any) -> list[int]:
    return run(llm, prompt, **params).outputs[0].token_ids


def test_prompts_in_every_form(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPT)
    forms: list[PromptType] = [PROMPT, ids, TextPrompt(prompt=PROMPT), TokensPrompt(prompt_token_ids=ids)]
    alone = [run(llm, form).outputs[0].token_ids for form in forms]
    together = llm.generate(forms, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
    assert all(one == alone[0] for one in alone)
    assert [output.outputs[0].token_ids for output in together] == alone
    assert [output.prompt_token_ids for output in together] == [ids] * 4
    assert together[0].prompt == PROMPT
    assert together[1].prompt is None


def test_many_prompts_come_back_in_order(llm: LLM) -> None:
    prompts = [f"Number {i} is" for i in range(20)]
    params = [SamplingParams(temperature=0, max_tokens=1 + i % 7) for i in range(20)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1 + i % 7 for i in range(20)]
    for prompt, one, output in zip(prompts, params, outputs, strict=True):
        assert tokens(llm, prompt, max_tokens=one.max_tokens) == output.outputs[0].token_ids


def test_where_the_time_went_adds_up(llm: LLM) -> None:
    for form in (None, StructuredOutputsParams(regex="[ab]{5,9}")):
        times = run(llm, structured_outputs=form).metrics
        assert times is not None
        parts = times.parts()
        assert min(parts.values()) >= 0
        assert sum(parts.values()) == pytest.approx(times.last_token - times.arrival)
        assert (parts["grammar"] > 0) is (form is not None)


def test_empty_batch(llm: LLM) -> None:
    assert llm.generate([], use_tqdm=False) == []


@pytest.mark.parametrize(
    ("prompts", "params", "field"),
    [
        (5, None, "prompts"),
        ([5.5], None, "prompts"),
        ({"prompt_embeds": []}, None, "prompts"),
        ({"cache_salt": "x"}, None, "prompts"),
        ({"prompt": 3}, None, "prompts"),
        ({"prompt_token_ids": "abc"}, None, "prompts"),
        ([[1, 2], [100_000]], None, "prompt"),
        ([[1, 2], []], None, "prompt"),
        ([[1, True]], None, "prompt"),
        ([[1] * 256], None, "prompt"),
        ([1, 2], "greedy", "sampling_params"),
        ([1, 2], [SamplingParams(), SamplingParams()], "sampling_params"),
        ([1, 2], SamplingParams(logit_bias={500: 1.0}), "logit_bias"),
    ],
)
def test_mistakes_stop_the_batch_before_anything_runs(llm: LLM, prompts: Any, params: Any, field: str) -> None:
    before = llm._engine.stats().step
    with pytest.raises(InputError) as caught:
        llm.generate(prompts, params, use_tqdm=False)
    assert caught.value.param == field
    assert llm._engine.stats().step == before


def test_greedy_is_deterministic_and_n_greedy_sequences_are_equal(llm: LLM) -> None:
    one = tokens(llm)
    three = run(llm, n=3)
    assert [completion.token_ids for completion in three.outputs] == [one] * 3
    assert [completion.index for completion in three.outputs] == [0, 1, 2]
    assert three.finished
    assert three.outputs[0].finish_reason == "length"


def test_seed_fixes_sampling_and_n_draws_apart(llm: LLM) -> None:
    first = run(llm, temperature=1.5, seed=11, n=4)
    again = run(llm, temperature=1.5, seed=11, n=4)
    other = run(llm, temperature=1.5, seed=12, n=4)
    drawn = [completion.token_ids for completion in first.outputs]
    assert drawn == [completion.token_ids for completion in again.outputs]
    assert drawn != [completion.token_ids for completion in other.outputs]
    assert len({tuple(one) for one in drawn}) == 4


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_narrow_sampling_is_greedy(llm: LLM, narrow: dict[str, Any]) -> None:
    assert tokens(llm, temperature=1.0, seed=5, **narrow) == tokens(llm)


def test_logprobs(llm: LLM) -> None:
    output = run(llm, logprobs=3, prompt_logprobs=2)
    completion = output.outputs[0]
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids)
    for token, table in zip(completion.token_ids, completion.logprobs, strict=True):
        assert len(table) == 3
        assert table[token].rank == 1
        assert table[token].logprob == max(entry.logprob for entry in table.values())
        assert table[token].decoded_token is not None
        assert sorted(entry.rank or 0 for entry in table.values()) == [1, 2, 3]
    total = sum(table[token].logprob for token, table in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    for token, table in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert table is not None
        assert token in table
        assert 2 <= len(table) <= 3
    assert run(llm).outputs[0].logprobs is None
    assert run(llm).outputs[0].cumulative_logprob is None
    alone = run(llm, logprobs=0).outputs[0].logprobs
    assert alone is not None
    assert all(len(table) == 1 for table in alone)


def _stop_text(llm: LLM) -> tuple[str, str]:
    """The greedy text and a piece inside it."""
    text = run(llm, max_tokens=40, ignore_eos=True).outputs[0].text
    plain = next(i for i in range(4, len(text) - 2) if "\ufffd" not in text[i : i + 2])
    return text, text[plain : plain + 2]


def test_stop_strings(llm: LLM) -> None:
    text, stop = _stop_text(llm)
    cut = run(llm, max_tokens=40, ignore_eos=True, stop=[stop, "never there"]).outputs[0]
    assert cut.text == text[: text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert len(cut.token_ids) < 40
    kept = run(llm, max_tokens=40, ignore_eos=True, stop=stop, include_stop_str_in_output=True).outputs[0]
    assert kept.text == text[: text.index(stop) + len(stop)]


def test_stop_string_ends_only_its_own_sequence(llm: LLM) -> None:
    free = run(llm, n=4, temperature=1.0, seed=3, max_tokens=30, ignore_eos=True)
    texts = [completion.text for completion in free.outputs]
    stop = next(
        piece
        for i in range(2, len(texts[0]) - 2)
        if "\ufffd" not in (piece := texts[0][i : i + 2]) and not all(piece in other for other in texts[1:])
    )
    cut = run(llm, n=4, temperature=1.0, seed=3, max_tokens=30, ignore_eos=True, stop=[stop])
    for before, after in zip(free.outputs, cut.outputs, strict=True):
        if stop in before.text:
            assert after.finish_reason == "stop"
            assert after.text == before.text[: before.text.index(stop)]
        else:
            assert (after.finish_reason, after.token_ids) == ("length", before.token_ids)


def test_stop_token_ids_and_min_tokens(llm: LLM) -> None:
    free = tokens(llm)
    third = free[2]
    stopped = run(llm, stop_token_ids=[third], logprobs=0).outputs[0]
    end = free.index(third) + 1
    assert stopped.token_ids == free[:end]
    assert [token for token, _ in stopped.text_logprobs or ()] == free[: end - 1], "of those that are text"
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", third)
    longer = tokens(llm, stop_token_ids=[third], min_tokens=8)
    assert len(longer) >= 8
    assert third not in longer[:7]


def test_end_of_text_and_ignore_eos(llm: LLM) -> None:
    eos = llm.get_tokenizer().eos_token_id
    forced = {"logit_bias": {eos: 100.0}}
    ended = run(llm, **forced).outputs[0]
    assert (ended.token_ids, ended.text, ended.finish_reason, ended.stop_reason) == ([eos], "", "stop", None)
    assert tokens(llm, ignore_eos=True, max_tokens=5, **forced) == [eos] * 5
    assert len(tokens(llm, min_tokens=4, **forced)) >= 4


def test_skip_special_tokens_and_detokenize(llm: LLM) -> None:
    special = llm.get_tokenizer().convert_tokens_to_ids("<|user|>")
    forced = {"logit_bias": {special: 100.0}, "max_tokens": 3}
    assert run(llm, **forced).outputs[0].text == ""
    assert run(llm, skip_special_tokens=False, **forced).outputs[0].text == "<|user|>" * 3
    whole = run(llm, detokenize=False, logprobs=2, prompt_logprobs=0)
    silent = whole.outputs[0]
    assert silent.text == ""
    assert silent.token_ids == tokens(llm)
    tables = [*(silent.logprobs or ()), *(whole.prompt_logprobs or ())[1:]]
    assert {one.decoded_token for table in tables for one in (table or {}).values()} == {None}


def test_bias_allowed_ids_and_bad_words(llm: LLM) -> None:
    assert tokens(llm, logit_bias={77: 100.0}, max_tokens=4) == [77] * 4
    assert set(tokens(llm, allowed_token_ids=[70, 71], ignore_eos=True)) <= {70, 71}
    tokenizer = llm.get_tokenizer()
    word = next(t for t in range(200, 300) if tokenizer.encode(tokenizer.decode([t]), add_special_tokens=False) == [t])
    boosted = {"logit_bias": {word: 100.0}, "max_tokens": 4}
    assert tokens(llm, **boosted) == [word] * 4
    assert word not in tokens(llm, bad_words=[tokenizer.decode([word])], **boosted)


@pytest.mark.parametrize(
    "penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 5.0}]
)
def test_penalties_end_repetition(llm: LLM, penalty: dict[str, float]) -> None:
    # 70 and 71 are lifted above all others; 70 a little more, so only a penalty brings 71
    lifted = {"logit_bias": {70: 60.0, 71: 59.0}, "max_tokens": 6, "ignore_eos": True}
    assert set(tokens(llm, **lifted)) == {70}
    assert 71 in tokens(llm, **lifted, **penalty)


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_stream_in_every_kind_is_the_same_text(llm: LLM, kind: RequestOutputKind) -> None:
    whole = run(llm).outputs[0]
    params = SamplingParams(temperature=0, max_tokens=12, output_kind=kind, prompt_logprobs=0)
    seen = list(llm.stream(PROMPT, params))
    delta = kind is RequestOutputKind.DELTA
    assert [output.prompt_logprobs is not None for output in seen] == [True] + [not delta] * (len(seen) - 1)
    assert [output.finished for output in seen] == [False] * (len(seen) - 1) + [True]
    if kind is RequestOutputKind.DELTA:
        assert [token for output in seen for token in output.outputs[0].token_ids] == whole.token_ids
        assert "".join(output.outputs[0].text for output in seen) == whole.text
        assert len(seen) > 1
    else:
        assert seen[-1].outputs[0].token_ids == whole.token_ids
        assert seen[-1].outputs[0].text == whole.text
    assert len(seen) == 1 or kind is not RequestOutputKind.FINAL_ONLY


def test_closing_a_stream_aborts_it(llm: LLM) -> None:
    stream = llm.stream(PROMPT, SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    assert llm._engine.stats().num_running == 1
    stream.close()  # type: ignore[attr-defined]
    assert llm._engine.stats().num_running == 0


def test_generate_while_a_stream_is_open_and_from_threads(llm: LLM) -> None:
    expected = tokens(llm)
    stream = llm.stream(PROMPT, SamplingParams(temperature=0, max_tokens=12, output_kind=RequestOutputKind.DELTA))
    begun = next(stream).outputs[0].token_ids
    assert tokens(llm) == expected
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(tokens(llm))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert begun + [token for output in stream for token in output.outputs[0].token_ids] == expected


def test_chat(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hello there"}]
    params = SamplingParams(temperature=0, max_tokens=6)
    (answer,) = llm.chat(messages, params, use_tqdm=False)
    assert answer.prompt == "<s><|user|>Hello there<|assistant|>"
    again = llm.generate({"prompt_token_ids": answer.prompt_token_ids}, params, use_tqdm=False)
    assert again[0].outputs[0].token_ids == answer.outputs[0].token_ids
    two = llm.chat([messages, messages], params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in two] == [answer.outputs[0].token_ids] * 2


def test_prompts_by_the_tokenizer(llm: LLM, llama: str) -> None:
    """As scripts make them with a tokenizer of Transformers; tests/text/test_pretrained.py compares the two."""
    messages = [{"role": "user", "content": "Hello there"}]
    tokenizer = llm.get_tokenizer()
    assert tokenizer is llm.get_tokenizer()
    assert tokenizer.name_or_path == llama
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == llm.render_chat(messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == tokenizer.decode(ids)
    assert llm.tokenizer is not None
    assert llm.tokenizer.encode(text, add_special_tokens=False) == ids
    (output,) = llm.generate({"prompt_token_ids": ids}, use_tqdm=False)
    assert output.prompt_token_ids == ids
    whole: Any = {"prompt_token_ids": tokenizer.apply_chat_template(messages)}
    with pytest.raises(InputError, match=r"return_dict=False"):
        llm.generate(whole, use_tqdm=False)


def test_chat_options_reach_the_template(llm: LLM) -> None:
    template = "{{ tools | length }}/{{ extra }}/{% if add_generation_prompt %}G{% endif %}"
    ids = llm.render_chat(
        [{"role": "user", "content": "x"}],
        tools=[{"type": "function"}, {"type": "function"}],
        chat_template=template,
        add_generation_prompt=True,
        chat_template_kwargs={"extra": "kwarg"},
    )
    assert llm.get_tokenizer().decode(ids) == "2/kwarg/G"


@pytest.mark.parametrize("messages", [[], [[]], [{"content": "no role"}], ["text"], "text", [{"role": 3}]])
def test_bad_messages(llm: LLM, messages: Any) -> None:
    with pytest.raises(InputError) as caught:
        llm.chat(messages, use_tqdm=False)
    assert caught.value.param == "messages"


def test_one_failing_request_leaves_the_others_be(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens(llm)
    executor = llm._engine.executor  # type: ignore[union-attr]
    begin, finish = executor.begin, executor.finish
    plans: dict[int, Any] = {}
    failed = []

    def recording(plan: Any) -> None:
        plans[plan.step] = plan
        begin(plan)

    def failing() -> Any:
        result = finish()
        if not failed and len(result.tokens) == 3:
            failed.append(plans[result.step].rows[1].row)
            result.failed[failed[0]] = "logits are not finite"
        return result

    monkeypatch.setattr(executor, "begin", recording)
    monkeypatch.setattr(executor, "finish", failing)
    outputs = llm.generate([PROMPT] * 3, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
    errors = [output for output in outputs if output.error is not None]
    assert len(errors) == 1
    assert errors[0].outputs[0].finish_reason == "error"
    assert "not finite" in (errors[0].error or "")
    assert [output.outputs[0].token_ids for output in outputs if output.error is None] == [expected] * 2


def test_a_small_queue_is_fed_as_it_empties(llama: str) -> None:
    options = {"max_num_seqs": 2, "max_num_queued_reqs": 1, "device": "cpu", "kv_cache_memory_bytes": 2 << 20}
    with LLM(llama, **options) as small:
        outputs = small.generate(["a b", "c d", "e f", "g h", "i j"], SamplingParams(max_tokens=3), use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3] * 5


def test_priority_runs_first(llama: str) -> None:
    options = {"max_num_seqs": 1, "scheduling_policy": "priority", "device": "cpu", "kv_cache_memory_bytes": 2 << 20}
    with LLM(llama, **options) as small:
        params = SamplingParams(max_tokens=4, ignore_eos=True)
        outputs = small.generate(["a", "b", "c"], params, priority=[3, 2, 1], use_tqdm=False)
        with pytest.raises(InputError, match="priority"):
            small.generate(["a", "b"], params, priority=[1], use_tqdm=False)
    first = [output.metrics.first_token for output in outputs if output.metrics is not None]
    assert sorted(first, reverse=True) == first
    assert len(first) == 3


def test_prefix_cache_is_used_and_reset(llm: LLM) -> None:
    prompt = list(range(10, 90))
    assert llm.reset_prefix_cache()
    first = run(llm, prompt)
    second = run(llm, prompt)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 64)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    salted = run(llm, {"prompt_token_ids": prompt, "cache_salt": "mine"})
    assert salted.num_cached_tokens == 0
    assert llm.reset_prefix_cache()
    assert run(llm, prompt).num_cached_tokens == 0


def test_progress_bar(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate([PROMPT] * 2, SamplingParams(max_tokens=3))
    shown = capsys.readouterr().err
    assert "Processed prompts" in shown
    assert "toks/s" in shown
    run(llm)
    assert capsys.readouterr().err == ""


def test_a_process_without_stderr(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with LLM(llama, device="cpu", threads=1, kv_cache_memory_bytes=2 << 20) as llm:
        assert len(llm.generate([PROMPT] * 2, SamplingParams(max_tokens=3))) == 2


def test_defaults_come_from_the_generation_config(llama: str, tmp_path: Any) -> None:
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "top_k": 7, "max_new_tokens": 3}))
    options = {"device": "cpu", "kv_cache_memory_bytes": 2 << 20}
    with LLM(str(folder), **options) as small:
        default = small.get_default_sampling_params()
        assert (default.temperature, default.top_k, default.max_tokens) == (0.25, 7, 3)
        assert len(small.generate("a", use_tqdm=False)[0].outputs[0].token_ids) <= 3
    with LLM(str(folder), generation_config="vllm", **options) as small:
        assert small.get_default_sampling_params() == SamplingParams()
    override = {"temperature": 0.5, "top_k": None, "max_new_tokens": 4, "min_p": 0.1}
    with LLM(str(folder), override_generation_config=override, **options) as small:
        default = small.get_default_sampling_params()
        assert (default.temperature, default.top_k, default.max_tokens, default.min_p) == (0.5, 0, 4, 0.1)
        assert len(small.generate("a", use_tqdm=False)[0].outputs[0].token_ids) <= 4
    with LLM(str(folder), override_generation_config=override, generation_config="vllm", **options) as small:
        assert small.get_default_sampling_params() == SamplingParams(temperature=0.5, max_tokens=4, min_p=0.1)
    for wrong, words in (
        ({"temprature": 1}, "unknown key 'temprature'; did you mean temperature"),
        ({"top_p": 7}, "override_generation_config: top_p"),
        ({"top_k": "x"}, "override_generation_config: top_k"),
        ({"max_new_tokens": 0}, "override_generation_config: max_new_tokens must be between 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            LLM(str(folder), override_generation_config=wrong, **options)
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 7}))
    with pytest.raises(ModelFormatError, match=r"generation_config.json: top_p.*generation_config=vllm"):
        LLM(str(folder), **options)


def test_dummy_weights_from_a_config_alone(llama: str, tmp_path: Any) -> None:
    (tmp_path / "config.json").write_bytes((__import__("pathlib").Path(llama) / "config.json").read_bytes())
    options: dict[str, Any] = {"load_format": "dummy", "skip_tokenizer_init": True, "device": "cpu"}
    options |= {"kv_cache_memory_bytes": 2 << 20, "hf_overrides": {"num_hidden_layers": 1}}
    with LLM(str(tmp_path), **options) as dummy:
        output = run(dummy, [5, 6, 7])
        assert len(output.outputs[0].token_ids) == 12 or output.outputs[0].finish_reason == "stop"
        assert output.outputs[0].text == ""
        assert len(dummy._model.spec.layers) == 1
        for call in (lambda: run(dummy, "text"), lambda: dummy.chat([{"role": "user", "content": "x"}])):
            with pytest.raises(InputError, match="skip_tokenizer_init"):
                call()
        with pytest.raises(ConfigError, match="skip_tokenizer_init"):
            dummy.get_tokenizer()
    with LLM(str(tmp_path), **options) as again:
        assert run(again, [5, 6, 7]).outputs[0].token_ids == output.outputs[0].token_ids


def test_what_cannot_be_loaded(llama: str) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        LLM("/nowhere/at/all")
    with pytest.raises(ConfigError, match="max_model_len=1000"):
        LLM(llama, max_model_len=1000, device="cpu")
    with pytest.raises(ConfigError, match="KV cache"):
        LLM(llama, device="cpu", kv_cache_memory_bytes=1 << 10)


def test_a_closed_llm_says_so(llama: str) -> None:
    model = LLM(llama, device="cpu", kv_cache_memory_bytes=2 << 20)
    model.close()
    model.close()
    with pytest.raises(ConfigError, match="closed"):
        run(model)


def test_torch_backend_gives_the_same_tokens(llama: str) -> None:
    sizes = {"max_num_seqs": 8, "kv_cache_memory_bytes": 4 << 20}
    with (
        LLM(llama, device="torch:cpu", **sizes) as other,
        LLM(llama, device="cpu", activation_dtype="float32", **sizes) as exact,
    ):
        theirs, ours = run(other, logprobs=1), run(exact, logprobs=1)
    assert theirs.outputs[0].token_ids == ours.outputs[0].token_ids
    assert theirs.outputs[0].cumulative_logprob is not None
    assert math.isclose(theirs.outputs[0].cumulative_logprob, ours.outputs[0].cumulative_logprob or 0, abs_tol=1e-3)


@pytest.mark.parametrize("use_stream", [False, True])
def test_ctrl_c_waits_for_the_step_and_leaves_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, use_stream: bool
) -> None:
    expected = tokens(llm)
    executor = llm._engine.executor  # type: ignore[union-attr]
    finish, ends = executor.finish, []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a shell's background jobs

    def interrupted() -> Any:
        signal.raise_signal(signal.SIGINT)
        result = finish()
        ends.append(result)  # the step went on to its end
        return result

    with monkeypatch.context() as patch:
        patch.setattr(executor, "finish", interrupted)
        many = SamplingParams(max_tokens=50, n=2)
        with pytest.raises(KeyboardInterrupt):
            list(llm.stream(PROMPT, many)) if use_stream else llm.generate([PROMPT] * 3, many, use_tqdm=False)
    assert len(ends) == 1
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    assert tokens(llm) == expected
