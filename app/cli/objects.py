"""Objects of S3 storage as inputs and outputs of ``swin2sr upscale``: ``s3://bucket/key``."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Self

from app.cli.files import SUFFIXES, FileTask, InputFile, name_output
from app.cli.shard import Shard

SCHEME = "s3://"
_MAGIC = re.compile(r"\*\*|\*|\?|\[[!^]?[^/]+?\]")
_PAGE = 1000


@dataclass(frozen=True)
class S3Object:
    """An object, or a folder of objects; has what the command uses of ``pathlib.Path``.

    Credentials and the endpoint come from the usual variables, such as ``AWS_ACCESS_KEY_ID`` and ``AWS_ENDPOINT_URL``.
    """

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``s3://bucket/key``.

        Raises:
            ValueError: if there is no bucket, or the package obstore is missing.
        """
        bucket, _, key = text.removeprefix(SCHEME).partition("/")
        if not re.fullmatch(r"[\w.-]+", bucket):
            raise ValueError(f"{text} has no bucket name. Write it as s3://bucket/folder.")
        _store(bucket)
        return cls(bucket, key.strip("/"))

    def __str__(self) -> str:
        """The address."""
        return f"{SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, other: str | PurePath) -> S3Object:
        """An object below this folder."""
        return S3Object(self.bucket, (PurePosixPath(self.key) / other).as_posix())

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The key's extension."""
        return PurePosixPath(self.key).suffix

    def with_suffix(self, suffix: str) -> S3Object:
        """The object with another extension."""
        return S3Object(self.bucket, PurePosixPath(self.key).with_suffix(suffix).as_posix())

    def is_dir(self) -> bool:
        """Never: there are only objects, and a key with the extension of an image names one."""
        return False

    def exists(self) -> bool:
        """Whether the object exists.

        Raises:
            OSError: if the storage does not say.
        """
        try:
            with _os_errors(self):
                _store(self.bucket).head(self.key)
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self) -> bytes:
        """The whole object.

        Raises:
            OSError: if it cannot be read.
        """
        with _os_errors(self):
            return bytes(_store(self.bucket).get(self.key).bytes())

    def write_bytes(self, content: bytes, *, force: bool) -> None:
        """Write the whole object or nothing.

        Raises:
            FileExistsError: if it exists and ``force`` is not set.
            OSError: if it cannot be written.
        """
        with _os_errors(self):
            mode: Any = "overwrite" if force else "create"
            _store(self.bucket).put(self.key, content, mode=mode, use_multipart=False)


class S3Inputs:
    """The images behind the arguments of a command, listed page by page.

    Args:
        inputs: objects, folders (searched recursively), and patterns such as ``s3://bucket/in/**/*.jpg``.
        output: folder of the results. If it is inside a folder that is searched, its objects are skipped.

    Raises:
        ValueError: if the inputs are not of one bucket, or their folder is the output's.
    """

    def __init__(self, inputs: Sequence[str], output: Path | S3Object) -> None:
        if local := [each for each in inputs if not each.startswith(SCHEME)]:
            raise ValueError(f"{local[0]} is no s3:// address. Upscale files and objects with two commands.")
        self._given = [S3Object.parse(each) for each in dict.fromkeys(inputs)]
        self._bucket = self._given[0].bucket
        if any(each.bucket != self._bucket for each in self._given):
            raise ValueError("The inputs are in several buckets. Run the command once for each bucket.")
        folders = [_fixed_folder(each.key) for each in self._given]
        self._folder = posixpath.commonpath(folders) if all(folders) else ""
        self._without = ""
        if isinstance(output, S3Object) and output.bucket == self._bucket and output.suffix.lower() not in SUFFIXES:
            if output.key == self._folder:
                raise ValueError(f"The output {output} is the folder of the inputs. Use another one, or a sub-folder.")
            self._without = f"{output.key}/"

    def named_object(self) -> InputFile | None:
        """The only input, if it names an object that exists.

        Raises:
            OSError: if the storage does not say.
        """
        [first, *others] = self._given
        return InputFile(first, PurePosixPath(first.name)) if not others and first.name and first.exists() else None

    def __iter__(self) -> Iterator[InputFile]:
        """List the images, in the order of their keys.

        Raises:
            OSError: if the storage does not list them, or at the end, if one of the inputs has none.
        """
        folder = S3Object(self._bucket, self._folder)
        start = len(self._folder) + 1 if self._folder else 0
        matchers = {each: _matcher(each.key) for each in self._given}
        without_images = set(self._given)
        with _os_errors(folder):
            for page in _store(self._bucket).list(self._folder or None, chunk_size=_PAGE):
                for key in filter(self._is_image, (meta["path"] for meta in page)):
                    if matching := {each for each, matches in matchers.items() if matches(key)}:
                        without_images -= matching
                        yield InputFile(S3Object(self._bucket, key), PurePosixPath(key[start:]))
        if without_images:
            raise OSError(f"No images found at {', '.join(sorted(map(str, without_images)))}.")

    def _is_image(self, key: str) -> bool:
        path = PurePosixPath(key)
        skipped = self._without and key.startswith(self._without)
        return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not skipped


def name_outputs(
    files: Iterable[InputFile], output: Path | S3Object, variant: str, format_: str, shard: Shard | None = None
) -> Iterator[FileTask]:
    """Name the outputs as ``plan_outputs`` does, without holding the whole list.

    Whether another image has the same name with another extension is known once the listing, which is in the order of
    keys, has left the keys that begin with that name.

    Args:
        files: in the order of their keys.
        output: folder of the results: a ``Path`` or an ``S3Object``.
        variant, format_: as in ``plan_outputs``.
        shard: the images to return; all by default.
    """

    def finish(done: list[InputFile]) -> Iterator[FileTask]:
        stems = Counter(file.relative.with_suffix("") for file in done)
        for file in done:
            if shard is None or shard.has(file):
                yield name_output(file, output, variant, format_, alone=stems[file.relative.with_suffix("")] == 1)

    waiting: list[InputFile] = []
    for file in files:
        key = file.relative.as_posix()
        done = [each for each in waiting if not key.startswith(f"{each.relative.with_suffix('')}.")]
        yield from finish(done)
        waiting = [each for each in waiting if each not in done] + [file]
    yield from finish(waiting)


def is_object(text: str) -> bool:
    """Whether a command's argument is an ``s3://`` address.

    Raises:
        ValueError: if it is an address of another kind.
    """
    if re.match(r"[A-Za-z][\w+.-]*://", text) and not text.startswith(SCHEME):
        raise ValueError(f"{text}: addresses begin with {SCHEME}; others are not read. Copy the images first.")
    return text.startswith(SCHEME)


def _fixed_folder(key: str) -> str:
    """The folders of a key before its first wildcard; without one the key, which may be a folder."""
    magic = _MAGIC.search(key)
    return key[: magic.start()].rpartition("/")[0] if magic else key


def _matcher(key: str) -> Callable[[str], object]:
    """Whether a key is the given one, lies below it, or matches it as a pattern."""
    if not _MAGIC.search(key):
        return lambda candidate: not key or candidate == key or candidate.startswith(f"{key}/")
    pattern, end = "", 0
    for match in _MAGIC.finditer(key):
        pattern += re.escape(key[end : match.start()]) + _translate(match[0])
        end = match.end()
    pattern += re.escape(key[end:])
    return re.compile(pattern.replace(".*/", "(?:.*/)?")).fullmatch


def _translate(wildcard: str) -> str:
    simple = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return simple.get(wildcard) or f"[{wildcard[1:-1].replace('!', '^', 1) if wildcard[1] == '!' else wildcard[1:-1]}]"


@lru_cache
def _store(bucket: str) -> Any:  # noqa: ANN401 - obstore is optional
    try:
        from obstore.store import S3Store  # noqa: PLC0415
    except ImportError:
        raise ValueError("s3:// addresses need obstore. Install it with: pip install 'swin2sr-serve[s3]'") from None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    options: Any = {"client_options": {"allow_http": True}} if endpoint.startswith("http://") else {}
    return S3Store(bucket, retry_config={"max_retries": 4}, **options)


@contextmanager
def _os_errors(place: S3Object) -> Iterator[None]:
    """Raise what the storage answers as an ``OSError`` of one line."""
    from obstore import exceptions  # noqa: PLC0415

    try:
        yield
    except exceptions.AlreadyExistsError:
        raise FileExistsError(f"{place} already exists.") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{place} does not exist.") from None
    except exceptions.BaseError as error:
        raise OSError(f"{place}: {str(error).splitlines()[0][:300]}") from None
