"""The fast forward pass: the network's weights, computed on windows.

Every shape depends on the number of windows only, so images of any sizes share a pass. One formulation serves CPU and
GPU; its operators exist in PyTorch (``model.inference.operators``), in C (``model.cpu_kernel``) and in Triton
(``model.gpu.kernels``). Matrix products and the body's convolutions are computed in one dtype; the residual stream,
norms, softmax, the first convolution and the head in another, exact one.

It is used only if it gives the result of the network: no module was replaced, wrapped or hooked, none is in training,
and no gradient is needed. Otherwise ``model.network`` itself runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import cpu_kernel
from model.hooks import has_observers, is_tracing
from model.inference.fingerprint import Kept, fingerprint_of
from model.inference.operators import PLAIN, NormWeights, Operators, add_norm, attend
from model.inference.packed_weights import (
    Block,
    EndWeights,
    Form,
    NotPlainError,
    PackedStage,
    Weights,
    expect,
    pack_embedding,
    pack_end,
    pack_head,
    pack_linear,
    pack_norm,
    pack_stage,
)
from model.inference.scratch import Buffers, Scratch
from model.kernels.weights import HeadWeights, pack_refinement
from model.network import (
    Swin2SR,
    Swin2SRBody,
    Swin2SREmbeddings,
    Swin2SREncoder,
    Swin2SRPatchEmbeddings,
    Swin2SRPatchUnEmbeddings,
)
from model.packing import LayoutCache, PackedLayout, WindowIndex, split_by_area
from model.reconstruction import Reconstruction
from model.windows import MASK_KINDS

PACK_PIXELS = 2**16
"""Pixels of a pack on a CPU. Larger packs do not fit its caches; in smaller ones, starting operators takes longer."""

NORM_TOKENS = 2**12
"""Tokens that are normalised together in place."""

CHUNK = 32
"""Windows that pass a block together on a CPU without the kernel, so that their attention stays in its cache."""


class WindowBody:
    """The body on windows.

    Args:
        body: in evaluation mode, on its device.
        form: dtypes and widths.
        operators: PyTorch's, or kernels.

    Raises:
        NotPlainError: if a module is not the one that the network was built with.
    """

    @torch.no_grad()
    def __init__(self, body: Swin2SRBody, form: Form, operators: Operators = PLAIN) -> None:
        embeddings = expect(expect(body.embeddings, Swin2SREmbeddings).patch_embeddings, Swin2SRPatchEmbeddings)
        expect(body.patch_unembed, Swin2SRPatchUnEmbeddings)
        self.channels, self.form, self.operators = body.config.embed_dim, form, operators
        self.width = form.width(self.channels)
        self.embed = pack_linear(embeddings.projection, form)
        self.embed_norm = pack_norm(embeddings.layernorm, form.exact)
        self.norm = pack_norm(body.layernorm, form.exact)
        stages = list(expect(body.encoder, Swin2SREncoder).stages)
        behind = [None] * (len(stages) - 1) + [self.norm]
        window = body.config.window_size
        self.stages = tuple(pack_stage(stage, form, window, norm) for stage, norm in zip(stages, behind, strict=True))
        self.after_body = pack_end(body.conv_after_body, None, form, window)
        self.heartbeat: Callable[[], None] = lambda: None

    @property
    def is_packed(self) -> bool:
        """Whether every block is packed for AMX."""
        return all(block.kernel and block.kernel.packed for stage in self.stages for block in stage.blocks)

    def __call__(
        self, shallow: Tensor, index: WindowIndex, buffers: Buffers | None = None, stream: Tensor | None = None
    ) -> Tensor:
        """Compute deep features (T, width) from those of the first convolution, in window order and the exact dtype.

        ``stream`` is the output of the embedding, if it is known.
        """
        buffers = Buffers() if buffers is None else buffers
        if stream is None:
            stream = self._normalise(apply(shallow.to(self.form.dtype), self.embed), self.embed_norm)
        tokens = stream.to(self.form.dtype)
        for stage in self.stages:
            stream = self._run_stage(stage, stream, tokens, index, buffers)
            tokens = stream.to(self.form.dtype)
        if self.stages[-1].end.norm is None:
            tokens = self._normalise_all(stream, buffers).to(self.form.dtype)
        return self._end_stage(tokens, shallow, index, self.after_body, shifted=False, out=buffers.take())

    def _normalise_all(self, stream: Tensor, buffers: Buffers) -> Tensor:
        """The body's norm, in place where memory is used again."""
        if not buffers.reused:
            return self._normalise(stream, self.norm)
        for part in torch.split(stream, NORM_TOKENS):
            part.copy_(self._normalise(part, self.norm))
        return stream

    def _normalise(self, tokens: Tensor, norm: NormWeights) -> Tensor:
        """LayerNorm of tokens (T, width) of any dtype, in the exact one."""
        normal = F.layer_norm(
            tokens[:, : self.channels].to(self.form.exact), (self.channels,), norm.weight, norm.bias, norm.eps
        )
        return F.pad(normal, (0, self.width - self.channels)) if self.width > self.channels else normal

    def _run_stage(
        self, stage: PackedStage, stream: Tensor, tokens: Tensor, index: WindowIndex, buffers: Buffers
    ) -> Tensor:
        deep, shifted = self._run_blocks(stage.blocks, stream, tokens, index, buffers)
        self.heartbeat()
        found = self._end_stage(deep, stream, index, stage.end, shifted=shifted, out=buffers.take())
        buffers.give(deep)
        buffers.give(stream)
        return found

    def _run_blocks(
        self, blocks: tuple[Block, ...], stream: Tensor, tokens: Tensor, index: WindowIndex, buffers: Buffers
    ) -> tuple[Tensor, bool]:
        """The tokens behind the blocks, and whether they are in shifted order."""
        if self.operators.run_block is None:
            for block, following in zip(blocks, [*blocks[1:], blocks[-1]], strict=True):
                rows = None if following.shifted == block.shifted else index.order(shifted=following.shifted)
                kinds = index.kinds_of(shifted=block.shifted)
                stream, tokens = compute_block(self.operators, stream, tokens, kinds, block, rows=rows)
            return tokens, blocks[-1].shifted
        shifted, given = False, stream
        for block in blocks:
            self.heartbeat()
            rows = None if block.shifted == shifted else index.order(shifted=block.shifted)
            shifted = block.shifted
            kinds = index.kinds_of(shifted=shifted)
            found = self.operators.run_block(stream, kinds, block, rows, buffers.take())
            if stream is not given:
                buffers.give(stream)
            stream = found
        return stream.to(self.form.dtype), shifted

    def _end_stage(
        self,
        tokens: Tensor,
        residual: Tensor,
        index: WindowIndex,
        layers: EndWeights,
        *,
        shifted: bool,
        out: Tensor | None,
    ) -> Tensor:
        if self.operators.end_stage is not None and layers.kernel is not None:
            return self.operators.end_stage(tokens, residual, index, layers, shifted=shifted, out=out)
        tokens = convolve(self.operators, tokens, index, index.window, layers.convolutions[0], shifted=shifted)
        if len(layers.convolutions) > 1:
            _, middle, last = layers.convolutions
            tokens = F.leaky_relu(apply(F.leaky_relu(tokens, 0.2), middle), 0.2)
            tokens = convolve(self.operators, tokens, index, index.window, last)
        return residual + (tokens if layers.linear is None else apply(tokens, layers.linear))


def apply(tokens: Tensor, layer: Weights) -> Tensor:
    """A linear layer."""
    return F.linear(tokens, layer.weight, layer.bias)


def convolve(
    operators: Operators, tokens: Tensor, index: WindowIndex, side: int, layer: Weights, *, shifted: bool = False
) -> Tensor:
    """A 3x3 convolution with zeros around every image.

    Args:
        operators: of which ``gather`` is used.
        tokens: (nW * side * side, C) in window order, or in shifted order.
        index: of the pack.
        side: of a window at the scale of the tokens.
        layer: its weights.
        shifted: whether the tokens are in shifted order.

    Returns:
        (nW * side * side, C out) in window order.
    """
    halo, parts = index.halo(side, shifted=shifted), []
    for rows in torch.split(halo, CHUNK if tokens.device.type == "cpu" else len(halo)):
        seen = operators.gather(tokens, rows.view(-1))
        squares = seen.view(len(rows), side + 2, side + 2, -1).permute(0, 3, 1, 2)
        parts.append(F.conv2d(squares, layer.weight, layer.bias).permute(0, 2, 3, 1).reshape(-1, len(layer.bias)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def compute_block(
    operators: Operators, stream: Tensor, tokens: Tensor, kinds: Tensor, block: Block, *, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A block, operator by operator.

    Args:
        operators: those of a block.
        stream: (T, width), in window order of the block.
        tokens: the same in the dtype of matrix products.
        kinds: (nW,) int32.
        block: its weights.
        rows: (T,) int32, the order of the result; None where that is the block's.

    Returns:
        The stream and the tokens.
    """
    mixed = operators.attend(apply(tokens, block.qkv), kinds, block.tables)
    branch = apply(mixed, block.proj)
    if operators.finish is not None:
        return operators.finish(stream, branch, block, rows)
    stream, tokens = operators.add_norm(stream, branch, block.norm1, None)
    hidden = block.act(apply(tokens, block.fc1))
    return operators.add_norm(stream, apply(hidden, block.fc2), block.norm2, rows)


# On a CPU.


def run_block(stream: Tensor, kinds: Tensor, block: Block, rows: Tensor | None, out: Tensor | None = None) -> Tensor:
    """As ``model.inference.operators.RunBlock``: by the C kernel, or by PyTorch for ``CHUNK`` windows at a time.

    Windows are sorted by their kind.
    """
    if block.kernel is not None:
        counts = np.bincount(kinds.numpy(), minlength=MASK_KINDS).tolist()  # a tenth of PyTorch's time
        return cpu_kernel.run(block.kernel, stream, rows, counts, out)
    stream = stream if rows is None else stream.index_select(0, rows)
    out, length = torch.empty_like(stream) if out is None else out, len(stream) // len(kinds)
    for first in range(0, len(kinds), CHUNK):
        some = kinds[first : first + CHUNK]
        one_kind = some[:1] if some[0] == some[-1] else some
        part = slice(first * length, (first + len(some)) * length)
        tokens = stream[part].to(block.qkv.weight.dtype)
        out[part] = compute_block(PLAIN, stream[part], tokens, one_kind, block)[0]
    return out


def end_stage(
    tokens: Tensor,
    residual: Tensor,
    index: WindowIndex,
    layers: EndWeights,
    *,
    shifted: bool,
    out: Tensor | None = None,
) -> Tensor:
    """As ``model.inference.operators.EndStage``, by the C kernel."""
    assert layers.kernel is not None
    return cpu_kernel.convolve(layers.kernel, tokens, index.halo(index.window, shifted=shifted), residual, out)


ON_CPU = Operators(attend, add_norm, run_block=run_block, end_stage=end_stage)
"""The operators on a CPU."""


class Workspace:
    """Index tables by sizes, and memory, which forward passes on a CPU share. A copy is empty."""

    def __init__(self, window: int, shift: int) -> None:
        self.layouts = LayoutCache(window, shift)
        self.scratch = Scratch()
        self.packed: Kept[Inference] = Kept()


class Inference:
    """The fast forward pass on a CPU.

    Weights are packed and tables are derived once. Later changes of the network have no effect.

    Args:
        network: in evaluation mode, on a CPU.
        workspace: shared with other passes of the same window.
        precision: of the C kernel: ``exact``, ``high`` or ``fast``.

    Attributes:
        precision: in use; ``exact`` where there is no AMX, or a block does not fit it.

    Raises:
        NotPlainError: if a module is not the one that the network was built with.
    """

    def __init__(
        self,
        network: Swin2SR | Swin2SRBody,
        workspace: Workspace | None = None,
        precision: str = "exact",
    ) -> None:
        self.network = network
        self.trunk = network.swin2sr if isinstance(network, Swin2SR) else network
        exact = expect(self.trunk.first_convolution, nn.Conv2d).weight.dtype
        self.body = WindowBody(self.trunk, Form(exact, exact, precision=precision), ON_CPU)
        if precision != "exact" and not self.body.is_packed:
            self.body = WindowBody(self.trunk, Form(exact, exact), ON_CPU)
        self.precision = self.body.form.precision
        self.embedding = pack_embedding(
            self.trunk.first_convolution,
            self.body.embed,
            self.body.embed_norm,
            self.body.form,
            network.config.window_size,
        )
        self.head = pack_head(network, self.body.form) if isinstance(network, Swin2SR) else None
        if self.head is not None and network.config.is_refined and not self._fits_refinement(self.head):
            self.head = None
        self.refinement = pack_refinement(network.config) if self.head is not None else None
        self.workspace = workspace or Workspace(network.config.window_size, network.config.shift_size)

    def _fits_refinement(self, head: HeadWeights) -> bool:
        """Whether the kernel refines the images of the head, which may have been replaced by one of another size."""
        config = self.network.config
        fits = (head.arguments.scale, head.arguments.colors) == (config.upscale, config.num_channels)
        return fits and config.back_projection_blur == 0

    def features(self, pixels: Tensor, layout: PackedLayout) -> list[Tensor]:
        """Pixels (T, C) in [0, 1], image by image in reading order, to deep features (B, embed_dim, H, W) by group."""
        with self._borrow(len(pixels)) as buffers:
            deep = self._deep(pixels, layout, buffers).index_select(0, layout.images_from_windows)
        return layout.images(deep)

    def _borrow(self, count: int) -> AbstractContextManager[Buffers]:
        """Borrow memory for ``count`` tokens. Read the results before the block ends."""
        if self.body.form.dtype is not torch.float32:
            return nullcontext(Buffers())
        tokens = torch.empty(count, self.body.channels, device="meta")
        return self.workspace.scratch.borrow(tokens, 2 if self.embedding is None else 4)

    def _deep(self, pixels: Tensor, layout: PackedLayout, buffers: Buffers) -> Tensor:
        """Pixels, as for ``features``, to deep features (T, embed_dim) in window order."""
        if self.embedding is None:
            return self.body(self._shallow(pixels, layout), layout, buffers)
        normalised = self.trunk.normalise(pixels.t()[None, :, None])[0, :, 0].t()
        windows = normalised.index_select(0, layout.windows_from_images)
        halo, memory = layout.halo(layout.window), (buffers.take(), buffers.take())
        shallow, stream = cpu_kernel.embed(self.embedding, windows, halo, memory)
        return self.body(shallow, layout, buffers, stream)

    def _shallow(self, pixels: Tensor, layout: PackedLayout) -> Tensor:
        """Features (T, embed_dim) of the first convolution in window order."""
        first = [
            self.trunk.first_convolution(self.trunk.normalise(images)).permute(0, 2, 3, 1).flatten(0, 2)
            for images in layout.images(pixels)
        ]
        whole = first[0] if len(first) == 1 else torch.cat(first)
        del first  # for a large image, each copy needs much memory
        return whole.index_select(0, layout.windows_from_images)

    def run(self, pixels: Tensor, layout: PackedLayout) -> list[Reconstruction]:
        """Pixels (T, C) in [0, 1], image by image in reading order, to the reconstructions of each group of images.

        A head that the C kernel does not compute runs on images, as in the network.
        """
        assert isinstance(self.network, Swin2SR)
        if self.head is not None:
            residual = pixels if self.network.config.upsampler is None else None
            with self._borrow(len(pixels)) as buffers:
                deep = self._deep(pixels, layout, buffers)
                self.body.heartbeat()
                image = cpu_kernel.enlarge(self.head, deep, layout.halo(layout.window), layout.grid, residual)
            if self.refinement is not None:
                cpu_kernel.refine(self.refinement, pixels, image, layout.groups)
            return [Reconstruction(each) for each in layout.images(image, self.head.arguments.scale)]
        groups, found = self.features(pixels, layout), []
        for images in layout.images(pixels):
            self.body.heartbeat()
            found.append(self.network.reconstruct(groups.pop(0), images))
        return found

    def reconstruct(self, images: Sequence[Tensor]) -> list[Reconstruction]:
        """Reconstruct images of any sizes, in packs of ``PACK_PIXELS``.

        Args:
            images: each (C, H, W) with values in [0, 1]; sides are multiples of the window.

        Returns:
            For each image its (C, s * H, s * W), not clamped, and its auxiliary image where the head makes one.

        Raises:
            ValueError: if a side is not a multiple of the window, or the channels are not the network's.
        """
        found: dict[int, Reconstruction] = {}
        for pack in split_by_area([image.shape[1] * image.shape[2] for image in images], PACK_PIXELS):
            pack.sort(key=lambda index: images[index].shape)
            layout = self.workspace.layouts([(images[index].shape[1], images[index].shape[2]) for index in pack])
            pixels = torch.cat([images[index].permute(1, 2, 0).flatten(0, 1) for index in pack])
            alone = [
                Reconstruction(image, None if group.aux is None else group.aux[place])
                for group in self.run(pixels, layout)
                for place, image in enumerate(group.image)
            ]
            found.update(zip(pack, alone, strict=True))
        return [found[index] for index in range(len(images))]


def can_infer(network: nn.Module, pixels: Tensor) -> bool:
    """Whether the fast forward pass can be tried for this network and these pixels; packing may still refuse."""
    return (
        type(pixels) is Tensor
        and pixels.device.type == "cpu"
        and pixels.dtype in (torch.float32, torch.float64)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_tracing()
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0  # noqa: SLF001
        and torch._C._functorch.peek_interpreter_stack() is None  # noqa: SLF001
        and not has_observers(network)
    )


def infer(
    network: Swin2SR | Swin2SRBody, workspace: Workspace | None = None, precision: str = "exact"
) -> Inference | None:
    """The fast forward pass of the network's weights as they are now; None where a module was replaced."""
    try:
        return Inference(network, workspace, precision)
    except NotPlainError:
        return None


def infer_again(network: Swin2SR | Swin2SRBody, workspace: Workspace) -> Inference | None:
    """As ``infer``, with the last weights packed where nothing in the network has changed since."""
    fingerprint = fingerprint_of(network)
    found = workspace.packed.get(fingerprint)
    if found is None:
        found = infer(network, workspace)
        if found is not None:
            workspace.packed.put(fingerprint, found)
    return found
