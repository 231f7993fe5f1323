"""Converts comments of JPEG and GIF to text chunks of PNG, the internal form of texts, and back."""

from __future__ import annotations

Text = tuple[bytes, bytes]
"""Type and content of a PNG's text chunk."""

_COMMENT = b"Comment\0"
_PLAIN_LANGUAGE = b"\0\0\0\0"


def comment_text(comment: bytes) -> Text:
    """The text chunk that holds a comment: UTF-8 as iTXt, anything else as tEXt, which is Latin-1."""
    comment = comment.rstrip(b"\0").replace(b"\0", b" ")
    try:
        comment.decode("utf-8")
    except UnicodeDecodeError:
        return b"tEXt", _COMMENT + comment
    if comment.isascii():
        return b"tEXt", _COMMENT + comment
    return b"iTXt", _COMMENT + _PLAIN_LANGUAGE + comment


def comment_of(text: Text) -> bytes | None:
    """The comment in a text chunk; None if the chunk is not a comment or cannot be represented."""
    kind, content = text
    prefix = {b"tEXt": _COMMENT, b"iTXt": _COMMENT + _PLAIN_LANGUAGE}.get(kind)
    return content[len(prefix) :] if prefix is not None and content.startswith(prefix) else None
