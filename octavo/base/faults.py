"""Faults on purpose, for tests: OCTAVO_FAULTS in, at named points of the code a crash, a hang or an exception out.

OCTAVO_FAULTS=POINT:ACTION@N,...: at the Nth pass of the point (from 1) the action is done, once. Actions: raise
(RuntimeError), kill and stop (signals to this process); any other is the point's own, to which `hit` returns its name.
Where the variable is not set ON is False, and a point (`if faults.ON: faults.hit(...)`) is one look at it.
"""

from __future__ import annotations

import os
import signal

from octavo.base.config import env

POINTS = {
    "allocated": "Engine.step: rows and blocks are given out, the step is not begun.",
    "begun": "Engine.step: the backend works on the step.",
    "finish": "Engine: a step's result is there, nothing of it is taken.",
    "frame": "The engine process, before a frame is sent. Action truncate: half of it, and an end.",
    "row": "The cpu backend, once for each row that samples. Action nan: its logits are NaN.",
}


def parse(text: str) -> dict[str, list[tuple[int, str]]]:
    """Point -> (pass, action). ValueError for what is none."""
    found: dict[str, list[tuple[int, str]]] = {}
    for item in filter(None, text.split(",")):
        point, _, rest = item.partition(":")
        action, _, number = rest.partition("@")
        if point not in POINTS or not action or not number.isdigit():
            raise ValueError(f"OCTAVO_FAULTS: {item!r} is not POINT:ACTION@N with a point of {', '.join(POINTS)}")
        found.setdefault(point, []).append((int(number), action))
    return found


_PLANNED = parse(env.read("OCTAVO_FAULTS"))
_passes = dict.fromkeys(POINTS, 0)
ON = bool(_PLANNED)


def hit(point: str) -> str | None:
    """A point is passed: what is planned for this pass is done, or its name returned for the point to do."""
    _passes[point] += 1
    action = dict(_PLANNED.get(point, ())).get(_passes[point])
    if action == "raise":
        raise RuntimeError(f"a fault on purpose at {point}")
    if action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    return action
