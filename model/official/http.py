"""Resumable download of one file over HTTP, for the authors' release on GitHub."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

ATTEMPTS = 4
"""Attempts to download a file, if the server fails or the connection breaks."""

TIMEOUT_S = 30.0
"""Seconds that a server may send nothing."""

_CHUNK = 1 << 16
_TRANSIENT = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class FetchError(ValueError):
    """Weights could not be downloaded or verified. The message says why, and what to do."""


class Unreachable(FetchError):  # noqa: N818 - describes the server
    """A server does not have the file, cannot be reached, or fails repeatedly."""


@dataclass(frozen=True)
class Step:
    """The progress of a download.

    Attributes:
        text: what is being done.
        done, total: bytes; total is None if it is unknown.
    """

    text: str
    done: int = 0
    total: int | None = None

    def __str__(self) -> str:
        if not self.done and self.total is None:
            return self.text
        return f"{self.text}: {megabytes(self.done)} of {megabytes(self.total)} MB"


OnStep = Callable[[Step], None]


def download(url: str, part: Path, on_step: OnStep, *, wait: Callable[[float], None] = time.sleep) -> None:
    """Download a file. An earlier download that was interrupted is resumed if the server still has the same file.

    Args:
        url: http or https.
        part: the file to write. Its folder is created. It is kept if the download is interrupted.
        on_step: called after each chunk.
        wait: between attempts, with seconds.

    Raises:
        Unreachable: if the server does not send the file.
        FetchError: if the file cannot be written, or the URL is not http or https.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise FetchError(f"{url} is not an http or https URL.")
    honor_certificate_bundle()
    host = urlsplit(url).netloc.rpartition("@")[2]
    with writing(part.parent):
        part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(url, part, f"{part.stem} from {host}", on_step)
        except HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
            final, reason = error.code not in _TRANSIENT, f"{host} answered {error.code} {error.reason} for {url}"
        except (OSError, http.client.HTTPException) as error:
            final, reason = isinstance(error, URLError), f"{host} {_describe(error)}"
        else:
            _etag_file(part).unlink(missing_ok=True)
            return
        if final or attempt == ATTEMPTS:
            size = _resumable(part)[0]
            kept = f"; {megabytes(size)} MB are kept, so that another attempt resumes there" if size else ""
            raise Unreachable(f"{reason}{kept}")
        wait(2.0**attempt)


def honor_certificate_bundle() -> None:
    """Let ``REQUESTS_CA_BUNDLE``, a PEM file or a folder of them, count where ``SSL_CERT_FILE`` is not set.

    OpenSSL reads SSL_CERT_FILE and SSL_CERT_DIR for every connection, also for those of huggingface_hub.
    """
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle and not os.environ.get("SSL_CERT_FILE"):
        os.environ["SSL_CERT_DIR" if Path(bundle).is_dir() else "SSL_CERT_FILE"] = bundle


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn the system's errors of writing into messages that say what to do.

    Raises:
        FetchError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise FetchError(f"The disk is full ({place}): {reason}. Free some space and try again.") from error
        if error.errno in _FORBIDDEN:
            reason = f"{reason}. Grant this user write access, or set SWIN2SR_CACHE_DIR to another folder"
        raise FetchError(f"Cannot write to {place}: {reason}.") from error


def megabytes(count: int | None) -> str:
    """Bytes as megabytes, for messages."""
    return "?" if count is None else f"{count / 1e6:.1f}"


def _receive(url: str, part: Path, text: str, on_step: OnStep) -> None:
    """One attempt. Errors of the network are not converted, those of the disk become ``FetchError``."""
    done, etag = _resumable(part)
    resume = {"Range": f"bytes={done}-", "If-Range": etag} if done else {}
    request = Request(url, headers={"User-Agent": "swin2sr-serve", **resume})  # noqa: S310 - the scheme was checked
    with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.unlink()
            raise ConnectionError("the server sent another range than the requested one")
        total = None if response.length is None else done + response.length
        _check_space(part.parent, response.length or 0)
        with writing(part):
            _etag_file(part).write_text(response.headers.get("ETag", ""))
            file: BinaryIO = part.open("ab" if done else "wb")
        with file:
            on_step(Step(text, done, total))
            while chunk := response.read1(_CHUNK):
                with writing(part):
                    file.write(chunk)
                done += len(chunk)
                on_step(Step(text, done, total))
            with writing(part):
                file.flush()
                os.fsync(file.fileno())
    if total is not None and done < total:
        raise ConnectionError(f"the connection broke after {megabytes(done)} of {megabytes(total)} MB")


def _etag_file(part: Path) -> Path:
    """The file that holds the ETag of a part."""
    return part.with_name(f"{part.name}.etag")


def _resumable(part: Path) -> tuple[int, str]:
    """Size and ETag of an interrupted download; 0 if it cannot be resumed. A weak ETag does not identify the bytes."""
    etag = _etag_file(part).read_text() if _etag_file(part).is_file() else ""
    return (part.stat().st_size, etag) if etag.startswith('"') and part.is_file() else (0, "")


def _check_space(folder: Path, needed: int) -> None:
    with writing(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"Not enough disk space in {folder}: {megabytes(needed)} MB are needed, {megabytes(free)} MB are free. "
            "Free some space, or set SWIN2SR_CACHE_DIR to another folder."
        )


def _describe(error: Exception) -> str:
    """The end of a sentence that begins with the host."""
    if isinstance(error, TimeoutError):
        return f"sent nothing for {TIMEOUT_S:.0f} s"
    if isinstance(error, URLError):
        cause = error.reason
        return f"cannot be reached: {(cause.strerror if isinstance(cause, OSError) else '') or cause}"
    return f"failed: {error or type(error).__name__}"
