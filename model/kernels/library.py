"""The shared library of the C kernel, loaded with ctypes."""

from __future__ import annotations

import ctypes
import functools
import platform
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

FOLDER = Path(__file__).parent

LEAST_WIDTH = 128 if platform.machine().lower() in ("aarch64", "arm64") else 256
"""Bits of a vector below which PyTorch's own operators are faster."""

if TYPE_CHECKING:
    Function = ctypes._NamedFuncPointer  # noqa: SLF001 - what typeshed calls it


class BlockArguments(ctypes.Structure):
    """``struct block`` of ``kernel.h``."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("channels", "heads", "hidden", "tokens")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "qkv_weight", "qkv_bias", "scale", "bias", "proj_weight", "proj_bias", "norm1_weight", "norm1_bias",
                "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "norm2_weight", "norm2_bias",
            )
        ),
        ("eps", ctypes.c_float),
        ("packed", ctypes.c_void_p),
    )  # fmt: skip


class ConvolutionArguments(ctypes.Structure):
    """``struct convolution`` of ``kernel.h``."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("channels", "window")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "linear_weight", "linear_bias")),
        *((name, ctypes.c_void_p) for name in ("norm_weight", "norm_bias")),
        ("eps", ctypes.c_float),
        ("packed", ctypes.c_void_p),
    )


class EmbeddingArguments(ctypes.Structure):
    """``struct embedding`` of ``kernel.h``."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("channels", "window", "colors")),
        *(
            (name, ctypes.c_void_p)
            for name in ("weight", "bias", "linear_weight", "linear_bias", "norm_weight", "norm_bias")
        ),
        ("eps", ctypes.c_float),
    )


class HeadArguments(ctypes.Structure):
    """``struct head`` of ``kernel.h``."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("channels", "window", "scale", "colors")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
    )


class RefinementArguments(ctypes.Structure):
    """``struct refinement`` of ``kernel.h``."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("scale", "colors", "taps", "border")),
        *((name, ctypes.c_void_p) for name in ("reduce", "enlarge")),
        *((name, ctypes.c_float) for name in ("margin", "slack")),
    )


STRUCTURES = {
    "swin_block_size": BlockArguments,
    "swin_convolution_size": ConvolutionArguments,
    "swin_embedding_size": EmbeddingArguments,
    "swin_head_size": HeadArguments,
    "swin_refinement_size": RefinementArguments,
}
"""The library's functions that say how large it takes each structure to be."""


@dataclass(frozen=True)
class Kernel:
    """The functions of the library, as ``block.c`` and ``amx_packing.h`` describe them.

    Attributes:
        paeth: PNG's filter, as ``paeth.c`` describes it.
        checksum: of memory, as ``checksum.c`` describes it.
        width: bits of the vectors that are used.
        has_amx: returns 1 where the processor has AMX and the operating system permits its use; asks it once.
    """

    block: Function
    convolution: Function
    embed: Function
    enlarge: Function
    refine: Function
    pack_block: Function
    pack_convolution: Function
    free_packed: Function
    has_amx: Function
    paeth: Function
    checksum: Function
    width: int


@functools.cache
def load_kernel() -> Kernel | None:
    """The kernel; None where the package was installed without it, or with one that would be slower."""
    for suffix in EXTENSION_SUFFIXES:
        try:
            library = ctypes.CDLL(str(FOLDER / f"block{suffix}"))
            same = all(getattr(library, name)() == ctypes.sizeof(form) for name, form in STRUCTURES.items())
            if same and library.swin_block_width() >= LEAST_WIDTH:
                return _functions_of(library)
        except (OSError, AttributeError):  # absent, or built for something else
            continue
    return None


def kernel_level() -> str:
    """The instructions that the kernel can use here: ``amx``, ``avx512``, ``avx2``, ``neon``, or ``none``."""
    kernel = load_kernel()
    if kernel is None:
        return "none"
    return "amx" if kernel.has_amx() else {512: "avx512", 256: "avx2", 128: "neon"}[kernel.width]


def is_kernel_installed() -> bool:
    """Whether the package was installed with the kernel, whether or not this processor can use it."""
    return any((FOLDER / f"block{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)


def _functions_of(library: ctypes.CDLL) -> Kernel:
    pointer, long, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    block, convolution, embedding, head, refinement = (ctypes.POINTER(form) for form in STRUCTURES.values())
    return Kernel(
        _declare(library.swin_block, integer, block, *[pointer] * 3, long, ctypes.POINTER(long), integer),
        _declare(library.swin_convolution, integer, convolution, *[pointer] * 4, long, integer),
        _declare(library.swin_embed, integer, embedding, *[pointer] * 4, long, integer),
        _declare(library.swin_enlarge, integer, head, *[pointer] * 5, long, integer),
        _declare(library.swin_refine, integer, refinement, *[pointer] * 3, *[long] * 3, integer),
        _declare(library.swin_pack_block, pointer, block, long, integer),
        _declare(library.swin_pack_convolution, pointer, convolution, integer),
        _declare(library.swin_free_packed, None, pointer),
        _declare(library.swin_has_amx, integer),
        _declare(library.swin_paeth, None, pointer, long, long, long, pointer),
        _declare(library.swin_checksum, ctypes.c_uint64, ctypes.POINTER(pointer), ctypes.POINTER(long), long),
        library.swin_block_width(),
    )


def _declare(function: Function, result: type[object] | None, *arguments: type) -> Function:
    function.argtypes = list(arguments)
    function.restype = result
    return function
