"""A package index on loopback: a simple index behind a password, and files that can be asked for in parts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER, SECRET = "someone", "s3cret-w0rd"
PIECE = 1 << 16


def wheel(name, members):
    """(file name, bytes) of a wheel of version 1.0 with these members."""
    module, content = name.replace("-", "_"), io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in {f"{module}/__init__.py": b"raise SystemExit('imported')", **members}.items():
            archive.writestr(member, data)
    return f"{module}-1.0-py3-none-any.whl", content.getvalue()


class Index:
    """Serves `wheels` (file name -> bytes). asked: (path, Range) of each request for a file. cut: break off after so many bytes, once.
    slow: seconds before each piece. digests: file name -> what the page says in place of the SHA-256. as_json: answers in JSON."""

    def __init__(self, wheels, *, cut=None, slow=0.0, digests=None, as_json=False, ranges=True):
        self.wheels, self.cut, self.slow, self.digests, self.as_json, self.ranges = wheels, cut, slow, digests or {}, as_json, ranges
        self.asked, self.refused = [], 0

    def page(self, package):
        links = {}
        for name, content in self.wheels.items():
            if name.partition("-")[0].replace("_", "-") == package:
                links[name] = self.digests.get(name, hashlib.sha256(content).hexdigest())
        if self.as_json:
            files = [{"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": digest}} for name, digest in links.items()]
            return "application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode()
        anchors = "".join(f'<a href="../../files/{name}#sha256={digest}">{name}</a>' for name, digest in links.items())
        return "text/html", f"<!DOCTYPE html><html><body>{anchors}</body></html>".encode()

    def __enter__(self):
        index = self
        expected = "Basic " + base64.b64encode(f"{USER}:{SECRET}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if self.headers.get("Authorization") != expected:
                    index.refused += 1
                    return self.send(401, b"")
                if self.path.startswith("/simple/"):
                    kind, body = index.page(self.path.split("/")[2])
                    return self.send(200, body, {"Content-Type": kind})
                name = self.path.rpartition("/")[2]
                if name not in index.wheels:
                    return self.send(404, b"")
                asked = self.headers.get("Range")
                index.asked.append((name, asked))
                content, begin = index.wheels[name], int(asked[6:-1]) if asked and index.ranges else 0
                if begin >= len(content):
                    return self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                where = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
                return self.send(206 if begin else 200, content[begin:], where, cut=True)

            def send(self, status, body, headers=None, cut=False):
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(key, value)
                self.end_headers()
                if cut and index.cut is not None:
                    body, index.cut, self.close_connection = body[: index.cut], None, True
                for start in range(0, len(body), PIECE):
                    time.sleep(index.slow if cut else 0)
                    self.wfile.write(body[start : start + PIECE])

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # a client that was killed

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://{USER}:{SECRET}@127.0.0.1:{self.server.server_port}/simple"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
