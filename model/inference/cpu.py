"""The fast forward pass on a CPU, from pixels to images.

It is used only if it gives the result of the network: no module was replaced, wrapped or hooked, none is in training,
and no gradient is needed. Otherwise ``model.network`` itself runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from model import cpu_kernel
from model.hooks import has_observers, is_tracing
from model.inference.body import CHUNK, WindowBody, compute_block
from model.inference.fingerprint import Kept, fingerprint_of
from model.inference.operators import PLAIN, Operators, add_norm, attend
from model.inference.packed_weights import Block, EndWeights, Form, NotPlainError, expect, pack_embedding, pack_head
from model.inference.scratch import Buffers, Scratch
from model.kernels.weights import HeadWeights, pack_refinement
from model.network import Swin2SR, Swin2SRBody
from model.packing import LayoutCache, PackedLayout, WindowIndex, split_by_area
from model.reconstruction import Reconstruction
from model.windows import MASK_KINDS

PACK_PIXELS = 2**16
"""Pixels of a pack on a CPU. Larger packs do not fit its caches; in smaller ones, starting operators takes longer."""


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
        self.refinement = pack_refinement(network.config) if self.head and self._has_own_size(self.head) else None
        if network.config.is_refined and self.refinement is None:
            self.head = None
        self.workspace = workspace or Workspace(network.config.window_size, network.config.shift_size)

    def _has_own_size(self, head: HeadWeights) -> bool:
        """Whether the head, which may have been replaced, makes images of the size that the configuration says."""
        config = self.network.config
        return (head.arguments.scale, head.arguments.colors) == (config.upscale, config.num_channels)

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
