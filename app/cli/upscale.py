"""The ``swin2sr upscale`` command: from names of files or objects to results."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from app.cli.bulk import BulkUpscaler
from app.cli.files import EXTENSIONS, STREAM, SUFFIXES, FileTask, InputFile, find_images, plan_outputs
from app.cli.objects import S3Inputs, S3Object, is_object, name_outputs
from app.cli.shard import Shard
from app.schemas import UpscaleOptions
from app.settings import Settings

_FORMATS = [name for name in get_args(UpscaleOptions.model_fields["format"].annotation) if name != "same"]
_FORMAT_BY_SUFFIX = {EXTENSIONS.get(name, f".{name}"): name for name in _FORMATS}
_FORMAT_BY_SUFFIX |= {".jpeg": "jpeg", ".tif": "tiff"}


@dataclass(frozen=True)
class UpscaleArgs:
    """The arguments of ``swin2sr upscale`` that are not options of a request."""

    inputs: tuple[str, ...]
    output: Path | S3Object | None
    url: str | None
    api_key: str | None
    timeout: float
    force: bool
    skip: bool
    jobs: int
    as_json: bool
    compare: bool = False
    shard: Shard | None = None

    @property
    def writes_to_stdout(self) -> bool:
        """Whether the result goes to standard output: with ``-o -``, or with input ``-`` and no output."""
        return str(self.output) == STREAM or (self.output is None and self.inputs == (STREAM,))

    def options(self, *, format: str | None, **values: object) -> UpscaleOptions:  # noqa: A002 - the option's name
        """The options of every request. Without ``format``, the output's extension decides.

        Raises:
            pydantic.ValidationError: if a value is invalid.
            ValueError: if the output's extension is not supported, or contradicts ``format``.
        """
        suffix = self.output.suffix.lower() if self.output and self._is_file(self.output) else ""
        by_suffix = _FORMAT_BY_SUFFIX.get(suffix)
        if suffix and by_suffix is None:
            raise ValueError(f"Unsupported output extension '{suffix}'; use one of {', '.join(_FORMAT_BY_SUFFIX)}")
        if format in _FORMATS and by_suffix not in (None, format):
            raise ValueError(f"Output extension {suffix} contradicts --format {format}. Change one of them.")
        chosen: Any = format or by_suffix or "png"
        return UpscaleOptions(format=chosen, **values)

    @property
    def reads_objects(self) -> bool:
        """Whether the inputs are objects of S3 storage.

        Raises:
            ValueError: if one is an address of another kind.
        """
        return any(tuple(map(is_object, self.inputs)))  # looks at each of them

    def plan(self, variant: str, format_: str) -> Iterable[FileTask]:
        """The images to read and the files to write: a list, or for objects an iterator that lists them page by page.

        Raises:
            ValueError: if there are no images, or the inputs do not fit the output.
            OSError: if the storage does not answer; also from the iterator.
        """
        if self.reads_objects:
            return self._plan_objects(variant, format_)
        if STREAM in self.inputs and len(self.inputs) > 1:
            raise ValueError("'-' (standard input) cannot be combined with other inputs")
        if STREAM in self.inputs and self.shard:
            raise ValueError("--shard needs files, not '-' (standard input)")
        output = self.output or Path()
        if STREAM in self.inputs:
            target = output if self._is_file(output) else output / f"image-{variant}.{format_}"
            return [FileTask(None, None if self.writes_to_stdout else target, exact=self._is_file(output))]
        found = find_images(self.inputs, without=self.output if isinstance(self.output, Path) else None)
        if not found:
            raise ValueError(
                f"No images found in {', '.join(self.inputs)}. Recognised extensions: {', '.join(sorted(SUFFIXES))}"
            )
        return self._of_shard(self._name_outputs(found, output, variant, format_), found)

    def _plan_objects(self, variant: str, format_: str) -> Iterable[FileTask]:
        output = self.output or Path()
        inputs = S3Inputs(self.inputs, output)
        if named := inputs.named_object():
            return self._of_shard(self._name_outputs([named], output, variant, format_), [named])
        if self.writes_to_stdout or (output.suffix.lower() in SUFFIXES and not output.is_dir()):
            raise ValueError(f"A folder or pattern of objects needs an output folder, but {output} is one image.")
        return name_outputs(inputs, output, variant, format_, self.shard)

    def _name_outputs(
        self, found: list[InputFile], output: Path | S3Object, variant: str, format_: str
    ) -> list[FileTask]:
        if self.writes_to_stdout:
            if len(found) > 1:
                raise ValueError(f"Standard output takes one image, not {len(found)}. Use -o FOLDER.")
            return [FileTask(found[0].path, None)]
        if self._is_file(output) and len(found) == 1:
            return [FileTask(found[0].path, output, exact=True)]
        if output.suffix.lower() in SUFFIXES and not output.is_dir():
            raise ValueError(f"Several inputs need an output folder, but {output} names a file. Use -o FOLDER.")
        return plan_outputs(found, output, variant, format_)

    def _of_shard(self, tasks: list[FileTask], found: list[InputFile]) -> list[FileTask]:
        """The tasks of the shard, chosen after naming, so that names do not depend on it."""
        if self.shard is None:
            return tasks
        chosen = {file.path for file in found if self.shard.has(file)}
        return [task for task in tasks if task.source in chosen]

    def _is_file(self, output: Path | S3Object) -> bool:
        """Whether the output names one file: it has an extension, and there is one input that is not a folder."""
        one = len(self.inputs) == 1 and not Path(self.inputs[0]).is_dir()
        return one and output.suffix != "" and not output.is_dir()


def parse_output(text: str | None) -> Path | S3Object | None:
    """The output that the command line names: a path, or an ``s3://`` address.

    Raises:
        ValueError: if the address names no bucket, or is of another kind.
    """
    if text and is_object(text):
        return S3Object.parse(text)
    return Path(text) if text else None


async def run(args: UpscaleArgs, options: UpscaleOptions, settings: Settings | None, console: Console) -> int:
    """Upscale all inputs.

    Args:
        args: inputs, output, and how to run.
        options: of every request.
        settings: of the service in this process; unused if ``args`` names a server.
        console: for messages, on standard error.

    Returns:
        The number of images that failed.

    Raises:
        ValueError, ServiceError, OSError: if nothing can be started.
    """
    if args.force and args.skip:
        raise ValueError("--force and --skip-existing exclude each other. Use one of them.")
    if args.as_json and args.writes_to_stdout:
        raise ValueError("--json and the image cannot both go to standard output. Use -o FILE.")
    if args.compare and args.writes_to_stdout:
        raise ValueError("--compare needs an output file. Use -o FILE or -o FOLDER.")
    await asyncio.to_thread(args.plan, "", options.format)  # reports wrong arguments before weights are loaded
    async with open_backend(args, options, settings) as backend:
        tasks = await asyncio.to_thread(args.plan, await backend.variant(), options.format)
        lines = sys.stdout if args.as_json else None
        upscaler = BulkUpscaler(backend, console, force=args.force, skip=args.skip, compare=args.compare, lines=lines)
        await upscaler.run(tasks, args.jobs)
        return len(upscaler.failures)


@asynccontextmanager
async def open_backend(args: UpscaleArgs, options: UpscaleOptions, settings: Settings | None) -> AsyncIterator[Any]:
    """The backend that ``args`` name: a server, or this process with ``settings``.

    Raises:
        ValueError: if the device or the variant does not exist.
    """
    if args.url:
        from app.cli.http_backend import HttpBackend  # noqa: PLC0415

        async with HttpBackend(options, args.url, args.api_key, args.timeout) as remote:
            yield remote
        return
    from app.cli.local_backend import LocalBackend  # noqa: PLC0415 - importing torch takes seconds

    assert settings is not None, "needed without a server"
    with LocalBackend(options, settings) as local:
        yield local
