"""The pipeline: from the bytes of an upload to the bytes of the response, in one direction.

bytes -> header -> plan -> admit -> decode -> tiles -> [pack -> network -> unpack] -> stitch -> resize -> encode
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from numpy.typing import NDArray

from app import codec
from app.batching.batcher import Batcher
from app.batching.jobs import JobProgress, Reservation, Submission
from app.errors import DeadlineExceeded
from app.http.byte_budget import ByteBudget, ByteReservation
from app.http.uploads import Upload
from app.imaging import encoding
from app.imaging.refusals import codec_errors_as_refusals
from app.imaging.resize import blend_with_bicubic, resize
from app.imaging.step import StepRun
from app.imaging.work_plan import Network, Step, WorkPlan, plan_work
from app.schemas import UpscaleOptions
from app.settings import Settings
from app.variants.loaded_model import LoadedModel, TileJob
from app.variants.passes import ChosenModels, choose_models
from app.variants.registry import ModelRegistry
from model.tiling import Parallel

START_SECONDS = 20.0
"""Time for the threads of a pool to start."""

P = ParamSpec("P")
V = TypeVar("V")
TileBatcher = Batcher[TileJob, NDArray[Any]]
TileSubmission = Submission[TileJob, NDArray[Any]]

MAX_STITCH_THREADS = 4
"""Threads that quantise the bands of a tile. More are not faster, because memory bandwidth is the limit."""


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Attributes:
        deadline: time of ``time.monotonic()`` after which the request fails.
        client: name of the API key; clients take turns in the queue.
        on_progress: called in other threads.
        on_decoded: called when the upload is not needed any more.
        response: reservation for the encoded response; the caller releases it when the response was sent.
        memory: reservation for decoded images and the response; the caller releases it.
    """

    deadline: float
    client: str = ""
    on_progress: Callable[[JobProgress], None] | None = None
    on_decoded: Callable[[], None] = lambda: None
    response: ByteReservation | None = None
    memory: ByteReservation | None = None


@dataclass(frozen=True)
class Upscaled:
    """The response, and facts about it.

    Attributes:
        encoded: the file.
        variant: the variant of the first enlarging pass.
        scale, precision: those of that variant.
        tiles: the number of tiles of all passes.
        pixels: the number of pixels of the input.
        seconds: the time of each stage: decode, queue, forward, encode.
        steps: the passes and the resizing, as a response header shows them.
        restored: the variant that removed compression artefacts first; None if none did.
        quality: the quality that fits ``max_bytes``; None without ``max_bytes``.
    """

    encoded: codec.Encoded
    variant: str
    scale: int
    precision: str
    tiles: int
    pixels: int
    seconds: dict[str, float]
    steps: str
    restored: str | None = None
    quality: int | None = None


class Pipeline:
    """Upscales images.

    Args:
        registry, batcher: the variants, and the queue for their tiles.
        settings: limits and tiles.
        memory: budget for decoded images, results and encoders.
        codec_threads: how many images are decoded and encoded at once.
        stitch_threads: how many threads stitch a tile.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        batcher: TileBatcher,
        settings: Settings,
        *,
        memory: ByteBudget,
        codec_threads: int,
        stitch_threads: int = 1,
    ) -> None:
        self._registry = registry
        self._batcher = batcher
        self._settings = settings
        self._memory = memory
        self._limits = codec.DecodeLimits(max_pixels=settings.max_input_pixels)
        self._pool = ThreadPoolExecutor(codec_threads, "swin2sr-codec")
        # A separate thread, so that refusals do not wait for images that are being encoded.
        self._checks = ThreadPoolExecutor(1, "swin2sr-checks")
        # A separate thread, so that tiles do not wait for images that are being encoded.
        self._stitching = ThreadPoolExecutor(1, "swin2sr-stitch")
        self._bands = ThreadPoolExecutor(min(stitch_threads, MAX_STITCH_THREADS), "swin2sr-bands")

    def start(self) -> None:
        """Start all threads now, so that requests work even if no thread can be started later."""
        for pool in (self._checks, self._pool, self._stitching, self._bands):
            count = pool._max_workers  # noqa: SLF001 - the executor starts threads only when it has work
            barrier = threading.Barrier(count)
            for started in [pool.submit(barrier.wait, START_SECONDS) for _ in range(count)]:
                started.result()

    def close(self) -> None:
        """Stop decoding and encoding."""
        for pool in (self._checks, self._pool, self._stitching, self._bands):
            pool.shutdown(wait=False, cancel_futures=True)

    async def upscale(self, upload: Upload, options: UpscaleOptions, caller: Caller) -> Upscaled:
        """Upscale one image.

        Raises:
            RequestError: if the upload or an option is at fault, or the queue is full.
            ServerError: if the variant is not ready, the deadline passes, or the server fails.
        """
        try:
            async with asyncio.timeout(caller.deadline - time.monotonic()):
                with codec_errors_as_refusals(upload.hint), self._memory.open() as memory:
                    return await self._upscale(upload, options, caller, caller.memory or memory)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before the image was upscaled.") from None

    async def _upscale(
        self, upload: Upload, options: UpscaleOptions, caller: Caller, memory: ByteReservation
    ) -> Upscaled:
        self._registry.resolve(options.variant)  # report an unknown variant before faults of the image
        header = await _in(self._checks, codec.read_header, upload.body, self._limits)
        chosen = await choose_models(self._registry, options, header, max_pixels=self._settings.max_output_pixels)
        plan = await _in(self._checks, plan_work, header, options, self._settings, _networks(chosen))
        self._memory.check(plan.memory_bytes)
        run = _Run(plan, chosen, caller)
        # The alpha plane is included if the queue can hold it at all. It is not computed if it is constant.
        cost = min(plan.cost, max(plan.color_cost, self._settings.max_queue_pixels))
        with self._batcher.reserve(cost, client=caller.client) as reservation:
            await memory.reserve(plan.memory_bytes)
            started = time.monotonic()
            image = await _in(self._pool, codec.decode, upload.body, self._limits, header)
            upload.discard()
            caller.on_decoded()
            run.seconds["decode"] = time.monotonic() - started
            source = image if options.strength < 1 else None
            for index in range(len(plan.steps)):
                image = await self._run_step(run, index, image, reservation)
        if caller.response is not None:
            await caller.response.reserve(plan.response_bytes)
        started = time.monotonic()
        encoded, quality = await _in(self._pool, _finish, image, source, plan, options)
        run.seconds["encode"] = time.monotonic() - started
        memory.set(len(encoded.body))
        if caller.response is not None:
            caller.response.set(len(encoded.body))
        encoded = dataclasses.replace(encoded, notices=(*encoded.notices, *chosen.notices))
        main = chosen.models[chosen.names.index(chosen.main)]
        return Upscaled(
            encoded,
            chosen.main,
            main.upscaler.scale,
            main.precision,
            plan.tiles,
            header.pixels,
            run.seconds,
            plan.describe(),
            chosen.restored,
            quality,
        )

    async def _run_step(self, run: _Run, index: int, image: codec.Image, reservation: Reservation) -> codec.Image:
        """Compute one pass over an image."""
        step, model = run.plan.steps[index], run.chosen.models[index]
        work, jobs = await _in(self._pool, _cut, image, step, model, self._run_parallel)
        submission = self._batcher.admit(
            model.key,
            jobs,
            client=run.caller.client,
            deadline=run.caller.deadline,
            on_progress=run.follow(index, len(jobs)),
            reservation=reservation,
            is_last=index == len(run.plan.steps) - 1,
            result_window=step.result_window,
        )
        del jobs
        try:
            await self._stitch(submission, work, step)
        finally:
            submission.cancel()
        run.seconds["queue"] += submission.queue_seconds
        run.seconds["forward"] += submission.forward_seconds
        return await _in(self._pool, work.finish)

    async def _stitch(self, submission: TileSubmission, work: StepRun, step: Step) -> None:
        """Stitch the results as they arrive, and free each afterwards.

        A single result does not wait behind the tiles of large images.
        """
        pool = self._stitching if len(step.tiles) > 1 else self._pool
        for group in work.groups:
            futures = [asyncio.wrap_future(submission.futures.popleft()) for _ in range(step.augmentations)]
            outputs = await asyncio.gather(*futures)
            del futures
            await _in(pool, work.stitch, group, outputs)
            del outputs
            submission.release(step.augmentations)

    def _run_parallel(self, calls: Sequence[Callable[[], None]]) -> None:
        """Run calls in parallel. Not called in the threads that run them."""
        if len(calls) < 2:
            for call in calls:
                call()
            return
        for future in [self._bands.submit(call) for call in calls]:
            future.result()


def _cut(image: codec.Image, step: Step, model: LoadedModel, parallel: Parallel) -> tuple[StepRun, list[TileJob]]:
    work = StepRun(image, step, parallel)
    return work, [TileJob(model.upscaler, tile, dtype if model.rounds else None) for tile, dtype in work.tiles()]


class _Run:
    """The state of a running request: its plan, times by stage, and progress over all steps."""

    def __init__(self, plan: WorkPlan, chosen: ChosenModels, caller: Caller) -> None:
        self.plan = plan
        self.chosen = chosen
        self.caller = caller
        self.seconds = {"decode": 0.0, "queue": 0.0, "forward": 0.0, "encode": 0.0}
        self._done = 0

    def follow(self, index: int, jobs: int) -> Callable[[JobProgress], None] | None:
        """A callback for the progress of one step that reports the progress of the request."""
        report, before = self.caller.on_progress, self._done
        if report is None:
            return None
        self._done += jobs
        total = self._done + sum(step.jobs for step in self.plan.steps[index + 1 :])

        def follow(progress: JobProgress) -> None:
            if index and progress.state == "queued":
                progress = dataclasses.replace(progress, state="running", position=0)
            report(dataclasses.replace(progress, done=before + progress.done, total=total))

        return follow


def _networks(chosen: ChosenModels) -> list[Network]:
    def describe(name: str, model: LoadedModel) -> Network:
        upscaler = model.upscaler
        return Network(name, upscaler.scale, upscaler.window_size, upscaler.channels)

    return [describe(name, model) for name, model in zip(chosen.names, chosen.models, strict=True)]


async def _in(pool: ThreadPoolExecutor, work: Callable[P, V], *args: P.args, **kwargs: P.kwargs) -> V:
    return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(*args, **kwargs))


def _finish(
    image: codec.Image, source: codec.Image | None, plan: WorkPlan, options: UpscaleOptions
) -> tuple[codec.Encoded, int | None]:
    """Blend with the input, resize, and encode."""
    pixels, alpha = image.pixels, None if image.alpha is None else image.alpha[:, :, None]
    if source is not None:
        pixels = blend_with_bicubic(pixels, source.pixels, options.strength)
        if alpha is not None and source.alpha is not None:
            alpha = blend_with_bicubic(alpha, source.alpha[:, :, None], options.strength)
    if plan.resize is not None:
        size = plan.resize.height, plan.resize.width
        pixels = resize(pixels, *size, plan.resize.box)
        alpha = None if alpha is None else resize(alpha, *size, plan.resize.box)
    encode_options = codec.EncodeOptions(format=plan.format, quality=options.quality, metadata=options.metadata)
    result = dataclasses.replace(image, pixels=pixels, alpha=None if alpha is None else alpha[:, :, 0])
    return encoding.encode(result, encode_options, options.max_bytes)
