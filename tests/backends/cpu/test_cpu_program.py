"""A spec's forward pass as a program: what runs for all tokens, and what for those that are asked alone."""

from __future__ import annotations

from dataclasses import replace

import cpu_tiny

from octavo.backends.cpu.program import build_program
from octavo.models.spec import Pooling

SPEC = cpu_tiny.spec()
LAST = f"layers.{len(SPEC.layers) - 1}."


def test_of_the_last_layer_all_tokens_need_keys_and_values_alone() -> None:
    program = build_program(SPEC)
    body, tail = ({name for step in steps for name in step.arguments} for steps in (program.body, program.tail))
    assert {name for name in program.packs if name.startswith(LAST) and name in body} == {
        LAST + "pre_mixer",
        LAST + "qkv",
    }
    assert {name for name in program.packs if name in tail and name not in ("head", "final_norm")} == {
        name for name in program.packs if name.startswith(LAST) and name not in body
    }
    assert program.body[-1].op == "check"
    assert not {step.op for step in program.tail} & {"write_kv", "check"}
    assert program.registers.keys().isdisjoint(program.tail_registers)


def test_a_model_that_pools_runs_for_all_tokens() -> None:
    program = build_program(replace(SPEC, head=None, pooling=Pooling("mean")))
    assert not program.tail
    assert any(LAST + "o" in step.arguments for step in program.body)
