"""The table of how models set their reasoning apart from the answer, a row each. Names: vLLM's --reasoning-parser.

text/tools/parser.py reads by these rows, together with the tool calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.text.tools.format import HARMONY

PROMPT_END = 16
"""Tokens in which a prompt that begins the reasoning, or ends it, does so."""


@dataclass(frozen=True)
class Reasoning:
    """One way. Reasoning begins with the answer, or behind a call, inside the answer's text only where `anywhere`.

    begins, ends: around reasoning.  implied: markers that end it without being its end: a call's.
    wraps: markers around the answer, shown to nobody.  dropped: further ones, before it.  inner: special tokens inside
    of these markers.  open: the answer begins inside reasoning though nothing says so, unless the prompt closed it.
    anywhere: the markers are tokens that no text has; an end alone is shown to nobody.  messages: by the heads of
    messages, as OpenAI's harmony has them.
    signs: alternatives; a template with all strings of one is made for it.
    """

    name: str
    begins: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    implied: tuple[str, ...] = ()
    wraps: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    open: bool = False
    anywhere: bool = False
    messages: bool = False
    signs: tuple[tuple[str, ...], ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every marker: special tokens among them must reach the parser."""
        return (*self.begins, *self.ends, *self.wraps, *self.dropped, *self.inner, *(HARMONY if self.messages else ()))

    def opened(self, prompt_end: str, said: str | None = None) -> bool | None:
        """Whether what follows a prompt that ends so begins inside reasoning; None if the prompt has ended it.

        said: what the prompt has of the answer, where that is to go on.
        """
        end = prompt_end.rstrip()
        begun, ended = end.endswith(self.begins), end.endswith(self.ends)
        if said is not None:
            last = [max((said.rfind(mark) for mark in marks), default=-1) for marks in (self.begins, self.ends)]
            inside = last[0] > last[1] or (self.open and last[1] < 0)
        else:
            inside = begun or (self.open and not ended)
        return True if inside else None if ended else False


_BEGIN, _END = ("<think>",), ("</think>",)

# Told apart by their templates: the more special ones stand first.
REASONINGS: tuple[Reasoning, ...] = (
    Reasoning("openai_gptoss", messages=True, signs=(("<|channel|>", "<|message|>"),)),
    Reasoning(
        "gemma4",
        ("<|channel>thought",),
        ("<channel|>",),
        inner=("<|channel>",),
        anywhere=True,
        signs=(("<|channel>", "<channel|>"),),
    ),
    Reasoning("mistral", ("[THINK]",), ("[/THINK]",), signs=(("[THINK]",),)),
    Reasoning("seed_oss", ("<seed:think>",), ("</seed:think>",), signs=(("<seed:think>",),)),
    Reasoning(
        "minimax_m3",
        ("<mm:think>",),
        ("</mm:think>",),
        implied=("]<]minimax[>[<tool_call>",),
        anywhere=True,
        signs=(("<mm:think>",),),
    ),
    Reasoning(
        "kimi_k3",
        ("<|open|>think<|sep|>",),
        ("<|close|>think<|sep|>",),
        implied=("<|open|>tools<|sep|>",),
        wraps=("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
        dropped=("<|close|>message<|sep|>",),
        inner=("<|open|>", "<|close|>", "<|sep|>"),
        signs=(("<|open|>", "<|sep|>", "think"),),
    ),
    *(
        Reasoning(
            name,
            ("<|START_THINKING|>",),
            ("<|END_THINKING|>",),
            implied=("<|START_ACTION|>",),
            wraps=(f"<|START_{answer}|>", f"<|END_{answer}|>"),
            signs=(("<|START_THINKING|>", f"<|START_{answer}|>"),),
        )
        for name, answer in (("cohere_command3", "RESPONSE"), ("cohere_command4", "TEXT"))
    ),
    Reasoning(
        "hy_v3",
        ("<think:opensource>",),
        ("</think:opensource>",),
        implied=("<tool_calls:opensource>", "<tool_call:opensource>"),
        signs=(("<think{}>", ":opensource"),),
    ),
    Reasoning(
        "solar_open",
        ("<|think|>",),
        ("<|end|>",),
        dropped=("<|begin|>assistant", "<|content|>"),
        inner=("<|begin|>",),
        anywhere=True,
        signs=(("<|think|>", "<|content|>", "<|end|>"),),
    ),
    Reasoning(
        "apertus",
        ("<|inner_prefix|>",),
        ("<|inner_suffix|>",),
        implied=("<|tools_prefix|>",),
        signs=(("<|inner_prefix|>",),),
    ),
    Reasoning(
        "granite",
        ("Here is my thought process:", "Here's my thought process:", "<think>"),
        ("Here is my response:", "Here's my response:", "</think>"),
        wraps=("<response>", "</response>"),
        signs=(("Here is my thought process:",), ("<think>", "<response>", "<|start_of_role|>")),
    ),
    Reasoning(
        "hunyuan_a13b",
        _BEGIN,
        _END,
        wraps=("<answer>", "</answer>"),
        signs=(("<think>", "<answer>"), ("<think>", "<|extra_0|>")),
    ),
    Reasoning(
        "kimi_k2",
        _BEGIN,
        _END,
        implied=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        signs=(("<|tool_call_begin|>", "<think>"),),
    ),
    Reasoning(
        "minimax_m2",
        _BEGIN,
        _END,
        implied=("<minimax:tool_call>",),
        open=True,
        signs=(("<minimax:tool_call>", "<think>"),),
    ),
    Reasoning("qwen3", _BEGIN, _END, implied=("<tool_call>",), signs=(("<think>", "<tool_call>"),)),
    Reasoning("deepseek_v3", _BEGIN, _END, signs=(("<think>",), ("</think>",))),
    Reasoning("deepseek_r1", _BEGIN, _END, open=True),
    Reasoning("ernie45", _BEGIN, _END, wraps=("<response>", "</response>"), open=True),
)

ALIASES = {
    "glm45": "qwen3",
    "glm47": "qwen3",
    "poolside_v1": "qwen3",
    "mimo": "qwen3",
    "nemotron_v3": "qwen3",
    "step3p5": "qwen3",
    "deepseek_v31": "deepseek_v3",
    "deepseek_v4": "deepseek_v3",
    "olmo3": "deepseek_v3",
    "step3": "deepseek_r1",
}
"""Names of vLLM's for a way that has a row under another."""
