"""A model hub on loopback, as far as a dataset of one file and a model's config need one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def hub(commit: str, files: dict[str, bytes]) -> Iterator[str]:
    """Serve every repository with the same `files` at one `commit`, whatever branch is asked for; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            self.send(200, json.dumps([entry(name) for name in asked.get("paths", []) if name in files]).encode())

        def answer(self, head: bool = False) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/"):
                if "/tree/" in path:
                    body = [entry(name) for name in files]
                elif "/revision/" in path or path.count("/") == 4:
                    body = {"_id": "0", "id": "org/name", "sha": commit, "siblings": [{"rfilename": name} for name in files], "tags": []}
                else:
                    return self.send(404, b"{}", head)
                return self.send(200, json.dumps(body).encode(), head)
            _, _, rest = path.partition("/resolve/")
            name = rest.partition("/")[2]
            if name not in files:
                return self.send(404, b"", head, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            etag = hashlib.sha1(files[name], usedforsecurity=False).hexdigest()
            return self.send(200, files[name], head, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "none"})

        def send(self, status: int, body: bytes, head: bool = False, more: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(more or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if not head:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def entry(name: str) -> dict[str, object]:
        oid = hashlib.sha1(files[name], usedforsecurity=False).hexdigest()
        return {"type": "file", "oid": oid, "size": len(files[name]), "path": name}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
