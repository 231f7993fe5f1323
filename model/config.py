"""The configuration of a Swin2SR network, with the field names of Hugging Face's ``config.json``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from model.pretrained_config import DERIVED, GENERIC, MISSING, PretrainedConfig

UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect", "nearest+conv", "pixelshuffle_aux")
SCALES = {
    "pixelshuffle": (2, 3, 4, 8),
    "pixelshuffledirect": (2, 3, 4, 8),
    "nearest+conv": (4,),
    "pixelshuffle_aux": (2, 3, 4, 8),
    None: (1,),
}
ACTIVATIONS = ("gelu", "relu", "selu", "gelu_new")
MOST_BLUR = 2.0
"""The largest ``back_projection_blur``. With it a pixel depends on 7 input pixels to each side more."""

_BOOKKEEPING = ("architectures", "dtype", "transformers_version")
"""Attributes that are ignored when two configurations are compared."""


_NUMBERS = (
    *("mlp_ratio", "img_range", "layer_norm_eps"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
    *("back_projection_blur", "range_slack"),
)

_OWN = ("back_projection", "back_projection_blur", "range_slack")
"""Fields that other programs do not know. They are written where they are used."""


@dataclass(init=False, eq=False)
class Swin2SRConfig(PretrainedConfig):
    """The dimensions of a Swin2SR network; the defaults are the classical x2 network.

    Source: Transformers 4.37.2, ``Swin2SRConfig``; the official constructor's names are ``img_size`` (image_size),
    ``in_chans`` (num_channels), ``ape`` (use_absolute_embeddings).

    Attributes:
        image_size: side in pixels of the training crops; the network takes any size.
        patch_size: 1; the released networks have no other.
        num_channels, num_channels_out: channels in and out; ``num_channels_out`` follows ``num_channels`` where None.
        embed_dim: channels of the body.
        depths, num_heads: blocks and attention heads of each stage.
        window_size: side in pixels of an attention window.
        mlp_ratio: hidden over outer width of a block's MLP.
        qkv_bias: whether query and value have a bias (the key has none).
        hidden_dropout_prob, attention_probs_dropout_prob, drop_path_rate: probabilities in [0, 1), training only.
        hidden_act: ``gelu`` (exact), ``relu``, ``selu`` or ``gelu_new`` (tanh approximation).
        use_absolute_embeddings: False; no released network has them.
        initializer_range: standard deviation of a fresh linear layer's weights.
        layer_norm_eps: epsilon of every LayerNorm.
        upscale: scale of the output, 1 for restoration.
        img_range: factor on pixel values in [0, 1] before the network, 255 for the released JPEG network.
        resi_connection: ``1conv`` or ``3conv``, the convolutions that end a stage.
        upsampler: the head, None for restoration.
        back_projection: whether the image is made true to the input (``model.refinement``).
        back_projection_blur: for compressed inputs, the standard deviation in input pixels of the Gaussian that smooths
            the difference to the input, 0 to 2.
        range_slack: whether values are limited to the local range of the input (``model.refinement``): None for no
            limit; else how far they may exceed it where 9x9 pixels are not all equal, 0 to 1 (pixels are in [0, 1]).
        return_dict, output_attentions, output_hidden_states: what the models return unless a call says otherwise.

    Keywords of other names are kept as attributes, as Transformers does; all attributes can be changed.

    Raises:
        ValueError: if a value is impossible, naming the field.
    """

    image_size: int = 64
    patch_size: int = 1
    num_channels: int = 3
    num_channels_out: int | None = None
    embed_dim: int = 180
    depths: Sequence[int] = (6, 6, 6, 6, 6, 6)
    num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6)
    window_size: int = 8
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    upscale: int = 2
    img_range: float = 1.0
    resi_connection: str = "1conv"
    upsampler: str | None = "pixelshuffle"
    back_projection: bool = False
    back_projection_blur: float = 0.0
    range_slack: float | None = None

    def __init__(self, *values: Any, **options: Any) -> None:  # noqa: ANN401 (fields of several types)
        names = [field.name for field in dataclasses.fields(self)]
        if len(values) > len(names):
            raise TypeError(f"a configuration has {len(names)} fields, not {len(values)}")
        given = dict(zip(names, values, strict=False)) | options
        given = {self.attribute_map.get(name, name): value for name, value in given.items() if name not in DERIVED}
        count = options.get("num_labels") or 2
        labels = given.pop("id2label", None) or {number: f"LABEL_{number}" for number in range(count)}
        self._set_labels(labels, given.pop("label2id", None))
        self._name_or_path = str(given.pop("_name_or_path", ""))
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | GENERIC
        for name, value in (defaults | given).items():
            setattr(self, name, value)
        self._complete()

    def validate(self) -> None:
        """Check all fields, after a change too, and whether a network can be built with them.

        Raises:
            ValueError: if a value is impossible, naming the field.
        """
        self._complete()
        if any(self.embed_dim % heads for heads in self.num_heads):
            raise ValueError(f"num_heads {self.num_heads} must divide embed_dim {self.embed_dim}.")

    def _complete(self) -> None:
        """Bring all fields to their form and check each; lists stay lists, as code for Transformers compares them."""
        for name in ("depths", "num_heads"):
            given = getattr(self, name)
            setattr(self, name, list(given) if isinstance(given, list) else tuple(given))
        self.upsampler = self.upsampler or None
        if self.num_channels_out is None:
            self.num_channels_out = self.num_channels
        if isinstance(self.dtype, str):
            import torch  # noqa: PLC0415 (a configuration is read without it)

            self.dtype = getattr(torch, self.dtype.removeprefix("torch."), self.dtype)
        self._refuse_unsupported()
        self._refuse_impossible()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Swin2SRConfig) and self._compared() == other._compared()

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def _compared(self) -> dict[str, Any]:
        hidden = ("_", *_BOOKKEEPING)
        lists = {"depths": tuple(self.depths), "num_heads": tuple(self.num_heads)}
        return {name: value for name, value in vars(self).items() if not name.startswith(hidden)} | lists

    def _refuse_unsupported(self) -> None:
        if self.patch_size != 1:
            raise ValueError(f"patch_size must be 1, not {self.patch_size}: no released Swin2SR network has another.")
        if self.use_absolute_embeddings:
            raise ValueError("use_absolute_embeddings must be false: no released Swin2SR network has them.")
        if self.upsampler == "pixelshuffle_hf":
            raise ValueError("upsampler pixelshuffle_hf is not supported: no weights were released for it.")
        if self.upsampler not in SCALES:
            raise ValueError(f"upsampler must be one of {', '.join(UPSAMPLERS)} or null, not {self.upsampler!r}.")
        if self.upscale not in SCALES[self.upsampler]:
            raise ValueError(
                f"upscale must be one of {SCALES[self.upsampler]} with upsampler {self.upsampler}, not {self.upscale}."
            )
        if self.resi_connection not in ("1conv", "3conv"):
            raise ValueError(f"resi_connection must be 1conv or 3conv, not {self.resi_connection!r}.")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, not {self.hidden_act!r}.")

    def _refuse_impossible(self) -> None:
        whole = [self.embed_dim, self.window_size, self.num_channels, self.out_channels, *self.depths, *self.num_heads]
        if not all(isinstance(value, int) and value >= 1 for value in whole):
            raise ValueError("embed_dim, window_size, depths, num_heads and channels must be integers of at least 1.")
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ValueError(
                f"depths {self.depths} and num_heads {self.num_heads} must be of the same length, 1 or more."
            )
        if self.resi_connection == "3conv" and self.embed_dim % 4:
            raise ValueError(f"embed_dim {self.embed_dim} must be a multiple of 4 with resi_connection 3conv.")
        if self.window_size < 2:
            raise ValueError(f"window_size must be 2 or more, not {self.window_size}.")
        self._refuse_other_types()
        for name in ("mlp_ratio", "img_range", "layer_norm_eps"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a positive number, not {getattr(self, name)}.")
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} with embed_dim {self.embed_dim} gives no hidden channel.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        if self.upsampler is None and self.num_channels_out != self.num_channels:
            raise ValueError("num_channels_out must equal num_channels without an upsampler: the input is added.")
        self._refuse_impossible_refinement()

    def _refuse_other_types(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number and (name, value) != ("range_slack", None):
                raise ValueError(f"{name} must be a number, not {value!r}.")

    def _refuse_impossible_refinement(self) -> None:
        if not isinstance(self.back_projection, bool):
            raise ValueError(f"back_projection must be true or false, not {self.back_projection!r}.")  # noqa: TRY004
        if self.back_projection and self.upscale == 1:
            raise ValueError("back_projection must be false with upscale 1: it would undo the restoration.")
        if not 0 <= self.back_projection_blur <= MOST_BLUR:
            raise ValueError(f"back_projection_blur must lie in [0, {MOST_BLUR:g}], not {self.back_projection_blur}.")
        if self.range_slack is not None and not 0 <= self.range_slack <= 1:
            raise ValueError(f"range_slack must lie in [0, 1] or be null, not {self.range_slack}.")
        if self.is_refined and self.num_channels_out != self.num_channels:
            raise ValueError("num_channels_out must equal num_channels with back_projection or range_slack.")

    @property
    def is_refined(self) -> bool:
        """Whether the image of the head is refined (``model.refinement``)."""
        return self.back_projection or self.range_slack is not None

    @property
    def shift_size(self) -> int:
        """Pixels by which odd blocks shift their windows: 4 for window 8, 3 for window 7."""
        return self.window_size // 2

    @property
    def out_channels(self) -> int:
        """Channels of the reconstruction: ``num_channels_out``, which is never None after ``validate``."""
        assert self.num_channels_out is not None
        return self.num_channels_out

    def to_dict(self) -> dict[str, Any]:
        """All attributes in the form of JSON, with Hugging Face's ``model_type``."""
        found = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        for name in _OWN:
            if found[name] == getattr(Swin2SRConfig, name):
                del found[name]
        found["depths"], found["num_heads"] = list(self.depths), list(self.num_heads)
        found["upsampler"] = self.upsampler or ""
        found["dtype"] = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        found["architectures"] = self.architectures or ["Swin2SRForImageSuperResolution"]
        return {"model_type": self.model_type, **found}

    def to_diff_dict(self) -> dict[str, Any]:
        """``model_type``, the fields of the network, and the other attributes that differ from the defaults."""
        default = Swin2SRConfig().to_dict()
        for name in ("model_type", *self._field_names()):
            default.pop(name, None)
        return {name: value for name, value in self.to_dict().items() if value != default.get(name, MISSING)}
