"""The C kernel against PyTorch's operators."""

import copy
import math
import pickle
import shutil
import sysconfig
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import model
from model import cpu_kernel
from model.config import Swin2SRConfig
from model.hooks import Beat
from model.kernels import library
from model.network import CHUNK, SwinTransformerBlock, split_counts
from model.packing import PackedLayout
from model.scratch import KEPT_BYTES, Scratch
from tests.networks import HEADS, needs_kernel, random_image, tiny_network


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
    assert cpu_kernel.load_kernel() is not None


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
        assert cpu_kernel.can_run(block, tokens)
        assert (cpu_kernel.run(block, tokens, None, counts) - plain(block, tokens, counts)).abs().max() < 5e-5


@needs_kernel
@pytest.mark.parametrize(("dim", "heads", "window"), [(60, 6, 8), (180, 6, 8), (180, 6, 7), (32, 4, 8)])
def test_the_kernel_computes_the_released_networks_blocks(dim: int, heads: int, window: int):
    """At the released sizes its error against float64 is of the order of PyTorch's own."""
    block = random_block(dim, heads, window, window // 2)
    counts = (9, 3, 3, 1)
    tokens = torch.randn(16 * window**2, dim)
    with torch.inference_mode():
        exact = plain(block, tokens, counts)
        own = (cpu_kernel.run(block, tokens, None, counts) - exact).square().mean().sqrt()
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
        expected = cpu_kernel.run(block, tokens.index_select(0, gather), None, (3,))
        assert torch.equal(cpu_kernel.run(block, tokens, gather, (3,)), expected)


@needs_kernel
def test_the_kernel_gives_a_window_the_same_bits_wherever_it_stands():
    """Neither the other windows, nor the number of threads, nor the place in the batch changes a window."""
    block = random_block(60, 6, 8, 4)
    tokens = torch.randn(40, 64 * 60)
    with torch.inference_mode():
        together = cpu_kernel.run(block, tokens.view(-1, 60), None, (40, 0, 0, 0)).view(40, -1)
        backwards = cpu_kernel.run(block, tokens.flip(0).reshape(-1, 60), None, (40, 0, 0, 0)).view(40, -1).flip(0)
        alone = torch.cat([cpu_kernel.run(block, row.view(-1, 60), None, (1, 0, 0, 0)).view(1, -1) for row in tokens])
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)


@needs_kernel
@pytest.mark.parametrize("scale", [0.01, 40.0, 40.5, 99.0, 1e9])
def test_extreme_logits_stay_finite(scale: float):
    """Flat and steep attention, up to far above the clamp, and large tokens give what float64 gives."""
    block = random_block(24, 2, 8, 4)
    with torch.no_grad():
        block.attn.logit_scale.fill_(math.log(scale))
    block.attn.refresh()
    tokens = 100 * torch.randn(8 * 64, 24)
    with torch.inference_mode():
        own = cpu_kernel.run(block, tokens, None, (2, 2, 2, 2))
        assert own.isfinite().all()
        assert (own - plain(block, tokens, (2, 2, 2, 2))).abs().max() < 2e-3


@needs_kernel
def test_tokens_of_length_zero_are_no_division_by_zero():
    """A query or key of zeros has cosine zero with everything, as in PyTorch."""
    block = random_block(24, 2, 8, 0, qkv_bias=False)
    with torch.inference_mode():
        own = cpu_kernel.run(block, torch.zeros(64, 24), None, (1,))
        assert (own - plain(block, torch.zeros(64, 24), (1,))).abs().max() < 2e-5


def random_layers(channels: int) -> tuple[torch.nn.Conv2d, torch.nn.Conv2d]:
    torch.manual_seed(channels)
    return torch.nn.Conv2d(channels, channels, 3, padding=1), torch.nn.Conv2d(channels, channels, 1)


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 70),
    window=st.integers(2, 8),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    shifted=st.booleans(),
    linear=st.booleans(),
)
def test_the_kernel_convolves(*, channels, window, sizes, shifted, linear):
    """Images of any sizes, tokens in either order, with and without the layer behind: within 1e-5 of float64."""
    layout = PackedLayout([(rows * window, columns * window) for rows, columns in sizes], window, window // 2)
    conv, behind = random_layers(channels)
    tokens, residual = torch.randn(2, layout.windows_count * window**2, channels)
    order = layout.shifted_from_windows if shifted else slice(None)
    layers, halo = (conv, behind if linear else None), layout.halo(shifted=shifted)
    with torch.inference_mode():
        assert cpu_kernel.can_convolve(layers, tokens, halo)
        own = cpu_kernel.convolve(layers, tokens[order], halo, residual)
        canvas = layout.to_canvas(tokens.double(), shifted=False)
        images = [copy.deepcopy(conv).double()(image[None]) for image in layout.unpack(canvas)]
        images = [copy.deepcopy(behind).double()(image) for image in images] if linear else images
        expected = layout.to_windows(layout.pack([image[0] for image in images])) + residual
    assert (own - expected).abs().max() < 1e-5


@needs_kernel
def test_the_convolution_stands_back_where_it_cannot_serve():
    """Gradients, other dtypes, larger windows, bottlenecks, hooks and a GPU's layout take PyTorch's operators."""
    layers, tokens = random_layers(12), torch.randn(64, 12)
    halo = PackedLayout([(8, 8)], 8, 4).halo(shifted=False)
    assert not cpu_kernel.can_convolve(layers, tokens, halo), "gradients are on"
    with torch.inference_mode():
        assert cpu_kernel.can_convolve(layers, tokens, halo)
        assert not cpu_kernel.can_convolve(layers, tokens, None)
        assert not cpu_kernel.can_convolve(layers, tokens.double(), halo)
        assert not cpu_kernel.can_convolve((layers[0], copy.deepcopy(layers[1]).double()), tokens, halo)
        assert not cpu_kernel.can_convolve((torch.nn.Sequential(*layers), None), tokens, halo)
        assert not cpu_kernel.can_convolve(layers, tokens, PackedLayout([(9, 9)], 9, 4).halo(shifted=False))
        layers[1].register_forward_pre_hook(Beat(lambda: None))
        assert cpu_kernel.can_convolve(layers, tokens, halo)
        layers[1].register_forward_hook(lambda *_: None)
        assert not cpu_kernel.can_convolve(layers, tokens, halo)


@needs_kernel
@pytest.mark.parametrize("head", HEADS)
def test_the_kernel_and_pytorch_give_the_same_images(monkeypatch: pytest.MonkeyPatch, head: str):
    """A network without the kernel, on a canvas with gaps, reconstructs a mixed pack to the same pixels."""
    network = tiny_network(head)
    images = [random_image(network, *size) for size in ((1, 3), (5, 2), (2, 2))]
    with torch.inference_mode():
        own = network.reconstruct(images)
        monkeypatch.setattr(cpu_kernel, "load_kernel", lambda: None)
        for module in network.modules():
            if hasattr(module, "refresh"):
                module.refresh()
        plain = network.reconstruct(images)
    assert all((a.image - b.image).abs().max() < 1e-5 for a, b in zip(own, plain, strict=True))


@needs_kernel
@pytest.mark.parametrize("place", ["patch_embed", "layers.0", "layers.0.residual_group.blocks.1", "norm", "everywhere"])
def test_hooks_may_keep_what_parts_give_out(place: str):
    """What a hook holds is not overwritten by the parts behind its own, or by the next image."""
    network, seen = tiny_network(), []

    def keep(_module: nn.Module, _in: object, out: object) -> None:
        if isinstance(out, torch.Tensor):
            seen.append((out, out.clone()))

    everywhere = place == "everywhere"
    register = register_module_forward_hook if everywhere else network.get_submodule(place).register_forward_hook
    handle = register(keep)
    with torch.inference_mode():
        for _ in range(2):
            network.reconstruct([random_image(network, 2, 2)])
    handle.remove()
    assert seen
    assert all(torch.equal(held, copied) for held, copied in seen)


@needs_kernel
def test_shared_memory_is_not_given_back_before_it_is_read(monkeypatch: pytest.MonkeyPatch):
    """Another thread's image, computed whenever memory was given back, does not get into an image on its way."""
    network = tiny_network(depths=(2, 2))  # these end in scratch
    network.conv_after_body.register_forward_hook(lambda *_: None)  # its operator reads the tokens
    image, other, busy = random_image(network, 2, 3), random_image(network, 2, 3, seed=1), []
    borrow = Scratch.borrow

    @contextmanager
    def borrow_and_be_overtaken(scratch, *args):
        with borrow(scratch, *args) as memory:
            yield memory
        if not busy:
            busy.append(True)
            network.reconstruct([other])

    with torch.inference_mode():
        expected = network.reconstruct([image])[0].image.clone()
        monkeypatch.setattr(Scratch, "borrow", borrow_and_be_overtaken)
        found = network.reconstruct([image])[0].image
    assert busy
    assert torch.equal(found, expected)


@needs_kernel
def test_scratch_memory_is_kept_within_its_bound():
    """The same memory serves the next forward pass, a smaller one too; copies have none, nor has a larger one."""
    scratch, tokens = Scratch(), torch.zeros(64, 10)
    with scratch.borrow(tokens, 3) as first, scratch.borrow(tokens, 3) as other:
        assert len({buffer.data_ptr() for buffer in first + other}) == 6
        assert all(buffer.shape == tokens.shape for buffer in first + other)
        pointers = {first[0].data_ptr(), other[0].data_ptr()}
    assert scratch.nbytes == 3 * tokens.nbytes
    with scratch.borrow(tokens[:32], 3) as again:
        assert again[0].data_ptr() in pointers
    assert pickle.loads(pickle.dumps(scratch)).nbytes == copy.deepcopy(scratch).nbytes == 0
    with pytest.raises(MemoryError), scratch.borrow(tokens, 3):
        raise MemoryError
    assert scratch.nbytes == 0, "what was short is given back"
    with scratch.borrow(torch.empty(KEPT_BYTES // 4 // 10, 10, device="meta"), 2):
        pass
    assert scratch.nbytes == 0


@needs_kernel
def test_the_kernel_stands_back_where_it_cannot_serve():
    """Gradients, other dtypes, other activations, training and autocast take PyTorch's operators."""
    block, tokens = random_block(24, 2, 8, 0), torch.randn(64, 24)
    assert not cpu_kernel.can_run(block, tokens), "gradients are on"
    with torch.inference_mode():
        assert cpu_kernel.can_run(block, tokens)
        assert not cpu_kernel.can_run(block, tokens.double())
        assert not cpu_kernel.can_run(copy.deepcopy(block).double(), tokens.double())
        assert not cpu_kernel.can_run(random_block(24, 2, 8, 0, hidden_act="relu"), tokens)
        assert not cpu_kernel.can_run(random_block(24, 2, 8, 0, hidden_act="gelu_new"), tokens)
        assert not cpu_kernel.can_run(copy.deepcopy(block).train(), tokens)
        with torch.autocast("cpu", torch.bfloat16):
            assert not cpu_kernel.can_run(block, tokens)


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
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    cpu_kernel.load_kernel.cache_clear()
    yield tmp_path
    cpu_kernel.load_kernel.cache_clear()


@pytest.mark.usefixtures("kernels")
def test_no_kernel_is_no_error():
    """An installation without a compiler has none."""
    assert cpu_kernel.load_kernel() is None


def test_a_broken_kernel_is_passed_over(kernels):
    """A file that is no library, or one built for something else, leaves PyTorch's operators."""
    (kernels / f"block{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    assert cpu_kernel.load_kernel() is None


@needs_kernel
def test_a_kernel_of_another_shape_is_passed_over(kernels, monkeypatch):
    """A library whose weights' structure has another size would read wild memory."""
    built = next(Path(model.__file__).with_name("kernels").glob("block*.so"))
    shutil.copy(built, kernels)
    assert cpu_kernel.load_kernel() is not None
    cpu_kernel.load_kernel.cache_clear()
    monkeypatch.setattr(library.ctypes, "sizeof", lambda _type: 1)
    assert cpu_kernel.load_kernel() is None


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
        unchanged = random_block(24, 2, 8, 0)
        for module in unchanged.modules():
            module.register_forward_pre_hook(Beat(lambda: None))
        assert cpu_kernel.can_run(unchanged, tokens)
        for change in changes.values():
            block = random_block(24, 2, 8, 0)
            change(block)
            assert not cpu_kernel.can_run(block, tokens)
