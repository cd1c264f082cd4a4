"""The events of a stream in; the answer that they tell, put together piece by piece and held against what they say."""

from __future__ import annotations

import json
from typing import Any

TEXTS = ("output_text", "reasoning_text")


def fold_response(events: list[Any]) -> Any:
    """The response of a Responses stream: what each event adds to, ends and repeats is as it says."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response: Any = None
    for event in events[:-1]:
        kind = event["type"].removeprefix("response.")
        if kind in ("created", "queued", "in_progress"):
            assert response is None or _same(response, event["response"])
            response = event["response"]
        elif kind == "output_item.added":
            assert event["output_index"] == len(response["output"])
            response["output"].append(event["item"])
        elif kind == "output_item.done":
            item = response["output"][event["output_index"]]
            assert event["item"]["status"] in ("completed", "incomplete")
            assert {**item, "status": ""} == {**event["item"], "status": ""}
            item["status"] = event["item"]["status"]
        else:
            item = response["output"][event["output_index"]]
            assert (event["item_id"], item["status"]) == (item["id"], "in_progress")
            _fold_part(kind, event, item)
    last = events[-1]["response"]
    assert _same(response, last)
    assert last["output"] == response["output"]
    assert events[-1]["type"].removeprefix("response.") in (last["status"], "incomplete")  # which tells "cancelled"
    return last


def _fold_part(kind: str, event: Any, item: Any) -> None:
    if kind == "function_call_arguments.delta":
        item["arguments"] += event["delta"]
    elif kind == "function_call_arguments.done":
        assert (event["arguments"], event["name"]) == (item["arguments"], item["name"])
    elif kind == "content_part.added":
        assert event["content_index"] == len(item["content"])
        item["content"].append(event["part"])
    else:
        part = item["content"][event["content_index"]]
        what, _, step = kind.rpartition(".")
        assert what == "content_part" or (what in TEXTS and part["type"] == what), kind
        if step == "delta":
            part["text"] += event["delta"]
            part.get("logprobs", []).extend(event.get("logprobs", []))
        elif what == "content_part":
            assert event["part"] == part
        else:
            assert event["text"] == part["text"]
            assert event.get("logprobs") == part.get("logprobs")


def _same(one: Any, other: Any) -> bool:
    """But for what changes while a response is made."""
    change = ("status", "output", "usage", "completed_at", "error", "incomplete_details")
    return all(other[name] == value for name, value in one.items() if name not in change) and one.keys() == other.keys()


def fold_message(events: list[Any]) -> Any:
    """The message of Anthropic's stream."""
    message, text = events[0]["message"], ""
    for event in events[1:-2]:
        if event["type"] == "ping":
            continue
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            text = ""
            continue
        assert event["index"] == len(message["content"]) - 1
        block, delta = message["content"][-1], event.get("delta", {})
        assert event["type"] == ("content_block_delta" if delta else "content_block_stop")
        for name in delta.keys() & {"text", "thinking", "signature"}:
            block[name] += delta[name]
        text += delta.get("partial_json", "")
        if not delta and block["type"] == "tool_use":
            block["input"] = json.loads(text)
    assert (events[-2]["type"], events[-1]) == ("message_delta", {"type": "message_stop"})
    return {**message, **events[-2]["delta"], "usage": events[-2]["usage"]}
