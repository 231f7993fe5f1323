"""The errors of the codec. ``app.imaging.refusals`` turns them into the service's errors."""
# ruff: noqa: N818 - the names say what is wrong with the file

from __future__ import annotations

from typing import Any


class CodecError(Exception):
    """A file cannot be read, or an image cannot be written.

    Args:
        detail: what is wrong and what to do, one or two sentences.
        facts: values for programs, such as ``limit`` and ``actual``; JSON values.
    """

    def __init__(self, detail: str, **facts: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts: dict[str, Any] = facts


class BrokenImage(CodecError):
    """The file is damaged, or some of its pixel data is missing."""


class UnsupportedImage(CodecError):
    """The file is valid, but its format or kind is not supported."""


class TooLarge(CodecError):
    """The image has more pixels than are accepted; with the fields ``limit`` and ``actual``."""


class TooLargeForFormat(TooLarge):
    """The output format cannot hold the image; with the fields ``limit`` and ``actual``, pixels a side or in all."""


class InvalidEncodeOption(CodecError):
    """An option of ``EncodeOptions`` has an invalid value."""
