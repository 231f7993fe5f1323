"""The operators as Triton kernels; importing this needs Triton.

Source of the arithmetic: ``model.inference.operators``. Nothing is rounded twice: queries and keys in bfloat16 are
multiplied as they are, and the products divided by their lengths; those in float32 are normalised first. Bounded
logits are to the base of 2. Other logits may be large, and rounding to that base would make them less precise.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201, N803, PLR0917 - kernels are Triton's language: no types, constants in capitals, no keywords

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from model.gpu.index_kernels import INDEX
from model.inference.operators import AttentionTables, NormWeights, Operators
from model.inference.packed_weights import Block, Weights

ROWS = 8
"""Tokens that a program of ``add_norm`` has."""

FINISHED = 64
"""Tokens that a program of ``finish`` has."""

CHUNK = 32
"""Hidden channels that a program has at a time."""

GATHERED = 4096
"""Numbers that a program of ``gather`` moves."""

WIDEST = 64
"""Channels up to which a whole block is one kernel: of more, a program's registers would not hold a window."""


@triton.jit
def inverse_length(vectors):
    """One over the length of each row, or over 1e-12."""
    return tl.rsqrt(tl.maximum(tl.sum(vectors * vectors, 1), 1e-24))


@triton.jit
def mix(
    logits, value, table,
    TOKENS: tl.constexpr, SLOTS: tl.constexpr, NUMBERS: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """One head's attention of logits (SLOTS, SLOTS), still without their bias, to values (SLOTS, LANES)."""
    slot = tl.arange(0, SLOTS)
    place = table + slot[:, None] * TOKENS + slot[None, :]
    if TOKENS == SLOTS:
        logits += tl.load(place)
    else:
        both = (slot < TOKENS)[:, None] & (slot < TOKENS)[None, :]
        logits = tl.where((slot < TOKENS)[None, :], logits + tl.load(place, mask=both, other=0.0), -1e30)
    weights = tl.exp2(logits) if BOUNDED else tl.exp(logits - tl.max(logits, 1)[:, None])
    mixed = tl.dot(weights.to(NUMBERS), value, input_precision="ieee")
    return mixed * (1.0 / tl.sum(weights, 1))[:, None]


@triton.jit
def normalise(values, weight, bias, eps, lane, CHANNELS: tl.constexpr):
    """LayerNorm of float32 rows, whose lanes beyond the channels are and become zero."""
    inside = lane < CHANNELS
    mean = tl.sum(values, 1)[:, None] / CHANNELS
    centred = tl.where(inside[None, :], values - mean, 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, 1) / CHANNELS + eps)[:, None]
    factor = tl.load(weight + lane, mask=inside, other=0.0)[None, :]
    return scaled * factor + tl.load(bias + lane, mask=inside, other=0.0)[None, :]


@triton.jit
def gelu(values):
    """Exact GELU to 3e-7, absolute: max(x, 0) - |x| Phi(-|x|), with log2 Phi(-a) fitted on [0, 6], as on a CPU."""
    size = tl.abs(values)
    a = tl.minimum(size, 6.0)
    power = -1.932080294864136e-06 * a + 2.8458098313421942e-05
    power = power * a - 0.00013361845049075782
    power = power * a - 0.00026620193966664374
    power = power * a + 0.0072367237880826
    power = power * a - 0.052620988339185715
    power = power * a - 0.4591641426086426
    power = power * a - 1.1511112451553345
    power = power * a - 0.9999998807907104
    return tl.maximum(values, 0.0) - size * tl.exp2(power)


@triton.jit
def mlp(
    tokens, fc1_weight, fc1_bias, fc2_weight, fc2_bias, norm_weight, norm_bias, eps,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr, NUMBERS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The second branch of tokens (SLOTS, COLUMNS), normalised, in float32; the hidden layer goes by in chunks."""
    column = tl.arange(0, COLUMNS)
    wide = column < WIDTH
    branch = tl.zeros((SLOTS, COLUMNS), tl.float32)
    for start in tl.range(0, HIDDEN, CHUNK, loop_unroll_factor=UNROLL):
        unit = start + tl.arange(0, CHUNK)
        place, known = unit[None, :] * WIDTH + column[:, None], (unit < HIDDEN)[None, :] & wide[:, None]
        hidden = tl.dot(tokens, tl.load(fc1_weight + place, mask=known, other=0.0), input_precision="ieee")
        hidden += tl.load(fc1_bias + unit, mask=unit < HIDDEN, other=0.0).to(tl.float32)[None, :]
        hidden = gelu(hidden)
        place, known = column[None, :] * HIDDEN + unit[:, None], (unit < HIDDEN)[:, None] & wide[None, :]
        down = tl.load(fc2_weight + place, mask=known, other=0.0)
        branch += tl.dot(hidden.to(NUMBERS), down, input_precision="ieee")
    branch += tl.load(fc2_bias + column, mask=wide, other=0.0).to(tl.float32)[None, :]
    return normalise(branch, norm_weight, norm_bias, eps, column, CHANNELS)


@triton.jit
def attend_windows(
    qkv, out, bias, scale, kinds,
    TOKENS: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, LANES: tl.constexpr,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SPARE: tl.constexpr, NUMBERS: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """One head of one window: a program; heads of a window are neighbours, so that they share what the cache has."""
    window, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    slot, lane = tl.arange(0, SLOTS), tl.arange(0, LANES)
    token = (window.to(tl.int64) * TOKENS + slot)[:, None]
    there = (slot < TOKENS)[:, None] & (lane < DIM)[None, :]
    place = qkv + token * (3 * WIDTH) + head * DIM + lane[None, :]
    query = tl.load(place, mask=there, other=0.0)
    key = tl.load(place + WIDTH, mask=there, other=0.0)
    value = tl.load(place + 2 * WIDTH, mask=there, other=0.0)
    table = bias + (tl.load(kinds + window) * HEADS + head) * (TOKENS * TOKENS)
    by_query = inverse_length(query.to(tl.float32)) * tl.load(scale + head)
    logits = tl.dot(query.to(NUMBERS), tl.trans(key.to(NUMBERS)), input_precision="ieee")
    logits = logits * by_query[:, None] * inverse_length(key.to(tl.float32))[None, :]
    mixed = mix(logits, value.to(NUMBERS), table, TOKENS, SLOTS, NUMBERS, BOUNDED)
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
    row, lane = tl.program_id(0) * MANY + tl.arange(0, MANY), tl.arange(0, LANES)
    full = (row < count)[:, None] & (lane < WIDTH)[None, :]
    source = tl.load(rows + row, mask=row < count, other=0) if GATHER else row
    place = source.to(tl.int64)[:, None] * WIDTH + lane[None, :]
    values = tl.load(branch + place, mask=full, other=0.0).to(tl.float32)
    normal = normalise(values, weight, bias, eps, lane, CHANNELS)
    total = tl.load(stream + place, mask=full, other=0.0) + normal
    target = row.to(tl.int64)[:, None] * WIDTH + lane[None, :]
    tl.store(stream_out + target, total, mask=full)
    tl.store(branch_out + target, total, mask=full)


@triton.jit
def block_windows(
    stream, out, rows, kinds, bias, scale, qkv_weight, qkv_bias, proj_weight, proj_bias, norm1_weight, norm1_bias,
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, norm2_weight, norm2_bias, eps,
    TOKENS: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, LANES: tl.constexpr,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
    NUMBERS: tl.constexpr, GATHER: tl.constexpr, BOUNDED: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A whole block of one window: a program. The hidden layer goes by in chunks, the heads one by one."""
    window = tl.program_id(0)
    slot, lane, column = tl.arange(0, SLOTS), tl.arange(0, LANES), tl.arange(0, COLUMNS)
    token = window.to(tl.int64) * TOKENS + slot
    source = tl.load(rows + token, mask=slot < TOKENS, other=0).to(tl.int64) if GATHER else token
    full, wide = (slot < TOKENS)[:, None] & (column < WIDTH)[None, :], column < WIDTH
    total = tl.load(stream + source[:, None] * WIDTH + column[None, :], mask=full, other=0.0)
    tokens = total.to(NUMBERS)
    kind = tl.load(kinds + window)
    branch = tl.zeros((SLOTS, COLUMNS), tl.float32)
    for head in tl.range(0, HEADS, loop_unroll_factor=UNROLL):
        row, own = head * DIM + lane, lane < DIM
        place, known = row[None, :] * WIDTH + column[:, None], own[None, :] & wide[:, None]
        query = tl.dot(tokens, tl.load(qkv_weight + place, mask=known, other=0.0), input_precision="ieee")
        query += tl.load(qkv_bias + row, mask=own, other=0.0).to(tl.float32)[None, :]
        place += WIDTH * WIDTH
        key = tl.dot(tokens, tl.load(qkv_weight + place, mask=known, other=0.0), input_precision="ieee")
        key += tl.load(qkv_bias + WIDTH + row, mask=own, other=0.0).to(tl.float32)[None, :]
        place += WIDTH * WIDTH
        value = tl.dot(tokens, tl.load(qkv_weight + place, mask=known, other=0.0), input_precision="ieee")
        value += tl.load(qkv_bias + 2 * WIDTH + row, mask=own, other=0.0).to(tl.float32)[None, :]
        table = bias + (kind * HEADS + head) * (TOKENS * TOKENS)
        query *= (inverse_length(query) * tl.load(scale + head))[:, None]
        key *= inverse_length(key)[:, None]
        logits = tl.dot(query.to(NUMBERS), tl.trans(key.to(NUMBERS)), input_precision="ieee")
        mixed = mix(logits, value.to(NUMBERS), table, TOKENS, SLOTS, NUMBERS, BOUNDED).to(NUMBERS)
        place, known = column[None, :] * WIDTH + row[:, None], own[:, None] & wide[None, :]
        branch += tl.dot(mixed, tl.load(proj_weight + place, mask=known, other=0.0), input_precision="ieee")
    branch += tl.load(proj_bias + column, mask=wide, other=0.0).to(tl.float32)[None, :]
    total += normalise(branch, norm1_weight, norm1_bias, eps, column, CHANNELS)
    total += mlp(
        total.to(NUMBERS), fc1_weight, fc1_bias, fc2_weight, fc2_bias, norm2_weight, norm2_bias, eps,
        SLOTS, CHANNELS, WIDTH, COLUMNS, HIDDEN, CHUNK, NUMBERS, UNROLL,
    )  # fmt: skip
    tl.store(out + token[:, None] * WIDTH + column[None, :], total, mask=full)


@triton.jit(do_not_specialize=["count"])
def finish_rows(
    stream, branch, rows, stream_out, branch_out, count, norm1_weight, norm1_bias,
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, norm2_weight, norm2_bias, eps,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr, NUMBERS: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """All of a block behind its attention, for ``SLOTS`` tokens: a program."""
    row, column = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS), tl.arange(0, COLUMNS)
    full = (row < count)[:, None] & (column < WIDTH)[None, :]
    source = tl.load(rows + row, mask=row < count, other=0) if GATHER else row
    place = source.to(tl.int64)[:, None] * WIDTH + column[None, :]
    values = tl.load(branch + place, mask=full, other=0.0).to(tl.float32)
    total = tl.load(stream + place, mask=full, other=0.0)
    total += normalise(values, norm1_weight, norm1_bias, eps, column, CHANNELS)
    total += mlp(
        total.to(NUMBERS), fc1_weight, fc1_bias, fc2_weight, fc2_bias, norm2_weight, norm2_bias, eps,
        SLOTS, CHANNELS, WIDTH, COLUMNS, HIDDEN, CHUNK, NUMBERS, 1,
    )  # fmt: skip
    target = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(stream_out + target, total, mask=full)
    tl.store(branch_out + target, total, mask=full)


@triton.jit(do_not_specialize=["count"])
def gather_rows(
    tokens, rows, out, count, WIDTH: tl.constexpr, LANES: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """``MANY`` rows: a program."""
    row, lane = tl.program_id(0) * MANY + tl.arange(0, MANY), tl.arange(0, LANES)
    source = tl.load(rows + row, mask=row < count, other=0)
    inside, full = (source >= 0)[:, None], (row < count)[:, None] & (lane < WIDTH)[None, :]
    values = tl.load(tokens + source.to(tl.int64)[:, None] * WIDTH + lane[None, :], mask=full & inside, other=0.0)
    tl.store(out + row.to(tl.int64)[:, None] * WIDTH + lane[None, :], values, mask=full)


def attend(qkv: Tensor, kinds: Tensor, tables: AttentionTables) -> Tensor:
    """As ``model.inference.operators.Attend``, for float32 and bfloat16."""
    heads, length = tables.bias.shape[1:3]
    width, channels = qkv.shape[1] // 3, tables.channels
    out = qkv.new_empty(len(qkv), width)
    attend_windows[(len(qkv) // length * heads,)](
        qkv, out, *_cosine_tables(tables), kinds,
        TOKENS=length, SLOTS=_room(length), HEADS=heads, DIM=channels // heads, LANES=_room(channels // heads),
        CHANNELS=channels, WIDTH=width, SPARE=triton.next_power_of_2(max(width - channels, 1)), NUMBERS=_numbers(qkv),
        BOUNDED=tables.bounded,
        num_warps=4,
    )  # fmt: skip
    return out


def add_norm(stream: Tensor, branch: Tensor, norm: NormWeights, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``model.inference.operators.AddNorm``, for a stream in float32."""
    (count, width), channels = stream.shape, norm.weight.shape[0]
    stream_out, branch_out = torch.empty_like(stream), torch.empty_like(branch)
    add_norm_rows[(triton.cdiv(count, ROWS),)](
        stream, branch, norm.weight, norm.bias, stream if rows is None else rows, stream_out, branch_out, count,
        norm.eps, CHANNELS=channels, WIDTH=width, LANES=triton.next_power_of_2(width), MANY=ROWS,
        GATHER=rows is not None,
        num_warps=4,
    )  # fmt: skip
    return stream_out, branch_out


def gather(tokens: Tensor, rows: Tensor) -> Tensor:
    """As ``model.inference.operators.Gather``."""
    width, count = tokens.shape[1], len(rows)
    lanes = triton.next_power_of_2(width)
    many, out = max(1, GATHERED // lanes), tokens.new_empty(count, width)
    gather_rows[(triton.cdiv(count, many),)](tokens, rows, out, count, WIDTH=width, LANES=lanes, MANY=many, num_warps=4)
    return out


def run_block(
    stream: Tensor, kinds: Tensor, block: Block, rows: Tensor | None, out: Tensor | None = None, *, unroll: bool = False
) -> Tensor:
    """As ``model.inference.operators.RunBlock``, for float32 and bfloat16 and an exact GELU.

    With ``unroll`` its loops are written out: a fifth fewer instructions, and nothing is fetched ahead. Which is faster
    depends on the card.
    """
    heads, length = block.tables.bias.shape[1:3]
    channels, width, numbers = block.tables.channels, stream.shape[1], _numbers(block.qkv.weight)
    out = torch.empty_like(stream) if out is None else out
    block_windows[(len(stream) // length,)](
        stream, out, stream if rows is None else rows, kinds, *_cosine_tables(block.tables),
        *_multiplied(numbers, block.qkv, block.proj), block.norm1.weight, block.norm1.bias,
        *_multiplied(numbers, block.fc1, block.fc2), block.norm2.weight, block.norm2.bias, block.norm1.eps,
        TOKENS=length, SLOTS=_room(length), HEADS=heads, DIM=channels // heads, LANES=_room(channels // heads),
        CHANNELS=channels, WIDTH=width, COLUMNS=_room(width), HIDDEN=len(block.fc1.weight), CHUNK=CHUNK,
        NUMBERS=numbers, GATHER=rows is not None, BOUNDED=block.tables.bounded,
        UNROLL=max(heads, triton.cdiv(len(block.fc1.weight), CHUNK)) if unroll else 1,
        num_warps=4,
    )  # fmt: skip
    return out


def finish(stream: Tensor, branch: Tensor, block: Block, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``model.inference.operators.Finish``, for float32 and bfloat16 and an exact GELU."""
    (count, width), numbers = stream.shape, _numbers(branch)
    stream_out, branch_out = torch.empty_like(stream), torch.empty_like(branch)
    finish_rows[(triton.cdiv(count, FINISHED),)](
        stream, branch, stream if rows is None else rows, stream_out, branch_out, count,
        block.norm1.weight, block.norm1.bias, *_multiplied(numbers, block.fc1, block.fc2),
        block.norm2.weight, block.norm2.bias, block.norm1.eps,
        SLOTS=FINISHED, CHANNELS=block.tables.channels, WIDTH=width, COLUMNS=_room(width),
        HIDDEN=len(block.fc1.weight), CHUNK=CHUNK, NUMBERS=numbers, GATHER=rows is not None,
        num_warps=4 if block.tables.channels <= WIDEST else 8,
    )  # fmt: skip
    return stream_out, branch_out


def _multiplied(numbers: tl.dtype, *layers: Weights) -> list[Tensor]:
    """Weights and biases as what is multiplied: themselves, but for bfloat16 in the interpreter."""
    kept = torch.bfloat16 if numbers == tl.bfloat16 else torch.float32
    return [tensor.to(kept) for layer in layers for tensor in (layer.weight, layer.bias)]


def _cosine_tables(tables: AttentionTables) -> tuple[Tensor, Tensor]:
    """Bias and factor of the logits."""
    return (tables.bias_2, tables.scale_2) if tables.bounded else (tables.bias, tables.scale)


def _room(size: int) -> int:
    """What the tensor cores take: a power of two, 16 at least."""
    return max(16, triton.next_power_of_2(size))


def _numbers(tensor: Tensor) -> tl.dtype:
    """What is multiplied: bfloat16 as it is; Triton's interpreter multiplies its bits, so there it is float32."""
    return tl.bfloat16 if tensor.dtype is torch.bfloat16 and tensor.is_cuda else tl.float32


def kernels_for(block: Block) -> list[Operators]:
    """The kernels that can compute a network's blocks, of which this is one; and more forms of the block.

    In float32 the unrolled block has too many instructions, and the end of a wide block has no room in shared memory.
    """
    exact = isinstance(block.act, nn.GELU) and block.act.approximate == "none"
    narrow, large = block.tables.channels <= WIDEST, block.qkv.weight.dtype is torch.float32
    if not exact or (large and not narrow):
        return [Operators(attend, add_norm, gather=gather, index=INDEX)]
    if not narrow:
        return [Operators(attend, add_norm, finish, gather=gather, index=INDEX)]
    whole = Operators(attend, add_norm, finish, run_block, gather, index=INDEX)
    if large:
        return [whole]
    return [whole, replace(whole, finish=None, run_block=partial(run_block, unroll=True))]
