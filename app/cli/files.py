"""Which files a command reads, and where it writes what becomes of them."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".avif", ".bmp", ".gif", ".heic", ".heif"})
"""Files in folders that are taken for images."""

STREAM = "-"
"""What a person writes for standard input and standard output."""

EXTENSIONS = {"jpeg": ".jpg"}
"""Of the formats whose files are not named as the format is."""


@dataclass(frozen=True)
class Found:
    """An image to read; ``place`` is its path below the folder that was given, or its name."""

    source: Path
    place: Path


@dataclass(frozen=True)
class Job:
    """An image to read and a file to write; None stands for standard input and output.

    ``exact`` says that the target's name was given, and must not get the suffix of what comes out.
    """

    source: Path | None
    target: Path | None
    exact: bool = False

    @property
    def name(self) -> str:
        """What the image is called."""
        return str(self.source) if self.source else "standard input"


def find_images(places: Sequence[str], *, without: Path | None = None) -> list[Found]:
    """The files that were given, and the images in folders and behind patterns, by name.

    Args:
        places: files, folders (searched to the bottom), and patterns such as ``photos/**/*.jpg``.
        without: where results go; if it lies inside a folder that is searched, it is left out.
    """
    folders = [place for place in places if Path(place).is_dir()]
    found: dict[Path, Found] = {}
    for place in places:
        path = Path(place)
        if path.is_dir():
            root = path.parent if len(folders) > 1 else path  # like cp: several folders keep their names
            results = without.resolve() if without and without.resolve() != path.resolve() else None
            files = (file for file in _images(path.rglob("*")) if not results or not _lies_in(file, results))
            new = [Found(file, file.relative_to(root)) for file in files]
        elif glob.has_magic(place) and not path.exists():
            matches = [Path(match) for match in glob.glob(place, recursive=True)]  # noqa: PTH207 - paths of any root
            root = _root(path)
            new = [Found(file, file.relative_to(root)) for file in _images(matches)]
        else:
            new = [Found(path, Path(path.name))]
        found |= {each.source: each for each in new if each.source not in found}
    return list(found.values())


def place_results(found: Sequence[Found], output: Path, variant: str, format_: str) -> list[Job]:
    """A job for each image: below ``output``, sub-folders kept, named after the image and the variant.

    Args:
        found: as ``find_images`` has it.
        output: a folder; it need not exist.
        variant: name of the variant that computes.
        format_: of the results, as in ``UpscaleOptions``; ``same`` guesses by the image's name, and the answer decides.

    Raises:
        ValueError: if two images would become one file.
    """
    twins = Counter(each.place.with_suffix("") for each in found)
    jobs: dict[Path, Job] = {}
    for each in found:
        suffix = each.place.suffix
        kind = f"-{suffix[1:].lower()}" if twins[each.place.with_suffix("")] > 1 and suffix else ""
        name = f"{each.place.stem}{kind}-{variant}{_extension(format_, suffix)}"
        target = output / each.place.parent / name
        job = Job(each.source, target)
        other = jobs.setdefault(target, job)
        if other is not job:
            raise ValueError(f"{other.name} and {job.name} would both become {target}: give the folders they lie in")
    return list(jobs.values())


def _images(paths: Iterator[Path] | Sequence[Path]) -> Iterator[Path]:
    for path in sorted(paths):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _lies_in(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder)


def _root(pattern: Path) -> Path:
    """The folder above a pattern's first part that is one."""
    fixed: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _extension(format_: str, suffix: str) -> str:
    if format_ != "same":
        return EXTENSIONS.get(format_, f".{format_}")
    return ".png" if suffix.lower() in {"", ".bmp", ".gif", ".heic", ".heif"} else suffix.lower()
