"""Reads and writes image files, with their metadata.

``read_header`` refuses files that are too large, animated or unknown, before anything is decoded. ``decode`` returns an
upright image with its metadata. ``check_output`` refuses results that a format cannot hold. ``encode`` writes a file,
and reports in notices what the format could not hold.
"""

from app.codec.decode import decode, read_header
from app.codec.encode import encode
from app.codec.errors import (
    BrokenImage,
    CodecError,
    InvalidEncodeOption,
    TooLarge,
    TooLargeForFormat,
    UnsupportedImage,
)
from app.codec.formats import LOSSY, READABLE, WRITABLE, Format, check_output, output_format, sniff
from app.codec.image import DecodeLimits, Encoded, EncodeOptions, Header, Image, Metadata, Pixels, Resolution
from app.codec.memory import DECODE_FACTORS, ENCODE_FACTORS, LOSSLESS_WEBP_FACTOR
from app.codec.planes import fill_transparent

__all__ = [
    "DECODE_FACTORS",
    "ENCODE_FACTORS",
    "LOSSLESS_WEBP_FACTOR",
    "LOSSY",
    "READABLE",
    "WRITABLE",
    "BrokenImage",
    "CodecError",
    "DecodeLimits",
    "EncodeOptions",
    "Encoded",
    "Format",
    "Header",
    "Image",
    "InvalidEncodeOption",
    "Metadata",
    "Pixels",
    "Resolution",
    "TooLarge",
    "TooLargeForFormat",
    "UnsupportedImage",
    "check_output",
    "decode",
    "encode",
    "fill_transparent",
    "output_format",
    "read_header",
    "sniff",
]
