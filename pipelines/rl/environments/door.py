"""An endpoint on loopback that speaks OpenAI's chat completions: a harness asks it, and an episode answers with what the policy says.

Every episode has an address of its own, which nobody can guess, from `Door.line` until that is closed. What comes there, and what else happens to the
episode, is read in order of arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pipelines import loopback

MODEL = "policy"
WAITING = 64
"""Requests of one episode that may wait."""


@dataclass
class Asked:
    """A request for what the policy says; whoever reads it answers it."""

    body: dict[str, Any]
    _reply: Future[tuple[int, dict[str, Any]]] = field(default_factory=Future)

    def answer(self, body: Mapping[str, Any], status: int = 200) -> None:
        """Ends the wait of who asked."""
        if not self._reply.done():
            self._reply.set_result((status, dict(body)))

    def refuse(self, why: str, code: str | None = None) -> None:
        """Answers 400."""
        self.answer(error(why, code), 400)

    def wait(self) -> tuple[int, dict[str, Any]]:
        """What it was answered."""
        return self._reply.result()


def error(why: str, code: str | None = None) -> dict[str, Any]:
    """As OpenAI's clients know it."""
    return {"error": {"message": why, "type": "invalid_request_error", "param": None, "code": code}}


class Line:
    """What happens to one episode, in order."""

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self._door, self._loop, self._token = door, loop, secrets.token_urlsafe(24)
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._asked: dict[int, Asked] = {}
        self._lock, self._open = threading.Lock(), True

    @property
    def url(self) -> str:
        """Base URL of the endpoint."""
        return f"http://127.0.0.1:{self._door.port}/{self._token}/v1"

    async def next(self, seconds: float) -> Any:
        """The next event: an `Asked`, or what was put.

        Raises:
            TimeoutError: none came in this time.
        """
        return await asyncio.wait_for(self._events.get(), seconds)

    def put(self, event: object) -> None:
        """From any thread. Nobody reads it where the episode is over."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def ask(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What the episode answers; from a thread that may wait."""
        asked = Asked(body)
        with self._lock:
            if not self._open:
                return 404, error("this episode is over")
            if len(self._asked) >= WAITING:
                return 429, error(f"more than {WAITING} requests of one episode wait")
            self._asked[id(asked)] = asked
        self.put(asked)
        try:
            return asked.wait()
        finally:
            with self._lock:
                del self._asked[id(asked)]

    def close(self) -> None:
        """The episode is over: who still waits is told so."""
        self._door.forget(self._token)
        with self._lock:
            self._open = False
            left = list(self._asked.values())
        for asked in left:
            asked.answer(error("this episode is over"), 404)


class Door:
    """The server, in threads of its own that end with the process."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._server = _Server(_Handler)
        self._server.door = self
        self.port = self._server.start()

    def line(self) -> Line:
        """An address for an episode of the running loop; to be closed."""
        line = Line(self, asyncio.get_running_loop())
        self._lines[line._token] = line
        return line

    def find(self, token: str) -> Line | None:
        """The episode of this address."""
        return self._lines.get(token)

    def forget(self, token: str) -> None:
        """Its address leads nowhere."""
        self._lines.pop(token, None)


class _Server(loopback.Server):
    door: Door


class _Handler(loopback.Handler):
    server: _Server

    def do_GET(self) -> None:
        line, rest = self._line()
        if line is not None and rest == "v1/models":
            self.json(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "touchstone"}]})
        else:
            self.json(404, error("there is no such address"))

    def do_POST(self) -> None:
        line, rest = self._line()
        if line is None or rest != "v1/chat/completions":
            return self.json(404, error("there is no such address"))
        try:
            body = self.body()
        except loopback.Refused as refused:
            return self.json(refused.status, error(str(refused)))
        status, told = line.ask(body)
        if status == 200 and body.get("stream"):
            return self._stream(told, body)
        return self.json(status, told)

    def _line(self) -> tuple[Line | None, str]:
        token, rest = self.address()
        return self.server.door.find(token), rest

    def _stream(self, told: dict[str, Any], body: Mapping[str, Any]) -> None:
        """The same answer in one event, for clients that read no other."""
        choice, usage = told["choices"][0], told["usage"]
        message = dict(choice["message"])
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
        head = {**{name: told[name] for name in ("id", "created", "model")}, "object": "chat.completion.chunk"}
        options = body.get("stream_options")
        events = [{**head, "choices": [{"index": 0, "delta": message, "finish_reason": choice["finish_reason"]}]}]
        if isinstance(options, dict) and options.get("include_usage"):
            events.append({**head, "choices": [], "usage": usage})
        text = "".join(f"data: {event}\n\n" for event in [*map(json.dumps, events), "[DONE]"])
        self.send(200, "text/event-stream", text.encode())
