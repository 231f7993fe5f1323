"""Finds the folder of a pretrained model on this machine or in the Hugging Face cache, or downloads it from the hub."""

from __future__ import annotations

from pathlib import Path

from model.official.hub import is_hub_id, local_folder

FOLDER_OPTIONS = ("cache_dir", "revision", "token", "local_files_only", "force_download", "subfolder")
"""The keywords of ``find_folder``."""

PATTERNS = ["*.json", "*.safetensors", "*.bin"]
"""Files of a repository that are downloaded."""


class ModelNotFoundError(OSError, ValueError):
    """There is no such model; an OSError too, which code written for Transformers catches."""


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
    """Find the folder or file of a pretrained model. Download it if it is on the hub only.

    Args:
        name: a folder or file, or a hub id such as ``caidas/swin2SR-classical-sr-x2-64``. If it is in the local cache,
            the hub is not asked.
        cache_dir: folder of the Hugging Face cache; None uses huggingface_hub's own.
        revision: branch, tag or commit of the repository; None is its main branch.
        token: for private repositories; True uses the one that is stored on this machine.
        local_files_only: whether downloads are forbidden.
        force_download: whether to download the files even if they are in the cache.
        subfolder: folder inside the one that is found.

    Raises:
        ModelNotFoundError: if it does not exist or cannot be downloaded.
        ValueError: if it lacks the subfolder.
    """
    if Path(name).exists():
        folder = Path(name)
    elif force_download and not local_files_only:
        folder = _download(str(name), cache_dir, revision, token, force=True)
    else:
        try:
            folder = local_folder(name, cache_dir=cache_dir, revision=revision)
        except ValueError as error:
            if local_files_only or not is_hub_id(name):
                raise ModelNotFoundError(str(error)) from error
            try:
                folder = _download(str(name), cache_dir, revision, token, force=False)
            except ValueError as failure:
                raise ModelNotFoundError(f"{error}; the download failed: {failure}") from failure
    return _inside(folder, subfolder) if subfolder else folder


def _download(
    name: str, cache_dir: str | Path | None, revision: str | None, token: str | bool | None, *, force: bool
) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import

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
        raise ValueError(f"subfolder={subfolder!r} is not inside {folder}")
    if not inner.is_dir():
        raise ValueError(f"{folder} has no folder {subfolder!r}")
    return inner
