"""The ``swin2sr watch`` command: upscales images as they arrive in a folder."""

from __future__ import annotations

import asyncio
import glob
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from app.cli.bulk import BulkUpscaler
from app.cli.files import FileTask, find_images, plan_outputs
from app.cli.upscale import UpscaleArgs, open_backend
from app.errors import ServerError
from app.schemas import UpscaleOptions
from app.settings import Settings

RETRY_S = 30.0
"""Seconds before an image is tried again that failed for a reason that may pass, such as a server that is away."""


@dataclass
class _Seen:
    """What is known of an input file: its size and time at the last scan, and what became of it."""

    signature: tuple[int, int]
    finished: bool = False
    retry_at: float = 0.0


@dataclass
class FolderWatcher:
    """Finds images in a folder that are complete and have no output file yet.

    A file is complete if its size and modification time are the same in two scans. Images whose output file exists are
    skipped, so that a restart continues where the last run stopped. A file that failed is tried again if it changes.

    Args:
        folder: that is watched, with its sub-folders.
        output: folder of the output files; may be inside ``folder``.
        variant, format_: as in ``plan_outputs``.
        clock: seconds; for tests.

    Raises:
        ValueError: if the two folders are the same, or ``folder`` is none.
    """

    folder: Path
    output: Path
    variant: str
    format_: str
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_folders(self.folder, self.output)

    def scan(self) -> list[FileTask]:
        """The images to upscale now."""
        files = find_images([str(self.folder)], without=self.output)
        tasks = plan_outputs(files, self.output, self.variant, self.format_)
        self._seen = {path: seen for path, seen in self._seen.items() if path in {task.source for task in tasks}}
        return [task for task in tasks if self._is_due(task)]

    def finish(self, task: FileTask, error: Exception | None) -> None:
        """Note what became of an image."""
        assert isinstance(task.source, Path), "comes from a scan"
        seen = self._seen.get(task.source)
        if seen is not None:
            seen.finished = not isinstance(error, ServerError | OSError) or isinstance(error, FileExistsError)
            seen.retry_at = self.clock() + RETRY_S

    def _is_due(self, task: FileTask) -> bool:
        assert isinstance(task.source, Path), "comes from a folder"
        try:
            status = task.source.stat()
        except FileNotFoundError:
            return False
        signature = (status.st_size, status.st_mtime_ns)
        seen = self._seen.get(task.source)
        if seen is None or seen.signature != signature:
            self._seen[task.source] = _Seen(signature)
            return False
        if seen.finished or status.st_size == 0 or self.clock() < seen.retry_at:
            return False
        return not self._has_output(task)

    def _has_output(self, task: FileTask) -> bool:
        assert isinstance(task.target, Path), "comes from a folder"
        if self.format_ != "same":
            return task.target.exists()
        return any(task.target.parent.glob(f"{glob.escape(task.target.stem)}.*"))


def check_folders(folder: Path, output: Path) -> None:
    """Check the two folders of a watcher.

    Raises:
        ValueError: if ``folder`` is none, or both are the same.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    if output.resolve() == folder.resolve():
        raise ValueError(f"The output folder {output} is the watched folder. Use another one, such as a sub-folder.")


async def run(
    args: UpscaleArgs, options: UpscaleOptions, settings: Settings | None, console: Console, interval: float
) -> None:
    """Watch a folder until SIGINT or SIGTERM. The arguments are those of ``app.cli.upscale.run``."""
    stop = stop_on_signals()
    assert isinstance(args.output, Path), "the command requires it"
    async with open_backend(args, options, settings) as backend:
        lines = sys.stdout if args.as_json else None
        upscaler = BulkUpscaler(backend, console, lines=lines)
        watcher = FolderWatcher(Path(args.inputs[0]), args.output, await backend.variant(), options.format)
        console.print(f"watching {watcher.folder}, writing to {watcher.output}; stop with Ctrl-C", soft_wrap=True)
        await watch(watcher, upscaler, concurrency=args.jobs, interval=interval, stop=stop)


async def watch(
    watcher: FolderWatcher, upscaler: BulkUpscaler, *, concurrency: int, interval: float, stop: asyncio.Event
) -> None:
    """Upscale images as they arrive, until ``stop`` is set. Images that were begun are finished.

    Args:
        watcher: finds them.
        upscaler: upscales them.
        concurrency: images processed at a time.
        interval: seconds between two scans.
        stop: ends the watching.
    """
    while not stop.is_set():
        tasks = await asyncio.to_thread(watcher.scan)
        for task in tasks:
            watcher.finish(task, None)
        if tasks:
            await upscaler.run(tasks, concurrency, stop)
            for task, error in upscaler.failures:
                watcher.finish(task, error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), interval)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set. A second signal ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def handle() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle)
    return stop
