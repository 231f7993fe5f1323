"""What the network sees of an image, and how its answers become channels again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.imaging.channels import AUGMENTATIONS, adapt, adapt_alpha, augment, deaugment, is_constant

RNG = np.random.default_rng(1)


def unit(pixels):
    return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("have", "channels"), [(3, 3), (1, 1), (1, 3), (3, 1)])
def test_a_network_that_changes_nothing_changes_nothing(dtype, have, channels):
    """Every way into the network and back is the identity when the network is."""
    limit = np.iinfo(dtype).max
    pixels = RNG.integers(0, limit + 1, (9, 11, have), dtype)
    each = adapt(pixels, channels)
    assert each.pixels.shape == (9, 11, channels)
    assert each.pixels.dtype in (np.uint8, np.uint16)
    restored = each.restore(unit(each.pixels), each.source)
    assert restored.shape == pixels.shape
    np.testing.assert_array_equal(np.rint(restored * limit), pixels)


def test_gray_is_replicated_and_averaged_back():
    """A colour network sees equal channels; what it makes of them is their mean."""
    gray = RNG.integers(0, 256, (4, 5, 1), np.uint8)
    each = adapt(gray, 3)
    np.testing.assert_array_equal(each.pixels, gray.repeat(3, 2))
    values = np.stack([np.full((8, 10), value, np.float32) for value in (0.1, 0.2, 0.6)], axis=2)
    np.testing.assert_allclose(each.restore(values, each.source), np.full((8, 10, 1), 0.3), rtol=1e-6)


def test_colour_through_a_gray_network_keeps_its_chroma():
    """Only the luma changes: differences between channels stay what they were."""
    colours = RNG.integers(60, 200, (6, 6, 3), np.uint8)
    each = adapt(colours, 1)
    brighter = each.restore(unit(each.pixels) + np.float32(0.1), each.source)
    np.testing.assert_allclose(brighter, unit(colours) + 0.1, atol=1e-4)


def test_the_luma_is_jpegs():
    """Y of BT.601, full range, with Pillow as the reference."""
    from PIL import Image

    colours = RNG.integers(0, 256, (16, 16, 3), np.uint8)
    reference = np.asarray(Image.fromarray(colours).convert("YCbCr"))[:, :, 0]
    seen = adapt(colours, 1).pixels[:, :, 0] / 257
    np.testing.assert_allclose(seen, reference, atol=1.01)


def test_chroma_is_enlarged_where_the_network_enlarges():
    """A gray network of scale 2 gives a colour image of twice the size, with flat colours untouched."""
    colours = np.full((4, 6, 3), (200, 100, 50), np.uint8)
    each = adapt(colours, 1)
    restored = each.restore(unit(each.pixels).repeat(2, 0).repeat(2, 1), each.source)
    np.testing.assert_allclose(restored, unit(colours.repeat(2, 0).repeat(2, 1)), atol=1e-4)


@given(st.integers(0, AUGMENTATIONS - 1), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_every_turn_is_undone(index, height, width, scale):
    """Turning, enlarging and turning back is enlarging."""
    pixels = np.arange(height * width * 3).reshape(height, width, 3).astype(np.uint16)
    enlarged = augment(pixels, index).repeat(scale, 0).repeat(scale, 1)
    np.testing.assert_array_equal(deaugment(enlarged, index), pixels.repeat(scale, 0).repeat(scale, 1))


def test_the_eight_turns_are_different():
    """Averaging over one of them twice would be no ensemble."""
    pixels = np.arange(4).reshape(2, 2, 1)
    assert len({augment(pixels, index).tobytes() for index in range(AUGMENTATIONS)}) == AUGMENTATIONS


def test_a_constant_transparency_is_recognised():
    """One pixel that differs makes it something to compute."""
    alpha = np.full((3, 4), 7, np.uint8)
    assert is_constant(alpha)
    alpha[2, 3] = 8
    assert not is_constant(alpha)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_stays_within_its_neighbours(channels, dtype):
    """A level of noise in an empty or full background is taken away; an edge may be as sharp as it likes."""
    limit = np.iinfo(dtype).max
    alpha = np.zeros((12, 20, 1), dtype)
    alpha[:, 10:] = limit
    each = adapt_alpha(alpha, channels)
    values = unit(each.pixels).repeat(2, 0).repeat(2, 1)
    noisy = values + np.float32(0.02) * RNG.standard_normal(values.shape, np.float32)
    restored = each.restore(noisy, each.source)
    assert restored.shape == (24, 40, 1)
    assert (restored[:, :18] == 0).all()
    assert (restored[:, 22:] == 1).all()
    np.testing.assert_array_equal(restored[:, 18:22], np.clip(noisy.mean(2, keepdims=True)[:, 18:22], 0, 1))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_transparency_of_any_size_is_bounded_as_it_should_be(height, width, scale):
    """Against a search through every neighbourhood, one by one."""
    alpha = np.random.default_rng(height * width).integers(0, 256, (height, width, 1), np.uint8)
    each = adapt_alpha(alpha, 1)
    for extreme, choose in ((-1, np.min), (2, np.max)):
        values = np.full((height * scale, width * scale, 1), extreme, np.float32)
        restored = each.restore(values, each.source)[::scale, ::scale, 0]
        around = [
            [choose(alpha[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]) for x in range(width)] for y in range(height)
        ]
        np.testing.assert_array_equal(np.rint(restored * 255), around)
