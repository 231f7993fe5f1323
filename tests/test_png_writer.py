"""PNG files written by the service: exact, filtered in C, and no larger than libpng's."""

import io
import zlib

import imagecodecs
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from app.codec import png_writer
from tests.networks import needs_kernel


def libpng(samples, level=1):
    """The file that libpng and zlib make with the same filter at the same level."""
    return bytes(imagecodecs.png_encode(samples, level=level, filter=imagecodecs.PNG.FILTER.PAETH))


def inflated(file):
    """The filtered rows of a file with one IDAT chunk or several."""
    content, at = b"", 8
    while at < len(file):
        length, kind = int.from_bytes(file[at : at + 4], "big"), file[at + 4 : at + 8]
        content += file[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return zlib.decompress(content)


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 70),
    channels=st.integers(1, 4),
    deep=st.booleans(),
    smooth=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_form_is_libpng_s(*, height, width, channels, deep, smooth, seed):
    """Any size, number of channels, depth and memory layout: the same filtered bytes, and unchanged samples."""
    kind = np.uint16 if deep else np.uint8
    values = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (height, width, channels), endpoint=True)
    samples = (np.cumsum(values % 5, 1) if smooth else values).astype(kind)
    for laid in (samples, np.asfortranarray(samples), np.repeat(samples, 2, 1)[:, ::2]):
        plain = laid[:, :, 0] if channels == 1 else laid
        file = png_writer.encode(plain, 1)
        if min(height, width) > 1:  # libpng filters neither a single row nor a single column
            assert inflated(file) == inflated(libpng(np.ascontiguousarray(plain)))
        assert np.array_equal(imagecodecs.png_decode(file).reshape(samples.shape), samples)
        Image.open(io.BytesIO(file)).load()


def drawing(kind, side=512):
    """One of ten drawn graphics: text, charts, lines, gradients, an interface."""
    picture = Image.new("RGB", (side, side), "white")
    draw, random = ImageDraw.Draw(picture), np.random.default_rng(kind)

    def color():
        return tuple(int(value) for value in random.integers(0, 256, 3))

    def point():
        return tuple(int(value) for value in random.integers(0, side, 2))

    for index in range(24):
        low = 20 * index
        match kind:
            case 0:
                draw.text(
                    (8, low), "".join(chr(97 + int(letter)) for letter in random.integers(0, 26, 80)), fill="black"
                )
            case 1:
                draw.rectangle((low, side - int(random.integers(9, side)), low + 15, side), fill=color())
            case 2:
                draw.ellipse((*(center := point()), center[0] + 60, center[1] + 40), fill=color(), outline="black")
            case 3:
                draw.line((0, low, side, side - low), fill=color(), width=2)
            case 4:
                draw.rectangle((low, 0, low + 20, side), fill=(10 * index, 255 - 10 * index, 128))
            case 5:
                draw.rectangle(
                    (low, low // 2, low + 10, side - low // 2), fill=(0, 0, 0) if index % 2 else (255, 255, 255)
                )
            case 6:
                draw.rounded_rectangle(
                    (9, low + 2, side - 9, low + 18), 5, fill=(240, 240, 245), outline=(200, 200, 210)
                )
                draw.text((16, low + 4), f"Row {index}: {color()}", fill=(30, 30, 30))
            case 7:
                draw.line([(x, int(250 + 9 * index * np.sin(x / (20 + index)))) for x in range(side)], fill=color())
            case 8:
                draw.polygon([point() for _ in range(3)], fill=color())
            case 9:
                draw.arc((low // 2, low // 2, side - low // 2, side - low // 2), 0, 300, fill=color(), width=4)
    return np.asarray(picture)


@needs_kernel
def test_drawn_graphics_are_no_larger_than_before():
    """Ten graphics together are smaller than libpng made them; none is more than a twentieth larger."""
    sizes = [(len(png_writer.encode(pixels, 1)), len(libpng(pixels))) for pixels in map(drawing, range(10))]
    assert sum(here for here, _ in sizes) < sum(before for _, before in sizes)
    assert all(here < 1.05 * before for here, before in sizes)


@needs_kernel
def test_large_images_are_written_part_by_part(monkeypatch):
    """Parts of one row, of a few and of all: the same rows, whether the image is a drawing or not."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 29, 3), np.uint8)
    for pixels in (drawing(2, 64), noise, noise.astype(np.uint16) * 257):
        wanted = inflated(png_writer.encode(pixels, 1))
        for size in (1, 10 * pixels[0].nbytes, pixels.nbytes):
            with monkeypatch.context() as patch:
                patch.setattr(png_writer, "PART_BYTES", size)
                file = png_writer.encode(pixels, 1)
                assert inflated(file) == wanted
                assert np.array_equal(imagecodecs.png_decode(file), pixels)


@needs_kernel
def test_other_levels_differ_in_size_alone():
    """A higher level makes a smaller file of the same rows; level 0 does not compress."""
    pixels = drawing(4, 128)
    files = [png_writer.encode(pixels, level) for level in (0, 1, 6, 9)]
    assert len({inflated(file) for file in files}) == 1
    assert len(files[0]) > pixels.nbytes > len(files[1]) >= len(files[2]) >= len(files[3])


def test_large_images_of_other_levels_and_missing_kernels_take_libpng(monkeypatch):
    """Only level 1 is written in parts here; an installation without a compiler writes PNG too."""
    pixels = drawing(2, 64)
    with monkeypatch.context() as patch:
        patch.setattr(png_writer, "PART_BYTES", pixels.nbytes)
        assert png_writer.encode(pixels, 6) == libpng(pixels, 6)
    monkeypatch.setattr(png_writer, "load_kernel", lambda: None)
    assert png_writer.encode(pixels, 1) == libpng(pixels)
