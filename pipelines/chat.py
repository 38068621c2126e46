"""Chat completions from any OpenAI-compatible server (vLLM, llama.cpp, a hosted API): bounded, repeated after what may pass, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from pipelines import answered
from pipelines.endpoint import Endpoint, Failed

TEACHER_URL, TEACHER_KEY = "TOUCHSTONE_TEACHER_URL", "TOUCHSTONE_TEACHER_KEY"
"""Environment variables with the endpoint that writes, solves and judges problems."""

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """The text of a completion, or why there is none (`text` is None). cut: it ended at `max_tokens`. model: its name as the server gives it."""

    text: str | None
    error: str = ""
    cut: bool = False
    model: str = ""


class Replies:
    """Replies on disk (SQLite), so that what was asked once is not asked again after an interruption."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        columns = "key text primary key, reply text not null, cut integer not null, model text not null"
        self._database.execute(f"create table if not exists answers ({columns})")

    def get(self, key: str) -> Reply | None:
        with self._lock:
            row = self._database.execute("select reply, cut, model from answers where key = ?", (key,)).fetchone()
        return Reply(row[0], cut=bool(row[1]), model=row[2]) if row else None

    def put(self, key: str, reply: Reply) -> None:
        with self._lock:
            self._database.execute("insert or replace into answers values (?, ?, ?, ?)", (key, reply.text, reply.cut, reply.model))


@dataclass(frozen=True)
class ChatClient:
    """An endpoint: `url` ends before `/chat/completions` (usually in `/v1`).

    timeout: seconds for one try. retries: further tries. pause: seconds before the first of them, doubled each time.
    concurrency: requests under way at once. replies: where `complete_all` keeps what it was told. role: what the endpoint is to the
    stage, whose manifest says who answered it (answered.py).
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 3
    pause: float = 0.5
    concurrency: int = 8
    replies: Replies | None = field(default=None, repr=False, compare=False)
    role: str = "teacher"
    _endpoint: Endpoint = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_endpoint", Endpoint(self.url, self.key, self.timeout, self.retries, self.pause))

    def complete(self, messages: Messages, *, temperature: float, max_tokens: int, **options: Any) -> Reply:
        """One completion; a failure is a Reply without text. options: further fields of the request, such as `seed`."""
        reply = self._complete(messages, temperature, max_tokens, options)
        self._enter(json.dumps([list(messages), temperature, max_tokens, options]), reply)
        return reply

    def _complete(self, messages: Messages, temperature: float, max_tokens: int, options: Mapping[str, Any]) -> Reply:
        body = {"model": self.model, "messages": list(messages), "temperature": temperature, "max_tokens": max_tokens, **options}
        try:
            return self._endpoint.ask("/chat/completions", body, _reply)
        except Failed as failure:
            return Reply(None, str(failure))

    def _enter(self, request: str, reply: Reply) -> None:
        if reply.text is not None:
            answered.enter(self.role, self.model, request, reply.model, reply.text)

    def complete_all(
        self,
        conversations: Sequence[Messages],
        *,
        temperature: float,
        max_tokens: int,
        options: Sequence[Mapping[str, Any]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Reply]:
        """One completion each, in order, at most `concurrency` under way. A conversation that stands there n times is answered n times.

        options: further fields of each request. progress(done, total): counts replies.
        """
        threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix="chat")
        times: Counter[str] = Counter()
        requests = []
        given = options or [{}] * len(conversations)
        for messages, more in zip(conversations, given, strict=True):
            asked = json.dumps([list(messages), temperature, max_tokens, more])
            requests.append(f"{asked} {times[asked]}")
            times[asked] += 1

        def answer(messages: Messages, more: Mapping[str, Any], request: str) -> Reply:
            key = hashlib.sha256(f"{self.url} {self.model} {request}".encode()).hexdigest()
            reply = self.replies.get(key) if self.replies else None
            if reply is None:
                reply = self._complete(messages, temperature, max_tokens, more)
                if self.replies and reply.text is not None:
                    self.replies.put(key, reply)
            self._enter(request, reply)
            return reply

        made = []
        try:
            for reply in threads.map(answer, conversations, given, requests):
                made.append(reply)
                if progress:
                    progress(len(made), len(requests))
            return made
        finally:  # all are done, or this was interrupted and nobody waits for the rest
            threads.shutdown(wait=False, cancel_futures=True)


class Asked(Protocol):
    """Settings of params that say how an endpoint is asked; timeout in seconds."""

    @property
    def model(self) -> str: ...
    @property
    def timeout(self) -> float: ...
    @property
    def retries(self) -> int: ...


def teacher(asked: Asked, replies: Path) -> ChatClient | None:
    """The endpoint that TEACHER_URL names, None without one. replies: a file that keeps what it answers."""
    url = os.environ.get(TEACHER_URL)
    if not url:
        return None
    return ChatClient(url, asked.model, os.environ.get(TEACHER_KEY), timeout=asked.timeout, retries=asked.retries, replies=Replies(replies))


def _reply(raw: bytes) -> Reply:
    try:
        answer = json.loads(raw)
        choice, model = answer["choices"][0], answer.get("model")
        content = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise Failed("the answer is no chat completion", transient=True) from None
    if not isinstance(content, str):
        raise Failed("the completion holds no text", transient=True)
    return Reply(content, cut=choice.get("finish_reason") == "length", model=model if isinstance(model, str) else "")
