"""Chat completions from any OpenAI-compatible server (vLLM, llama.cpp, a hosted API), with the standard library only.

Every request is bounded: a deadline (which a body that trickles does not escape), a size limit, a few further
tries with growing pauses after what may pass (connection refused, 408, 409, 429, 5xx, a body that is no completion). Redirects
are refused, because they would carry the key to another host. The key is in no message and no representation.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from urllib.parse import urlsplit

from pipelines.errors import UserError

TRANSIENT = (408, 409, 429)
LARGEST = 8 << 20
LONGEST_PAUSE = 30.0

TEACHER_URL, TEACHER_KEY = "TOUCHSTONE_TEACHER_URL", "TOUCHSTONE_TEACHER_KEY"
"""Environment variables with the endpoint that writes, solves and judges problems."""

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """The text of a completion, or why there is none (`text` is None)."""

    text: str | None
    error: str = ""


class Replies:
    """Replies on disk (SQLite), so that what was asked once is not asked again after an interruption."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("create table if not exists replies (key text primary key, reply text not null)")

    def get(self, key: str) -> str | None:
        with self._lock:
            row = self._database.execute("select reply from replies where key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, reply: str) -> None:
        with self._lock:
            self._database.execute("insert or replace into replies values (?, ?)", (key, reply))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Failed(Exception):
    """One try failed; `transient` ones are worth another, after `pause` seconds if the server says so."""

    def __init__(self, reason: str, transient: bool, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.transient, self.pause = transient, pause


@dataclass(frozen=True)
class ChatClient:
    """An endpoint: `url` ends before `/chat/completions` (usually in `/v1`).

    timeout: seconds for one try. retries: further tries. pause: seconds before the first of them, doubled each time.
    concurrency: requests under way at once. replies: where `complete_all` keeps what it was told.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 3
    pause: float = 0.5
    concurrency: int = 8
    replies: Replies | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("the address of the chat server must look like http://host:port/v1")
        if parts.username or parts.password:
            raise UserError("the address of the chat server must hold no user name or password; give the key by itself")

    def complete(self, messages: Messages, *, temperature: float, max_tokens: int) -> Reply:
        """One completion; a failure is a Reply without text."""
        body = {"model": self.model, "messages": list(messages), "temperature": temperature, "max_tokens": max_tokens}
        pause, reason = self.pause, ""
        for attempt in range(self.retries + 1):
            try:
                return Reply(self._once(json.dumps(body).encode()))
            except _Failed as failure:
                reason = str(failure)
                if not failure.transient or attempt == self.retries:
                    return Reply(None, f"{reason} ({attempt + 1} tries)" if attempt else reason)
                time.sleep(min(max(pause, failure.pause), LONGEST_PAUSE))
                pause *= 2
        return Reply(None, reason)

    def complete_all(self, conversations: Sequence[Messages], *, temperature: float, max_tokens: int) -> list[Reply]:
        """One completion each, in order, at most `concurrency` under way. A conversation that stands there n times is answered n times."""
        threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix="chat")
        times: Counter[str] = Counter()
        keys = []
        for messages in conversations:
            asked = json.dumps([self.url, self.model, list(messages), temperature, max_tokens])
            keys.append(hashlib.sha256(f"{asked} {times[asked]}".encode()).hexdigest())
            times[asked] += 1

        def answer(messages: Messages, key: str) -> Reply:
            known = self.replies.get(key) if self.replies else None
            reply = Reply(known) if known is not None else self.complete(messages, temperature=temperature, max_tokens=max_tokens)
            if self.replies and known is None and reply.text is not None:
                self.replies.put(key, reply.text)
            return reply

        try:
            return list(threads.map(answer, conversations, keys))
        finally:  # all are done, or this was interrupted and nobody waits for the rest
            threads.shutdown(wait=False, cancel_futures=True)

    def _once(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url.rstrip("/") + "/chat/completions", body, headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout) as response:
                raw = _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                after = error.headers.get("Retry-After", "")
            transient = error.code in TRANSIENT or error.code >= 500
            raise _Failed(f"HTTP {error.code}", transient, float(after) if after.isdecimal() else 0.0) from None
        except TimeoutError:
            raise _Failed(f"no answer within {self.timeout:g} s", True) from None
        except urllib.error.URLError as error:
            slow = isinstance(error.reason, TimeoutError)
            raise _Failed(f"no answer within {self.timeout:g} s" if slow else f"cannot be reached: {error.reason}", True) from None
        except (http.client.HTTPException, ConnectionError) as error:
            raise _Failed(f"broken off: {type(error).__name__}", True) from None
        return _content(raw)


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


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise _Failed(f"answer larger than {LARGEST} bytes", False)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # read1 does not complain of an early end
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _content(raw: bytes) -> str:
    try:
        content = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise _Failed("the answer is no chat completion", True) from None
    if not isinstance(content, str):
        raise _Failed("the completion holds no text", True)
    return content
