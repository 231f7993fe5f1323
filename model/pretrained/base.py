"""The base of the model classes: loading, saving, and the choice of the forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from model.checkpoints import Checkpoint, write_pretrained
from model.config import Swin2SRConfig
from model.hooks import is_tracing
from model.inference.cpu import Inference, Workspace, can_infer, infer_again
from model.network import Swin2SR
from model.packing import PackedLayout
from model.padding import pad_tensor
from model.pretrained.adapters import WithAdapters
from model.pretrained.loading import device_of, dtype_of, find_checkpoint, load_all, load_what_fits
from model.pretrained.methods import ModelMethods, check_attention
from model.pretrained_config import GENERIC, refuse_push
from model.repository import FOLDER_OPTIONS

_REFUSED = ("from_tf", "from_flax", "quantization_config", "gguf_file")


class PreTrained(WithAdapters, ModelMethods):
    """What both model classes have from Transformers' ``PreTrainedModel``, and what their forward passes share."""

    def __init__(self, config: Swin2SRConfig) -> None:
        config.validate()
        check_attention(config._attn_implementation)  # noqa: SLF001 (the name that Transformers gives it)
        super().__init__(config)
        self._trunk.encoder.gradient_checkpointing = bool(getattr(config, "gradient_checkpointing", False))
        self.workspace = Workspace(config.window_size, config.shift_size)
        self.name_or_path = config.name_or_path

    # Folders.

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: Swin2SRConfig | str | Path | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,  # noqa: ANN401 (a device in one of many forms)
        device: str | torch.device | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        variant: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 (a model; with output_loading_info a pair)
        """Load weights. The model is in evaluation mode.

        Weights are read without running code from the file. All weights must exist, with two exceptions, which a
        warning names: a body without a head loads into ``Swin2SRForImageSuperResolution`` with a new head, and what a
        subclass adds to the network is new where the file lacks it.

        Args:
            pretrained_model_name_or_path: a folder, an official ``.pth`` or ``.safetensors`` file, or a hub id; None
                with ``config`` and ``state_dict``.
            config: used instead of that in the folder.
            state_dict: used instead of the weights in the folder.
            dtype, torch_dtype: of the weights; None is float32, ``"auto"`` the type in the file.
            device_map, device: one device for the model.
            output_loading_info: whether to return a dictionary of missing, unexpected and mismatched weights too.
                Missing ones stay new, with a warning, and unexpected ones are left out, instead of an error.
            ignore_mismatched_sizes: the same without the dictionary, for weights of another shape too.
            variant: of the files in the folder: ``fp16`` for ``model.fp16.safetensors``.
            options: those of ``model.repository.find_folder``, and attributes of the configuration. Others of
                Transformers (``low_cpu_mem_usage``, ``use_safetensors``) have no effect.

        Raises:
            ValueError: if the name does not exist, or an option is not supported.
            CheckpointError: if the weights are broken, or do not fit their configuration.
            RuntimeError: in a context manager of the meta device.
        """
        _refuse_unsupported(options)
        checkpoint = cls._find_checkpoint(pretrained_model_name_or_path, config, state_dict, variant, options)
        wanted = torch_dtype if dtype is None else dtype
        if wanted == "auto":
            wanted = next(iter(checkpoint.state.values())).dtype
        model = cls(checkpoint.config)
        network = cast("Swin2SR", model)
        if ignore_mismatched_sizes or output_loading_info:
            info = load_what_fits(network, checkpoint, ignore_mismatched_sizes=ignore_mismatched_sizes)
        else:
            info = load_all(network, checkpoint)
        model = model.to(device=device_of(device_map, device), dtype=dtype_of(wanted)).eval()
        return (model, vars(info)) if output_loading_info else model

    @classmethod
    def _find_checkpoint(
        cls,
        name: str | Path | None,
        config: Swin2SRConfig | str | Path | None,
        state_dict: Mapping[str, Tensor] | None,
        variant: str | None,
        options: Mapping[str, Any],
    ) -> Checkpoint:
        """The checkpoint; options of ``from_pretrained`` that are attributes of the configuration replace its own."""
        folder_options = {option: value for option, value in options.items() if option in FOLDER_OPTIONS}
        if config is None and cls.config_class is not Swin2SRConfig:
            config = cls.config_class.from_pretrained(name or "", **folder_options)
        config = copy.deepcopy(config)  # options must not change the caller's
        checkpoint = find_checkpoint(name, config, state_dict, variant, folder_options)
        known = set(vars(checkpoint.config)) | GENERIC.keys() | cls.config_class.attribute_map.keys()
        known -= folder_options.keys()
        checkpoint.config.update({option: value for option, value in options.items() if option in known})
        checkpoint.config.name_or_path = str(name or "")
        return checkpoint

    def save_pretrained(  # noqa: PLR0917 (the order of Transformers)
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        save_function: Callable[..., Any] | None = None,  # noqa: ARG002 (weights are written by safetensors)
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        **_: Any,  # noqa: ANN401
    ) -> None:
        """Write ``config.json`` and weights in a form that Transformers loads too; with adapters only the one in use.

        Args:
            save_directory: the folder; created if it is missing.
            is_main_process: False writes nothing.
            state_dict: weights to write instead of the model's own.
            save_function: has no effect.
            push_to_hub: not supported.
            max_shard_size: bytes, or a string such as ``"200MB"``: larger weights are written to several files.
            safe_serialization: whether to write ``.safetensors``, else ``.bin``.
            variant: part of the files' name: ``fp16`` for ``model.fp16.safetensors``.

        Raises:
            ValueError: if ``push_to_hub`` is true, or ``max_shard_size`` is not a number of bytes.
        """
        refuse_push(push_to_hub)
        if not is_main_process:
            return
        if self._hf_peft_config_loaded:
            self.save_adapter(Path(save_directory))
            return
        self.config.architectures = [type(self).__name__]
        write_pretrained(
            cast("Swin2SR", self),
            save_directory,
            state=state_dict,
            max_shard_size=max_shard_size,
            safe_serialization=safe_serialization,
            variant=variant,
        )

    def push_to_hub(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Not supported: save to a folder and upload it."""
        refuse_push(True)

    @classmethod
    def _from_config(cls, config: Swin2SRConfig, **options: Any) -> Self:  # noqa: ANN401
        check_attention(options.get("attn_implementation"))
        return cls(config).to(dtype=dtype_of(options.get("dtype", options.get("torch_dtype"))))

    # What both forward passes need.

    def _flag(self, name: str, value: bool | None) -> bool:
        return bool(getattr(self.config, name)) if value is None else value

    def _pad(self, pixel_values: Tensor) -> tuple[Tensor, bool]:
        """Check the input and pad it to the window grid; return it and whether padding was added."""
        channels = self._trunk.num_channels
        if not isinstance(pixel_values, Tensor):
            raise ValueError(f"pixel_values must be a PyTorch tensor, not {type(pixel_values).__name__}")  # noqa: TRY004 (as the shape)
        is_image = pixel_values.ndim == 4 and pixel_values.is_floating_point()
        if not is_image or not (is_tracing() or pixel_values.shape[1] == channels):
            raise ValueError(
                f"pixel_values must be floating point of shape (B, {channels}, H, W), "
                f"not {pixel_values.dtype} {tuple(pixel_values.shape)}"
            )
        pixels = pixel_values.to(self.dtype)
        padded = pad_tensor(pixels, self.config.window_size)
        return padded, padded is not pixels

    def _fast(self, padded: Tensor) -> tuple[Inference, PackedLayout, Tensor] | None:
        """The fast forward pass with its layout and its input; None if it cannot be used."""
        if not can_infer(self, padded):
            return None
        inference = infer_again(cast("Swin2SR", self), self.workspace)
        if inference is None:
            return None
        batch, _, height, width = padded.shape
        layout = self.workspace.layouts([(height, width)] * batch)
        return inference, layout, padded.permute(0, 2, 3, 1).flatten(0, 2)

    def _head_masks(self, head_mask: Tensor | None) -> list[Tensor] | None:
        """A factor (nH,) for every stage, of a mask (nH,) or (stages, nH)."""
        heads = self.config.num_heads
        if head_mask is None:
            return None
        masks = head_mask.expand(len(heads), -1) if head_mask.ndim == 1 else head_mask
        if masks.ndim != 2 or len(masks) != len(heads) or any(masks.shape[1] != count for count in heads):
            raise ValueError(
                f"head_mask {tuple(head_mask.shape)} is neither (heads,) nor (stages, heads) for the heads {heads}"
            )
        return list(masks.to(device=self.device, dtype=self.dtype).unbind())


def _refuse_unsupported(options: Mapping[str, Any]) -> None:
    if refused := [name for name in _REFUSED if options.get(name)]:
        raise ValueError(f"{', '.join(refused)} is not supported: weights are read from safetensors or PyTorch files")
    if torch.get_default_device().type == "meta":
        raise RuntimeError(
            "You are using `from_pretrained` with a meta device context manager, which cannot hold weights. "
            "Build the model from its configuration there, or load it outside of the context manager"
        )
