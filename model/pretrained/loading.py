"""Loads the weights of a checkpoint into a model of the Transformers-compatible surface, and reports what differs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from model.checkpoints.read import Checkpoint, load_body_weights, load_weights, plain_names, read_checkpoint
from model.checkpoints.state_dict_keys import BODY_PREFIX, CheckpointError, is_head, is_huggingface, to_huggingface
from model.config import Swin2SRConfig
from model.network import Swin2SR, Swin2SRBody
from model.repository import find_folder

_BODY_PARTS = ("first_convolution", "embeddings", "encoder", "layernorm", "conv_after_body")
_PARTS = ("swin2sr", "upsample", "final_convolution")
"""The parts of a network that have weights; subclasses may add others."""


@dataclass
class LoadingInfo:
    """How a checkpoint differs from a model, in the model's names, as Transformers reports it.

    Attributes:
        missing_keys: weights that the checkpoint lacks; they are new.
        unexpected_keys: weights that the model lacks; they are left out.
        mismatched_keys: weights of another shape, with their shape in the checkpoint and in the model; they are new.
        error_msgs: always empty.
    """

    missing_keys: set[str] = field(default_factory=set)
    unexpected_keys: set[str] = field(default_factory=set)
    mismatched_keys: set[tuple[str, torch.Size, torch.Size]] = field(default_factory=set)
    error_msgs: list[str] = field(default_factory=list)


def find_checkpoint(
    name: str | Path | None,
    config: Swin2SRConfig | str | Path | None,
    state: Mapping[str, Tensor] | None,
    variant: str | None,
    options: Mapping[str, Any],
) -> Checkpoint:
    """The checkpoint of a name, with the given configuration and weights instead of its own.

    Raises:
        ValueError: if it does not exist, or ``name`` is None without ``config`` and ``state``.
    """
    given = Swin2SRConfig.from_pretrained(config) if isinstance(config, str | Path) else config
    state = None if state is None else plain_names(state)
    if name is None:
        if given is None or state is None:
            raise ValueError("from_pretrained needs a name, or config and state_dict")
        return Checkpoint(Path("state_dict"), given, state)
    path = find_folder(name, **options)
    if path.is_dir() and state is not None and given is not None:
        return Checkpoint(path, given, state)
    checkpoint = read_checkpoint(path, given, variant)
    return checkpoint if state is None else replace(checkpoint, state=state)


def load_all(model: Swin2SR | Swin2SRBody, checkpoint: Checkpoint) -> LoadingInfo:
    """Load weights that must all exist.

    Two kinds stay new, with a warning: a head, if the checkpoint has none, and what a subclass adds to the network.

    Raises:
        CheckpointError: if weights are missing, unexpected or misshaped.
    """
    is_body = isinstance(model, Swin2SRBody)
    parts, prefix = (_BODY_PARTS, BODY_PREFIX) if is_body else (_PARTS, "")
    headless = not is_body and not any(is_head(key) for key in checkpoint.state)
    new = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if (headless and is_head(key)) or (key.partition(".")[0] not in parts and prefix + key not in checkpoint.state)
    }
    if new:
        warnings.warn(
            f"{checkpoint.file} has {'no head' if headless else 'not all weights of the class'}. "
            f"These weights are newly initialised and must be trained: {', '.join(new)}",
            stacklevel=3,
        )
        state = checkpoint.state
        state = state if is_huggingface(state) else to_huggingface(state, model.config)
        checkpoint = replace(checkpoint, state={**state, **{prefix + key: tensor for key, tensor in new.items()}})
    if isinstance(model, Swin2SRBody):
        load_body_weights(model, checkpoint)
    else:
        load_weights(model, checkpoint)
    return LoadingInfo(missing_keys=set(new))


def load_what_fits(
    model: Swin2SR | Swin2SRBody, checkpoint: Checkpoint, *, ignore_mismatched_sizes: bool
) -> LoadingInfo:
    """Load the weights whose names and shapes are the model's. A warning names those that stay new.

    Raises:
        CheckpointError: if a weight has another shape, unless ``ignore_mismatched_sizes``.
    """
    state, own = dict(checkpoint.state), model.state_dict()
    state = state if is_huggingface(state) else to_huggingface(state, model.config)
    if isinstance(model, Swin2SRBody):
        state = {key.removeprefix(BODY_PREFIX): tensor for key, tensor in state.items()}
    found = {key: tensor for key, tensor in state.items() if key in own and own[key].shape == tensor.shape}
    others = own.keys() & state.keys() - found.keys()
    info = LoadingInfo(
        missing_keys=own.keys() - state.keys(),
        unexpected_keys=state.keys() - own.keys(),
        mismatched_keys={(key, state[key].shape, own[key].shape) for key in others},
    )
    if others and not ignore_mismatched_sizes:
        shapes = [f"{key} {tuple(theirs)} not {tuple(ours)}" for key, theirs, ours in sorted(info.mismatched_keys)]
        raise CheckpointError(
            f"{checkpoint.file} does not fit its configuration: misshaped: {', '.join(shapes)}",
            misshaped=sorted(others),
        )
    if new := [key for key in own if key not in found]:
        warnings.warn(f"{checkpoint.file} does not fit: these weights are new: {', '.join(new)}", stacklevel=3)
    cast("torch.nn.Module", model).load_state_dict(found, strict=False)
    return info


def device_of(device_map: Any, device: str | torch.device | None) -> torch.device:  # noqa: ANN401
    """The one device in a ``device_map`` of Transformers.

    Raises:
        ValueError: if it contains several.
    """
    if isinstance(device_map, Mapping):
        named = set(device_map.values())
        if len(named) != 1:
            raise ValueError(f"device_map={device_map} names {len(named)} devices. The network runs on one device")
        device_map = named.pop()
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = device if device_map is None else device_map
    return torch.device("cpu" if chosen is None else chosen)


def dtype_of(name: torch.dtype | str | None) -> torch.dtype:
    """A type of PyTorch by its name; None is float32.

    Raises:
        ValueError: if there is no such type.
    """
    found = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else name
    if found is None and name is None:
        return torch.float32
    if not isinstance(found, torch.dtype):
        raise ValueError(  # noqa: TRY004 (as any unknown option)
            f"dtype={name!r} is not a type of PyTorch, such as 'float32' or 'bfloat16'"
        )
    return found
