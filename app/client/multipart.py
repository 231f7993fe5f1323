"""Splits a multipart body (RFC 2046) while it is received."""

from __future__ import annotations

from collections.abc import Iterator

import httpx


class MultipartSplitter:
    """Splits a multipart body: yields the headers of each part, its bytes without delay, and None at its end."""

    def __init__(self, boundary: str) -> None:
        self._mark = b"\r\n--" + boundary.encode()
        self._buffer = bytearray(b"\r\n")  # the first boundary may be on the first line
        self._inside: bool | None = None  # whether in a part's body; None before the first part

    def feed(self, chunk: bytes) -> Iterator[httpx.Headers | bytes | None]:
        """Split a chunk of the body."""
        self._buffer += chunk
        while True:
            if self._inside is False:
                end = self._buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                lines = bytes(self._buffer[:end]).split(b"\r\n")
                del self._buffer[: end + 4]
                self._inside = True
                pairs = (line.partition(b":") for line in lines if b":" in line)
                yield httpx.Headers([(name, value.strip()) for name, _, value in pairs])
            at = self._buffer.find(self._mark)
            body = bytes(self._buffer[: at if at >= 0 else -len(self._mark)])
            if body and self._inside:
                yield body
            if at < 0:
                del self._buffer[: -len(self._mark)]
                return
            del self._buffer[: at + len(self._mark)]
            if self._inside:
                yield None
            self._inside = False
