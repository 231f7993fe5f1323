"""Writes checkpoints: folders as Transformers writes them, and files with official names."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.read import weight_files
from model.checkpoints.state_dict_keys import infer_config, to_official
from model.config import Swin2SRConfig
from model.network import Swin2SR, Swin2SRBody
from model.windows import relative_coords_table, relative_position_index, shift_mask


def write_official(network: Swin2SR, file: str | Path) -> None:
    """Write weights under their official names.

    A ``.safetensors`` file contains the configuration as JSON in its metadata. A ``.pth`` file cannot hold it and
    contains the official buffers instead, from which the configuration is inferred.

    Raises:
        ValueError: for another extension, and for a ``.pth`` file from which another configuration would be inferred.
    """
    file = Path(file)
    state = _portable(to_official(network.state_dict()))
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt", "config": json.dumps(network.config.to_dict())})
    elif file.suffix == ".pth":
        state |= _derived_buffers(network.config)
        if decisive_fields(infer_config(state)) != decisive_fields(network.config):
            raise ValueError(f"{file.name}: a .pth file cannot hold this configuration. Write it as .safetensors")
        torch.save(state, file)
    else:
        raise ValueError(f"official weights are written to .safetensors or .pth, not to {file.name!r}")


def write_pretrained(
    network: Swin2SR | Swin2SRBody,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = "50GB",
    safe_serialization: bool = True,
    variant: str | None = None,
) -> None:
    """Write ``config.json`` and weights as Transformers does, creating the folder.

    Transformers itself cannot load weights with ``resi_connection="3conv"``; this project can.

    Args:
        network: its configuration and weights are written.
        folder: existing weights in it are replaced.
        state: weights to write instead of the network's own.
        max_shard_size: bytes, or a string such as ``"200MB"``: larger weights are written to several files.
        safe_serialization: whether to write ``.safetensors``, else ``.bin``.
        variant: part of the files' name: ``fp16`` for ``model.fp16.safetensors``.

    Raises:
        ValueError: if ``max_shard_size`` cannot be understood.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(_portable(network.state_dict() if state is None else state), _bytes_of(max_shard_size))
    name = weight_files(variant)[0 if safe_serialization else 1]
    network.config.save_pretrained(folder)
    for stem, _, suffix in (each.rpartition(".") for each in weight_files(variant)):
        for pattern in (f"{stem}.{suffix}", f"{stem}-*.{suffix}", f"{stem}.{suffix}.index.json"):
            for old in folder.glob(pattern):
                old.unlink()
    if len(shards) == 1:
        _write_file(shards[0], folder / name)
        return
    stem, _, suffix = name.rpartition(".")
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.{suffix}"
        _write_file(shard, folder / file)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, sort_keys=True)
    (folder / f"{name}.index.json").write_text(index + "\n", encoding="utf-8")


def _write_file(state: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(state, file)


def _split(state: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """Divide weights into groups of at most ``most`` bytes, or of one tensor."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in state.items():
        if shards[-1] and sum(kept.nbytes for kept in shards[-1].values()) + tensor.nbytes > most:
            shards.append({})
        shards[-1][name] = tensor
    return shards


def _bytes_of(size: int | str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "": 1}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(size).strip().upper())
    if match is None or match[2] not in units:
        raise ValueError(f"max_shard_size={size!r} is not a number of bytes, such as 1000000 or '200MB'")
    return int(float(match[1]) * units[match[2]])


def _portable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}


def decisive_fields(config: Swin2SRConfig) -> dict[str, object]:
    """The fields that the output of head and body depends on."""
    others = {
        "back_projection",
        "back_projection_blur",
        "range_slack",
        "image_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "drop_path_rate",
        "initializer_range",
    }
    values = config.to_dict()
    return {field.name: values[field.name] for field in fields(config) if field.name not in others}


def _derived_buffers(config: Swin2SRConfig) -> dict[str, Tensor]:
    """The buffers that the official code stores with every block: index tables, and the mask of shifted blocks.

    The official code loads only a mask of its training size, and spandrel does not shift blocks without a mask.
    """
    window = config.window_size
    side = max(config.image_size // window, 2) * window
    tables = {
        "attn.relative_coords_table": relative_coords_table(window).view(1, 2 * window - 1, 2 * window - 1, 2),
        "attn.relative_position_index": relative_position_index(window),
        "attn_mask": shift_mask(side, side, window, config.shift_size),
    }
    return {
        f"layers.{stage}.residual_group.blocks.{block}.{name}": buffer
        for stage, depth in enumerate(config.depths)
        for block in range(depth)
        for name, buffer in tables.items()
        if block % 2 or name != "attn_mask"
    }
