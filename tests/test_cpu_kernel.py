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
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import model
from model import cpu_kernel
from model.config import Swin2SRConfig
from model.inference.body import CHUNK, compute_block
from model.inference.cpu import Inference, run_block
from model.inference.operators import PLAIN, NormWeights
from model.inference.packed_weights import Form, pack_block, pack_embedding, pack_end, pack_linear
from model.inference.scratch import KEPT_BYTES, Buffers, Scratch
from model.kernels import library
from model.kernels import weights as kernel_weights
from model.kernels.weights import BlockWeights
from model.network import Swin2SR, Swin2SRLayer, residual_connection
from model.packing import PackedLayout
from model.reconstruction import DirectHead
from tests.networks import HEADS, needs_kernel, random_image, tiny_network

FLOAT32 = Form(torch.float32, torch.float32)
FLOAT64 = Form(torch.float64, torch.float64)


def random_block(dim: int, heads: int, window: int, shift: int, hidden: float = 2.0, **fields) -> Swin2SRLayer:
    torch.manual_seed(dim + heads + window)
    config = Swin2SRConfig(
        embed_dim=dim, num_heads=(heads,), depths=(2,), window_size=window, mlp_ratio=hidden, **fields
    )
    block = Swin2SRLayer(config, heads, shift, 0.0).requires_grad_(False)
    for parameter in block.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return block.eval()


def kernel_of(block: Swin2SRLayer) -> BlockWeights:
    packed = pack_block(block, FLOAT32).kernel
    assert packed is not None
    return packed


def plain(block: Swin2SRLayer, tokens: torch.Tensor, counts: tuple[int, ...], form: Form = FLOAT64):
    """What PyTorch's operators give, in float64 unless another form is asked for."""
    packed = pack_block(copy.deepcopy(block).to(form.dtype), form)
    kinds = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).int()
    tokens = tokens.to(form.dtype)
    return compute_block(PLAIN, tokens, tokens, kinds, packed)[0]


@pytest.mark.skipif(shutil.which(sysconfig.get_config_var("CC").split()[0]) is None, reason="there is no C compiler")
def test_the_kernel_is_there_where_it_could_be_built():
    """An installation on a machine with a compiler has the kernel."""
    assert library.load_kernel() is not None


@pytest.mark.slow
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
        assert (
            cpu_kernel.run(kernel_of(block), tokens, None, counts) - plain(block, tokens, counts)
        ).abs().max() < 5e-5


@needs_kernel
@pytest.mark.parametrize(("dim", "heads", "window"), [(60, 6, 8), (180, 6, 8), (180, 6, 7), (32, 4, 8)])
def test_the_kernel_computes_the_released_networks_blocks(dim: int, heads: int, window: int):
    """At the released sizes its error against float64 is of the order of PyTorch's own."""
    block = random_block(dim, heads, window, window // 2)
    counts = (9, 3, 3, 1)
    tokens = torch.randn(16 * window**2, dim)
    with torch.inference_mode():
        exact = plain(block, tokens, counts)
        own = (cpu_kernel.run(kernel_of(block), tokens, None, counts) - exact).square().mean().sqrt()
        torchs = (plain(block, tokens, counts, FLOAT32) - exact).square().mean().sqrt()
    assert own < 3 * torchs


@needs_kernel
def test_the_kernel_gathers():
    """Tokens are taken from the rows that the table names."""
    block = random_block(24, 2, 8, 0)
    tokens = torch.randn(3 * 64, 24)
    gather = torch.randperm(3 * 64).int()
    with torch.inference_mode():
        expected = cpu_kernel.run(kernel_of(block), tokens.index_select(0, gather), None, (3,))
        assert torch.equal(cpu_kernel.run(kernel_of(block), tokens, gather, (3,)), expected)


@needs_kernel
def test_the_kernel_gives_a_window_the_same_bits_wherever_it_stands():
    """Neither the other windows, nor the number of threads, nor the place in the batch changes a window."""
    block = random_block(60, 6, 8, 4)
    tokens, kernel = torch.randn(40, 64 * 60), kernel_of(block)
    with torch.inference_mode():
        together = cpu_kernel.run(kernel, tokens.view(-1, 60), None, (40, 0, 0, 0)).view(40, -1)
        backwards = (
            cpu_kernel.run(kernel_of(block), tokens.flip(0).reshape(-1, 60), None, (40, 0, 0, 0)).view(40, -1).flip(0)
        )
        alone = torch.cat(
            [cpu_kernel.run(kernel_of(block), row.view(-1, 60), None, (1, 0, 0, 0)).view(1, -1) for row in tokens]
        )
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)


@needs_kernel
@pytest.mark.parametrize("scale", [0.01, 40.0, 40.5, 99.0, 1e9])
def test_extreme_logits_stay_finite(scale: float):
    """Flat and steep attention, up to far above the clamp, and large tokens give what float64 gives."""
    block = random_block(24, 2, 8, 4)
    with torch.no_grad():
        block.attention.self.logit_scale.fill_(math.log(scale))
    tokens = 100 * torch.randn(8 * 64, 24)
    with torch.inference_mode():
        own = cpu_kernel.run(kernel_of(block), tokens, None, (2, 2, 2, 2))
        assert own.isfinite().all()
        assert (own - plain(block, tokens, (2, 2, 2, 2))).abs().max() < 2e-3


@needs_kernel
def test_tokens_of_length_zero_are_no_division_by_zero():
    """A query or key of zeros has cosine zero with everything, as in PyTorch."""
    block = random_block(24, 2, 8, 0, qkv_bias=False)
    with torch.inference_mode():
        own = cpu_kernel.run(kernel_of(block), torch.zeros(64, 24), None, (1,))
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
    layout = PackedLayout(sorted((rows * window, columns * window) for rows, columns in sizes), window, window // 2)
    conv, behind = random_layers(channels)
    tokens, residual = torch.randn(2, layout.windows_count * window**2, channels)
    order = layout.order(shifted=True) if shifted else slice(None)
    kernel = pack_end(conv, behind if linear else None, FLOAT32, window).kernel
    with torch.inference_mode():
        own = cpu_kernel.convolve(kernel, tokens[order], layout.halo(window, shifted=shifted), residual)
        images = layout.images(tokens.double().index_select(0, layout.images_from_windows))
        images = [copy.deepcopy(conv).double()(image) for image in images]
        images = [copy.deepcopy(behind).double()(image) for image in images] if linear else images
        rows = torch.cat([image.permute(0, 2, 3, 1).flatten(0, 2) for image in images])
        expected = rows.index_select(0, layout.windows_from_images) + residual
    assert (own - expected).abs().max() < 1e-5


SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


def layout_of(sizes: list[tuple[int, int]], window: int) -> PackedLayout:
    """The layout of images of so many windows."""
    return PackedLayout(sorted((rows * window, columns * window) for rows, columns in sizes), window, window // 2)


@needs_kernel
@settings(max_examples=30, deadline=None)
@given(channels=st.integers(1, 70), window=st.integers(2, 8), sizes=SIZES)
def test_the_kernel_normalises_behind_a_convolution(*, channels, window, sizes):
    """What `norm` adds is LayerNorm of the result: within 1e-5 of float64."""
    layout, (conv, behind) = layout_of(sizes, window), random_layers(channels)
    tokens, residual = torch.randn(2, layout.windows_count * window**2, channels)
    norm = NormWeights(torch.rand(channels), torch.randn(channels), 0.01)
    with torch.inference_mode():
        before, after = (
            cpu_kernel.convolve(
                pack_end(conv, behind, FLOAT32, window, given).kernel, tokens, layout.halo(window), residual
            )
            for given in (None, norm)
        )
        expected = F.layer_norm(before.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert (after - expected).abs().max() < 1e-5


@needs_kernel
@settings(max_examples=30, deadline=None)
@given(channels=st.integers(1, 70), colors=st.integers(1, 4), window=st.integers(2, 8), sizes=SIZES)
def test_the_kernel_embeds(*, channels, colors, window, sizes):
    """The first convolution, and linear layer and norm behind it: within 1e-5 of float64."""
    layout, (_, linear) = layout_of(sizes, window), random_layers(channels)
    conv = torch.nn.Conv2d(colors, channels, 3, padding=1)
    norm = NormWeights(torch.rand(channels), torch.randn(channels), 0.01)
    pixels = torch.randn(layout.windows_count * window**2, colors)
    weights = pack_embedding(conv, pack_linear(linear, FLOAT32), norm, FLOAT32, window)
    with torch.inference_mode():
        shallow, tokens = cpu_kernel.embed(weights, pixels, layout.halo(window))
        images = layout.images(pixels.double().index_select(0, layout.images_from_windows))
        rows = torch.cat([conv.double()(image).permute(0, 2, 3, 1).flatten(0, 2) for image in images])
        expected = rows.index_select(0, layout.windows_from_images)
        embedded = F.linear(expected, linear.weight.double().flatten(1), linear.bias.double())
        normal = F.layer_norm(embedded, (channels,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert (shallow - expected).abs().max() < 1e-5
    assert (tokens - normal).abs().max() < 1e-5


@needs_kernel
@settings(max_examples=30, deadline=None)
@given(channels=st.integers(1, 70), scale=st.integers(1, 4), window=st.integers(2, 8), sizes=SIZES, gray=st.booleans())
def test_the_kernel_enlarges(*, channels, scale, window, sizes, gray):
    """A head with every scale, for one color and for three, and with pixels added: within 1e-5 of float64."""
    layout, colors = layout_of(sizes, window), 1 if gray else 3
    conv = torch.nn.Conv2d(channels, colors * scale**2, 3, padding=1)
    tokens = torch.randn(layout.windows_count * window**2, channels)
    residual = torch.randn(len(tokens) * scale**2, colors) if gray else None
    with torch.inference_mode():
        found = cpu_kernel.enlarge(
            kernel_weights.pack_head(conv.weight, conv.bias, scale, window),
            tokens,
            layout.halo(window),
            layout.grid,
            residual,
        )
        images = layout.images(tokens.double().index_select(0, layout.images_from_windows))
        shuffled = [F.pixel_shuffle(conv.double()(image), scale) for image in images]
        expected = torch.cat([image.permute(0, 2, 3, 1).flatten(0, 2) for image in shuffled])
    assert (found - expected - (0 if residual is None else residual)).abs().max() < 1e-5


@needs_kernel
def test_a_replaced_head_is_called():
    """A head of another class, or with another convolution, is computed by its own modules; so is another range."""

    class Darker(DirectHead):
        def forward(self, features):
            return super().forward(features) / 2

    class Brighter(torch.nn.Conv2d):
        def forward(self, features):
            return super().forward(features) + 1

    class Shifted(Swin2SR):
        def denormalise(self, image):
            return super().denormalise(image) + 1

    for name, other in (("upsample", Darker), ("upsample.conv", Brighter), ("", Shifted)):
        network = tiny_network()
        image = random_image(network, 2, 2)
        assert Inference(network).head is not None
        network.get_submodule(name).__class__ = other
        inference = Inference(network)
        assert inference.head is None
        with torch.inference_mode():
            assert (inference.reconstruct([image])[0].image - network(image[None]).image[0]).abs().max() < 1e-5


@needs_kernel
def test_the_convolution_stands_back_where_it_cannot_serve():
    """Other dtypes, larger windows and bottlenecks take PyTorch's operators."""
    layers = random_layers(12)
    assert pack_end(*layers, FLOAT32, 8).kernel is not None
    assert pack_end(*layers, FLOAT64, 8).kernel is None
    assert pack_end(*layers, FLOAT32, 9).kernel is None
    three = residual_connection(Swin2SRConfig(embed_dim=12, resi_connection="3conv"))
    assert pack_end(three, None, FLOAT32, 8).kernel is None


@needs_kernel
@pytest.mark.parametrize("head", HEADS)
def test_the_kernel_and_pytorch_give_the_same_images(monkeypatch: pytest.MonkeyPatch, head: str):
    """A network without the kernel reconstructs a mixed pack to the same pixels."""
    network = tiny_network(head)
    images = [random_image(network, *size) for size in ((1, 3), (5, 2), (2, 2))]
    with torch.inference_mode():
        own = Inference(network).reconstruct(images)
        monkeypatch.setattr(library, "load_kernel", lambda: None)
        plain = Inference(network).reconstruct(images)
    assert all((a.image - b.image).abs().max() < 1e-5 for a, b in zip(own, plain, strict=True))


@needs_kernel
def test_calls_at_the_same_time_do_not_share_memory(monkeypatch: pytest.MonkeyPatch):
    """Another image, computed whenever memory was given back, does not get into an image on its way."""
    network = tiny_network(depths=(2, 2))
    inference, image, other, busy = Inference(network), random_image(network, 2, 3), random_image(network, 2, 3, 1), []
    borrow = Scratch.borrow

    @contextmanager
    def borrow_and_be_overtaken(scratch, *args):
        with borrow(scratch, *args) as memory:
            yield memory
        if not busy:
            busy.append(True)
            inference.reconstruct([other])

    with torch.inference_mode():
        expected = inference.reconstruct([image])[0].image.clone()
        monkeypatch.setattr(Scratch, "borrow", borrow_and_be_overtaken)
        found = inference.reconstruct([image])[0].image
    assert busy
    assert torch.equal(found, expected)


def test_scratch_memory_is_kept_within_its_bound():
    """The same memory serves the next forward pass, a smaller one too; copies have none, nor has a larger one."""
    scratch, tokens = Scratch(), torch.zeros(64, 10)

    def taken(buffers: Buffers) -> list[torch.Tensor]:
        found = [buffers.take() for _ in range(4)]
        assert found.pop() is None
        return found

    with scratch.borrow(tokens, 3) as first, scratch.borrow(tokens, 3) as other:
        buffers = taken(first) + taken(other)
        assert len({buffer.data_ptr() for buffer in buffers}) == 6
        assert all(buffer.shape == tokens.shape for buffer in buffers)
        first.give(buffers[0])
        assert first.take() is buffers[0]
    assert scratch.nbytes == 3 * tokens.nbytes
    with scratch.borrow(tokens[:32], 3) as again:
        assert {buffer.data_ptr() for buffer in taken(again)} & {buffer.data_ptr() for buffer in buffers}
    assert pickle.loads(pickle.dumps(scratch)).nbytes == copy.deepcopy(scratch).nbytes == 0
    with pytest.raises(MemoryError), scratch.borrow(tokens, 3):
        raise MemoryError
    assert scratch.nbytes == 0, "what was short is given back"
    with scratch.borrow(torch.empty(KEPT_BYTES // 4 // 10, 10, device="meta"), 2):
        pass
    assert scratch.nbytes == 0
    assert Buffers().take() is None


@needs_kernel
def test_the_kernel_stands_back_where_it_cannot_serve():
    """Other dtypes, other activations and windows of more than 64 tokens take PyTorch's operators."""
    block = random_block(24, 2, 8, 0)
    assert pack_block(block, FLOAT32).kernel is not None
    assert pack_block(block, FLOAT64).kernel is None
    assert pack_block(block, Form(torch.bfloat16, torch.float32)).kernel is None
    assert pack_block(random_block(24, 2, 9, 0), FLOAT32).kernel is None
    for activation in ("relu", "gelu_new", "selu"):
        assert pack_block(random_block(24, 2, 8, 0, hidden_act=activation), FLOAT32).kernel is None


def test_without_the_kernel_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch):
    """A machine without a compiler computes the same block, some windows at a time."""
    block, counts = random_block(24, 2, 8, 4), (CHUNK - 3, 5, 0, CHUNK + 1)
    tokens = torch.randn(sum(counts) * 64, 24)
    rows = torch.randperm(len(tokens)).int()
    kinds = torch.arange(4).repeat_interleave(torch.tensor(counts)).int()
    monkeypatch.setattr(library, "load_kernel", lambda: None)
    with torch.inference_mode():
        found = run_block(tokens, kinds, pack_block(block, FLOAT32), rows)
        assert (found - plain(block, tokens[rows], counts)).abs().max() < 2e-5


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder in the place of the kernel's own, and a cache that is forgotten afterwards."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    library.load_kernel.cache_clear()
    yield tmp_path
    library.load_kernel.cache_clear()


@pytest.mark.usefixtures("kernels")
def test_no_kernel_is_no_error():
    """An installation without a compiler has none."""
    assert library.load_kernel() is None


def test_a_broken_kernel_is_passed_over(kernels):
    """A file that is no library, or one built for something else, leaves PyTorch's operators."""
    (kernels / f"block{EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    assert library.load_kernel() is None


@needs_kernel
def test_a_kernel_of_another_shape_is_passed_over(kernels, monkeypatch):
    """A library whose weights' structure has another size would read wild memory."""
    built = next(Path(model.__file__).with_name("kernels").glob("block*.so"))
    shutil.copy(built, kernels)
    assert library.load_kernel() is not None
    library.load_kernel.cache_clear()
    monkeypatch.setattr(library.ctypes, "sizeof", lambda _type: 1)
    assert library.load_kernel() is None
