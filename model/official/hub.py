"""Files of a Hugging Face hub: where they lie on this machine, and what the hub says of them.

huggingface_hub does what is the hub's own (addresses, tokens, the layout of its cache) and is imported when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from model.official.http import Unreachable

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_BLOB = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub describes it.

    Attributes:
        hub_id, name: of the repository, and of the file in it.
        url: where it is to be had, with ``headers``, which may hold a token.
        etag: the SHA-256 of a large file, the Git SHA-1 of a small one.
        size: bytes, where the hub says it.
    """

    hub_id: str
    name: str
    url: str
    headers: Mapping[str, str]
    etag: str
    size: int | None


def local_folder(name: str | Path, *, cache_dir: str | Path | None = None) -> Path:
    """Find the folder, or the file, that a name stands for.

    Args:
        name: a folder or file, or a hub id such as ``caidas/swin2SR-classical-sr-x2-64``, which is looked up in the
            local cache of huggingface_hub.
        cache_dir: that cache's folder; huggingface_hub's own choice where None.

    Raises:
        ValueError: if there is nothing of that name here.
    """
    if Path(name).exists():
        return Path(name)
    if not (isinstance(name, str) and _HUB_ID.fullmatch(name)):
        raise ValueError(f"{name} does not exist, and is no hub id of the form 'owner/name'")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (needed by hub ids alone)
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, cache_dir=cache_dir, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        place = "the local Hugging Face cache" if cache_dir is None else str(cache_dir)
        raise ValueError(
            f"{name!r} is neither a folder here nor in {place}; download it there first "
            f"(for example with 'hf download {name}'), or give a folder"
        ) from error


def cached_file(hub_id: str, name: str, *, cache_dir: Path | None = None) -> Path | None:
    """Find a file of a repository in the local cache; one that this user may not look into holds nothing."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    try:
        found = try_to_load_from_cache(hub_id, name, cache_dir=cache_dir)
    except OSError:
        return None
    return Path(found) if isinstance(found, str) else None


def describe_file(hub_id: str, name: str, *, hub_url: str | None = None) -> HubFile | None:
    """Ask the hub about a file.

    Args:
        hub_id, name: repository and file.
        hub_url: of the hub; huggingface_hub's own choice where None.

    Returns:
        None if the repository has no such file.

    Raises:
        Unreachable: if the hub does not answer, or does not have the repository.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.errors import RemoteEntryNotFoundError  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415 (exported lazily)

    url = hf_hub_url(hub_id, name, endpoint=hub_url)
    with _answering(url, hub_id):
        try:
            told = get_hf_file_metadata(url, endpoint=hub_url)
        except RemoteEntryNotFoundError:
            return None
    if told.commit_hash is None or told.etag is None or not _BLOB.fullmatch(told.etag):
        raise Unreachable(f"{urlsplit(url).netloc} does not answer as a Hugging Face hub does")
    return HubFile(hub_id, name, url, build_hf_headers(), told.etag, told.size)


def blob_place(file: HubFile, *, cache_dir: Path | None = None) -> Path:
    """Where the cache keeps a file's content, under its ETag."""
    from huggingface_hub import constants  # noqa: PLC0415
    from huggingface_hub.file_download import repo_folder_name  # noqa: PLC0415

    folder = repo_folder_name(repo_id=file.hub_id, repo_type="model")
    return Path(cache_dir or constants.HF_HUB_CACHE) / folder / "blobs" / file.etag


def enter_into_cache(file: HubFile, *, cache_dir: Path | None = None, hub_url: str | None = None) -> Path:
    """Let the cache know a file whose content lies at its ``blob_place`` already, so that nothing is downloaded.

    Returns:
        Its path in the snapshot of its repository.

    Raises:
        Unreachable: if the hub does not answer.
        OSError: if the cache cannot be written.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    with _answering(file.url, file.hub_id):
        return Path(hf_hub_download(file.hub_id, file.name, cache_dir=cache_dir, endpoint=hub_url))


@contextmanager
def _answering(url: str, hub_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises where a hub does not give what it should into one error."""
    from huggingface_hub.errors import (  # noqa: PLC0415
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # The HTTP library underneath is httpx in version 1 and httpx2 in version 2; their errors are this one's first base.
    network_error: type[Exception] = HfHubHTTPError.__bases__[0]
    host = urlsplit(url).netloc
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise Unreachable(f"HF_HUB_OFFLINE is set, so {host} is not asked") from error
    except RepositoryNotFoundError as error:
        raise Unreachable(f"{host} has no {hub_id}, or not for everybody") from error
    except HfHubHTTPError as error:
        raise Unreachable(f"{host} answered {error.response.status_code} for {hub_id}") from error
    except (network_error, LocalEntryNotFoundError) as error:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        raise Unreachable(f"{host} cannot be reached: {reason}") from error
