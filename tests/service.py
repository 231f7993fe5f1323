"""A whole service in this process, with scripted upscalers in the networks' places."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from app.main import create_app
from app.settings import Settings
from tests.scripted import ScriptedUpscaler, loading, model_dir

SMALL = {"tile_size": 128, "tile_overlap": 32, "max_input_pixels": 1_000_000, "drain_timeout_ms": 20_000}
"""Settings under which small images have several tiles."""


def scripted_app(
    folder: Path,
    settings: dict[str, object] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **upscalers: ScriptedUpscaler,
) -> FastAPI:
    """An application whose variants are these upscalers (``classical_x2=`` is ``classical-x2``), all loaded at boot."""
    names = [name.replace("_", "-") for name in upscalers]
    wanted = {"variants": ",".join(names), "model_dir": model_dir(folder / "models", *names), "device": "cpu"}
    return create_app(Settings(**{**SMALL, **wanted, **(settings or {})}), load=loading(**upscalers), clock=clock)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application while its lifespan runs."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            yield client


def png(pixels: np.ndarray) -> bytes:
    """Pixels (H,W,C) uint8 as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def png_header(height: int, width: int) -> bytes:
    """A PNG whose header and checksums are in order, and whose pixels are none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"not deflate"), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def pixels_of(body: bytes) -> np.ndarray:
    """An image's pixels, (H,W) or (H,W,C)."""
    with Image.open(io.BytesIO(body)) as image:
        return np.asarray(image)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random pixels (H,W,C) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def enlarged(pixels: np.ndarray, scale: int = 2) -> np.ndarray:
    """What the scripted upscaler makes of pixels."""
    return pixels.repeat(scale, 0).repeat(scale, 1)
