"""Many images, several at a time, with bars for the whole and for each, and a report at the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from app import client
from app.cli.files import Job
from app.errors import ServiceError

_CHOICES = "--force overwrites it, --skip-existing leaves such images out"


class Upscaling(Protocol):
    """What upscales one image: this process, or a server."""

    async def upscale(self, body: bytes, name: str, on_progress: client.answer.OnProgress) -> client.UpscaledImage:
        """Upscale an image's bytes; the name is a file's.

        Raises:
            ServiceError, OSError: if it cannot be done.
        """


class Errand:
    """Jobs on their way.

    Args:
        upscaling: does the work.
        console: for people; standard output is not touched.
        force: overwrite files.
        skip: leave out images whose result is there.
        lines: where a line of JSON is written for each image, or None.
        streams: standard input and output.
    """

    def __init__(
        self,
        upscaling: Upscaling,
        console: Console,
        *,
        force: bool = False,
        skip: bool = False,
        lines: Any = None,  # noqa: ANN401 - a text stream
        streams: tuple[BinaryIO, BinaryIO] | None = None,
    ) -> None:
        self._upscaling = upscaling
        self._console = console
        self._force = force
        self._skip = skip
        self._skipped = 0
        self._lines = lines
        self._streams = streams
        self._failures: list[tuple[Job, str]] = []

    async def run(self, jobs: Sequence[Job], at_once: int) -> int:
        """Do them all, whatever becomes of each.

        Returns:
            How many failed; each is named on the console with its reason, and again at the end.
        """
        queue = iter(jobs)
        with self._bars() as bars:
            whole = bars.add_task(_plural(len(jobs)), total=len(jobs))
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, len(jobs))):
                    group.create_task(self._work(queue, bars, whole))
        if self._skipped:
            self._say(f"{_plural(self._skipped)} left out: the results are there")
        if self._failures and len(jobs) > 1:
            done = len(jobs) - len(self._failures) - self._skipped
            self._say(f"{_plural(done)} upscaled, {len(self._failures)} failed:")
            for job, reason in self._failures:
                self._say(f"  {job.name}: {reason}", "red")
        return len(self._failures)

    async def _work(self, queue: Iterator[Job], bars: Progress, whole: Any) -> None:  # noqa: ANN401 - rich's task id
        for job in queue:
            bar = bars.add_task(job.source.name if job.source else job.name, total=None)

            def show(step: client.Progress, bar: Any = bar) -> None:  # noqa: ANN401
                bars.update(bar, total=step.tiles or None, completed=step.tile)

            try:
                await self._do(job, show)
            except (ServiceError, OSError) as error:
                self._fail(job, error)
            bars.remove_task(bar)
            bars.advance(whole)

    async def _do(self, job: Job, show: client.answer.OnProgress) -> None:
        started = time.monotonic()
        if job.target is not None and job.target.exists() and not self._force:
            if self._skip:
                self._skipped += 1
                self._tell(job, target=str(job.target), skipped=True)
                return
            raise FileExistsError(f"{job.target} exists already; {_CHOICES}")
        body = await asyncio.to_thread(self._read, job)
        upscaled = await self._upscaling.upscale(body, job.source.name if job.source else "", show)
        target = await asyncio.to_thread(self._write, job, upscaled)
        self._say(f"{job.name} -> {target or 'standard output'}")
        notice = {"notice": upscaled.notice} if upscaled.notice else {}
        if upscaled.notice:
            self._say(f"  {upscaled.notice}", "yellow")
        self._tell(
            job,
            target=str(target) if target else None,
            variant=upscaled.variant,
            scale=upscaled.scale,
            tiles=upscaled.tiles,
            seconds=round(time.monotonic() - started, 3),
            **notice,
        )

    def _read(self, job: Job) -> bytes:
        return job.source.read_bytes() if job.source else self._stream(0).read()

    def _write(self, job: Job, upscaled: client.UpscaledImage) -> Path | None:
        if job.target is None:
            self._stream(1).write(upscaled.content)
            self._stream(1).flush()
            return None
        target = job.target if job.exact else job.target.with_suffix(Path(upscaled.filename).suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(target, upscaled.content, force=self._force)
        return target

    def _stream(self, number: int) -> BinaryIO:
        return (self._streams or (sys.stdin.buffer, sys.stdout.buffer))[number]

    def _fail(self, job: Job, error: ServiceError | OSError) -> None:
        reason = error.detail if isinstance(error, ServiceError) else _sentence(error)
        code = error.code if isinstance(error, ServiceError) else "file_error"
        if isinstance(error, client.ServerUnreachable):
            code = "unreachable"
        self._failures.append((job, reason))
        self._say(f"{job.name}: {reason}", "red")
        self._tell(job, error={"code": code, "detail": reason})

    def _tell(self, job: Job, **facts: object) -> None:
        if self._lines:
            line = {"source": str(job.source) if job.source else None, **facts}
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

    def _bars(self) -> Progress:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)


def _write_whole(target: Path, content: bytes, *, force: bool) -> None:
    """Write a file so that it is there whole or not at all, and never over another one unless forced to."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        if not force:
            try:
                target.open("xb").close()
            except FileExistsError:
                raise FileExistsError(f"{target} exists already; {_CHOICES}") from None
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _sentence(error: OSError) -> str:
    return error.strerror or str(error)


def _plural(count: int) -> str:
    return f"{count} {'image' if count == 1 else 'images'}"
