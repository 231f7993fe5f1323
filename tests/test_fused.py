"""The C kernel against PyTorch's operators."""

import copy
import shutil
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import model
from model import fused
from model.config import Swin2SRConfig
from model.network import CHUNK, SwinTransformerBlock, split_counts

needs_kernel = pytest.mark.skipif(fused.load_kernel() is None, reason="the kernel was not built: no C compiler")


def random_block(dim: int, heads: int, window: int, shift: int, hidden: float = 2.0, **fields) -> SwinTransformerBlock:
    torch.manual_seed(dim + heads + window)
    config = Swin2SRConfig(
        embed_dim=dim, num_heads=(heads,), depths=(2,), window_size=window, mlp_ratio=hidden, **fields
    )
    block = SwinTransformerBlock(config, heads, shift, 0.0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return block.eval()


def plain(block: SwinTransformerBlock, tokens: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    """What the block's operators say, in float64."""
    windows = tokens.double().view(-1, block.attn.window**2, tokens.shape[1])
    return copy.deepcopy(block).double().attend_and_mix(windows, counts).view_as(tokens)


@pytest.mark.skipif(shutil.which(sysconfig.get_config_var("CC").split()[0]) is None, reason="there is no C compiler")
def test_the_kernel_is_there_where_it_could_be_built():
    """An installation on a machine with a compiler has the kernel."""
    assert fused.load_kernel() is not None


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 6),
    depth=st.integers(4, 13),
    window=st.integers(2, 8),
    hidden=st.sampled_from([0.5, 1.0, 2.0, 3.7]),
    counts=st.tuples(*[st.integers(0, 5)] * 4).filter(any),
    shifted=st.booleans(),
)
def test_the_kernel_computes_the_block(*, heads, depth, window, hidden, counts, shifted):
    """Any number of heads, channels, hidden channels and tokens, any mixture of masks: within 5e-5 of float64."""
    block = random_block(heads * depth, heads, window, window // 2 if shifted else 0, hidden)
    counts = counts if shifted else (sum(counts),)
    tokens = torch.randn(sum(counts) * window**2, heads * depth)
    with torch.inference_mode():
        assert fused.can_run(block, tokens)
        assert (fused.run(block, tokens, None, counts) - plain(block, tokens, counts)).abs().max() < 5e-5


@needs_kernel
@pytest.mark.parametrize(("dim", "heads", "window"), [(60, 6, 8), (180, 6, 8), (180, 6, 7), (32, 4, 8)])
def test_the_kernel_computes_the_released_networks_blocks(dim: int, heads: int, window: int):
    """At the released sizes its error against float64 is of the order of PyTorch's own."""
    block = random_block(dim, heads, window, window // 2)
    counts = (9, 3, 3, 1)
    tokens = torch.randn(16 * window**2, dim)
    with torch.inference_mode():
        exact = plain(block, tokens, counts)
        own = (fused.run(block, tokens, None, counts) - exact).square().mean().sqrt()
        windows = tokens.view(-1, window**2, dim)
        torchs = (block.attend_and_mix(windows, counts).view_as(tokens) - exact).square().mean().sqrt()
    assert own < 3 * torchs


@needs_kernel
def test_the_kernel_gathers():
    """Tokens are taken from the rows that the table names."""
    block = random_block(24, 2, 8, 0)
    tokens = torch.randn(3 * 64, 24)
    gather = torch.randperm(3 * 64).int()
    with torch.inference_mode():
        expected = fused.run(block, tokens.index_select(0, gather), None, (3,))
        assert torch.equal(fused.run(block, tokens, gather, (3,)), expected)


@needs_kernel
def test_the_kernel_gives_a_window_the_same_bits_wherever_it_stands():
    """Neither the other windows, nor the number of threads, nor the place in the batch changes a window."""
    block = random_block(60, 6, 8, 4)
    tokens = torch.randn(40, 64 * 60)
    with torch.inference_mode():
        together = fused.run(block, tokens.view(-1, 60), None, (40, 0, 0, 0)).view(40, -1)
        backwards = fused.run(block, tokens.flip(0).reshape(-1, 60), None, (40, 0, 0, 0)).view(40, -1).flip(0)
        alone = torch.cat([fused.run(block, row.view(-1, 60), None, (1, 0, 0, 0)).view(1, -1) for row in tokens])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)


@needs_kernel
def test_extreme_logits_stay_finite():
    """A logit scale far above the clamp and large tokens give what float64 gives."""
    block = random_block(24, 2, 8, 4)
    with torch.no_grad():
        block.attn.logit_scale.fill_(20.0)
    block.attn.refresh()
    tokens = 100 * torch.randn(8 * 64, 24)
    with torch.inference_mode():
        own = fused.run(block, tokens, None, (2, 2, 2, 2))
        assert own.isfinite().all()
        assert (own - plain(block, tokens, (2, 2, 2, 2))).abs().max() < 2e-3


@needs_kernel
def test_tokens_of_length_zero_are_no_division_by_zero():
    """A query or key of zeros has cosine zero with everything, as in PyTorch."""
    block = random_block(24, 2, 8, 0, qkv_bias=False)
    with torch.inference_mode():
        own = fused.run(block, torch.zeros(64, 24), None, (1,))
        assert (own - plain(block, torch.zeros(64, 24), (1,))).abs().max() < 2e-5


@needs_kernel
def test_the_kernel_stands_back_where_it_cannot_serve():
    """Gradients, other dtypes, other activations, training and autocast take PyTorch's operators."""
    block, tokens = random_block(24, 2, 8, 0), torch.randn(64, 24)
    assert not fused.can_run(block, tokens), "gradients are on"
    with torch.inference_mode():
        assert fused.can_run(block, tokens)
        assert not fused.can_run(block, tokens.double())
        assert not fused.can_run(copy.deepcopy(block).double(), tokens.double())
        assert not fused.can_run(random_block(24, 2, 8, 0, hidden_act="relu"), tokens)
        assert not fused.can_run(random_block(24, 2, 8, 0, hidden_act="gelu_new"), tokens)
        assert not fused.can_run(copy.deepcopy(block).train(), tokens)
        with torch.autocast("cpu", torch.bfloat16):
            assert not fused.can_run(block, tokens)


def test_without_the_kernel_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch):
    """A machine without a compiler computes the same block, some windows at a time."""
    block = random_block(24, 2, 8, 4)
    counts = (CHUNK - 3, 5, 0, CHUNK + 1)
    tokens = torch.randn(sum(counts) * 64, 24)
    monkeypatch.setattr(block.attn, "kernel_tables", None)
    with torch.inference_mode():
        assert (block(tokens, counts) - plain(block, tokens, counts)).abs().max() < 2e-5


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4).filter(any), st.integers(1, 40))
def test_split_counts_loses_no_window(counts: list[int], size: int):
    """The runs follow one another, none is too long, and together they have each kind as often as before."""
    runs = list(split_counts(tuple(counts), size))
    assert [first for first, _, _ in runs] == [0, *(last for _, last, _ in runs)][:-1]
    assert all(0 < last - first == sum(kinds) <= size for first, last, kinds in runs)
    assert [sum(column) for column in zip(*(kinds for _, _, kinds in runs), strict=True)] == counts


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder in the place of the kernel's own, and a cache that is forgotten afterwards."""
    monkeypatch.setattr(fused, "__file__", str(tmp_path / "fused.py"))
    (tmp_path / "kernels").mkdir()
    fused.load_kernel.cache_clear()
    yield tmp_path / "kernels"
    fused.load_kernel.cache_clear()


@pytest.mark.usefixtures("kernels")
def test_no_kernel_is_no_error():
    """An installation without a compiler has none."""
    assert fused.load_kernel() is None


def test_a_broken_kernel_is_passed_over(kernels):
    """A file that is no library, or one built for something else, leaves PyTorch's operators."""
    (kernels / f"block{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    assert fused.load_kernel() is None


@needs_kernel
def test_a_kernel_of_another_shape_is_passed_over(kernels, monkeypatch):
    """A library whose weights' structure has another size would read wild memory."""
    built = next(Path(model.__file__).with_name("kernels").glob(f"block{EXTENSION_SUFFIXES[0]}"))
    shutil.copy(built, kernels)
    assert fused.load_kernel() is not None
    fused.load_kernel.cache_clear()
    monkeypatch.setattr(fused.ctypes, "sizeof", lambda _type: 1)
    assert fused.load_kernel() is None


@needs_kernel
def test_changed_blocks_are_left_to_pytorch():
    """Another dtype in one layer, another class of layer, or a hook: the kernel would compute something else."""
    tokens = torch.randn(64, 24)
    changes = {
        "dtype": lambda block: block.mlp.double(),
        "layer": lambda block: setattr(block.mlp, "fc1", torch.nn.Sequential(block.mlp.fc1)),
        "hook": lambda block: block.attn.register_forward_hook(lambda *_: None),
    }
    with torch.inference_mode():
        assert fused.can_run(random_block(24, 2, 8, 0), tokens)
        for change in changes.values():
            block = random_block(24, 2, 8, 0)
            change(block)
            assert not fused.can_run(block, tokens)
