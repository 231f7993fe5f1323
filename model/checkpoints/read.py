"""Reads checkpoints, and loads them into networks. Nothing may be missing, unexpected or of another shape.

Read are a Hugging Face folder (``config.json`` with ``model.safetensors``, else ``pytorch_model.bin``) and single files
with official names: ``.safetensors``, ``.pth``, ``.pt`` or ``.bin``, flat or under ``params_ema`` or ``params``, with
or without a ``module.`` prefix. Pickled files are opened with ``weights_only=True``, so that none can run code.
"""

import json
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoints.state_dict_keys import (
    BODY_PREFIX,
    CheckpointError,
    infer_config,
    is_derived,
    is_head,
    is_huggingface,
    to_huggingface,
    to_official,
)
from model.config import Swin2SRConfig
from model.network import Swin2SR, Swin2SRBody

_PICKLED = (".pth", ".pt", ".bin")
_WEIGHT_FILES = (("model", "safetensors"), ("pytorch_model", "bin"))
_NESTED = ("params_ema", "params")
_SHOWN = 8
# Exceptions of torch.load for files that are not checkpoints.
_BROKEN = (
    pickle.UnpicklingError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    struct.error,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights as a file holds them.

    Attributes:
        file: that was read.
        config: from ``config.json``, from the file's metadata, or inferred from keys and shapes.
        state: the weights under the file's names, official or Hugging Face's; derived buffers are left out.
    """

    file: Path
    config: Swin2SRConfig
    state: Mapping[str, Tensor]


def load_network(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Swin2SR:
    """Build the network that a checkpoint describes and load its weights, strictly.

    Args:
        path: a Hugging Face folder, or a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file.
        device, dtype: of the network.

    Returns:
        The network in evaluation mode.

    Raises:
        CheckpointError: if files are absent, broken or unsafe, or weights are missing, unexpected or misshaped.
    """
    checkpoint = read_checkpoint(path)
    network = Swin2SR(checkpoint.config)
    load_weights(network, checkpoint)
    return network.to(device=device, dtype=dtype).eval()


def read_checkpoint(path: str | Path, config: Swin2SRConfig | None = None, variant: str | None = None) -> Checkpoint:
    """Read a checkpoint's weights and configuration without building a network.

    Args:
        path: as of ``load_network``.
        config: used instead of that in the files.
        variant: of the files in a folder: ``fp16`` for ``model.fp16.safetensors``.

    Raises:
        CheckpointError: if files are absent, broken or unsafe, or the configuration is not supported.
    """
    path = Path(path)
    file = _find_weights(path, variant) if path.is_dir() else path
    state, metadata = _read_file(file)
    config = config or _find_config(file, state, metadata)
    return Checkpoint(file, config, {key: tensor for key, tensor in state.items() if not is_derived(key)})


def load_weights(network: Swin2SR, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights into a network of the same configuration.

    Names and shapes are compared in the file's own layout first, so that errors have the names of the file.

    Raises:
        CheckpointError: if weights are missing, unexpected or misshaped.
    """
    state, expected = checkpoint.state, network.state_dict()
    official = not is_huggingface(state)
    check_shapes(checkpoint, to_official(expected) if official else expected)
    network.load_state_dict(to_huggingface(state, network.config) if official else state)


def load_body_weights(body: Swin2SRBody, checkpoint: Checkpoint) -> None:
    """As ``load_weights``, for a network without a head; the head's weights in the checkpoint are left out.

    Raises:
        CheckpointError: if weights are missing, unexpected or misshaped.
    """
    kept = {key: tensor for key, tensor in checkpoint.state.items() if not is_head(key)}
    expected = {BODY_PREFIX + key: tensor for key, tensor in body.state_dict().items()}
    official = not is_huggingface(kept)
    check_shapes(replace(checkpoint, state=kept), to_official(expected) if official else expected)
    state = to_huggingface(kept, body.config) if official else kept
    body.load_state_dict({key.removeprefix(BODY_PREFIX): tensor for key, tensor in state.items()})


def check_shapes(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> None:
    """Compare a checkpoint's names and shapes with those expected.

    Raises:
        CheckpointError: if they differ, with the names of the file and the weights.
    """
    missing = sorted(expected.keys() - checkpoint.state.keys())
    unexpected = sorted(checkpoint.state.keys() - expected.keys())
    misshaped = [key for key, found in checkpoint.state.items() if found.shape != expected.get(key, found).shape]
    if not (missing or unexpected or misshaped):
        return
    shapes = [f"{key} {tuple(checkpoint.state[key].shape)} not {tuple(expected[key].shape)}" for key in misshaped]
    complaints = [
        f"{kind}: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshaped", shapes))
        if names
    ]
    raise CheckpointError(
        f"{checkpoint.file} does not fit its configuration: {'; '.join(complaints)}",
        missing=missing,
        unexpected=unexpected,
        misshaped=misshaped,
    )


def weight_files(variant: str | None) -> list[str]:
    """The names that weights have in a folder: ``model.safetensors``, with a variant ``model.fp16.safetensors``."""
    middle = f".{variant}" if variant else ""
    return [f"{stem}{middle}.{suffix}" for stem, suffix in _WEIGHT_FILES]


def _find_weights(folder: Path, variant: str | None) -> Path:
    names = weight_files(variant)
    for name in (*names, *(f"{name}.index.json" for name in names)):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} contains neither {' nor '.join(names)}")


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the files that an index names, which must be in the same folder."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not a readable index of weights: {error}") from error
    if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{index} names files in other folders: {outside}")
    state: dict[str, Tensor] = {}
    for name in names:
        state |= _read_file(index.with_name(name))[0]
    return state, {}


def _read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist")
    if file.name.endswith(".index.json"):
        return _read_shards(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
                return plain_names(state), opened.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
    if file.suffix not in _PICKLED:
        raise CheckpointError(f"{file} is not a checkpoint: expected .safetensors, {', '.join(_PICKLED)}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{file} cannot be read as a file of weights alone: {reason}") from error
    return plain_names(_unwrap(content, file)), {}


def _unwrap(content: object, file: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[name] for name in _NESTED if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file} contains no dictionary of weights")
    for key, tensor in content.items():
        if not (isinstance(key, str) and isinstance(tensor, Tensor)):
            raise CheckpointError(f"{file} contains something other than a weight under {key!r}")
    return cast("dict[str, Tensor]", content)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix of DataParallel from names, and add the prefix that Transformers omits for a body alone."""
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if "first_convolution.weight" in plain:
        plain = {key if is_head(key) else BODY_PREFIX + key: tensor for key, tensor in plain.items()}
    return plain


def _find_config(file: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Swin2SRConfig:
    in_folder = re.fullmatch(r"(model(\.\w+)?\.safetensors|pytorch_model(\.\w+)?\.bin)(\.index\.json)?", file.name)
    beside = file.with_name("config.json") if in_folder else file.with_suffix(".json")
    try:
        if "config" in metadata:
            config = cast("Swin2SRConfig", Swin2SRConfig.from_dict(json.loads(metadata["config"])))
        elif beside.is_file():
            config = Swin2SRConfig.from_json_file(beside)
        elif is_huggingface(state):
            raise CheckpointError(f"weights with Hugging Face's names need {beside.name} in the same folder")
        else:
            config = infer_config(state)
        config.validate()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return config
