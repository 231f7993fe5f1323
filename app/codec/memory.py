"""Peak memory of decoders and encoders, for admission before an image is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DECODE_FACTORS: Mapping[str, float] = MappingProxyType(
    {
        "png": 4.2,
        "jpeg": 4.0,
        "webp": 6.5,
        "tiff": 4.5,
        "avif": 2.5,
        "bmp": 7.0,
        "gif": 4.0,
        "heif": 3.5,
        "jxl": 3.0,
    }
)
"""Bytes at the peak of ``decode`` for each byte of ``Header.decoded_bytes``, the decoded planes included.

Measured as the growth of the peak of resident memory on smooth colours of 9 megapixels, 8 bits: PNG 1.7, gray with
alpha 4.0, JPEG 3.4, progressive 3.8, WebP 6.1, lossless 6.4, TIFF 4.1, AVIF 1.8, GIF 3.9, HEIF 3.0, JPEG XL 2.1; BMP
1.0, and for bit masks what their arithmetic takes.
"""

ENCODE_FACTORS: Mapping[str, float] = MappingProxyType(
    {"png": 2.2, "jpeg": 2.7, "webp": 11.0, "tiff": 2.3, "avif": 16.0, "jxl": 16.0}
)
"""Bytes at the peak of ``encode`` for each byte of the planes, which are not included; the file is.

Measured on noise, the worst input. JPEG XL 13.9 on smooth colours.
"""

LOSSLESS_WEBP_FACTOR = 13.5
"""The same for WebP of quality 100."""
