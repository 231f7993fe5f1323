"""Bulk upscaling: several images at a time, with progress bars and a report of failures."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from rich import progress
from rich.console import Console
from rich.text import Text

from app import client
from app.cli.compare import build_page
from app.cli.files import FileTask
from app.cli.objects import S3Object
from app.errors import ServiceError

_EXISTS = "Use --force to overwrite it, or --skip-existing to skip such images."


class Backend(Protocol):
    """Upscales one image at a time: in this process, or on a server."""

    async def upscale(self, body: bytes, name: str, on_progress: client.response.OnProgress) -> client.UpscaledImage:
        """Upscale an encoded image.

        Args:
            body: the encoded image.
            name: its file name, without a folder; may be empty.
            on_progress: called with each step.

        Raises:
            ServiceError, OSError: if the image cannot be upscaled.
        """


class BulkUpscaler:
    """Upscales a list of files.

    Args:
        backend: upscales each image.
        console: for messages and progress bars, on standard error.
        force: overwrite existing files.
        skip: skip images whose output file exists.
        compare: write a page that compares before and after beside each output file.
        lines: text stream that gets one line of JSON for each image, or None.
    """

    def __init__(
        self,
        backend: Backend,
        console: Console,
        *,
        force: bool = False,
        skip: bool = False,
        compare: bool = False,
        lines: Any = None,  # noqa: ANN401 - a text stream
    ) -> None:
        self._backend = backend
        self._console = console
        self._force = force
        self._skip = skip
        self._compare = compare
        self._done = self._skipped = 0
        self._lines = lines
        self.failures: list[tuple[FileTask, ServiceError | OSError]] = []
        """The images of the last run that failed, with their errors."""

    async def run(self, tasks: Iterable[FileTask], concurrency: int, stop: asyncio.Event | None = None) -> None:
        """Upscale all images, and continue after a failure. Failures are printed, and again at the end.

        Args:
            tasks: images to read and files to write; taken one by one.
            concurrency: images processed at a time.
            stop: once it is set, no further image is begun.

        Raises:
            OSError: from ``tasks``, once the images that were begun are finished.
        """
        self.failures, self._done, self._skipped = [], 0, 0
        queue = _Queue(task for task in tasks if not (stop and stop.is_set()))
        count = len(tasks) if isinstance(tasks, Sized) else None
        with self._bars() as bars:
            total = bars.add_task("images" if count is None else _plural(count), total=count)
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency if count is None else min(concurrency, count)):
                    group.create_task(self._work(queue, bars, total))
        if self._skipped:
            self._print(f"{_plural(self._skipped)} skipped: the output file exists")
        if self.failures and self._done > 1:
            upscaled = self._done - len(self.failures) - self._skipped
            self._print(f"{_plural(upscaled)} upscaled, {len(self.failures)} failed:")
            for task, error in self.failures:
                self._print(f"  {task.name}: {_message(error)}", "red")
        if queue.error:
            raise queue.error

    async def _work(self, queue: _Queue, bars: progress.Progress, total: progress.TaskID) -> None:
        while task := await queue.take():
            bar = bars.add_task(task.source.name if task.source else task.name, total=None)

            def show(step: client.Progress, bar: progress.TaskID = bar) -> None:
                with suppress(KeyError):  # the last steps may arrive when the image is done and its bar is gone
                    bars.update(bar, total=step.tiles or None, completed=step.tile)

            try:
                await self._process(task, show)
            except (ServiceError, OSError) as error:
                self._fail(task, error)
            bars.remove_task(bar)
            bars.advance(total)
            self._done += 1

    async def _process(self, task: FileTask, show: client.response.OnProgress) -> None:
        started = time.monotonic()
        if task.target is not None and not self._force and await asyncio.to_thread(task.target.exists):
            if self._skip:
                self._skipped += 1
                self._write_json(task, target=str(task.target), skipped=True)
                return
            raise FileExistsError(f"{task.target} already exists. {_EXISTS}")
        body = await asyncio.to_thread(self._read, task)
        upscaled = await self._backend.upscale(body, task.source.name if task.source else "", show)
        target = await asyncio.to_thread(self._write, task, upscaled)
        page = await asyncio.to_thread(self._write_page, target, body, upscaled) if self._compare and target else None
        self._print(f"{task.name} -> {target or 'standard output'}")
        notice = {"notice": upscaled.notice} if upscaled.notice else {}
        if upscaled.notice:
            self._print(f"  {upscaled.notice}", "yellow")
        self._write_json(
            task,
            target=str(target) if target else None,
            variant=upscaled.variant,
            scale=upscaled.scale,
            tiles=upscaled.tiles,
            seconds=round(time.monotonic() - started, 3),
            **({"compare": str(page)} if page else {}),
            **notice,
        )

    def _read(self, task: FileTask) -> bytes:
        return task.source.read_bytes() if task.source else sys.stdin.buffer.read()

    def _write(self, task: FileTask, upscaled: client.UpscaledImage) -> Path | S3Object | None:
        if task.target is None:
            sys.stdout.buffer.write(upscaled.content)
            sys.stdout.buffer.flush()
            return None
        target = task.target if task.exact else task.target.with_suffix(Path(upscaled.filename).suffix)
        _write_atomically(target, upscaled.content, force=self._force)
        return target

    def _write_page(self, target: Path | S3Object, body: bytes, upscaled: client.UpscaledImage) -> Path | S3Object:
        page = target.with_suffix(".html")
        text = build_page(target.name, body, upscaled.content)
        _write_atomically(page, text.encode("utf-8"), force=self._force)
        return page

    def _fail(self, task: FileTask, error: ServiceError | OSError) -> None:
        reason = _message(error)
        code = error.code if isinstance(error, ServiceError) else "file_error"
        self.failures.append((task, error))
        self._print(f"{task.name}: {reason}", "red")
        self._write_json(task, error={"code": code, "detail": reason})

    def _write_json(self, task: FileTask, **fields: object) -> None:
        if self._lines:
            line = {"source": str(task.source) if task.source else None, **fields}
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

    def _bars(self) -> progress.Progress:
        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
        )
        hidden = not self._console.is_terminal
        return progress.Progress(*columns, console=self._console, transient=True, disable=hidden)


class _Queue:
    """Images that several workers take, from an iterator that may wait for the network.

    Attributes:
        error: of the iterator, which ends the queue.
    """

    def __init__(self, tasks: Iterator[FileTask]) -> None:
        self._tasks = tasks
        self._lock = asyncio.Lock()
        self.error: OSError | None = None

    async def take(self) -> FileTask | None:
        """The next image, or None at the end."""
        async with self._lock:
            try:
                return None if self.error else await asyncio.to_thread(next, self._tasks, None)
            except OSError as error:
                self.error = error
                return None


def _write_atomically(target: Path | S3Object, content: bytes, *, force: bool) -> None:
    """Write a file completely or not at all, and replace an existing file only if ``force`` is set."""
    if isinstance(target, S3Object):
        target.write_bytes(content, force=force)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        if not force:
            try:
                target.open("xb").close()
            except FileExistsError:
                raise FileExistsError(f"{target} already exists. {_EXISTS}") from None
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _message(error: ServiceError | OSError) -> str:
    return error.detail if isinstance(error, ServiceError) else error.strerror or str(error)


def _plural(count: int) -> str:
    return f"{count} {'image' if count == 1 else 'images'}"
