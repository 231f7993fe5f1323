"""Official weights: found in the cache, or brought there from the hub or the authors' release, and verified.

A hub's files lie in the cache as huggingface_hub lays them out, so that what other programs downloaded counts too.
Beside them, a folder ``swin2sr`` holds the release's files, and what is known of every file that was fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.official.http import FetchError, OnStep, Step, Unreachable, discard_parts, download, megabytes, writing
from model.official.hub import HubFile, blob_place, cached_file, describe_file, enter_into_cache
from model.variants import RELEASE, Variant

__all__ = ["FetchError", "OfficialWeights", "OnStep", "Step", "Unreachable", "file_digest", "megabytes"]

_CONFIG = "config.json"
_PROCESSOR = "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATIENCE_S = 0.1


@dataclass(frozen=True)
class _Arrival:
    """A file that came whole: its name and address, where it lies, where it belongs, and the hub's ETag."""

    name: str
    url: str
    part: Path
    place: Path
    etag: str = ""


@dataclass(frozen=True)
class OfficialWeights:
    """Where the authors' weights lie on this machine, and how they get there.

    Attributes:
        cache_dir: folder that they lie in; huggingface_hub's own where None.
        offline: whether nothing may be downloaded.
        release_url: folder of the release's files, the authors' or a mirror's.
        hub_url: of the hub; huggingface_hub's own choice where None, which ``HF_ENDPOINT`` changes.
        wait: between tries, seconds.
    """

    cache_dir: Path | None = None
    offline: bool = False
    release_url: str = RELEASE
    hub_url: str | None = None
    wait: Callable[[float], None] = time.sleep

    def find(self, variant: Variant) -> Path | None:
        """Find a variant's file of weights in the cache, without a look into it.

        Returns:
            A file of the hub with its ``config.json`` beside it, or a file of the release; None if neither is here.
        """
        for name in _hub_names(variant):
            file = cached_file(variant.hub_id or "", name, cache_dir=self.cache_dir)
            if file is not None and os.access(file.with_name(_CONFIG), os.R_OK):
                return file
        released = self._folder / variant.release_file if variant.release_file else None
        return released if released is not None and os.access(released, os.R_OK) else None

    def digest(self, variant: Variant, file: Path) -> str | None:
        """The SHA-256 that a variant's file should have, where that is known from anywhere.

        Raises:
            FetchError: if the record of an earlier download is broken.
        """
        known, _ = self._expected(variant, file.name)
        return known or (blob if _SHA256.fullmatch(blob := file.resolve().name) else None)

    def verify(self, variant: Variant, file: Path) -> None:
        """Make sure that a file of the cache is the one that was downloaded.

        Raises:
            FetchError: if it is not, or cannot be read; the text says what to do.
        """
        expected = self.digest(variant, file)
        try:
            found = file_digest(file)
        except OSError as error:
            raise FetchError(f"{file} cannot be read: {error.strerror}.") from error
        if found != (expected or found):
            raise FetchError(
                f"{file} is not the file that was downloaded: its SHA-256 is {found}, not {expected}. Delete "
                f"{file.resolve()} and run `swin2sr fetch {variant.name}`."
            )

    def fetch(self, variant: Variant, on_step: OnStep = lambda _step: None) -> Path:
        """Bring an official variant's weights into the cache, from the hub, else from the release; verify them if here.

        Any number of processes may do so at the same time: one downloads, the others wait for it.

        Args:
            variant: of the table.
            on_step: told how far it is, in the calling thread.

        Returns:
            The file of weights.

        Raises:
            Unreachable: if nobody gives it; what came stays for the next time.
            FetchError: for all other reasons; the text says what to do.
        """
        if not variant.embedded and (file := self._verified(variant)) is not None:
            return file
        self.make_sure_of_leave(variant)
        with self._alone(variant, on_step):
            return self._verified(variant) or self._bring(variant, on_step)

    def make_sure_of_leave(self, variant: Variant) -> None:
        """Raise the reason why a variant's weights would not even be asked for, if there is one.

        Raises:
            FetchError: if they belong to the package, or nothing may be downloaded; the text says what to do.
        """
        if variant.embedded:
            raise FetchError(f"{variant.name!r} comes with the package and is never fetched.")
        if self.offline:
            place = self.cache_dir or "the Hugging Face cache"
            raise FetchError(
                f"The weights of {variant.name!r} are not in {place}, and SWIN2SR_OFFLINE forbids to download them. "
                f"Unset it, or run `swin2sr fetch {variant.name}` where there is a network, with its SWIN2SR_CACHE_DIR "
                "set to a folder that can be brought here."
            )

    @property
    def _folder(self) -> Path:
        """For what is not the hub's."""
        from huggingface_hub import constants  # noqa: PLC0415

        return Path(self.cache_dir or constants.HF_ASSETS_CACHE) / "swin2sr"

    def _verified(self, variant: Variant) -> Path | None:
        if (file := self.find(variant)) is not None:
            self.verify(variant, file)
        return file

    @contextmanager
    def _alone(self, variant: Variant, on_step: OnStep) -> Iterator[None]:
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # noqa: PLC0415 (exported lazily)

        lock = self._folder / f"{variant.name}.lock"
        with ExitStack() as stack:
            with writing(lock):
                lock.parent.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(WeakFileLock(lock, timeout=_PATIENCE_S))
                except TimeoutError:
                    on_step(Step("waiting for another process that fetches it"))
                    stack.enter_context(WeakFileLock(lock))
            yield

    def _bring(self, variant: Variant, on_step: OnStep) -> Path:
        sources = [(variant.hub_id, self._from_hub), (variant.release_file, self._from_release)]
        if set(variant.digests) == {variant.release_file}:
            sources.reverse()  # what can be checked comes first
        refusals: list[str] = []
        for source, bring in sources:
            if source is None:
                continue
            if refusals:
                on_step(Step(f"{refusals[-1]}; looking elsewhere"))
            try:
                return bring(variant, on_step)
            except Unreachable as error:
                refusals.append(str(error))
        raise Unreachable(
            f"{'. '.join(refusals)}. Behind a proxy, set HTTPS_PROXY; mirrors are named by HF_ENDPOINT and "
            "SWIN2SR_RELEASE_URL."
        )

    def _from_hub(self, variant: Variant, on_step: OnStep) -> Path:
        assert variant.hub_id is not None, "the caller looked"
        ask = partial(describe_file, variant.hub_id, hub_url=self.hub_url)
        wanted = {name: ask(name) for name in (_CONFIG, _PROCESSOR)}
        weights = next(filter(None, map(ask, _hub_names(variant))), None)
        if wanted[_CONFIG] is None or weights is None:
            raise Unreachable(f"the hub has {variant.hub_id}, but without {_CONFIG} or weights")
        for small in filter(None, wanted.values()):
            self._enter(variant, small, lambda _step: None)
        file = self._enter(variant, weights, on_step)
        self.verify(variant, file)  # also where its content was in the cache before
        return file

    def _enter(self, variant: Variant, file: HubFile, on_step: OnStep) -> Path:
        blob = blob_place(file, cache_dir=self.cache_dir)
        if not blob.is_file():
            part = download(file.url, blob, on_step, name=file.name, headers=file.headers, wait=self.wait)
            if file.size is not None and part.stat().st_size != file.size:
                discard_parts(blob)
                raise Unreachable(f"{file.name} came truncated: {megabytes(file.size)} MB were announced")
            if file.name in _WEIGHTS:
                self._accept(variant, _Arrival(file.name, file.url, part, blob, file.etag))
            else:
                with writing(blob):
                    part.replace(blob)
        with writing(blob):
            return enter_into_cache(file, cache_dir=self.cache_dir, hub_url=self.hub_url)

    def _from_release(self, variant: Variant, on_step: OnStep) -> Path:
        assert variant.release_file is not None, "the caller looked"
        url, target = f"{self.release_url.rstrip('/')}/{variant.release_file}", self._folder / variant.release_file
        part = download(url, target, on_step, wait=self.wait)
        self._accept(variant, _Arrival(variant.release_file, url, part, target))
        return target

    def _accept(self, variant: Variant, arrival: _Arrival) -> None:
        """Look at a file that came whole; put it into its place and on record, or forget it."""
        name, host = arrival.name, urlsplit(arrival.url).netloc
        if not _looks_like_weights(arrival.part, name):
            discard_parts(arrival.place)
            raise Unreachable(f"what {host} gave for {name} is no file of weights; a page of a proxy or a login?")
        found = file_digest(arrival.part)
        expected, whence = self._expected(variant, name)
        if expected is None and _SHA256.fullmatch(arrival.etag):
            expected, whence = arrival.etag, "which the hub announced"
        if expected is not None and found != expected:
            discard_parts(arrival.place)
            raise FetchError(
                f"{name} from {host} is not the file it should be, and was not kept: its SHA-256 is {found}, not "
                f"{expected}, {whence}."
            )
        self._write_record(variant, arrival, found)
        with writing(arrival.place):
            arrival.part.replace(arrival.place)
        discard_parts(arrival.place)

    def _expected(self, variant: Variant, name: str) -> tuple[str | None, str]:
        """The SHA-256 of a file, and from where it is known."""
        if name in variant.digests:
            return variant.digests[name], (
                "which is known of the authors' file. If you trust this one all the same, download it yourself and "
                "serve it from SWIN2SR_MODEL_DIR"
            )
        entry = self._read_record(variant).get(name)
        if entry is None:
            return None, ""
        place = self._record(variant)
        return entry["sha256"], (
            f"which was recorded on {entry['fetched']}. If the authors replaced their file and you trust the new one, "
            f"delete {place} and fetch again"
        )

    def _record(self, variant: Variant) -> Path:
        return self._folder / f"{variant.name}.json"

    def _read_record(self, variant: Variant) -> dict[str, Any]:
        place = self._record(variant)
        try:
            record = json.loads(place.read_text("utf-8")) if place.is_file() else {}
            if all(_SHA256.fullmatch(entry["sha256"]) and entry["fetched"] for entry in record.values()):
                return record
        except (AttributeError, LookupError, OSError, TypeError, ValueError):
            pass
        raise FetchError(f"{place} is no record of what was downloaded. Delete it.")

    def _write_record(self, variant: Variant, arrival: _Arrival, digest: str) -> None:
        place = self._record(variant)
        entry = {"sha256": digest, "url": arrival.url, "fetched": datetime.now(UTC).strftime("%Y-%m-%d")}
        record = {**self._read_record(variant), arrival.name: entry}
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_suffix(f".{os.getpid()}.draft")
            draft.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
            draft.replace(place)


def file_digest(file: str | Path) -> str:
    """Compute a file's SHA-256 in hexadecimal, without reading it into memory at once."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hub_names(variant: Variant) -> list[str]:
    """The files of weights that a hub may have, those with a known digest first."""
    return sorted(_WEIGHTS, key=lambda name: name not in variant.digests) if variant.hub_id else []


def _looks_like_weights(file: Path, name: str) -> bool:
    """Whether a file begins as its kind does: a header's length and JSON, a zip archive, or a pickle."""
    with file.open("rb") as stream:
        begin = stream.read(9)
    return begin[8:] == b"{" if name.endswith(".safetensors") else begin.startswith((b"PK\x03\x04", b"\x80"))
