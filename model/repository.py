"""Finds the folder of a pretrained model: on this machine, in the Hugging Face cache, or on the hub."""

from __future__ import annotations

from pathlib import Path

from model.official.hub import local_folder

PATTERNS = ["*.json", "*.safetensors", "*.bin"]
"""Files that are downloaded of a repository."""


def find_folder(
    name: str | Path,
    *,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str | None = None,
) -> Path:
    """The folder, or the file, that a name stands for.

    Args:
        name: a folder or file, or a hub id such as ``caidas/swin2SR-classical-sr-x2-64``. What is in the local cache is
            used without asking the hub.
        cache_dir: folder of the Hugging Face cache; huggingface_hub's own choice where None.
        revision: branch, tag or commit of the repository; its main branch where None.
        token: for private repositories; True for the one that is stored on this machine.
        local_files_only: whether never to ask the hub.
        force_download: whether to download the files even if they are in the cache.
        subfolder: a folder inside of the one that is found.

    Raises:
        ValueError: if there is nothing of that name, or the subfolder is not inside.
    """
    if Path(name).exists():
        folder = Path(name)
    elif force_download and not local_files_only:
        folder = _download(str(name), cache_dir, revision, token, force=True)
    else:
        try:
            folder = _cached(name, cache_dir, revision)
        except ValueError as error:
            if local_files_only or "is no hub id" in str(error):
                raise
            try:
                folder = _download(str(name), cache_dir, revision, token, force=False)
            except ValueError as failure:
                raise ValueError(f"{error}; the download failed: {failure}") from failure
    return _inside(folder, subfolder) if subfolder else folder


def _cached(name: str | Path, cache_dir: str | Path | None, revision: str | None) -> Path:
    if revision is None:
        return local_folder(name, cache_dir=cache_dir)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (needed by hub ids alone)
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(str(name), cache_dir=cache_dir, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(f"revision {revision!r} of {name!r} is not in the local Hugging Face cache") from error


def _download(
    name: str, cache_dir: str | Path | None, revision: str | None, token: str | bool | None, *, force: bool
) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (needed by hub ids alone)

    try:
        found = snapshot_download(
            name,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            force_download=force,
            allow_patterns=PATTERNS,
        )
    except (OSError, ValueError, RuntimeError) as error:  # those of huggingface_hub and of the network
        raise ValueError(f"{name!r} cannot be downloaded: {str(error).strip().partition(chr(10))[0]}") from error
    return Path(found)


def _inside(folder: Path, subfolder: str) -> Path:
    inner = folder / subfolder
    if not inner.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"subfolder={subfolder!r} leads out of {folder}")
    if not inner.is_dir():
        raise ValueError(f"{folder} has no folder {subfolder!r}")
    return inner
