"""Images of any sizes as one batch: exact, independent of the other images."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.inference.cpu import Inference
from model.packing import LayoutCache, PackedLayout, mask_kinds, split_by_area
from model.windows import partition
from tests.networks import HEADS, random_image, tiny_network

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=7)
FEW = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=5)


def in_windows(sizes: list[tuple[int, int]], window: int = 8) -> list[tuple[int, int]]:
    return [(rows * window, columns * window) for rows, columns in sizes]


@given(SIZES)
def test_merged_windows_are_the_image(sizes: list[tuple[int, int]]):
    """Pixels go to windows and back, each group of equal images as one batch."""
    sizes = sorted(in_windows(sizes))
    layout = PackedLayout(sizes, 8, 4)
    rows = torch.rand(sum(height * width for height, width in sizes), 2)
    tokens = rows.index_select(0, layout.windows_from_images)
    assert torch.equal(tokens.index_select(0, layout.images_from_windows), rows)
    images = [image for group in layout.images(rows) for image in group]
    assert [tuple(image.shape[1:]) for image in images] == sizes
    assert torch.equal(torch.cat([image.permute(1, 2, 0).flatten(0, 1) for image in images]), rows)
    first = partition(images[0].permute(1, 2, 0)[None], 8)
    assert torch.equal(tokens[: first.shape[0] * 64], first.flatten(0, 1))


@given(st.lists(st.integers(1, 50), max_size=9), st.integers(1, 60))
def test_groups_hold_every_image_once_and_respect_the_limit(areas: list[int], most: int):
    """Each image is in one group; a group above the bound has a single image; like sizes are together."""
    groups = split_by_area(areas, most)
    assert sorted(index for group in groups for index in group) == list(range(len(areas)))
    assert all(sum(areas[index] for index in group) <= most or len(group) == 1 for group in groups)
    in_order = [areas[index] for group in groups for index in group]
    assert in_order == sorted(areas)


@pytest.mark.slow
@given(SIZES)
def test_orders_of_tokens_are_permutations_of_one_another(sizes: list[tuple[int, int]]):
    """Going to the shifted windows and back changes nothing; shifted windows are sorted by their kind."""
    layout = PackedLayout(in_windows(sizes), 8, 4)
    tokens = torch.rand(layout.windows_count * 64, 3)
    shifted = tokens.index_select(0, layout.order(shifted=True))
    assert torch.equal(shifted.index_select(0, layout.order(shifted=False)), tokens)
    kinds = layout.kinds_of(shifted=True)
    assert torch.equal(kinds, mask_kinds(layout.grid).sort()[0])
    seen, expected = layout.halo(8, shifted=True), layout.halo(8)
    assert torch.equal(seen < 0, expected < 0)
    inside = expected[expected >= 0]
    assert torch.equal(shifted.index_select(0, seen[seen >= 0]), tokens.index_select(0, inside))


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=5, deadline=None)
@given(sizes=FEW, seed=st.integers(0, 100))
def test_packed_equals_alone(head: str, sizes: list[tuple[int, int]], seed: int):
    """In float64 within 1e-10 and in float32 within 1e-5, image and auxiliary image, for every head."""
    network = tiny_network(head, seed=seed)
    images = [random_image(network, *size, seed=index) for index, size in enumerate(sizes)]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        inference = Inference(network.to(dtype))
        with torch.inference_mode():
            packed = inference.reconstruct([image.to(dtype) for image in images])
            for image, together in zip(images, packed, strict=True):
                (alone,) = inference.reconstruct([image.to(dtype)])
                for a, b in zip(alone, together, strict=True):
                    assert (a is None) == (b is None)
                    assert a is None or (a - b).abs().max() <= tolerance


def test_neighbours_in_a_batch_of_equal_images_do_not_matter():
    """An image's result is the same to the bit whichever images of its size share the batch."""
    network = tiny_network()
    images = [random_image(network, 3, 2, seed=seed) for seed in range(4)]
    with torch.inference_mode():
        once = Inference(network).reconstruct(images)[1].image.clone()
        again = Inference(network).reconstruct([images[3], images[1], images[0], images[0]])[1].image
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
        cache([(32, 8 * columns)])
        assert cache.nbytes <= 100_000
    assert len(cache) < 8
    layout = cache([(512, 512)])
    assert len(cache) == 1
    assert cache([(512, 512)]) is layout


def test_a_layout_is_built_once():
    """The same sizes give the same tables; other sizes, or another order, give others."""
    cache = LayoutCache(8, 4)
    assert cache([(8, 16), (8, 8)]) is cache([(8, 16), (8, 8)])
    assert cache([(8, 16), (8, 8)]) is not cache([(8, 8), (8, 16)])


def test_copies_of_caches_begin_empty():
    """A copied or pickled workspace has no tables and no memory of the first."""
    workspace = Inference(tiny_network()).workspace
    workspace.layouts([(8, 8)])
    for other in (copy.deepcopy(workspace), pickle.loads(pickle.dumps(workspace))):
        assert len(other.layouts) == 0
        assert len(other.layouts([(8, 8)]).grid) == 1


def test_two_threads_may_call_one_network():
    """Results of concurrent calls with different sizes are those of calls one by one."""
    network = tiny_network("compressed_x4")
    inference = Inference(network)
    images = [random_image(network, rows, columns) for rows in (1, 2, 3) for columns in (1, 2)]

    def upscale(image: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return inference.reconstruct([image])[0].image

    with ThreadPoolExecutor(2) as pool:  # concurrent first calls build the layouts
        first = list(pool.map(upscale, images))
        expected = [upscale(image) for image in images]
        assert all(map(torch.equal, first, expected))
        for _ in range(3):
            assert all(map(torch.equal, pool.map(upscale, images), expected))


def test_no_images_are_an_empty_answer():
    """An empty pack costs nothing and is no error."""
    assert Inference(tiny_network()).reconstruct([]) == []
