"""Files of a Hugging Face hub: in the local cache, and downloaded into it. Imports huggingface_hub when it is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.official.http import OnStep, Step, Unreachable

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def is_hub_id(name: object) -> bool:
    """Whether a name has the form of a hub id, ``owner/name``."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None


def local_folder(name: str | Path, *, cache_dir: str | Path | None = None, revision: str | None = None) -> Path:
    """Find a folder or file, or the folder of a hub id in the local cache. Downloads nothing.

    Args:
        name: a folder or file, or a hub id such as ``caidas/swin2SR-classical-sr-x2-64``.
        cache_dir: folder of the cache; None uses huggingface_hub's own.
        revision: branch, tag or commit of the repository; None is its main branch.

    Raises:
        ValueError: if it is not on this machine.
    """
    if Path(name).exists():
        return Path(name)
    if not is_hub_id(name):
        raise ValueError(f"{name} does not exist, and is not a hub id of the form 'owner/name'")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(str(name), cache_dir=cache_dir, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        place = "the local Hugging Face cache" if cache_dir is None else str(cache_dir)
        what = repr(name) if revision is None else f"revision {revision!r} of {name!r}"
        raise ValueError(
            f"{what} is neither a folder nor in {place}. Download it there first, for example with "
            f"'hf download {name}', or give a folder."
        ) from error


def cached_file(hub_id: str, name: str, *, cache_dir: Path | None = None) -> Path | None:
    """Find a file of a repository in the local cache. A cache that this user cannot read counts as empty."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    try:
        found = try_to_load_from_cache(hub_id, name, cache_dir=cache_dir)
    except OSError:
        return None
    return Path(found) if isinstance(found, str) else None


def download_file(
    hub_id: str, name: str, on_step: OnStep, *, cache_dir: Path | None = None, hub_url: str | None = None
) -> Path | None:
    """Download a file of a repository into the cache of huggingface_hub, or find it there.

    Args:
        hub_id, name: repository and file.
        on_step: called with the progress.
        cache_dir: folder of the cache; None uses huggingface_hub's own.
        hub_url: URL of the hub; None uses huggingface_hub's own, which ``HF_ENDPOINT`` changes.

    Returns:
        Its path in the snapshot; None if the repository has no such file.

    Raises:
        Unreachable: if the hub does not answer, or does not have the repository.
        OSError: if the cache cannot be written.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.errors import RemoteEntryNotFoundError  # noqa: PLC0415

    host = urlsplit(hf_hub_url(hub_id, name, endpoint=hub_url)).netloc
    progress = _progress_reporter(f"{name} from {host}", on_step)
    with _hub_errors(host, hub_id):
        try:
            return Path(hf_hub_download(hub_id, name, cache_dir=cache_dir, endpoint=hub_url, tqdm_class=progress))
        except RemoteEntryNotFoundError:
            return None


def _progress_reporter(text: str, on_step: OnStep) -> Any:  # noqa: ANN401 - a subclass of tqdm, which has no types
    """A progress bar class for huggingface_hub that calls ``on_step`` and prints nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # noqa: PLC0415 - comes with huggingface_hub

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *_arguments: object, total: int | None = None, initial: int = 0, **_options: object) -> None:
            super().__init__(disable=True)
            self.total, self.n = total, initial
            on_step(Step(text, initial, total))

        def update(self, n: int = 1) -> None:
            """Report ``n`` more bytes."""
            self.n += n
            on_step(Step(text, self.n, self.total))

    return Reporter


@contextmanager
def _hub_errors(host: str, hub_id: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into ``Unreachable``."""
    from huggingface_hub.errors import (  # noqa: PLC0415
        FileMetadataError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # The HTTP library underneath is httpx in version 1 and httpx2 in version 2; their errors are this one's first base.
    network_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except RepositoryNotFoundError as error:
        raise Unreachable(f"{host} has no public repository {hub_id}") from error
    except HfHubHTTPError as error:
        raise Unreachable(f"{host} answered {error.response.status_code} for {hub_id}") from error
    except (network_error, LocalEntryNotFoundError, FileMetadataError, OfflineModeIsEnabled) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, OfflineModeIsEnabled):
            raise Unreachable(f"HF_HUB_OFFLINE is set, so {host} is not asked") from error
        if isinstance(cause, HfHubHTTPError):
            raise Unreachable(f"{host} answered {cause.response.status_code} for {hub_id}") from error
        if isinstance(cause, FileMetadataError):
            raise Unreachable(f"{host} does not answer as a Hugging Face hub does") from error
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(cause)) or type(cause).__name__
        raise Unreachable(f"{host} cannot be reached: {reason}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise Unreachable(f"{host} sent an incomplete file of {hub_id}") from error
