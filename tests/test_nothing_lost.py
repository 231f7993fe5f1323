"""Images through the whole service and back: nothing is lost that the answer's format could hold."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools

import httpx
import numpy as np
import pytest
from PIL import Image

from app import codec
from app.codec import color, exif
from app.codec.ifd import copied_value, integer_value, pack_directory, pack_header, read_directory, read_layout
from model.checkpoints import load_network, write_pretrained
from model.degradations import resize_bicubic
from model.evaluate import psnr
from tests.conftest import SHARED
from tests.pictures import ORIENTED_EXIF, adobe_rgb, gray_profile, image, samples, saved, written
from tests.scripted import ScriptedUpscaler
from tests.server import SERVE, ServerProcess
from tests.service import running, scripted_app
from tests.test_codec_files import FILES
from tests.test_golden import FILES as GOLDEN
from tests.test_golden import Golden

FORMATS = [*codec.WRITABLE, "same"]
LIMITS = codec.DecodeLimits()
TEST_CARD = "g10n3p04.png"
"""One-pixel stripes of black and cyan in eight bits of linear light: no photo. ``small-x2`` never saw the like, WebP
halves its chroma, and an error of one level in a linear shadow is thirteen in sRGB. So it takes the authors' weights,
lossless WebP, and a comparison in the light it is stored in, which the answer shares.
"""


def as_seen(picture):
    """An image as a colour-managed viewer shows it, mixed with white as it is stored: (H,W,3) uint8 of sRGB."""
    full = 65535 if picture.deep else 255
    cover = 1 if picture.alpha is None else picture.alpha[:, :, None] / full
    mixed = np.rint(picture.pixels * cover + full * (1 - cover)).astype(picture.pixels.dtype)
    flat = dataclasses.replace(picture, pixels=mixed, alpha=None)
    shown = codec.encode(flat, codec.EncodeOptions("tiff", metadata="strip"))
    levels = codec.decode(shown.body, LIMITS).pixels
    return np.broadcast_to(np.uint8(levels >> 8) if picture.deep else levels, (*levels.shape[:2], 3))


def likeness(answer, seen, scale):
    """How near the answer, reduced by the scale, is to what is seen of the input: PSNR in dB."""
    reduced = Image.fromarray(np.ascontiguousarray(as_seen(answer))).reduce(scale)
    return psnr(np.asarray(reduced), seen)


def check_kept(response, before, options, scale=2):
    """The answer opens, and has the size, planes, depth, profile and orientation that its format can hold."""
    assert response.status_code == 200, response.text
    after = codec.decode(response.content, LIMITS)
    name = codec.output_format(options.get("format", "png"), before.format)
    format_ = codec.WRITABLE[name]
    assert after.format == name
    assert response.headers["content-type"] == format_.media_type
    assert (after.width, after.height) == (before.width * scale, before.height * scale)
    assert after.deep == (before.deep and format_.deep)
    assert (after.alpha is not None) == (before.alpha is not None and format_.alpha)
    one_plane = format_.gray and (before.alpha is None or format_.gray_alpha or not format_.alpha)
    assert after.gray == (before.gray and one_plane)
    described = [color.described_profile(each.metadata, gray=each.gray) for each in (before, after)]
    if before.gray == after.gray:
        assert described[0] == described[1]
    if before.metadata.exif is not None:
        assert exif.read_orientation(after.metadata.exif) == 1
    given_up = {
        "16 were reduced to 8": before.deep and not format_.deep,
        "no transparency": before.alpha is not None and not format_.alpha,
        "texts and comments": bool(before.metadata.texts) and name != "png",
    }
    notice = response.headers.get("x-swin2sr-notice", "")
    assert {what: what in notice for what in given_up} == given_up
    assert len(notice.split("; ")) >= sum(given_up.values())
    return after


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The real server with ``small-x2``, the authors' weights if at hand, and a tiny random one-channel network."""
    folder = tmp_path_factory.mktemp("models")
    if (SHARED / "checkpoints").is_dir():
        (folder / "lightweight").symlink_to(SHARED / "checkpoints" / "swin2SR-lightweight-x2-64")
    golden = Golden(next(file for file in GOLDEN if file.stem == "jpeg_gray"), tmp_path_factory.mktemp("golden"))
    write_pretrained(load_network(golden.weights), folder / "jpeg-gray")
    with (
        ServerProcess(fork=SERVE, variants="small-x2,jpeg-gray", model_dir=folder, device="cpu") as process,
        httpx.Client(base_url=process.url, timeout=240) as client,
    ):
        yield client


def ask(server, body, **options):
    return server.post("/v1/upscale", params=options, content=body, headers={"content-type": "image/png"})


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_odd_file_keeps_everything_through_a_network(server, shared, name):
    """Size, planes, depth, profile, EXIF; and the answer, reduced again, is the input to 30 dB or more."""
    body = (shared / "images" / name).read_bytes()
    before = codec.decode(body, LIMITS)
    variant = "lightweight" if name == TEST_CARD else "small-x2"
    after = check_kept(ask(server, body, variant=variant), before, {})
    assert (after.metadata.exif is None) == (before.metadata.exif is None)
    assert after.metadata.xmp == before.metadata.xmp
    if name == TEST_CARD:
        assert after.metadata.png_color == before.metadata.png_color
        after, before = (dataclasses.replace(each, metadata=codec.Metadata()) for each in (after, before))
    assert likeness(after, as_seen(before), 2) >= 30


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_every_odd_file_keeps_what_each_format_can_hold(shared, tmp_path, format_):
    """With a scripted upscaler in the network's place: 30 dB or more, colour managed, and a notice for all else."""
    for names, options in (
        ([name for name in FILES if name != TEST_CARD], {"format": format_}),
        ([TEST_CARD], {"format": format_, "quality": 100}),
    ):
        pictures = [given(shared / "images" / name) for name in names]
        check_all(tmp_path, pictures, options)


@functools.cache
def given(file):
    """A file, its picture, and what is seen of it."""
    body = file.read_bytes()
    return body, (before := codec.decode(body, LIMITS)), as_seen(before)


def check_all(folder, pictures, options):
    """Each answer is like its picture, and keeps what it can."""
    answers = scripted(folder, [body for body, _, _ in pictures], options)
    for (_, before, seen), response in zip(pictures, answers, strict=True):
        assert likeness(check_kept(response, before, options), seen, 2) >= 30


def scripted(folder, bodies, options):
    """Answers of a service that enlarges by repeating pixels."""
    app = scripted_app(folder, {"tile_size": 544, "tile_overlap": 64}, lightweight_x2=ScriptedUpscaler())

    async def exchange():
        async with running(app) as client:
            headers = {"content-type": "image/png"}
            return [await client.post("/v1/upscale", params=options, content=body, headers=headers) for body in bodies]

    return asyncio.run(exchange())


@functools.cache
def matrix(source):
    """Gray and colour, with alpha and without, in 8 and 16 bits, with a profile and without, upright and turned.

    Each as a file of this format, its picture, and what is seen of it.
    """
    found = []
    for channels, alpha, dtype, profile, turned in itertools.product(
        (1, 3), (False, True), (np.uint8, np.uint16), (False, True), (False, True)
    ):
        icc = (gray_profile(2.2) if channels == 1 else adobe_rgb()) if profile else None
        block = ORIENTED_EXIF if turned else None
        picture = image(channels, dtype, alpha=alpha, metadata=codec.Metadata(icc=icc, exif=block))
        body = oriented(written(picture, source), picture, source)
        before = codec.decode(body, LIMITS)
        found.append((body, before, as_seen(before)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", ["png", "tiff"])
@pytest.mark.parametrize("format_", FORMATS)
def test_every_kind_of_image_keeps_what_each_format_can_hold(tmp_path, source, format_):
    """Mode, depth, profile, orientation and format in every combination, and what is seen stays what it was."""
    pictures = matrix(source)
    check_all(tmp_path, pictures, {"format": format_})
    assert {(before.width, before.height) for _, before, _ in pictures} == {(56, 40), (40, 56)}


def oriented(body, picture, source):
    """A TIFF's own orientation, which its encoder never writes, where the picture's EXIF has one."""
    if source == "tiff" and picture.metadata.exif is not None:
        return tiff_with_orientation(body, 6)
    return body


def tiff_with_orientation(body, orientation):
    """A TIFF with one more tag in a new directory at its end."""
    layout, first = read_layout(body)
    directory = read_directory(body, layout, first)
    values = [copied_value(body, entry) for entry in directory.entries.values()]
    at = len(body) + len(body) % 2
    packed, position = pack_directory(layout, [*values, integer_value(layout, 0x0112, (orientation,))], at)
    return pack_header(layout, position) + body[8:] + bytes(len(body) % 2) + packed


def test_sixteen_bits_go_through_the_network_whole(server):
    """The answer's lower bytes take every value: no step used eight bits."""
    pixels = samples(64, 64, 3, np.uint16)
    response = ask(server, written(codec.Image(pixels)))
    after = codec.decode(response.content, LIMITS).pixels
    assert after.dtype == np.uint16
    assert len(np.unique(after & 0xFF)) == 256


def round_alpha(side):
    """A disc of transparency with smooth edges, as a designer cuts a person out."""
    across = np.arange(side) - side / 2 + 0.5
    distance = np.hypot(across[:, None], across) + 3 * np.sin(np.arctan2(across[:, None], across) * 9)
    return np.uint8(np.clip(side * 0.35 - distance, -0.5, 0.5) * 255 + 127.5)


def test_the_edges_of_transparency_are_sharper_than_resized_ones(server):
    """Nearer to the truth, by a decibel or more, than transparency that is enlarged beside the network."""
    truth = round_alpha(192)
    small = resize_bicubic(truth[:, :, None], 96, 96)
    body = written(codec.Image(samples(96, 96, 3), small[:, :, 0]))
    through = codec.decode(ask(server, body).content, LIMITS).alpha
    beside = np.asarray(Image.fromarray(small[:, :, 0]).resize((192, 192), Image.Resampling.BICUBIC))
    assert psnr(through, truth) >= psnr(beside, truth) + 1


def test_what_is_hidden_does_not_bleed_into_what_is_seen(server):
    """Whatever colour stands under full transparency, the answer is the same."""
    alpha = round_alpha(48)
    answers = []
    for hidden in ((0, 0, 0), (0, 255, 0)):
        pixels = np.where(alpha[:, :, None] > 0, np.uint8((200, 60, 40)), np.uint8(hidden))
        answers.append(codec.decode(ask(server, written(codec.Image(pixels, alpha))).content, LIMITS))
    assert np.array_equal(answers[0].pixels, answers[1].pixels)
    seen = answers[0].pixels[answers[0].alpha > 0]
    assert np.abs(seen.astype(int) - (200, 60, 40)).max() <= 5


def test_a_color_jpeg_keeps_its_chroma_through_the_gray_network(server):
    """The luma is restored, Cb and Cr stay what they were; transparency stays bit by bit at scale 1."""
    pixels = (samples(61, 75, 4) // 2 + 60).astype(np.uint8)
    body = written(codec.Image(pixels[:, :, :3], pixels[:, :, 3]))
    response = ask(server, body, variant="jpeg-gray")
    after = codec.decode(response.content, LIMITS)
    assert response.headers["x-swin2sr-scale"] == "1"
    before, restored = (np.asarray(Image.fromarray(each).convert("YCbCr")) for each in (pixels[:, :, :3], after.pixels))
    difference = np.abs(before.astype(int) - restored)
    assert difference[:, :, 0].max() > 3, "the network does something"
    assert difference[:, :, 1:].max() <= 1
    assert np.array_equal(after.alpha, pixels[:, :, 3])


@pytest.mark.parametrize(
    ("options", "size"),
    [({"width": 60}, (60, 43)), ({"height": 50}, (70, 50)), ({"factor": 1.5}, (84, 60)), ({"width": 112}, (112, 80))],
)
def test_requested_sizes_keep_colors_depth_and_transparency(server, options, size):
    """Reduced from the upscaled image, in 16 bits with alpha and a profile; the whole size is untouched."""
    picture = image(3, np.uint16, alpha=True, metadata=codec.Metadata(icc=adobe_rgb()))
    after = codec.decode(ask(server, written(picture), **options).content, LIMITS)
    assert (after.width, after.height) == size
    assert after.deep
    assert after.metadata.icc == adobe_rgb()
    whole = codec.decode(ask(server, written(picture)).content, LIMITS)
    reference = Image.fromarray(np.ascontiguousarray(as_seen(whole))).resize(size, Image.Resampling.LANCZOS)
    assert psnr(np.asarray(reference), as_seen(after)) >= 35


def test_the_ensemble_is_another_answer_to_the_same_question(server):
    """Near the single pass, and not equal to it."""
    body = written(image())
    one, eight = (
        codec.decode(ask(server, body, **query).content, LIMITS).pixels for query in ({}, {"ensemble": "true"})
    )
    assert not np.array_equal(one, eight)
    assert psnr(one, eight) >= 35


@pytest.mark.parametrize("format_", codec.WRITABLE)
def test_a_photo_of_a_phone_keeps_its_packets_through_the_service(server, exiftool, format_):
    """Place, date, maker's note, rating and profile are read in the answer by a second tool; the tag is reset."""
    from tests.test_codec_metadata import XMP, full_exif

    photo = Image.fromarray(samples(40, 56, 3))
    body = saved(photo, "JPEG", quality=95, exif=b"Exif\0\0" + full_exif(6), xmp=XMP, icc_profile=adobe_rgb())
    answer = ask(server, body, format=format_)
    facts = exiftool.read(answer.content)
    assert facts["IFD0:Make"] == "Maker"
    assert facts["ExifIFD:DateTimeOriginal"] == "2024:05:06 07:08:09"
    assert facts["Composite:GPSLatitude"] == pytest.approx(48.858333, abs=1e-5)
    assert facts["XMP-xmp:Rating"] == 4
    assert facts["XMP-tiff:Orientation"] == facts.get("IFD0:Orientation", 1) == 1
    assert (facts["ExifIFD:ExifImageWidth"], facts["ExifIFD:ExifImageHeight"]) == (80, 112)
    after = codec.decode(answer.content, LIMITS)
    assert (after.width, after.height) == (80, 112)
    assert after.metadata.icc == adobe_rgb()
