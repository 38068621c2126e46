"""A real HTTP server on loopback that plays an OpenAI-compatible endpoint; what it answers is a function of the request."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """Status, body (text becomes a completion of `model`, bytes go out as they are), headers, and how slowly the body trickles."""

    content: str | bytes = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    trickle: float = 0.0
    model: str = ""


@dataclass
class Endpoint:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def serve(answer: Callable[[str, int], Answer]) -> Iterator[Endpoint]:
    """`answer(prompt, number of the request)` says what comes back."""
    lock = threading.Lock()
    under_way = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal under_way
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                endpoint.requests.append(body | {"path": self.path})
                endpoint.keys.append(self.headers.get("Authorization"))
                number = len(endpoint.requests)
                under_way += 1
                endpoint.most_at_once = max(endpoint.most_at_once, under_way)
            reply = answer(body["messages"][-1]["content"], number)
            time.sleep(reply.delay)
            said = {"choices": [{"message": {"role": "assistant", "content": reply.content}}]} | ({"model": reply.model} if reply.model else {})
            text = json.dumps(said) if isinstance(reply.content, str) else ""
            raw = text.encode() if text else reply.content
            with lock:
                under_way -= 1
            try:
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(raw))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                for byte in raw if reply.trickle else ():
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(reply.trickle)
                if not reply.trickle:
                    self.wfile.write(raw)
            except ConnectionError:
                pass  # the client gave up, which is what some tests are about

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
