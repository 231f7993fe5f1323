"""A hub and a release on loopback that send files slowly, in pieces, or wrong, as a test specifies.

It answers as huggingface.co and github.com do: the hub describes a file of weights in the headers of a redirect to
another host, where the bytes are; the release redirects too.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote

from tests.scripted import Gate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Faults:
    """A fault of one response with bytes.

    Attributes:
        status: sent instead of the file.
        stop_after: bytes after which the connection is cut.
        gate: passed after ``stop_after`` bytes, instead of cutting the connection.
        content: sent instead of the file's bytes, with its length.
        ranges: whether ranges are supported.
        shift: bytes by which the sent range begins after the requested one.
    """

    status: int = 200
    stop_after: int | None = None
    gate: Gate | None = None
    content: bytes | None = None
    ranges: bool = True
    shift: int = 0


@dataclass(frozen=True)
class Asked:
    """A request for bytes, or for what a file is."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class LoopbackHub:
    """Serves while a ``with`` block lasts.

    Attributes:
        files: content by path: ``owner/name/file`` of the hub, ``release/file`` of the release.
        faults: faults of the next responses with bytes, by path, one after the other; later ones have none.
        statuses: sent for every request of a path, instead of the file.
        asked: every request.
        etags: whether bytes are sent with an ETag.
    """

    files: dict[str, bytes]
    faults: dict[str, deque[Faults]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    etags: bool = True

    def __enter__(self) -> Self:
        """Listen on a free port."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Of the hub."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def release_url(self) -> str:
        """Of the release's files."""
        return f"{self.url}/release"

    def misbehave(self, path: str, *faults: Faults) -> None:
        """What the next answers with bytes of a path are like."""
        self.faults[path] = deque(faults)

    def ranges(self, path: str) -> list[str | None]:
        """The ranges that were asked for, of a path's bytes, in order."""
        return [each.range for each in self.asked if each.path == f"bytes/{path}"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Ignore clients that disconnect in the middle of a response."""


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def log_message(self, *_arguments):
        """Nothing: pytest shows what matters."""

    def answer(self):
        path = unquote(self.path).strip("/")
        names = ("Range", "Authorization")
        self.hub.asked.append(Asked(self.command, path, *(self.headers.get(name) for name in names)))
        if path.startswith("bytes/"):
            self.give(path.removeprefix("bytes/"))
        elif path.startswith("release/"):
            self.lead_to_bytes(path, {})
        else:
            self.describe(path.replace("/resolve/main/", "/"))

    def describe(self, path):
        """As a hub does: a large file lies elsewhere and is known by its SHA-256, a small one is answered here."""
        content = self.hub.files.get(path, b"")
        headers = {"X-Repo-Commit": COMMIT}
        if path.endswith(".json"):
            if not self.refuse(path):
                git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self.say(200, {**headers, "ETag": f'"{git}"'}, content)
            return
        digest = hashlib.sha256(content).hexdigest()
        self.lead_to_bytes(path, {**headers, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))})

    def lead_to_bytes(self, path, headers):
        if not self.refuse(path):
            self.say(302, {**headers, "Location": f"http://localhost:{self.hub.port}/bytes/{path}"}, b"")

    def refuse(self, path):
        """Answer that there is no such file, or what else the test wants."""
        known = path in self.hub.files
        status = self.hub.statuses.get(path, 200 if known else 404)
        if status != 200:
            code = {"X-Error-Code": "EntryNotFound"} if status == 404 and not path.startswith("release/") else {}
            self.say(status, code, b"")
        return status != 200

    def give(self, path):
        queue = self.hub.faults.get(path)
        faults = queue.popleft() if queue else Faults()
        if faults.status != 200:
            self.say(faults.status, {}, b"")
            return
        content = self.hub.files[path] if faults.content is None else faults.content
        etag = f'"{hashlib.md5(content).hexdigest()}.0"'
        headers = {"ETag": etag} if self.hub.etags else {}
        byte_range = self.headers.get("Range")
        if byte_range and faults.ranges and self.headers.get("If-Range") == etag:
            start = int(byte_range.removeprefix("bytes=").removesuffix("-")) + faults.shift
            if start >= len(content):
                self.say(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.say(206, headers, content[start:], faults)
        else:
            self.say(200, headers, content, faults)

    def say(self, status, headers, content, faults=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = faults.stop_after if faults and faults.stop_after is not None else len(content)
        self.wfile.write(content[:stop])
        self.wfile.flush()
        if stop < len(content):
            if faults.gate is None:
                self.close_connection = True
                return
            faults.gate.pass_through()
            self.wfile.write(content[stop:])
