"""From an upload's bytes to the answer's, in one direction.

bytes -> decode -> passes -> pad -> tiles -> batcher -> [network] -> restore -> stitch -> reduce -> encode -> bytes
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from app import codec
from app.batching.batcher import Batcher
from app.batching.jobs import Progress, Submission
from app.errors import DeadlineExceeded
from app.http.uploads import Upload
from app.imaging.channels import Pass, Pixels, Values, fit, fit_transparency, is_constant, turn, turn_back
from app.imaging.refusals import codec_errors_as_refusals
from app.imaging.work_plan import Outline, final_size, outline, reduce_to
from app.schemas import UpscaleOptions
from app.settings import Settings
from app.variants.loaded_model import TileJob, TileUpscaler
from app.variants.registry import ModelRegistry
from model.padding import pad_direct
from model.tiling import Stitcher, Tile

P = ParamSpec("P")
V = TypeVar("V")
TileBatcher = Batcher[TileJob, NDArray[np.float32]]
TileSubmission = Submission[TileJob, NDArray[np.float32]]

RESULT_WINDOW = 4
"""Tiles of a request that may be computed and not yet stitched; with the self-ensemble, all turns of two tiles."""


@dataclass(frozen=True)
class Caller:
    """Who waits for an answer, and for how long."""

    deadline: float
    """Time of ``time.monotonic()`` after which the answer is of no use."""
    client: str = ""
    """Whose request this is: clients take turns in the queue."""
    on_progress: Callable[[Progress], None] | None = None
    """Called in other threads."""


@dataclass(frozen=True)
class Upscaled:
    """The answer, what it is, and what it took in seconds."""

    encoded: codec.Encoded
    variant: str
    scale: int
    precision: str
    tiles: int
    pixels: int
    """Of the input."""
    seconds: dict[str, float]
    """By stage: decode, queue, forward, encode."""


class Pipeline:
    """The way that every image takes.

    Args:
        registry, batcher: what waits and what computes.
        settings: limits and tiles.
        codec_threads: how many images are decoded and encoded at once.
    """

    def __init__(
        self, registry: ModelRegistry, batcher: TileBatcher, settings: Settings, *, codec_threads: int
    ) -> None:
        self._registry = registry
        self._batcher = batcher
        self._settings = settings
        self._limits = codec.DecodeLimits(max_pixels=settings.max_input_pixels)
        self._pool = ThreadPoolExecutor(codec_threads, "swin2sr-codec")
        # Apart, because a refusal must not wait until others' images are encoded.
        self._door = ThreadPoolExecutor(1, "swin2sr-door")
        # Apart, because a tile that waited while another image is encoded would hold up the network.
        self._joining = ThreadPoolExecutor(1, "swin2sr-stitch")

    def close(self) -> None:
        """Stop decoding and encoding."""
        for pool in (self._door, self._pool, self._joining):
            pool.shutdown(wait=False, cancel_futures=True)

    async def upscale(self, upload: Upload, options: UpscaleOptions, caller: Caller) -> Upscaled:
        """Upscale one image.

        Raises:
            RequestError: if the upload or an option is at fault, or the queue is full.
            ServerError: if the variant is not ready, the deadline passes, or the server cannot.
        """
        try:
            async with asyncio.timeout(caller.deadline - time.monotonic()):
                with codec_errors_as_refusals():
                    return await self._upscale(upload, options, caller)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before the image was upscaled.") from None

    async def _upscale(self, upload: Upload, options: UpscaleOptions, caller: Caller) -> Upscaled:
        entry = self._registry.resolve(options.variant)
        header = await _in(self._door, codec.read_header, upload.body, self._limits)
        loaded = await self._registry.obtain(entry)
        upscaler = loaded.upscaler
        _refuse_early(header, options, upscaler.scale)
        watch = _Stopwatch()
        least = await _in(self._door, self._outline, header.upright_height, header.upright_width, options, upscaler)
        with self._batcher.reserve(least.cost, client=caller.client) as reservation:
            work = await _in(self._pool, self._prepare, upload.body, header, options, upscaler)
            watch.lap("decode")
            submission = self._batcher.admit(
                loaded.key,
                [TileJob(upscaler, tile) for tile in work.tiles],
                client=caller.client,
                deadline=caller.deadline,
                on_progress=caller.on_progress,
                reservation=reservation,
                result_window=max(RESULT_WINDOW, 2 * work.outline.turns),
            )
        try:
            image = await self._collect(submission, work, upscaler.scale)
        finally:
            submission.cancel()
        tiles, pixels, size = len(work.outline.tiles), work.image.width * work.image.height, (work.height, work.width)
        del work  # and with it the input's planes, while the answer is encoded
        watch.set("queue", submission.queue_seconds)
        watch.set("forward", submission.forward_seconds)
        watch.skip()
        encoded = await _in(self._pool, _finish, image, size, options)
        watch.lap("encode")
        return Upscaled(encoded, entry.name, upscaler.scale, upscaler.precision, tiles, pixels, watch.seconds)

    def _outline(self, height: int, width: int, options: UpscaleOptions, upscaler: TileUpscaler) -> Outline:
        window, scale = upscaler.window_size, upscaler.scale
        return outline(height, width, options, self._settings, scale=scale, window=window)

    def _prepare(self, body: bytes, header: codec.Header, options: UpscaleOptions, upscaler: TileUpscaler) -> _Work:
        """Decode, refuse what could not be answered, and cut into what the network sees."""
        image = codec.decode(body, self._limits, header)
        height, width = final_size(image.height, image.width, upscaler.scale, options)
        codec.check_output(codec.output_format(options.format, image.format), width, height)
        work = self._outline(image.height, image.width, options, upscaler)
        passes = _passes(image, upscaler)
        return _Work(image, work, passes, list(_tiles(passes, work)), height, width)

    async def _collect(self, submission: TileSubmission, work: _Work, scale: int) -> codec.Image:
        """Join the tiles as they come; their results are let go one by one."""
        image, tiles = work.image, work.outline.tiles
        stitchers = [
            Stitcher(image.height, image.width, each.source.shape[2], scale=scale, tiles=tiles, dtype=each.source.dtype)
            for each in work.passes
        ]
        for tile in tiles:
            for each, stitcher in zip(work.passes, stitchers, strict=True):
                futures = [asyncio.wrap_future(submission.futures.popleft()) for _ in range(work.outline.turns)]
                outputs = await asyncio.gather(*futures)
                del futures
                await _in(self._joining, _join, stitcher, tile, each, outputs)
                del outputs
                submission.release(work.outline.turns)
        return _with_results(image, [stitcher.finish() for stitcher in stitchers], scale)


async def _in(pool: ThreadPoolExecutor, work: Callable[P, V], *args: P.args, **kwargs: P.kwargs) -> V:
    return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(*args, **kwargs))


@dataclass(frozen=True)
class _Work:
    """A decoded image, cut into what the network sees, and the size that is wished for."""

    image: codec.Image
    outline: Outline
    passes: list[Pass]
    tiles: list[Pixels]
    height: int
    width: int


class _Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = now - self._since
        self._since = now

    def skip(self) -> None:
        self._since = time.monotonic()

    def set(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = seconds


def _refuse_early(header: codec.Header, options: UpscaleOptions, scale: int) -> None:
    """Refuse what could not be answered; nothing is decoded yet.

    Raises:
        codec.TooLargeForFormat: if the format cannot hold the answer.
        InvalidOption: if the wished size is larger than the upscaled image.
    """
    tall, wide = final_size(header.upright_height, header.upright_width, scale, options)
    codec.check_output(codec.output_format(options.format, header.format), wide, tall)


def _passes(image: codec.Image, upscaler: TileUpscaler) -> list[Pass]:
    """What the network sees: the colours, and the transparency where there is something to compute; padded."""
    passes = [fit(codec.fill_transparent(image.pixels, image.alpha), upscaler.channels)]
    if image.alpha is not None and upscaler.scale > 1 and not is_constant(image.alpha):
        passes.append(fit_transparency(image.alpha[:, :, None], upscaler.channels))
    return [_pad(each, upscaler.window_size) for each in passes]


def _pad(each: Pass, window: int) -> Pass:
    seen = pad_direct(each.seen, window)
    return Pass(seen, seen if each.source is each.seen else pad_direct(each.source, window), each.restore)


def _tiles(passes: list[Pass], work: Outline) -> Iterator[Pixels]:
    """What the network computes: tile by tile, each pass over it, each turn of that."""
    for tile in work.tiles:
        for each in passes:
            for index in range(work.turns):
                yield turn(tile.cut(each.seen), index)


def _join(stitcher: Stitcher, tile: Tile, each: Pass, outputs: list[Values]) -> None:
    """Average a tile's turns, make its channels the image's again, and stitch it."""
    total = turn_back(outputs[0], 0)
    if len(outputs) > 1:
        total = np.mean([turn_back(output, index) for index, output in enumerate(outputs)], axis=0, dtype=np.float32)
    stitcher.add(tile, each.restore(total, tile.cut(each.source)))


def _with_results(image: codec.Image, results: list[Pixels], scale: int) -> codec.Image:
    """The image with its colours and its transparency upscaled."""
    pixels, alpha = results[0], image.alpha
    if len(results) > 1:
        alpha = results[1][:, :, 0]
    elif alpha is not None and scale > 1:
        alpha = np.full(pixels.shape[:2], alpha.flat[0], alpha.dtype)
    return dataclasses.replace(image, pixels=pixels, alpha=alpha)


def _finish(image: codec.Image, size: tuple[int, int], options: UpscaleOptions) -> codec.Encoded:
    """Reduce to the wished height and width, and encode."""
    pixels, alpha = reduce_to(image.pixels, *size), image.alpha
    if alpha is not None:
        alpha = reduce_to(alpha[:, :, None], *size)[:, :, 0]
    wish = codec.EncodeOptions(format=options.format, quality=options.quality, metadata=options.metadata)
    return codec.encode(dataclasses.replace(image, pixels=pixels, alpha=alpha), wish)
