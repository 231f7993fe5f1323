"""What the header of a file says, and that it is parsed once."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from app import codec
from app.codec import errors as codec_errors
from app.errors import ImageTooLarge, InvalidImage, InvalidOption, OutputTooLarge, UnsupportedFormat
from app.imaging.refusals import codec_errors_as_refusals
from tests.pictures import LIMITS, ORIENTED_EXIF, image, photograph, png_with, saved, written

FILES = {
    "png gray": (lambda: written(image(1)), ("gray", 8, False, 1)),
    "png deep alpha": (lambda: written(image(dtype=np.uint16, alpha=True)), ("color", 16, True, 1)),
    "png palette": (lambda: saved(photograph().quantize(9), "PNG"), ("palette", 4, False, 1)),
    "png key": (lambda: png_with(written(image()), (b"tRNS", bytes(6))), ("color", 8, True, 1)),
    "png turned": (lambda: saved(photograph(), "PNG", exif=ORIENTED_EXIF), ("color", 8, False, 6)),
    "jpeg turned": (lambda: saved(photograph(), "JPEG", exif=b"Exif\0\0" + ORIENTED_EXIF), ("color", 8, False, 6)),
    "jpeg gray": (lambda: saved(photograph("L"), "JPEG"), ("gray", 8, False, 1)),
    "jpeg cmyk": (lambda: saved(photograph("CMYK"), "JPEG"), ("cmyk", 8, False, 1)),
    "webp turned": (lambda: saved(photograph(), "WEBP", exif=ORIENTED_EXIF), ("color", 8, False, 6)),
    "webp alpha": (lambda: saved(photograph("RGBA"), "WEBP", lossless=True), ("color", 8, True, 1)),
    "tiff turned": (lambda: saved(photograph("RGBA"), "TIFF", tiffinfo={0x0112: 8}), ("color", 8, True, 8)),
    "avif": (lambda: saved(photograph("RGBA"), "AVIF"), ("color", 8, True, 1)),
    "bmp": (lambda: saved(photograph(), "BMP"), ("color", 8, False, 1)),
    "gif": (lambda: saved(photograph().quantize(9), "GIF", transparency=2), ("palette", 8, True, 1)),
}


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_what_decoding_returns(name):
    """Mode, bits, alpha and orientation are those of the decoded image; so are its upright sides and its bytes."""
    make, expected = FILES[name]
    body = make()
    header = codec.read_header(body, LIMITS)
    decoded = codec.decode(body, LIMITS, header)
    assert (header.mode, header.bits, header.alpha, header.orientation) == expected
    assert (header.upright_width, header.upright_height) == (decoded.width, decoded.height)
    assert header.alpha == (decoded.alpha is not None)
    assert decoded.deep == (header.bits > 8)
    if header.mode != "palette":
        assert header.channels == decoded.pixels.shape[2]
        alpha_bytes = 0 if decoded.alpha is None else decoded.alpha.nbytes
        assert header.decoded_bytes == decoded.pixels.nbytes + alpha_bytes


@pytest.mark.parametrize("name", FILES)
def test_a_header_that_is_passed_on_is_not_parsed_again(name, monkeypatch):
    """``decode`` with the header neither looks at the signature nor calls the format's parser."""
    body = FILES[name][0]()
    header = codec.read_header(body, LIMITS)

    def never(*_):
        raise AssertionError("parsed again")

    monkeypatch.setattr(sys.modules["app.codec.decode"], "read_header", never)
    decoded = codec.decode(body, LIMITS, header)
    assert (decoded.width, decoded.height) == (header.upright_width, header.upright_height)


@pytest.mark.parametrize("quality", [5, 20, 40, 50, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_estimated(quality):
    """Within a step of libjpeg's setting."""
    header = codec.read_header(saved(photograph(), "JPEG", quality=quality), LIMITS)
    assert header.quality == pytest.approx(quality, abs=1)


@pytest.mark.parametrize("quality", [5, 20, 40, 60, 75, 90])
def test_the_quality_of_a_webp_is_estimated(quality):
    """Within eight steps of libwebp's setting, whose segments modulate it; lossless files have none."""
    header = codec.read_header(saved(photograph().resize((256, 256)), "WEBP", quality=quality), LIMITS)
    assert header.quality == pytest.approx(quality, abs=8)
    assert codec.read_header(saved(photograph(), "WEBP", lossless=True), LIMITS).quality is None


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (codec.BrokenImage("x"), InvalidImage),
        (codec.UnsupportedImage("x", frames=2), UnsupportedFormat),
        (codec.TooLarge("x", limit=1, actual=2), ImageTooLarge),
        (codec.TooLargeForFormat("x", limit=1, actual=2), OutputTooLarge),
        (codec.InvalidEncodeOption("x"), InvalidOption),
    ],
)
def test_errors_of_the_codec_become_refusals_with_their_facts(error, refusal):
    """Each has one error of the service's, with the same sentence and the same facts."""
    with pytest.raises(refusal) as caught, codec_errors_as_refusals():
        raise error
    assert type(caught.value) is refusal
    assert caught.value.detail == "x"
    assert caught.value.facts == error.facts


def test_every_error_of_the_codec_has_a_refusal():
    """A new error cannot be forgotten."""
    for name in dir(codec_errors):
        kind = getattr(codec_errors, name)
        if isinstance(kind, type) and issubclass(kind, codec.CodecError) and kind is not codec.CodecError:
            with pytest.raises(Exception, match="x") as caught, codec_errors_as_refusals():
                raise kind("x")
            assert caught.type.__module__ == "app.errors"


def test_the_codec_imports_nothing_else_of_the_application():
    """It can be used alone."""
    program = "import sys, app.codec; print(sorted(n for n in sys.modules if n.startswith(('app.', 'model'))))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = run.stdout.strip("[]\n").replace("'", "").split(", ")
    assert all(name.startswith(("app.codec", "model.kernels")) or name == "model" for name in names), names


def test_orientation_six_swaps_the_sides():
    """The plan's sizes come from the header, so they are those of the upright image."""
    stream = BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "JPEG", exif=b"Exif\0\0" + ORIENTED_EXIF)
    header = codec.read_header(stream.getvalue(), LIMITS)
    assert (header.width, header.height, header.upright_width, header.upright_height) == (30, 20, 20, 30)


def test_every_format_has_its_memory_factors():
    """Admission can ask for each format that is read or written."""
    assert set(codec.DECODE_FACTORS) == set(codec.READABLE)
    assert set(codec.ENCODE_FACTORS) == set(codec.WRITABLE)
    assert min(*codec.DECODE_FACTORS.values(), *codec.ENCODE_FACTORS.values()) >= 2
