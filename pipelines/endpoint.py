"""One HTTP endpoint that answers JSON, asked with the standard library only: bounded, patient with what passes, silent about the key.

Every request is bounded: a deadline (which a body that trickles does not escape), a size limit, a few further
tries with growing pauses after what may pass (connection refused, 408, 409, 429, 5xx, a body that is not what was asked for). Redirects
are refused, because they would carry the key to another host. The key is in no message and no representation.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipelines.errors import UserError

GENERATION_URL, GENERATION_KEY = "TOUCHSTONE_GENERATION_URL", "TOUCHSTONE_GENERATION_KEY"
"""Environment variables with the server that engines `server` and `vllm_server` ask, and its key."""
TRANSIENT = (408, 409, 429)
LONGEST_PAUSE = 30.0
T = TypeVar("T")


class Failed(Exception):
    """The endpoint did not answer as asked; `transient` failures are worth another try, after `pause` seconds if the server says so."""

    def __init__(self, reason: str, transient: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.transient, self.pause = transient, pause


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """A server: `url` is what paths are added to.

    timeout: seconds for one try. retries: further tries. pause: seconds before the first of them, doubled each time. largest: bytes of
    an answer.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 3
    pause: float = 0.5
    largest: int = 8 << 20

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("the address of the server must look like http://host:port/v1")
        if parts.username or parts.password:
            raise UserError("the address of the server must hold no user name or password; give the key by itself")

    def ask(self, path: str, body: Mapping[str, Any] | None = None, read: Callable[[bytes], T] = json.loads, method: str = "POST") -> T:
        """What `read` makes of the answer; it may raise `Failed`.

        Raises:
            Failed: no further try was left or worth it; the message says why, and how many there were.
        """
        pause = self.pause
        for attempt in range(self.retries + 1):
            try:
                return read(self._once(path, None if body is None else json.dumps(body).encode(), method))
            except Failed as failure:
                if not failure.transient or attempt == self.retries:
                    raise Failed(f"{failure} ({attempt + 1} tries)" if attempt else str(failure)) from None
                time.sleep(min(max(pause, failure.pause), LONGEST_PAUSE))
                pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _once(self, path: str, body: bytes | None, method: str) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url.rstrip("/") + path, body, headers, method=method)
        deadline = time.monotonic() + self.timeout
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout) as response:
                return _read(response, deadline, self.largest)
        except urllib.error.HTTPError as error:
            with error:
                after = error.headers.get("Retry-After", "")
            transient = error.code in TRANSIENT or error.code >= 500
            raise Failed(f"HTTP {error.code}", transient, float(after) if after.isdecimal() else 0.0) from None
        except TimeoutError:
            raise Failed(f"no answer within {self.timeout:g} s", True) from None
        except urllib.error.URLError as error:
            slow = isinstance(error.reason, TimeoutError)
            raise Failed(f"no answer within {self.timeout:g} s" if slow else f"cannot be reached: {error.reason}", True) from None
        except (http.client.HTTPException, ConnectionError) as error:
            raise Failed(f"broken off: {type(error).__name__}", True) from None


def _read(response: http.client.HTTPResponse, deadline: float, largest: int) -> bytes:
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > largest:
            raise Failed(f"answer larger than {largest} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # read1 does not complain of an early end
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)
