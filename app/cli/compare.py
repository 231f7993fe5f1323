"""HTML pages that compare an image before and after upscaling, for ``swin2sr upscale --compare``."""

from __future__ import annotations

import base64
import html
from string import Template

from app.errors import InvalidImage

_DISPLAYABLE = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; background: #16181d; color: #f2f3f5; }
header { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; padding: .75rem 1rem; }
h1 { font-size: 1rem; margin: 0; flex: 1; }
main { overflow: auto; }
figure { position: relative; margin: 0 auto; width: max-content; max-width: 100%; }
figure.whole { max-width: none; }
img { display: block; max-width: 100%; }
.whole img { max-width: none; }
#before { position: absolute; inset: 0; width: 100%; height: 100%; }
#before { clip-path: inset(0 calc(100% - var(--at, 50%)) 0 0); }
figure::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--at, 50%); border-left: 2px solid #fff; }
input { position: sticky; left: 0; display: block; width: 100%; margin: 0; height: 2.5rem; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<label><input id="whole" type="checkbox" style="display:inline;width:auto;height:auto"> Actual size</label>
</header>
<main>
<input id="at" type="range" min="0" max="100" step="0.1" value="50" aria-label="Before/after position">
<figure id="figure">
<img id="after" src="$after" alt="After">
<img id="before" src="$before" alt="Before">
</figure>
</main>
<script>
const figure = document.getElementById("figure"), at = document.getElementById("at");
at.addEventListener("input", () => figure.style.setProperty("--at", at.value + "%"));
const whole = document.getElementById("whole");
whole.addEventListener("change", () => figure.classList.toggle("whole", whole.checked));
figure.addEventListener("pointermove", (event) => {
  const box = figure.getBoundingClientRect();
  at.value = 100 * (event.clientX - box.left) / box.width;
  figure.style.setProperty("--at", at.value + "%");
});
</script>
</body>
</html>
""")


def build_page(title: str, before: bytes, after: bytes) -> str:
    """Build a page with a slider between two images. It contains both images, so that it can be moved and sent.

    Args:
        title: name of the image, as plain text.
        before, after: encoded images. One in a format that browsers do not display is converted to PNG.

    Raises:
        InvalidImage: if such an image cannot be converted.
    """
    return _PAGE.substitute(title=html.escape(title), before=_data_url(before), after=_data_url(after))


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
