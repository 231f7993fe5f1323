"""Flags and methods of Transformers' ``PreTrainedModel`` that neither load nor compute: sizes, parts, switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from model.config import Swin2SRConfig
from model.network import Swin2SR, Swin2SRBody, Swin2SRSelfAttention
from model.reconstruction import mean_of


class ModelMethods(nn.Module):
    """Answers code for Transformers about a network, and initialises its weights."""

    config_class: ClassVar[type[Swin2SRConfig]] = Swin2SRConfig
    base_model_prefix: ClassVar[str] = "swin2sr"
    main_input_name: ClassVar[str] = "pixel_values"
    supports_gradient_checkpointing: ClassVar[bool] = True
    framework: ClassVar[str] = "pt"
    accepts_loss_kwargs: ClassVar[bool] = False
    _no_split_modules: ClassVar[list[str]] = ["Swin2SRStage"]
    _keep_in_fp32_modules: ClassVar[frozenset[str]] = frozenset()
    _keep_in_fp32_modules_strict: ClassVar[frozenset[str]] = frozenset()
    _keys_to_ignore_on_load_missing: ClassVar[None] = None
    _keys_to_ignore_on_load_unexpected: ClassVar[None] = None
    _keys_to_ignore_on_save: ClassVar[None] = None
    _tied_weights_keys: ClassVar[None] = None
    _can_record_outputs: ClassVar[None] = None
    _skip_keys_device_placement: ClassVar[None] = None
    _supports_sdpa: ClassVar[bool] = False
    _supports_flash_attn: ClassVar[bool] = False
    _supports_flex_attn: ClassVar[bool] = False
    _supports_attention_backend: ClassVar[bool] = False

    config: Swin2SRConfig

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Accepted for code written for Transformers; has no effect."""

    def add_model_tags(self, tags: str | list[str]) -> None:
        """Keep tags for a model card; nothing here writes one."""
        self.model_tags = [*getattr(self, "model_tags", []), *([tags] if isinstance(tags, str) else tags)]

    # Weights.

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as Transformers does, including convolutions and tables."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.zeros_(module.bias)
            nn.init.ones_(module.weight)
        elif isinstance(module, Swin2SRSelfAttention):
            module.reset()
        elif isinstance(module, Swin2SRBody):
            module.mean.copy_(mean_of(self.config.num_channels))
        elif isinstance(module, Swin2SR):
            module.mean_out.copy_(mean_of(self.config.out_channels))

    def init_weights(self) -> None:
        """Initialise all weights and buffers, for example after ``to_empty``."""
        self.apply(self._init_weights)

    def post_init(self) -> None:
        """Accepted for subclasses written for Transformers; has no effect."""

    def tie_weights(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Accepted for code written for Transformers; no weights are tied."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next((each.dtype for each in self.parameters() if each.is_floating_point()), torch.float32)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:  # noqa: ARG002
        """The number of weights; there are no embeddings of tokens."""
        return sum(each.numel() for each in self.parameters() if each.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of weights and buffers."""
        buffers = list(self.buffers()) if return_buffers else []
        return sum(tensor.nbytes for tensor in (*self.parameters(), *buffers))

    def estimate_tokens(self, input_dict: Mapping[str, Tensor]) -> int:
        """Number of input values, as Transformers counts."""
        return input_dict[self.main_input_name].numel() if self.main_input_name in input_dict else 0

    def floating_point_ops(self, input_dict: Mapping[str, Tensor], exclude_embeddings: bool = True) -> int:
        """An estimate of the operations of a training step, as Transformers counts."""
        return 6 * self.estimate_tokens(input_dict) * self.num_parameters(exclude_embeddings=exclude_embeddings)

    # Parts.

    @property
    def base_model(self) -> nn.Module:
        """The body."""
        return cast("nn.Module", getattr(self, self.base_model_prefix, self))

    @property
    def _trunk(self) -> Swin2SRBody:
        return cast("Swin2SRBody", self.base_model)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of pixels."""
        return self._trunk.embeddings.patch_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of pixels."""
        self._trunk.embeddings.patch_embeddings = value  # type: ignore[assignment]  # whatever is given

    def get_output_embeddings(self) -> None:
        """Return None: the network has no output embeddings."""

    def resize_token_embeddings(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Not supported: the network has no text tokens."""
        raise NotImplementedError("Swin2SR has no token embeddings to resize")

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Accepted for code written for Transformers.

        Raises:
            ValueError: if it is not ``"eager"``, the only one.
        """
        check_attention(attn_implementation)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return False

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return False

    @classmethod
    def can_generate(cls) -> bool:
        """Return False: the network does not generate text."""
        return False

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Inputs of two windows by two."""
        side = 2 * self.config.window_size
        return {"pixel_values": torch.zeros(1, self.config.num_channels, side, side, device=self.device)}

    # Training.

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether stages are computed again in the backward pass."""
        return self._trunk.encoder.gradient_checkpointing

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 (ways that there is one of)
        """Compute stages again in the backward pass, so that training takes less memory."""
        self._trunk.encoder.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass."""
        self._trunk.encoder.gradient_checkpointing = False

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the output of the embedding, for adapters in frozen networks."""
        self._input_hook = self.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: (output[0].requires_grad_(), output[1])
        )

    def disable_input_require_grads(self) -> None:
        """Undo ``enable_input_require_grads``."""
        self._input_hook.remove()


def check_attention(name: str | None) -> None:
    """Refuse other implementations of attention.

    Raises:
        ValueError: if it is neither None nor ``"eager"``.
    """
    if name not in (None, "eager"):
        raise ValueError(f"attn_implementation={name!r} is not supported: use 'eager'")
