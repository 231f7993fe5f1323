"""Official weights: found in the local cache, or downloaded from the hub or the authors' release, and verified.

Files of the hub are in the cache of huggingface_hub, so that what other programs downloaded is used too. A folder
``swin2sr`` holds the release's files, and a record of the digest of each downloaded file.
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
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.official.http import (
    FetchError,
    OnStep,
    Step,
    Unreachable,
    download,
    honor_certificate_bundle,
    megabytes,
    writing,
)
from model.official.hub import cached_file, download_file
from model.variants import RELEASE, Variant

__all__ = ["FetchError", "OfficialWeights", "OnStep", "Step", "Unreachable", "file_digest", "megabytes"]

_CONFIG = "config.json"
_PROCESSOR = "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOCK_TIMEOUT_S = 0.1
"""Seconds to wait for the lock before reporting that another process has it."""


@dataclass(frozen=True)
class OfficialWeights:
    """The authors' weights on this machine, and their download.

    Attributes:
        cache_dir: folder of the weights; None uses huggingface_hub's own.
        offline: whether downloads are forbidden.
        release_url: folder of the release's files, the authors' or a mirror's.
        hub_url: URL of the hub; None uses huggingface_hub's own, which ``HF_ENDPOINT`` changes.
        wait: waits between attempts, with seconds.
    """

    cache_dir: Path | None = None
    offline: bool = False
    release_url: str = RELEASE
    hub_url: str | None = None
    wait: Callable[[float], None] = time.sleep

    def find(self, variant: Variant) -> Path | None:
        """Find the weights of a variant in the cache, without verifying them.

        Returns:
            A file of the hub whose folder also has ``config.json``, or a file of the release; None if there is neither.
        """
        for name in _hub_names(variant):
            file = cached_file(variant.hub_id or "", name, cache_dir=self.cache_dir)
            if file is not None and os.access(file.with_name(_CONFIG), os.R_OK):
                return file
        released = self._folder / variant.release_file if variant.release_file else None
        return released if released is not None and os.access(released, os.R_OK) else None

    def digest(self, variant: Variant, file: Path) -> str | None:
        """The SHA-256 that a variant's file must have: published, recorded, or announced by the hub; None if unknown.

        Raises:
            FetchError: if the record of an earlier download is broken.
        """
        known, _ = self._expected(variant, file.name)
        return known or (blob if _SHA256.fullmatch(blob := file.resolve().name) else None)

    def verify(self, variant: Variant, file: Path) -> None:
        """Check the digest of a file in the cache.

        Raises:
            FetchError: if it is wrong, or the file cannot be read.
        """
        expected = self.digest(variant, file)
        try:
            found = file_digest(file)
        except OSError as error:
            raise FetchError(f"Cannot read {file}: {error.strerror}.") from error
        if found != (expected or found):
            raise FetchError(
                f"{file} has changed since its download: its SHA-256 is {found}, not {expected}. Delete "
                f"{file.resolve()} and run `swin2sr fetch {variant.name}`."
            )

    def fetch(self, variant: Variant, on_step: OnStep = lambda _step: None) -> Path:
        """Download a variant's weights from the hub, else from the release; verify those that are in the cache.

        Any number of processes can call this at a time: one downloads, the others wait for it.

        Args:
            variant: an official one.
            on_step: called with the progress, in this thread.

        Returns:
            The file of weights.

        Raises:
            Unreachable: if neither the hub nor the release sends it.
            FetchError: for all other reasons.
        """
        if not variant.embedded and (file := self._verified(variant)) is not None:
            return file
        self.check_allowed(variant)
        with self._locked(variant, on_step):
            return self._verified(variant) or self._download(variant, on_step)

    def check_allowed(self, variant: Variant) -> None:
        """Check that a variant can be downloaded at all.

        Raises:
            FetchError: if its weights are part of the package, or downloads are forbidden.
        """
        if variant.embedded:
            raise FetchError(f"The weights of {variant.name!r} are part of the package and are not downloaded.")
        if self.offline:
            place = self.cache_dir or "the Hugging Face cache"
            raise FetchError(
                f"The weights of {variant.name!r} are not in {place}, and SWIN2SR_OFFLINE forbids downloads. Unset it, "
                f"or run `swin2sr fetch {variant.name}` on a machine with a network and copy its SWIN2SR_CACHE_DIR."
            )

    @property
    def _folder(self) -> Path:
        """Folder of the release's files, the records and the locks."""
        from huggingface_hub import constants  # noqa: PLC0415

        return Path(self.cache_dir or constants.HF_ASSETS_CACHE) / "swin2sr"

    def _verified(self, variant: Variant) -> Path | None:
        if (file := self.find(variant)) is not None:
            self.verify(variant, file)
        return file

    @contextmanager
    def _locked(self, variant: Variant, on_step: OnStep) -> Iterator[None]:
        from filelock import FileLock, Timeout  # noqa: PLC0415 - needed by downloads only

        lock = FileLock(self._folder / f"{variant.name}.lock")
        with ExitStack() as stack:
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(lock.acquire(timeout=_LOCK_TIMEOUT_S))
                except Timeout:
                    on_step(Step("waiting for another process that downloads it"))
                    stack.enter_context(lock.acquire())
            yield

    def _download(self, variant: Variant, on_step: OnStep) -> Path:
        sources = [(variant.hub_id, self._from_hub), (variant.release_file, self._from_release)]
        if set(variant.digests) == {variant.release_file}:
            sources.reverse()  # the file with a published digest comes first
        refusals: list[str] = []
        honor_certificate_bundle()
        for source, fetch in sources:
            if source is None:
                continue
            if refusals:
                on_step(Step(f"{refusals[-1]}; trying the next source"))
            try:
                return fetch(variant, on_step)
            except Unreachable as error:
                refusals.append(str(error))
        authority = ""
        if any("certificate" in refusal.lower() for refusal in refusals):
            authority = " For your own certificate authority, set SSL_CERT_FILE or REQUESTS_CA_BUNDLE to its PEM file."
        raise Unreachable(
            f"{'. '.join(refusals)}.{authority} Behind a proxy, set HTTPS_PROXY. Name mirrors with HF_ENDPOINT and "
            "SWIN2SR_RELEASE_URL."
        )

    def _from_hub(self, variant: Variant, on_step: OnStep) -> Path:
        assert variant.hub_id is not None, "checked by the caller"

        def get(name: str, report: OnStep = lambda _step: None) -> Path | None:
            with writing(Path(self.cache_dir or "the Hugging Face cache")):
                return download_file(variant.hub_id or "", name, report, cache_dir=self.cache_dir, hub_url=self.hub_url)

        config, _ = get(_CONFIG), get(_PROCESSOR)
        file = next(filter(None, (get(name, on_step) for name in _hub_names(variant))), None)
        if config is None or file is None:
            raise Unreachable(f"the hub has {variant.hub_id}, but without {_CONFIG} or weights")
        self._accept(variant, file, file.name, file.resolve(), self.hub_url or "the hub")
        return file

    def _from_release(self, variant: Variant, on_step: OnStep) -> Path:
        assert variant.release_file is not None, "checked by the caller"
        url, target = f"{self.release_url.rstrip('/')}/{variant.release_file}", self._folder / variant.release_file
        part = target.with_name(f"{target.name}.part")
        download(url, part, on_step, wait=self.wait)
        self._accept(variant, part, target.name, part, url)
        with writing(target):
            part.replace(target)
        return target

    def _accept(self, variant: Variant, file: Path, name: str, content: Path, url: str) -> None:
        """Verify a downloaded file and record its digest. A file that is refused is removed.

        Args:
            variant, name: the file's variant, and its name there.
            file: its path.
            content: the file behind a link, removed with it.
            url: where it came from.
        """
        host = urlsplit(url).netloc or url
        found, (expected, source) = file_digest(file), self._expected(variant, name)
        if expected is None and _SHA256.fullmatch(content.name):
            expected, source = content.name, "which the hub announced"
        looks_right = _looks_like_weights(file, name)
        if not looks_right or found != (expected or found):
            file.unlink(missing_ok=True)
            content.unlink(missing_ok=True)
        if not looks_right:
            raise Unreachable(f"{host} did not send weights for {name}, but perhaps the page of a proxy or a login")
        if found != (expected or found):
            raise FetchError(
                f"{name} from {host} is not the expected file and was not kept: its SHA-256 is {found}, not "
                f"{expected}, {source}."
            )
        self._write_record(variant, name, url, found)

    def _expected(self, variant: Variant, name: str) -> tuple[str | None, str]:
        """The SHA-256 of a file, and the source of that."""
        if name in variant.digests:
            return variant.digests[name], (
                "which the authors' file has. If you trust this one nevertheless, download it yourself and serve it "
                "from SWIN2SR_MODEL_DIR"
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
        raise FetchError(f"{place} is not a valid record of downloads. Delete it.")

    def _write_record(self, variant: Variant, name: str, url: str, digest: str) -> None:
        place = self._record(variant)
        entry = {"sha256": digest, "url": url, "fetched": datetime.now(UTC).strftime("%Y-%m-%d")}
        record = {**self._read_record(variant), name: entry}
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_suffix(f".{os.getpid()}.draft")
            draft.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
            draft.replace(place)


def file_digest(file: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in chunks."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hub_names(variant: Variant) -> list[str]:
    """File names of weights on the hub, those with a published digest first."""
    return sorted(_WEIGHTS, key=lambda name: name not in variant.digests) if variant.hub_id else []


def _looks_like_weights(file: Path, name: str) -> bool:
    """Whether a file starts like a safetensors file, a zip archive or a pickle."""
    with file.open("rb") as stream:
        begin = stream.read(9)
    return begin[8:] == b"{" if name.endswith(".safetensors") else begin.startswith((b"PK\x03\x04", b"\x80"))
