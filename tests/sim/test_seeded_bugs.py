"""A table of bugs, each planted into the real engine in turn: the simulation must find each, and nothing without."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import pytest
from simulation import simulate

from octavo.engine import engine, policy, scheduler, sequence, update
from octavo.engine.cache import block, manager, pool, prefix

SEEDS = range(40)
NUM_STEPS = 80


@dataclass(frozen=True)
class Bug:
    """In `owner`'s function or property `name`, the text `old` becomes `new`."""

    what: str
    owner: type | ModuleType
    name: str
    old: str
    new: str


M, S, E = manager.CacheManager, scheduler.Scheduler, engine.Engine
BUGS = (
    # pool
    Bug(
        "double free",
        M,
        "free",
        "self.pool.release(block,",
        "self.pool.release(block, keep=True); self.pool.release(block,",
    ),
    Bug(
        "missed decrement",
        pool.BlockPool,
        "release",
        "self.refs[block] -= 1",
        "self.refs[block] -= len(self._free) > 1",
    ),
    Bug("missed increment", pool.BlockPool, "share", "self.refs[block] += 1", "self.refs[block] = 1"),
    Bug("shared block stays in the free list", pool.BlockPool, "share", "del self._free[block]", "pass"),
    Bug("leak on abort", S, "_release", "self.cache.free(seq, failed=failed)", "seq.blocks = []"),
    # block tables
    Bug(
        "off by one in blocks_for",
        M,
        "blocks_for",
        "-(-num_tokens // self.block_size)",
        "num_tokens // self.block_size + 1 - (num_tokens % 7 == 0)",
    ),
    Bug(
        "blocks_for rounds down",
        M,
        "blocks_for",
        "-(-num_tokens // self.block_size)",
        "num_tokens // self.block_size or 1",
    ),
    Bug("a block that is not full is shared", M, "admit", "found[: num_computed // self.block_size]", "found"),
    Bug(
        "room believed where blocks end",
        S,
        "_schedule_running",
        "len(seq.blocks) * block_size",
        "(len(seq.blocks) + 1) * 4",
    ),
    Bug("moves on by a step too few", scheduler, "_advance", "seq.num_computed = end", "seq.num_computed = start"),
    Bug(
        "copy missing in the plan",
        M,
        "admit",
        "self._copies += [(block, seq.blocks[len(shared)]) for block in found[len(shared) :]]",
        "pass",
    ),
    Bug("copy the wrong way round", M, "admit", "(block, seq.blocks[len(shared)])", "(seq.blocks[len(shared)], block)"),
    Bug(
        "appended blocks not told",
        M,
        "grow",
        "self._updates.append(BlockUpdate(seq.row, len(seq.blocks), new))",
        "pass",
    ),
    # prefix cache
    Bug(
        "registers unconfirmed blocks",
        S,
        "schedule",
        "updates, copies = self.cache.take_changes()",
        "updates, copies = self.cache.take_changes()\n"
        "        for seq, count, _ in chosen:\n"
        "            self.cache.confirm(seq, min(seq.num_computed + count, seq.num_tokens))",
    ),
    Bug(
        "registers blocks of failed rows",
        update,
        "fail",
        "scheduler.finish(seq, failed=kind != InputError.__name__)",
        "scheduler.cache.confirm(seq, min(seq.num_computed, seq.num_tokens)) if seq.blocks else None; "
        "scheduler.finish(seq)",
    ),
    Bug("confirms an earlier life's steps", update, "_take_row", "life == seq.life", "True"),
    Bug("hash ignores the salt", block.BlockHasher, "root", 'salt.encode(errors="surrogatepass")', 'b""'),
    Bug("hash ignores the previous block", block.BlockHasher, "extend", "previous + array", "array"),
    Bug("evicted block stays listed", M, "_allocate", "self.prefix.forget(block)", "pass"),
    Bug(
        "prefix covers the last token",
        M,
        "match_prefix",
        "(seq.num_tokens - 1) // self.block_size",
        "seq.num_tokens // self.block_size",
    ),
    Bug("prefix skips what prompt_logprobs need", M, "match_prefix", "or seq.wants_prompt_logprobs", ""),
    Bug("unlists in one direction", prefix.PrefixCache, "forget", "del self._block_of[name]", "pass"),
    # scheduler
    Bug("stale row not ended", S, "_release", "self._ended_rows.add(seq.row)", "pass"),
    Bug("row not given back", S, "_release", "self._free_rows.append(seq.row)", "pass"),
    Bug("preemption keeps num_computed", S, "_preempt", "seq.num_computed = seq.num_confirmed", "seq.num_confirmed"),
    Bug("resumed while a token is under way", S, "_admit_waiting", "seq.num_pending or ", ""),
    Bug("budget exceeded", S, "_admit_waiting", "budget -= count", "pass"),
    Bug("prompt split though chunking is off", S, "_chunk", "if self.limits.chunked else 0", ""),
    Bug("most urgent preempted", policy.SequenceQueue, "last", "self._items[-1]", "self._items[0]"),
    Bug("priority ignored", policy, "_priority", "seq.request.priority, seq.order", "0, seq.order"),
    Bug(
        "passed over for want of blocks",
        S,
        "_admit_waiting",
        "                break\n            chosen",
        "                continue\n            chosen",
    ),
    Bug(
        "fork before the parent's prompt is confirmed",
        scheduler,
        "_parent_is_busy",
        "parent.num_confirmed < seq.num_prompt - 1",
        "False",
    ),
    Bug(
        "fork of a row whose steps may yet fail",
        scheduler,
        "_parent_is_busy",
        "parent.num_confirmed",
        "parent.num_computed",
    ),
    Bug(
        "rows of a plan that was not begun are forgotten",
        S,
        "undo",
        "self._ended_rows.update(scheduled.plan.ended)",
        "pass",
    ),
    Bug(
        "a fork counts as a prefix hit",
        S,
        "_begin",
        "min(num_computed, seq.num_prompt) if seq.parent is None else seq.parent.num_cached",
        "num_computed",
    ),
    Bug("same seed for all n", sequence, "_row_sampling", "index * _SEED_STRIDE", "0"),
    # results
    Bug("num_pending not decremented", update, "_take_token", "seq.num_pending -= 1", "pass"),
    Bug("a finished sequence takes tokens", update, "_take_row", "seq.status is _FINISHED", "False"),
    Bug("a failed row takes its token", update, "_take_row", "step.row in result.failed", "False"),
    Bug("min_tokens ignored", update, "_finished", "count >= request.params.min_tokens", "True"),
    Bug("ignore_eos ignored", update, "_finished", "not request.params.ignore_eos and", ""),
    Bug("one token too many", update, "_finished", "count >= request.max_tokens", "count > request.max_tokens"),
    Bug("prompt_logprobs one off", update, "_take_prompt_logprobs", "[start : start", "[start - 1 : start - 1"),
    Bug(
        "all of a failed step but one end",
        update,
        "fail_step",
        "for seq, _, _ in scheduled.chosen",
        "for seq, _, _ in scheduled.chosen[1:]",
    ),
    # engine
    Bug(
        "lost abort",
        S,
        "finish",
        "if seq.status is Status.RUNNING:",
        "if seq.status is Status.RUNNING and not failed and seq.num_pending:\n"
        "            return\n        if seq.status is Status.RUNNING:",
    ),
    Bug("abort of one ends all", E, "abort", "if str(seq.index) == index:", "if True:"),
    Bug("queue bound ignored", E, "add", "self._max_queued is not None", "False"),
    Bug("the urgent give way", E, "_least_urgent", "<= request.priority", "<= request.priority - 1"),
    Bug("what has begun gives way", E, "_least_urgent", "not any(map(_has_begun, group))", "True"),
    Bug("what gives way is not ended", E, "_refuse", "self._account(outputs)", "outputs"),
    Bug("request id used twice", E, "add", "request.request_id in self._requests", "False"),
    Bug("finished requests stay known", E, "_drop_if_done", "del self._requests[request_id]", "pass"),
    Bug("three steps ahead", E, "step", "len(self._in_flight) > 1", "len(self._in_flight) > 2"),
    Bug("results read in the wrong order", E, "_read", "self._in_flight.popleft()", "self._in_flight.pop()"),
)


def plant(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the function by itself with the change; it fails where the text to change is no longer there."""
    found = vars(bug.owner)[bug.name]
    original: FunctionType = found.fget if isinstance(found, property) else found
    source = textwrap.dedent(inspect.getsource(original))
    padded = textwrap.indent(source, "    ") if isinstance(bug.owner, type) else source
    assert padded.count(bug.old) == 1, f"{bug.what}: the text to change is not there exactly once"
    code = textwrap.dedent(padded.replace(bug.old, bug.new)).replace("@property\n", "")
    scope: dict[str, Any] = {}
    exec(compile(f"from __future__ import annotations\n{code}", f"<{bug.what}>", "exec"), original.__globals__, scope)
    changed = scope[bug.name]
    original_code = original.__code__
    # in place: other modules hold the function by name
    monkeypatch.setattr(original, "__code__", changed.__code__)
    assert original.__code__ is not original_code


def test_without_bugs_nothing_is_found() -> None:
    for seed in SEEDS:
        simulate(seed, num_steps=NUM_STEPS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_bug_is_found(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(bug, monkeypatch)
    for seed in SEEDS:
        try:
            simulate(seed, num_steps=NUM_STEPS)
        except (NameError, SyntaxError):
            raise
        except Exception:
            return
    pytest.fail("the simulation did not notice")
