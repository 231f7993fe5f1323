"""All kernels of a GPU in machine code, without a GPU: ``python -m tests.compiled_kernels [80 90]``.

Triton brings the assembler along, so what it cannot translate for a card, or what needs more shared memory than the
card has, is known before the card is there.
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from model.gpu import kernels
from model.gpu.index_kernels import INDEX
from model.gpu.network import WindowNetwork
from tests.networks import tiny_network

SHARED_BYTES = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448}
"""Shared memory that a program may have, by compute capability (CUDA programming guide, technical specifications)."""

NETWORKS = ((60, 6, 8), (180, 6, 8), (40, 2, 8), (180, 6, 7))
"""Channels, heads and window of the official and the embedded variants."""

KINDS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}


class Compiler:
    """Stands for launching a kernel: translates it for each target, once for each form.

    Attributes:
        shared: bytes of shared memory by kernel and form.
    """

    def __init__(self, capability: int) -> None:
        self._capability = capability
        self.shared: dict[tuple[str, ...], int] = {}

    def stand_in(self) -> None:
        """Translate whatever would be launched from now on."""

        def run(function, *arguments, **options):
            self._translate(function, *arguments, **options)

        JITFunction.run = run

    def _translate(self, function, *arguments, num_warps, grid, warmup, **constants):
        del grid, warmup
        names = function.arg_names[: len(arguments)]
        signature = {name: self._kind(value) for name, value in zip(names, arguments, strict=True)}
        key = (function.__name__, *signature.values(), *map(str, constants.values()))
        if key in self.shared:
            return
        aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if "*" in kind}
        source = ASTSource(
            function, {**signature, **dict.fromkeys(constants, "constexpr")}, constexprs=constants, attrs=aligned
        )
        compiled = triton.compile(source, GPUTarget("cuda", self._capability, 32), {"num_warps": num_warps})
        self.shared[key] = compiled.metadata.shared
        form = ", ".join(f"{name} {value}" for name, value in constants.items())
        sys.stdout.write(f"sm_{self._capability} {compiled.metadata.shared:6} bytes {key[0]}: {form}\n")
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_BYTES[self._capability], key

    @staticmethod
    def _kind(value):
        if isinstance(value, torch.Tensor):
            return KINDS[value.dtype]
        return "fp32" if isinstance(value, float) else "i32"


def launch_all(channels: int, heads: int, window: int, dtype: torch.dtype, *, bounded: bool = True) -> None:
    """Every kernel that such a network could have, in every form."""
    network = tiny_network(embed_dim=channels, num_heads=(heads,), depths=(2,), window_size=window)
    if not bounded:
        network.swin2sr.encoder.stages[0].layers[1].attention.self.logit_scale.fill_(4.6)
    windowed = WindowNetwork(network, dtype)
    block, tokens = windowed.body.stages[0].blocks[1], 5 * window**2
    stream, rows = torch.zeros(tokens, windowed.body.width), torch.arange(tokens, dtype=torch.int32)
    branch, kinds = stream.to(dtype), torch.zeros(5, dtype=torch.int32)
    for form in kernels.kernels_for(block):
        form.attend(branch.repeat(1, 3), kinds, block.tables)
        form.gather(branch, rows)
        form.add_norm(stream, branch, block.norm1, None)
        form.add_norm(stream, branch, block.norm1, rows)
        if form.finish is not None:
            form.finish(stream, branch, block, rows)
        if form.run_block is not None:
            form.run_block(stream, kinds, block, None)
            form.run_block(stream, kinds, block, rows)
        if form.finish is not None:
            form.finish(stream, branch, block, None)


def launch_index_kernels(window: int) -> None:
    """Every index kernel of a network that enlarges by 4."""
    grid = torch.zeros(5, 5, dtype=torch.int32)
    INDEX.mask_kinds(grid)
    INDEX.pixel_rows(grid, window, 4)
    for roll in (window // 2, -window // 2):
        INDEX.locate(grid, window, roll=roll)
    INDEX.locate(grid, window, border=3, clamp=True)
    for side in (window, 4 * window):
        INDEX.locate(grid, side, border=1)


def main() -> None:
    """Translate for each compute capability of the command line, by default those of an A100 and an H100."""
    torch.set_num_threads(1)
    kernels._numbers = lambda tensor: tl.bfloat16 if tensor.dtype is torch.bfloat16 else tl.float32
    for capability in map(int, sys.argv[1:] or ("80", "90")):
        Compiler(capability).stand_in()
        launch_index_kernels(8)
        for channels, heads, window in NETWORKS:
            launch_all(channels, heads, window, torch.bfloat16)
            if (channels, capability) == (60, 90):
                launch_all(channels, heads, window, torch.float32)
                launch_all(channels, heads, window, torch.bfloat16, bounded=False)


if __name__ == "__main__":
    main()
