"""Windows and masks against the definitions of the official code, written out plainly."""

import pytest
import torch

from model import windows


def official_mask(height: int, width: int, window: int, shift: int) -> torch.Tensor:
    """The mask (nW, N, N) as the official code builds it: number nine regions, compare tokens."""
    regions = torch.zeros(height, width)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in cuts for columns in cuts):
        regions[rows, columns] = number
    region = windows.partition(regions, window)
    return (region[:, :, None] != region[:, None, :]).float() * -100


@pytest.mark.parametrize("window", [7, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (3, 1), (2, 2), (3, 5)])
def test_four_kinds_of_mask_are_all_that_the_official_code_makes(window: int, rows: int, columns: int):
    """Looking up each window's kind gives the official mask, whatever the size."""
    height, width, shift = rows * window, columns * window, window // 2
    masks = windows.attention_masks(window, shift)
    kinds = windows.mask_kinds(height, width, window)
    assert torch.equal(masks[kinds], official_mask(height, width, window, shift))


def test_partition_cuts_in_reading_order():
    """The second window begins beside the first, and its tokens are read row by row."""
    cut = windows.partition(torch.arange(4 * 6).view(4, 6), 2)
    assert cut.shape == (6, 4)
    assert cut[1].tolist() == [2, 3, 8, 9]
    assert cut[3].tolist() == [12, 13, 18, 19]


def test_cyclic_shift_moves_up_and_left():
    """The first pixel after the shift is the one that lay ``shift`` below and to the right."""
    grid = torch.arange(16).view(4, 4)
    assert windows.cyclic_shift(grid, 1)[0].tolist() == [5, 6, 7, 4]
    assert windows.cyclic_shift(grid, 1)[3].tolist() == [1, 2, 3, 0]
