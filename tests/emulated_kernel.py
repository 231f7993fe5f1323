"""The C kernel on another processor: each call is a run of ``kernel_program.c`` under an emulator."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.kernels.library import BlockArguments, ConvolutionArguments, Kernel

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "model" / "kernels" / f"{name}.c" for name in ("block", "amx", "pool")]
FLAGS = ["-O2", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
SLOTS = 64


def compile_program(compiler: str, folder: Path, library: Path | None = None) -> Path:
    """Build the program from the kernel's sources, with setup.py's flags but for less optimisation.

    Args:
        compiler: for the processor.
        folder: for the program.
        library: a compiled kernel, which is used in place of the sources.
    """
    program = folder / "kernel_program"
    kernel = [library, f"-Wl,-rpath,{library.parent}"] if library else [*SOURCES, "-static"]
    command = [compiler, *FLAGS, ROOT / "tests" / "kernel_program.c", *kernel, "-o", program, "-lm", "-lpthread"]
    subprocess.run(command, check=True)
    return program


@dataclass
class EmulatedKernel:
    """Replaces the functions of the library.

    Args:
        command: the emulator with its options, and the program.
        folder: for the arguments and results of calls.

    Attributes:
        width: bits of the vectors that the program said it uses, after the first call.
    """

    command: list[str]
    folder: Path
    width: int = 0

    def kernel(self) -> Kernel:
        """What ``load_kernel`` returns in its place."""
        nothing = lambda *_arguments: None  # noqa: E731
        return Kernel(
            self.block,
            self.convolution,
            embed=nothing,
            enlarge=nothing,
            pack_block=nothing,
            pack_convolution=nothing,
            free_packed=nothing,
            has_amx=lambda: 0,
            paeth=nothing,
            checksum=nothing,
            width=128,
        )

    def block(self, arguments, tokens, gather, out, count, kinds, threads) -> int:  # noqa: PLR0917
        """As ``swin_block``."""
        w: BlockArguments = arguments._obj
        c, hidden, n = w.channels, w.hidden, count * w.tokens
        used = max(index for index, windows in enumerate(kinds) if windows) + 1
        sizes = (3 * c * c, 3 * c, w.heads, used * w.heads * w.tokens * SLOTS, c * c, c, c, c,
                 hidden * c, hidden, c * hidden, c, c, c)  # fmt: skip
        names = [name for name, kind in BlockArguments._fields_ if kind is ctypes.c_void_p and name != "packed"]
        arrays = [read(getattr(w, name), size) for name, size in zip(names, sizes, strict=True)]
        table = read(gather, n, np.int32)
        rows = n if table is None else int(table.max()) + 1
        arrays += [np.array([w.eps], np.float32), read(tokens, rows * c), table]
        head = [0, c, w.heads, hidden, w.tokens, count, *kinds, threads, 0]
        return self._run(head, arrays, out, n * c)

    def convolution(self, arguments, tokens, halo, residual, out, count, threads) -> int:  # noqa: PLR0917
        """As ``swin_convolution``."""
        w: ConvolutionArguments = arguments._obj
        c, n = w.channels, count * w.window**2
        table = read(halo, count * (w.window + 2) ** 2, np.int32)
        arrays = [read(w.weight, 9 * c * c), read(w.bias, c), read(w.linear_weight, c * c), read(w.linear_bias, c)]
        arrays += [read(tokens, (int(table.max()) + 1) * c), table, read(residual, n * c)]
        return self._run([1, c, 0, 0, w.window, count, 0, 0, 0, 0, threads, 0], arrays, out, n * c)

    def _run(self, head: list[int], arrays: list[np.ndarray | None], out: int, size: int) -> int:
        source, target = self.folder / "arguments", self.folder / "result"
        with source.open("wb") as file:
            file.write(np.array(head, np.int64).tobytes())
            for array in arrays:
                file.write(np.int64(0 if array is None else array.size).tobytes())
                file.write(b"" if array is None else array.tobytes())
        result = subprocess.run([*self.command, source, target], capture_output=True, text=True, check=True)
        self.width = int(result.stdout)
        ctypes.memmove(out, target.read_bytes(), size * 4)
        return 0


def read(address: int | None, size: int, dtype: type = np.float32) -> np.ndarray | None:
    """Values of 4 bytes at an address; None for a null pointer."""
    return np.frombuffer(ctypes.string_at(address, size * 4), dtype) if address else None
