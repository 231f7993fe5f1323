"""Size, blending, restoring and max_bytes through HTTP, with scripted upscalers: each option and its refusals."""

from __future__ import annotations

import asyncio
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from app.main import create_app
from app.settings import Settings
from tests.scripted import ScriptedUpscaler
from tests.service import SMALL, enlarged, noise, pixels_of, png, running

SCALES = {"small-compressed-x4": 4, "small-x2": 2, "small-x4": 4, "small-jpeg": 1}
PHOTO = noise(20, 30)


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture
def ask():
    """Sends one request to a service with embedded variants, whose networks repeat pixels."""

    def send(body=None, *, variants="x2,x4,jpeg-restore", settings=None, **options) -> httpx.Response:
        chosen = Settings(**{**SMALL, "variants": variants, "device": "cpu", **(settings or {})})
        app = create_app(chosen, load=lambda name, _path: ScriptedUpscaler(SCALES[name]))

        async def exchange():
            async with running(app) as client:
                await app.state.service.boot(lambda: None)
                files = {"file": png(PHOTO) if body is None else body}
                return await client.post("/v1/upscale", params={"variant": "small-x2", **options}, files=files)

        return asyncio.run(exchange())

    return send


def size_of(response):
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content)).size


@pytest.mark.parametrize(
    ("options", "size", "steps"),
    [
        ({}, (60, 40), "small-x2"),
        ({"width": 60}, (60, 40), "small-x2"),
        ({"width": 45}, (45, 30), "small-x2; resize 45x30"),
        ({"height": 10}, (15, 10), "small-x2; resize 15x10"),
        ({"width": 100, "height": 50}, (75, 50), "small-x2; small-x2; resize 75x50"),
        ({"width": 50, "height": 50, "fit": "cover"}, (50, 50), "small-x2; small-x2; resize 50x50"),
        ({"width": 50, "height": 20, "fit": "exact"}, (50, 20), "small-x2; resize 50x20"),
        ({"factor": 4}, (120, 80), "small-x2; small-x2"),
        ({"factor": 4, "variant": "x2"}, (120, 80), "small-x4"),
        ({"factor": 3, "variant": "x4"}, (90, 60), "small-x4; resize 90x60"),
        ({"factor": 16, "variant": "x2"}, (480, 320), "small-x4; small-x4"),
        ({"factor": 2, "variant": "small-jpeg"}, (60, 40), "small-jpeg; small-x2"),
        ({"megapixels": 0.006}, (95, 63), "small-x2; small-x2; resize 95x63"),
        ({"width": 1000, "enlarge": "true"}, (1000, 667), "small-x2; small-x4; small-x4; resize 1000x667"),
    ],
)
def test_each_size_is_reached_by_passes_and_a_resize(ask, options, size, steps):
    """The response has the size, and the header names what was done."""
    response = ask(**{"restore": "never", **options})
    assert size_of(response) == size
    assert response.headers["x-swin2sr-steps"] == steps


def test_several_passes_compute_the_image_again(ask):
    """The second pass sees the first one's result; tiles and scale are in the headers."""
    response = ask(factor=4)
    np.testing.assert_array_equal(pixels_of(response.content), enlarged(PHOTO, 4))
    assert response.headers["x-swin2sr-variant"] == "small-x2"
    assert (response.headers["x-swin2sr-scale"], response.headers["x-swin2sr-tiles"]) == ("2", "2")


def test_an_alpha_plane_goes_through_every_pass(ask):
    """And through the resize."""
    pixels = np.concatenate([PHOTO, noise(20, 30, 1, seed=1)], axis=2)
    response = ask(png(pixels), factor=3)
    assert pixels_of(response.content).shape == (60, 90, 4)


def test_progress_counts_all_passes():
    """One total over all steps, and it never falls."""
    app = create_app(
        Settings(**SMALL, variants="small-x2", device="cpu"), load=lambda name, _path: ScriptedUpscaler(SCALES[name])
    )

    async def exchange():
        async with running(app) as client:
            await app.state.service.boot(lambda: None)
            headers = {"accept": "multipart/mixed"}
            return await client.post("/v1/upscale?factor=4", files={"file": png(PHOTO)}, headers=headers)

    text = asyncio.run(exchange()).content
    assert b'"tiles":2}' in text
    assert b'{"state":"running","tile":2,"tiles":2}' in text
    assert text.count(b'"state":"queued"') == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 60, "factor": 2}, "width or height and factor"),
        ({"factor": 2, "megapixels": 1}, "factor and megapixels"),
        ({"height": 9, "megapixels": 1}, "width or height and megapixels"),
        ({"width": 60, "fit": "cover"}, "fit=cover needs both width and height"),
        ({"fit": "exact"}, "fit=exact needs both width and height"),
        ({"width": 60, "height": 40, "fit": "fill"}, "fit"),
        ({"width": 0}, "width"),
        ({"megapixels": 0}, "megapixels"),
        ({"factor": "inf"}, "factor"),
        ({"enlarge": "maybe"}, "enlarge"),
        ({"strength": 1.5}, "strength"),
        ({"strength": -0.1}, "strength"),
        ({"restore": "sometimes"}, "restore"),
        ({"max_bytes": 1000}, "max_bytes needs a lossy format"),
        ({"max_bytes": 1000, "format": "tiff"}, "max_bytes needs a lossy format"),
        ({"max_bytes": 1000, "format": "same"}, "max_bytes needs a lossy format"),
        ({"max_bytes": 0, "format": "jpeg"}, "max_bytes"),
        ({"width": 961}, "width=961 is larger than the largest size that small-x2 reaches for this image: 960x640"),
    ],
)
def test_what_cannot_be_is_refused_by_name(ask, options, words):
    """422 with a sentence for the option."""
    response = ask(**options)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_option")
    assert words in response.text


def test_a_size_beyond_all_passes_names_the_largest(ask):
    """As width and height that a caller can ask for."""
    problem = ask(factor=33).json()
    assert (problem["max_width"], problem["max_height"]) == (960, 640)
    assert size_of(ask(width=problem["max_width"])) == (960, 640)


def test_every_intermediate_image_is_bounded_by_max_output_pixels(ask):
    """A cheaper way that fits is taken; where none does, 422 names what does."""
    bounded = {"max_output_pixels": 132 * 88}
    assert size_of(ask(factor=4, settings=bounded)) == (120, 80)
    response = ask(factor=4.4, settings=bounded)
    assert (response.status_code, response.json()["max_width"]) == (422, 120)
    assert size_of(ask(factor=4.4, enlarge="true", settings=bounded)) == (132, 88)
    response = ask(factor=5, enlarge="true", settings=bounded)
    assert (response.status_code, response.json()["code"]) == (413, "image_too_large")


def test_strength_0_is_pillows_bicubic(ask):
    """The alpha plane included; at scale 1 it is the input itself."""
    pixels = np.concatenate([PHOTO, np.maximum(noise(20, 30, 1, seed=1), 1)], axis=2)
    blended = pixels_of(ask(png(pixels), strength=0).content).astype(int)
    planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, index])) for index in range(4)]
    bicubic = np.stack([np.asarray(each.resize((60, 40), Image.Resampling.BICUBIC)) for each in planes], axis=2)
    assert np.abs(blended - bicubic).max() <= 1
    np.testing.assert_array_equal(pixels_of(ask(variant="small-jpeg", strength=0).content), PHOTO)


def test_strength_between_is_between(ask):
    """Half of each."""
    whole, none, half = (pixels_of(ask(strength=value).content).astype(float) for value in (1, 0, 0.5))
    assert np.abs(half - (whole + none) / 2).max() <= 1


@pytest.mark.parametrize("format_", ["jpeg", "webp", "avif"])
def test_max_bytes_takes_the_best_quality_that_fits(ask, format_):
    """The next better quality does not fit; the header names the one that was used."""
    limit = len(ask(format=format_).content) * 2 // 3
    response = ask(format=format_, max_bytes=limit)
    quality = int(response.headers["x-swin2sr-quality"])
    assert len(response.content) <= limit
    assert 1 <= quality < 95
    assert response.content == ask(format=format_, quality=quality).content
    assert len(ask(format=format_, quality=quality + 1).content) > limit


def test_max_bytes_is_at_most_the_quality_that_was_asked_for(ask):
    """And with enough bytes it is that quality."""
    response = ask(format="jpeg", quality=50, max_bytes=10**6)
    assert response.headers["x-swin2sr-quality"] == "50"
    assert response.content == ask(format="jpeg", quality=50).content


def test_too_few_bytes_for_any_quality_are_413(ask):
    """With the smallest size there is."""
    problem = ask(format="jpeg", max_bytes=100).json()
    assert (problem["code"], problem["limit"]) == ("output_too_large", 100)
    assert problem["actual"] == len(ask(format="jpeg", quality=1).content)


@pytest.mark.parametrize(
    ("quality", "options", "restored"),
    [
        (40, {"variant": "x2"}, "small-jpeg; quality=40"),
        (40, {"variant": "small-x2"}, None),
        (40, {"variant": "small-x2", "restore": "auto"}, "small-jpeg; quality=40"),
        (95, {"variant": "x2"}, None),
        (95, {"variant": "x2", "restore": "always"}, "small-jpeg; quality=95"),
        (40, {"variant": "x2", "restore": "never"}, None),
        (40, {"variant": "jpeg-restore", "restore": "always"}, None),
    ],
)
def test_compressed_uploads_are_restored_first(ask, quality, options, restored):
    """Auto decides by the estimated quality; naming a variant means never; restoring variants are not restored."""
    response = ask(jpeg(PHOTO, quality), **options)
    assert response.headers.get("x-swin2sr-restored") == restored
    assert ("small-jpeg; small-" in response.headers["x-swin2sr-steps"]) == (restored is not None)
    assert response.headers["x-swin2sr-variant"] == (
        "small-jpeg" if options["variant"] == "jpeg-restore" else "small-x2"
    )


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"variant": "compressed"}, "small-jpeg; small-x4"),
        ({"variant": "compressed", "restore": "never"}, "small-jpeg; small-x4"),
        ({"variant": "compressed", "factor": 6}, "small-jpeg; small-x2; small-x4; resize 180x120"),
        ({"variant": "small-compressed-x4"}, "small-compressed-x4"),
        ({"variant": "small-compressed-x4", "restore": "always"}, "small-compressed-x4"),
        ({"variant": "compressed", "variants": "compressed"}, "small-jpeg; small-x4"),
    ],
)
def test_the_alias_compressed_runs_two_variants(ask, options, steps):
    """Which are better than the one that it names, and run in its place; ``restore`` makes no difference."""
    variants = options.pop("variants", "x2,x4,jpeg-restore,compressed")
    response = ask(jpeg(PHOTO, 40), variants=variants, **options)
    assert response.headers["x-swin2sr-steps"] == steps
    assert response.headers["x-swin2sr-variant"] == steps.removeprefix("small-jpeg; ").partition(";")[0]
    assert response.headers.get("x-swin2sr-restored") == ("small-jpeg; quality=40" if ";" in steps else None)


def test_own_weights_are_not_put_in_the_place_of_the_alias(ask, tmp_path):
    """Where an own file replaces one of the two variants, the alias runs the variant that it names."""
    (tmp_path / "small-x4.safetensors").write_bytes(b"own")
    response = ask(variants="compressed", variant="compressed", settings={"model_dir": tmp_path})
    assert response.headers["x-swin2sr-steps"] == "small-compressed-x4"


def test_a_png_is_restored_only_with_restore_always(ask):
    """It has no quality to name."""
    assert "x-swin2sr-restored" not in ask(variant="x2").headers
    assert ask(restore="always").headers["x-swin2sr-restored"] == "small-jpeg"


def test_a_restoring_variant_that_is_not_loaded_is_skipped_or_503(ask):
    """Auto says so in a notice, always is refused with the variant's name."""
    skipped = ask(jpeg(PHOTO, 40), variants="x2", variant="x2")
    assert "small-jpeg is not loaded" in skipped.headers["x-swin2sr-notice"]
    assert skipped.headers["x-swin2sr-steps"] == "small-x2"
    refused = ask(jpeg(PHOTO, 40), variants="x2", restore="always")
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert refused.json()["variant"] == "small-jpeg"


def test_more_memory_than_there_is_is_refused_from_the_header(ask):
    """With the limit in bytes, before the broken rest of the file is looked at."""
    response = ask(settings={"max_memory_bytes": 10_000})
    assert (response.status_code, response.json()["code"]) == (413, "image_too_large")
    assert response.json()["limit"] == 10_000 < response.json()["actual"]
