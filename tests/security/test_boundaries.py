"""A short form of fuzz.py, also under python -O; and that its table has every route and field."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from boundaries import GOOD, Boundaries, Call, fields_of, kinds
from targets import judge

from octavo.server.openapi import TABLE

HERE = Path(__file__).parent


@pytest.mark.filterwarnings("default")  # a lone surrogate in a model's text is no news here
def test_hostile_calls_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    figures = asyncio.run(fuzz.run(folders, tmp_path / "batches", requests=4000, seed=7))
    assert figures.faults == []
    assert figures.total == 4000
    assert figures.statuses[400] > 2000
    assert figures.statuses[200] > 400


def test_hostile_calls_are_refused_without_asserts(folders: tuple[Path, Path]) -> None:
    """-O takes asserts out, so that nothing is guarded by one."""
    command = [sys.executable, "-O", str(HERE / "fuzz.py"), "--requests", "500", "--seed", "8", "--folders"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "PYTHONOPTIMIZE": "1"}
    run = subprocess.run([*command, *map(str, folders)], capture_output=True, text=True, timeout=120, env=environment)
    last = run.stdout.splitlines()[-1]
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert re.match(r"500 requests, 0 x 5xx, 0 faults", last), last


def test_every_route_and_field_is_met() -> None:
    met: set[tuple[str, str]] = set()
    routes: set[str] = set()
    for call in Boundaries(2).calls(20_000):
        met |= {(call.path, name) for name in call.field.split("+")}
        routes.add(call.path)
    for (_, path), told in TABLE.items():
        assert path in routes or "{" in path
        for kind in kinds(told):
            required = {name for name, each in fields_of(kind).items() if each.required}
            assert required <= GOOD.keys(), "say in GOOD what a good request holds there"
            assert {(path, name) for name in fields_of(kind)} <= met


def test_the_judge_sees_faults() -> None:
    call, json = Call("POST", "/v1/completions"), {b"content-type": b"application/json"}
    good = b'{"error":{"message":"x","type":"t","param":null,"code":400}}'
    assert judge(call, 400, json, good) is None
    assert judge(call, 500, json, good) == "5xx"
    assert judge(call, 418, json, good) == "a status that is not foreseen"
    assert judge(call, 400, json, good.replace(b"x", b"x" * 5000)) == "a large error"
    assert judge(call, 400, json, good.replace(b'"x"', b'"at 0x7f00aabbcc"')) == "a leak"
    assert judge(call, 400, json, good.replace(b'"x"', b'"in /home/me/a"')) == "a leak"
    assert judge(call, 400, json, b'{"error":{"message":"x"}}') == "an error of another form"
    events = {b"content-type": b"text/event-stream; charset=utf-8"}
    assert judge(call, 200, events, b"data: " + good.replace(b"400", b"500") + b"\n\n") == "5xx in a stream"
    assert judge(call, 200, events, b"data: {") == "a stream cut short"
