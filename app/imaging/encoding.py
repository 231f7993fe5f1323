"""Encodes a result, with the best quality that fits a number of bytes if one is given."""

from __future__ import annotations

from dataclasses import replace

from app import codec
from app.errors import OutputTooLarge


def encode(image: codec.Image, options: codec.EncodeOptions, max_bytes: int | None) -> tuple[codec.Encoded, int | None]:
    """Encode an image.

    Args:
        image: the result.
        options: format, quality and metadata.
        max_bytes: largest size of a lossy file; the quality is then the best that fits, at most that of the options.

    Returns:
        The file, and the quality that was chosen for ``max_bytes``, else None.

    Raises:
        OutputTooLarge: if quality 1 does not fit.
        codec.CodecError: as ``codec.encode``.
    """
    if max_bytes is None:
        return codec.encode(image, options), None
    best: tuple[codec.Encoded, int] | None = None
    smallest = 0
    fitting, exceeding = 0, options.quality + 1
    while exceeding - fitting > 1:
        quality = (fitting + exceeding) // 2
        encoded = codec.encode(image, replace(options, quality=quality))
        if len(encoded.body) <= max_bytes:
            best, fitting = (encoded, quality), quality
        else:
            smallest, exceeding = len(encoded.body), quality
    if best is None:
        raise OutputTooLarge(
            f"max_bytes={max_bytes} is too small: even quality 1 has {smallest} bytes. Use a smaller size, or allow "
            "more bytes.",
            limit=max_bytes,
            actual=smallest,
        )
    return best
