"""The network on windows alone, as a GPU computes it: its values, its index tables and its error in bfloat16."""

import pytest
import torch

from model import windows
from model.inference.cpu import Inference
from model.packing import lay_out, locate, mask_kinds, pixel_rows
from tests.networks import HEADS, random_image, tiny_network
from tests.windowed_network import run_windowed

SIZES = [(8, 8), (24, 16), (8, 40)]

ERRORS = {
    "classical_x2": 8e-3,
    "classical_x3": 1e-2,
    "classical_x8": 9e-3,
    "lightweight_x4": 9e-3,
    "realworld_x4": 1.2e-2,
    "realworld_x4_3conv": 5e-3,
    "compressed_x4": 4e-3,
    "jpeg": 5e-5,
}
"""What bfloat16 in the body may cost each head: the norm of the error over that of what the network adds to gray."""


@pytest.mark.parametrize("head", HEADS)
def test_windows_alone_are_the_network(head):
    """In float64, for every head, an odd width, three sizes and empty windows, it is the network to the last digits."""
    network = tiny_network(head, embed_dim=20, num_heads=(2, 2), depths=(2, 1)).double()
    images = [random_image(network, rows, columns).double() for rows, columns in ((1, 1), (2, 3), (1, 4))]
    found = run_windowed(network, images, torch.float64, torch.float64, fill=3)
    for image, expected in zip(found, Inference(network).reconstruct(images), strict=True):
        torch.testing.assert_close(image, expected.image, rtol=0, atol=1e-12)


def test_other_networks_are_computed_too():
    """A bottleneck, no bias, another activation, another scale: what a configuration may say."""
    fields = {"resi_connection": "3conv", "qkv_bias": False, "hidden_act": "relu", "mlp_ratio": 1.3}
    network = tiny_network("classical_x2", **fields).double()
    images = [random_image(network, 2, 3).double()]
    [found] = run_windowed(network, images, torch.float64, torch.float64)
    torch.testing.assert_close(found, Inference(network).reconstruct(images)[0].image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_costs_each_head_what_is_stated(head):
    """Products in bfloat16, the rest in float32, against float64; and it is not float32 by mistake."""
    network = tiny_network(head)
    images = [random_image(network, 3, 2), random_image(network, 1, 1)]
    found = run_windowed(network, images, torch.bfloat16, torch.float32)
    exact = Inference(network.double()).reconstruct([image.double() for image in images])
    off = sum(float((image - right.image).norm() ** 2) for image, right in zip(found, exact, strict=True))
    whole = sum(float((right.image - right.image.mean()).norm() ** 2) for right in exact)
    assert ERRORS[head] / 1000 < (off / whole) ** 0.5 < ERRORS[head]


@pytest.mark.parametrize(("window", "shift"), [(8, 4), (7, 3)])
def test_the_index_tables_are_those_of_images(window, shift):
    """Rolling, masks and neighbours, computed from the grid, are those of each image alone."""
    sizes = [(window * rows, window * columns) for rows, columns in ((1, 1), (3, 2), (1, 5))]
    grid = torch.from_numpy(lay_out(sizes, window))
    position, kind, rolled, seen = 0, [], [], []
    masks = windows.mask_of_each_kind(window, shift)
    for height, width in sizes:
        tokens = torch.arange(position, position + height * width).view(1, -1, window**2, 1)
        image = windows.merge(tokens, window, height, width)
        shifted = windows.partition(torch.roll(image, (-shift, -shift), (1, 2)), window)
        rolled.append(shifted.flatten())
        expected = windows.shift_mask(height, width, window, shift)
        kind += [next(k for k in range(4) if torch.equal(masks[k], mask)) for mask in expected]
        padded = torch.nn.functional.pad(image[..., 0], (1, 1, 1, 1), value=-1)[0]
        around = padded.unfold(0, window + 2, window).unfold(1, window + 2, window)
        seen.append(around.reshape(-1, (window + 2) ** 2))
        position += height * width
    assert mask_kinds(grid).tolist() == kind
    there, back = (locate(grid, window, roll=roll).view(-1) for roll in (shift, -shift))
    assert there.tolist() == torch.cat(rolled).tolist()
    assert there[back.long()].tolist() == list(range(len(there)))
    assert locate(grid, window, border=1).tolist() == torch.cat(seen).tolist()
    shifted = [[back[token].item() if token >= 0 else -1 for token in row] for row in torch.cat(seen).tolist()]
    assert locate(grid, window, border=1, roll=-shift).tolist() == shifted


def test_pixels_go_where_they_came_from():
    """The rows of pixels are a permutation, of the image's own pixels, and two windows side by side interleave."""
    grid = torch.from_numpy(lay_out([(2, 4), (2, 2)], 2))
    assert pixel_rows(grid, 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]
    fine = torch.from_numpy(lay_out(SIZES, 8))
    assert sorted(pixel_rows(fine, 8, 3).tolist()) == list(range(len(fine) * 64 * 3))


def test_borders_are_repeated_where_asked():
    """With ``clamp`` a window of one pixel a side sees its own pixel beyond the image, and its neighbour within."""
    grid = torch.from_numpy(lay_out([(1, 2)], 1))
    assert locate(grid, 1, border=1, clamp=True).tolist() == [[0, 0, 1] * 3, [0, 1, 1] * 3]
    assert locate(grid, 1, border=1).tolist() == [
        [-1, -1, -1, -1, 0, 1, -1, -1, -1],
        [-1, -1, -1, 0, 1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize("size", [(8, 9), (0, 8)])
def test_sizes_off_the_grid_are_refused(size):
    """As everywhere, by what has to be done about it."""
    with pytest.raises(ValueError, match="pad the image first"):
        lay_out([(8, 8), size], 8)
