"""Comparisons of a GPU's kernels with PyTorch's operators, on a GPU or in Triton's interpreter."""

from dataclasses import replace
from functools import partial

import torch

from model import windows
from model.gpu.network import WindowNetwork
from model.gpu.streams import float32_precision
from model.inference import operators
from model.inference.body import compute_block
from model.inference.operators import PLAIN, AttentionTables, NormWeights, Operators
from model.packing import lay_out, locate, mask_kinds, pixel_rows
from tests.networks import tiny_network

FORMS = [(60, 6, 8), (180, 6, 8), (180, 6, 7), (24, 2, 8), (20, 2, 7)]
"""Channels, heads and window: heads of 10, 30 and 12 channels, windows of 64 and 49 tokens, widths that are filled."""


def draw_attention(channels, heads, window, dtype, device, *, largest=100):
    """Queries, keys and values of a window of each kind, their kinds and tables; logits as large as they get."""
    torch.manual_seed(0)
    width, length = -(-channels // 8) * 8, window**2
    qkv = torch.randn(4 * length, 3, width, device=device)
    qkv[..., channels:] = 0
    masks = windows.mask_of_each_kind(window, window // 2)[:, None]
    bias = (16 * torch.rand(1, heads, length, length) + masks).to(device)
    scale = torch.linspace(1, largest, heads, device=device)
    kinds = torch.tensor([0, 3, 1, 2], dtype=torch.int32, device=device)
    return qkv.flatten(1).to(dtype), kinds, AttentionTables(bias, scale, channels)


def check_kernels(kernels, dtype, form, device, tolerance=1e-5):
    """Each kernel against PyTorch's operators; float32 within a tolerance."""
    channels, heads, window = form
    for largest in (40, 100):
        qkv, kinds, tables = draw_attention(channels, heads, window, dtype, device, largest=largest)
        found, exact = kernels.attend(qkv, kinds, tables), operators.attend(qkv.double(), kinds, tables)
        within = tolerance if dtype is torch.float32 else 1e-2
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), exact, rtol=within, atol=within)
        assert not found[:, channels:].any()
    branch = found[:100]  # of which every kernel needs several programs, the last one in part
    stream = torch.randn(branch.shape, device=device)
    norm = NormWeights(torch.randn(channels, device=device), torch.randn(channels, device=device), 1e-5)
    for rows in (None, torch.randperm(len(stream), device=device).int()):
        for here, there in zip(
            kernels.add_norm(stream, branch, norm, rows), operators.add_norm(stream, branch, norm, rows), strict=True
        ):
            assert here.dtype is there.dtype
            torch.testing.assert_close(here, there)
    rows = torch.randint(-1, len(qkv), (100,), dtype=torch.int32, device=device)
    rows[7] = -1
    for tokens in (qkv, qkv[:, :3].contiguous()):
        assert torch.equal(kernels.gather(tokens, rows), operators.gather(tokens, rows))


def check_block(kernels, dtype, form, device, logit_scale=None):
    """A block, and its end, by one kernel, in its order and from another, against PyTorch's operators in float64."""
    channels, heads, window = form
    fields = {"embed_dim": channels, "num_heads": [heads], "depths": [2], "window_size": window}
    network = tiny_network(**fields).to(device)
    if logit_scale is not None:
        network.swin2sr.encoder.stages[0].layers[1].attention.self.logit_scale.fill_(logit_scale)
    block = WindowNetwork(network, dtype).body.stages[0].blocks[1]
    exact = WindowNetwork(network.double(), torch.float64, torch.float64).body.stages[0].blocks[1]
    stream = torch.randn(4 * window**2, -(-channels // 8) * 8, device=device)
    stream[:, channels:] = 0
    kinds = torch.tensor([0, 3, 1, 2], dtype=torch.int32, device=device)
    tolerance = (1e-4 if logit_scale is None else 1e-3) if dtype is torch.float32 else 5e-2
    for rows in (None, torch.randperm(len(stream), device=device).int()):
        if channels <= kernels.WIDEST:
            found = kernels.run_block(stream, kinds, block, rows)
            start = stream.double() if rows is None else stream.double()[rows]
            expected, _ = compute_block(PLAIN, start, start, kinds, exact)
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        finishing = Operators(PLAIN.attend, PLAIN.add_norm, kernels.finish)
        finished, tokens = compute_block(finishing, stream, stream.to(dtype), kinds, block, rows=rows)
        expected, _ = compute_block(PLAIN, stream.double(), stream.double(), kinds, exact, rows=rows)
        torch.testing.assert_close(finished.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(tokens, finished.to(dtype))


def check_network(kernels, device):
    """A network by whole blocks, and by the other kernels, in both orders of tokens, against PyTorch's operators."""
    network = tiny_network(embed_dim=20, num_heads=(2, 2), depths=(2, 1)).to(device)
    plain = WindowNetwork(network, torch.float32)
    [fused] = kernels.kernels_for(plain.body.stages[0].blocks[0])
    assert fused.run_block is not None
    unrolled = replace(fused, finish=None, run_block=partial(kernels.run_block, unroll=True))
    grid = torch.from_numpy(lay_out([(16, 8), (8, 8)], 8)).to(device)
    pixels = torch.rand(len(grid) * 64, 3, device=device)
    with torch.inference_mode(), float32_precision("ieee", "ieee"):
        expected = plain(pixels, grid)
        for form in (fused, replace(fused, run_block=None), replace(fused, run_block=None, finish=None), unrolled):
            found = WindowNetwork(network, torch.float32, operators=form)(pixels, grid)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def check_which(kernels):
    """Whole blocks are for narrow networks, with an exact GELU; the unrolled one is not for float32."""
    for fields, dtype, expected in (
        ({"embed_dim": 128}, torch.bfloat16, [(True, False)]),
        ({"embed_dim": 128}, torch.float32, [(False, False)]),
        ({"hidden_act": "gelu_new"}, torch.bfloat16, [(False, False)]),
        ({}, torch.float32, [(True, True)]),
        ({}, torch.bfloat16, [(True, True), (False, True)]),
    ):
        block = WindowNetwork(tiny_network(**fields), dtype).body.stages[0].blocks[0]
        forms = kernels.kernels_for(block)
        assert [(form.finish is not None, form.run_block is not None) for form in forms] == expected


def check_tables(tables, device):
    """Index kernels against PyTorch's functions: every side, border and roll that a network asks for."""
    for window in (8, 7):
        grid = torch.from_numpy(lay_out([(window * 3, window * 2), (window, window)], window, 9)).to(device)
        assert torch.equal(tables.mask_kinds(grid), mask_kinds(grid))
        for scale in (1, 2, 4):
            assert torch.equal(tables.pixel_rows(grid, window, scale), pixel_rows(grid, window, scale))
            for border, roll, clamp in ((0, 0, False), (0, 3, False), (0, -4, False), (1, -3, False), (3, 0, True)):
                places = {"border": border, "roll": roll, "clamp": clamp}
                side = window * scale
                assert torch.equal(tables.locate(grid, side, **places), locate(grid, side, **places)), places
