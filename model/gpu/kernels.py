"""The operators as Triton kernels; importing this needs Triton.

Source of the arithmetic: ``model.gpu.operators``. Cosines are taken after the product: the tensor cores see queries and
keys as they came, and only their lengths are divided out, in float32.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201, N803, PLR0917 - kernels are Triton's language: no types, constants in capitals, no keywords

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.gpu.operators import AttentionTables, NormWeights, Operators

ROWS = 8
"""Tokens that a program of ``add_norm`` has."""


@triton.jit
def attend_windows(
    qkv, out, bias, scale, kinds,
    TOKENS: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, LANES: tl.constexpr,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SPARE: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """One head of one window: a program; heads of a window are neighbours, so that they share what the cache has."""
    window, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    slot, lane = tl.arange(0, SLOTS), tl.arange(0, LANES)
    token = (window.to(tl.int64) * TOKENS + slot)[:, None]
    there = (slot < TOKENS)[:, None] & (lane < DIM)[None, :]
    place = qkv + token * (3 * WIDTH) + head * DIM + lane[None, :]
    query = tl.load(place, mask=there, other=0.0).to(NUMBERS)
    key = tl.load(place + WIDTH, mask=there, other=0.0).to(NUMBERS)
    value = tl.load(place + 2 * WIDTH, mask=there, other=0.0).to(NUMBERS)
    q, k = query.to(tl.float32), key.to(tl.float32)
    length_q = tl.maximum(tl.sqrt(tl.sum(q * q, 1)), 1e-12)
    length_k = tl.maximum(tl.sqrt(tl.sum(k * k, 1)), 1e-12)
    logits = tl.dot(query, tl.trans(key), input_precision="ieee")
    logits = logits * (tl.load(scale + head) / length_q)[:, None] / length_k[None, :]
    table = bias + (tl.load(kinds + window) * HEADS + head) * (TOKENS * TOKENS)
    both = (slot < TOKENS)[:, None] & (slot < TOKENS)[None, :]
    logits += tl.load(table + slot[:, None] * TOKENS + slot[None, :], mask=both, other=0.0)
    logits = tl.where((slot < TOKENS)[None, :], logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    mixed = tl.dot(weights.to(NUMBERS), value, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    target = out + token * WIDTH
    tl.store(target + head * DIM + lane[None, :], mixed, mask=there)
    if head == HEADS - 1:
        spare = tl.arange(0, SPARE)[None, :]
        empty = (slot < TOKENS)[:, None] & (CHANNELS + spare < WIDTH)
        tl.store(target + CHANNELS + spare, tl.zeros((SLOTS, SPARE), NUMBERS), mask=empty)


@triton.jit(do_not_specialize=["count"])  # or another kernel would be compiled for some numbers, in a request
def add_norm_rows(
    stream, branch, weight, bias, rows, stream_out, branch_out, count, eps,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, MANY: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """``MANY`` tokens: a program."""
    row, lane = tl.program_id(0) * MANY + tl.arange(0, MANY), tl.arange(0, LANES)[None, :]
    inside, full = (row < count)[:, None] & (lane < CHANNELS), (row < count)[:, None] & (lane < WIDTH)
    source = tl.load(rows + row, mask=row < count, other=0) if GATHER else row
    place = source.to(tl.int64)[:, None] * WIDTH + lane
    values = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1)[:, None] / CHANNELS
    centred = tl.where(lane < CHANNELS, values - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 1) / CHANNELS + eps)[:, None]
    factor = tl.load(weight + lane, mask=lane < CHANNELS, other=0.0)
    normal = centred / deviation * factor + tl.load(bias + lane, mask=lane < CHANNELS, other=0.0)
    total = tl.load(stream + place, mask=full, other=0.0) + normal
    target = row.to(tl.int64)[:, None] * WIDTH + lane
    tl.store(stream_out + target, total, mask=full)
    tl.store(branch_out + target, total, mask=full)


def attend(qkv: Tensor, kinds: Tensor, tables: AttentionTables) -> Tensor:
    """As ``model.gpu.operators.Attend``, for float32 and bfloat16."""
    heads, length = tables.bias.shape[1:3]
    width, channels = qkv.shape[1] // 3, tables.channels
    out = qkv.new_empty(len(qkv), width)
    attend_windows[(len(qkv) // length * heads,)](
        qkv, out, tables.bias, tables.scale, kinds,
        TOKENS=length, SLOTS=_room(length), HEADS=heads, DIM=channels // heads, LANES=_room(channels // heads),
        CHANNELS=channels, WIDTH=width, SPARE=triton.next_power_of_2(max(width - channels, 1)), NUMBERS=_numbers(qkv),
        num_warps=4,
    )  # fmt: skip
    return out


def add_norm(stream: Tensor, branch: Tensor, norm: NormWeights, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``model.gpu.operators.AddNorm``, for a stream in float32."""
    (count, width), channels = stream.shape, norm.weight.shape[0]
    stream_out, branch_out = torch.empty_like(stream), torch.empty_like(branch)
    add_norm_rows[(triton.cdiv(count, ROWS),)](
        stream, branch, norm.weight, norm.bias, stream if rows is None else rows, stream_out, branch_out, count,
        norm.eps, CHANNELS=channels, WIDTH=width, LANES=triton.next_power_of_2(width), MANY=ROWS,
        GATHER=rows is not None,
        num_warps=4,
    )  # fmt: skip
    return stream_out, branch_out


def _room(size: int) -> int:
    """What the tensor cores take: a power of two, 16 at least."""
    return max(16, triton.next_power_of_2(size))


def _numbers(tensor: Tensor) -> tl.dtype:
    """What is multiplied: bfloat16 as it is; Triton's interpreter multiplies its bits, so there it is float32."""
    return tl.bfloat16 if tensor.dtype is torch.bfloat16 and tensor.is_cuda else tl.float32


FUSED = Operators(attend, add_norm)
