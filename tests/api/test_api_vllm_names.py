"""Calls as scripts written for vLLM make them: its arguments' names, places and defaults, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.base.errors import ConfigError, InputError, UnsupportedError

SAID = [{"role": "user", "content": "Hello there"}]
PARAMS = SamplingParams(temperature=0, max_tokens=4)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

CALLS: dict[str, Callable[..., Any]] = {
    "generate": lambda llm, **more: llm.generate("a", PARAMS, use_tqdm=False, **more),
    "chat": lambda llm, **more: llm.chat(SAID, PARAMS, False, **more),
    "enqueue": lambda llm, **more: llm.enqueue("a", PARAMS, use_tqdm=False, **more),
    "enqueue_chat": lambda llm, **more: llm.enqueue_chat(SAID, PARAMS, False, **more),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_has_no_use_here(llm: LLM, name: str) -> None:
    call = CALLS[name]
    empty: dict[str, Any] = {"lora_request": None, "tokenization_kwargs": {}}
    if "chat" in name:
        empty |= {"mm_processor_kwargs": None, "chat_template_content_format": "auto"}
    call(llm, **empty)
    llm.wait_for_completion(use_tqdm=False)
    for argument in empty:
        with pytest.raises(UnsupportedError, match=rf"^{argument}='x' is not supported: ") as caught:
            call(llm, **{argument: "x"})
        assert caught.value.param == argument
    with pytest.raises(TypeError, match="no_such"):
        call(llm, no_such=None)
    assert llm.wait_for_completion(use_tqdm=False) == []


def test_pooling_and_beams_take_them(llm: LLM) -> None:
    for call in (llm.encode, llm.embed, llm.classify):
        with pytest.raises(UnsupportedError, match="lora_request"):
            call("a", lora_request=1)
    params: Any = None
    with pytest.raises(UnsupportedError, match="lora_request"):
        llm.beam_search("a", params, lora_request=[1])


def test_conversations_in_two_steps(llm: LLM) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "chat_template": "{{ tools | length }}{{ messages[-1].content }}"}
    names = llm.enqueue_chat([SAID, SAID], [PARAMS, PARAMS], priority=[1, 0], **options)
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == names
    (whole,) = llm.chat(SAID, PARAMS, use_tqdm=False, **options)
    assert [output.prompt for output in outputs] == [whole.prompt] * 2 == ["1Hello there"] * 2
    assert outputs[0].outputs[0].token_ids == whole.outputs[0].token_ids


def test_chats_take_a_priority(llm: LLM) -> None:
    first, second = llm.chat([SAID, SAID], PARAMS, use_tqdm=False, priority=[1, 0])
    assert first.outputs[0].token_ids == second.outputs[0].token_ids
    llm.chat(SAID, PARAMS, use_tqdm=False, priority=None)
    for call in (llm.chat, llm.enqueue_chat):
        with pytest.raises(InputError, match="2 values for 1 prompts") as caught:
            call(SAID, PARAMS, use_tqdm=False, priority=[1, 0])
        assert caught.value.param == "priority"


def test_a_bar_of_the_callers(llm: LLM) -> None:
    made: list[dict[str, Any]] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.options = options
            self.done = 0

        def set_postfix_str(self, text: str, refresh: bool) -> None: ...

        def update(self, count: int) -> None:
            self.done += count

        def close(self) -> None:
            made.append({**self.options, "done": self.done})

    llm.generate(["a", "b"], PARAMS, use_tqdm=Bar)
    assert [(one["total"], one["done"]) for one in made] == [(2, 2)]


def test_a_copy_of_parameters() -> None:
    params = SamplingParams(stop=["a"], logit_bias={1: 2.0})
    copy = params.clone()
    assert copy == params
    copy.stop_strings.append("b")
    assert params.stop == ["a"]


def test_sleep_wake_up_and_resets(llm: LLM) -> None:
    assert llm.reset_prefix_cache(False, reset_connector=False)
    for name in ("reset_running_requests", "reset_connector"):
        with pytest.raises(UnsupportedError, match=name):
            llm.reset_prefix_cache(**{name: True})
    sleeping: tuple[tuple[dict[str, Any], type[Exception]], ...] = (
        ({"level": 0}, ConfigError),
        ({"mode": "keep"}, UnsupportedError),
    )
    for given, kind in sleeping:
        with pytest.raises(kind, match=next(iter(given))):
            llm.sleep(**given)
    llm.sleep(level=2, mode="abort")
    with pytest.raises(UnsupportedError, match="tags"):
        llm.wake_up(tags=["weights"])
    llm.wake_up(tags=None)
    assert len(llm.generate("a", PARAMS, use_tqdm=False)) == 1


def test_the_same_of_async_llm(llama: str) -> None:
    async def test() -> None:
        llm = AsyncLLM(llama)
        for call in (lambda: llm.sleep(3), lambda: llm.sleep(mode="keep"), lambda: llm.wake_up(tags=["weights"])):
            with pytest.raises((ConfigError, UnsupportedError), match=r"level|mode|tags"):
                await call()
        await llm.close(0)

    asyncio.run(test())


@pytest.mark.parametrize("auto", ["auto", -1])
def test_the_longest_context_that_fits(llama: str, llm: LLM, auto: Any) -> None:
    options: dict[str, Any] = {"max_model_len": auto, "max_num_seqs": 2, "device": "cpu", "threads": 1}
    with LLM(llama, num_gpu_blocks_override=5, **options) as short:
        assert short.max_model_len == short.config.model.max_model_len == 80
        with pytest.raises(InputError, match="context length is 80"):
            short.generate({"prompt_token_ids": [5] * 90})
        long = SamplingParams(temperature=0, max_tokens=75, ignore_eos=True)
        before = short.generate([[5, 6, 7]] * 3, long, use_tqdm=False)
        short.sleep()
        short.wake_up()
        after = short.generate([[5, 6, 7]] * 3, long, use_tqdm=False)
        expected = llm.generate([[5, 6, 7]], long, use_tqdm=False)[0].outputs[0].token_ids
        assert [output.outputs[0].token_ids for output in [*before, *after]] == [expected] * 6
    with LLM(llama, **options) as whole:
        assert whole.max_model_len == 256


def test_it_lives_through_a_restart(llama: str) -> None:
    async def test() -> None:
        llm = AsyncLLM(llama, max_model_len="auto", num_gpu_blocks_override=5, max_num_seqs=2, device="cpu")
        await llm.start()
        assert llm.info["max_model_len"] == llm._supervisor.config.model.max_model_len == 80
        await llm.sleep()
        await llm.wake_up()
        assert llm.info["max_model_len"] == 80
        await llm.close(0)

    asyncio.run(test())
