"""Where a Hugging Face hub id lies on this machine; nothing is downloaded here."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


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
