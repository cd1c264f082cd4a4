"""One prompt, the same tokens: alone and in a crowd of 32, whatever is switched on or off."""

from __future__ import annotations

import random
from typing import Any

import pytest
from simulation import Shape, World, make_request

PROMPT = [1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1]
ROOMY: dict[str, Any] = {"num_blocks": 400, "max_num_seqs": 33, "max_num_tokens": 2000}


def tokens(shape: Shape, *, crowd: int, priority: int = 0, n: int = 1) -> tuple[list[list[int]], World]:
    """The tokens of PROMPT's sequences among `crowd` others, some of which share its beginning."""
    world = World(shape)
    rng = random.Random(3)
    for i in range(crowd):
        prompt = PROMPT[: rng.randint(0, 11)] + [rng.randint(0, 1) for _ in range(rng.randint(1, 12))]
        world.add(make_request(f"r{i}", prompt, max_tokens=rng.randint(1, 16), priority=rng.randint(-1, 1)))
        if i == crowd // 2:
            world.step()
    world.add(make_request("me", PROMPT, max_tokens=20, temperature=1.0, seed=11, n=n, priority=priority))
    for i in range(crowd // 4):
        world.step()
        world.add(make_request(f"late{i}", PROMPT[: i + 1], max_tokens=9, priority=rng.randint(-1, 1)))
    world.drain()
    return [world.followed["me", index].got for index in range(n)], world


ALONE, _ = tokens(Shape(**ROOMY), crowd=0)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("crowd", [0, 32])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefix_caching": False},
        {"max_num_tokens": 33},
        {"chunked": False},
        {"num_blocks": 12},
        {"num_blocks": 12, "prefix_caching": False, "max_num_tokens": 33},
        {"policy": "priority"},
        {"policy": "priority", "num_blocks": 12},
        {"max_num_seqs": 1, "max_num_tokens": 7},
        {"block_size": 1, "num_blocks": 64},
        {"block_size": 16, "num_blocks": 5},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()) or "roomy",
)
@pytest.mark.parametrize("priority", [-5, 5])
def test_same_tokens(changes: dict[str, Any], crowd: int, ahead: bool, priority: int) -> None:
    found, world = tokens(Shape(**(ROOMY | {"ahead": ahead} | changes)), crowd=crowd, priority=priority)
    assert found == ALONE
    assert len(found[0]) == 20
    if crowd and changes.get("num_blocks", 400) <= 12:
        assert world.last_stats.num_preemptions > 0, "the pool was to be too small"
    if crowd and not changes:
        assert world.num_cached > 0, "prefixes were to be shared"


@pytest.mark.parametrize("changes", [{}, {"num_blocks": 12}, {"prefix_caching": False}, {"max_num_tokens": 33}])
@pytest.mark.parametrize("crowd", [0, 32])
def test_the_first_of_n_is_the_only_one_of_one(changes: dict[str, Any], crowd: int) -> None:
    found, _ = tokens(Shape(**(ROOMY | changes)), crowd=crowd, n=4)
    assert found[:1] == ALONE
    assert len({tuple(one) for one in found}) == 4
    assert found == tokens(Shape(**ROOMY), crowd=0, n=4)[0]
