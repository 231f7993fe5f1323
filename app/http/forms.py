"""A multipart form with one file and text fields, parsed as it arrives."""

from __future__ import annotations

from dataclasses import dataclass, field
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import InvalidUpload

PART = "file"
"""Name of the part that holds the image."""

LONGEST_NAME = 255
MOST_PARTS = 64
LONGEST_FIELD = 4096
"""Bytes of the longest text field."""

MOST_HEADER_BYTES = 16 * 1024
"""Bytes of all headers of a part."""


@dataclass
class Form:
    """The parser of one form.

    Args:
        boundary: between the parts.

    Attributes:
        body, filename: of the one file.
        fields: names and values of the text fields, in order.

    Raises:
        InvalidUpload: if the boundary is missing or malformed.
    """

    boundary: bytes
    body: bytearray = field(default_factory=bytearray)
    filename: str = ""
    fields: list[tuple[str, str]] = field(default_factory=list)
    _files: int = 0
    _parts: int = 0
    _ended: bool = False
    _text: bytearray | None = None
    _part: str = ""
    _name: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _header_bytes: int = 0
    _disposition: bytes = b""
    _preamble: bytes | None = b""

    def __post_init__(self) -> None:
        if not self.boundary:
            raise InvalidUpload("The multipart body has no boundary in its Content-Type.")
        try:
            self._parser = MultipartParser(
                self.boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._take_name,
                    "on_header_value": self._take_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._take_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise InvalidUpload("The multipart boundary is malformed.") from error

    def write(self, chunk: bytes) -> None:
        """Parse a chunk.

        Raises:
            InvalidUpload: if it is malformed, or has parts that are not supported.
        """
        if self._ended:
            return  # an epilogue
        if self._preamble is not None:
            chunk = self._skip_preamble(chunk)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidUpload("The multipart body is malformed.") from error

    def finish(self) -> None:
        """Check that the form is complete.

        Raises:
            InvalidUpload: if it ended early, or has no file.
        """
        if not self._ended:
            raise InvalidUpload("The multipart body ends before its closing boundary.")
        if not self._files:
            raise InvalidUpload(f"The multipart body has no part named {PART!r}.")

    def _skip_preamble(self, chunk: bytes) -> bytes:
        """Drop the text before the first boundary, and return the rest."""
        seen = (self._preamble or b"") + chunk
        opening = b"--" + self.boundary
        at = 0 if seen.startswith(opening) else seen.find(b"\r\n" + opening) + 2
        if at >= 2 or seen.startswith(opening):
            self._preamble = None
            return seen[at:]
        is_start = opening.startswith(seen)
        self._preamble = seen if is_start else seen[-len(opening) - 1 :]
        return b""

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidUpload(f"The multipart body has more than {MOST_PARTS} parts. Send one image per request.")
        self._disposition = b""
        self._header_bytes = 0

    def _take_name(self, chunk: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._name += chunk[start:end]

    def _take_value(self, chunk: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._value += chunk[start:end]

    def _count_header(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > MOST_HEADER_BYTES:
            raise InvalidUpload(f"A part of the multipart body has more than {MOST_HEADER_BYTES} bytes of headers.")

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != PART:
            if b"filename" in self._disposition or not name:
                part = f"a file {name[:50]!r}" if name else "a part without a name"
                raise InvalidUpload(f"The multipart body has {part}. Send the image as {PART!r}.")
            self._part, self._text = name[:LONGEST_NAME], bytearray()
            return
        self._text = None
        self._files += 1
        if self._files > 1:
            raise InvalidUpload(f"The multipart body has more than one part {PART!r}. Send one image per request.")
        plain = options.get(b"filename", b"").decode("utf-8", "replace")[:LONGEST_NAME]
        self.filename = file_name(self._disposition.decode("latin-1")) if b"filename*" in self._disposition else plain

    def _take_data(self, chunk: bytes, start: int, end: int) -> None:
        if self._text is None:
            self.body += chunk[start:end]
            return
        self._text += chunk[start:end]
        if len(self._text) > LONGEST_FIELD:
            raise InvalidUpload(f"The field {self._part[:50]!r} has more than {LONGEST_FIELD} bytes.")

    def _end_part(self) -> None:
        if self._text is not None:
            self.fields.append((self._part, self._text.decode("utf-8", "replace")))
            self._text = None

    def _end(self) -> None:
        self._ended = True


def file_name(header: str) -> str:
    """The file name in a ``Content-Disposition`` header, including ``filename*``; empty if there is none."""
    message = Message()
    message["Content-Disposition"] = header.encode("latin-1", "replace").decode("utf-8", "replace")
    return (message.get_filename() or "")[:LONGEST_NAME]
