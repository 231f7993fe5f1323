"""The configuration of a Swin2SR network, with the field names of Hugging Face's ``config.json``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.official.hub import local_folder

UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect", "nearest+conv", "pixelshuffle_aux")
SCALES = {
    "pixelshuffle": (2, 3, 4, 8),
    "pixelshuffledirect": (2, 3, 4, 8),
    "nearest+conv": (4,),
    "pixelshuffle_aux": (2, 3, 4, 8),
    None: (1,),
}
ACTIVATIONS = ("gelu", "relu", "selu", "gelu_new")
CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class Swin2SRConfig:
    """What a Swin2SR network is made of; the defaults are the classical x2 network.

    Source: Transformers 4.37.2, ``Swin2SRConfig``; the official constructor's names are ``img_size`` (image_size),
    ``in_chans`` (num_channels), ``ape`` (use_absolute_embeddings).

    Attributes:
        image_size: side in pixels of the training crops; the network takes any size.
        patch_size: 1; the released networks know no other.
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

    Raises:
        ValueError: if a value is impossible, naming the field.
    """

    image_size: int = 64
    patch_size: int = 1
    num_channels: int = 3
    num_channels_out: int | None = None
    embed_dim: int = 180
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "num_heads", tuple(self.num_heads))
        object.__setattr__(self, "upsampler", self.upsampler or None)
        if self.num_channels_out is None:
            object.__setattr__(self, "num_channels_out", self.num_channels)
        self._refuse_unsupported()
        self._refuse_impossible()

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
            raise ValueError("embed_dim, window_size, depths, num_heads and channels must be whole numbers from 1 on.")
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must name the same, some, stages.")
        if any(self.embed_dim % heads for heads in self.num_heads):
            raise ValueError(f"num_heads {self.num_heads} must divide embed_dim {self.embed_dim}.")
        if self.resi_connection == "3conv" and self.embed_dim % 4:
            raise ValueError(f"embed_dim {self.embed_dim} must be a multiple of 4 with resi_connection 3conv.")
        if self.window_size < 2:
            raise ValueError(f"window_size must be 2 or more, not {self.window_size}.")
        for name in ("mlp_ratio", "img_range", "layer_norm_eps"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a positive number, not {getattr(self, name)}.")
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves no hidden channel beside embed_dim {self.embed_dim}.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        if self.upsampler is None and self.num_channels_out != self.num_channels:
            raise ValueError("num_channels_out must equal num_channels without an upsampler: the input is added.")

    @property
    def shift_size(self) -> int:
        """Pixels by which odd blocks shift their windows: 4 for window 8, 3 for window 7."""
        return self.window_size // 2

    @property
    def out_channels(self) -> int:
        """Channels of the reconstruction, which ``num_channels_out`` is once it has been filled in."""
        assert self.num_channels_out is not None
        return self.num_channels_out

    @property
    def hidden_size(self) -> int:
        """The name that Transformers gives to ``embed_dim``."""
        return self.embed_dim

    @property
    def num_layers(self) -> int:
        """Number of stages, as Transformers counts layers."""
        return len(self.depths)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Swin2SRConfig:
        """Build from the content of a ``config.json``; unknown fields (``path_norm``, versions) are passed over.

        Raises:
            ValueError: if a known field has an impossible value or type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise ValueError(f"The configuration has a field of the wrong type: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them, with Hugging Face's ``model_type`` and ``architectures``."""
        fields = dataclasses.asdict(self)
        fields["depths"], fields["num_heads"] = list(self.depths), list(self.num_heads)
        fields["upsampler"] = self.upsampler or ""
        return {"architectures": ["Swin2SRForImageSuperResolution"], "model_type": "swin2sr", **fields}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Swin2SRConfig:
        """Read ``config.json`` in a folder, or the file itself, or that of a hub id in the local Hugging Face cache.

        Raises:
            ValueError: if there is no such file, or it is not a Swin2SR configuration, naming the file.
        """
        file = Path(folder) if Path(folder).suffix == ".json" else local_folder(folder)
        file = file / CONFIG_NAME if file.is_dir() else file
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}.") from error
        if not isinstance(values, dict) or values.get("model_type", "swin2sr") != "swin2sr":
            raise ValueError(f"{file} is not the configuration of a Swin2SR network.")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` into a folder, which is made where it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (Path(folder) / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
