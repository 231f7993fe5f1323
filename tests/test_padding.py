"""Padding by both rules, scaling, cropping, rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.padding import (
    pad,
    pad_tensor,
    padded_size,
    quantise,
    source_indices,
    to_tensor,
)

sides = st.integers(1, 40)
windows = st.integers(2, 12)


def image(height: int, width: int, channels: int = 3, dtype=np.uint8) -> np.ndarray:
    maximum = np.iinfo(dtype).max
    return np.random.default_rng(height * 1000 + width).integers(0, maximum + 1, (height, width, channels), dtype)


@given(sides, sides, windows)
def test_the_direct_rule_reflects_as_numpy_does(height, width, window):
    """The direct rule is numpy.pad's reflection, repeated where the image is small, up to the next multiple."""
    pixels = image(height, width)
    padded = pad(pixels, window)
    add = [(0, -height % window), (0, -width % window), (0, 0)]
    assert np.array_equal(padded, np.pad(pixels, add, mode="reflect"))
    assert padded.dtype == np.uint8


@given(sides, sides, windows)
def test_the_script_rule_mirrors_as_numpy_does(height, width, window):
    """The script rule is numpy.pad's symmetric padding, always up to the next larger multiple."""
    pixels = image(height, width)
    add = [(0, window - height % window), (0, window - width % window), (0, 0)]
    assert np.array_equal(pad(pixels, window, "script"), np.pad(pixels, add, mode="symmetric"))


@given(sides, windows)
def test_padded_sizes_are_the_next_multiples(size, window):
    """Direct adds less than a window, script at least a pixel and at most a window; both land on the grid."""
    direct, script = padded_size(size, window), padded_size(size, window, "script")
    assert direct % window == script % window == 0
    assert size <= direct < size + window
    assert size < script <= size + window


def test_an_image_on_the_grid_is_not_copied():
    """The direct rule returns the array itself if no padding is needed."""
    pixels = image(16, 24)
    assert pad(pixels, 8) is pixels


def test_a_single_pixel_is_repeated():
    """One pixel becomes a window of itself under both rules."""
    pixels = image(1, 1)
    assert (pad(pixels, 8) == pixels).all()
    assert (pad(pixels, 8, "script") == pixels).all()


@pytest.mark.parametrize("rule", ["direct", "script"])
def test_an_image_without_pixels_is_refused(rule):
    """There is nothing to repeat in an empty image."""
    with pytest.raises(ValueError, match="at least one pixel"):
        pad(np.zeros((0, 5, 3), np.uint8), 8, rule)


def test_padding_keeps_sixteen_bits():
    """uint16 pixels stay uint16 and unchanged."""
    pixels = image(5, 9, dtype=np.uint16)
    padded = pad(pixels, 8)
    assert padded.dtype == np.uint16
    assert np.array_equal(padded[:5, :9], pixels)


@given(sides, sides, st.sampled_from(["direct", "script"]))
def test_tensors_are_padded_as_pixels_are(height, width, rule):
    """A tensor (B, C, H, W) is padded exactly as an array (H, W, C) is."""
    pixels = image(height, width)
    padded = pad(pixels, 8, rule)
    tensor = pad_tensor(torch.from_numpy(pixels).permute(2, 0, 1)[None], 8, rule)
    assert np.array_equal(tensor[0].permute(1, 2, 0).numpy(), padded)


def test_tensor_padding_is_differentiable():
    """The gradient of a sum counts how often each pixel is shown."""
    images = torch.zeros(1, 1, 3, 3, requires_grad=True)
    pad_tensor(images, 4).sum().backward()
    rows = torch.from_numpy(np.bincount(source_indices(3, 4), minlength=3)).float()
    assert torch.equal(images.grad[0, 0], rows[:, None] * rows)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_pixel_value_survives_the_way_to_a_tensor_and_back(dtype):
    """All 256 or 65536 values are exact after float32."""
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16, 1)
    tensor = to_tensor(values)
    assert tensor.shape == (1, len(values), 16)
    assert tensor.dtype == torch.float32
    assert (float(tensor.min()), float(tensor.max())) == (0, 1)
    assert np.array_equal(quantise(tensor[0].numpy(), dtype), values[..., 0])


@pytest.mark.parametrize("pixels", [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.int16)])
def test_only_integer_pixels_become_tensors(pixels):
    """Floating point, signed and flat arrays are refused."""
    with pytest.raises(ValueError, match="uint8 or uint16"):
        to_tensor(pixels)


def test_quantise_clamps_and_rounds_half_to_even():
    """Values outside [0, 1] are clamped, and halves go to the even neighbour as torch.round does."""
    values = np.array([-0.5, 0.5 / 255, 1.5 / 255, 2.5 / 255, 254.5 / 255, 1.0, 7.0])
    assert quantise(values).tolist() == [0, 0, 2, 2, 254, 255, 255]
    assert quantise(np.float32([0.25, 2]), np.uint16).tolist() == [16384, 65535]
    assert values[0] == -0.5  # the input is left alone


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantise_refuses_what_is_no_number(bad):
    """An overflowing network is an error, not a black image."""
    with pytest.raises(ValueError, match="finite"):
        quantise(np.array([[0.5, bad]]))
