"""Adapters of the package ``peft``, such as LoRA, with the method names that models of Transformers have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "base_model.model."
"""Prefix of all names in an adapter's file."""


def _peft() -> Any:  # noqa: ANN401 (a module without types)
    try:
        import peft  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise ImportError("adapters need the package peft: pip install peft") from error
    return peft


class WithAdapters(nn.Module):
    """Methods that add adapters to a network's layers, choose between them, save and load them."""

    _hf_peft_config_loaded: bool = False
    name_or_path: str

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:  # noqa: ANN401
        """Put a new adapter into the layers that it names. Only its weights are trained from then on.

        Args:
            adapter_config: of ``peft``, such as ``LoraConfig(target_modules=["query", "value"])``.
            adapter_name: ``default`` if it is None.

        Raises:
            ImportError: if ``peft`` is not installed.
            ValueError: if there is an adapter of this name, or it fits no layer.
        """
        peft, name = _peft(), adapter_name or "default"
        if name in self._configs:
            raise ValueError(f"there is an adapter {name!r} already: choose another adapter_name")
        adapter_config.base_model_name_or_path = self.name_or_path or None
        peft.inject_adapter_in_model(adapter_config, self, name)
        self._hf_peft_config_loaded = True
        self.set_adapter(name)

    def load_adapter(
        self,
        peft_model_id: str | Path,
        adapter_name: str | None = None,
        is_trainable: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Load an adapter that ``peft`` or ``save_pretrained`` wrote. It is in evaluation mode unless ``is_trainable``.

        Args:
            peft_model_id: a folder, or a hub id.
            adapter_name: ``default`` if it is None.
            is_trainable: whether its weights can be trained.
            options: those of ``peft`` for files, such as ``revision`` and ``token``.

        Raises:
            ImportError, ValueError: as ``add_adapter``, and if weights do not fit.
        """
        peft, name = _peft(), adapter_name or "default"
        config = peft.PeftConfig.from_pretrained(str(peft_model_id), **options)
        config.inference_mode = not is_trainable
        weights = peft.utils.load_peft_weights(str(peft_model_id), device="cpu", **options)
        self.add_adapter(config, name)
        state = {key.removeprefix(_PREFIX): tensor for key, tensor in weights.items()}
        if unexpected := peft.set_peft_model_state_dict(self, state, name).unexpected_keys:
            raise ValueError(f"the adapter {peft_model_id} does not fit this network: unexpected {unexpected}")
        if not is_trainable:
            self.eval()
            for parameter in self.parameters():
                parameter.requires_grad_(False)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Use these adapters, and no others.

        Raises:
            ValueError: if there is no such adapter.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if missing := [name for name in names if name not in self._configs]:
            raise ValueError(
                f"there is no adapter {', '.join(missing)}: there are {', '.join(self._configs) or 'none'}"
            )
        for layer in self._adapted():
            layer.enable_adapters(enabled=True)
            layer.set_adapter(names)

    def enable_adapters(self) -> None:
        """Use the chosen adapters again."""
        for layer in self._adapted():
            layer.enable_adapters(enabled=True)

    def disable_adapters(self) -> None:
        """Compute without adapters."""
        for layer in self._adapted():
            layer.enable_adapters(enabled=False)

    def active_adapters(self) -> list[str]:
        """The names of the adapters in use."""
        layer = next(self._adapted(), None)
        return [] if layer is None else list(layer.active_adapters)

    def delete_adapter(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters and their weights. A layer without further adapters is again what it was."""
        for name in [adapter_names] if isinstance(adapter_names, str) else list(adapter_names):
            for layer in self._adapted():
                layer.delete_adapter(name)
            self._configs.pop(name, None)
        for name, layer in list(self.named_modules()):
            if isinstance(layer, _peft().tuners.tuners_utils.BaseTunerLayer) and not _adapters_of(layer):
                self.set_submodule(name, layer.get_base_layer())
        self._hf_peft_config_loaded = bool(self._configs)

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The weights of an adapter; of the first in use if no name is given."""
        name = adapter_name or self.active_adapters()[0]
        found = _peft().get_peft_model_state_dict(
            self, state_dict=state_dict, adapter_name=name, save_embedding_layers=False
        )
        return cast("dict[str, Tensor]", found)

    def save_adapter(self, folder: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` of the adapter in use, as ``peft`` does."""
        from safetensors.torch import save_file  # noqa: PLC0415 (only here)

        [name, *others] = self.active_adapters()
        if others:
            raise ValueError(f"{', '.join((name, *others))} are in use: choose one with set_adapter to save it")
        folder.mkdir(parents=True, exist_ok=True)
        state = {_PREFIX + key: tensor.contiguous() for key, tensor in self.get_adapter_state_dict(name).items()}
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        self._configs[name].save_pretrained(str(folder))

    @property
    def _configs(self) -> dict[str, Any]:
        return cast("dict[str, Any]", getattr(self, "peft_config", {}))

    def _adapted(self) -> Iterator[Any]:
        """The layers with adapters."""
        if not self._configs:
            return
        from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - optional

        yield from (module for module in self.modules() if isinstance(module, BaseTunerLayer))


def _adapters_of(layer: Any) -> set[str]:  # noqa: ANN401 (a class without types)
    """The names of the adapters in a layer of ``peft``."""
    return {name for kind in layer.adapter_layer_names for name in getattr(layer, kind)}
