"""A LiveServer whose chat route says what a test wrote down: deltas, pauses, refusals, errors in mid-stream."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from fake_llm import FakeLLM
from serving import LiveServer
from starlette.routing import Route

from octavo.server.exchange import Exchange, Reply
from octavo.server.services import Services

DONE = b"data: [DONE]\n\n"


@dataclass
class Refusal:
    """An answer that is none. headers: beside the content type."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    param: str | None = None

    def reply(self) -> Reply:
        error = {"message": self.message, "type": "Refused", "param": self.param, "code": self.status}
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        return Reply(json.dumps({"error": error}).encode(), self.status, headers=headers)


class ScriptedServer(LiveServer):
    """replies: what chats get next: a Refusal, or a list of deltas (dict), pauses (s), events (bytes), an end (str).
    An empty delta is a token without a text: it counts, and is not sent.
    requests: the bodies that came.  stopped: answers that the client left before their end.  With no reply left: Yes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(FakeLLM(model="acme/tiny-chat"), **options)
        self.replies: list[Refusal | list[Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.stopped = 0

    def __enter__(self) -> ScriptedServer:
        super().__enter__()
        self.app.routes.insert(0, Route("/v1/chat/completions", self._chat, methods=["POST"]))
        return self

    def say(self, *replies: Refusal | str | list[Any]) -> None:
        """The next replies; a text comes in pieces of a few characters."""
        for reply in replies:
            if isinstance(reply, str):
                self.replies.append([{"content": reply[i : i + 7]} for i in range(0, len(reply), 7)])
            else:
                self.replies.append(reply)

    async def _chat(self, services: Services, exchange: Exchange) -> Reply | None:
        self.requests.append(json.loads(await services.traffic.read_body(exchange)))
        reply = self.replies.pop(0) if self.replies else [{"content": "Yes."}]
        if isinstance(reply, Refusal):
            return reply.reply()
        exchange.watch()
        exchange.begin_stream()
        try:
            await self._stream(exchange, reply)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return None

    async def _stream(self, exchange: Exchange, pieces: list[Any]) -> None:
        count = 0
        finish = "stop"
        for piece in pieces:
            if isinstance(piece, int | float):
                await asyncio.sleep(piece)
            elif isinstance(piece, bytes):
                await exchange.send_events(piece)
            elif isinstance(piece, str):
                finish = piece
            elif not piece:
                count += 1
            else:
                count += 1
                await exchange.send_events(_event(piece, None, count))
        await exchange.send_events(_event({}, finish, count) + DONE, last=True)


def _event(delta: dict[str, Any], finish: str | None, count: int) -> bytes:
    usage = {"prompt_tokens": 40, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": 16}}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"object": "chat.completion.chunk", "model": "acme/tiny-chat", "choices": [choice], "usage": usage}
    return b"data: " + json.dumps(body).encode() + b"\n\n"
