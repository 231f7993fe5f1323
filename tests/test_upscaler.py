"""Pixels in, pixels out: any size and depth, one forward pass, bounded memory."""

import copy
import json
import os
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from model import precision
from model.checkpoints import load_network
from model.kernels import library
from model.precision import PRECISIONS
from model.upscaler import Upscaler, find_device
from model.variants import embedded_path
from tests.forks import Fork
from tests.networks import HEADS, needs_amx, tiny_network


@pytest.fixture
def upscaler() -> Upscaler:
    return Upscaler(tiny_network("classical_x2"), device="cpu")


def random_pixels(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_of_any_size_are_enlarged_in_their_own_depth(upscaler: Upscaler, dtype: type):
    """One pixel, one window, ragged sizes: all in one call, each (s H, s W, C) of its own type."""
    images = [random_pixels(height, width, dtype=dtype) for height, width in ((1, 1), (8, 8), (3, 21), (17, 9))]
    outputs = upscaler(images)
    assert [output.shape for output in outputs] == [(2 * h, 2 * w, 3) for h, w, _ in (i.shape for i in images)]
    assert all(output.dtype == dtype for output in outputs)


def test_16_bits_are_not_computed_from_8(upscaler: Upscaler):
    """An image that differs in its low byte alone gives another 16-bit answer, and the same 8-bit one."""
    image = random_pixels(8, 8).astype(np.uint16) * 257
    (coarse,), (fine,) = upscaler([image]), upscaler([image ^ 3])
    assert not np.array_equal(coarse, fine)
    assert np.abs(coarse.astype(int) - fine).max() < 257


def test_an_image_alone_is_the_image_in_a_batch(upscaler: Upscaler):
    """Eight-bit answers do not depend on the rest of the batch, apart from rounding ties."""
    images = [random_pixels(height, width) for height, width in ((21, 9), (8, 40), (16, 16))]
    for together, image in zip(upscaler(images), images, strict=True):
        (alone,) = upscaler([image])
        assert np.abs(together.astype(int) - alone).max() <= 1
        assert (together != alone).mean() <= 0.001


def test_no_images_are_no_answers(upscaler: Upscaler):
    """An empty list is no error."""
    assert upscaler([]) == upscaler.forward([]) == []


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (8, 8, 4)])
def test_other_channels_are_refused(upscaler: Upscaler, shape: tuple[int, ...]):
    """A tile of another number of channels is a ValueError that says what was expected."""
    with pytest.raises(ValueError, match=r"Expected \(H, W, 3\)"):
        upscaler.forward([np.zeros(shape, np.uint8)])


def test_other_types_are_refused(upscaler: Upscaler):
    """Floats have no range of their own."""
    with pytest.raises(ValueError, match="uint8 or uint16"):
        upscaler.forward([np.zeros((8, 8, 3), np.float32)])


@needs_amx
def test_each_precision_is_close_to_exact():
    """A reduced precision changes an image by little; the upscaler states what it computes with."""
    network, image = tiny_network("lightweight_x4"), random_pixels(16, 16)
    images = {}
    for name in PRECISIONS:
        upscaler = Upscaler(copy.deepcopy(network), device="cpu", precision=name)
        assert upscaler.precision == name
        images[name] = upscaler.forward([image])[0]
    off = {name: np.abs(images[name] - images["exact"]).mean() for name in ("high", "fast")}
    assert 0 < 100 * off["high"] < off["fast"] < 1 / 255


def test_without_amx_every_precision_is_exact(monkeypatch: pytest.MonkeyPatch):
    """If the kernel cannot pack a block, every precision is computed in float32, and reported so."""
    monkeypatch.setattr(library, "load_kernel", lambda: None)
    for name in ("auto", *PRECISIONS):
        assert Upscaler(tiny_network("lightweight_x4"), device="cpu", precision=name).precision == "exact"


@needs_amx
def test_auto_is_high_where_that_changes_next_to_nothing(monkeypatch: pytest.MonkeyPatch):
    """On a CPU ``auto`` compares a trial image: a share of samples above the bound, or none allowed, makes it exact."""
    assert Upscaler(load_network(embedded_path("small-x2")), device="cpu").precision == "high"
    monkeypatch.setattr(precision, "MAX_SHARE", -1.0)
    upscaler = Upscaler(load_network(embedded_path("small-x2")), device="cpu")
    assert upscaler.precision == "exact"
    image = random_pixels(16, 16)
    exact = Upscaler(load_network(embedded_path("small-x2")), device="cpu", precision="exact")
    assert np.array_equal(upscaler.forward([image])[0], exact.forward([image])[0])


@pytest.mark.parametrize(
    ("has_bfloat16", "expected"),
    [(True, {"auto": "fast", "high": "high", "exact": "exact"}), (False, dict.fromkeys(("auto", "fast"), "exact"))],
)
def test_auto_is_fast_on_a_gpu_that_computes_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, *, has_bfloat16: bool, expected: dict[str, str]
):
    """An older GPU has neither bfloat16 nor TF32 and computes everything in float32."""
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    assert {name: precision.choose_precision(tiny_network(), name) for name in expected} == expected


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99", "cuda:999", "meta"])
def test_a_device_that_is_not_there_is_refused(name: str):
    """The message names the requested device."""
    with pytest.raises(ValueError, match=name):
        find_device(name)


@pytest.mark.parametrize("name", ["float16", "bfloat16", ""])
def test_an_unknown_precision_is_refused(name: str):
    """The message names the precisions that there are."""
    with pytest.raises(ValueError, match=f"auto, exact, high or fast, not '{name}'"):
        Upscaler(tiny_network(), device="cpu", precision=name)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("head", HEADS)
def test_memory_stays_within_its_bound(head: str):
    """The peak of a forward pass is below bytes_per_pixel, and not so far that it says nothing."""
    process = Fork("tests.peak_memory", [head], os.environ)
    with process.stdout as output:
        measured, bound = json.loads(output.read())
    assert process.wait() == 0
    assert bound / 6 < measured < bound
