"""Files through the service's pipeline in this process: what ``swin2sr upscale`` does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app import jobs
from app.errors import ServiceError
from app.pipeline import Caller
from app.schemas import UpscaleOptions
from app.service import Service, build_service
from app.settings import Settings
from app.uploads import Upload

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".avif", ".bmp", ".gif", ".heic", ".heif"})
PATIENCE = 10 * 365 * 24 * 3600.0
"""Seconds: a person stops a program with a key."""


@dataclass(frozen=True)
class Job:
    """A file to read and one to write; ``rename`` gives that one the suffix of its format."""

    source: Path
    target: Path
    rename: bool


def find_images(places: Iterable[Path]) -> list[Path]:
    """The files given, and the images in the folders given, by name."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
        else:
            found.append(place)
    return found


async def upscale_files(work: Sequence[Job], options: UpscaleOptions, settings: Settings, console: Console) -> int:
    """Upscale files one after the other, with a bar per file and per tile.

    Returns:
        How many failed; each is named on the console with its reason.
    """
    failures = 0
    with _service(settings) as service, _bars(console) as bars:
        files = bars.add_task("files", total=len(work))
        for job in work:
            tiles = bars.add_task(job.source.name, total=None)

            def show(progress: jobs.Progress, task: int = tiles) -> None:
                bars.update(task, total=progress.total, completed=progress.done)  # type: ignore[arg-type]

            try:
                written = await _upscale_file(
                    service, job, options, Caller(time.monotonic() + PATIENCE, on_progress=show)
                )
            except (ServiceError, OSError, ValueError) as error:
                failures += 1
                console.print(f"{job.source}: {error}", style="red", markup=False, highlight=False)
            else:
                console.print(f"{job.source} -> {written}", markup=False, highlight=False)
            bars.remove_task(tiles)
            bars.advance(files)
    return failures


async def _upscale_file(service: Service, job: Job, options: UpscaleOptions, caller: Caller) -> Path:
    upload = Upload(job.source.read_bytes(), job.source.name)
    upscaled = await service.pipeline.upscale(upload, options, caller)
    target = job.target.with_suffix(upscaled.encoded.extension) if job.rename else job.target
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(upscaled.encoded.body)
    return target


@contextmanager
def _service(settings: Settings) -> Iterator[Service]:
    service = build_service(settings)
    service.batcher.start()
    try:
        yield service
    finally:
        service.pipeline.close()
        service.registry.close()
        service.batcher.close(timeout=0)


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)
