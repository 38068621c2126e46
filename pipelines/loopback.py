"""A bounded HTTP server on loopback: whoever it serves holds an address that nobody can guess, http://127.0.0.1:PORT/TOKEN/..."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

HOST = "127.0.0.1"
LARGEST = 16 << 20
"""Bytes of a request."""
CONNECTIONS = 1024
"""At once; more are closed unheard."""
READ_SECONDS = 60.0
"""For a request to arrive in."""


def direct(inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables by which clients reach loopback without a proxy, added to what is inherited."""
    return {name: ",".join(filter(None, [inherited.get(name), f"{HOST},localhost"])) for name in ("NO_PROXY", "no_proxy")}


class Refused(Exception):
    """A request that is not heard; the text says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Server(ThreadingHTTPServer):
    """Serves in threads that end with the process."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, handler: type[Handler]) -> None:
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((HOST, 0), handler)

    def start(self) -> int:
        """Returns the port."""
        threading.Thread(target=self.serve_forever, daemon=True, name="loopback").start()
        return self.server_address[1]

    def server_bind(self) -> None:
        """Without asking the resolver for a name, which may take long."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to report."""


class Handler(BaseHTTPRequestHandler):
    """Reads and answers JSON."""

    timeout = READ_SECONDS

    def address(self) -> tuple[str, str]:
        """The token of the address that was asked, and the rest of its path."""
        token, _, rest = self.path.lstrip("/").partition("/")
        return token, rest.partition("?")[0].rstrip("/")

    def body(self) -> dict[str, Any]:
        """The JSON object of the request.

        Raises:
            Refused: it is longer than LARGEST, or none.
        """
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > LARGEST:
            raise Refused(413, f"a request has a length of at most {LARGEST} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise Refused(400, "the request is no JSON object")
        return body

    def json(self, status: int, body: Mapping[str, Any]) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, kind: str, content: bytes) -> None:
        with contextlib.suppress(OSError):  # it has gone away
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name of the method it replaces
        """Nothing: every request would be a line."""
