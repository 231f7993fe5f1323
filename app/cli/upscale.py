"""What a person orders on the command line, carried out: from names of files to files."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from app.cli.bulk import Errand
from app.cli.files import EXTENSIONS, STREAM, SUFFIXES, Job, find_images, place_results
from app.schemas import UpscaleOptions
from app.settings import Settings

_FORMATS = [name for name in get_args(UpscaleOptions.model_fields["format"].annotation) if name != "same"]
_WRITTEN = {EXTENSIONS.get(name, f".{name}"): name for name in _FORMATS}
_WRITTEN |= {".jpeg": "jpeg", ".tif": "tiff"}


@dataclass(frozen=True)
class Order:
    """What is read, where it goes, and who computes; as the options of ``swin2sr upscale``."""

    places: tuple[str, ...]
    output: Path | None
    url: str | None
    api_key: str | None
    timeout: float
    force: bool
    skip: bool
    jobs: int
    as_json: bool

    @property
    def into_stream(self) -> bool:
        """Whether the result goes to standard output: when asked for, or when nothing else is said of a stream."""
        return str(self.output) == STREAM or (self.output is None and self.places == (STREAM,))

    def options(self, *, format: str | None, **wishes: object) -> UpscaleOptions:  # noqa: A002 - the option's name
        """The options of every request; the format is by the output's name where it is not said.

        Raises:
            pydantic.ValidationError: if one cannot be.
            ValueError: if the output's name is that of no format, or of another one.
        """
        suffix = self.output.suffix.lower() if self.output and self._is_file(self.output) else ""
        named = _WRITTEN.get(suffix)
        if suffix and named is None:
            raise ValueError(f"{self.output} is named as no format that is written: {', '.join(_WRITTEN)}")
        if format not in (None, "same") and named not in (None, format):
            raise ValueError(f"{self.output} is named as {named}, and --format says {format}: let them agree")
        chosen: Any = format or named or "png"
        return UpscaleOptions(format=chosen, **wishes)

    def plan(self, variant: str, format_: str) -> list[Job]:
        """The jobs.

        Raises:
            ValueError: if nothing is found, or what is found does not go where it should.
        """
        if STREAM in self.places and len(self.places) > 1:
            raise ValueError("standard input is one image and goes alone")
        output = self.output or Path()
        if STREAM in self.places:
            target = output if self._is_file(output) else output / f"image-{variant}.{format_}"
            return [Job(None, None if self.into_stream else target, exact=self._is_file(output))]
        found = find_images(self.places, without=output if self.output else None)
        if not found:
            places = ", ".join(self.places)
            raise ValueError(f"there are no images in {places}: files that end in {', '.join(sorted(SUFFIXES))}")
        if self.into_stream:
            if len(found) > 1:
                raise ValueError("standard output takes one image")
            return [Job(found[0].source, None)]
        if self._is_file(output) and len(found) == 1:
            return [Job(found[0].source, output, exact=True)]
        if output.suffix.lower() in SUFFIXES and not output.is_dir():
            raise ValueError(f"several images go into a folder, not into {output}")
        return place_results(found, output, variant, format_)

    def _is_file(self, output: Path) -> bool:
        """Whether what was given is the name of one file: it has a suffix, and one image is asked for."""
        one = len(self.places) == 1 and not Path(self.places[0]).is_dir()
        return one and output.suffix != "" and not output.is_dir()


async def carry_out(order: Order, options: UpscaleOptions, settings: Settings | None, console: Console) -> int:
    """Upscale everything that was ordered.

    Args:
        order, options: what is to be done.
        settings: of the service in this process, where no server is named.
        console: for people.

    Returns:
        How many images failed.

    Raises:
        ValueError, ServiceError, OSError: if nothing can be begun; the text says what to do.
    """
    if order.force and order.skip:
        raise ValueError("--force overwrites what --skip-existing leaves out: give one of them")
    if order.as_json and order.into_stream:
        raise ValueError("--json and the image both want standard output; give one of them a file")
    order.plan("", options.format)  # before anything is loaded
    async with AsyncExitStack() as stack:
        if order.url:
            from app.cli.http_backend import Remote  # noqa: PLC0415

            upscaling: Any = await stack.enter_async_context(Remote(options, order.url, order.api_key, order.timeout))
        else:
            from app.cli.local_backend import Local  # noqa: PLC0415 - torch takes its time

            assert settings is not None, "without a server, this process computes"
            upscaling = stack.enter_context(Local(options, settings))
        work = order.plan(await upscaling.variant(), options.format)
        lines = sys.stdout if order.as_json else None
        errand = Errand(upscaling, console, force=order.force, skip=order.skip, lines=lines)
        return await errand.run(work, order.jobs)
