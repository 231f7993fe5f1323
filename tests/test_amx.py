"""The kernel's AMX level, in its two precisions, against float64."""

import copy
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import cpu_kernel
from model.inference.cpu import Inference
from model.inference.packed_weights import Form, pack_block, pack_end
from model.packing import PackedLayout
from tests.networks import needs_amx, needs_kernel, tiny_network
from tests.test_cpu_kernel import plain, random_block, random_layers

PRECISIONS = {"high": 1e-4, "fast": 4e-2}
"""Largest root mean square error of a block whose output is about 1."""


def packed(block, precision):
    """A block's weights for the kernel, which computes it in this precision."""
    weights = pack_block(block, Form(torch.float32, torch.float32, precision=precision)).kernel
    assert weights.packed == (precision != "exact")
    return weights


def error(block, counts, precision):
    """Root mean square difference from float64 of a block on random tokens."""
    tokens = torch.randn(sum(counts) * block.window_size**2, block.layernorm_before.normalized_shape[0])
    with torch.inference_mode():
        return (
            (cpu_kernel.run(packed(block, precision), tokens, None, counts) - plain(block, tokens, counts))
            .square()
            .mean()
            .sqrt()
        )


@needs_amx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("window", [7, 8])
@pytest.mark.parametrize(("dim", "heads"), [(60, 6), (180, 6), (40, 2), (36, 6), (24, 4), (64, 2)])
def test_each_precision_is_as_near_to_float64_as_it_says(dim: int, heads: int, window: int, precision: str):
    """Head depths of all variants, 6 and 32, with one steep head: within the bound, and not within float32's error."""
    block = random_block(dim, heads, window, window // 2)
    with torch.no_grad():
        block.attention.self.logit_scale[0] = math.log(90)
    assert 4 * error(block, (5, 2, 2, 1), "exact") < error(block, (5, 2, 2, 1), precision) < PRECISIONS[precision]


@pytest.mark.slow
@needs_amx
@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 6),
    depth=st.integers(1, 16),
    window=st.integers(2, 8),
    hidden=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    counts=st.tuples(*[st.integers(0, 5)] * 4).filter(any),
    shifted=st.booleans(),
    precision=st.sampled_from(list(PRECISIONS)),
)
def test_amx_computes_the_block(*, heads, depth, window, hidden, counts, shifted, precision):
    """Any number of heads, pairs of channels, hidden channels and tokens, any mixture of masks."""
    dim = 2 * heads * depth
    block = random_block(dim, heads, window, window // 2 if shifted else 0, 2 * max(1, round(dim * hidden / 2)) / dim)
    assert error(block, counts if shifted else (sum(counts),), precision) < 2 * PRECISIONS[precision]


@needs_kernel
@pytest.mark.parametrize(
    "fields", [{"dim": 21, "heads": 3}, {"dim": 68, "heads": 2}, {"dim": 24, "heads": 2, "hidden": 21 / 24}]
)
def test_other_blocks_stay_in_float32(fields: dict):
    """An odd head depth, one above 32 or an odd number of hidden channels: `exact`, as the answer says."""
    block = random_block(window=8, shift=0, **fields)
    assert not pack_block(block, Form(torch.float32, torch.float32, precision="fast")).kernel.packed
    assert error(block, (3,), "exact") < 5e-6


@needs_amx
@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 100),
    window=st.integers(2, 8),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    linear=st.booleans(),
    precision=st.sampled_from(list(PRECISIONS)),
)
def test_amx_convolves(*, channels, window, sizes, linear, precision):
    """Images of any sizes, with and without the layer behind."""
    layout = PackedLayout(sorted((rows * window, columns * window) for rows, columns in sizes), window, window // 2)
    conv, behind = random_layers(channels)
    tokens, residual = torch.randn(2, layout.windows_count * window**2, channels)
    form = Form(torch.float32, torch.float32, precision=precision)
    kernel = pack_end(conv, behind if linear else None, form, window).kernel
    with torch.inference_mode():
        own = cpu_kernel.convolve(kernel, tokens, layout.halo(window), residual)
        images = layout.images(tokens.double().index_select(0, layout.images_from_windows))
        images = [copy.deepcopy(conv).double()(image) for image in images]
        images = [copy.deepcopy(behind).double()(image) for image in images] if linear else images
        rows = torch.cat([image.permute(0, 2, 3, 1).flatten(0, 2) for image in images])
        difference = own - (rows.index_select(0, layout.windows_from_images) + residual)
    assert difference.abs().max() < {"high": 2e-4, "fast": 4e-2}[precision]


@needs_amx
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_window_has_the_same_bits_at_every_position(precision: str):
    """Neither the other windows, nor the number of threads, nor the place in the batch changes a window."""
    block = packed(random_block(60, 6, 8, 4), precision)
    tokens, gather = torch.randn(40, 64 * 60), torch.randperm(40 * 64).int()
    with torch.inference_mode():
        together = cpu_kernel.run(block, tokens.view(-1, 60), None, (40, 0, 0, 0)).view(40, -1)
        alone = torch.cat([cpu_kernel.run(block, row.view(-1, 60), None, (1, 0, 0, 0)).view(1, -1) for row in tokens])
        gathered = cpu_kernel.run(block, tokens.view(-1, 60), gather, (40, 0, 0, 0))
        expected = cpu_kernel.run(block, tokens.view(-1, 60).index_select(0, gather), None, (40, 0, 0, 0))
    assert torch.equal(together, alone)
    assert torch.equal(gathered, expected)


@needs_amx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [0.01, 40.0, 40.5, 99.0, 1e9])
def test_extreme_logits_stay_finite(precision: str, scale: float):
    """Flat and steep attention up to far above the clamp, with large tokens and every mask."""
    block = random_block(24, 2, 7, 3)
    with torch.no_grad():
        block.attention.self.logit_scale.fill_(math.log(scale))
    tokens = 100 * torch.randn(8 * 49, 24)
    with torch.inference_mode():
        own = cpu_kernel.run(packed(block, precision), tokens, None, (2, 2, 2, 2))
        difference = (own - plain(block, tokens, (2, 2, 2, 2))).square().mean().sqrt()
    assert own.isfinite().all()
    assert difference < {"high": 5e-3, "fast": 1.0}[precision]


@needs_amx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38])
def test_what_is_no_number_stays_in_its_window(precision: str, value: float):
    """Its window is not finite anywhere, as in PyTorch, and every other one has the bits that it would have had."""
    block = packed(random_block(24, 2, 8, 0), precision)
    tokens = torch.randn(3, 64 * 24)
    with torch.inference_mode():
        before = cpu_kernel.run(block, tokens.view(-1, 24), None, (3,)).view(3, -1)
        tokens[1, 0] = value
        after = cpu_kernel.run(block, tokens.view(-1, 24), None, (3,)).view(3, -1)
    assert torch.equal(before[::2], after[::2])
    assert not after[1, :24].isfinite().all()


@needs_amx
def test_callers_at_once_have_the_answers_of_one():
    """Threads with networks of different precisions and sizes share the pool and do not meet in its memory."""
    work = []
    for precision in ("exact", "high", "fast"):
        for dim, heads in ((24, 2), (60, 6), (180, 6)):
            work.append((packed(random_block(dim, heads, 8, 0), precision), torch.randn(24 * 64, dim)))

    def compute(index: int) -> torch.Tensor:
        block, tokens = work[index % len(work)]
        with torch.inference_mode():
            return cpu_kernel.run(block, tokens, None, (24,))

    expected = [compute(index) for index in range(len(work))]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(compute, range(10 * len(work))))
    assert all(torch.equal(answer, expected[index % len(work)]) for index, answer in enumerate(found))


REFUSED = """
import ctypes, struct, sys

# A seccomp filter that refuses arch_prctl(ARCH_REQ_XCOMP_PERM), as a container may:
# (code, jump if so, jump if not, value)
rules = [
    (0x20, 0, 0, 0), (0x15, 0, 3, 158), (0x20, 0, 0, 16), (0x15, 0, 1, 0x1023),
    (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
if libc.prctl(22, 2, program, 0, 0):
    sys.exit(3)

import torch
from model.kernels import library
from model.inference.packed_weights import Form, pack_block
from tests.test_cpu_kernel import random_block

kernel = library.load_kernel()
assert not kernel.has_amx()
form = Form(torch.float32, torch.float32, precision="fast")
assert not pack_block(random_block(24, 2, 8, 0), form).kernel.packed
"""


@pytest.mark.slow
@needs_amx
def test_without_permission_float32_is_computed():
    """Where the operating system refuses the tiles, every precision is `exact`, and nothing crashes."""
    result = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False)
    if result.returncode == 3:
        pytest.skip("system calls cannot be filtered here")
    assert result.returncode == 0, result.stderr


@needs_amx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", ["classical_x2", "jpeg"])
def test_a_whole_network_takes_its_precision(head: str, precision: str):
    """Every block and convolution of a network computes in it: the image differs from float32's, and by little."""
    network, images = tiny_network(head), [torch.rand(1 if head == "jpeg" else 3, 56, 56)]
    with torch.inference_mode():
        exact = Inference(network).reconstruct(images)[0].image
        inference = Inference(network, precision=precision)
        assert inference.precision == precision
        difference = (inference.reconstruct(images)[0].image - exact).square().mean().sqrt()
    assert 0 < difference < {"high": 1e-3, "fast": 3e-1}[precision]
