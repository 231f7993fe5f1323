"""One file over HTTP, in parts that survive: a download that breaks off goes on where it stopped, also another day."""

from __future__ import annotations

import errno
import glob
import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

TRIES = 4
"""How often in a row a download may fail to get a single byte further."""

TIMEOUT_S = 30.0
"""Seconds that a server may be silent."""

_CHUNK = 1 << 16
_SUFFIX = ".part"
_TRANSIENT = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class FetchError(ValueError):
    """A file could not be brought here; the text says why, and what to do."""


class Unreachable(FetchError):  # noqa: N818 - what the other side is
    """A server did not give the file: there is no network, it does not have it, or it breaks off again and again."""


@dataclass(frozen=True)
class Step:
    """How far it is.

    Attributes:
        text: what is being done.
        done, total: bytes; the total is None where nobody knows it.
    """

    text: str
    done: int = 0
    total: int | None = None

    def __str__(self) -> str:
        if not self.done and self.total is None:
            return self.text
        return f"{self.text}: {megabytes(self.done)} of {megabytes(self.total)} MB"


OnStep = Callable[[Step], None]


class _BrokenOffError(ConnectionError):
    """The answer ended too soon, or was another one than asked for."""


def download(
    url: str,
    target: Path,
    on_step: OnStep,
    *,
    name: str | None = None,
    headers: Mapping[str, str] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Download a file, going on where an earlier try for the same target stopped if the server still has that file.

    Args:
        url: http or https.
        target: what the file will be called; its folder is made.
        on_step: told of every piece that came.
        name: of the file for people, where the target is called otherwise.
        headers: of the request; an authorization is not handed on to where the server redirects.
        wait: between tries, seconds.

    Returns:
        The whole file, beside the target and not yet under its name, so that it can be looked at before it counts.

    Raises:
        Unreachable: if the server does not give it; what came stays, and the next call goes on from there.
        FetchError: if it cannot be written, or the address is none.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise FetchError(f"{url} is no http or https address")
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    text = f"{name or target.name} from {_host(url)}"
    failures = 0
    while True:
        before = _size(_find_part(target))
        try:
            return _go_on(_request(url, headers or {}), target, text, on_step)
        except HTTPError as error:
            error.close()
            reason = f"{_host(url)} answered {error.code} {error.reason} for {url}"
            hopeless = error.code not in _TRANSIENT
        except (OSError, http.client.HTTPException) as error:
            reason = f"{_host(url)} {_complaint(error)}"
            hopeless = isinstance(error, URLError) and _size(_find_part(target)) == 0
        failures = 0 if _size(_find_part(target)) > before else failures + 1
        if hopeless or failures == TRIES:
            came = _size(_find_part(target))
            kept = f"; {megabytes(came)} MB have come and are kept, so try again later to go on" if came else ""
            raise Unreachable(f"{reason}{kept}")
        wait(2.0**failures)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Say what to do where something cannot be written.

    Raises:
        FetchError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise FetchError(f"The disk is full ({place}): {reason}. Make room and try again.") from error
        if error.errno in _FORBIDDEN:
            reason = f"{reason}. Give this user the right to write there, or name another folder with SWIN2SR_CACHE_DIR"
        raise FetchError(f"{place} cannot be written: {reason}.") from error


def megabytes(count: int | None) -> str:
    """Bytes for people."""
    return "?" if count is None else f"{count / 1e6:.1f}"


def discard_parts(target: Path) -> None:
    """Forget what earlier tries left."""
    for part in target.parent.glob(f"{glob.escape(target.name)}.*{_SUFFIX}"):
        part.unlink(missing_ok=True)


def _go_on(request: Request, target: Path, text: str, on_step: OnStep) -> Path:
    """One try. What the network raises is handed on, what the disk raises is a ``FetchError``."""
    part = _find_part(target)
    start = _size(part)
    if part is not None:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", _version(part))
    try:
        response = urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - the address was looked at
    except HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            discard_parts(target)
        raise
    with response:
        continued = part is not None and response.status == http.client.PARTIAL_CONTENT
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            discard_parts(target)
            raise _BrokenOffError("answered with another range than asked for")
        if part is None or not continued:
            discard_parts(target)
            part, start = _name_part(target, response.headers.get("ETag", "")), 0
        total = start + response.length if response.length is not None else None
        _make_sure_of_room(target.parent, (total or 0) - start)
        done = _receive(response, part, Step(text, start, total), on_step)
    if total is not None and done < total:
        raise _BrokenOffError(f"broke off after {megabytes(done)} of {megabytes(total)} MB")
    return part


def _receive(response: http.client.HTTPResponse, part: Path, step: Step, on_step: OnStep) -> int:
    """Append what comes, and return how long the part is then."""
    done = step.done
    with writing(part):
        file: BinaryIO = part.open("ab" if done else "wb", buffering=0)
    with file:
        on_step(step)
        while chunk := response.read1(_CHUNK):
            with writing(part):
                _write(file, chunk)
            done += len(chunk)
            on_step(Step(step.text, done, step.total))
        with writing(part):
            os.fsync(file.fileno())
    return done


def _write(file: BinaryIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _find_part(target: Path) -> Path | None:
    """What an earlier try left, if it can be gone on with: its name says of which version of the file it is."""
    parts = target.parent.glob(f"{glob.escape(target.name)}.*{_SUFFIX}")
    return max((part for part in parts if _version(part) and _size(part)), key=_size, default=None)


def _name_part(target: Path, version: str) -> Path:
    name = quote(version, safe="").replace(".", "%2E")
    return target.with_name(f"{target.name}.{name if len(name) <= 100 else ''}{_SUFFIX}")


def _version(part: Path) -> str:
    """The ETag that a part's server gave it; empty where it gave none."""
    return unquote(part.name.removesuffix(_SUFFIX).rpartition(".")[2])


def _size(part: Path | None) -> int:
    return part.stat().st_size if part is not None else 0


def _make_sure_of_room(folder: Path, needed: int) -> None:
    with writing(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"The disk is too full: {megabytes(needed)} MB are needed in {folder}, and {megabytes(free)} MB are free. "
            "Make room and try again, or name another folder with SWIN2SR_CACHE_DIR."
        )


def _request(url: str, headers: Mapping[str, str]) -> Request:
    request = Request(url, headers={"User-Agent": "swin2sr-serve"})  # noqa: S310 - the address was looked at
    for name, value in headers.items():
        if name.lower() == "authorization":
            request.add_unredirected_header(name, value)
        else:
            request.add_header(name, value)
    return request


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _complaint(error: Exception) -> str:
    """The end of a sentence that begins with the host."""
    if isinstance(error, TimeoutError):
        return f"was silent for {TIMEOUT_S:.0f} s"
    if isinstance(error, URLError):
        cause = error.reason
        return f"cannot be reached: {(cause.strerror if isinstance(cause, OSError) else '') or cause}"
    if isinstance(error, _BrokenOffError):
        return str(error)
    return f"broke off: {error or type(error).__name__}"
