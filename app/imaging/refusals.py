"""Turns the codec's errors into the service's errors, which have an HTTP status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from app.codec import errors as codec_errors
from app.errors import ImageTooLarge, InvalidImage, InvalidOption, OutputTooLarge, RequestError, UnsupportedFormat

_SERVICE_ERRORS: Mapping[type[codec_errors.CodecError], type[RequestError]] = MappingProxyType(
    {
        codec_errors.BrokenImage: InvalidImage,
        codec_errors.UnsupportedImage: UnsupportedFormat,
        codec_errors.TooLarge: ImageTooLarge,
        codec_errors.TooLargeForFormat: OutputTooLarge,
        codec_errors.InvalidEncodeOption: InvalidOption,
    }
)


@contextmanager
def codec_errors_as_refusals(hint: str = "") -> Iterator[None]:
    """Raise an error of the codec as the service's error of the same meaning.

    Args:
        hint: appended if the image cannot be read, or seems too large, as a damaged one may.
    """
    try:
        yield
    except codec_errors.CodecError as error:
        unread = isinstance(error, codec_errors.BrokenImage | codec_errors.UnsupportedImage | codec_errors.TooLarge)
        raise _SERVICE_ERRORS[type(error)](error.detail + (hint if unread else ""), **error.facts) from error
