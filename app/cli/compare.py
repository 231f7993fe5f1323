"""HTML pages that compare an image before and after upscaling, for ``swin2sr upscale --compare``."""

from __future__ import annotations

import base64
import html
from importlib.resources import files
from string import Template

from app.errors import InvalidImage

_DISPLAYABLE = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}


def build_page(title: str, before: bytes, after: bytes) -> str:
    """Build a page with a slider between two images. It contains both images, so that it can be moved and sent.

    Args:
        title: name of the image, as plain text.
        before, after: encoded images. One in a format that browsers do not display is converted to PNG.

    Raises:
        InvalidImage: if such an image cannot be converted.
    """
    page = Template(files("app").joinpath("cli/compare.html").read_text("utf-8"))
    return page.substitute(title=html.escape(title), before=_data_url(before), after=_data_url(after))


def _data_url(body: bytes) -> str:
    media_type = _media_type(body)
    if media_type is None:
        from app import codec  # noqa: PLC0415 - seldom needed

        try:
            body = codec.encode(
                codec.decode(body, codec.DecodeLimits(max_pixels=2**31)), codec.EncodeOptions(format="png")
            ).body
        except codec.CodecError as error:
            raise InvalidImage(f"The comparison page was not written: {error}") from error
        media_type = "image/png"
    return f"data:{media_type};base64,{base64.b64encode(body).decode('ascii')}"


def _media_type(body: bytes) -> str | None:
    """The media type of an image that browsers display; None for others, such as TIFF and HEIC."""
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "image/webp"
    if body[4:8] == b"ftyp" and body[8:12] in (b"avif", b"avis"):
        return "image/avif"
    return next((kind for start, kind in _DISPLAYABLE.items() if body.startswith(start)), None)
