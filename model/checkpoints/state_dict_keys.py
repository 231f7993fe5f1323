"""Names of weights in the official and in the Hugging Face layout, and the configuration that they imply.

Official names are those of github.com/mv-lab/swin2sr, ``models/network_swin2sr.py``. One table maps them to the names
of Transformers, which the network uses, and back.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

import torch
from torch import Tensor

from model.config import Swin2SRConfig

BODY_PREFIX = "swin2sr."
"""Prefix of the body's weights in the Hugging Face layout of a network with a head."""

# Asterisks are indices. The rest of a key (".weight", ".0.bias") is kept.
_BODY = (
    ("conv_first", "swin2sr.first_convolution"),
    ("patch_embed.proj", "swin2sr.embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "swin2sr.embeddings.patch_embeddings.layernorm"),
    ("layers.*.conv", "swin2sr.encoder.stages.*.conv"),
    ("layers.*.patch_embed.proj", "swin2sr.encoder.stages.*.patch_embed.projection"),
    ("norm", "swin2sr.layernorm"),
    ("conv_after_body", "swin2sr.conv_after_body"),
)
_BLOCK = tuple(
    (f"layers.*.residual_group.blocks.*.{official}", f"swin2sr.encoder.stages.*.layers.*.{huggingface}")
    for official, huggingface in (
        ("attn.logit_scale", "attention.self.logit_scale"),
        ("attn.cpb_mlp", "attention.self.continuous_position_bias_mlp"),
        ("attn.q_bias", "attention.self.query.bias"),
        ("attn.v_bias", "attention.self.value.bias"),
        ("attn.proj", "attention.output.dense"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    )
)
_BEFORE = ("conv_before_upsample.0", "upsample.conv_before_upsample")
_LAST = ("conv_last", "upsample.final_convolution")
_STEPS = tuple((f"upsample.{2 * step}", f"upsample.upsample.convolution_{step}") for step in range(3))
_TRIPLE = ("upsample.0", "upsample.upsample.convolution")
_HEADS: Mapping[str | None, tuple[tuple[str, str], ...]] = {
    "pixelshuffle": (_BEFORE, *_STEPS, _LAST),
    "pixelshuffledirect": (("upsample.0", "upsample.conv"),),
    "nearest+conv": (_BEFORE, *((name, f"upsample.{name}") for name in ("conv_up1", "conv_up2", "conv_hr")), _LAST),
    "pixelshuffle_aux": (
        _BEFORE,
        ("conv_bicubic", "upsample.conv_bicubic"),
        ("conv_aux", "upsample.conv_aux"),
        ("conv_after_aux.0", "upsample.conv_after_aux.0"),
        *_STEPS,
        _LAST,
    ),
    None: (("conv_last", "final_convolution"),),
}
_PROJECTIONS = ("query", "key", "value")
_OFFICIAL_QKV = re.compile(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.attn\.qkv\.weight")
_HUGGINGFACE_QKV = re.compile(
    r"swin2sr\.encoder\.stages\.(\d+)\.layers\.(\d+)\.attention\.self\.(query|key|value)\.weight"
)
_DERIVED = ("attn_mask", "relative_coords_table", "relative_position_index")


class CheckpointError(ValueError):
    """A file cannot be used as Swin2SR weights. The message names the file and the fault.

    Attributes:
        missing, unexpected, misshaped: names of weights in the file's layout; empty if these are not the cause.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshaped: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshaped = tuple(misshaped)


def is_huggingface(keys: Iterable[str]) -> bool:
    """Whether keys are in the Hugging Face layout, with or without a head, and not in the official one."""
    return any(key.startswith(BODY_PREFIX) for key in keys)


def is_derived(key: str) -> bool:
    """Whether a key is that of a buffer that follows from the configuration (masks, index tables), not of a weight."""
    return key.rpartition(".")[2] in _DERIVED


def is_head(key: str) -> bool:
    """Whether a key belongs to the head, in either layout, and not to the body."""
    names = {name.partition(".")[0] for pairs in _HEADS.values() for pair in pairs for name in pair}
    return key.partition(".")[0] in names


def to_huggingface(state: Mapping[str, Tensor], config: Swin2SRConfig) -> dict[str, Tensor]:
    """Rename official weights to the Transformers port's names; ``qkv.weight`` (3C, C) becomes three (C, C)."""
    head = _HEADS[config.upsampler]
    if config.upsampler in ("pixelshuffle", "pixelshuffle_aux") and config.upscale == 3:
        head = (_TRIPLE, *head)
    renamer = _Renamer((*_BODY, *_BLOCK, *head))
    renamed = {}
    for key, tensor in state.items():
        if match := _OFFICIAL_QKV.fullmatch(key):
            stage, block = match.groups()
            prefix = f"swin2sr.encoder.stages.{stage}.layers.{block}.attention.self"
            for name, part in zip(_PROJECTIONS, tensor.chunk(3), strict=True):
                renamed[f"{prefix}.{name}.weight"] = part.contiguous()
        else:
            renamed[renamer(key)] = tensor
    return renamed


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the Transformers port's weights to official names; query, key and value (C, C) become one (3C, C).

    Unknown names are kept, so that the strict comparison reports them.
    """
    pairs = {(theirs, ours) for head in _HEADS.values() for ours, theirs in (*head, _TRIPLE)}
    renamer = _Renamer((*((theirs, ours) for ours, theirs in (*_BODY, *_BLOCK)), *pairs))
    renamed: dict[str, Tensor] = {}
    projections: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if match := _HUGGINGFACE_QKV.fullmatch(key):
            stage, block, name = match.groups()
            projections.setdefault((stage, block), {})[name] = tensor
        else:
            renamed[renamer(key)] = tensor
    for (stage, block), parts in projections.items():
        name = f"layers.{stage}.residual_group.blocks.{block}.attn.qkv.weight"
        renamed[name] = torch.cat([parts[part] for part in _PROJECTIONS])
    return renamed


class _Renamer:
    """Renames by the first pair whose left side is the beginning of a key."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._rules = [
            (re.compile(re.escape(left).replace(r"\*", r"(\d+)") + r"((?:\..+)?)"), right.replace("*", "{}") + "{}")
            for left, right in pairs
        ]

    def __call__(self, key: str) -> str:
        for pattern, template in self._rules:
            if match := pattern.fullmatch(key):
                return template.format(*match.groups())
        return key


def infer_config(state: Mapping[str, Tensor]) -> Swin2SRConfig:
    """Infer the configuration from the keys and shapes of an official state dict, including index buffers.

    Other fields have the values of all released weights: exact GELU, LayerNorm epsilon 1e-5, and an ``img_range`` of
    255 if the window is 7, else 1.

    Raises:
        CheckpointError: if these are not Swin2SR weights, or the head is ``pixelshuffle_hf``, which was never released.
        ValueError: if the configuration is not supported.
    """
    if any(re.search(r"(^|\.)\w+_hf\.", key) for key in state):
        raise CheckpointError("the head 'pixelshuffle_hf' is not supported: no weights were ever released for it")
    if "conv_first.weight" not in state or state["conv_first.weight"].ndim != 4:
        raise CheckpointError("these are not Swin2SR weights: there is no convolution 'conv_first.weight'")
    embed_dim, num_channels = state["conv_first.weight"].shape[:2]
    depths, num_heads = _infer_stages(state)
    window_size = _infer_window(state)
    upsampler, upscale = _infer_head(state, num_channels)
    last = state.get("conv_last.weight")
    first = "layers.0.residual_group.blocks.0"
    fc1 = state.get(f"{first}.mlp.fc1.weight")
    embed = state.get("patch_embed.proj.weight")
    return Swin2SRConfig(
        patch_size=1 if embed is None else embed.shape[-1],
        num_channels=num_channels,
        num_channels_out=num_channels if last is None else last.shape[0],
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        mlp_ratio=2.0 if fc1 is None else fc1.shape[0] / embed_dim,
        qkv_bias=f"{first}.attn.q_bias" in state,
        use_absolute_embeddings="absolute_pos_embed" in state,
        upscale=upscale,
        img_range=255.0 if window_size == 7 else 1.0,
        resi_connection="3conv" if "conv_after_body.0.weight" in state else "1conv",
        upsampler=upsampler,
    )


def _infer_stages(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    depths, num_heads = [], []
    for stage in count():
        blocks = f"layers.{stage}.residual_group.blocks"
        scale = state.get(f"{blocks}.0.attn.logit_scale")
        if scale is None:
            break
        depths.append(next(block for block in count(1) if f"{blocks}.{block}.attn.logit_scale" not in state))
        num_heads.append(scale.shape[0])
    if not depths:
        raise CheckpointError("these are not Swin2SR weights: there is no 'layers.0.residual_group.blocks.0'")
    return tuple(depths), tuple(num_heads)


def _infer_window(state: Mapping[str, Tensor]) -> int:
    blocks = "layers.0.residual_group.blocks"
    if (index := state.get(f"{blocks}.0.attn.relative_position_index")) is not None:
        return math.isqrt(index.shape[0])
    if (table := state.get(f"{blocks}.0.attn.relative_coords_table")) is not None:
        return (table.shape[1] + 1) // 2
    if (mask := state.get(f"{blocks}.1.attn_mask")) is not None:
        return math.isqrt(mask.shape[-1])
    raise CheckpointError(
        "the window size cannot be inferred without the buffer 'relative_position_index'. Put the configuration next "
        "to the file, with the same name and the extension .json"
    )


def _infer_head(state: Mapping[str, Tensor], num_channels: int) -> tuple[str | None, int]:
    if "conv_up1.weight" in state:
        return "nearest+conv", 4
    first = state.get("upsample.0.weight")
    if first is None:
        return None, 1
    if "conv_before_upsample.0.weight" not in state:
        return "pixelshuffledirect", math.isqrt(first.shape[0] // num_channels)
    upsampler = "pixelshuffle_aux" if "conv_bicubic.weight" in state else "pixelshuffle"
    steps = sum(f"upsample.{2 * step}.weight" in state for step in range(3))
    return upsampler, 3 if first.shape[0] == 9 * first.shape[1] else 2**steps
