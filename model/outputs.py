"""The outputs of the model classes: results by attribute, by name and by number, as in Transformers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree


class ModelOutput(OrderedDict[str, Any]):
    """A mapping of the results that are not None; numbers and slices index them in their order.

    Registered as a pytree: the leaves are its tensors.

    Args:
        values: a mapping or pairs, or the first results in their order.
        named: results by name.

    Raises:
        TypeError: if a name is unknown.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *values: Any, **named: Any) -> None:  # noqa: ANN401 (a tensor, or a tuple of tensors)
        if len(values) == 1 and not isinstance(values[0], (torch.Tensor, tuple)) and isinstance(values[0], Iterable):
            named = dict(values[0]) | named
        else:
            named = dict(zip(self.names, values, strict=False)) | named
        if unknown := named.keys() - set(self.names):
            raise TypeError(
                f"{type(self).__name__} has no {', '.join(sorted(unknown))}: it has {', '.join(self.names)}"
            )
        super().__init__((name, named[name]) for name in self.names if named.get(name) is not None)

    def __init_subclass__(cls) -> None:
        cls.names = tuple(cls.__annotations__)
        # torch.jit treats outputs as dictionaries only if it cannot compile their class: here for this method.
        cls.to_tuple = ModelOutput.to_tuple  # type: ignore[method-assign]
        name = f"{cls.__module__}.{cls.__qualname__}"
        pytree.register_pytree_node(cls, _flatten, cls._unflatten, serialized_type_name=name)

    @classmethod
    def _unflatten(cls, values: Iterable[Any], names: list[str]) -> ModelOutput:
        return cls(**dict(zip(names, values, strict=True)))

    def to_tuple(self) -> tuple[Any, ...]:
        """All results that are not None, in their order."""
        return tuple(self[name] for name in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:  # noqa: ANN401
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name in type(self).names:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        if name not in type(self).names:
            super().__setattr__(name, value)
        elif value is None:
            self.pop(name, None)
        else:
            self[name] = value


def _flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output.keys())


@dataclass(init=False, repr=False, eq=False)
class Swin2SREncoderOutput(ModelOutput):
    """What the encoder returns.

    Attributes:
        last_hidden_state: tokens (B, H * W, embed_dim).
        hidden_states, attentions: as of ``BaseModelOutput``.
    """

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


@dataclass(init=False, repr=False, eq=False)
class BaseModelOutput(ModelOutput):
    """What ``Swin2SRModel`` returns.

    Attributes:
        last_hidden_state: (B, embed_dim, H, W).
        hidden_states: tokens (B, H * W, embed_dim) after the embedding and after every stage.
        attentions: (B * nW, nH, N, N) of the last block of every stage, after softmax.
    """

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


@dataclass(init=False, repr=False, eq=False)
class ImageSuperResolutionOutput(ModelOutput):
    """What ``Swin2SRForImageSuperResolution`` returns.

    Attributes:
        loss: mean absolute difference from the labels, a scalar, where labels were given.
        reconstruction: (B, C, s * H, s * W), about [0, 1], not clamped.
        hidden_states, attentions: as of ``BaseModelOutput``.
    """

    loss: torch.Tensor | None
    reconstruction: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None
