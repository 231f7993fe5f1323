"""Input files of a command, and the output file of each."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.cli.objects import S3Object

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jxl"}
)
"""Suffixes of the image files that are found in folders and by patterns."""

STREAM = "-"
"""The name of standard input and standard output."""

EXTENSIONS = {"jpeg": ".jpg"}
"""File extensions that differ from the name of the format."""


@dataclass(frozen=True)
class InputFile:
    """An image to read.

    Attributes:
        path: of the file or object.
        relative: path below the folder that was given, or the file's name. The output keeps it.
    """

    path: Path | S3Object
    relative: PurePath


@dataclass(frozen=True)
class FileTask:
    """One image to upscale: the file or object to read, and the one to write.

    Attributes:
        source: None for standard input.
        target: None for standard output.
        exact: whether the user gave the target's full name. If not, it gets the extension of the output format.
    """

    source: Path | S3Object | None
    target: Path | S3Object | None
    exact: bool = False

    @property
    def name(self) -> str:
        """The name of the source in messages."""
        return str(self.source) if self.source else "standard input"


def find_images(inputs: Sequence[str], *, without: Path | None = None) -> list[InputFile]:
    """Find the image files behind the arguments of a command, without duplicates.

    A file that is named explicitly is returned even if it does not exist, so that its error is reported later.

    Args:
        inputs: files, folders (searched recursively), and patterns such as ``photos/**/*.jpg``.
        without: output folder. If it is inside a folder that is searched, its files are skipped.
    """
    folders = [each for each in inputs if Path(each).is_dir()]
    found: dict[Path | S3Object, InputFile] = {}
    for each in inputs:
        path = Path(each)
        if path.is_dir():
            root = path.parent if len(folders) > 1 else path  # like cp: several folders keep their names
            results = without.resolve() if without and without.resolve() != path.resolve() else None
            files = _images(path.rglob("*"))
            if results:
                files = (file for file in files if not file.resolve().is_relative_to(results))
            new = [InputFile(file, file.relative_to(root)) for file in files]
        elif glob.has_magic(each) and not path.exists():
            matches = [Path(match) for match in glob.glob(each, recursive=True)]  # noqa: PTH207 - paths of any root
            root = _root(path)
            new = [InputFile(file, file.relative_to(root)) for file in _images(matches)]
        else:
            new = [InputFile(path, Path(path.name))]
        found |= {file.path: file for file in new if file.path not in found}
    return list(found.values())


def plan_outputs(inputs: Sequence[InputFile], output: Path | S3Object, variant: str, format_: str) -> list[FileTask]:
    """Name the output of each input: below ``output``, in the same sub-folders, with the variant in the name.

    Args:
        inputs: as ``find_images`` returns them.
        output: a folder, which need not exist.
        variant: name of the variant that is used.
        format_: output format, as in ``UpscaleOptions``. With ``same`` the extension is that of the input, and is
            corrected when the result is written.

    Raises:
        ValueError: if two inputs have the same output file.
    """
    stems = Counter(file.relative.with_suffix("") for file in inputs)
    tasks: dict[Path | S3Object | None, FileTask] = {}
    for file in inputs:
        alone = stems[file.relative.with_suffix("")] == 1
        task = name_output(file, output, variant, format_, alone=alone)
        other = tasks.setdefault(task.target, task)
        if other is not task:
            raise ValueError(
                f"{other.name} and {task.name} have the same output file {task.target}. Give their folders as inputs, "
                "so that sub-folders are kept."
            )
    return list(tasks.values())


def name_output(file: InputFile, output: Path | S3Object, variant: str, format_: str, *, alone: bool) -> FileTask:
    """Name the output of one input.

    Args:
        file: the input.
        output, variant, format_: as in ``plan_outputs``.
        alone: whether no other input differs in the extension only; else the name keeps the extension.
    """
    suffix = file.relative.suffix
    kind = f"-{suffix[1:].lower()}" if suffix and not alone else ""
    name = f"{file.relative.stem}{kind}-{variant}{_extension(format_, suffix)}"
    return FileTask(file.path, output / file.relative.parent / name)


def _images(paths: Iterator[Path] | Sequence[Path]) -> Iterator[Path]:
    for path in sorted(paths):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _root(pattern: Path) -> Path:
    """The part of a pattern before its first wildcard."""
    fixed: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _extension(format_: str, suffix: str) -> str:
    if format_ != "same":
        return EXTENSIONS.get(format_, f".{format_}")
    return ".png" if suffix.lower() in {"", ".bmp", ".gif", ".heic", ".heif", ".jxl"} else suffix.lower()
