"""The result of the image processor: ``pixel_values`` by key and by attribute."""

from collections import UserDict
from typing import Any, Self

import torch
from torch import Tensor

from model.image_processor.arrays import PixelValues, gather


class ProcessedImages(UserDict[str, PixelValues]):
    """``pixel_values`` by key and by attribute, for ``model(**inputs)``.

    Attributes:
        data: the dictionary.
        original_sizes: (height, width) of every image before padding, for ``post_process_super_resolution``. Not a key,
            because networks do not accept it.
    """

    original_sizes: tuple[tuple[int, int], ...] = ()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (a tensor, an array or a list)
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def to(self, *args: Any, **options: Any) -> Self:  # noqa: ANN401 (as Tensor.to)
        """Move the tensors to a device, and convert those of floating point to a type, in place."""
        options.pop("non_blocking", None)
        for key, value in self.data.items():
            if isinstance(value, Tensor):
                where = torch.empty(0, device=value.device).to(*args, **options).device
                self.data[key] = value.to(*args, **options) if value.is_floating_point() else value.to(where)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Stack lists of arrays: ``"pt"`` or ``"np"``; None leaves them."""
        kind = check_option("tensor_type", tensor_type, ("pt", "np", None))
        for key, value in self.data.items():
            if kind is not None and isinstance(value, list):
                self.data[key] = gather(value, kind)
        return self


def check_option(name: str, value: object, allowed: tuple[str | None, ...]) -> str | None:
    """Read a string or a member of one of Transformers' enumerations."""
    value = getattr(value, "value", value)
    if value in ("tf", "jax", "mlx"):
        raise ValueError(f"{name}={value!r} is not supported: use PyTorch ('pt') or NumPy ('np')")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value
