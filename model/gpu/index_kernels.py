"""The functions of index tables as Triton kernels, one launch for each table; importing this needs Triton."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201, N803, PLR0917 - kernels are Triton's language: no types, constants in capitals, no keywords

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.packing import IndexFunctions

KINDS = 256
"""Windows that a program of ``mask_kinds`` has."""


@triton.jit
def locate_tokens(
    table, out, SIDE: tl.constexpr, BORDER: tl.constexpr, ROLL: tl.constexpr, CLAMP: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The tokens that a window sees: a program."""
    window, place = tl.program_id(0), tl.arange(0, LANES)
    first, row, column = tl.load(table + window * 5), tl.load(table + window * 5 + 1), tl.load(table + window * 5 + 2)
    rows, columns = tl.load(table + window * 5 + 3), tl.load(table + window * 5 + 4)
    length = SIDE + 2 * BORDER
    y, x = row * SIDE + place // length - BORDER, column * SIDE + place % length - BORDER
    inside_y = tl.minimum(tl.maximum(y, 0), rows * SIDE - 1)
    inside_x = tl.minimum(tl.maximum(x, 0), columns * SIDE - 1)
    # A remainder has the sign of what is divided.
    seen_y = (inside_y + ROLL + rows * SIDE) % (rows * SIDE)
    seen_x = (inside_x + ROLL + columns * SIDE) % (columns * SIDE)
    token = (first + seen_y // SIDE * columns + seen_x // SIDE) * (SIDE * SIDE) + seen_y % SIDE * SIDE + seen_x % SIDE
    if not CLAMP:
        token = tl.where((y == inside_y) & (x == inside_x), token, -1)
    tl.store(out + window.to(tl.int64) * (length * length) + place, token, mask=place < length * length)


@triton.jit(do_not_specialize=["count"])
def find_kinds(table, out, count, MANY: tl.constexpr):
    """The kinds of mask of ``MANY`` windows: a program."""
    window = tl.program_id(0) * MANY + tl.arange(0, MANY)
    there, place = window < count, table + window * 5
    at_right = tl.load(place + 2, mask=there) == tl.load(place + 4, mask=there) - 1
    at_bottom = tl.load(place + 1, mask=there) == tl.load(place + 3, mask=there) - 1
    tl.store(out + window, at_right.to(tl.int32) + 2 * at_bottom.to(tl.int32), mask=there)


@triton.jit
def place_rows(table, out, WINDOW: tl.constexpr, SCALE: tl.constexpr, LANES: tl.constexpr):
    """Where the rows of a window's output go: a program."""
    window, place = tl.program_id(0), tl.arange(0, LANES)
    first, row = tl.load(table + window * 5).to(tl.int64), tl.load(table + window * 5 + 1).to(tl.int64)
    column, columns = tl.load(table + window * 5 + 2), tl.load(table + window * 5 + 4)
    line = row * (WINDOW * SCALE) + place // WINDOW
    target = first * (WINDOW * WINDOW * SCALE) + line * (columns * WINDOW) + column * WINDOW + place % WINDOW
    count = WINDOW * SCALE * WINDOW
    tl.store(out + window.to(tl.int64) * count + place, target, mask=place < count)


def locate(grid: Tensor, side: int, *, border: int = 0, roll: int = 0, clamp: bool = False) -> Tensor:
    """As ``model.packing.locate``."""
    places = (side + 2 * border) ** 2
    out = grid.new_empty(len(grid), places)
    locate_tokens[(len(grid),)](
        grid, out, SIDE=side, BORDER=border, ROLL=roll, CLAMP=clamp, LANES=triton.next_power_of_2(places), num_warps=4
    )
    return out


def mask_kinds(grid: Tensor) -> Tensor:
    """As ``model.packing.mask_kinds``."""
    out = grid.new_empty(len(grid))
    find_kinds[(triton.cdiv(len(grid), KINDS),)](grid, out, len(grid), MANY=KINDS, num_warps=4)
    return out


def pixel_rows(grid: Tensor, window: int, scale: int = 1) -> Tensor:
    """As ``model.packing.pixel_rows``."""
    rows = window * scale * window
    out = torch.empty(len(grid) * rows, dtype=torch.int64, device=grid.device)
    place_rows[(len(grid),)](grid, out, WINDOW=window, SCALE=scale, LANES=triton.next_power_of_2(rows), num_warps=4)
    return out


INDEX = IndexFunctions(locate, mask_kinds, pixel_rows)
