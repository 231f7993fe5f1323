"""Images of any sizes as one batch: exact, whoever else is in it."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.packing import LayoutCache, PackedLayout, split_by_area
from tests.networks import HEADS, random_image, tiny_network

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=7)
CPU = torch.device("cpu")


def in_windows(sizes: list[tuple[int, int]], window: int = 8) -> list[tuple[int, int]]:
    return [(rows * window, columns * window) for rows, columns in sizes]


@given(SIZES)
def test_pack_and_unpack_are_opposites(sizes: list[tuple[int, int]]):
    """What is laid on the canvas comes back, and the rest of the canvas is zero."""
    images = [torch.rand(2, height, width) + 1 for height, width in in_windows(sizes)]
    layout = PackedLayout(in_windows(sizes), 8, 4)
    canvas = layout.pack(images)
    assert all(torch.equal(a, b) for a, b in zip(images, layout.unpack(canvas), strict=True))
    assert math.isclose(canvas.double().sum(), sum(image.double().sum() for image in images), rel_tol=1e-9)


@given(st.lists(st.integers(1, 50), max_size=9), st.integers(1, 60))
def test_groups_hold_every_image_once_and_no_more_than_they_may(areas: list[int], most: int):
    """Each image is in one group; a group above the bound has a single image; like sizes are together."""
    groups = split_by_area(areas, most)
    assert sorted(index for group in groups for index in group) == list(range(len(areas)))
    assert all(sum(areas[index] for index in group) <= most or len(group) == 1 for group in groups)
    in_order = [areas[index] for group in groups for index in group]
    assert in_order == sorted(areas)


@given(SIZES)
def test_images_on_a_canvas_keep_a_gap(sizes: list[tuple[int, int]]):
    """No two images touch, not even at a corner, so a 3x3 convolution sees zeros around each."""
    layout = PackedLayout(in_windows(sizes), 8, 4)
    covered = torch.zeros(layout.sheets, layout.height + 2, layout.width + 2)
    for place in layout.places:
        around = covered[
            place.sheet, place.top : place.top + place.height + 2, place.left : place.left + place.width + 2
        ]
        assert not around[1:-1, 1:-1].any()
        inside = torch.zeros_like(around)
        inside[1:-1, 1:-1] = 1
        assert not (around * torch.nn.functional.max_pool2d(inside[None], 3, 1, 1)[0]).any()
        around += inside


@given(SIZES)
def test_orders_of_tokens_are_permutations_of_one_another(sizes: list[tuple[int, int]]):
    """Going to windows, to shifted windows and back to the canvas changes nothing."""
    layout = PackedLayout(in_windows(sizes), 8, 4)
    canvas = layout.pack([torch.rand(3, *size) for size in in_windows(sizes)])
    tokens = layout.to_windows(canvas)
    shifted = tokens.index_select(0, layout.shifted_from_windows)
    assert torch.equal(shifted.index_select(0, layout.windows_from_shifted), tokens)
    assert torch.equal(layout.to_canvas(tokens, shifted=False), canvas)
    assert torch.equal(layout.to_canvas(shifted, shifted=True), canvas)
    assert sum(layout.counts) == layout.windows_count == len(tokens) // 64


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=5, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 100))
def test_packed_equals_alone(head: str, sizes: list[tuple[int, int]], seed: int):
    """In float64 within 1e-10 and in float32 within 1e-5, image and auxiliary image, for every head."""
    network = tiny_network(head, seed=seed)
    images = [random_image(network, *size, seed=index) for index, size in enumerate(sizes)]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        network = network.to(dtype)
        with torch.inference_mode():
            packed = network.reconstruct([image.to(dtype) for image in images])
            for image, together in zip(images, packed, strict=True):
                (alone,) = network.reconstruct([image.to(dtype)])
                for a, b in zip(alone, together, strict=True):
                    assert (a is None) == (b is None)
                    assert a is None or (a - b).abs().max() <= tolerance


def test_neighbours_in_a_batch_of_equal_images_do_not_matter():
    """An image's result is the same to the bit whichever images of its size share the batch."""
    network = tiny_network()
    images = [random_image(network, 3, 2, seed=seed) for seed in range(4)]
    with torch.inference_mode():
        once = network.reconstruct(images)[1].image.clone()
        again = network.reconstruct([images[3], images[1], images[0], images[0]])[1].image
    assert torch.equal(once, again)


@pytest.mark.parametrize("sizes", [[], [(8, 12)], [(0, 8)], [(8, 8), (7, 8)]])
def test_sizes_off_the_window_grid_are_refused(sizes: list[tuple[int, int]]):
    """No layout is made for nothing, or for an image that is not padded."""
    with pytest.raises(ValueError, match=r"pad the image first|at least one image"):
        PackedLayout(sizes, 8, 4)


def test_the_cache_stays_within_its_memory():
    """The least recently used layouts go; the newest stays even where it alone is too large."""
    cache = LayoutCache(8, 4, max_bytes=100_000)
    for columns in range(1, 9):
        cache([(32, 8 * columns)], CPU)
        assert cache.nbytes <= 100_000
    assert len(cache) < 8
    layout = cache([(512, 512)], CPU)
    assert len(cache) == 1
    assert cache([(512, 512)], CPU) is layout


def test_a_layout_is_built_once():
    """The same sizes give the same tables; other sizes, or another order, give others."""
    cache = LayoutCache(8, 4)
    assert cache([(8, 16), (8, 8)], CPU) is cache([(8, 16), (8, 8)], CPU)
    assert cache([(8, 16), (8, 8)], CPU) is not cache([(8, 8), (8, 16)], CPU)


def test_a_network_can_be_copied_and_pickled_with_its_cache():
    """A copy computes the same, from a cache of its own."""
    network = tiny_network()
    image = random_image(network, 2, 2)
    with torch.inference_mode():
        expected = network.reconstruct([image])[0].image
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert other.layouts is not network.layouts
            assert torch.equal(other.reconstruct([image])[0].image, expected)


def test_two_threads_may_call_one_network():
    """Results of concurrent calls with different sizes are those of calls one by one."""
    network = tiny_network("compressed_x4")
    images = [random_image(network, rows, columns) for rows in (1, 2, 3) for columns in (1, 2)]

    def upscale(image: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network.reconstruct([image])[0].image

    with ThreadPoolExecutor(2) as pool:  # concurrent first calls build the layouts
        first = list(pool.map(upscale, images))
        expected = [upscale(image) for image in images]
        assert all(map(torch.equal, first, expected))
        for _ in range(3):
            assert all(map(torch.equal, pool.map(upscale, images), expected))


def test_images_that_differ_in_kind_are_no_pack():
    """Other sizes than the layout's, or channels or dtypes of two kinds, are refused instead of broadcast."""
    layout = PackedLayout([(8, 8), (8, 16)], 8, 4)
    good = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 16)]
    for bad in ([good[0]], good[::-1], [good[0], torch.zeros(1, 8, 16)], [good[0], good[1].double()]):
        with pytest.raises(ValueError, match="Images of a pack"):
            layout.pack(bad)


def test_a_layout_of_another_network_or_canvas_is_refused():
    """Another window, shift or size would silently be another function."""
    network = tiny_network()
    canvas = torch.zeros(1, 3, 8, 16)
    for layout in (PackedLayout([(8, 16)], 8, 2), PackedLayout([(8, 16)], 4, 2), PackedLayout([(16, 8)], 8, 4)):
        with pytest.raises(ValueError, match="layout is for"):
            network(canvas, layout)


def test_no_images_are_an_empty_answer():
    """An empty pack costs nothing and is no error."""
    assert tiny_network().reconstruct([]) == []
