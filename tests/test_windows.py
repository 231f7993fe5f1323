"""Windows and masks against the definitions of the official code, written out plainly."""

import pytest
import torch

from model import windows
from model.packing import lay_out, mask_kinds


def official_mask(height: int, width: int, window: int, shift: int) -> torch.Tensor:
    """The mask (nW, N, N) as the official code builds it: number nine regions, compare tokens."""
    regions = torch.zeros(1, height, width, 1)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in cuts for columns in cuts):
        regions[:, rows, columns] = number
    region = windows.partition(regions, window)[..., 0]
    return (region[:, :, None] != region[:, None, :]).float() * -100


@pytest.mark.parametrize("window", [7, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (3, 1), (2, 2), (3, 5)])
def test_the_mask_is_the_official_one(window: int, rows: int, columns: int):
    """Whatever the size; and there are four kinds of windows."""
    height, width, shift = rows * window, columns * window, window // 2
    expected = official_mask(height, width, window, shift)
    assert torch.equal(windows.shift_mask(height, width, window, shift), expected)
    masks = windows.mask_of_each_kind(window, shift)
    kinds = mask_kinds(torch.from_numpy(lay_out([(height, width)], window)))
    assert torch.equal(masks[kinds.long()], expected)


def test_partition_cuts_in_reading_order():
    """The second window begins beside the first, its tokens are read row by row, and merging undoes it."""
    images = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    cut = windows.partition(images, 2)
    assert cut.shape == (12, 4, 1)
    assert cut[1, :, 0].tolist() == [2, 3, 8, 9]
    assert cut[3, :, 0].tolist() == [12, 13, 18, 19]
    assert torch.equal(windows.merge(cut, 2, 4, 6), images)
