"""The kernel's AMX level, in its two precisions, against float64."""

import copy
import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import cpu_kernel
from model.packing import PackedLayout
from tests.networks import needs_amx, needs_kernel, tiny_network
from tests.test_cpu_kernel import plain, random_block, random_layers

PRECISIONS = {"high": 1e-4, "fast": 4e-2}
"""Largest root mean square error of a block whose output is about 1."""


def error(block, counts, precision):
    """Root mean square difference from float64 of a block on random tokens."""
    tokens = torch.randn(sum(counts) * block.attn.window**2, block.attn.dim)
    with torch.inference_mode():
        assert cpu_kernel.prepare(block, precision) == precision
        return (cpu_kernel.run(block, tokens, None, counts) - plain(block, tokens, counts)).square().mean().sqrt()


@needs_amx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("window", [7, 8])
@pytest.mark.parametrize(("dim", "heads"), [(60, 6), (180, 6), (40, 2), (36, 6), (24, 4), (64, 2)])
def test_each_precision_is_as_near_to_float64_as_it_says(dim: int, heads: int, window: int, precision: str):
    """Head depths of all variants, 6 and 32, with one steep head: within the bound, and not within float32's error."""
    block = random_block(dim, heads, window, window // 2)
    with torch.no_grad():
        block.attn.logit_scale[0] = math.log(90)
    block.attn.refresh()
    assert 4 * error(block, (5, 2, 2, 1), "exact") < error(block, (5, 2, 2, 1), precision) < PRECISIONS[precision]


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
    block = random_block(dim, heads, window, window // 2 if shifted else 0, 2 * round(dim * hidden / 2) / dim)
    assert error(block, counts if shifted else (sum(counts),), precision) < 2 * PRECISIONS[precision]


@needs_kernel
@pytest.mark.parametrize(
    "fields", [{"dim": 21, "heads": 3}, {"dim": 68, "heads": 2}, {"dim": 24, "heads": 2, "hidden": 21 / 24}]
)
def test_other_blocks_stay_in_float32(fields: dict):
    """An odd head depth, one above 32 or an odd number of hidden channels: `exact`, as the answer says."""
    block = random_block(window=8, shift=0, **fields)
    assert cpu_kernel.prepare(block, "fast") == "exact"
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
    layout = PackedLayout([(rows * window, columns * window) for rows, columns in sizes], window, window // 2)
    conv, behind = random_layers(channels)
    tokens, residual = torch.randn(2, layout.windows_count * window**2, channels)
    layers, halo = (conv, behind if linear else None), layout.halo(shifted=False)
    cpu_kernel.prepare(conv, precision)
    with torch.inference_mode():
        own = cpu_kernel.convolve(layers, tokens, halo, residual)
        images = [
            copy.deepcopy(conv).double()(image[None])
            for image in layout.unpack(layout.to_canvas(tokens.double(), shifted=False))
        ]
        images = [copy.deepcopy(behind).double()(image) for image in images] if linear else images
        difference = own - (layout.to_windows(layout.pack([image[0] for image in images])) + residual)
    assert difference.abs().max() < {"high": 2e-4, "fast": 4e-2}[precision]


@needs_amx
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_window_has_the_same_bits_wherever_it_stands(precision: str):
    """Neither the other windows, nor the number of threads, nor the place in the batch changes a window."""
    block = random_block(60, 6, 8, 4)
    cpu_kernel.prepare(block, precision)
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
        block.attn.logit_scale.fill_(math.log(scale))
    block.attn.refresh()
    cpu_kernel.prepare(block, precision)
    tokens = 100 * torch.randn(8 * 49, 24)
    with torch.inference_mode():
        own = cpu_kernel.run(block, tokens, None, (2, 2, 2, 2))
        difference = (own - plain(block, tokens, (2, 2, 2, 2))).square().mean().sqrt()
    assert own.isfinite().all()
    assert difference < {"high": 5e-3, "fast": 1.0}[precision]


@needs_amx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38])
def test_what_is_no_number_stays_in_its_window(precision: str, value: float):
    """Its window is not finite anywhere, as in PyTorch, and every other one has the bits that it would have had."""
    block = random_block(24, 2, 8, 0)
    cpu_kernel.prepare(block, precision)
    tokens = torch.randn(3, 64 * 24)
    with torch.inference_mode():
        before = cpu_kernel.run(block, tokens.view(-1, 24), None, (3,)).view(3, -1)
        tokens[1, 0] = value
        after = cpu_kernel.run(block, tokens.view(-1, 24), None, (3,)).view(3, -1)
    assert torch.equal(before[::2], after[::2])
    assert not after[1, :24].isfinite().all()


@needs_amx
def test_changed_weights_are_packed_again():
    """A weight that is changed in place or replaced, and tables that are computed again, take effect."""
    block, tokens = random_block(24, 2, 8, 0), torch.randn(64, 24)
    cpu_kernel.prepare(block, "high")

    def change_scale() -> None:
        block.attn.logit_scale.fill_(2.0)
        block.attn.refresh()

    changes = [
        lambda: block.mlp.fc2.weight.mul_(-3),
        lambda: setattr(block.mlp.fc1, "weight", torch.nn.Parameter(torch.randn(48, 24))),
        lambda: setattr(block.attn.proj.weight, "data", torch.randn(24, 24)),
        change_scale,
    ]
    for change in changes:
        with torch.no_grad():
            cpu_kernel.run(block, tokens, None, (1,))
            change()
            assert (cpu_kernel.run(block, tokens, None, (1,)) - plain(block, tokens, (1,))).abs().max() < 2e-3


@needs_amx
def test_copies_keep_their_precision():
    """A network copied or pickled computes what it did, with memory of its own."""
    block, tokens = random_block(24, 2, 8, 0), torch.randn(64, 24)
    cpu_kernel.prepare(block, "fast")
    copies = copy.deepcopy(block), pickle.loads(pickle.dumps(block))
    with torch.inference_mode():
        expected = cpu_kernel.run(block, tokens, None, (1,))
        del block
        for each in copies:
            assert torch.equal(cpu_kernel.run(each, tokens, None, (1,)), expected)


@needs_amx
def test_callers_at_once_have_the_answers_of_one():
    """Threads with networks of different precisions and sizes share the pool and do not meet in its memory."""
    work = []
    for precision in ("exact", "high", "fast"):
        for dim, heads in ((24, 2), (60, 6), (180, 6)):
            block, tokens = random_block(dim, heads, 8, 0), torch.randn(24 * 64, dim)
            cpu_kernel.prepare(block, precision)
            work.append((block, tokens))

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
from model import cpu_kernel
from tests.test_cpu_kernel import random_block

kernel = cpu_kernel.load_kernel()
assert not kernel.has_amx()
block = random_block(24, 2, 8, 0)
assert cpu_kernel.prepare(block, "fast") == "exact"
other = random_block(24, 2, 8, 0)
tokens = torch.randn(128, 24)
with torch.inference_mode():
    assert torch.equal(cpu_kernel.run(block, tokens, None, (2,)), cpu_kernel.run(other, tokens, None, (2,)))
"""


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
    network, canvas = tiny_network(head), torch.rand(1, 1 if head == "jpeg" else 3, 56, 56)
    with torch.inference_mode():
        exact = network(canvas).image
        assert cpu_kernel.prepare(network, precision) == precision
        difference = (network(canvas).image - exact).square().mean().sqrt()
    assert 0 < difference < {"high": 1e-3, "fast": 3e-1}[precision]
